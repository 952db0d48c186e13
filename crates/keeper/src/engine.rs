//! Every HA router copy of a host, without I/O or clock.
//!
//! Inputs are `handle_*`, and take the time last; outputs are [`Effect`]s, taken by
//! [`Engine::poll_effect`] after every input until there is none, and answered by
//! [`Engine::handle_opened`], [`Engine::handle_batch`] and [`Engine::handle_closed`] where they have an
//! outcome, at once or later ([`effect`]). Announcements are taken by [`Engine::poll_announcement`], a few at a time, when
//! there is nothing else to do. Then sleep until [`Engine::poll_timeout`].
//!
//! Packets that have arrived are handled before timers: they may be the very advertisements whose
//! absence a timer would report.
//!
//! Read [`copy`] for a router's life, [`mastership`] for how claims and VRRP fit together, [`health`] for when
//! an active copy gives the role away.

mod access;
mod agreement;
mod copy;
mod discards;
pub mod effect;
mod gateways;
mod handover;
mod health;
mod inquiry;
mod lateness;
mod ledger;
mod letters;
mod liveness;
mod mastership;
mod pacing;
mod paths;
mod shared;
mod spec;
#[cfg(test)]
mod tests;
mod transition;
mod wish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_kernel::rt::FoundPaths;
use evergate_model::{NetworkId, RouterId};
use tracing::{debug, info};

use crate::claims::book::Learned;
use crate::claims::question::Question;
use crate::claims::wire::{Entry, Kind, MAX_ENTRIES, Message};
use crate::protocol::{
    ClaimStatus, FollowSpec, FromKeeper, PROTOCOL_VERSION, Removal, RouterSpec, Settings, Status, ToKeeper,
};
use access::How;
use agreement::{circle, ended};
use copy::RouterCopy;
use effect::{Batch, Effect, Opened, Purpose, SocketRequest};
use shared::Shared;

/// What an engine starts with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Process id, for control.
    pub pid: u32,
    /// What the host did not permit, in words.
    pub notes: Vec<String>,
    /// Whether the loop runs at real-time priority.
    pub realtime: bool,
    /// Spreads what hosts do at the same time.
    pub seed: u64,
    /// How long there was no keeper, where that is known.
    pub away: Option<Duration>,
    /// The last keeper was restarted on purpose, and asked the other hosts for patience.
    pub was_excused: bool,
    /// The paths of forwarding entries that are in the kernel; `None` where it has no nexthop objects for them.
    pub paths: Option<FoundPaths>,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// A copy has something to do: advertise, take over, try again.
    Router(RouterId),
    /// A claim is to be sent.
    Claims,
    /// A BFD session has something to do.
    Bfd,
    /// Other hosts are to be asked for a sign of life, or did not give one.
    Agreement,
    /// What is in the kernel is set again.
    Patrol,
    /// Routers that moved have waited for others to move with them.
    Paths,
}

/// Within this time, everything that must be in the kernel is set again.
const PATROL: Duration = Duration::from_secs(60);
/// At least so long between two turns of that.
const PATROL_STEP: Duration = Duration::from_millis(100);

/// Where the patrol is.
#[derive(Debug, Default)]
struct Patrol {
    /// `None` while there is nothing to do.
    next: Option<Instant>,
    last: Option<RouterId>,
}

/// Every HA router copy of a host.
#[derive(Debug)]
pub struct Engine {
    start: Start,
    copies: BTreeMap<RouterId, RouterCopy>,
    /// Those of each HA network, by VRID: the lowest one's hears all VRIDs ([`Engine::enlist`]).
    by_network: BTreeMap<NetworkId, BTreeSet<(u8, RouterId)>>,
    shared: Shared,
    /// Each copy's next deadline, in order.
    deadlines: BTreeSet<(Instant, RouterId)>,
    deadline_of: BTreeMap<RouterId, Instant>,
    /// What control has mentioned since `Hello`; what it has not goes at `EndOfState`.
    mentioned: Option<Mentioned>,
    /// The end of control's state is still to be answered.
    status_owed: bool,
    /// Control speaks our version of the protocol.
    understood: bool,
    /// Removed routers whose sockets are still being closed.
    closing: BTreeSet<RouterId>,
    /// Routers that go as soon as another copy has taken over.
    removing: BTreeSet<RouterId>,
    /// Those of them that are handed over.
    handed_over: BTreeSet<RouterId>,
    /// Routers whose copies leave the election when another one has taken over, or nobody has.
    leaving: BTreeSet<RouterId>,
    /// Routers that are active here.
    actives: BTreeSet<RouterId>,
    patrol: Patrol,
    stopped: bool,
    /// The other hosts were told that this one stops.
    silent: bool,
    /// How often any copy had its turn, for tests: what concerns one router does not cost as much as all.
    #[cfg(test)]
    turns: usize,
}

