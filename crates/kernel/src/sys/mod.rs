//! System calls that other crates need, which may not use `unsafe` themselves.
//!
//! Thin on purpose: each function is one call, or the few that belong together, with the C library's
//! error as [`io::Error`].

mod files;
mod inotify;
mod namespaces;
mod process;

pub use files::{LockError, LockFile, make_fifo, set_umask};
pub use inotify::FolderWatch;
pub use namespaces::{
    Namespace, hostname, mount_bind, mount_make_private, mount_make_shared, mount_proc, mount_sysfs, mount_tmpfs,
    set_hostname, setns, unmount, unshare,
};
pub use process::{
    PidFd, Signal, SignalFd, kill, kill_session, process_exists, raise_open_files_limit, reap_child,
    return_large_blocks, set_parent_death_signal, set_process_name, spawn_in_netns, spawn_in_session,
};

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Turns the C library's -1 into its error.
pub(crate) fn check<T: PartialOrd + Default>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The number that the first control message of one of these kinds (level and type) carries.
pub(crate) fn control_number(header: &libc::msghdr, kinds: &[(libc::c_int, libc::c_int)]) -> Option<libc::c_int> {
    // SAFETY: the kernel filled the control messages and their length; CMSG_* stay inside them.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, and inside the control messages.
        let kind = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if kinds.contains(&kind) {
            // SAFETY: each kind that is asked for carries one C integer, at an address that need not be aligned for it.
            return Some(unsafe { libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned() });
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}

/// A path for the C library.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path holds a zero byte"))
}

/// Runs `f` on a thread of its own that ends with it: whatever namespace it enters, nobody else is there.
///
/// The stack is small because the keeper locks its memory, this included.
pub(crate) fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    const STACK: usize = 256 << 10;
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).stack_size(STACK).spawn_scoped(scope, f)?;
        worker.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until the descriptor is readable; false when the time is over (`None`: never).
pub(crate) fn wait_readable(fd: RawFd, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = match deadline {
            // Rounded up, or the last millisecond would be spent spinning.
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as i32,
            None => -1,
        };
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one.
        match check(unsafe { libc::poll(&mut poll, 1, left) }) {
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
