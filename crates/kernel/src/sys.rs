//! System calls that other crates need, which may not use `unsafe` themselves.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the system's own names")]
pub enum Signal {
    Hup,
    Int,
    Term,
    Kill,
    Stop,
    Cont,
    Child,
    Usr1,
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    unimplemented!("{pid} {signal:?}")
}

/// Tells whether a process of this number exists (a zombie does).
pub fn process_exists(pid: u32) -> bool {
    unimplemented!("{pid}")
}

/// Starts a child in a session of its own, with no signal blocked: what stops the parent does not stop it.
pub fn spawn_in_session(command: &mut Command) -> io::Result<Child> {
    unimplemented!("{command:?}")
}

/// Starts a child in the given network namespace, with no signal blocked.
pub fn spawn_in_netns(command: &mut Command, netns: &crate::rt::NetnsFd) -> io::Result<Child> {
    unimplemented!("{command:?} {netns:?}")
}

/// Signals as input for [`crate::rt::Epoll`]. Make it before any thread: it blocks the signals' usual
/// effect in the calling thread and those it starts later.
#[derive(Debug)]
pub struct SignalFd {}

impl SignalFd {
    /// Blocks the signals and listens for them.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        unimplemented!("{signals:?}")
    }
    /// The next pending signal, without waiting.
    pub fn read(&self) -> io::Result<Option<Signal>> {
        unimplemented!()
    }
    /// The next signal, waiting at most this long (`None`: for ever).
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Signal>> {
        unimplemented!("{timeout:?}")
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        unimplemented!()
    }
}

/// A handle on a process (its number may be used again, this may not). Readable once the process ended.
#[derive(Debug)]
pub struct PidFd {}

impl PidFd {
    /// Opens one; any process, not only a child.
    pub fn open(pid: u32) -> io::Result<Self> {
        unimplemented!("{pid}")
    }
    /// Sends a signal.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        unimplemented!("{signal:?}")
    }
    /// Waits for its end; false when that did not come in time.
    pub fn wait_exit(&self, timeout: Duration) -> io::Result<bool> {
        unimplemented!("{timeout:?}")
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        unimplemented!()
    }
}

/// An exclusively locked file that holds the owner's process number; released when dropped or when the process ends.
#[derive(Debug)]
pub struct LockFile {}

impl LockFile {
    /// Locks the file (made if needed) and writes this process's number. `Err(LockError::Held)` tells whose it is.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        unimplemented!("{path:?}")
    }
    /// The process that holds the lock now, if one does.
    pub fn holder(path: &Path) -> io::Result<Option<u32>> {
        unimplemented!("{path:?}")
    }
}

/// Why a lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("held by process {0}")]
    Held(u32),
    /// The file could not be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sets the file creation mask; returns the previous one.
pub fn set_umask(mask: u32) -> u32 {
    unimplemented!("{mask}")
}

/// The host's name.
pub fn hostname() -> io::Result<String> {
    unimplemented!()
}

/// Sets the host's name (in a UTS namespace of one's own).
pub fn set_hostname(name: &str) -> io::Result<()> {
    unimplemented!("{name}")
}

/// Sets the name that `ps` shows for the calling thread (15 bytes at most are kept).
pub fn set_process_name(name: &str) -> io::Result<()> {
    unimplemented!("{name}")
}

/// Asks for a signal when the parent process ends.
pub fn set_parent_death_signal(signal: Signal) -> io::Result<()> {
    unimplemented!("{signal:?}")
}

/// Reaps one ended child, if there is one: its number, and its exit code (or 128 + signal).
pub fn reap_child() -> io::Result<Option<(u32, i32)>> {
    unimplemented!()
}

/// Raises the limit of open files to what is permitted; returns it.
pub fn raise_open_files_limit() -> io::Result<u64> {
    unimplemented!()
}

/// Kind of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the system's own names")]
pub enum Namespace {
    Net,
    Mount,
    Uts,
    Pid,
    Ipc,
    User,
}

/// Leaves the caller's namespaces of these kinds for new ones.
pub fn unshare(kinds: &[Namespace]) -> io::Result<()> {
    unimplemented!("{kinds:?}")
}

/// Enters a namespace by an open `/proc/<pid>/ns/…` or `/run/netns/…` file.
pub fn setns(fd: &impl AsRawFd, kind: Namespace) -> io::Result<()> {
    unimplemented!("{} {kind:?}", fd.as_raw_fd())
}

/// Mounts `source` at `target` as well.
pub fn mount_bind(source: &Path, target: &Path) -> io::Result<()> {
    unimplemented!("{source:?} {target:?}")
}

/// Mounts an empty file system in memory.
pub fn mount_tmpfs(target: &Path) -> io::Result<()> {
    unimplemented!("{target:?}")
}

/// Mounts `/proc` of the caller's process namespace.
pub fn mount_proc(target: &Path) -> io::Result<()> {
    unimplemented!("{target:?}")
}

/// Mounts `/sys` of the caller's network namespace.
pub fn mount_sysfs(target: &Path) -> io::Result<()> {
    unimplemented!("{target:?}")
}

/// Makes this mount, and those below it, invisible to other mount namespaces.
pub fn mount_make_private(target: &Path) -> io::Result<()> {
    unimplemented!("{target:?}")
}

/// Unmounts, at once where it is busy.
pub fn unmount(target: &Path) -> io::Result<()> {
    unimplemented!("{target:?}")
}
