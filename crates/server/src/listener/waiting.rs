//! Connections on which nothing is answered: one that has not said what it is, has not finished its handshake or its
//! first request, or whose client pauses between two. They are limited in number, below what files the process may
//! open. When it is too many, whoever has the most of them loses its oldest: one address that opens connections and
//! asks for nothing keeps nobody else out.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::Future as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// All that wait.
pub(super) struct Waiting {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Numbers are given in the order of coming.
    last: u64,
    count: usize,
    /// Invariant: no address is without any.
    by_address: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// A connection's place among those that wait; given up with the value.
pub(super) struct Place {
    waiting: Arc<Waiting>,
    address: IpAddr,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Waiting {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, table: Mutex::default() })
    }

    /// Gives a connection of that address a place, which another one loses where there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let (sender, lost) = oneshot::channel();
        let mut table = self.table();
        if table.count >= self.most
            && let Some((address, number)) = table.victim()
        {
            table.remove(address, number);
            tracing::debug!(%address, "too many connections ask for nothing: the oldest of this address is closed");
        }
        table.last += 1;
        table.count += 1;
        let number = table.last;
        table.by_address.entry(address).or_default().insert(number, sender);
        Place { waiting: Arc::clone(self), address, number, lost }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Of all that wait, the oldest of the address that has the most; of several such, of the one that came first.
    fn victim(&self) -> Option<(IpAddr, u64)> {
        let of_each = self.by_address.iter().filter_map(|(address, own)| {
            let oldest = own.first_key_value()?.0;
            Some((own.len(), Reverse(*oldest), *address))
        });
        of_each.max().map(|(_, Reverse(oldest), address)| (address, oldest))
    }

    fn remove(&mut self, address: IpAddr, number: u64) {
        let Entry::Occupied(mut own) = self.by_address.entry(address) else { return };
        if own.get_mut().remove(&number).is_some() {
            self.count -= 1;
        }
        if own.get().is_empty() {
            own.remove();
        }
    }
}

impl Place {
    /// Where it is.
    pub(super) fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    /// Ready when another connection has got the place.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.lost).poll(cx).map(drop)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.table().remove(self.address, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn is_lost(place: &mut Place) -> bool {
        place.poll_lost(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn whoever_has_most_that_wait_loses_its_oldest() {
        for (came, loses) in [(vec![A, B, B], 1), (vec![B, A, A, B], 0), (vec![A, B], 0)] {
            let waiting = Waiting::new(came.len());
            let mut places: Vec<_> = came.iter().map(|address| waiting.enter(*address)).collect();
            assert!(!places.iter_mut().any(is_lost));
            let mut newest = waiting.enter(A);
            let lost: Vec<_> = places.iter_mut().map(is_lost).collect();
            assert_eq!(lost.iter().position(|lost| *lost), Some(loses), "{came:?}");
            assert_eq!(lost.iter().filter(|lost| **lost).count(), 1, "{came:?}");
            assert!(!is_lost(&mut newest));
        }
    }

    #[test]
    fn places_that_are_given_up_are_free_again() {
        let waiting = Waiting::new(2);
        let mut stays = waiting.enter(A);
        for _ in 0..10 {
            drop(waiting.enter(A));
        }
        assert!(!is_lost(&mut stays));
        let (_second, _third) = (waiting.enter(A), waiting.enter(B));
        assert!(is_lost(&mut stays));
        drop(stays);
        assert_eq!(waiting.table().count, 2);
        drop((_second, _third));
        let table = waiting.table();
        assert!(table.count == 0 && table.by_address.is_empty());
    }
}