#[derive(Debug, Default)]
struct Mentioned {
    routers: BTreeSet<RouterId>,
    follows: BTreeSet<RouterId>,
}

impl Engine {
    /// Makes an engine that knows nothing yet.
    pub fn new(mut start: Start, now: Instant) -> Self {
        let mut shared = Shared::new(start.seed, start.paths.take());
        shared.was_excused = start.was_excused;
        shared.away_since = start.away.and_then(|away| now.checked_sub(away));
        Self {
            start,
            copies: BTreeMap::new(),
            by_network: BTreeMap::new(),
            shared,
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            mentioned: None,
            status_owed: false,
            understood: false,
            closing: BTreeSet::new(),
            removing: BTreeSet::new(),
            handed_over: BTreeSet::new(),
            leaving: BTreeSet::new(),
            actives: BTreeSet::new(),
            patrol: Patrol::default(),
            stopped: false,
            silent: false,
            #[cfg(test)]
            turns: 0,
        }
    }

    /// Takes a message of control.
    pub fn handle_message(&mut self, message: ToKeeper, now: Instant) {
        match message {
            ToKeeper::Hello { version, settings } => self.handle_hello(version, settings, now),
            ToKeeper::Status => self.emit_status(),
            ToKeeper::Shutdown => self.handle_stop(now),
            _ if !self.understood => {}
            ToKeeper::Settings { settings } => self.handle_settings(settings, now),
            // It is to be in no election any more.
            ToKeeper::Router(_) if self.stopped => {}
            ToKeeper::Router(spec) => self.handle_router(*spec, now),
            ToKeeper::Vrids { network, vrids } => self.handle_vrids(network, vrids),
            ToKeeper::RemoveRouter { router, how } => self.remove_router(router, how, now),
            ToKeeper::Follow(follow) => self.handle_follow(follow, now),
            ToKeeper::Cede { router, entries } => self.shared.cede(router, &entries),
            ToKeeper::Unfollow { router } => self.unfollow(router),
            // Of no concern to mastership: `radv` hears them.
            ToKeeper::Advertise(_) | ToKeeper::CeaseAdvertising { .. } | ToKeeper::Unadvertise { .. } => {}
            ToKeeper::Server { reachable } => self.shared.agreement.post.open = reachable,
            ToKeeper::Letter { from, datagram } => self.handle_letter(from, &datagram, now),
            ToKeeper::EndOfState => self.handle_end_of_state(now),
        }
        self.attend_liveness(now);
        self.finish(now);
    }

    /// Says what is to be said to other hosts after an input.
    fn finish(&mut self, now: Instant) {
        self.end_removals(now);
        self.end_stop(now);
        self.ask_who_is_complete();
        self.attend_agreement(now);
        self.shared.flush_claims(now);
    }

    fn handle_hello(&mut self, version: u32, settings: Settings, now: Instant) {
        self.shared.emit(FromKeeper::Hello {
            version: PROTOCOL_VERSION,
            pid: self.start.pid,
            notes: self.start.notes.clone(),
        });
        self.understood = version == PROTOCOL_VERSION;
        if !self.understood {
            self.shared.warn(format!("control speaks protocol version {version}, this keeper {PROTOCOL_VERSION}"));
            return;
        }
        self.mentioned = Some(Mentioned::default());
        self.shared.syncing = true;
        self.handle_settings(settings, now);
    }

