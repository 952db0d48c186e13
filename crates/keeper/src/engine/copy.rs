//! One router's copy on this host: the VRRP engine, what it has put into the kernel, and its epoch.
//!
//! A copy takes part in the election while its sockets are open, its HA interface is up and control has
//! said that everything it needs is in place ([`Hindrance`]). What VRRP decides is carried out here.
//! How claims and VRRP fit together is decided in [`mastership`](super::mastership).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use evergate_model::{HaState, RouterId};
use evergate_vrrp::router::{Output, Reason, State, VirtualRouter};
use evergate_vrrp::{announce, wire};
use tracing::{debug, info};

use super::discards::sender_of;
use super::effect::{Batch, Effect, Opened, SocketRequest};
use super::ledger::Ledger;
use super::mastership::Contest;
use super::shared::Shared;
use super::spec::{self, Prepared, SpecError};
use crate::protocol::{Announce, FromKeeper, Place, RouterSpec, RouterStatus, Transition};

/// How long addresses that were found in the kernel are kept while the copy cannot take part: control
/// that restarts together with the keeper has said by then that the router is in place.
const KEEP_FOUND: Duration = Duration::from_secs(10);
/// A new router's first advertisement may be faster than the server's word of its VRID. Advertisements of
/// a VRID that is still unknown this long after the first are told of.
const STRANGER: Duration = Duration::from_secs(10);
/// Link events come in bunches (a veth's two ends, down and up): one repair serves them all.
const REPAIR_DELAY: Duration = Duration::from_millis(20);
/// New addresses are announced once more after this, as a single frame can be lost.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);
/// First and longest pause before sockets that could not be opened are tried again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// One router's copy.
#[derive(Debug)]
pub(super) struct RouterCopy {
    pub(super) spec: RouterSpec,
    items: Vec<Prepared>,
    pub(super) vrrp: VirtualRouter,
    pub(super) ledger: Ledger,
    sockets: Sockets,
    /// Whether this copy was active before the process started, which is decided upon once.
    past: Past,
    /// Receives all VRIDs, because it has the lowest on its HA network here.
    pub(super) sentinel: bool,
    /// When a sentinel first heard each unknown VRID.
    strangers: BTreeMap<u8, Instant>,
    /// The epoch it last became active with.
    pub(super) epoch: u64,
    /// Another host claims the router while this copy is active.
    pub(super) contest: Option<Contest>,
    /// When VRRP last decided a contest for this copy.
    pub(super) prevailed_at: Option<Instant>,
    reported: Option<HaState>,
    settling: Option<Settling>,
    /// Whether each link of the namespace is up, by index.
    links: BTreeMap<u32, bool>,
    repair: Option<(Instant, BTreeSet<u32>)>,
    announce_again: Option<(Instant, Vec<Announce>)>,
    heard_from: Option<Ipv4Addr>,
    sent: u64,
    received: u64,
}

#[derive(Debug)]
enum Sockets {
    /// Not asked for yet.
    None,
    /// Asked for, not answered yet.
    Asked(SocketRequest),
    Open(SocketRequest),
    Failed {
        error: String,
        retry_at: Instant,
        pause: Duration,
    },
}

/// What the kernel says of the time before the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Not looked yet.
    Unknown,
    /// The virtual address was there: an earlier keeper was active, or was killed half-way.
    Found { until: Instant },
    /// Nothing was there.
    Nothing,
    /// It was decided upon: adopted or cleaned up.
    Settled,
}

/// Why a copy takes no part in the election.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hindrance {
    Syncing,
    NotReady,
    Sockets(String),
    LinkDown,
}

/// A transition whose prepared messages are on their way.
#[derive(Debug)]
struct Settling {
    transition: Transition,
    since: Instant,
    batches: usize,
}

impl RouterCopy {
    pub(super) fn new(spec: RouterSpec) -> Result<Self, SpecError> {
        let config = spec::config(&spec)?;
        let items = spec::prepare(&spec.items)?;
        Ok(Self {
            items,
            vrrp: VirtualRouter::new(config),
            ledger: Ledger::default(),
            sockets: Sockets::None,
            past: Past::Unknown,
            sentinel: false,
            strangers: BTreeMap::new(),
            epoch: 0,
            contest: None,
            prevailed_at: None,
            reported: None,
            settling: None,
            links: BTreeMap::new(),
            repair: None,
            announce_again: None,
            heard_from: None,
            sent: 0,
            received: 0,
            spec,
        })
    }

