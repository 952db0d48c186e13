//! Epochs and claims of a copy: what it says when it becomes active, and what it does when another host
//! says the same.
//!
//! VRRP decides who is active; claims tell every host of it. Invariant: whoever stays active ends up
//! with the highest epoch, so forwarding everywhere ends up pointing at it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_vrrp::router::Reason;

use super::copy::RouterCopy;
use super::shared::Shared;
use crate::claims::book::Known;
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

impl RouterCopy {
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