    fn handle_settings(&mut self, settings: Settings, now: Instant) {
        let health = self.shared.settings.health.clone();
        let moved = self.shared.set_settings(settings, now);
        if self.shared.settings.health != health {
            for router in self.copies.keys().copied().collect::<Vec<_>>() {
                // Gateways may be asked now that were not before.
                self.with(router, |copy, shared| {
                    copy.open_sockets(How::IfNew, shared);
                    copy.attend_health(shared, now);
                });
            }
        }
        if moved {
            // Claims name the tunnel address: what is active here is somewhere else now.
            let active: Vec<RouterId> =
                self.copies.values().filter(|copy| copy.is_active()).map(|copy| copy.id()).collect();
            for router in active {
                self.with(router, |copy, shared| copy.claim_anew(shared, now));
            }
        }
    }

    fn handle_router(&mut self, spec: RouterSpec, now: Instant) {
        let router = spec.router;
        // It is wanted again before it has gone.
        if self.removing.remove(&router) {
            self.with(router, |copy, _| copy.stay_after_all());
        }
        if let Some(mentioned) = &mut self.mentioned {
            mentioned.routers.insert(router);
        }
        let (epoch, known) = (spec.epoch, self.copies.contains_key(&router));
        let hosts = spec.peer_hosts.clone();
        let before = self.copies.get(&router).map(|copy| copy.spec.peer_hosts.clone()).unwrap_or_default();
        let place = self.copies.get(&router).map(RouterCopy::place);
        let concerned = circle(self.copies.get(&router));
        let taken = if known {
            let mut result = Ok(());
            self.with(router, |copy, shared| result = copy.update(spec, shared, now));
            result
        } else {
            RouterCopy::new(spec, &self.shared, now).map(|copy| {
                self.copies.insert(router, copy);
            })
        };
        match taken {
            Ok(()) => {
                self.shared.liveness.share(before.values(), hosts.values());
                self.shared.agreement.concern(&concerned, &circle(self.copies.get(&router)));
                self.start_patrol(now);
                self.learn(router, epoch, None, now);
                self.enlist(router, place);
                self.with(router, |copy, shared| copy.open_sockets(How::IfNew, shared));
            }
            Err(error) => {
                let stays = if known { "; what was configured before stays" } else { "" };
                self.shared.warn(format!("router {router} is refused: {error}{stays}"));
            }
        }
    }

    fn handle_vrids(&mut self, network: NetworkId, vrids: BTreeSet<u8>) {
        for (_, router) in self.by_network.get(&network).into_iter().flatten() {
            if let Some(copy) = self.copies.get_mut(router) {
                copy.know_vrids(&vrids);
            }
        }
        if vrids.is_empty() {
            self.shared.vrids.remove(&network);
        } else {
            self.shared.vrids.insert(network, vrids);
        }
    }

    /// Begins the removal of a router: an active copy is handed over first, where another one lives and is to
    /// go on.
    fn remove_router(&mut self, router: RouterId, how: Removal, now: Instant) {
        let end = match how {
            Removal::Leaves => return self.begin_removal(router, now),
            Removal::Remains if self.copies.get(&router).is_some_and(RouterCopy::holds) => RouterCopy::bequeath,
            Removal::Remains | Removal::Changes => RouterCopy::end,
        };
        self.removing.remove(&router);
        self.end_removal(router, end, now);
    }

    fn begin_removal(&mut self, router: RouterId, now: Instant) {
        if self.removing.contains(&router) {
            return;
        }
        let mut waits = false;
        self.with(router, |copy, shared| waits = !copy.leaving && copy.begin_leaving(shared, now));
        if waits {
            self.removing.insert(router);
        } else {
            self.end_removal(router, RouterCopy::remove, now);
        }
    }

    /// Removes what is to be removed and has been handed over.
    fn end_removals(&mut self, now: Instant) {
        for router in std::mem::take(&mut self.handed_over) {
            if !self.leaving.contains(&router) && self.removing.remove(&router) {
                self.end_removal(router, RouterCopy::remove, now);
            }
        }
    }

