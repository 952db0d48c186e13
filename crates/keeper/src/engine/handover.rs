//! A planned move: the next copy is ready before this one stops.
//!
//! The active asks another copy's host to take over. That one asks back whether it is still to, since a request may
//! have waited on the way, or been recorded, and have failed or been withdrawn meanwhile; then it becomes active with
//! the next epoch, and claims the router when its kernel holds the addresses. Only that claim makes this copy step
//! down. All copies share one
//! MAC address per port, so for a moment both may hold them. After the claim this copy goes on forwarding for
//! [`LINGER`]: other hosts hear of the claim at about the same time, and what they sent here until then is on
//! its way.
//!
//! Connections go on if the other copy's kernel holds them, so the one that is asked is one that was told of all of
//! them. A standby that joined lately may not have been yet: it is waited for, for [`COMPLETION`]. Nor is one that was
//! just started sure to live: BFD needs a second. Where no other host is, one that was heard lately is waited for, for
//! [`COMING`]: in a rolling restart the next host is stopped while the one before is not quite back. Waiting costs
//! nobody anything, since this copy goes on meanwhile; but whoever stops or removes it does not wait for ever
//! ([`WHOLE`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use super::Engine;
use super::copy::RouterCopy;
use super::effect::Effect;
use super::shared::Shared;
use crate::claims::question::{Kind, Question};
use crate::claims::wire::Entry;
#[cfg(doc)]
use crate::protocol::STOP_PATIENCE;

/// How long a copy goes on after another one has claimed the router: four sendings of that claim (the last 140 ms
/// after the first), and as long again, because a busy host's kernel follows later than its keeper hears. With
/// 80 ms, a host whose processors were taken lost 30 ms of traffic once.
const LINGER: Duration = Duration::from_millis(300);
/// A request may be lost.
const AGAIN: Duration = Duration::from_millis(50);
/// How long what a host has just confirmed is still true: less than it is patient ([`PATIENCE`]), and more than two busy
/// hosts need for a question and its answer.
const CONFIRMED: Duration = Duration::from_millis(300);
/// How long one host is given before the next is asked. Its kernel may be busy.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait for a copy that holds all connections. A drain or a stop waits for it.
const COMPLETION: Duration = Duration::from_secs(4);
/// How long to wait for one where no other host is known to live, but some were heard lately: a host needs a few
/// seconds from its start until it holds all connections. Then those are asked, since it may be BFD alone that does not
/// pass.
const COMING: Duration = Duration::from_secs(6);
/// How long all of this takes at most, however many hosts do not take the role. With [`LINGER`] and seconds for the
/// kernel, which then undoes everything, it is less than a stopping process has ([`STOP_PATIENCE`]), and less than what
/// control gives a router's removal (10 s).
const WHOLE: Duration = Duration::from_secs(8);
/// A host that was heard this lately is worth asking where BFD does not say, and worth waiting for where it does.
const LATELY: Duration = Duration::from_secs(12);

/// Another copy is being asked to take over.
#[derive(Debug)]
pub(super) struct Handover {
    /// Hosts that may be asked once they are known to live, the best last.
    candidates: Vec<IpAddr>,
    /// Those that are.
    living: BTreeSet<IpAddr>,
    /// Those whose kernels hold the router's connections, as last heard.
    complete: BTreeSet<IpAddr>,
    /// Until when only those are asked.
    patient_until: Instant,
    /// Until when anybody is.
    until: Instant,
    /// Who is being asked, and until when.
    asked: Option<(IpAddr, Instant)>,
    again: Instant,
    /// The role is wanted at the one candidate, and stays here if that one cannot have it.
    wished: bool,
    /// Connections are replicated.
    replicates: bool,
    /// Somebody was asked.
    asked_once: bool,
}

impl Handover {
    /// Gives up a host that did not take the router over in time. While there is time, it comes last: it may have
    /// been started so lately that its copy takes no part yet.
    fn end_patience(&mut self, now: Instant) {
        if self.until <= now {
            self.asked = None;
            self.candidates.clear();
        }
        if let Some((host, _)) = self.asked.take_if(|(_, until)| *until <= now) {
            self.candidates.retain(|candidate| *candidate != host);
            if now < self.patient_until && !self.wished {
                self.candidates.insert(0, host);
            }
            if self.replicates {
                // What was heard before is old.
                self.complete.clear();
            }
            self.again = now;
        }
        if self.asked.is_some() || now < self.patient_until {
            return;
        }
        if !self.living.is_empty() {
            self.candidates.retain(|host| self.living.contains(host));
        }
        if self.wished && !self.candidates.iter().any(|host| self.complete.contains(host)) {
            self.candidates.clear();
        }
    }

    /// Chooses whom to ask, where nobody is being asked; `None` while that is to be waited for.
    fn choose(&mut self, now: Instant) -> Option<IpAddr> {
        if self.asked.is_none() {
            let is_ready = |host: &&IpAddr| self.living.contains(*host) && self.complete.contains(*host);
            let complete = self.candidates.iter().rfind(is_ready);
            let any = self.candidates.last().filter(|_| self.patient_until <= now);
            self.asked = complete.or(any).map(|host| (*host, now + PATIENCE));
        }
        self.asked.map(|(host, _)| host)
    }

