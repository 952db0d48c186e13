//! Waiting for descriptors and for a moment, at once.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Instant;

use crate::sys::check;

/// So many ready descriptors are told per wait; the others are told by the next.
const EVENTS: usize = 256;

/// Waits for readable descriptors (level-triggered) until a moment, with nanosecond precision.
///
/// `epoll_wait` itself counts milliseconds, which is as long as a whole takeover.
pub struct Epoll {
    fd: OwnedFd,
    events: Box<[libc::epoll_event; EVENTS]>,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Epoll").field(&self.fd).finish()
    }
}

impl Epoll {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS]) })
    }

    /// Watches a descriptor for input, errors and hang-up; `wait` tells its token.
    pub fn add(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, token)
    }

    /// Watches for output, too, or no longer.
    pub fn want_write(&self, fd: &impl AsRawFd, token: u64, wanted: bool) -> io::Result<()> {
        let events = if wanted { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Stops watching it. Closing it does the same.
    pub fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits until something is ready or the moment has come (`None`: for ever), and puts the tokens of what
    /// is ready into `ready` (cleared first). A signal ends the wait early.
    pub fn wait(&mut self, until: Option<Instant>, ready: &mut Vec<u64>) -> io::Result<()> {
        ready.clear();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let timeout = left.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (fd, events, length) = (self.fd.as_raw_fd(), self.events.as_mut_ptr(), EVENTS as libc::c_int);
        // By number, because the C library has it only since glibc 2.35; kernels have it since 5.11.
        // SAFETY: the events' pointer and number belong together, the timeout lives through the call, and
        // without a signal mask its length does not matter.
        let count = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, fd, events, length, timeout, ptr::null::<libc::sigset_t>(), 0)
        };
        match check(count) {
            Ok(count) => ready.extend(self.events[..count as usize].iter().map(|event| event.u64)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn control(&self, operation: libc::c_int, fd: &impl AsRawFd, events: libc::c_int, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event is valid, and the kernel only reads it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) }).map(drop)
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn waiting_ends_at_the_moment_or_when_something_is_ready() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&far, 7).unwrap();
        let mut ready = vec![1, 2, 3];
        let moment = Instant::now() + Duration::from_micros(300);
        epoll.wait(Some(moment), &mut ready).unwrap();
        assert!(ready.is_empty() && Instant::now() >= moment);
        near.write_all(b"x").unwrap();
        for _ in 0..2 {
            // Level-triggered: still there, as nobody read it.
            epoll.wait(None, &mut ready).unwrap();
            assert_eq!(ready, [7]);
        }
        epoll.remove(&far).unwrap();
        epoll.wait(Some(Instant::now()), &mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
