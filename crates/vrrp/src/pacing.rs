//! When the routers of one host advertise: in batches.
//!
//! To wake up costs a process more than to send, so a router whose advertisement is not due yet sends it along with others'.
//! From then on they are due together. But a thousand at one moment would be a burst, for which queues on the way are too
//! short, so batches are small, and a burst is dissolved.
//!
//! Advertisements only ever come early, and only until the batches are made: those that are due at one moment move together
//! or not at all, so batches merge and never part, and when no two neighbours fit together, all keep their intervals.

use std::time::{Duration, Instant};

use crate::router::VirtualRouter;

/// So many advertisements are sent at one moment: enough to make waking up cheap, few enough for any queue.
pub const BATCH: usize = 16;

/// More than so many at one moment are a burst.
const BURST: usize = 4 * BATCH;

/// Tells whether a router's advertisement may be sent with others now: it is due within half an interval. With less, two
/// batches that fit together would go on side by side; with more, each would be early for the other.
pub fn may_join(router: &VirtualRouter, now: Instant) -> bool {
    let reach = router.config().advertise_interval() / 2;
    router.next_advertisement().is_some_and(|at| at.saturating_duration_since(now) <= reach)
}

/// Picks who joins the advertisements that are sent now, `count` of them, among those that are due `next`, in order.
pub fn company<Id>(count: usize, next: impl IntoIterator<Item = (Instant, Id)>) -> Vec<Id> {
    let mut next = next.into_iter().peekable();
    let mut company = Vec::new();
    while count + company.len() < BATCH {
        let before = company.len();
        let Some((at, first)) = next.next() else { break };
        company.push(first);
        while let Some((_, another)) = next.next_if(|(other, _)| *other == at) {
            company.push(another);
        }
        if count + company.len() > BATCH {
            company.truncate(before);
            break;
        }
    }
    company
}

/// Tells whether so many routers that advertised at one moment are not to do so again.
pub fn is_burst(count: usize) -> bool {
    count > BURST
}

/// Tells how much of its interval each of the `count` routers of a burst waits until it advertises next, by its place
/// among them.
pub fn next_wait(place: usize, count: usize, interval: Duration) -> Duration {
    let (batch, batches) = ((place / BATCH) as u32, count.div_ceil(BATCH) as u32);
    interval * (batches - batch) / batches
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const INTERVAL: Duration = Duration::from_secs(1);

    #[test]
    fn those_that_are_due_at_one_moment_join_together_or_not_at_all() {
        let start = first_moment();
        let next = |sizes: &[u64]| {
            let group = |(group, size): (usize, &u64)| (0..*size).map(move |n| (start + MS * group as u32, n));
            sizes.iter().enumerate().flat_map(group).collect::<Vec<_>>()
        };
        assert_eq!(company(10, next(&[3, 3])), [0, 1, 2, 0, 1, 2]);
        assert_eq!(company(10, next(&[3, 4])), [0, 1, 2]);
        assert_eq!(company(10, next(&[7, 1])), [0; 0], "who is due later does not overtake");
        assert_eq!(company(BATCH, next(&[1])), [0; 0]);
        assert_eq!(company(BURST, next(&[1])), [0; 0]);
        assert_eq!(company(0, next(&[])), [0; 0]);
    }

    #[test]
    fn a_burst_is_spread_over_the_interval_and_a_batch_is_not() {
        assert!(!is_burst(BATCH) && is_burst(1000));
        let waits: Vec<Duration> = (0..1000).map(|place| next_wait(place, 1000, INTERVAL)).collect();
        let mut sizes = BTreeMap::new();
        waits.iter().for_each(|wait| *sizes.entry(*wait).or_insert(0) += 1);
        assert_eq!(sizes.len(), 63);
        assert!(sizes.values().all(|size| *size <= BATCH));
        assert_eq!(waits[0], INTERVAL);
        assert!(waits[999] >= INTERVAL / 64);
    }

    proptest! {
        /// A host whose routers all have the same interval, from whatever moments on.
        #[test]
        fn batches_are_made_once_and_then_every_router_keeps_its_interval(
            first in prop::collection::vec(1_u32..=1000, 1..300),
        ) {
            let start = first_moment();
            let mut due: BTreeSet<(Instant, usize)> =
                first.iter().enumerate().map(|(router, ms)| (start + MS * *ms, router)).collect();
            let mut sent = BTreeMap::new();
            let (rounds, mut wakes) = (20, 0);
            let end = start + INTERVAL * rounds;
            let settled = end - INTERVAL * 2;
            while let Some(&(now, _)) = due.first().filter(|(at, _)| *at < end) {
                let mut together: Vec<usize> = due.iter().take_while(|(at, _)| *at <= now).map(|(_, it)| *it).collect();
                let later = due.iter().skip(together.len()).take_while(|(at, _)| *at <= now + INTERVAL / 2).copied();
                together.extend(company(together.len(), later));
                due.retain(|(_, router)| !together.contains(router));
                wakes += u32::from(now >= end - INTERVAL);
                let count = together.len();
                for (place, router) in together.into_iter().enumerate() {
                    if let Some(before) = sent.insert(router, now) {
                        prop_assert!(now - before <= INTERVAL, "never late");
                        prop_assert!(now < settled || now - before == INTERVAL, "nor early for ever");
                    }
                    let wait = if is_burst(count) { next_wait(place, count, INTERVAL) } else { INTERVAL };
                    due.insert((now + wait, router));
                }
            }
            // Of two neighbours within reach of each other, at least one is half full or more.
            let full = (first.len() * 2).div_ceil(BATCH) as u32 + 1;
            prop_assert!(wakes <= full, "{wakes} wakes for {} routers", first.len());
        }
    }

    #[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
    fn first_moment() -> Instant {
        Instant::now()
    }
}