    pub(super) fn is_active(&self) -> bool {
        self.vrrp.state() == State::Active
    }

    pub(super) fn id(&self) -> RouterId {
        self.spec.router
    }

    /// Takes a new specification of the same router.
    pub(super) fn update(&mut self, spec: RouterSpec, shared: &mut Shared, now: Instant) -> Result<(), SpecError> {
        let config = spec::config(&spec)?;
        self.items = spec::prepare(&spec.items)?;
        let old = std::mem::replace(&mut self.spec, spec);
        self.strangers.retain(|vrid, _| !self.spec.network_vrids.contains(vrid));
        if *self.vrrp.config() != config {
            self.vrrp.handle_config(config, now);
            self.drain(shared, now);
        }
        self.open_sockets(shared);
        if self.is_active() {
            // Everything again, not only what is new: control also sends a specification to repair.
            let batches = self.ledger.update(self.id(), &self.items);
            self.run(batches, shared);
            self.announce_new(&old.announce, shared, now);
            shared.claim(self.id(), self.epoch, &self.spec.claim_to, now);
        }
        self.settle(shared, now);
        Ok(())
    }

    fn announce_new(&mut self, old: &[Announce], shared: &mut Shared, now: Instant) {
        let new: Vec<Announce> = self.spec.announce.iter().filter(|one| !old.contains(one)).cloned().collect();
        if !new.is_empty() {
            self.announce(&new, shared);
            self.announce_again = Some((now + ANNOUNCE_AGAIN, new));
        }
    }

    fn announce(&self, what: &[Announce], shared: &mut Shared) {
        let send = |one: &Announce| Effect::SendFrame {
            router: self.spec.router,
            ifindex: one.ifindex,
            frame: announce::frame(one.mac.0, one.ip),
        };
        shared.effects.extend(what.iter().map(send));
    }

    pub(super) fn announce_all(&self, shared: &mut Shared) {
        self.announce(&self.spec.announce, shared);
    }

    /// Asks for the sockets that are needed now, unless they are there.
    pub(super) fn open_sockets(&mut self, shared: &mut Shared) {
        let request = self.socket_request();
        if matches!(&self.sockets, Sockets::Open(have) | Sockets::Asked(have) if *have == request) {
            return;
        }
        self.sockets = Sockets::Asked(request.clone());
        shared.effects.push_back(Effect::OpenSockets { router: self.id(), request });
    }

    fn socket_request(&self) -> SocketRequest {
        SocketRequest {
            netns: self.spec.netns.clone(),
            ha_ifindex: self.spec.ha_ifindex,
            vrid: (!self.sentinel).then_some(self.spec.vrid),
            send_on: self.spec.announce.iter().map(|one| one.ifindex).collect(),
            virtual_address: self.spec.virtual_address.addr(),
        }
    }

    /// Takes the answer to a request for sockets.
    pub(super) fn handle_opened(&mut self, opened: Result<Opened, String>, shared: &mut Shared, now: Instant) {
        match opened {
            Ok(opened) => {
                self.sockets = Sockets::Open(self.socket_request());
                self.links = opened.links;
                if self.past == Past::Unknown {
                    let found = Past::Found { until: now + KEEP_FOUND };
                    self.past = if opened.has_virtual_address { found } else { Past::Nothing };
                }
                for text in opened.shortcomings {
                    shared.warn(format!("router {}: {text}", self.id()));
                }
            }
            Err(error) => self.sockets_failed(error, shared, now),
        }
        self.settle(shared, now);
    }

    fn sockets_failed(&mut self, error: String, shared: &mut Shared, now: Instant) {
        let pause = match &self.sockets {
            Sockets::Failed { pause, .. } => (*pause * 2).min(REOPEN.1),
            Sockets::None | Sockets::Asked(_) | Sockets::Open(_) => {
                shared.warn(format!("router {} cannot take part in its election: {error}", self.id()));
                REOPEN.0
            }
        };
        self.sockets = Sockets::Failed { error, retry_at: now + pause, pause };
    }