    fn deadline(&self) -> Instant {
        let asked = self.asked.map_or(self.again, |(_, until)| self.again.min(until));
        asked.min(self.until)
    }
}

impl RouterCopy {
    /// Begins to hand the role over; false if there is nobody to take it.
    pub(super) fn hand_over(&mut self, shared: &Shared, now: Instant) -> bool {
        // The highest address is the next in an election, too.
        let hosts = self.spec.peer_hosts.values().copied();
        let candidates =
            hosts.filter(|host| lives(*host, shared, now) || is_heard_lately(*host, shared, now)).collect();
        self.begin_handover(candidates, false, shared, now)
    }

    /// Begins to hand the role over to one host; false if that cannot take it.
    pub(super) fn hand_over_to(&mut self, host: IpAddr, shared: &Shared, now: Instant) -> bool {
        let has_copy = self.spec.peer_hosts.values().any(|one| *one == host);
        let candidates = if has_copy && lives(host, shared, now) { vec![host] } else { Vec::new() };
        self.begin_handover(candidates, true, shared, now)
    }

    fn begin_handover(&mut self, candidates: Vec<IpAddr>, wished: bool, shared: &Shared, now: Instant) -> bool {
        if candidates.is_empty() || !self.is_active() || !shared.can_ask() {
            return false;
        }
        let replicates = shared.settings.replication_port.is_some();
        let some_live = candidates.iter().any(|host| lives(*host, shared, now));
        let patience = match (some_live, replicates) {
            (false, _) => COMING,
            (true, true) => COMPLETION,
            (true, false) => Duration::ZERO,
        };
        // Where nothing is replicated, there is nothing to lack.
        let complete = if replicates { BTreeSet::new() } else { candidates.iter().copied().collect() };
        self.handover = Some(Handover {
            candidates,
            living: BTreeSet::new(),
            complete,
            patient_until: now + patience,
            until: now + WHOLE,
            asked: None,
            again: now,
            wished,
            replicates,
            asked_once: false,
        });
        true
    }

    /// Leaves the election for good, without an interruption if another copy can take over.
    pub(super) fn leave(&mut self, shared: &mut Shared, now: Instant) {
        if !self.begin_leaving(shared, now) {
            self.stop(shared, now);
        }
    }

    /// Begins to leave the election; false if there is nothing to wait for.
    pub(super) fn begin_leaving(&mut self, shared: &mut Shared, now: Instant) -> bool {
        self.leaving = self.hand_over(shared, now) || self.lingering.is_some();
        if self.leaving {
            self.attend_handover(shared, now);
        }
        self.leaving
    }

    /// It is not to leave any more. Another copy may take over all the same that was told so a moment ago.
    pub(super) fn stay_after_all(&mut self) {
        (self.leaving, self.handover) = (false, None);
    }

    /// Sends what is due, and ends what is over.
    pub(super) fn attend_handover(&mut self, shared: &mut Shared, now: Instant) {
        if self.lingering.is_some_and(|until| until <= now) {
            self.end_lingering(shared);
        }
        let active = self.is_active();
        let Some(handover) = self.handover.as_mut().filter(|_| active) else {
            self.handover = None;
            if self.leaving && self.lingering.is_none() {
                self.leaving = false;
                self.stop(shared, now);
            }
            return;
        };
        handover.living = handover.candidates.iter().copied().filter(|host| lives(*host, shared, now)).collect();
        handover.end_patience(now);
        if handover.candidates.is_empty() {
            if handover.wished && !handover.asked_once {
                self.wishing.lacks_connections(now);
            }
            if !handover.wished {
                shared.warn(format!("router {}: no other copy takes it over", self.spec.router));
            } else if self.wishing.is_first_refusal() {
                shared.warn(format!(
                    "router {}: the host where it is wanted does not take it over yet",
                    self.spec.router
                ));
            }
            self.handover = None;
            self.attend_handover(shared, now);
        } else if handover.again <= now {
            handover.again = now + AGAIN;
            let waited = handover.asked.is_none() && handover.patient_until <= now;
            match handover.choose(now) {
                Some(host) => {
                    handover.asked_once = true;
                    if waited && shared.settings.replication_port.is_some() && !handover.complete.contains(&host) {
                        shared.warn(format!(
                            "router {}: {host} is not known to hold all its connections",
                            self.spec.router
                        ));
                    }
                    self.vrrp.handle_offer();
                    // Nobody has asked whether it is so, but will.
                    shared.send_handover(host, 0, vec![self.handover_entry(shared)]);
                }
                // Whoever is complete is not asked before it is known to live.
                None if handover.living.is_empty() => {}
                None => drop(shared.incomplete.insert(self.id())),
            }
        }
    }

