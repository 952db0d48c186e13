//! Processes and signals.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use super::{check, wait_readable};
use crate::rt::NetnsFd;

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the system's own names")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Term,
    Kill,
    Stop,
    Cont,
    Child,
    Usr1,
    Usr2,
}

impl Signal {
    const ALL: [Self; 10] = [
        Self::Hup,
        Self::Int,
        Self::Quit,
        Self::Term,
        Self::Kill,
        Self::Stop,
        Self::Cont,
        Self::Child,
        Self::Usr1,
        Self::Usr2,
    ];

    fn number(self) -> libc::c_int {
        match self {
            Self::Hup => libc::SIGHUP,
            Self::Int => libc::SIGINT,
            Self::Quit => libc::SIGQUIT,
            Self::Term => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Cont => libc::SIGCONT,
            Self::Child => libc::SIGCHLD,
            Self::Usr1 => libc::SIGUSR1,
            Self::Usr2 => libc::SIGUSR2,
        }
    }
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    send_signal(positive(pid)?, signal)
}

/// Sends a signal to every process of the group that this process leads (as after [`spawn_in_session`]).
pub fn kill_session(leader: u32, signal: Signal) -> io::Result<()> {
    send_signal(-positive(leader)?, signal)
}

fn send_signal(target: libc::pid_t, signal: Signal) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(target, signal.number()) }).map(drop)
}

/// Numbers 0 and below mean whole groups, or everybody: never by accident.
fn positive(pid: u32) -> io::Result<libc::pid_t> {
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is not a process number"))),
    }
}

/// Tells whether a process of this number exists (one that ended and was not yet waited for does).
pub fn process_exists(pid: u32) -> bool {
    let Ok(pid) = positive(pid) else { return false };
    // SAFETY: no pointers; signal 0 only checks.
    match check(unsafe { libc::kill(pid, 0) }) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::EPERM),
    }
}

/// Starts a child in a session of its own, with no signal blocked: what stops the parent does not stop it.
pub fn spawn_in_session(command: &mut Command) -> io::Result<Child> {
    // SAFETY: the closure makes only system calls, which are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            check(libc::setsid())?;
            unblock_signals()
        })
    };
    command.spawn()
}

/// Starts a child in the given network namespace, with no signal blocked.
pub fn spawn_in_netns(command: &mut Command, netns: &NetnsFd) -> io::Result<Child> {
    let fd = netns.as_raw_fd();
    // SAFETY: the closure makes only system calls, which are allowed between fork and exec; the
    // descriptor is open because `netns` is borrowed until after the fork.
    unsafe {
        command.pre_exec(move || {
            check(libc::setns(fd, libc::CLONE_NEWNET))?;
            unblock_signals()
        })
    };
    command.spawn()
}

/// A child inherits the mask that [`SignalFd`] set, and would be deaf to SIGTERM.
fn unblock_signals() -> io::Result<()> {
    let none = signal_set(&[]);
    // SAFETY: the set is initialised; the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) }).map(drop)
}

fn signal_set(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; sigaddset cannot fail for the signals of `Signal`.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.number());
        }
        set.assume_init()
    }
}