    fn end_removal(&mut self, router: RouterId, end: fn(RouterCopy, &mut Shared, Instant), now: Instant) {
        if let Some(copy) = self.copies.remove(&router) {
            let place = copy.place();
            self.shared.liveness.share(copy.spec.peer_hosts.values(), []);
            self.shared.agreement.concern(&circle(Some(&copy)), &BTreeSet::new());
            end(copy, &mut self.shared, now);
            self.closing.insert(router);
            self.reschedule(router);
            self.forget_if_unused(router);
            self.enlist(router, Some(place));
            self.pay_status();
        } else if !self.closing.contains(&router) {
            self.shared.emit(FromKeeper::Removed { router });
        }
    }

    /// Takes the answer to [`Effect::CloseSockets`]: nothing of the router pins its namespace any more.
    pub fn handle_closed(&mut self, router: RouterId) {
        self.closing.remove(&router);
        self.shared.emit(FromKeeper::Removed { router });
    }

    fn handle_follow(&mut self, follow: FollowSpec, now: Instant) {
        let (router, epoch, vtep) = (follow.router, follow.epoch, follow.vtep);
        if let Some(mentioned) = &mut self.mentioned {
            mentioned.follows.insert(router);
        }
        self.start_patrol(now);
        let entries = follow.entries.clone();
        let known = self.shared.book.known(router);
        let before = self.shared.follows.insert(router, follow);
        let same_entries = before.as_ref().is_some_and(|old| old.entries == entries);
        if let Some(old) = before {
            let gone: Vec<_> = old.entries.into_iter().filter(|old| !entries.contains(old)).collect();
            self.shared.remove_entries(router, &gone);
        }
        self.learn(router, epoch, vtep, now);
        // Also when nothing is new: control sends it again to repair.
        let moved = same_entries && self.shared.book.known(router) != known;
        if !moved && !self.copies.get(&router).is_some_and(RouterCopy::holds) {
            self.shared.apply_follow(router);
        }
    }

    fn unfollow(&mut self, router: RouterId) {
        if let Some(follow) = self.shared.follows.remove(&router) {
            self.shared.remove_entries(router, &follow.entries);
            self.shared.park(router);
        }
        self.forget_if_unused(router);
    }

    fn forget_if_unused(&mut self, router: RouterId) {
        if !self.is_relevant(router) {
            self.shared.book.forget(router);
        }
    }

    fn is_relevant(&self, router: RouterId) -> bool {
        self.copies.contains_key(&router) || self.shared.follows.contains_key(&router)
    }

    fn handle_end_of_state(&mut self, now: Instant) {
        if let Some(mentioned) = self.mentioned.take() {
            let unmentioned = |known: Vec<RouterId>, said: &BTreeSet<RouterId>| -> Vec<RouterId> {
                known.into_iter().filter(|router| !said.contains(router)).collect()
            };
            for router in unmentioned(self.copies.keys().copied().collect(), &mentioned.routers) {
                self.begin_removal(router, now);
            }
            for router in unmentioned(self.shared.follows.keys().copied().collect(), &mentioned.follows) {
                self.unfollow(router);
            }
        }
        self.end_sync(now);
        self.status_owed = true;
        self.pay_status();
    }

    /// Answers the end of control's state once every copy could look at its namespace: before that, nobody
    /// knows what is active here.
    fn pay_status(&mut self) {
        if self.status_owed && self.copies.values().all(RouterCopy::has_looked) {
            self.status_owed = false;
            self.emit_status();
        }
    }

    fn end_sync(&mut self, now: Instant) {
        self.shared.syncing = false;
        let unused = self.shared.paths.sweep();
        self.shared.effects.extend(unused.into_iter().map(Effect::RunBatch));
        for router in self.copies.keys().copied().collect::<Vec<_>>() {
            self.with(router, |copy, shared| copy.settle(shared, now));
        }
    }

    /// Control is gone. What it has said holds; an unfinished state is all there is to go by.
    pub fn handle_disconnected(&mut self, now: Instant) {
        self.mentioned = None;
        self.status_owed = false;
        self.understood = false;
        self.shared.agreement.post.open = false;
        self.end_sync(now);
        self.finish(now);
    }

    /// Takes the answer to [`Effect::OpenSockets`].
    pub fn handle_opened(
        &mut self,
        router: RouterId,
        request: &SocketRequest,
        opened: Result<Opened, String>,
        now: Instant,
    ) {
        self.with(router, |copy, shared| copy.handle_opened(request, opened, shared, now));
        self.pay_status();
        self.finish(now);
    }

