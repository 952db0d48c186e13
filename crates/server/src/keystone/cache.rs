//! Answers that are believed for a while, a bounded number of them.
//!
//! Tokens are kept as keyed digests only, so that a dump of the memory yields none that could be used.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::token::Token;
use crate::random;

/// Answers that are kept: a cloud's users of five minutes, and less than 10 MB.
const MOST: usize = 10_000;
/// How long a token that Keystone does not know is refused unasked, at most.
const INVALID_FOR: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Invalid,
    Valid(Arc<Token>),
}

type Digest = [u8; 32];

/// Keeps answers.
pub(super) struct Cache {
    believed_for: Duration,
    key: Hmac<Sha256>,
    answers: HashMap<Digest, (Instant, Known)>,
    /// The same by age. Invariant: an entry here for each answer, and no other.
    by_age: BTreeMap<(Instant, Digest), ()>,
}

impl Cache {
    pub(super) fn new(believed_for: Duration) -> Self {
        let key = random::bytes::<32>();
        Self {
            believed_for,
            key: Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"),
            answers: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    pub(super) fn get(&mut self, token: &str, now: Instant) -> Option<Known> {
        let digest = self.digest(token);
        let (until, known) = self.answers.get(&digest)?;
        if *until > now {
            return Some(known.clone());
        }
        self.remove(&digest);
        None
    }

    pub(super) fn insert(&mut self, token: &str, known: Known, now: Instant) {
        let believed_for = match known {
            Known::Invalid => self.believed_for.min(INVALID_FOR),
            Known::Valid(_) => self.believed_for,
        };
        if believed_for.is_zero() {
            return;
        }
        let digest = self.digest(token);
        self.remove(&digest);
        while self.answers.len() >= MOST
            && let Some(((_, oldest), ())) = self.by_age.pop_first()
        {
            self.answers.remove(&oldest);
        }
        let until = now + believed_for;
        self.by_age.insert((until, digest), ());
        self.answers.insert(digest, (until, known));
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some((until, _)) = self.answers.remove(digest) {
            self.by_age.remove(&(until, *digest));
        }
    }

    fn digest(&self, token: &str) -> Digest {
        let mut mac = self.key.clone();
        mac.update(token.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_for_its_time_and_the_oldest_makes_room() {
        let start = Instant::now();
        let mut cache = Cache::new(Duration::from_secs(300));
        cache.insert("first", Known::Invalid, start);
        assert_eq!(cache.get("first", start), Some(Known::Invalid));
        assert_eq!(cache.get("other", start), None);
        assert_eq!(cache.get("first", start + INVALID_FOR), None);
        for n in 0..=MOST {
            cache.insert(&n.to_string(), Known::Invalid, start + Duration::from_micros(n as u64));
        }
        assert_eq!((cache.answers.len(), cache.by_age.len()), (MOST, MOST));
        assert_eq!(cache.get("0", start), None);
        assert_eq!(cache.get("1", start), Some(Known::Invalid));
        cache.insert("1", Known::Invalid, start);
        assert_eq!((cache.answers.len(), cache.by_age.len()), (MOST, MOST));
    }

    #[test]
    fn without_a_time_nothing_is_kept() {
        let mut cache = Cache::new(Duration::ZERO);
        cache.insert("token", Known::Invalid, Instant::now());
        assert_eq!(cache.get("token", Instant::now()), None);
    }
}
