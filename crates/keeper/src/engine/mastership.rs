//! Epochs and claims of a copy: what it says when it becomes active, and what it does when another host
//! says the same.
//!
//! VRRP decides who is active; claims tell every host of it. Invariant: whoever stays active ends up
//! with the highest epoch, so forwarding everywhere ends up pointing at it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_vrrp::router::Reason;

use super::copy::RouterCopy;
use super::effect::Effect;
use super::shared::Shared;
use crate::claims::book::Known;
use crate::claims::wire::{Entry, Kind, Message};
use crate::protocol::FromKeeper;

/// An active that claims repeats itself every four to six seconds: one that was not heard for this long
/// is gone, or has stepped down.
const RIVAL_GONE: Duration = Duration::from_secs(15);

/// Another host claims the router that is active here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contest {
    /// When its claim was last heard.
    heard: Instant,
}

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
    /// Where BFD is spoken, another copy may have taken over within tenths of a second, so that having been
    /// away for less than the others' VRRP patience proves nothing. The question is the claim with the
    /// epoch that is known here, which tells them nothing new; the answer is what they know. Whoever took
    /// over has said so to all of them, and to this host as well: what it says while this one waits
    /// counts, too.
    pub(super) fn must_ask(&mut self, shared: &mut Shared, now: Instant) -> bool {
        if !shared.liveness.is_on() {
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
            self.ask(&asking.unanswered, shared);
        }
        self.asking = Some(asking);
        true
    }

    fn ask(&self, hosts: &BTreeSet<IpAddr>, shared: &mut Shared) {
        let (Some(key), Some(vtep)) = (&shared.key, shared.settings.vtep) else { return };
        let entry = Entry { router: self.id(), epoch: shared.book.known(self.id()).epoch, vtep: Some(vtep) };
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
    /// other copies have given it up: one of them is active now, and must not be contested.
    pub(super) fn may_adopt(&self, shared: &Shared, now: Instant) -> bool {
        let known = shared.book.known(self.id());
        let elsewhere = known.vtep.is_some() && known.vtep != shared.settings.vtep;
        let patience = Duration::from_millis(u64::from(self.spec.advertise_interval_cs) * 10 * 3);
        !elsewhere && shared.away_since.is_none_or(|since| now.saturating_duration_since(since) < patience)
    }

    /// Becomes active with the next epoch, and claims the router.
    pub(super) fn take_mastership(&mut self, reason: Reason, shared: &mut Shared, now: Instant) {
        let known = shared.book.known(self.id());
        let still_ours = known.vtep.is_some() && known.vtep == shared.settings.vtep;
        // An adopted router never left this host, so its epoch has not ended.
        let resumes = reason == Reason::Adopted && still_ours;
        self.contest = None;
        self.epoch = if resumes { known.epoch } else { known.epoch.saturating_add(1) };
        shared.book.learn(self.id(), self.epoch, shared.settings.vtep);
        if reason == Reason::PeerDown {
            // Frames that still go to the dead host are lost anyway, and all of its routers move now: said at
            // once it is few datagrams, and one change of a path for those who hear it. Said router by router as
            // the kernel gets ready, it would be as many as there are routers.
            shared.claim(self.id(), self.epoch, &self.spec.claim_to, now);
        }
        self.claim(shared, now);
    }

    /// Is no longer active: claims no more, and follows whoever is known to have the router.
    pub(super) fn give_up_mastership(&mut self, shared: &mut Shared) {
        self.contest = None;
        shared.outbox.withdraw(self.id());
        shared.book.vacate(self.id(), shared.settings.vtep);
        shared.apply_follow(self.id());
    }

    /// **The place where a claim of another host meets an active copy.**
    ///
    /// For now it is recorded and told, and VRRP decides: where the two copies hear each other, one of
    /// them steps down at once, and the other claims anew ([`Self::prevailed`]). Where they do not, both
    /// stay, and the operator has been told. Stepping down because of a claim belongs here.
    pub(super) fn superseded(&mut self, known: Known, shared: &mut Shared, now: Instant) {
        if known.vtep.is_some() && known.vtep == shared.settings.vtep {
            // Somebody remembers an epoch of ours that we have forgotten in a restart.
            self.claim_anew(shared, now);
            return;
        }
        let interval = Duration::from_millis(u64::from(self.spec.advertise_interval_cs) * 10);
        if self.prevailed_at.is_some_and(|at| now.saturating_duration_since(at) < interval) {
            // VRRP was faster than the claim: the rival has already been told to step down.
            self.claim_anew(shared, now);
            return;
        }
        if self.contest.is_none() {
            let rival = known.vtep.map_or("another host".to_owned(), |vtep| vtep.to_string());
            let (router, epoch) = (self.id(), self.epoch);
            shared.warn(format!(
                "router {router} is active here with epoch {epoch}, and {rival} claims it with epoch {}; \
                 can the copies hear each other on the HA network?",
                known.epoch
            ));
        }
        self.contest = Some(Contest { heard: now });
    }

    /// The rival repeats its claim.
    pub(super) fn rival_heard(&mut self, vtep: IpAddr, own: Option<IpAddr>, now: Instant) {
        if let Some(contest) = self.contest.as_mut().filter(|_| Some(vtep) != own) {
            contest.heard = now;
        }
    }

    /// An advertisement was received and this copy is still active: VRRP has decided for it. If another
    /// host claimed the router meanwhile, everybody must learn that it is here.
    pub(super) fn prevailed(&mut self, shared: &mut Shared, now: Instant) {
        self.prevailed_at = Some(now);
        if self.contest.is_some() {
            self.claim_anew(shared, now);
        }
    }

    pub(super) fn contest_deadline(&self) -> Option<Instant> {
        self.contest.map(|contest| contest.heard + RIVAL_GONE)
    }

    /// The rival is gone, but hosts still send to it.
    pub(super) fn contest_timeout(&mut self, shared: &mut Shared, now: Instant) {
        if self.contest_deadline().is_some_and(|at| at <= now) {
            self.claim_anew(shared, now);
        }
    }

    /// Claims with an epoch above all that are known.
    pub(super) fn claim_anew(&mut self, shared: &mut Shared, now: Instant) {
        self.contest = None;
        self.epoch = shared.book.known(self.id()).epoch.saturating_add(1);
        shared.book.learn(self.id(), self.epoch, shared.settings.vtep);
        self.claim(shared, now);
        self.announce_all(shared);
        if let Some(vtep) = shared.settings.vtep {
            shared.emit(FromKeeper::Claimed { router: self.id(), epoch: self.epoch, vtep });
        }
    }
}
