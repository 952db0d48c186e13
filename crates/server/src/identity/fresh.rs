//! Noticing what others changed: the identity file, and tokens that other servers on the same database revoked.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::directory::Directory;
use super::{Identity, REVOKED_SETTING};
use crate::private_file::{Stamp, stamp};
use crate::store::StoreError;

/// Pause between two looks.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Keeps the memory of who there is after its file, and the revoked tokens after the store, until the server stops.
pub async fn keep_fresh(identity: Arc<Identity>, mut stopping: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let looking = Arc::clone(&identity);
        let look = move || {
            if let Err(error) = looking.read_revoked() {
                tracing::debug!(%error, "the list of revoked tokens could not be read");
            }
            looking.look(seen)
        };
        seen = tokio::task::spawn_blocking(look).await.unwrap_or(seen);
    }
}

impl Identity {
    /// Reads the file if it is not the one that was seen; answers what is there now.
    pub(super) fn look(&self, seen: Option<Stamp>) -> Option<Stamp> {
        let now = stamp(&self.identity_file);
        if seen == Some(now) {
            return seen;
        }
        match Directory::load(&self.identity_file) {
            Ok(Some(directory)) => {
                if seen.is_some() {
                    tracing::info!(file = %self.identity_file.display(), "users and projects were read again");
                }
                self.set_directory(directory);
            }
            Ok(None) => {
                tracing::warn!(file = %self.identity_file.display(), "there is no such file any more; users and projects stay as they were");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "users and projects stay as they were");
            }
        }
        // Reading may have written it: a plain password is replaced by its hash.
        Some(stamp(&self.identity_file))
    }

    fn read_revoked(&self) -> Result<(), StoreError> {
        let list = self.store.read(|tx| tx.setting(REVOKED_SETTING))?;
        let list: std::collections::BTreeMap<String, i64> =
            list.and_then(|list| serde_json::from_str(&list).ok()).unwrap_or_default();
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).extend(list);
        Ok(())
    }
}
