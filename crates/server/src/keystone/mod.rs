//! A real Keystone instead of the embedded identity: who a caller is, is asked there.
//!
//! - [`client`]: what is said to Keystone, on blocking threads;
//! - [`token`]: what it answers about a token;
//! - [`cache`]: answers that are believed for a while (`token_cache_time`), so that most requests ask nobody;
//! - [`guard`]: what stands before the Neutron API and turns a token into a [`Context`].
//!
//! Revocation is noticed when an answer is no longer believed, and not before: that is the price of the cache, as
//! with keystonemiddleware. While Keystone is away, cached answers go on counting for their time, and other tokens
//! are answered with 503 and the reason.
//!
//! Invariant: no token and no password is ever logged or part of an error.
//!
//! [`Context`]: crate::context::Context

mod cache;
mod client;
mod guard;
mod token;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use evergate_config::KeystoneSettings;
use jiff::Timestamp;
use tokio::sync::Semaphore;

pub use client::ClientError;
pub use guard::guard;

use cache::{Cache, Known};
use client::{Client, Fault, Own};
use token::Token;

/// Questions to Keystone at once. Each takes a thread, and a Keystone has few workers.
const AT_ONCE: usize = 16;
/// How long no further question is asked when one got no answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long before its end the server's own token is replaced.
const RENEWED_BEFORE: i64 = 300;

/// Asks Keystone who callers are.
pub struct Keystone {
    settings: KeystoneSettings,
    client: Client,
    cache: Mutex<Cache>,
    /// The server's own token.
    own: Mutex<Option<Own>>,
    /// Since when, and why, Keystone does not answer.
    away: Mutex<Option<Away>>,
    slots: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Away {
    last: Instant,
    why: String,
}

/// Why a token leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    /// It is none, or no longer.
    Invalid,
    /// Keystone cannot be asked.
    Unavailable(String),
}

impl std::fmt::Debug for Keystone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keystone").field("auth_url", &self.settings.auth_url).finish_non_exhaustive()
    }
}

impl Keystone {
    /// Prepares asking; whether Keystone is there turns out with the first question.
    ///
    /// # Errors
    ///
    /// When the certificates to trust cannot be read.
    pub fn new(settings: KeystoneSettings) -> Result<Self, ClientError> {
        Ok(Self {
            client: Client::new(&settings)?,
            cache: Mutex::new(Cache::new(settings.token_cache_time)),
            own: Mutex::default(),
            away: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            settings,
        })
    }

    /// Finds out what a token stands for; an expired one counts only with `even_expired`.
    async fn token(self: &Arc<Self>, token: &str, even_expired: bool) -> Result<Arc<Token>, Refusal> {
        if !token::is_possible(token) {
            return Err(Refusal::Invalid);
        }
        if let Some(known) = self.known(token, even_expired) {
            return known.ok_or(Refusal::Invalid);
        }
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return Err(Refusal::Unavailable("the server stops".to_owned()));
        };
        // Another request with the same token may have asked meanwhile.
        if let Some(known) = self.known(token, even_expired) {
            return known.ok_or(Refusal::Invalid);
        }
        let (keystone, token) = (Arc::clone(self), token.to_owned());
        let work = move || {
            let answer = keystone.ask(&token, even_expired);
            drop(slot);
            answer
        };
        let panicked = |_| Err(Refusal::Unavailable("the question failed".to_owned()));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(panicked)
    }

    /// What is known of a token without asking: nothing, that it is invalid, or all.
    #[expect(clippy::option_option, reason = "not known and known to be invalid are different answers")]
    fn known(&self, token: &str, even_expired: bool) -> Option<Option<Arc<Token>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.get(token, Instant::now())? {
            // It may be known as invalid just because it has expired.
            Known::Invalid => (!even_expired).then_some(None),
            Known::Valid(token) if !even_expired && token.is_expired(Timestamp::now()) => Some(None),
            Known::Valid(token) => Some(Some(token)),
        }
    }

    fn ask(&self, token: &str, even_expired: bool) -> Result<Arc<Token>, Refusal> {
        if let Some(why) = self.is_away() {
            return Err(Refusal::Unavailable(why));
        }
        let answer = self.validate(token, even_expired);
        self.note(&answer);
        let known = match answer {
            Ok(Some(valid)) => Known::Valid(Arc::new(valid)),
            Ok(None) => Known::Invalid,
            Err(fault) => return Err(Refusal::Unavailable(fault.to_string())),
        };
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(token, known.clone(), Instant::now());
        match known {
            Known::Valid(valid) => Ok(valid),
            Known::Invalid => Err(Refusal::Invalid),
        }
    }

    /// Asks about a token, with an own one that is renewed if it has become useless.
    fn validate(&self, token: &str, even_expired: bool) -> Result<Option<Token>, Fault> {
        let own = self.own(None)?;
        match self.client.validate(&own, token, even_expired) {
            Err(Fault::OwnTokenRefused) => {
                let renewed = self.own(Some(&own))?;
                self.client.validate(&renewed, token, even_expired)
            }
            answer => answer,
        }
    }

    /// The server's own token, a new one if there is none that is good for a while, or only the `useless` one.
    fn own(&self, useless: Option<&Own>) -> Result<Own, Fault> {
        // Held while logging in, so that of many requests only one does.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |own: &&Own| {
            useless.is_none_or(|useless| !useless.is(own))
                && own.ends > Timestamp::now().as_second().saturating_add(RENEWED_BEFORE.min(own.lifetime / 2))
        };
        if let Some(own) = own.as_ref().filter(good) {
            return Ok(own.clone());
        }
        let new = self.client.log_in()?;
        tracing::debug!(ends = new.ends, "logged in to Keystone");
        Ok(own.insert(new).clone())
    }

    /// Why Keystone is not asked just now, if it was away a moment ago.
    fn is_away(&self) -> Option<String> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.as_ref().filter(|away| away.last.elapsed() < PAUSE).map(|away| away.why.clone())
    }

    /// Tells the log when Keystone goes away and when it is back.
    fn note<T>(&self, answer: &Result<T, Fault>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(_) => {
                if away.take().is_some() {
                    tracing::info!(url = self.settings.auth_url, "Keystone answers again");
                }
            }
            Err(fault) => {
                let why = fault.to_string();
                if away.as_ref().is_none_or(|away| away.why != why) {
                    tracing::error!(
                        url = self.settings.auth_url,
                        "Keystone cannot be asked: {why}; only callers whose tokens were seen lately are served"
                    );
                }
                *away = Some(Away { last: Instant::now(), why });
            }
        }
    }

    /// Roles of the service that passes a request on, by its token.
    async fn service_roles(self: &Arc<Self>, token: Option<&str>) -> Result<BTreeSet<String>, Refusal> {
        let Some(token) = token else { return Ok(BTreeSet::new()) };
        let service = self.token(token, false).await?;
        let counts = self.settings.service_token_roles.iter().any(|role| service.roles.contains(role));
        match (counts, self.settings.service_token_roles_required) {
            (true, _) => Ok(service.roles.clone()),
            (false, true) => Err(Refusal::Invalid),
            (false, false) => Ok(BTreeSet::new()),
        }
    }
}

#[cfg(test)]
mod tests;
