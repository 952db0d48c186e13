//! Passwords: slow to check for whoever guesses, quick for whoever knows.
//!
//! Argon2id makes one check cost tens of milliseconds and 19 MiB, which a client that logs in for every
//! command would feel and a guesser of many must. So three things stand before it:
//!
//! - a password that was right lately is recognised by a keyed digest, with a key that only this
//!   process has;
//! - after some wrong ones in a row for a user, further guesses are refused unchecked for a while;
//! - few checks run at once, so that guesses cannot use up the memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Argon2, Params, Version};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::random;

/// How long a right password is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Users whose right password is remembered, and users whose wrong guesses are counted.
const MOST_USERS: usize = 1024;
/// Wrong passwords in a row that a user is forgiven.
const FORGIVEN: u32 = 10;
/// How long further guesses are refused, and how long wrong ones are remembered.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many wrong ones: come back after so many seconds.
    Refused(u64),
}

/// Checks passwords.
pub(super) struct Passwords {
    /// Key of the digests: random, this process's alone.
    digest_key: Hmac<Sha256>,
    state: Mutex<State>,
    /// Holds the hash that unknown users are checked against, so that they take as long as known ones.
    decoy: String,
    slots: tokio::sync::Semaphore,
}

#[derive(Default)]
struct State {
    remembered: HashMap<[u8; 32], Instant>,
    wrong: HashMap<String, Wrong>,
}

struct Wrong {
    count: u32,
    last: Instant,
}

impl Passwords {
    pub(super) fn new() -> Result<Self, argon2::password_hash::Error> {
        let key = random::bytes::<32>();
        Ok(Self {
            digest_key: Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"),
            state: Mutex::default(),
            decoy: hash("nobody's password")?,
            slots: tokio::sync::Semaphore::new(2),
        })
    }

    /// Checks `password` for the user of that name; `known` is the stored hash, if there is such a user.
    pub(super) async fn check(&self, user: &str, password: &str, known: Option<&str>, now: Instant) -> Verdict {
        let digest = self.digest(user, password, known.unwrap_or(""));
        if known.is_some() && self.is_remembered(&digest, now) {
            return Verdict::Right;
        }
        if let Some(seconds) = self.refused(user, now) {
            return Verdict::Refused(seconds);
        }
        let Ok(_slot) = self.slots.acquire().await else { return Verdict::Refused(1) };
        let stored = known.unwrap_or(&self.decoy).to_owned();
        let password = password.to_owned();
        let matches = tokio::task::spawn_blocking(move || matches(&stored, &password)).await.unwrap_or(false);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches && known.is_some() {
            state.wrong.remove(user);
            state.remembered.retain(|_, until| *until > now);
            make_room(&mut state.remembered, |until| *until);
            state.remembered.insert(digest, now + REMEMBERED);
            Verdict::Right
        } else {
            state.wrong.retain(|_, wrong| now.duration_since(wrong.last) < REFUSED_FOR);
            make_room(&mut state.wrong, |wrong| wrong.last);
            let wrong = state.wrong.entry(user.to_owned()).or_insert(Wrong { count: 0, last: now });
            wrong.count += 1;
            wrong.last = now;
            Verdict::Wrong
        }
    }

    fn is_remembered(&self, digest: &[u8; 32], now: Instant) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.remembered.get(digest).is_some_and(|until| *until > now)
    }

    fn refused(&self, user: &str, now: Instant) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = state.wrong.get(user).filter(|wrong| wrong.count >= FORGIVEN)?;
        let left = (wrong.last + REFUSED_FOR).checked_duration_since(now)?;
        Some(left.as_secs().max(1))
    }

    /// Binds the parts together; the stored hash is one of them, so a changed password is not remembered.
    fn digest(&self, user: &str, password: &str, stored: &str) -> [u8; 32] {
        let mut mac = self.digest_key.clone();
        for part in [user, password, stored] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}

/// Drops the oldest entry of a map that is full.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, age: impl Fn(&V) -> Instant) {
    if map.len() >= MOST_USERS
        && let Some(oldest) = map.iter().min_by_key(|(_, v)| age(v)).map(|(k, _)| k.clone())
    {
        map.remove(&oldest);
    }
}

/// Hashes a password for keeping, with a salt of its own.
pub(super) fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let salt = SaltString::encode_b64(&random::bytes::<16>())?;
    // The crate's defaults are the second choice of RFC 9106 §4, scaled to 19 MiB as OWASP advises.
    let hasher = Argon2::new(argon2::Algorithm::Argon2id, Version::V0x13, Params::default());
    Ok(hasher.hash_password(password.as_bytes(), &salt)?.to_string())
}

fn matches(stored: &str, password: &str) -> bool {
    PasswordHash::new(stored)
        .is_ok_and(|stored| Argon2::default().verify_password(password.as_bytes(), &stored).is_ok())
}

/// Tells whether a stored hash is one that can be checked.
pub(super) fn is_hash(stored: &str) -> bool {
    PasswordHash::new(stored).is_ok_and(|hash| hash.hash.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_right_password_passes_and_is_remembered_only_for_its_hash() {
        let (one, other) = (hash("right").unwrap(), hash("right").unwrap());
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        assert_eq!(passwords.check("u", "right", Some(&one), now).await, Verdict::Right);
        assert!(passwords.is_remembered(&passwords.digest("u", "right", &one), now));
        assert!(!passwords.is_remembered(&passwords.digest("u", "right", &other), now));
        assert!(!passwords.is_remembered(&passwords.digest("u", "right", &one), now + REMEMBERED));
        assert_eq!(passwords.check("u", "wrong", Some(&one), now).await, Verdict::Wrong);
        assert_eq!(passwords.check("nobody", "nobody's password", None, now).await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn guessing_is_refused_after_a_while_but_not_whoever_logged_in_lately() {
        let stored = hash("right").unwrap();
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        assert_eq!(passwords.check("u", "right", Some(&stored), now).await, Verdict::Right);
        for _ in 0..FORGIVEN {
            assert_eq!(passwords.check("u", "guess", Some(&stored), now).await, Verdict::Wrong);
        }
        assert!(matches!(passwords.check("u", "guess", Some(&stored), now).await, Verdict::Refused(_)));
        assert_eq!(passwords.check("u", "right", Some(&stored), now).await, Verdict::Right);
        let later = now + REFUSED_FOR + Duration::from_secs(1);
        assert_eq!(passwords.check("u", "guess", Some(&stored), later).await, Verdict::Wrong);
    }
}
