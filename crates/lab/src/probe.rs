//! Measures an interruption: numbered datagrams to an echo server, one every few milliseconds.
//!
//! The gap of a failover is the time between sending the last datagram that was answered before it and
//! the first that was answered after it: it includes what the sender itself was late by, which is
//! therefore reported too. The sender asks for real-time priority, so that this is little on a busy machine.
//!
//! Who listens and who echoes have ordinary priority, and may have to wait for a processor: what comes meanwhile waits
//! at their sockets ([`wait_in_peace`]), and is answered late, which is no loss.
//!
//! All hosts of a lab are one machine's, whose queues of packets they share with everything else on it: what
//! these dropped meanwhile is reported as well.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Lab;
use crate::spec::WEB;

/// Where the echo server listens: RFC 862's port.
pub const ECHO_PORT: u16 = 7;

/// After so long without any answer, the last datagrams have none.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// What may wait at a socket of the probe's or of an echo server's, in bytes as the kernel counts them: tens of thousands
/// of small datagrams. By default 280 can: a probe of one per millisecond sent more than that while the echo server was
/// kept from running, on a machine whose processors were taken, and up to hundreds that had come through were lost there.
const WAITING: i32 = 16 << 20;

/// For how long the machine's queues may be full at a time: 45 ms were seen, of a flood by 1,000 virtual routers.
const QUEUES_FULL_MS: f64 = 50.0;

/// Of how many datagrams one may be lost to the machine's queues.
const DROPPED_OF: u64 = 1_000;

/// Of a few, so many.
const DROPPED_AT_LEAST: u64 = 2;

/// Lowest of the real-time priorities: ahead of what is ordinary, and of no keeper.
const PRIORITY: u8 = 1;

/// What a probe saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams answered.
    pub received: u64,
    /// Milliseconds from the first datagram to the last.
    pub duration_ms: f64,
    /// Longest time, in milliseconds, that the prober itself was late by.
    pub sender_late_ms: f64,
    /// Packets of anybody that the machine's queues dropped meanwhile (`/proc/net/softnet_stat`).
    #[serde(default)]
    pub machine_dropped: u64,
    /// Interruptions, in order of time.
    pub gaps: Vec<Gap>,
    /// Datagrams since the last that was answered: an interruption that the probe did not see the end of.
    #[serde(default)]
    pub unanswered_at_end: u64,
}

/// An interruption: at least one datagram in a row without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Milliseconds from the start of the probe to the last answered datagram before it.
    pub after_ms: f64,
    /// Milliseconds between the answered datagrams on both sides.
    pub length_ms: f64,
    /// Datagrams without an answer.
    pub lost: u64,
}

impl Report {
    /// Datagrams that were not answered.
    pub const fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// The longest interruption, in milliseconds; 0 without any.
    pub fn longest_gap_ms(&self) -> f64 {
        self.gaps.iter().map(|gap| gap.length_ms).fold(0.0, f64::max)
    }

    /// Tells whether nothing was lost but what the machine itself may have dropped.
    ///
    /// **The one rule for claims that nothing is lost.** Where the machine's queues dropped nothing, every datagram
    /// counts. Where they did, a lost one may be one of theirs; but they are full for a moment now and then, so a gap of more
    /// than [`QUEUES_FULL_MS`], or more than one in [`DROPPED_OF`] in all, is an interruption.
    pub fn is_unharmed(&self) -> bool {
        let most = (self.sent / DROPPED_OF).max(DROPPED_AT_LEAST).min(self.machine_dropped);
        let brief = self.gaps.iter().all(|gap| gap.length_ms <= QUEUES_FULL_MS);
        self.lost() <= most && brief && self.unanswered_at_end <= DROPPED_AT_LEAST
    }

    /// Evaluates when each datagram was sent, and which were answered.
    fn of(sent: &[Duration], answered: &[bool], sender_late: Duration) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let heard: Vec<usize> = (0..sent.len()).filter(|i| answered[*i]).collect();
        let gap = |pair: &[usize]| {
            let (before, after) = (pair[0], pair[1]);
            let lost = (after - before - 1) as u64;
            let length_ms = ms(sent[after] - sent[before]);
            (lost > 0).then(|| Gap { after_ms: ms(sent[before]), length_ms, lost })
        };
        Self {
            sent: sent.len() as u64,
            received: heard.len() as u64,
            duration_ms: sent.last().map_or(0.0, |last| ms(*last)),
            sender_late_ms: ms(sender_late),
            machine_dropped: 0,
            gaps: heard.windows(2).filter_map(gap).collect(),
            unanswered_at_end: (sent.len() - heard.last().map_or(0, |last| last + 1)) as u64,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} packets in {:.1} s, {} lost (the prober itself was late by at most {:.1} ms, and the machine's queues \
             dropped {})",
            self.sent,
            self.duration_ms / 1000.0,
            self.lost(),
            self.sender_late_ms,
            self.machine_dropped
        )?;
        for gap in &self.gaps {
            let Gap { after_ms, length_ms, lost } = gap;
            writeln!(f, "  gap of {length_ms:.0} ms ({lost} lost), {:.1} s after the start", after_ms / 1000.0)?;
        }
        Ok(())
    }
}