    fn hindrance(&self, shared: &Shared) -> Option<Hindrance> {
        if !self.spec.ready {
            return Some(Hindrance::NotReady);
        }
        match &self.sockets {
            // A request for other sockets is answered before anything else happens.
            Sockets::Asked(_) if self.vrrp.state() != State::Initialize => return None,
            Sockets::None | Sockets::Asked(_) => {
                return Some(Hindrance::Sockets("its sockets are being opened".to_owned()));
            }
            Sockets::Failed { error, .. } => return Some(Hindrance::Sockets(error.clone())),
            Sockets::Open(_) => {}
        }
        if !self.links.get(&self.spec.ha_ifindex).copied().unwrap_or(false) {
            return Some(Hindrance::LinkDown);
        }
        (shared.syncing && self.past != Past::Settled).then_some(Hindrance::Syncing)
    }

    /// Enters or leaves the election as circumstances allow.
    pub(super) fn settle(&mut self, shared: &mut Shared, now: Instant) {
        let taking_part = self.vrrp.state() != State::Initialize;
        match self.hindrance(shared) {
            None if !taking_part => self.start(shared, now),
            None => {}
            Some(Hindrance::Syncing) => {}
            // What the router needs is being taken away: an active hands over properly.
            Some(Hindrance::NotReady) => self.vrrp.handle_shutdown(now),
            Some(Hindrance::Sockets(_) | Hindrance::LinkDown) => {
                self.vrrp.handle_fault(now);
                // Without its HA interface it has long been superseded.
                if matches!(self.past, Past::Found { .. }) {
                    self.clean_up(shared);
                }
            }
        }
        self.drain(shared, now);
    }

    fn start(&mut self, shared: &mut Shared, now: Instant) {
        let was_active = matches!(self.past, Past::Found { .. });
        if was_active && self.may_adopt(shared, now) {
            self.past = Past::Settled;
            self.vrrp.handle_adopt_active(now);
            return;
        }
        if self.past != Past::Settled {
            // Even without the virtual address something may be left of a keeper that was killed half-way.
            self.clean_up(shared);
        }
        // Whoever was active before has an epoch, which the server or its claim has told.
        if self.spec.new && shared.book.known(self.id()).epoch == 0 {
            self.vrrp.handle_first_startup(now);
        } else {
            self.vrrp.handle_startup(now);
        }
    }

    fn clean_up(&mut self, shared: &mut Shared) {
        self.past = Past::Settled;
        let mut batches = self.ledger.deactivate(self.id(), &self.items);
        // Without sockets nothing can be sent into the namespace, nor has this process ever been there.
        if !matches!(self.sockets, Sockets::Open(_)) {
            batches.retain(|batch| batch.place == Place::Host);
        }
        self.run(batches, shared);
        shared.apply_follow(self.id());
    }

    fn run(&mut self, batches: Vec<Batch>, shared: &mut Shared) {
        if let Some(settling) = &mut self.settling {
            settling.batches += batches.len();
        }
        shared.effects.extend(batches.into_iter().map(Effect::RunBatch));
    }

    /// Carries out what VRRP decided.
    pub(super) fn drain(&mut self, shared: &mut Shared, now: Instant) {
        while let Some(output) = self.vrrp.poll_output() {
            match output {
                Output::Transmit(advertisement) => self.transmit(&advertisement, shared),
                Output::Activate => {
                    self.begin(now);
                    let batches = self.ledger.activate(self.id(), &self.items);
                    self.run(batches, shared);
                }
                Output::Deactivate => {
                    self.begin(now);
                    let batches = self.ledger.deactivate(self.id(), &self.items);
                    self.run(batches, shared);
                    self.give_up_mastership(shared);
                }
                Output::AnnounceAddresses => self.announce_all(shared),
                Output::StateChanged { from, to, reason } => {
                    info!(router = %self.id(), ?from, ?to, ?reason, "VRRP state changed");
                    if to == State::Active {
                        self.take_mastership(reason, shared, now);
                    }
                    self.report(reason, shared, now);
                }
            }
        }
    }

    fn transmit(&mut self, advertisement: &wire::Advertisement, shared: &mut Shared) {
        let source = IpAddr::V4(self.spec.ha_address.addr());
        let checksum = self.vrrp.config().interop.ipv4_checksum;
        match wire::ethernet_frame(advertisement, self.spec.ha_mac.0, source, checksum) {
            Ok(frame) => {
                self.sent += 1;
                let (router, ifindex) = (self.id(), self.spec.ha_ifindex);
                shared.effects.push_back(Effect::SendFrame { router, ifindex, frame });
            }
            Err(error) => debug_assert!(false, "Config::validate accepted what cannot be sent: {error}"),
        }
    }

