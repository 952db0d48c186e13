//! Saying the same thing seldom: what others can cause as often as they like must not fill the log.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing more is said about one matter.
const PAUSE: Duration = Duration::from_secs(60);

/// Matters that are remembered.
const MOST: usize = 1024;

/// Remembers what was said lately.
#[derive(Debug)]
pub(crate) struct Seldom<K>(Mutex<HashMap<K, (Instant, u64)>>);

impl<K> Default for Seldom<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Tells whether it may be said now: how often it was not since the last time, or `None`.
    pub(crate) fn speak(&self, matter: K) -> Option<u64> {
        self.speak_at(matter, Instant::now())
    }

    fn speak_at(&self, matter: K, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.retain(|_, (said, _)| now.duration_since(*said) < PAUSE);
        }
        if all.len() >= MOST && !all.contains_key(&matter) {
            return None;
        }
        let (said, untold) = all.entry(matter).or_insert((now, 0));
        if *said != now && now.duration_since(*said) < PAUSE {
            *untold += 1;
            return None;
        }
        *said = now;
        Some(std::mem::take(untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_in_a_while_with_how_often_it_was_not() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(seldom.speak_at("a", at(0)), Some(0));
        assert_eq!(seldom.speak_at("a", at(10)), None);
        assert_eq!(seldom.speak_at("b", at(20)), Some(0));
        assert_eq!(seldom.speak_at("a", at(59_999)), None);
        assert_eq!(seldom.speak_at("a", at(60_000)), Some(2));
    }

    #[test]
    fn strangers_without_number_are_not_remembered_without_number() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let said = (0..10_000).filter(|n| seldom.speak_at(*n, start).is_some()).count();
        assert_eq!(said, MOST);
        assert_eq!(seldom.speak_at(10_001, start + PAUSE), Some(0));
    }
}