/// When to send.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two datagrams.
    pub interval: Duration,
    /// How many; without a number, until told to stop.
    pub count: Option<u64>,
}

/// Probes until `pace.count` datagrams are sent or `stop` is set, and evaluates.
///
/// # Errors
///
/// The socket cannot be used at all. A network that is unreachable for a while is what is measured.
pub fn probe(target: SocketAddr, pace: Pace, stop: &AtomicBool) -> Result<Report> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("failed to open a socket to probe with")?;
    wait_in_peace(&socket).context("failed to let answers wait at the probe's socket")?;
    let receiver = socket.try_clone().context("failed to share the probe's socket")?;
    receiver.set_read_timeout(Some(Duration::from_millis(50))).context("failed to set a time limit")?;
    let dropped_before = dropped_by_machine();
    let answers = Answers::default();
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| hear(&receiver, target, &answers));
        let Ok((sent, late)) = scope.spawn(|| send(&socket, target, pace, stop)).join() else {
            bail!("the sending half of the probe failed")
        };
        answers.wait_for_the_last(sent.len() as u64);
        let Ok(heard) = heard.join() else { bail!("the listening half of the probe failed") };
        let answered: Vec<bool> = (0..sent.len() as u64).map(|number| heard.contains_key(&number)).collect();
        let machine_dropped = dropped_by_machine().saturating_sub(dropped_before);
        Ok(Report { machine_dropped, ..Report::of(&sent, &answered, late) })
    })
}

/// Lets datagrams wait at a socket until its owner has a processor again.
///
/// # Errors
///
/// The socket cannot be used at all.
pub(crate) fn wait_in_peace(socket: &UdpSocket) -> std::io::Result<()> {
    evergate_kernel::rt::set_receive_buffer(socket, WAITING)
}

/// What the listening half of a probe tells the other one.
#[derive(Debug, Default)]
struct Answers {
    /// How many datagrams were answered.
    count: AtomicU64,
    /// Nothing more is expected.
    done: AtomicBool,
}

impl Answers {
    /// Returns when all datagrams are answered, or no answer comes any more.
    fn wait_for_the_last(&self, sent: u64) {
        let (mut count, mut since) = (self.count.load(Ordering::Relaxed), Instant::now());
        while count < sent && since.elapsed() < LAST_ANSWERS {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.count.load(Ordering::Relaxed);
            if now != count {
                (count, since) = (now, Instant::now());
            }
        }
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Packets that the queues of the machine's processors have dropped since it started: of all its namespaces.
fn dropped_by_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    // A line per processor; processed, dropped, ... in hexadecimal.
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(dropped).sum()
}

/// Sends, on a thread of its own; returns when each datagram was sent, and what the thread was late by at most.
fn send(socket: &UdpSocket, target: SocketAddr, pace: Pace, stop: &AtomicBool) -> (Vec<Duration>, Duration) {
    // Where that is not permitted, the report says what it cost.
    let _ = evergate_kernel::rt::set_fifo_priority(PRIORITY);
    let start = Instant::now();
    let mut sent: Vec<Duration> = Vec::new();
    let mut late = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) && pace.count.is_none_or(|count| (sent.len() as u64) < count) {
        let number = sent.len() as u64;
        // "Network unreachable" and the like are the interruption that is looked for.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        let now = start.elapsed();
        if let Some(before) = sent.last() {
            late = late.max((now - *before).saturating_sub(pace.interval));
        }
        sent.push(now);
        // From one datagram to the next, not on a fixed grid: after a pause there is no burst to catch up.
        std::thread::sleep(pace.interval.saturating_sub(start.elapsed() - now));
    }
    (sent, late)
}

/// Collects the numbers that came back, with how often each did.
fn hear(socket: &UdpSocket, target: SocketAddr, answers: &Answers) -> BTreeMap<u64, u32> {
    let mut heard = BTreeMap::new();
    let mut buffer = [0; 64];
    while !answers.done.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Ok(number) = buffer[..length].try_into()
            && from == target
        {
            *heard.entry(u64::from_be_bytes(number)).or_insert(0) += 1;
            answers.count.store(heard.len() as u64, Ordering::Relaxed);
        }
    }
    heard
}

/// Runs inside an instance: probes until standard input ends, and prints the report as JSON.
pub(crate) fn run_until_input_ends(target: SocketAddr, pace: Pace) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stopper.store(true, Ordering::Relaxed);
    });
    probe(target, pace, &stop)
}