    /// Takes what came of [`Effect::RunBatch`]: result i belongs to message i.
    pub fn handle_batch(&mut self, batch: &Batch, results: Vec<Result<(), String>>, now: Instant) {
        let router = batch.router;
        if batch.purpose == Purpose::Items && self.copies.contains_key(&router) {
            self.with(router, |copy, shared| copy.handle_batch(batch, results, shared, now));
            return self.finish(now);
        }
        // Forwarding entries are set again by the next claim or specification; of a removed router
        // nothing can be tried again.
        for ((what, action), result) in batch.steps.iter().zip(results) {
            if let Err(error) = result {
                self.shared.distrust(router);
                self.shared.warn(format!("router {router}: failed to {} {what}: {error}", action.verb()));
            }
        }
    }

    /// Takes a frame from a router's VRRP socket; tells whether it was an advertisement to this router.
    pub fn handle_frame(&mut self, router: RouterId, frame: &[u8], now: Instant) -> bool {
        let mut was_one = false;
        self.with(router, |copy, shared| was_one = copy.handle_frame(frame, shared, now));
        if was_one {
            self.finish(now);
        }
        was_one
    }

    /// Takes the state of a link in a router's namespace; `None`: it is gone.
    pub fn handle_link(&mut self, router: RouterId, ifindex: u32, up: Option<bool>, now: Instant) {
        self.with(router, |copy, shared| copy.handle_link(ifindex, up, shared, now));
        self.finish(now);
    }

    /// Takes the list of all links of a router's namespace, after changes of some were missed.
    pub fn handle_links(&mut self, router: RouterId, links: &BTreeMap<u32, bool>, now: Instant) {
        self.with(router, |copy, shared| copy.handle_links(links, shared, now));
        self.finish(now);
    }

    /// Takes a datagram from the claim socket.
    pub fn handle_claim(&mut self, datagram: &[u8], from: IpAddr, now: Instant) {
        let Some(key) = self.shared.key.clone() else { return };
        if Question::is_one(datagram) {
            self.handle_question(datagram, from, &key, now);
            return self.finish(now);
        }
        match Message::parse(datagram, from, &key) {
            Ok(message) => self.handle_claims(&message, now),
            Err(reason) => self.shared.discard(None, &reason.to_string(), || from.to_string()),
        }
        self.finish(now);
    }

    fn handle_claims(&mut self, message: &Message, now: Instant) {
        self.hear_host(message.sender, now);
        let mut answers = Vec::new();
        for entry in &message.entries {
            if message.kind == Kind::Ack {
                self.shared.outbox.acknowledged(message.sender, entry.router, entry.epoch, now);
            }
            // A router that control has not told of yet is not acknowledged, so the claim comes again.
            if !self.is_relevant(entry.router) {
                continue;
            }
            self.learn(entry.router, entry.epoch, entry.vtep, now);
            if message.kind == Kind::Ack {
                self.with(entry.router, |copy, shared| {
                    copy.answered(message.sender, shared, now);
                    copy.settled_with(message.sender, shared, now);
                });
            } else {
                if entry.epoch < self.shared.book.known(entry.router).epoch && message.kind == Kind::Repeat {
                    self.correct(message.sender, entry.router);
                }
                let known = self.shared.book.known(entry.router);
                if known.vtep == Some(message.sender) {
                    self.with(entry.router, |copy, shared| copy.heard_claim(message.sender, shared, now));
                }
                answers.push(Entry { router: entry.router, epoch: known.epoch, vtep: known.vtep });
            }
        }
        if message.kind == Kind::Claim && !answers.is_empty() {
            self.acknowledge(message.sender, answers);
        }
    }

    fn acknowledge(&mut self, to: IpAddr, entries: Vec<Entry>) {
        debug_assert!(entries.len() <= MAX_ENTRIES, "a claim has no more");
        if let (Some(key), Some(sender)) = (&self.shared.key, self.shared.settings.vtep) {
            let datagram = Message { kind: Kind::Ack, sender, entries }.emit(key);
            let to = std::net::SocketAddr::new(to, self.shared.settings.claim_port);
            self.shared.effects.push_back(Effect::SendClaim { to, datagram });
        }
    }

