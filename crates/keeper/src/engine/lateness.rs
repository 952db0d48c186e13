//! How late this process ran.
//!
//! Timers that fire late, and sleeps that last too long, say how short of processors this host is; others are likely to
//! be as short, so their answers are waited for as long (`Shared::rules`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Engine;
use super::liveness::LISTEN;

/// For how long it counts that this process ran late.
const COUNTS: Duration = Duration::from_secs(5);

/// How late this process ran, ever and lately.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    worst: Duration,
    /// What counts still: each is less than those before it, which will be forgotten sooner.
    lately: VecDeque<(Duration, Instant)>,
}

impl Lateness {
    /// Something that was due happened so late; tells whether nothing ever was later.
    pub(super) fn note(&mut self, late: Duration, now: Instant) -> bool {
        if late > LISTEN {
            let counts = |at: Instant| now.saturating_duration_since(at) < COUNTS;
            self.lately.retain(|(other, at)| *other > late && counts(*at));
            self.lately.push_back((late, now));
        }
        let is_worst = late > self.worst;
        self.worst = self.worst.max(late);
        is_worst
    }

    /// How late at worst within the last seconds; what is shorter than any wait does not count.
    pub(super) fn worst_lately(&self, now: Instant) -> Duration {
        let counts = |(_, at): &&(Duration, Instant)| now.saturating_duration_since(*at) < COUNTS;
        self.lately.iter().find(counts).map_or(Duration::ZERO, |(late, _)| *late)
    }

    /// How late at worst since the process started.
    pub(super) fn worst_ever(&self) -> Duration {
        self.worst
    }
}

impl Engine {
    /// Takes the time until which the process was to sleep, when it runs again, before what has arrived meanwhile: where
    /// no timer of the engine was due, nothing else tells that it did not run.
    pub fn handle_wakeup(&mut self, due: Instant, now: Instant) {
        self.shared.lateness.note(now.saturating_duration_since(due), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_last_seconds_counts_and_what_was_worse_before_hides_nothing() {
        let (mut lateness, start) = (Lateness::default(), Instant::now());
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        assert!(lateness.note(ms(10), start) && !lateness.note(ms(9), start));
        assert_eq!(lateness.worst_lately(start), ms(0), "shorter than any wait");
        assert!(lateness.note(ms(200), start + s(1)));
        assert!(!lateness.note(ms(50), start + s(2)) && !lateness.note(ms(90), start + s(3)));
        assert_eq!(lateness.worst_lately(start + s(5)), ms(200));
        assert_eq!(lateness.worst_lately(start + s(7)), ms(90), "it came after what is forgotten");
        assert_eq!(lateness.worst_lately(start + s(9)), ms(0));
        assert_eq!(lateness.worst_ever(), ms(200));
        for n in 0..1000 {
            lateness.note(ms(100), start + s(10) + ms(n));
        }
        assert_eq!(lateness.lately.len(), 1, "what others hide is not kept");
    }
}
