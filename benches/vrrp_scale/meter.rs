//! What processes use, and how regularly advertisements arrive.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_kernel::rt::{Epoll, Filter, NetnsFd, PacketSocket, set_receive_buffer};

use crate::Run;
use crate::wires::{NETNS_PATH, Wires};

/// How long both sides run before they are measured: what follows a start (repeated announcements, claims, a status of
/// all) is no part of what they cost.
const SETTLES: Duration = Duration::from_secs(5);

/// What both sides of a run cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) active: Cost,
    pub(crate) backup: Cost,
    /// Microseconds by which advertisements came later than the interval: p50, p99, greatest.
    pub(crate) late: [u64; 3],
    /// Backups that became active although nothing was wrong.
    pub(crate) spurious: usize,
}

/// What one side costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Percent of a core.
    pub(crate) cpu: f64,
    /// Private and shared memory, the latter divided among its users.
    pub(crate) memory_kib: u64,
}

/// Watches the processes of both sides, and the wire.
pub(crate) fn measure(run: &Run, wires: &Wires, pids: [&[u32]; 2]) -> Result<Costs> {
    thread::sleep(SETTLES);
    let burners = Burners::start(run.burners)?;
    let used = |pids: &[u32]| pids.iter().map(|pid| cpu_time(*pid)).sum::<Result<f64>>();
    let before = [used(pids[0])?, used(pids[1])?];
    let start = Instant::now();
    let late = listen(run, wires)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut costs = Costs { late, ..Costs::default() };
    for (cost, (pids, before)) in [&mut costs.active, &mut costs.backup].into_iter().zip(pids.iter().zip(before)) {
        cost.cpu = (used(pids)? - before) / seconds * 100.0;
        cost.memory_kib = pids.iter().map(|pid| memory(*pid)).sum::<Result<u64>>()?;
    }
    drop(burners);
    Ok(costs)
}

/// Takes the time between two advertisements of each router, where they come in at the backups' host.
fn listen(run: &Run, wires: &Wires) -> Result<[u64; 3]> {
    let host = NetnsFd::open(&Path::new(NETNS_PATH).join(wires.host(2)))?;
    let mut epoll = Epoll::new()?;
    let mut sockets = Vec::new();
    for network in 0..wires.networks() {
        let name = format!("vxlan-{network}");
        let index = wires.on(2, |kernel| Ok(kernel.link_index(&evergate_dataplane::Netns::Host, &name)?))?;
        let socket = PacketSocket::open(&host, index.context("the tunnel is there")?, Filter::VrrpAtPort)?;
        // Routers that began together advertise together: all of a network at once.
        set_receive_buffer(&socket, 8 << 20).context("failed to make room for bursts")?;
        epoll.add(&socket, network.into())?;
        sockets.push(socket);
    }
    let (end, interval) = (Instant::now() + run.time, Duration::from_millis(u64::from(run.interval_cs) * 10));
    let mut last: BTreeMap<(u64, u8), Instant> = BTreeMap::new();
    let (mut late, mut ready, mut frame) = (Vec::new(), Vec::new(), [0; 256]);
    while Instant::now() < end {
        epoll.wait(Some(end), &mut ready)?;
        for &network in &ready {
            while let Ok(Some(length)) = sockets[network as usize].recv(&mut frame) {
                let now = Instant::now();
                // The identifier, behind Ethernet's and IPv4's headers.
                let Some(&vrid) = frame[..length].get(35) else { continue };
                if let Some(before) = last.insert((network, vrid), now) {
                    late.push((now - before).saturating_sub(interval).as_micros() as u64);
                }
            }
        }
        // The meter must not cost the CPU that it measures: it looks a thousand times a second.
        thread::sleep(Duration::from_micros(500));
    }
    anyhow::ensure!(!late.is_empty(), "no advertisement arrives");
    late.sort_unstable();
    let at = |part: usize| late.get((late.len() * part / 1000).min(late.len().saturating_sub(1))).copied().unwrap_or(0);
    Ok([at(500), at(990), at(1000)])
}

/// Seconds of CPU time, of all threads.
fn cpu_time(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

fn memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("a process has ended")?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("the kernel says no Pss")?;
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).context("a number of KiB")
}

/// Processes that use all the CPU they get.
struct Burners(Vec<Child>);

impl Burners {
    fn start(count: usize) -> Result<Self> {
        let burner = |_| Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Ok(Self((0..count).map(burner).collect::<Result<_, _>>().context("failed to start a burner")?))
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