    /// Learns where a router is, from whomever, and lets an active copy know if it is elsewhere.
    fn learn(&mut self, router: RouterId, epoch: u64, vtep: Option<IpAddr>, now: Instant) {
        let copy = self.copies.get(&router);
        let (active, holds) = (copy.is_some_and(RouterCopy::is_active), copy.is_some_and(RouterCopy::holds));
        let before = self.shared.book.known(router).vtep;
        let learned = self.shared.learn((router, epoch, vtep), holds, now);
        // The one that had it may not hear of it by any other way.
        if let Some(host) = ended(before, learned, vtep) {
            self.correct(host, router);
        }
        if active && learned != Learned::Nothing {
            let mut known = self.shared.book.known(router);
            if learned == Learned::Conflict {
                known.vtep = vtep;
            }
            self.with(router, |copy, shared| copy.superseded(known, shared, now));
        }
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some((due, timer)) = self.poll_timeout().filter(|(due, _)| *due <= now) {
            let late = now - due;
            if self.shared.lateness.note(late, now) {
                debug!(?timer, ?late, "a timer was later than ever before");
            }
        }
        // Each copy once: a copy whose new deadline is already past waits for the next turn.
        let mut due: Vec<RouterId> =
            self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, router)| *router).collect();
        let advertising = self.gather(&mut due, now);
        for router in due {
            self.with(router, |copy, shared| copy.handle_timeout(shared, now));
        }
        self.disperse(&advertising, now);
        self.shared.go_alone(now);
        self.patrol_if_due(now);
        self.shared.liveness.handle_timeout(now);
        self.attend_liveness(now);
        self.finish(now);
    }

    /// Sets again what must be in the kernel, a few routers at a time: what somebody else removed, or a
    /// device lost as it left its bridge, is back within [`PATROL`]. Control leaves all this to us.
    fn patrol_if_due(&mut self, now: Instant) {
        if self.patrol.next.is_none_or(|next| now < next) {
            return;
        }
        if self.copies.is_empty() && self.shared.follows.is_empty() {
            self.patrol = Patrol::default();
            return;
        }
        let mut routers: BTreeSet<RouterId> = self.copies.keys().copied().collect();
        routers.extend(self.shared.follows.keys());
        let step = PATROL_STEP.max(PATROL / (routers.len() as u32).max(1));
        let share = (routers.len() as u128 * step.as_millis()).div_ceil(PATROL.as_millis()) as usize;
        let after = self.patrol.last.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<RouterId> = routers.range((after, Bound::Unbounded)).take(share).copied().collect();
        // At the end, it begins again with the next step.
        self.patrol = Patrol { next: Some(now + step), last: turn.last().copied() };
        for router in turn {
            if self.copies.get(&router).is_some_and(RouterCopy::holds) {
                self.with(router, |copy, shared| copy.repair(shared));
            } else {
                self.shared.apply_follow(router);
            }
        }
    }

    /// Tells when to call `handle_timeout`, and for what.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let router = self.deadlines.first().map(|&(at, router)| (at, Timer::Router(router)));
        let claims = self.shared.outbox.next_due().map(|at| (at, Timer::Claims));
        let patrol = self.patrol.next.map(|at| (at, Timer::Patrol));
        let bfd = self.shared.liveness.poll_timeout().map(|at| (at, Timer::Bfd));
        let paths = self.shared.paths.poll_timeout().map(|at| (at, Timer::Paths));
        let agreement = self.agreement_timeout().map(|at| (at, Timer::Agreement));
        [router, claims, patrol, bfd, paths, agreement].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Takes the next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.shared.effects.pop_front()
    }

    /// Hands everything over, or resigns it where nobody takes it in time, and undoes what is in the kernel;
    /// [`is_stopped`](Self::is_stopped) once that is done.
    pub fn handle_stop(&mut self, now: Instant) {
        if !self.stopped {
            info!("stopping: every active router is handed over");
            self.stopped = true;
            for router in self.copies.keys().copied().collect::<Vec<_>>() {
                self.with(router, |copy, shared| copy.leave(shared, now));
            }
            self.finish(now);
        }
    }

    /// Whether nothing remains but to carry out the effects and to leave.
    pub fn is_stopped(&self) -> bool {
        let is_done = |copy: &RouterCopy| copy.waiting.is_over() && !copy.leaving && copy.lingering.is_none();
        self.stopped && self.closing.is_empty() && self.copies.values().all(is_done)
    }

    /// A router's copy is new, gone, or elsewhere than it was: on another HA network, or under another VRID.
    ///
    /// The copy with the lowest VRID of each HA network here hears all VRIDs, so that a foreign one is
    /// noticed without every copy waking up for every advertisement.
    fn enlist(&mut self, router: RouterId, before: Option<(NetworkId, u8)>) {
        let after = self.copies.get(&router).map(RouterCopy::place);
        if before == after {
            return;
        }
        let networks: BTreeSet<NetworkId> = before.into_iter().chain(after).map(|(network, _)| network).collect();
        let mut concerned: BTreeSet<RouterId> = networks.iter().filter_map(|one| self.sentinel_of(*one)).collect();
        if let Some((network, vrid)) = before
            && let Some(members) = self.by_network.get_mut(&network)
        {
            members.remove(&(vrid, router));
            if members.is_empty() {
                self.by_network.remove(&network);
            }
        }
        if let Some((network, vrid)) = after {
            self.by_network.entry(network).or_default().insert((vrid, router));
        }
        concerned.extend(networks.iter().filter_map(|one| self.sentinel_of(*one)));
        for router in concerned {
            let Some((network, _)) = self.copies.get(&router).map(RouterCopy::place) else { continue };
            let appointed = self.sentinel_of(network) == Some(router);
            self.with(router, |copy, shared| {
                if std::mem::replace(&mut copy.sentinel, appointed) != appointed {
                    copy.open_sockets(How::IfNew, shared);
                }
            });
        }
    }

    fn sentinel_of(&self, network: NetworkId) -> Option<RouterId> {
        self.by_network.get(&network)?.first().map(|(_, router)| *router)
    }

    fn emit_status(&mut self) {
        let status = self.status();
        self.shared.emit(FromKeeper::Status(status));
    }

    /// All that the engine knows.
    pub fn status(&self) -> Status {
        let claims = self.shared.book.iter();
        let mut discards = self.shared.discards.counters().clone();
        discards.extend(self.shared.liveness.discards().map(|(reason, count)| (reason.to_owned(), count)));
        Status {
            routers: self.copies.values().map(|copy| copy.status(&self.shared)).collect(),
            discards,
            worst_lateness_us: self.shared.lateness.worst_ever().as_micros() as u64,
            realtime: self.start.realtime,
            claims: claims
                .map(|(router, known)| ClaimStatus { router, epoch: known.epoch, vtep: known.vtep })
                .collect(),
            bfd: self.shared.liveness.status(),
            // Added by the thread that knows of it.
            replication: Vec::new(),
        }
    }

    fn with(&mut self, router: RouterId, act: impl FnOnce(&mut RouterCopy, &mut Shared)) {
        if let Some(copy) = self.copies.get_mut(&router) {
            act(copy, &mut self.shared);
            #[cfg(test)]
            {
                self.turns += 1;
            }
        }
        self.reschedule(router);
    }

    fn start_patrol(&mut self, now: Instant) {
        self.patrol.next.get_or_insert(now + PATROL);
    }

    fn reschedule(&mut self, router: RouterId) {
        if self.copies.get(&router).is_some_and(RouterCopy::is_active) {
            self.actives.insert(router);
        } else {
            self.actives.remove(&router);
        }
        if self.copies.get(&router).is_some_and(|copy| copy.leaving) {
            self.leaving.insert(router);
        } else if self.leaving.remove(&router) {
            self.handed_over.insert(router);
        }
        let next = self.copies.get(&router).and_then(RouterCopy::deadline);
        let before = match next {
            Some(at) => self.deadline_of.insert(router, at),
            None => self.deadline_of.remove(&router),
        };
        if before != next {
            before.map(|at| self.deadlines.remove(&(at, router)));
            next.map(|at| self.deadlines.insert((at, router)));
        }
    }
}
