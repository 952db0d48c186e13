//! What runs on the machine, read from `/proc`.
//!
//! The lab keeps no list of its processes: a list is wrong after the first crash. A node's first
//! process carries the lab's and the node's name in its arguments ([`MARK`]), everything else of the
//! node lives in that process's PID namespace, and both can be read at any time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::tools;

/// First of the arguments by which a node's first process is recognised; `--lab NAME --node NODE
/// --dir DIR` follow it.
pub(crate) const MARK: &str = "evergate-lab-node";

/// A process, as `/proc` shows it.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id, as this process's PID namespace numbers it.
    pub pid: u32,
    /// Its arguments, with the program first.
    pub args: Vec<String>,
    /// `R` running, `S` sleeping, `T` stopped, and so on.
    pub state: char,
    /// True when it is the first process of a PID namespace.
    is_first: bool,
    /// Identity of its PID namespace.
    pid_ns: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let args = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args = args.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let state = field("State:")?.chars().next()?;
        let mut ids = field("NSpid:")?.split_whitespace();
        Some(Self {
            pid,
            args: args.collect(),
            state,
            is_first: ids.next_back() == Some("1") && ids.next().is_some(),
            pid_ns: fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.ino(),
        })
    }

    /// Tells whether this is (or was started as) the process of a lab's node.
    fn node(&self) -> Option<NodeMark<'_>> {
        let mark = self.args.iter().position(|arg| arg == MARK)?;
        match self.args.get(mark + 1..mark + 7)? {
            [l, lab, n, node, d, dir] if l == "--lab" && n == "--node" && d == "--dir" => {
                Some(NodeMark { lab, node, dir })
            }
            _ => None,
        }
    }

    /// The subcommand, when this is the `evergate` executable.
    fn subcommand(&self) -> Option<&str> {
        let program = self.args.first()?.rsplit('/').next()?;
        (program == "evergate").then(|| self.args.get(1).map(String::as_str))?
    }
}

struct NodeMark<'a> {
    lab: &'a str,
    node: &'a str,
    dir: &'a str,
}

/// Every process that lives; those that have ended and only wait to be collected do not count.
fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).filter(|process| !matches!(process.state, 'Z' | 'X')).collect()
}

/// The processes that hold the nodes of a lab: each node's first process, and what waits for it outside.
pub(crate) fn holders(lab: &str, node: Option<&str>) -> Vec<u32> {
    let ours = |process: &Process| {
        process.node().is_some_and(|mark| mark.lab == lab && node.is_none_or(|node| node == mark.node))
    };
    all().iter().filter(|process| ours(process)).map(|process| process.pid).collect()
}

/// Tells whether anything of a lab runs.
pub fn lab_is_running(lab: &str) -> bool {
    !holders(lab, None).is_empty()
}

/// The folder of a lab, as the processes that run in it were told.
pub(crate) fn dir_of_lab(lab: &str) -> Option<PathBuf> {
    all().iter().find_map(|process| process.node().filter(|mark| mark.lab == lab).map(|mark| mark.dir.into()))
}

/// The arguments of every process that lives.
pub(crate) fn all_args() -> Vec<String> {
    all().iter().map(|process| process.args.join(" ")).collect()
}

/// The first process of a node, if it is on.
pub(crate) fn first_of(lab: &str, node: &str) -> Option<Process> {
    all()
        .into_iter()
        .find(|process| process.is_first && process.node().is_some_and(|mark| mark.lab == lab && mark.node == node))
}

/// The nodes of a lab that are on.
pub(crate) fn nodes_on(lab: &str) -> Vec<(String, Vec<Process>)> {
    let all = all();
    let firsts = all.iter().filter(|process| process.is_first);
    firsts
        .filter_map(|first| {
            let mark = first.node().filter(|mark| mark.lab == lab)?;
            let inside = all.iter().filter(|process| process.pid_ns == first.pid_ns && process.pid != first.pid);
            Some((mark.node.to_owned(), inside.cloned().collect()))
        })
        .collect()
}

/// The processes of a node that run an `evergate` subcommand (`host`, `control`, `keeper`, `server`).
pub(crate) fn daemons(lab: &str, node: &str, subcommand: &str) -> Vec<Process> {
    let nodes = nodes_on(lab);
    let inside = nodes.into_iter().find(|(name, _)| name == node).map(|(_, inside)| inside);
    let is_it = |process: &Process| process.subcommand() == Some(subcommand);
    inside.into_iter().flatten().filter(is_it).collect()
}

/// Every `evergate` process among `processes`, as (subcommand, process).
pub(crate) fn evergate_processes(processes: &[Process]) -> impl Iterator<Item = (&str, &Process)> {
    processes.iter().filter_map(|process| Some((process.subcommand()?, process)))
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pids: &[u32], name: &str) -> Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    let pids = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    // One `kill` per id: with several ids, one that is gone would hide a failure of the others.
    let script = format!("for pid in {pids}; do kill -s {name} $pid 2>/dev/null || [ ! -d /proc/$pid ]; done");
    tools::output(Command::new("sh").args(["-c", &script])).map(drop)
}

/// Kills processes, and whatever else `find` turns up meanwhile, and waits until none is left.
pub(crate) fn kill_until_gone(what: &str, find: impl Fn() -> Vec<u32>) -> Result<()> {
    tools::wait_for(&format!("{what} ended"), Duration::from_secs(20), || {
        let pids = find();
        signal(&pids, "KILL")?;
        Ok(pids.is_empty().then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str]) -> Process {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Process { pid: 7, args, state: 'S', is_first: true, pid_ns: 1 }
    }

    #[test]
    fn a_node_is_known_by_its_arguments() {
        let node = process(&["sh", "/x/boot.sh", MARK, "--lab", "a", "--node", "net1", "--dir", "/x"]);
        let mark = node.node().unwrap();
        assert_eq!((mark.lab, mark.node, mark.dir), ("a", "net1", "/x"));
        assert!(process(&["grep", MARK]).node().is_none());
        assert!(process(&["vi", "evergate-lab-nodes", "--lab", "a", "--node", "net1", "--dir", "/x"]).node().is_none());
    }

    #[test]
    fn a_daemon_is_known_by_its_subcommand() {
        assert_eq!(process(&["/opt/evergate", "keeper", "--x"]).subcommand(), Some("keeper"));
        assert_eq!(process(&["/opt/evergate.log", "keeper"]).subcommand(), None);
        assert_eq!(process(&["evergate"]).subcommand(), None);
    }

    #[test]
    fn this_process_is_found_and_is_nobodys_node() {
        let me = std::process::id();
        assert!(all().iter().any(|process| process.pid == me && process.node().is_none()));
    }

    #[test]
    fn signalling_a_process_that_is_gone_is_no_error() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        signal(&[child.id()], "KILL").unwrap();
    }
}
