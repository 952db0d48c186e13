//! The policy that counts now: loaded from files, loaded again when one of them changes.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use evergate_config::Sources;
use evergate_config::settings::PolicyFile;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::{Policy, PolicyError};
use crate::private_file::{Stamp, stamp};

/// Pause between two looks at the files.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

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

/// Has the files read again when they change, and on SIGHUP in any case, until the server stops.
///
/// # Errors
///
/// When the signal cannot be watched for.
pub async fn keep_fresh(watched: Arc<Watched>, mut stopping: watch::Receiver<bool>) -> std::io::Result<()> {
    let mut told = signal(SignalKind::hangup())?;
    let mut looks = tokio::time::interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let in_any_case = tokio::select! {
            _ = looks.tick() => false,
            _ = told.recv() => true,
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        };
        let watched = Arc::clone(&watched);
        let _ = tokio::task::spawn_blocking(move || watched.refresh(in_any_case)).await;
    }
}

/// Finds the policy file of a server: as it is named, or beside the first configuration file or directory that has it.
///
/// # Errors
///
/// When one is named that is not there.
pub fn find(named: &PolicyFile, sources: &Sources) -> Result<Vec<PathBuf>, PolicyError> {
    let beside = sources.files.iter().filter_map(|file| file.parent()).chain(sources.dirs.iter().map(PathBuf::as_path));
    let places: Vec<PathBuf> = if named.path.is_absolute() {
        vec![named.path.clone()]
    } else {
        beside.map(|dir| dir.join(&named.path)).collect()
    };
    let found = places.iter().find(|path| path.exists()).cloned();
    if found.is_none() && named.is_given {
        let path = places.first().unwrap_or(&named.path).clone();
        return Err(PolicyError::Io { path, source: std::io::ErrorKind::NotFound.into() });
    }
    // Where there is none, one may be put later.
    Ok(found.or_else(|| places.into_iter().next()).into_iter().collect())
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|path| stamp(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file::tests::TempDir;

    #[test]
    fn the_file_is_found_beside_the_configuration_and_missed_where_it_was_named() {
        let dir = TempDir::new();
        let sources = Sources {
            files: vec![dir.path().join("none/neutron.conf"), dir.path().join("neutron.conf")],
            dirs: vec![],
        };
        let named = |path: &str, is_given| PolicyFile { path: path.into(), is_given };
        assert_eq!(find(&named("policy.yaml", false), &sources).unwrap(), [dir.path().join("none/policy.yaml")]);
        let missed = find(&named("policy.yaml", true), &sources).unwrap_err().to_string();
        assert!(missed.contains("policy.yaml"), "{missed}");
        std::fs::write(dir.path().join("policy.yaml"), "").unwrap();
        assert_eq!(find(&named("policy.yaml", true), &sources).unwrap(), [dir.path().join("policy.yaml")]);
        assert!(find(&named("policy.yaml", false), &Sources::default()).unwrap().is_empty());
    }

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
