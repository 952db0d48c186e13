//! What is said of a transition, and when: neighbours, other hosts and control hear of it when the kernel
//! holds what they are told.
//!
//! The kernel's answers come later than its orders ([`effect`](super::effect)). Until the last of them,
//! announcements, claims and the report wait; advertisements do not.
//!
//! Announcements also wait for their turn ([`Engine::poll_announcement`]): a bridge copies a broadcast to each of its ports
//! in its sender's time. With 500 routers on one external network, on a busy machine, a router's took 1.5 ms, and 500 at once
//! kept their host from claiming, and from hearing anybody, for so long that it took itself for cut off.

use std::collections::VecDeque;
use std::time::Instant;

use evergate_model::HaState;
use evergate_vrrp::announce;
use evergate_vrrp::router::Reason;

use super::Engine;
use super::copy::RouterCopy;
use super::effect::{Batch, Effect};
use super::shared::Shared;
use crate::protocol::{Announce, FromKeeper, Transition};

/// What waits for the kernel.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Batches that were not answered yet.
    batches: usize,
    /// What is to be announced then.
    announce: VecDeque<Announce>,
    /// Its turn to announce will come.
    in_line: bool,
    claim: bool,
    transition: Option<(Transition, Instant)>,
    /// What control was told last.
    reported: Option<HaState>,
}

impl Waiting {
    /// Whether the kernel has answered everything.
    pub(super) fn is_over(&self) -> bool {
        self.batches == 0
    }
}

impl RouterCopy {
    /// Sends prepared messages.
    pub(super) fn run(&mut self, batches: Vec<Batch>, shared: &mut Shared) {
        self.waiting.batches += batches.len();
        shared.effects.extend(batches.into_iter().map(Effect::RunBatch));
    }

    /// Takes what came of a batch of items.
    pub(super) fn handle_batch(
        &mut self,
        batch: &Batch,
        results: Vec<Result<(), String>>,
        shared: &mut Shared,
        now: Instant,
    ) {
        if batch.generation <= self.born {
            return; // of an earlier copy of the same router
        }
        self.ledger.handle_results(batch, results, now);
        self.waiting.batches = self.waiting.batches.saturating_sub(1);
        self.settled(shared, now);
        if self.waiting.is_over() {
            self.attend_health(shared, now);
        }
    }

    /// A transition begins: what is measured from here is its cost. What was still waiting to be said of
    /// an earlier one is out of date, but for its being reported.
    pub(super) fn begin_transition(&mut self, shared: &mut Shared, now: Instant) {
        self.waiting.announce.clear();
        self.waiting.claim = false;
        self.report_transition(shared, now);
    }

    /// Announces in its turn, when the kernel has the addresses.
    pub(super) fn announce(&mut self, what: Vec<Announce>, shared: &mut Shared) {
        for one in what {
            if !self.waiting.announce.contains(&one) {
                self.waiting.announce.push_back(one);
            }
        }
        self.stand_in_line(shared);
    }

    fn stand_in_line(&mut self, shared: &mut Shared) {
        if self.waiting.is_over() && !self.waiting.announce.is_empty() && !self.waiting.in_line {
            self.waiting.in_line = true;
            shared.announcing.push_back(self.id());
        }
    }

    /// What is to be announced next, of a copy whose turn it is; none when its turn is over.
    fn next_announcement(&mut self) -> Option<Effect> {
        if !self.is_active() {
            self.waiting.announce.clear();
        }
        let next = if self.waiting.is_over() { self.waiting.announce.pop_front() } else { None };
        self.waiting.in_line = next.is_some();
        let one = next?;
        let frame = announce::frame(one.mac.0, one.ip);
        Some(Effect::SendFrame { router: self.id(), ifindex: one.ifindex, frame })
    }

    pub(super) fn announce_all(&mut self, shared: &mut Shared) {
        self.announce(self.spec.announce.clone(), shared);
    }

    /// Claims the router with the current epoch when the kernel has its addresses.
    pub(super) fn claim(&mut self, shared: &mut Shared, now: Instant) {
        self.waiting.claim = true;
        self.settled(shared, now);
    }

    /// Tells control of a new state when the kernel has what belongs to it.
    pub(super) fn report(&mut self, reason: Reason, shared: &mut Shared, now: Instant) {
        let state = if self.is_active() { HaState::Active } else { HaState::Standby };
        if self.waiting.reported != Some(state) {
            self.waiting.reported = Some(state);
            let transition = Transition {
                router: self.id(),
                state,
                epoch: if self.is_active() { self.epoch } else { shared.book.known(self.id()).epoch },
                at_ms: 0,
                reason: in_words(reason).to_owned(),
                took_us: 0,
            };
            self.waiting.transition = Some((transition, now));
        }
        self.settled(shared, now);
    }

    /// Says what has waited for the kernel, if it has answered everything.
    fn settled(&mut self, shared: &mut Shared, now: Instant) {
        if !self.waiting.is_over() {
            return;
        }
        self.stand_in_line(shared);
        if std::mem::take(&mut self.waiting.claim) && self.is_active() {
            shared.claim(self.id(), self.epoch, &self.spec.claim_to, now);
        }
        self.report_transition(shared, now);
    }

    fn report_transition(&mut self, shared: &mut Shared, now: Instant) {
        if let Some((mut transition, since)) = self.waiting.transition.take() {
            transition.took_us = now.saturating_duration_since(since).as_micros() as u64;
            shared.emit(FromKeeper::Transition(transition));
        }
    }
}

impl Engine {
    /// Takes the next announcement to send, or nothing. It is no effect among others: whoever carries out effects asks for
    /// it when there is nothing else to do, and sends few at a time.
    pub fn poll_announcement(&mut self) -> Option<Effect> {
        loop {
            let router = self.shared.announcing.front()?;
            if let Some(frame) = self.copies.get_mut(router).and_then(RouterCopy::next_announcement) {
                return Some(frame);
            }
            self.shared.announcing.pop_front();
        }
    }

    /// Whether there may be an announcement to send.
    pub fn has_announcements(&self) -> bool {
        !self.shared.announcing.is_empty()
    }
}

/// A reason as the state-change log and the operator see it.
fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Startup => "started to take part",
        Reason::Shutdown => "stopped on request",
        Reason::ActiveDown => "nothing was heard of the active router for three intervals",
        Reason::Resigned => "the active router resigned",
        Reason::PeerDown => "the active router's host is not heard any more",
        Reason::First => "is the first of a new router",
        Reason::HigherPriority => "another copy with higher priority is active",
        Reason::HigherAddress => "another copy with equal priority and a higher address is active",
        Reason::Fault => "the HA interface is down or cannot be used",
        Reason::Adopted => "was active when the keeper was restarted",
        Reason::Inherited => "this host served the router before it was converted",
        Reason::Absence => "was away for longer than three intervals",
        Reason::Reconfigured => "became another virtual router",
        Reason::Impaired => "lost its way to the gateway",
        Reason::Superseded => "another copy became active since",
        Reason::Isolated => "no other host can be reached any more",
        Reason::Handover => "the active copy handed over",
    }
}
