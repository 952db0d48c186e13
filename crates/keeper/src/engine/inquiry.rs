//! A copy that would take over, and asks whether it may.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_vrrp::agreement::{Answer, Inquiry, Stay, Verdict};
use tracing::debug;

use super::agreement::WITNESSES;
use super::copy::RouterCopy;
use super::shared::Shared;

/// How soon a copy that was cut off asks again.
const ALONE: Duration = Duration::from_secs(1);

/// Why a copy that hears nobody on the HA network stays standby, as the operator was told.
pub(super) type Kept = Option<Stay>;

impl RouterCopy {
    /// VRRP would take over from silence.
    pub(super) fn takeover_due(&mut self, active: Option<IpAddr>, shared: &mut Shared, now: Instant) {
        if self.inquiry.is_none() {
            let known = shared.book.known(self.id()).vtep.filter(|vtep| Some(*vtep) != shared.settings.vtep);
            let suspect = active.and_then(|address| self.host_of(address)).or(known);
            if let Some(until) = suspect.and_then(|host| shared.liveness.excused_until(host, now)) {
                debug!(router = %self.id(), ?suspect, "it is being restarted: its silence is no failure yet");
                return self.vrrp.handle_refusal(active, Some(until - now), now);
            }
            let seen = suspect.is_some_and(|host| shared.liveness.is_up(host));
            self.inquire(suspect, seen, shared, now);
            self.expect_answer_by_server(shared);
        }
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.handle_due();
        }
        self.decide(shared, now);
    }

    /// Begins to ask. `seen`: the suspect was heard on another path after it fell silent on this one.
    pub(super) fn inquire(&mut self, suspect: Option<IpAddr>, seen: bool, shared: &Shared, now: Instant) {
        // A copy that was cut off remains so until somebody is heard, however long ago others were; and then
        // another one is likely to serve.
        let cut_off = self.kept == Some(Stay::Isolated) && !self.spec.claim_to.is_empty();
        let company = cut_off || shared.agreement.company.has_others(suspect, now);
        let (company, seen) = (company && shared.can_ask(), (seen || cut_off) && shared.can_ask());
        let mut inquiry = Inquiry::ask(shared.rules(now), suspect, company, seen, now);
        shared.tell_sign_by_server(&mut inquiry);
        self.inquiry = Some(inquiry);
    }

    /// A host has said whether it is active.
    pub(super) fn handle_answer(&mut self, answer: Answer, shared: &mut Shared, now: Instant) {
        let told = shared.book.known(self.id()).vtep.filter(|vtep| Some(*vtep) != shared.settings.vtep);
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.handle_answer(answer, now);
            if let Some(host) = told {
                inquiry.handle_hint(host, now);
            }
            self.decide(shared, now);
            self.drain(shared, now);
        }
    }

    /// Asks, and acts upon what is known by now. The caller drains.
    pub(super) fn decide(&mut self, shared: &mut Shared, now: Instant) {
        if !self.vrrp.is_in_doubt() {
            // It was heard on the HA network meanwhile, or has resigned.
            self.inquiry = None;
            return;
        }
        let hosts = self.hosts_to_ask(shared);
        let Some(inquiry) = &mut self.inquiry else { return };
        if inquiry.take_question(now) && shared.can_ask() {
            shared.ask(hosts, inquiry.suspect(), Some(self.spec.router));
        }
        let Some(verdict) = inquiry.verdict(now) else { return };
        self.inquiry = None;
        debug!(router = %self.id(), ?verdict, "asked whether to take over");
        match verdict {
            Verdict::TakeOver => {
                self.kept = None;
                self.vrrp.handle_permission(now);
            }
            Verdict::Stay(why) => self.stay(why, shared, now),
        }
    }

    fn stay(&mut self, why: Stay, shared: &mut Shared, now: Instant) {
        if self.kept.replace(why) != Some(why) {
            let text = format!("router {}: {}", self.id(), in_words(why));
            self.note(text.clone(), shared);
            shared.warn(text);
        }
        let (active, again) = match why {
            // Its death would be noticed by BFD; without, what is heard on other paths is all there is.
            Stay::Lives(host) if !shared.liveness.is_on() || shared.liveness.is_up(host) => {
                (self.address_of(host), None)
            }
            Stay::Lives(host) => (self.address_of(host), Some(shared.quiet_and_patience().0)),
            Stay::Isolated => (None, Some(ALONE)),
        };
        self.vrrp.handle_refusal(active, again, now);
    }

    /// The other copies' hosts, the suspect among them, and a few more hosts of the router's networks.
    fn hosts_to_ask(&mut self, shared: &Shared) -> BTreeSet<IpAddr> {
        let mut hosts: BTreeSet<IpAddr> = self.spec.peer_hosts.values().copied().collect();
        hosts.extend(self.inquiry.as_ref().and_then(Inquiry::suspect));
        // Those that were heard last are the likeliest to answer.
        let last = |host: &&IpAddr| shared.agreement.company.last_heard(**host);
        let mut others: Vec<&IpAddr> = self.spec.claim_to.iter().filter(|host| !hosts.contains(host)).collect();
        others.sort_by_key(|host| std::cmp::Reverse(last(host)));
        let witnesses: Vec<IpAddr> = others.into_iter().take(WITNESSES).copied().collect();
        hosts.extend(witnesses);
        hosts
    }

    /// An advertisement was received: the HA network works.
    pub(super) fn heard_again(&mut self, shared: &mut Shared) {
        if self.kept.take().is_some() {
            self.note("the active copy is heard on the HA network again".to_owned(), shared);
        }
    }

    /// A host says itself that its copy is active, and none is known to be since. To a copy that has heard of nobody since
    /// it was cut off, or was started, that is as good as an advertisement: it knows whose silence concerns it.
    pub(super) fn heard_claim(&mut self, host: IpAddr, shared: &mut Shared, now: Instant) {
        let Some(address) = self.address_of(host) else { return };
        if self.vrrp.handle_word_of(address, now) {
            self.inquiry = None;
            if self.kept.take().is_some() {
                self.note(format!("{host} says that it has the active copy"), shared);
            }
            self.drain(shared, now);
        }
    }

    /// This host reaches nobody any more. What had company while it served, has lost it, and gives up; what
    /// became active without any has nothing to conclude from.
    pub(super) fn handle_isolation(&mut self, last: Option<Instant>, shared: &mut Shared, now: Instant) {
        let had_company = last.is_some_and(|last| last >= self.active_since);
        if had_company && !shared.settings.serve_alone {
            self.vrrp.handle_isolation(now);
            self.kept = Some(Stay::Isolated);
            self.drain(shared, now);
        }
    }

    /// The active asks this copy to take over: it goes on until it hears that this is done.
    pub(super) fn take_over(&mut self, shared: &mut Shared, now: Instant) {
        self.inquiry = None;
        self.vrrp.handle_handover(now);
        self.drain(shared, now);
    }

    /// Whether the copy with this HA address is known to have a successor on a third host. What it said as it was
    /// cut off, its resignation at last, may be kept on the way and arrive when the cut heals: its successor serves.
    pub(super) fn is_superseded(&self, address: IpAddr, shared: &Shared) -> bool {
        let known = shared.book.known(self.id()).vtep.filter(|vtep| Some(*vtep) != shared.settings.vtep);
        matches!((self.host_of(address), known), (Some(host), Some(active)) if host != active)
    }

    /// The host of the copy with an HA address.
    pub(super) fn host_of(&self, address: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(address) = address else { return None };
        self.spec.peer_hosts.get(&address).copied()
    }

    /// What the operator should know of this copy at the moment; empty if there is nothing.
    pub(super) fn problem(&self) -> String {
        self.kept.map(in_words).unwrap_or_default()
    }
}

fn in_words(why: Stay) -> String {
    match why {
        Stay::Lives(host) => format!(
            "the active copy on {host} is not heard on the HA network, but says by another way that it serves: is the \
             HA network or the way to that host cut? The router stays where it is"
        ),
        Stay::Isolated => "no other host answers, although others did before: this host is cut off, and leaves the \
                           router to the others (isolation_policy)"
            .to_owned(),
    }
}
