//! Where the role is wanted: a host that the router belongs to, or that somebody has it moved to.
//!
//! A wish is a state, not a command: as long as it stands and this copy is active, the copy looks every [`LOOK`]
//! whether the wanted host can have the role, and hands it over as for a planned move. It can if it lives and holds
//! all connections; a host that is then asked and does not take the role is left alone for [`PAUSE`].
//!
//! A host that the role returns to of itself may lack something that others cannot see (its gateway), and give the
//! role away again. So the copy that gets it keeps it for [`SETTLED`], twice as long each time it came back.

use std::time::{Duration, Instant};

use super::copy::RouterCopy;
use super::shared::Shared;

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);
/// After a host did not take the role.
const PAUSE: Duration = Duration::from_secs(15);
/// How long a copy that has become active keeps the role unless somebody waits.
const SETTLED: Duration = Duration::from_secs(10);
/// Doublings of that.
const MOST_RETURNS: u32 = 8;

/// What is being done about a wish.
#[derive(Debug, Default)]
pub(super) struct Wishing {
    /// When to look, while the copy is active.
    look_at: Option<Instant>,
    /// The role was handed over as wished this often.
    given: u32,
    /// It was told that this does not work.
    told: bool,
}

impl Wishing {
    /// The host did not take the role; tells whether that is news.
    pub(super) fn is_first_refusal(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    /// The host lives, and does not hold all connections yet: that is looked at again soon.
    pub(super) fn lacks_connections(&mut self, now: Instant) {
        self.look_at = Some(now + LOOK);
    }

    /// The role went where it was wanted.
    pub(super) fn fulfilled(&mut self) {
        self.given += 1;
    }
}

impl RouterCopy {
    /// Looks whether the role is wanted elsewhere and can go there.
    pub(super) fn attend_wish(&mut self, shared: &mut Shared, now: Instant) {
        let Some(wish) = self.spec.wish.filter(|_| self.is_active() && !self.leaving) else {
            self.wishing.look_at = None;
            return;
        };
        let settled = if wish.at_once { Duration::ZERO } else { SETTLED * (1 << self.wishing.given.min(MOST_RETURNS)) };
        let look_at = *self.wishing.look_at.get_or_insert(now + settled);
        if look_at <= now && self.handover.is_none() {
            let asks = self.hand_over_to(wish.host, shared, now);
            self.wishing.look_at = Some(now + if asks { PAUSE } else { LOOK });
        }
    }

    /// When to look again.
    pub(super) fn wish_deadline(&self) -> Option<Instant> {
        self.wishing.look_at.filter(|_| self.handover.is_none())
    }
}