    /// A transition begins: what is measured from here is its cost.
    fn begin(&mut self, now: Instant) {
        let transition = Transition {
            router: self.id(),
            state: HaState::Standby,
            epoch: 0,
            at_ms: 0,
            reason: String::new(),
            took_us: 0,
        };
        self.settling = Some(Settling { transition, since: now, batches: 0 });
    }

    /// Tells control, once the prepared messages have been acknowledged.
    fn report(&mut self, reason: Reason, shared: &mut Shared, now: Instant) {
        let state = if self.is_active() { HaState::Active } else { HaState::Standby };
        if self.reported == Some(state) {
            return;
        }
        self.reported = Some(state);
        if self.settling.is_none() {
            self.begin(now);
        }
        let epoch = if self.is_active() { self.epoch } else { shared.book.known(self.id()).epoch };
        if let Some(settling) = &mut self.settling {
            settling.transition.state = state;
            settling.transition.epoch = epoch;
            settling.transition.reason = in_words(reason).to_owned();
        }
        self.settled(shared, now);
    }

    fn settled(&mut self, shared: &mut Shared, now: Instant) {
        // A transition without a reason has not been reported yet: VRRP is still giving orders.
        let done = |settling: &mut Settling| settling.batches == 0 && !settling.transition.reason.is_empty();
        if let Some(mut settling) = self.settling.take_if(done) {
            settling.transition.took_us = now.saturating_duration_since(settling.since).as_micros() as u64;
            shared.emit(FromKeeper::Transition(settling.transition));
        }
    }

    /// Takes what came of a batch of items.
    pub(super) fn handle_batch(
        &mut self,
        batch: &Batch,
        results: Vec<Result<(), String>>,
        shared: &mut Shared,
        now: Instant,
    ) {
        self.ledger.handle_results(batch, results, now);
        if let Some(settling) = &mut self.settling {
            settling.batches = settling.batches.saturating_sub(1);
        }
        self.settled(shared, now);
    }

