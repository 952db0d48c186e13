//! How much of the server one caller may have: of what is worked on at once, half; so many requests that wait for that,
//! with so many bytes of bodies; and so many requests a second, where the operator says how many.
//!
//! Who asks for more than its share of turns waits in its own line, and keeps nobody else waiting. Who has too many in
//! that line, or asks too often, is told when to come back, before the request's body is read. Services of the cloud pass
//! on what many users ask, so the rate does not hold for them.

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
/// One caller's requests that are worked on or wait.
const PLACES: usize = 4 * OF_ONE;
/// KiB of the bodies of one caller's requests that are worked on or wait: what is read of a body takes up to some dozen
/// times its bytes.
const BODIES_KIB: usize = 16 << 10;
/// How long a request waits, for room for its body and again for its turn, before it is told to come back.
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
    share: Arc<Share>,
    bucket: Bucket,
}

/// What a caller has of what all share. Every place refers to it.
#[derive(Debug)]
struct Share {
    places: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// The right to wait for a turn, while it is kept.
#[derive(Debug)]
pub(crate) struct Place {
    share: Arc<Share>,
    turns_of_all: Arc<Semaphore>,
    /// The place itself, and the room for the request's body.
    held: Vec<OwnedSemaphorePermit>,
}

/// The right to be worked on, while it is kept.
#[derive(Debug)]
pub(crate) struct Turn {
    _place: Place,
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

    /// Gives a request a place among its caller's; `None` where too many have one.
    pub(crate) fn place(&self, caller: &str) -> Option<Place> {
        let share = self.with(caller, Instant::now(), |caller| Arc::clone(&caller.share));
        let held = vec![Arc::clone(&share.places).try_acquire_owned().ok()?];
        Some(Place { share, turns_of_all: Arc::clone(&self.turns), held })
    }

    fn with<T>(&self, caller: &str, now: Instant, work: impl FnOnce(&mut Caller) -> T) -> T {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= MANY && !callers.contains_key(caller) {
            // Who waits or works refers to its share.
            callers.retain(|_, known| {
                Arc::strong_count(&known.share) > 1
                    || now.saturating_duration_since(known.bucket.at).as_secs_f64() < BURST_SECONDS
            });
        }
        let known = callers.entry(caller.to_owned()).or_insert_with(|| Caller {
            share: Arc::new(Share {
                places: Arc::new(Semaphore::new(PLACES)),
                bodies: Arc::new(Semaphore::new(BODIES_KIB)),
                turns: Arc::new(Semaphore::new(OF_ONE)),
            }),
            bucket: Bucket { tokens: f64::INFINITY, at: now },
        });
        work(known)
    }
}

impl Place {
    /// Waits for room for a body of so many bytes; `None` when there was none in time.
    pub(crate) async fn room(&mut self, bytes: usize) -> Option<()> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10).min(BODIES_KIB)).ok()?;
        if kib > 0 {
            let room = Arc::clone(&self.share.bodies).acquire_many_owned(kib);
            self.held.push(timeout(PATIENCE, room).await.ok()?.ok()?);
        }
        Some(())
    }

    /// Waits for a turn; `None` when none came in time.
    pub(crate) async fn turn(self) -> Option<Turn> {
        let (own, of_all) = (Arc::clone(&self.share.turns), Arc::clone(&self.turns_of_all));
        let wait = async {
            // Its own line first, so that who waits there holds nobody's turn.
            let own = own.acquire_owned().await.ok()?;
            Some(Turn { _place: self, _own: own, _of_all: of_all.acquire_owned().await.ok()? })
        };
        timeout(PATIENCE, wait).await.ok().flatten()
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
        let turn = |caller| shares.place(caller).unwrap().turn();
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(turn("a").await.unwrap());
        }
        let waiting = tokio::spawn(turn("a"));
        for _ in 0..AT_ONCE - OF_ONE {
            held.push(turn("b").await.unwrap());
        }
        assert!(!waiting.is_finished());
        held.clear();
        assert!(waiting.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn who_has_many_waiting_gets_no_further_place_and_others_do() {
        let shares = Shares::new(0);
        let mut held: Vec<Place> = (0..PLACES).map(|_| shares.place("a").unwrap()).collect();
        assert!(shares.place("a").is_none());
        assert!(shares.place("b").is_some());
        // Who is worked on has its place, too.
        let turn = held.pop().unwrap().turn().await.unwrap();
        assert!(shares.place("a").is_none());
        drop(turn);
        assert!(shares.place("a").is_some());
    }

    #[tokio::test]
    async fn bodies_wait_for_room_that_others_of_the_caller_have() {
        let shares = Shares::new(0);
        let of = |caller| shares.place(caller).unwrap();
        let mut first = of("a");
        first.room((BODIES_KIB << 10) - 1).await.unwrap();
        let (mut second, mut empty, mut theirs) = (of("a"), of("a"), of("b"));
        let second = tokio::spawn(async move { second.room(1).await.is_some() });
        empty.room(0).await.unwrap();
        theirs.room(usize::MAX).await.unwrap();
        assert!(!second.is_finished());
        drop(first.turn().await.unwrap());
        assert!(second.await.unwrap());
    }

    #[tokio::test]
    async fn callers_without_number_are_not_remembered_without_number() {
        let (shares, start) = (Shares::new(1), Instant::now());
        let held = shares.place("worked on").unwrap().turn().await.unwrap();
        for n in 0..3 * MANY {
            let now = start + Duration::from_millis(n as u64);
            shares.count(&n.to_string(), now).unwrap();
        }
        let callers = shares.callers.lock().unwrap();
        assert!(callers.len() <= MANY && callers.contains_key("worked on"), "{}", callers.len());
        drop(held);
    }
}
