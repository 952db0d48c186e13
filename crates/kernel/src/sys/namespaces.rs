//! Namespaces, mounts and the host's name, for the lab and for tests.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use super::{c_path, check};

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
    Cgroup,
}

impl Namespace {
    fn flag(self) -> libc::c_int {
        match self {
            Self::Net => libc::CLONE_NEWNET,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::User => libc::CLONE_NEWUSER,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }
}

/// Leaves the calling thread's namespaces of these kinds for new ones (of processes: those of its children).
pub fn unshare(kinds: &[Namespace]) -> io::Result<()> {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.flag());
    // SAFETY: no pointers; the flags are namespace flags only.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Lets the calling thread enter a namespace by an open `/proc/<pid>/ns/…` or `/run/netns/…` file.
pub fn setns(fd: &impl AsRawFd, kind: Namespace) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open for as long as `fd` is borrowed.
    check(unsafe { libc::setns(fd.as_raw_fd(), kind.flag()) }).map(drop)
}

/// Mounts `source` at `target` as well.
pub fn mount_bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND | libc::MS_REC)
}

/// Mounts an empty file system in memory.
pub fn mount_tmpfs(target: &Path) -> io::Result<()> {
    mount(None, target, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)
}

/// Mounts `/proc` of the caller's process namespace.
pub fn mount_proc(target: &Path) -> io::Result<()> {
    mount(None, target, Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)
}

/// Mounts `/sys` of the caller's network namespace.
pub fn mount_sysfs(target: &Path) -> io::Result<()> {
    mount(None, target, Some(c"sysfs"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)
}

/// Keeps mounts made here, and below, from appearing in other mount namespaces, and theirs from appearing here.
pub fn mount_make_private(target: &Path) -> io::Result<()> {
    mount(None, target, None, libc::MS_PRIVATE | libc::MS_REC)
}

/// Lets mounts made here, and below, appear in the mount namespaces copied from this one.
pub fn mount_make_shared(target: &Path) -> io::Result<()> {
    mount(None, target, None, libc::MS_SHARED | libc::MS_REC)
}

/// Unmounts; what still uses the file system keeps it until done.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: the string ends with a zero byte and lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

fn mount(source: Option<&Path>, target: &Path, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map(c_path).transpose()?;
    let source = source.as_deref().or(kind).unwrap_or(c"none");
    let target = c_path(target)?;
    let kind = kind.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with zero bytes and live through the call; no data is passed.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, ptr::null()) }).map(drop)
}

/// The host's name.
pub fn hostname() -> io::Result<String> {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is as long as said, and the last byte stays zero.
    check(unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) })?;
    Ok(crate::wire::text(&name))
}

/// Sets the host's name (in a UTS namespace of one's own, or the machine's changes).
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length belong together; no terminating zero is needed.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}
