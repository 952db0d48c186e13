//! Files that only the server's user may read: secrets, and what leads to them; and, beside them, a few for all.
//!
//! A file appears whole or not at all, also when the machine stops in the middle.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const PRIVATE: u32 = 0o600;

/// Makes the file; fails when it is there already.
pub(crate) fn create(path: &Path, text: &str) -> io::Result<()> {
    let whole = write_beside(path, text, PRIVATE)?;
    let linked = fs::hard_link(&whole, path);
    fs::remove_file(&whole)?;
    linked
}

/// Makes the file, or replaces what was there.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    fs::rename(write_beside(path, text, PRIVATE)?, path)
}

/// Makes or replaces a file that everybody may read.
pub(crate) fn publish(path: &Path, text: &str) -> io::Result<()> {
    fs::rename(write_beside(path, text, 0o644)?, path)
}

/// What tells a changed file: `None` for one that is not there.
pub(crate) type Stamp = Option<(SystemTime, u64, u64)>;

/// Looks at a file without reading it.
pub(crate) fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

fn write_beside(path: &Path, text: &str, mode: u32) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(beside)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory that goes away with the value.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("evergate-test-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&path).expect("a directory with a random name can be made");
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_created_once_and_leaves_nothing_beside_it() {
        let dir = TempDir::new();
        let path = dir.path().join("secret");
        create(&path, "one").unwrap();
        assert_eq!(create(&path, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        replace(&path, "three").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
