//! Locks and the creation mask.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::check;

/// A locked file that holds the owner's process number; released when dropped or when the process ends.
///
/// The lock is the truth, the number in the file is for people and for [`LockFile::holder`].
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

/// Why a lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it; 0 when its number is not written yet.
    #[error("held by process {0}")]
    Held(u32),
    /// The file could not be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LockFile {
    /// Locks the file (made if needed) and writes this process's number.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if !try_lock(&file)? {
            return Err(LockError::Held(read_pid(&mut file)?));
        }
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }

    /// The process that holds the lock now, if one does.
    pub fn holder(path: &Path) -> io::Result<Option<u32>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if try_lock(&file)? { Ok(None) } else { read_pid(&mut file).map(Some) }
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_pid(file: &mut File) -> io::Result<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Sets the file creation mask of the process; returns the previous one.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: umask takes any value and cannot fail.
    unsafe { libc::umask(mask) }
}

/// Makes a named pipe, unless there is one. What else has the name is an error.
pub fn make_fifo(path: &Path, mode: u32) -> io::Result<()> {
    let c_path = super::c_path(path)?;
    // SAFETY: the path ends with a zero and lives through the call.
    match super::check(unsafe { libc::mkfifo(c_path.as_ptr(), mode) }) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let is_fifo = std::os::unix::fs::FileTypeExt::is_fifo(&std::fs::symlink_metadata(path)?.file_type());
            if is_fifo { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_locker_learns_who_has_the_lock() {
        let path = std::env::temp_dir().join(format!("eg-test-{}-lock", std::process::id()));
        let lock = LockFile::acquire(&path).unwrap();
        assert_eq!(LockFile::holder(&path).unwrap(), Some(std::process::id()));
        let LockError::Held(holder) = LockFile::acquire(&path).unwrap_err() else { panic!("not held") };
        assert_eq!(holder, std::process::id());
        drop(lock);
        // A child that another test is just starting shares our open files until it runs its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while LockFile::holder(&path).unwrap().is_some() {
            assert!(std::time::Instant::now() < deadline, "the lock was not released");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(LockFile::holder(&path).unwrap(), None);
    }
}
