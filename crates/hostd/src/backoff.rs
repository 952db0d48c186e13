//! How long to wait before trying again: doubling, bounded.

use std::time::Duration;

/// Doubles from `first` to `most`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with `first`, never waits longer than `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// Gives the wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.most);
        wait
    }

    /// Starts over, after a success.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Shortens a wait by up to a third, so that hosts that lost one server do not all return in one moment.
///
/// `seed` is anything that differs between hosts and attempts.
pub fn jitter(wait: Duration, seed: u64) -> Duration {
    // The finaliser of SplitMix64: neighbouring seeds give unrelated values.
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = ((z ^ (z >> 31)) >> 32) as u32;
    wait - wait / 3 * (part % 1000) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<u128> = (0..4).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next_wait().as_millis(), 100);
    }

    #[test]
    fn jitter_shortens_by_less_than_a_third_and_differs() {
        let wait = Duration::from_secs(3);
        let waits: Vec<Duration> = (0..20).map(|seed| jitter(wait, seed)).collect();
        assert!(waits.iter().all(|w| *w <= wait && *w > Duration::from_secs(2)), "{waits:?}");
        assert!(waits.windows(2).any(|w| w[0] != w[1]));
    }
}
