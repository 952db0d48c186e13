//! The last configuration on disk, so that a host that starts without its server still works.
//!
//! The file holds the key that authenticates claims: nobody but its owner may read it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use evergate_model::HostConfig;

/// Name of the cache below `state_path`.
pub const FILE_NAME: &str = "host-config.json";

/// Reads the cache; `None` if there is none.
pub fn load(state_path: &Path) -> anyhow::Result<Option<HostConfig>> {
    let path = state_path.join(FILE_NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    };
    let config = serde_json::from_slice(&text)
        .with_context(|| format!("failed to make sense of {}: it is not used", path.display()))?;
    Ok(Some(config))
}

/// Writes the cache.
pub fn save(state_path: &Path, config: &HostConfig) -> io::Result<()> {
    let text = serde_json::to_vec(config).map_err(io::Error::other)?;
    write_atomically(&state_path.join(FILE_NAME), &text, Durability::Disk)
}

/// Whether a file must outlive a power failure at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk when this returns.
    Disk,
    /// The kernel has it.
    Kernel,
}

/// Replaces a file in one step, so that nobody ever reads half of it. Only the owner may read it.
pub fn write_atomically(path: &Path, text: &[u8], durability: Durability) -> io::Result<()> {
    let part = part_name(path);
    let written = write_part(&part, text, durability).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        // Not to be found, or not to be removed either: the write's error says more.
        let _ = fs::remove_file(&part);
    }
    written
}

fn part_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn write_part(part: &Path, text: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part)?;
    file.write_all(text)?;
    match durability {
        Durability::Disk => file.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::files::tests::Folder;

    #[test]
    fn what_was_saved_is_loaded_and_private() {
        let folder = Folder::new("cache");
        assert_eq!(load(folder.path()).unwrap(), None);
        let config = HostConfig { revision: 7, ..HostConfig::default() };
        save(folder.path(), &config).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(config));
        let mode = fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_cache_is_an_error_that_names_the_file() {
        let folder = Folder::new("broken-cache");
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(FILE_NAME), "{error}");
    }
}