/// Signals as input for [`crate::rt::Epoll`]. Make it before any thread: it blocks the signals' usual
/// effect in the calling thread and in those that it starts later.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks the signals and listens for them. [`Signal::Kill`] and [`Signal::Stop`] cannot be had.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: the set is initialised; the old one is not asked for.
        let failure = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if failure != 0 {
            return Err(io::Error::from_raw_os_error(failure));
        }
        // SAFETY: the set is initialised, -1 asks for a new descriptor.
        let fd = check(unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal, without waiting.
    pub fn read(&self) -> io::Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let length = mem::size_of_val(&info);
        // SAFETY: the buffer has the length said; the kernel writes whole structures or nothing.
        match check(unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), length) }) {
            Ok(_) => {
                // SAFETY: the read succeeded, so the structure is filled.
                let number = unsafe { info.assume_init() }.ssi_signo;
                Ok(Signal::ALL.into_iter().find(|signal| signal.number() as u32 == number))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next signal, waiting at most this long (`None`: for ever).
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Signal>> {
        if wait_readable(self.0.as_raw_fd(), timeout)? { self.read() } else { Ok(None) }
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A handle on a process (its number may be used again, this may not). Readable once the process ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens one; of any process, not only of a child.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = positive(pid)?;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Sends a signal.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        let fd = self.0.as_raw_fd();
        // SAFETY: the kernel makes up the information itself where the pointer is null.
        check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal.number(), no_info, 0) }).map(drop)
    }

    /// Waits for its end; false when that did not come in time. A child must still be waited for.
    pub fn wait_exit(&self, timeout: Duration) -> io::Result<bool> {
        wait_readable(self.0.as_raw_fd(), Some(timeout))
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Sets the name that `ps` shows for the calling thread (15 bytes at most are kept).
pub fn set_process_name(name: &str) -> io::Result<()> {
    let mut bytes = [0_u8; 16];
    let kept = name.len().min(15);
    bytes[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    // SAFETY: the kernel reads at most 16 bytes and stops at a zero, of which the last is one.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) }).map(drop)
}

/// Asks for a signal when the thread that started this process ends.
pub fn set_parent_death_signal(signal: Signal) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal.number() as libc::c_ulong) }).map(drop)
}

/// Takes note of one ended child, if there is one: its number, and its exit code (or 128 + signal).
pub fn reap_child() -> io::Result<Option<(u32, i32)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    match check(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }) {
        Ok(0) => Ok(None),
        Ok(pid) if libc::WIFSIGNALED(status) => Ok(Some((pid as u32, 128 + libc::WTERMSIG(status)))),
        Ok(pid) => Ok(Some((pid as u32, libc::WEXITSTATUS(status)))),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Raises the limit of open files to what is permitted; returns it.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is initialised.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// Blocks of memory from this size on, in bytes, go back to the kernel when they are freed. Answers and what passwords are hashed
/// in are larger; what objects are made of is smaller, and used again.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: libc::c_int = 256 << 10;
/// Pools of memory that threads share: as many as glibc makes for two cores. It would make eight for each core, and each
/// keeps what the largest piece of work in it needed.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 16;

/// Lets large blocks of memory go back to the kernel as soon as they are freed. Without this glibc learns from the first
/// that is freed to keep all up to its size (up to 32 MiB, `mallopt(3)`), for each thread's arena by itself. To be
/// called before there are other threads.
pub fn return_large_blocks() {
    // Other allocators have habits of their own.
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; the parameters are ones that glibc knows, and the values are within its limits.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_its_own_session_leader_and_hears_signals_though_the_parent_blocks_them() {
        let signals = SignalFd::new(&[Signal::Term, Signal::Usr2]).unwrap();
        let mut child = spawn_in_session(Command::new("sleep").arg("60")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).unwrap().to_owned();
        assert_eq!(session, child.id().to_string());
        let handle = PidFd::open(child.id()).unwrap();
        assert!(!handle.wait_exit(Duration::ZERO).unwrap());
        kill(child.id(), Signal::Term).unwrap();
        assert!(handle.wait_exit(Duration::from_secs(10)).unwrap(), "the child did not hear SIGTERM");
        assert!(!child.wait().unwrap().success());
        assert_eq!(signals.read().unwrap(), None);
    }

    #[test]
    fn a_blocked_signal_is_read_instead_of_ending_the_process() {
        let signals = SignalFd::new(&[Signal::Usr1]).unwrap();
        // SAFETY: no pointers. To this very thread: other tests' threads do not block the signal.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
        assert_eq!(signals.wait(Some(Duration::from_secs(5))).unwrap(), Some(Signal::Usr1));
        assert_eq!(signals.wait(Some(Duration::ZERO)).unwrap(), None);
    }

    #[test]
    fn process_numbers_that_mean_everybody_are_refused() {
        for pid in [0, u32::MAX, 1 << 31] {
            assert!(kill(pid, Signal::Cont).is_err());
            assert!(!process_exists(pid));
        }
        assert!(process_exists(std::process::id()));
    }
}
