//! Which routers advertise together: read [`evergate_vrrp::pacing`].

use std::ops::Bound;
use std::time::Instant;

use evergate_model::RouterId;
use evergate_vrrp::pacing::{self, BATCH};

use super::Engine;

/// So many timers that are next are looked at: other ones than advertisements' may be among them.
const LOOK_AHEAD: usize = 2 * BATCH;

impl Engine {
    /// Adds to those that are `due` whose advertisements are sent with theirs; tells who advertises.
    pub(super) fn gather(&mut self, due: &mut Vec<RouterId>, now: Instant) -> Vec<RouterId> {
        let advertises = |router: &RouterId| {
            let copy = self.copies.get(router);
            copy.and_then(|copy| copy.vrrp.next_advertisement()).is_some_and(|at| at <= now)
        };
        let mut advertising: Vec<RouterId> = due.iter().copied().filter(advertises).collect();
        // Nobody wakes up for those that are due later alone.
        if advertising.is_empty() {
            return advertising;
        }
        let later = self.deadlines.range((Bound::Excluded((now, RouterId::from_u128(u128::MAX))), Bound::Unbounded));
        let may_join =
            |&(at, router): &(Instant, RouterId)| self.copies.get(&router).is_some_and(|copy| copy.may_join(at, now));
        let company = pacing::company(advertising.len(), later.take(LOOK_AHEAD).copied().filter(may_join));
        for router in &company {
            if let Some(copy) = self.copies.get_mut(router) {
                copy.vrrp.hasten_advertisement(now);
            }
        }
        due.extend(&company);
        advertising.extend(&company);
        advertising
    }

    /// Shares those that advertised at one moment out over the next interval, if they were too many.
    pub(super) fn disperse(&mut self, advertised: &[RouterId], now: Instant) {
        let count = advertised.len();
        if !pacing::is_burst(count) {
            return;
        }
        for (place, &router) in advertised.iter().enumerate() {
            self.with(router, |copy, _| {
                let wait = pacing::next_wait(place, count, copy.vrrp.config().advertise_interval());
                copy.vrrp.hasten_advertisement(now + wait);
            });
        }
    }
}
