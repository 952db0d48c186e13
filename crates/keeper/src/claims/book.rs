//! What is known of where routers are: per router the highest epoch, and whose it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use evergate_model::RouterId;

/// Where a router is, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The highest epoch heard of.
    pub epoch: u64,
    /// Tunnel address of the host that has it in that epoch; `None` if nobody said.
    pub vtep: Option<IpAddr>,
}

/// What a statement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nothing: it was known, or is older than what is known.
    Nothing,
    /// A higher epoch, or who has the one that is known.
    Newer,
    /// Another host says that it has the epoch that is known of somebody: two were active at once.
    Conflict,
}

/// The known places of all routers of this host. Bounded by what control says that matters here.
#[derive(Debug, Default)]
pub struct Book {
    known: BTreeMap<RouterId, Known>,
}

impl Book {
    /// Tells what is known of a router.
    pub fn known(&self, router: RouterId) -> Known {
        self.known.get(&router).copied().unwrap_or_default()
    }

    /// Takes a statement. The higher epoch wins; within one, the first to be heard does.
    pub fn learn(&mut self, router: RouterId, epoch: u64, vtep: Option<IpAddr>) -> Learned {
        let known = self.known.entry(router).or_default();
        if epoch > known.epoch {
            *known = Known { epoch, vtep };
            return Learned::Newer;
        }
        if epoch < known.epoch || vtep.is_none() || vtep == known.vtep {
            return Learned::Nothing;
        }
        if known.vtep.is_some() {
            return Learned::Conflict;
        }
        known.vtep = vtep;
        Learned::Newer
    }

    /// Notes that the host that has the router in this epoch does not have it any more.
    pub fn vacate(&mut self, router: RouterId, vtep: Option<IpAddr>) {
        if let Some(known) = self.known.get_mut(&router).filter(|known| known.vtep == vtep) {
            known.vtep = None;
        }
    }

    /// Forgets a router that matters here no longer.
    pub fn forget(&mut self, router: RouterId) {
        self.known.remove(&router);
    }

    /// Every router that anything is known of.
    pub fn iter(&self) -> impl Iterator<Item = (RouterId, Known)> {
        self.known.iter().map(|(&router, &known)| (router, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: RouterId = RouterId::from_u128(1);

    fn host(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn the_highest_epoch_wins_in_whatever_order_claims_arrive() {
        let mut book = Book::default();
        assert_eq!(book.learn(R, 5, host(1)), Learned::Newer);
        assert_eq!(book.learn(R, 7, host(2)), Learned::Newer);
        assert_eq!(book.learn(R, 6, host(3)), Learned::Nothing);
        assert_eq!(book.learn(R, 7, host(2)), Learned::Nothing, "a repeat, or a recorded datagram");
        assert_eq!(book.known(R), Known { epoch: 7, vtep: host(2) });
    }

    #[test]
    fn a_second_claimant_of_one_epoch_is_a_conflict_and_changes_nothing() {
        let mut book = Book::default();
        book.learn(R, 5, host(1));
        assert_eq!(book.learn(R, 5, host(2)), Learned::Conflict);
        assert_eq!(book.known(R).vtep, host(1));
    }

    #[test]
    fn an_epoch_without_a_host_is_completed_by_the_host_that_has_it() {
        let mut book = Book::default();
        assert_eq!(book.learn(R, 5, None), Learned::Newer);
        assert_eq!(book.learn(R, 5, host(1)), Learned::Newer);
        assert_eq!(book.learn(R, 5, None), Learned::Nothing);
        assert_eq!(book.known(R).vtep, host(1));
    }

    #[test]
    fn vacating_keeps_the_epoch_so_that_the_next_one_is_higher() {
        let mut book = Book::default();
        book.learn(R, 5, host(1));
        book.vacate(R, host(2));
        assert_eq!(book.known(R).vtep, host(1));
        book.vacate(R, host(1));
        assert_eq!(book.known(R), Known { epoch: 5, vtep: None });
    }
}
