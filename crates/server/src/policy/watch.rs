//! The policy that counts now: loaded from files, loaded again when one of them changes.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use super::{Policy, PolicyError};

/// Holds the present policy.
#[derive(Debug)]
pub struct Watched {
    files: Vec<PathBuf>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    policy: Arc<Policy>,
    /// What the files were when they were last read, also when they could not be used.
    seen: Vec<Stamp>,
}

/// What tells a changed file: `None` for one that is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Default for Watched {
    fn default() -> Self {
        Self { files: Vec::new(), state: RwLock::new(State { policy: Policy::standard(), seen: Vec::new() }) }
    }
}

impl Watched {
    /// Reads the files, in an order in which later ones win; a file that is not there says nothing.
    ///
    /// # Errors
    ///
    /// When one cannot be used.
    pub fn open(files: Vec<PathBuf>) -> Result<Self, PolicyError> {
        let seen = stamps(&files);
        let policy = Arc::new(Policy::load(&files)?);
        Ok(Self { files, state: RwLock::new(State { policy, seen }) })
    }

    /// The present policy.
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).policy)
    }

    /// Reads the files again if one has changed, or in any case. What cannot be used leaves the policy as it was.
    /// Tells whether there is a new one.
    pub fn refresh(&self, in_any_case: bool) -> bool {
        let seen = stamps(&self.files);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !in_any_case && seen == state.seen {
            return false;
        }
        state.seen = seen;
        match Policy::load(&self.files) {
            Ok(policy) => {
                state.policy = Arc::new(policy);
                tracing::info!(overrides = state.policy.overrides.len(), "policy was read again");
                true
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "policy cannot be used; the one from before stays in force");
                false
            }
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file::tests::TempDir;

    #[test]
    fn a_changed_file_counts_and_a_broken_one_leaves_things_as_they_were() {
        let dir = TempDir::new();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, "create_network: role:admin\n").unwrap();
        let watched = Watched::open(vec![path.clone()]).unwrap();
        let count = || watched.current().overrides.len();
        assert_eq!((watched.refresh(false), count()), (false, 1));
        std::fs::write(&path, "create_network: role:admin\ncreate_router: role:admin\n").unwrap();
        assert_eq!((watched.refresh(false), count()), (true, 2));
        std::fs::write(&path, "create_network: (\n").unwrap();
        assert_eq!((watched.refresh(false), count()), (false, 2));
        // The same broken file is not complained about again, unless somebody asks.
        assert!(!watched.refresh(false));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((watched.refresh(false), count()), (true, 0));
    }
}
