//! Epochs and claims of a copy: what it says when it becomes active, and what it does when another host
//! says the same.
//!
//! VRRP elects; claims tell every host of it, and the newest claim wins: an older active steps down as
//! soon as it hears of one, by whatever way. Invariant: whoever stays active ends up with the highest
//! epoch, so forwarding everywhere ends up pointing at it. What happens before a takeover is in
//! [`inquiry`](super::inquiry).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_vrrp::agreement::{Claim, Standing, standing};
use evergate_vrrp::router::Reason;

use super::copy::RouterCopy;
use super::effect::Effect;
use super::liveness::RESTART;
use super::shared::Shared;
use crate::claims::book::Known;
use crate::claims::wire::{Entry, Kind, Message};
use crate::protocol::FromKeeper;

/// Longest wait for the other hosts' word before a copy resumes. The kernel goes on forwarding meanwhile; a
/// host that is asked answers within milliseconds, so one that has not by then is dead or cut off.
const ASK: Duration = Duration::from_millis(200);
/// A question or its answer may be lost.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Other hosts are asked whether they know of a higher epoch.
#[derive(Debug)]
pub(super) struct Asking {
    unanswered: BTreeSet<IpAddr>,
    again: Instant,
    until: Instant,
}

impl RouterCopy {
    /// Tells whether the copy has to wait before it resumes, and asks the other copies' hosts.
    ///
    /// Having been away for less than the others' VRRP patience proves little: where BFD is spoken, another copy may
    /// have taken over within tenths of a second; where it is not, the last advertisement was older than the end of the
    /// keeper that sent it. The question is the claim with the
    /// epoch that is known here, which tells them nothing new; the answer is what they know. Whoever took
    /// over has said so to all of them, and to this host as well: what it says while this one waits
    /// counts, too.
    pub(super) fn must_ask(&mut self, shared: &mut Shared, now: Instant) -> bool {
        if !shared.can_ask() {
            return false;
        }
        let hosts = self.spec.peer_hosts.values().copied().filter(|host| Some(*host) != shared.settings.vtep);
        let fresh = Asking { unanswered: hosts.collect(), again: now, until: now + ASK };
        let mut asking = self.asking.take().unwrap_or(fresh);
        if asking.unanswered.is_empty() || asking.until <= now {
            return false;
        }
        if asking.again <= now {
            asking.again = now + ASK_AGAIN;
            self.tell_claim(&asking.unanswered, shared.book.known(self.id()).epoch, shared);
        }
        self.asking = Some(asking);
        true
    }

    /// Claims an epoch of this copy to some hosts, once: each answers with what it knows.
    fn tell_claim(&self, hosts: &BTreeSet<IpAddr>, epoch: u64, shared: &mut Shared) {
        let (Some(key), Some(vtep)) = (&shared.key, shared.settings.vtep) else { return };
        let entry = Entry { router: self.id(), epoch, vtep: Some(vtep) };
        let datagram = Message { kind: Kind::Claim, sender: vtep, entries: vec![entry] }.emit(key);
        for &host in hosts {
            let to = SocketAddr::new(host, shared.settings.claim_port);
            shared.effects.push_back(Effect::SendClaim { to, datagram: datagram.clone() });
        }
    }

    /// A host has said what it knows.
    pub(super) fn answered(&mut self, by: IpAddr, shared: &mut Shared, now: Instant) {
        let Some(asking) = &mut self.asking else { return };
        if asking.unanswered.remove(&by) && asking.unanswered.is_empty() {
            self.settle(shared, now);
        }
    }

    pub(super) fn asking_deadline(&self) -> Option<Instant> {
        self.asking.as_ref().map(|asking| asking.again.min(asking.until))
    }

    /// Tells whether the addresses found in the kernel make this copy active again without an election.
    ///
    /// Not if another host is known to have the router. Nor if the keeper was away for so long that the
    /// other copies have given it up: one of them is active now, and must not be contested. They were patient for
    /// longer if the last keeper asked them to.
    pub(super) fn may_adopt(&self, shared: &Shared, now: Instant) -> bool {
        let known = shared.book.known(self.id());
        let elsewhere = known.vtep.is_some() && known.vtep != shared.settings.vtep;
        let patience = Duration::from_millis(u64::from(self.spec.advertise_interval_cs) * 10 * 3);
        let patience = if shared.was_excused { patience.max(RESTART) } else { patience };
        !elsewhere && shared.away_since.is_none_or(|since| now.saturating_duration_since(since) < patience)
    }