    /// Takes a frame that the VRRP socket received.
    pub(super) fn handle_frame(&mut self, frame: &[u8], shared: &mut Shared, now: Instant) {
        let own = self.spec.vrid;
        let refused = match wire::peek(frame) {
            // Only a sentinel hears these. Neighbours' VRIDs are other routers of the network.
            Ok(seen) if seen.vrid.get() != own && self.spec.network_vrids.contains(&seen.vrid.get()) => return,
            Ok(seen) if seen.vrid.get() != own => {
                let first = *self.strangers.entry(seen.vrid.get()).or_insert(now);
                if now.saturating_duration_since(first) < STRANGER {
                    return shared.discards.bump(wire::Discard::UnknownVrid.name());
                }
                wire::Discard::UnknownVrid
            }
            Ok(_) => match wire::parse_frame(frame, &self.vrrp.config().expectation()) {
                Ok(received) => return self.handle_received(received, shared, now),
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        shared.discard(Some(self.id()), refused.name(), &sender_of(frame));
    }

    fn handle_received(&mut self, received: wire::Received, shared: &mut Shared, now: Instant) {
        self.received += 1;
        if let IpAddr::V4(source) = received.source {
            self.heard_from = Some(source);
        }
        for remark in received.remarks.names() {
            shared.discards.bump(remark);
        }
        self.vrrp.handle_advertisement(received.source, &received.advertisement, now);
        self.drain(shared, now);
        if self.is_active() {
            self.prevailed(shared, now);
        }
    }

    /// Takes the state of a link in the namespace.
    pub(super) fn handle_link(&mut self, ifindex: u32, up: Option<bool>, shared: &mut Shared, now: Instant) {
        let before = match up {
            Some(up) => self.links.insert(ifindex, up),
            None => self.links.remove(&ifindex),
        };
        if before == up {
            return;
        }
        if ifindex == self.spec.ha_ifindex {
            self.settle(shared, now);
        } else if self.is_active() {
            debug!(router = %self.id(), ifindex, ?up, "link changed: its addresses and routes are repaired");
            let repair = self.repair.get_or_insert((now + REPAIR_DELAY, BTreeSet::new()));
            repair.1.insert(ifindex);
        }
    }

    /// Fires the timers that are due.
    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) {
        self.vrrp.handle_timeout(now);
        self.drain(shared, now);
        if self.ledger.retry_at().is_some_and(|at| at <= now) {
            match self.ledger.retry(self.id()) {
                Ok(batches) => self.run(batches, shared),
                Err(texts) => texts.into_iter().for_each(|text| shared.warn(format!("router {}: {text}", self.id()))),
            }
        }
        if matches!(&self.sockets, Sockets::Failed { retry_at, .. } if *retry_at <= now) {
            // The pause goes on doubling from where it is, so the state stays until the answer.
            shared.effects.push_back(Effect::OpenSockets { router: self.id(), request: self.socket_request() });
            if let Sockets::Failed { retry_at, pause, .. } = &mut self.sockets {
                *retry_at = now + *pause;
            }
        }
        if matches!(self.past, Past::Found { until } if until <= now) {
            self.clean_up(shared);
        }
        self.repair_if_due(shared, now);
        if let Some((_, what)) = self.announce_again.take_if(|(at, _)| *at <= now)
            && self.is_active()
        {
            self.announce(&what, shared);
        }
        self.contest_timeout(shared, now);
    }

    fn repair_if_due(&mut self, shared: &mut Shared, now: Instant) {
        let Some((_, links)) = self.repair.take_if(|(at, _)| *at <= now) else { return };
        if !self.is_active() {
            return;
        }
        let batches = self.ledger.update(self.id(), &self.items);
        self.run(batches, shared);
        let there = |one: &&Announce| links.contains(&one.ifindex) && self.links.get(&one.ifindex) == Some(&true);
        let what: Vec<Announce> = self.spec.announce.iter().filter(there).cloned().collect();
        self.announce(&what, shared);
    }

    /// When `handle_timeout` is wanted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let reopen = match &self.sockets {
            Sockets::Failed { retry_at, .. } => Some(*retry_at),
            Sockets::None | Sockets::Asked(_) | Sockets::Open(_) => None,
        };
        let keep = match self.past {
            Past::Found { until } => Some(until),
            Past::Unknown | Past::Nothing | Past::Settled => None,
        };
        let vrrp = self.vrrp.poll_timeout().map(|(at, _)| at);
        let repair = self.repair.as_ref().map(|(at, _)| *at);
        let again = self.announce_again.as_ref().map(|(at, _)| *at);
        [vrrp, self.ledger.retry_at(), reopen, keep, repair, again, self.contest_deadline()].into_iter().flatten().min()
    }

    /// Leaves the election for good: an active resigns with priority 0.
    pub(super) fn stop(&mut self, shared: &mut Shared, now: Instant) {
        self.spec.ready = false;
        self.vrrp.handle_shutdown(now);
        self.drain(shared, now);
        if matches!(self.past, Past::Found { .. }) {
            self.clean_up(shared);
        }
    }

    /// Leaves nothing of the copy behind.
    pub(super) fn remove(mut self, shared: &mut Shared, now: Instant) {
        let was_active = self.is_active();
        self.stop(shared, now);
        if !was_active {
            self.clean_up(shared);
        }
        shared.outbox.withdraw(self.id());
        shared.discards.forget(self.id());
        shared.effects.push_back(Effect::CloseSockets { router: self.id() });
    }

    pub(super) fn status(&self, shared: &Shared) -> RouterStatus {
        let state = self.vrrp.state();
        let active = state == State::Active;
        RouterStatus {
            router: self.id(),
            vrrp_state: match state {
                State::Initialize => "initialize",
                State::Backup => "backup",
                State::Active => "active",
            }
            .to_owned(),
            state: if active { HaState::Active } else { HaState::Standby },
            epoch: if active { self.epoch } else { shared.book.known(self.id()).epoch },
            heard_from: self.heard_from,
            sent: self.sent,
            received: self.received,
            hindrance: self.hindrance(shared).map(|hindrance| hindrance.to_string()).unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Hindrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Syncing => "waits until control has told everything",
            Self::NotReady => "what the router needs is not in place yet",
            Self::Sockets(error) => error,
            Self::LinkDown => "the HA interface is down or gone",
        })
    }
}

/// A reason as the state-change log and the operator see it.
fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Startup => "started to take part",
        Reason::Shutdown => "stopped on request",
        Reason::ActiveDown => "nothing was heard of the active router for three intervals",
        Reason::Resigned => "the active router resigned",
        Reason::First => "is the first of a new router",
        Reason::HigherPriority => "another copy with higher priority is active",
        Reason::HigherAddress => "another copy with equal priority and a higher address is active",
        Reason::Fault => "the HA interface is down or cannot be used",
        Reason::Adopted => "was active when the keeper was restarted",
        Reason::Absence => "was away for longer than three intervals",
        Reason::Reconfigured => "became another virtual router",
    }
}