/// A probe that runs in an instance until it is asked for its report.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts a probe from an instance to the echo server outside.
    ///
    /// # Errors
    ///
    /// There is no such instance, or its host is off.
    pub fn start(lab: &Lab, instance: &str, interval: Duration) -> Result<Self> {
        Self::start_towards(lab, instance, WEB.into(), interval)
    }

    /// Starts a probe from an instance to the echo server of another one.
    ///
    /// # Errors
    ///
    /// As [`Running::start`].
    pub fn start_towards(lab: &Lab, instance: &str, to: IpAddr, interval: Duration) -> Result<Self> {
        let command = lab.instance_command(instance, &lab.spec().evergate)?;
        Self::start_by(command, SocketAddr::from((to, ECHO_PORT)), interval)
    }

    /// Starts a probe to any echo server; `command` runs the executable at the place where the probe begins.
    ///
    /// # Errors
    ///
    /// The command cannot be run.
    pub fn start_by(mut command: Command, target: SocketAddr, interval: Duration) -> Result<Self> {
        let target = target.to_string();
        let interval = interval.as_millis().to_string();
        command.args(["lab", "probe", "--target", &target, "--interval-ms", &interval, "--json", "--until-input-ends"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Ok(Self(child.context("failed to start the probe")?))
    }

    /// Ends the probe.
    ///
    /// # Errors
    ///
    /// The probe died, for example with its host.
    pub fn finish(mut self) -> Result<Report> {
        drop(self.0.stdin.take());
        let done = self.0.wait_with_output().context("failed to wait for the probe")?;
        serde_json::from_slice(&done.stdout).context("the probe ended without a report")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_gap_lies_between_the_answered_datagrams_around_it() {
        let sent = [ms(0), ms(5), ms(10), ms(15), ms(20), ms(25)];
        let report = Report::of(&sent, &[true, true, false, false, true, true], Duration::ZERO);
        assert_eq!(report.lost(), 2);
        assert_eq!(report.gaps, [Gap { after_ms: 5.0, length_ms: 15.0, lost: 2 }]);
    }

    #[test]
    fn silence_at_either_end_is_loss_but_no_gap() {
        let sent = [ms(0), ms(5), ms(10)];
        let report = Report::of(&sent, &[false, true, false], Duration::ZERO);
        assert_eq!((report.lost(), report.gaps.len(), report.unanswered_at_end), (2, 0, 1));
        assert_eq!(Report::of(&[], &[], Duration::ZERO).longest_gap_ms(), 0.0);
    }

    #[test]
    fn a_loss_is_excused_by_what_the_machine_dropped_if_it_is_brief_and_one_in_a_thousand() {
        let report = |lost: &[(u64, f64)], unanswered_at_end, machine_dropped| Report {
            sent: 4_000,
            received: 4_000 - lost.iter().map(|(lost, _)| lost).sum::<u64>() - unanswered_at_end,
            gaps: lost.iter().map(|&(lost, length_ms)| Gap { after_ms: 0.0, length_ms, lost }).collect(),
            unanswered_at_end,
            machine_dropped,
            ..Report::default()
        };
        assert!(report(&[], 0, 0).is_unharmed());
        assert!(!report(&[(1, 2.0)], 0, 0).is_unharmed(), "nobody else dropped it");
        assert!(report(&[(2, 40.0), (1, 2.0)], 1, 9).is_unharmed());
        assert!(!report(&[(2, 40.0), (1, 2.0)], 0, 2).is_unharmed(), "more than was dropped");
        assert!(!report(&[(3, 60.0)], 0, 9).is_unharmed(), "for too long");
        assert!(!report(&[], 3, 9).is_unharmed(), "and no answer since");
        assert!(!report(&[(3, 4.0), (2, 3.0)], 0, 9).is_unharmed(), "five of 4,000");
    }

    #[test]
    fn what_comes_while_nobody_listens_waits() {
        let [server, client] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        wait_in_peace(&server).unwrap();
        let target = server.local_addr().unwrap();
        // Three seconds' of a probe of one per millisecond.
        for _ in 0..3_000 {
            client.send_to(&[0; 8], target).unwrap();
        }
        server.set_nonblocking(true).unwrap();
        let waited = std::iter::from_fn(|| server.recv(&mut [0; 64]).ok()).count();
        assert_eq!(waited, 3_000);
    }

    #[test]
    fn a_working_path_loses_nothing() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], from);
            }
        });
        let pace = Pace { interval: ms(1), count: Some(50) };
        let report = probe(target, pace, &AtomicBool::new(false)).unwrap();
        assert_eq!((report.sent, report.lost()), (50, 0));
    }
}