    /// Becomes active with the next epoch, and claims the router.
    pub(super) fn take_mastership(&mut self, reason: Reason, shared: &mut Shared, now: Instant) {
        let known = shared.book.known(self.id());
        let still_ours = known.vtep.is_some() && known.vtep == shared.settings.vtep;
        // An adopted router never left this host, so its epoch has not ended.
        let resumes = reason == Reason::Adopted && still_ours;
        (self.active_since, self.kept, self.prevailed) = (now, None, None);
        self.epoch = if resumes { known.epoch } else { self.next_epoch(shared) };
        shared.book.learn(self.id(), self.epoch, shared.settings.vtep);
        if reason == Reason::PeerDown {
            // Frames that still go to the dead host are lost anyway, and all of its routers move now: said at
            // once it is few datagrams, and one change of a path for those who hear it. Said router by router as
            // the kernel gets ready, it would be as many as there are routers.
            shared.claim(self.id(), self.epoch, &self.spec.claim_to, now);
        }
        self.claim(shared, now);
    }

    /// Is no longer active: claims no more.
    pub(super) fn give_up_mastership(&mut self, shared: &mut Shared) {
        shared.outbox.withdraw(self.id());
        shared.book.vacate(self.id(), shared.settings.vtep);
    }

    /// **The place where a claim of another host meets an active copy.**
    pub(super) fn superseded(&mut self, known: Known, shared: &mut Shared, now: Instant) {
        let Some(own) = shared.settings.vtep else { return };
        // Somebody remembers an epoch of ours that we have forgotten in a restart; or an epoch is over,
        // and nobody has the router but this copy.
        let Some(rival) = known.vtep.filter(|vtep| *vtep != own) else {
            return self.claim_anew(shared, now);
        };
        // VRRP was faster than the claim: that rival hears us, and has already been told to step down.
        let interval = Duration::from_millis(u64::from(self.spec.advertise_interval_cs) * 10);
        let told = |(host, at): (IpAddr, Instant)| host == rival && now.saturating_duration_since(at) < interval;
        let claim = Claim { epoch: known.epoch, host: rival };
        match standing(Claim { epoch: self.epoch, host: own }, claim) {
            Standing::Newer if !self.prevailed.is_some_and(told) => {
                self.note(format!("{rival} claims it with epoch {}, after ours ({})", known.epoch, self.epoch), shared);
                self.vrrp.handle_superseded(self.address_of(rival), now);
                self.drain(shared, now);
                // Of two that claimed the same epoch, the first was remembered.
                shared.learn((self.id(), known.epoch, known.vtep), false, now);
            }
            Standing::Newer | Standing::Tie => self.claim_anew(shared, now),
            Standing::Older => {}
        }
    }

    /// Another copy is active as well: its host is told of our claim, and says what it knows.
    pub(super) fn contested(&self, with: IpAddr, shared: &mut Shared) {
        // Whoever hands over steps down when the other one is ready, and not before.
        if self.handover.is_some() || !self.waiting.is_over() {
            return;
        }
        if let Some(host) = self.host_of(with) {
            self.tell_claim(&[host].into(), self.epoch, shared);
        }
    }

    /// A host knows of our claim, and of none that is newer: if its copy was active, it is not any more.
    pub(super) fn settled_with(&mut self, host: IpAddr, shared: &mut Shared, now: Instant) {
        if self.is_active()
            && let Some(address) = self.address_of(host)
        {
            self.vrrp.handle_settled(address, now);
            self.drain(shared, now);
        }
    }

    /// The address decided between two active copies, for this one. If the other one's claim arrives late,
    /// it is answered by a newer one.
    pub(super) fn prevailed(&mut self, over: IpAddr, now: Instant) {
        self.prevailed = self.host_of(over).map(|host| (host, now));
    }

    /// An epoch above all that are known.
    fn next_epoch(&self, shared: &Shared) -> u64 {
        shared.book.known(self.id()).epoch.max(self.surpass).saturating_add(1)
    }

    /// Claims with an epoch above all that are known.
    pub(super) fn claim_anew(&mut self, shared: &mut Shared, now: Instant) {
        self.epoch = self.next_epoch(shared);
        shared.book.learn(self.id(), self.epoch, shared.settings.vtep);
        self.claim(shared, now);
        self.announce_all(shared);
        if let Some(vtep) = shared.settings.vtep {
            shared.emit(FromKeeper::Claimed { router: self.id(), epoch: self.epoch, vtep });
        }
    }
}
