//! Notices that a file in a folder was changed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::{c_path, check};

/// What changes what a name in the folder stands for, or what the file by that name says.
const CHANGES: u32 = libc::IN_CLOSE_WRITE | libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;

/// Becomes readable when something in a folder changed. It says that, not what: who waits looks again.
#[derive(Debug)]
pub struct FolderWatch(OwnedFd);

impl FolderWatch {
    /// Watches a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = c_path(folder)?;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let watch = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the path ends with a zero and lives through the call.
        check(unsafe { libc::inotify_add_watch(fd, path.as_ptr(), CHANGES | libc::IN_ONLYDIR) })?;
        Ok(watch)
    }

    /// Takes what was noticed, so that it is readable only when something more is.
    pub fn drain(&self) {
        let mut buffer = [0_u64; 512];
        let length = size_of_val(&buffer);
        // SAFETY: pointer and length belong together.
        while unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), length) } > 0 {}
    }
}

impl AsRawFd for FolderWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::wait_readable;
    use super::*;

    #[test]
    fn a_change_is_noticed_once() {
        let folder = std::env::temp_dir().join(format!("eg-test-{}-inotify", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let watch = FolderWatch::open(&folder).unwrap();
        let is_ready = |time| wait_readable(watch.as_raw_fd(), Some(time)).unwrap();
        assert!(!is_ready(Duration::ZERO));
        std::fs::write(folder.join("a"), "1").unwrap();
        assert!(is_ready(Duration::from_secs(10)));
        watch.drain();
        assert!(!is_ready(Duration::ZERO));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
