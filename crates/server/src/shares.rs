//! How much of the server one caller may have: of what is worked on at once, half; and so many requests a second, where
//! the operator says how many.
//!
//! Who asks for more than its share of turns waits in its own line, and keeps nobody else waiting. Who asks too often is
//! told when to come back. Services of the cloud pass on what many users ask, so the rate does not hold for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Requests that are worked on at once; further ones wait. Each takes a thread, and the writers among them
/// stand in one line anyway.
const AT_ONCE: usize = 128;
/// Of these, one caller's.
const OF_ONE: usize = AT_ONCE / 2;
/// How long a request waits for its turn before it is told to come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds whose requests may come at once.
const BURST_SECONDS: f64 = 2.0;
/// Callers that are remembered before those who were not seen lately are forgotten.
const MANY: usize = 4096;

/// The shares of all callers.
#[derive(Debug)]
pub(crate) struct Shares {
    turns: Arc<Semaphore>,
    /// Requests per second of each caller; `None`: any number.
    rate: Option<u32>,
    callers: Mutex<HashMap<String, Caller>>,
}

#[derive(Debug)]
struct Caller {
    turns: Arc<Semaphore>,
    bucket: Bucket,
}

/// The right to be worked on, while it is kept.
#[derive(Debug)]
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Shares {
    /// `rate` is of requests per second; 0 is any number.
    pub(crate) fn new(rate: u32) -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), rate: (rate > 0).then_some(rate), callers: Mutex::default() }
    }

    /// Counts a request of a caller.
    ///
    /// # Errors
    ///
    /// When it is too many: how long until the next may come.
    pub(crate) fn count(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        match self.rate {
            None => Ok(()),
            Some(rate) => self.with(caller, now, |caller| caller.bucket.take(f64::from(rate), now)),
        }
    }

    /// Waits for a turn; `None` when none came in time.
    pub(crate) async fn turn(&self, caller: &str) -> Option<Turn> {
        let own = self.with(caller, Instant::now(), |caller| Arc::clone(&caller.turns));
        let wait = async {
            // Its own line first, so that who waits there holds nobody's turn.
            let own = own.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.turns).acquire_owned().await.ok()?;
            Some(Turn { _own: own, _of_all: of_all })
        };
        timeout(PATIENCE, wait).await.ok().flatten()
    }

    fn with<T>(&self, caller: &str, now: Instant, work: impl FnOnce(&mut Caller) -> T) -> T {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= MANY && !callers.contains_key(caller) {
            // Who waits or works has a clone of the semaphore, or one of its permits.
            callers.retain(|_, known| {
                Arc::strong_count(&known.turns) > 1
                    || known.turns.available_permits() < OF_ONE
                    || now.saturating_duration_since(known.bucket.at).as_secs_f64() < BURST_SECONDS
            });
        }
        let known = callers.entry(caller.to_owned()).or_insert_with(|| Caller {
            turns: Arc::new(Semaphore::new(OF_ONE)),
            bucket: Bucket { tokens: f64::INFINITY, at: now },
        });
        work(known)
    }
}

/// Requests that a caller may make now; it fills with time.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        let most = (rate * BURST_SECONDS).max(1.0);
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * rate).min(most);
        self.at = now;
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_when_to_come_back_and_others_do_not_notice() {
        let (shares, start) = (Shares::new(10), Instant::now());
        for n in 0..20 {
            assert_eq!(shares.count("a", start), Ok(()), "{n}");
        }
        let wait = shares.count("a", start).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        assert_eq!(shares.count("b", start), Ok(()));
        assert_eq!(shares.count("a", start + wait + Duration::from_millis(1)), Ok(()));
        // A pause gives back no more than a burst.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| shares.count("a", later).is_ok()).count(), 20);
        let any = Shares::new(0);
        assert!((0..10_000).all(|_| any.count("a", start).is_ok()));
    }

    #[tokio::test]
    async fn one_caller_gets_half_of_the_turns() {
        let shares = Arc::new(Shares::new(0));
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(shares.turn("a").await.unwrap());
        }
        let waiting = tokio::spawn({
            let shares = Arc::clone(&shares);
            async move { shares.turn("a").await.is_some() }
        });
        for _ in 0..AT_ONCE - OF_ONE {
            held.push(shares.turn("b").await.unwrap());
        }
        assert!(!waiting.is_finished());
        held.clear();
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn callers_without_number_are_not_remembered_without_number() {
        let (shares, start) = (Shares::new(1), Instant::now());
        let held = shares.turn("worked on").await.unwrap();
        for n in 0..3 * MANY {
            let now = start + Duration::from_millis(n as u64);
            shares.count(&n.to_string(), now).unwrap();
        }
        let callers = shares.callers.lock().unwrap();
        assert!(callers.len() <= MANY && callers.contains_key("worked on"), "{}", callers.len());
        drop(held);
    }
}
