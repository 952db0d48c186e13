//! The members in memory, for the question of each request of a host: whose certificate is this, and does it count?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::roll::{self, Revoked};
use super::{Authority, AuthorityError, Certificate};
use crate::store::{Store, StoreError, timestamp_text};

/// Pause between two looks at what other servers and the operator did.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// The members.
pub struct Members {
    store: Arc<Store>,
    authority: Authority,
    known: RwLock<HashMap<String, Certificate>>,
    /// Of what is known; held while it is read.
    version: Mutex<Option<String>>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Members({:?})", self.authority)
    }
}

/// What a certificate is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is this host's.
    Member(String),
    /// It was this host's, and counts no more.
    Revoked(String, Revoked),
    /// It was this host's, until then.
    Expired(String, String),
    /// Nobody here was given it.
    Unknown,
}

impl Members {
    /// Reads the authority, or makes it, and the members.
    ///
    /// # Errors
    ///
    /// When the store cannot be used, or the authority is damaged.
    pub fn open(store: Arc<Store>) -> Result<Self, AuthorityError> {
        let authority = store.write(Authority::open)?;
        let members = Self { store, authority, known: RwLock::default(), version: Mutex::default() };
        members.refresh()?;
        Ok(members)
    }

    /// The cluster's authority.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Tells what a certificate is worth, as far as is known.
    pub fn standing(&self, fingerprint: &str) -> Standing {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let now = timestamp_text(Timestamp::now());
        known.get(fingerprint).map_or(Standing::Unknown, |certificate| certificate.standing(&now))
    }

    /// Reads the certificates if they changed. Blocks.
    ///
    /// # Errors
    ///
    /// When the store cannot be used; what was known stays.
    pub fn refresh(&self) -> Result<(), StoreError> {
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, all) = self.store.read::<_, StoreError>(|tx| {
            let now = roll::version(tx)?;
            let all = if now == *version { None } else { Some(Certificate::all(tx)?) };
            Ok((now, all))
        })?;
        if let Some(all) = all {
            *self.known.write().unwrap_or_else(PoisonError::into_inner) = all.into_iter().collect();
            *version = now;
        }
        Ok(())
    }
}

/// Keeps the members as the store has them, until the server stops.
pub async fn keep_fresh(members: Arc<Members>, mut stopping: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let members = Arc::clone(&members);
        let look = move || {
            if let Err(error) = members.refresh() {
                tracing::debug!(%error, "the hosts' certificates could not be read");
            }
        };
        let _ = tokio::task::spawn_blocking(look).await;
    }
}
