//! The conversation with one peer host: numbers messages, remembers what each carried, and tells what
//! became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use crate::message::Ack;
use crate::subscriber::Item;

/// Messages that may be on their way at once, at least, first, and at most (about 0.7 MB, which fits the
/// receive buffer that the transport asks for).
const WINDOW: (usize, usize, usize) = (4, 64, 512);
/// After this long without an answer a message counts as lost; doubled with each loss in a row.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(80), Duration::from_secs(1));

/// What a message carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Subscribe {
        router: RouterId,
        token: u32,
    },
    /// `since` it was to be told.
    Table {
        router: RouterId,
        generation: u32,
        item: Item,
        since: Instant,
    },
}

#[derive(Debug)]
struct Flight {
    sent: Instant,
    carried: Vec<Carried>,
}

/// The conversation with one peer host, in one life of both processes.
#[derive(Debug)]
pub(crate) struct Link {
    next: u64,
    in_flight: BTreeMap<u64, Flight>,
    window: usize,
    patience: Duration,
    highest: u64,
    taken: u128,
    pub(crate) ack_due: bool,
    /// Subscriptions that the peer has not confirmed, and those that are to be sent.
    pub(crate) subscriptions: BTreeMap<RouterId, u32>,
    pub(crate) to_subscribe: BTreeSet<RouterId>,
    /// What the peer subscribed to.
    pub(crate) subscribed: BTreeMap<RouterId, u32>,
    /// Where the turn of routers goes on.
    pub(crate) turn: Option<RouterId>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            next: 1,
            in_flight: BTreeMap::new(),
            window: WINDOW.1,
            patience: PATIENCE.0,
            highest: 0,
            taken: 0,
            ack_due: false,
            subscriptions: BTreeMap::new(),
            to_subscribe: BTreeSet::new(),
            subscribed: BTreeMap::new(),
            turn: None,
        }
    }

    pub(crate) fn has_window(&self) -> bool {
        self.in_flight.len() < self.window
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    pub(crate) fn sent(&mut self, carried: Vec<Carried>, now: Instant) {
        self.in_flight.insert(self.next, Flight { sent: now, carried });
        self.next += 1;
    }

    /// The acknowledgement to send along.
    pub(crate) fn ack(&self) -> Option<Ack> {
        (self.highest > 0).then_some(Ack { highest: self.highest, taken: self.taken })
    }

    /// Whether a message with this number is taken: only if it is newer than all that were.
    pub(crate) fn take(&mut self, sequence: u64) -> bool {
        self.ack_due = true;
        if sequence <= self.highest {
            return false;
        }
        let step = sequence - self.highest;
        self.taken = if step < 128 { self.taken << step } else { 0 } | 1;
        self.highest = sequence;
        true
    }

    /// What arrived, and what was lost, by what the peer says that it took.
    pub(crate) fn acknowledged(&mut self, ack: Ack, now: Instant) -> (Vec<Carried>, Vec<Carried>) {
        let (mut arrived, mut lost) = (Vec::new(), Vec::new());
        if ack.highest >= self.next {
            return (arrived, lost);
        }
        let later = self.in_flight.split_off(&(ack.highest + 1));
        let answered = std::mem::replace(&mut self.in_flight, later);
        for (sequence, flight) in answered {
            let age = ack.highest - sequence;
            if age < 128 && ack.taken >> age & 1 == 1 {
                arrived.extend(flight.carried);
                self.patience = PATIENCE.0.max(4 * now.saturating_duration_since(flight.sent)).min(PATIENCE.1);
                self.window = (self.window + 1).min(WINDOW.2);
            } else {
                // Whatever is older than what the peer has taken it will not take any more.
                lost.extend(flight.carried);
            }
        }
        if !lost.is_empty() {
            self.window = (self.window * 3 / 4).max(WINDOW.0);
        }
        (arrived, lost)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.in_flight.values().map(|flight| flight.sent + self.patience).next()
    }

    /// What is given up waiting for.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Carried> {
        if self.deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let (mut lost, patience) = (Vec::new(), self.patience);
        self.in_flight.retain(|_, flight| {
            let keep = flight.sent + patience > now;
            if !keep {
                lost.append(&mut flight.carried);
            }
            keep
        });
        self.patience = (2 * self.patience).min(PATIENCE.1);
        self.window = WINDOW.0.max(self.window / 2);
        lost
    }
}