    /// Hears which hosts' kernels hold the router's connections.
    pub(super) fn handle_complete(&mut self, hosts: BTreeSet<IpAddr>, shared: &mut Shared, now: Instant) {
        let Some(handover) = &mut self.handover else { return };
        handover.complete = hosts;
        let askable = |host: &IpAddr| handover.complete.contains(host) && handover.living.contains(host);
        if handover.asked.is_none() && handover.candidates.iter().any(askable) {
            handover.again = now;
            self.attend_handover(shared, now);
        }
    }

    fn handover_entry(&self, shared: &Shared) -> Entry {
        Entry { router: self.id(), epoch: self.epoch, vtep: shared.settings.vtep }
    }

    /// Whether a host is to take over, if it asks.
    fn is_offered(&self, host: IpAddr, now: Instant) -> bool {
        let asked = self.handover.as_ref().and_then(|handover| handover.asked);
        self.is_active() && asked.is_some_and(|(asked, until)| asked == host && now < until)
    }

    /// The role is gone; tells whether the kernel is to be left as it is for a moment.
    pub(super) fn lingers(&mut self, now: Instant) -> bool {
        let handover = self.handover.take();
        let planned = handover.is_some();
        if handover.is_some_and(|handover| handover.wished) {
            self.wishing.fulfilled();
        }
        if planned {
            self.lingering = Some(now + LINGER);
        }
        planned
    }

    fn end_lingering(&mut self, shared: &mut Shared) {
        self.lingering = None;
        let batches = self.ledger.deactivate(shared.wanted(self.id()), &self.items);
        self.run(batches, shared);
        shared.apply_follow(self.id());
    }

    pub(super) fn handover_deadline(&self) -> Option<Instant> {
        let handover = self.handover.as_ref().map(Handover::deadline);
        handover.into_iter().chain(self.lingering).min()
    }
}

/// Whether a host can be asked for something.
fn lives(host: IpAddr, shared: &Shared, now: Instant) -> bool {
    if shared.liveness.is_on() { shared.liveness.is_up(host) } else { is_heard_lately(host, shared, now) }
}

fn is_heard_lately(host: IpAddr, shared: &Shared, now: Instant) -> bool {
    let heard = shared.agreement.company.last_heard(host);
    heard.is_some_and(|at| now.saturating_duration_since(at) < LATELY)
}

impl Shared {
    /// Asks a host to take routers over; `number`: of its question whether it is to.
    fn send_handover(&mut self, to: IpAddr, number: u64, entries: Vec<Entry>) {
        let Some(own) = self.settings.vtep else { return };
        self.send_question(
            to,
            &Question { kind: Kind::Handover, sender: own, origin: own, subject: to, number, entries },
        );
    }
}

impl Engine {
    /// A host that has the active copies of these routers wants this one to take over.
    pub(super) fn handle_handover(&mut self, handover: &Question, now: Instant) {
        let confirmed = self.shared.agreement.is_just_asked(handover.number, CONFIRMED, now);
        for entry in &handover.entries {
            let epoch = self.shared.book.known(entry.router).epoch;
            let has_copy = self.copies.contains_key(&entry.router);
            // A recorded request may be of an epoch that is over.
            if !has_copy || entry.epoch < epoch || entry.vtep != Some(handover.sender) {
                continue;
            }
            if confirmed {
                self.learn(entry.router, entry.epoch, entry.vtep, now);
                self.with(entry.router, |copy, shared| copy.take_over(shared, now));
            } else {
                self.shared.agreement.ask_alone(handover.sender, entry.router);
            }
        }
    }

    /// A host asks about routers: it is told which of them it is to take over, if any.
    pub(super) fn confirm_handovers(&mut self, question: &Question, now: Instant) {
        let to = question.origin;
        let offered = |entry: &Entry| {
            let copy = self.copies.get(&entry.router).filter(|copy| copy.is_offered(to, now))?;
            Some(copy.handover_entry(&self.shared))
        };
        let entries: Vec<Entry> = question.entries.iter().filter_map(offered).collect();
        if question.sender == to && !entries.is_empty() {
            self.shared.send_handover(to, question.number, entries);
        }
    }

    /// Takes the answer to [`Effect::AskWhoIsComplete`]: the hosts that were told of all connections of each router.
    pub fn handle_complete(&mut self, complete: BTreeMap<RouterId, BTreeSet<IpAddr>>, now: Instant) {
        for (router, hosts) in complete {
            self.with(router, |copy, shared| copy.handle_complete(hosts, shared, now));
        }
        self.finish(now);
    }

    /// Asks for all copies at once whose connections are held where.
    pub(super) fn ask_who_is_complete(&mut self) {
        let routers = std::mem::take(&mut self.shared.incomplete);
        if !routers.is_empty() {
            self.shared.effects.push_back(Effect::AskWhoIsComplete(routers));
        }
    }

    /// Takes the host out of all elections once nothing is being handed over any more.
    pub(super) fn end_stop(&mut self, now: Instant) {
        if self.stopped && !self.silent && self.leaving.is_empty() {
            self.silent = true;
            self.shared.liveness.handle_stop(now);
            self.attend_liveness(now);
        }
    }
}
