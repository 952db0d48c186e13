//! Processes. Their end is told by the kernel at once; that there are new ones is seen twice a second.
//!
//! The kernel would tell of new ones, too (the process connector), but in no other namespaces than the first ones of
//! the machine: not in a container, and not in a network namespace.

use std::fs;
use std::time::{Duration, Instant};

use evergate_kernel::rt::Epoll;
use evergate_kernel::sys::PidFd;
use tracing::info;

use super::{Reading, Stop, Teller};
use crate::conf::{Matching, TrackProcess};

/// How often to look for new ones.
const PERIOD: Duration = Duration::from_millis(500);

/// The kernel keeps so many bytes of a name.
const NAME_MAX: usize = 15;

const STOP: u64 = 0;
const ENDED: u64 = 1;

pub(super) fn attend(process: &TrackProcess, teller: &Teller, stop: &Stop) {
    let Ok(mut epoll) = Epoll::new().and_then(|epoll| epoll.add(stop, STOP).map(|()| epoll)) else { return };
    let mut ready = Vec::new();
    let mut told = true;
    // The first look counts at once.
    let mut changed: Option<Instant> = None;
    let mut first = true;
    loop {
        let found = find(process);
        let works = (process.quorum..=process.quorum_max).contains(&(found.len() as u32));
        let delay = if works { process.fork_delay } else { process.terminate_delay };
        let now = Instant::now();
        let since = if works == told { None } else { Some(changed.unwrap_or(now)) };
        changed = since;
        let due = since.map(|since| if first { now } else { since + delay });
        first = false;
        if due.is_some_and(|due| due <= now) {
            (told, changed) = (works, None);
            info!(process = teller.name(), works, running = found.len(), "a tracked process changed");
            teller.tell(Reading::Works(works));
        }
        for process in &found {
            // One that cannot be watched is missed by the next look.
            let _ = epoll.add(process, ENDED);
        }
        let pending = changed.and(due).filter(|due| *due > now);
        let until = (now + PERIOD).min(pending.unwrap_or(now + PERIOD));
        if epoll.wait(Some(until), &mut ready).is_err() || ready.contains(&STOP) {
            return;
        }
    }
}

/// The processes that match and run.
fn find(process: &TrackProcess) -> Vec<PidFd> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let open = |pid: u32| {
        // Opened first: what is read then is of this process, or of nobody.
        let fd = PidFd::open(pid).ok()?;
        // One that has ended, and that nobody has asked for yet, is listed all the same.
        let runs = !fd.wait_exit(Duration::ZERO).ok()?;
        runs.then_some(fd)
    };
    pids.filter(|pid| is_meant(process, *pid)).filter_map(open).collect()
}

fn is_meant(process: &TrackProcess, pid: u32) -> bool {
    match process.matching {
        Matching::Name => fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| is_name(process, &name)),
        Matching::Exact | Matching::Partial | Matching::Initial => {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_command(process, &line))
        }
    }
}

fn is_name(process: &TrackProcess, name: &[u8]) -> bool {
    let wanted = process.command.first().map(String::as_bytes).unwrap_or_default();
    name.trim_ascii_end() == &wanted[..wanted.len().min(NAME_MAX)]
}

/// Compares with a command line, whose words end with a zero each.
fn is_command(process: &TrackProcess, line: &[u8]) -> bool {
    let Some(line) = line.strip_suffix(&[0]) else { return false };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let wanted: Vec<&[u8]> = process.command.iter().map(String::as_bytes).collect();
    match process.matching {
        Matching::Name => false,
        Matching::Exact => words == wanted,
        Matching::Partial => words.starts_with(&wanted),
        Matching::Initial => {
            let Some((last, others)) = wanted.split_last() else { return false };
            words.len() == wanted.len() && words.starts_with(others) && words[others.len()].starts_with(last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::Weight;

    fn process(matching: Matching, command: &[&str]) -> TrackProcess {
        TrackProcess {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            matching,
            weight: Weight::default(),
            quorum: 1,
            quorum_max: u32::MAX,
            fork_delay: Duration::ZERO,
            terminate_delay: Duration::ZERO,
        }
    }

    #[test]
    fn names_and_command_lines_are_compared_as_was_asked_for() {
        assert!(is_name(&process(Matching::Name, &["sshd"]), b"sshd\n"));
        assert!(!is_name(&process(Matching::Name, &["ssh"]), b"sshd\n"));
        assert!(is_name(&process(Matching::Name, &["a-very-long-name-of-a-program"]), b"a-very-long-nam\n"));
        let line = b"/bin/x\0-a\0--file=y\0";
        for (matching, words, meant) in [
            (Matching::Exact, &["/bin/x", "-a", "--file=y"][..], true),
            (Matching::Exact, &["/bin/x", "-a"], false),
            (Matching::Partial, &["/bin/x", "-a"], true),
            (Matching::Partial, &["/bin/x", "-b"], false),
            (Matching::Initial, &["/bin/x", "-a", "--file"], true),
            (Matching::Initial, &["/bin/x", "-"], false),
        ] {
            assert_eq!(is_command(&process(matching, words), line), meant, "{matching:?} {words:?}");
        }
        assert!(!is_command(&process(Matching::Exact, &["x"]), b""));
    }

    #[test]
    fn this_very_process_is_found_and_an_ended_one_is_not() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(!find(&process(Matching::Name, &[own.trim()])).is_empty());
        let mut child = std::process::Command::new("sleep").arg("317.25").spawn().unwrap();
        let sleep = process(Matching::Exact, &["sleep", "317.25"]);
        let end = Instant::now() + Duration::from_secs(10);
        while find(&sleep).len() != 1 {
            assert!(Instant::now() < end, "it is not found");
        }
        child.kill().unwrap();
        while !find(&sleep).is_empty() {
            assert!(Instant::now() < end, "it is still found");
        }
        child.wait().unwrap();
    }
}
