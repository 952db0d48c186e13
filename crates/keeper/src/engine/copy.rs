//! One router's copy on this host: the VRRP engine, what it has put into the kernel, and its epoch.
//!
//! A copy takes part in the election while its sockets are open, its HA interface is up and control has
//! said that everything it needs is in place ([`Hindrance`]). What VRRP decides is carried out here.
//! How claims and VRRP fit together is decided in [`mastership`](super::mastership).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use evergate_model::{HaState, NetworkId, RouterId};
use evergate_vrrp::agreement::Inquiry;
use evergate_vrrp::pacing;
use evergate_vrrp::router::{Config, Output, PeerDown, State, Suspicion, VirtualRouter};
use evergate_vrrp::wire::{self, Ipv4Checksum, Remarks};
use tracing::{debug, info};

use super::access::{Access, How};
use super::discards::sender_of;
use super::effect::{Effect, Opened, SocketRequest};
use super::handover::Handover;
use super::health::{self, Health};
use super::inquiry::Kept;
use super::ledger::Ledger;
use super::mastership::Asking;
use super::shared::Shared;
use super::spec::{self, Prepared, SpecError};
use super::transition::Waiting;
use super::wish::Wishing;
use crate::protocol::{Announce, FromKeeper, Place, RouterSpec, RouterStatus};

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

/// One router's copy.
#[derive(Debug)]
pub(super) struct RouterCopy {
    pub(super) spec: RouterSpec,
    pub(super) items: Vec<Prepared>,
    pub(super) vrrp: VirtualRouter,
    pub(super) ledger: Ledger,
    access: Access,
    /// Whether this copy was active before the process started, which is decided upon once.
    past: Past,
    /// Receives all VRIDs, because it has the lowest on its HA network here.
    pub(super) sentinel: bool,
    /// When a sentinel first heard each unknown VRID.
    strangers: BTreeMap<u8, Instant>,
    /// The epoch it last became active with.
    pub(super) epoch: u64,
    /// When that was.
    pub(super) active_since: Instant,
    /// An epoch that was heard of by way of the server: the next one here is above it.
    pub(super) surpass: u64,
    /// Another copy is asked to take over.
    pub(super) handover: Option<Handover>,
    pub(super) wishing: Wishing,
    /// Until when it goes on forwarding although another copy has taken over, as was planned.
    pub(super) lingering: Option<Instant>,
    /// It leaves the election when that is done.
    pub(super) leaving: bool,
    /// Other hosts are asked whether this copy may take over.
    pub(super) inquiry: Option<Inquiry>,
    /// Why it did not, and was told of.
    pub(super) kept: Kept,
    /// Other hosts are asked whether this copy may resume.
    pub(super) asking: Option<Asking>,
    /// Its way to the outside.
    pub(super) health: Health,
    /// Over which host's copy, and when, the address last decided for this one.
    pub(super) prevailed: Option<(IpAddr, Instant)>,
    pub(super) waiting: Waiting,
    /// Generations up to this one were of an earlier copy of the router.
    pub(super) born: u64,
    /// Whether each link of the namespace is up, by index.
    links: BTreeMap<u32, bool>,
    repair: Option<(Instant, BTreeSet<u32>)>,
    announce_again: Option<(Instant, Vec<Announce>)>,
    heard_from: Option<Ipv4Addr>,
    /// The Ethernet address that the last advertisement came from.
    heard_mac: Option<[u8; 6]>,
    sent: u64,
    received: u64,
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

impl RouterCopy {
    pub(super) fn new(spec: RouterSpec, shared: &Shared, now: Instant) -> Result<Self, SpecError> {
        let config = spec::config(&spec, shared.can_ask())?;
        let items = spec::prepare(&spec.items)?;
        Ok(Self {
            items,
            vrrp: VirtualRouter::new(config),
            ledger: Ledger::default(),
            access: Access::default(),
            past: Past::Unknown,
            sentinel: false,
            strangers: BTreeMap::new(),
            epoch: 0,
            active_since: now,
            surpass: 0,
            handover: None,
            wishing: Wishing::default(),
            lingering: None,
            leaving: false,
            inquiry: None,
            kept: None,
            asking: None,
            health: Health::default(),
            prevailed: None,
            waiting: Waiting::default(),
            born: shared.generation,
            links: BTreeMap::new(),
            repair: None,
            announce_again: None,
            heard_from: None,
            heard_mac: None,
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

    /// Its HA network, and its VRID there.
    pub(super) fn place(&self) -> (NetworkId, u8) {
        (self.spec.ha_network, self.spec.vrid)
    }

    /// Learns which VRIDs are neighbours' on the HA network.
    pub(super) fn know_vrids(&mut self, vrids: &BTreeSet<u8>) {
        self.strangers.retain(|vrid, _| !vrids.contains(vrid));
    }

    /// Takes a new specification of the same router.
    pub(super) fn update(&mut self, spec: RouterSpec, shared: &mut Shared, now: Instant) -> Result<(), SpecError> {
        let config = Config { handicap: self.health.handicap(), ..spec::config(&spec, shared.can_ask())? };
        self.items = spec::prepare(&spec.items)?;
        let old = std::mem::replace(&mut self.spec, spec);
        if *self.vrrp.config() != config {
            self.vrrp.handle_config(config, now);
            self.drain(shared, now);
        }
        // Control may have made the namespace anew.
        self.open_sockets(How::Check, shared);
        self.attend_health(shared, now);
        if self.spec.wish != old.wish {
            self.wishing = Wishing::default();
        }
        self.attend_wish(shared, now);
        if self.is_active() {
            // Everything again, not only what is new: control also sends a specification to repair.
            let batches = self.ledger.update(shared.wanted(self.id()), &self.items);
            self.run(batches, shared);
            self.announce_new(&old.announce, shared, now);
            self.claim(shared, now);
        }
        self.settle(shared, now);
        Ok(())
    }

    fn announce_new(&mut self, old: &[Announce], shared: &mut Shared, now: Instant) {
        let new: Vec<Announce> = self.spec.announce.iter().filter(|one| !old.contains(one)).cloned().collect();
        if !new.is_empty() {
            self.announce(new.clone(), shared);
            self.announce_again = Some((now + ANNOUNCE_AGAIN, new));
        }
    }

    /// Whether it is known what an earlier keeper left in the namespace, or that it cannot be known.
    pub(super) fn has_looked(&self) -> bool {
        !self.access.is_asked() || self.past != Past::Unknown
    }

    /// Asks for the sockets that are needed now.
    pub(super) fn open_sockets(&mut self, how: How, shared: &mut Shared) {
        let request = self.socket_request(shared);
        if self.access.want(&request, how) {
            let fresh = how == How::Fresh;
            shared.effects.push_back(Effect::OpenSockets { router: self.id(), request, fresh });
        }
    }

    fn socket_request(&self, shared: &Shared) -> SocketRequest {
        SocketRequest {
            netns: self.spec.netns.clone(),
            ha_ifindex: self.spec.ha_ifindex,
            vrid: (!self.sentinel).then_some(self.spec.vrid),
            send_on: self.spec.announce.iter().map(|one| one.ifindex).collect(),
            answers_on: health::answers_on(&self.spec.gateways, &shared.settings.health),
            virtual_address: self.spec.virtual_address.addr(),
        }
    }

    /// Takes the answer to a request for sockets.
    pub(super) fn handle_opened(
        &mut self,
        request: &SocketRequest,
        opened: Result<Opened, String>,
        shared: &mut Shared,
        now: Instant,
    ) {
        let Some(first_failure) = self.access.answered(request, opened.as_ref().err().map(String::as_str), now) else {
            return;
        };
        match opened {
            Ok(opened) => {
                self.links = opened.links.unwrap_or_else(|| std::mem::take(&mut self.links));
                if self.past == Past::Unknown {
                    let found = Past::Found { until: now + KEEP_FOUND };
                    self.past = if opened.has_virtual_address { found } else { Past::Nothing };
                }
            }
            Err(error) if first_failure => {
                shared.warn(format!("router {} cannot take part in its election: {error}", self.id()));
            }
            Err(_) => {}
        }
        self.attend_health(shared, now);
        self.settle(shared, now);
    }

    /// Whether a link of the namespace can carry something, if that is known.
    pub(super) fn link_runs(&self, ifindex: u32) -> Option<bool> {
        self.access.is_open().then(|| self.links.get(&ifindex).copied().unwrap_or(false))
    }

    fn hindrance(&self, shared: &Shared) -> Option<Hindrance> {
        if !self.spec.ready {
            return Some(Hindrance::NotReady);
        }
        if let Some(error) = self.access.hindrance() {
            return Some(Hindrance::Sockets(error));
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
            if self.must_ask(shared, now) {
                return;
            }
            self.past = Past::Settled;
            self.vrrp.handle_adopt_active(now);
            return;
        }
        // Whoever was active before has an epoch, which the server or its claim has told.
        let known = shared.book.known(self.id()).epoch;
        if self.spec.inherits.is_some_and(|epoch| known <= epoch) {
            // What is in the kernel serves the router at this moment: it is completed, and nothing goes first.
            self.past = Past::Settled;
            return self.vrrp.handle_inheritance(now);
        }
        if self.past != Past::Settled {
            // Even without the virtual address something may be left of a keeper that was killed half-way.
            self.clean_up(shared);
        }
        if self.spec.new && known == 0 {
            self.vrrp.handle_first_startup(now);
        } else {
            self.vrrp.handle_startup(now);
        }
    }

    fn clean_up(&mut self, shared: &mut Shared) {
        self.past = Past::Settled;
        self.asking = None;
        let mut batches = self.ledger.deactivate(shared.wanted(self.id()), &self.items);
        // Without sockets nothing can be sent into the namespace, nor has this process ever been there.
        if !self.access.is_open() {
            batches.retain(|batch| batch.place == Place::Host);
        }
        self.run(batches, shared);
        shared.apply_follow(self.id());
    }

    /// Carries out what VRRP decided.
    pub(super) fn drain(&mut self, shared: &mut Shared, now: Instant) {
        while let Some(output) = self.vrrp.poll_output() {
            match output {
                Output::Transmit(advertisement) => self.transmit(&advertisement, shared),
                Output::Activate => {
                    self.lingering = None;
                    self.begin_transition(shared, now);
                    let batches = self.ledger.activate(shared.wanted(self.id()), &self.items);
                    self.run(batches, shared);
                }
                Output::Deactivate => {
                    self.begin_transition(shared, now);
                    self.give_up_mastership(shared);
                    if !self.lingers(now) {
                        let batches = self.ledger.deactivate(shared.wanted(self.id()), &self.items);
                        self.run(batches, shared);
                        shared.apply_follow(self.id());
                    }
                }
                Output::AnnounceAddresses => self.announce_all(shared),
                Output::TakeoverDue { active } => self.takeover_due(active, shared, now),
                Output::Contested { with } => self.contested(with, shared),
                Output::Prevailed { over } => self.prevailed(over, now),
                Output::StateChanged { from, to, reason } => {
                    info!(router = %self.id(), ?from, ?to, ?reason, "VRRP state changed");
                    if to == State::Active {
                        self.take_mastership(reason, shared, now);
                        shared.park(self.id());
                    }
                    self.note_role(now);
                    self.report(reason, shared, now);
                }
            }
        }
    }

    fn transmit(&mut self, advertisement: &wire::Advertisement, shared: &mut Shared) {
        self.transmit_to(None, advertisement, shared);
    }

    /// Sends to one Ethernet address, or to the group.
    fn transmit_to(&mut self, mac: Option<[u8; 6]>, advertisement: &wire::Advertisement, shared: &mut Shared) {
        let source = IpAddr::V4(self.spec.ha_address.addr());
        let checksum = self.vrrp.config().interop.ipv4_checksum;
        match wire::ethernet_frame(advertisement, self.spec.ha_mac.0, source, checksum) {
            Ok(mut frame) => {
                self.sent += 1;
                if let Some(mac) = mac {
                    frame[..6].copy_from_slice(&mac);
                }
                let (router, ifindex) = (self.id(), self.spec.ha_ifindex);
                shared.effects.push_back(Effect::SendFrame { router, ifindex, frame });
            }
            Err(error) => debug_assert!(false, "Config::validate accepted what cannot be sent: {error}"),
        }
    }

    /// Takes a frame that the VRRP socket received.
    pub(super) fn handle_frame(&mut self, frame: &[u8], shared: &mut Shared, now: Instant) -> bool {
        let own = self.spec.vrid;
        let neighbours = shared.vrids.get(&self.spec.ha_network);
        let is_neighbour = |vrid: u8| neighbours.is_some_and(|vrids| vrids.contains(&vrid));
        let refused = match wire::peek(frame) {
            // Only a sentinel hears these. Neighbours' VRIDs are other routers of the network.
            Ok(seen) if seen.vrid.get() != own && is_neighbour(seen.vrid.get()) => return false,
            Ok(seen) if seen.vrid.get() != own => {
                let first = *self.strangers.entry(seen.vrid.get()).or_insert(now);
                if now.saturating_duration_since(first) < STRANGER {
                    shared.discards.bump(wire::Discard::UnknownVrid.name());
                    return false;
                }
                wire::Discard::UnknownVrid
            }
            Ok(_) => match wire::parse_frame(frame, &self.vrrp.config().expectation()) {
                Ok(received) => {
                    self.heard_mac = frame.get(6..12).and_then(|mac| mac.try_into().ok());
                    self.handle_received(received, shared, now);
                    return true;
                }
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        shared.discard(Some(self.id()), refused.name(), || sender_of(frame));
        false
    }

    fn handle_received(&mut self, received: wire::Received, shared: &mut Shared, now: Instant) {
        self.received += 1;
        if let IpAddr::V4(source) = received.source {
            self.heard_from = Some(source);
            if let Some(&host) = self.spec.peer_hosts.get(&source) {
                shared.still_advertises(host);
            }
        }
        // What we send ourselves is nothing to tell of.
        let ours = self.vrrp.config().interop.ipv4_checksum == Ipv4Checksum::PseudoHeader;
        let remarks = Remarks { old_checksum: received.remarks.old_checksum && !ours, ..received.remarks };
        for remark in remarks.names() {
            shared.discards.bump(remark);
        }
        if self.asking.is_some() && received.advertisement.priority > 0 {
            // It took over while there was no keeper here.
            self.clean_up(shared);
            self.settle(shared, now);
        }
        if received.advertisement.priority == 0 && self.is_superseded(received.source, shared) {
            return shared.discards.bump("resignation_stale");
        }
        self.heard_rival(received.advertisement.priority, shared, now);
        if received.advertisement.priority > 0 {
            self.heard_again(shared);
        }
        self.vrrp.handle_advertisement(received.source, &received.advertisement, now);
        self.drain(shared, now);
    }

    /// Tells control what belongs into the router's history.
    pub(super) fn note(&self, text: String, shared: &mut Shared) {
        shared.emit(FromKeeper::Note { router: self.id(), at_ms: 0, text });
    }

    /// The HA address of the copy on a host.
    pub(super) fn address_of(&self, host: IpAddr) -> Option<IpAddr> {
        let mut copies = self.spec.peer_hosts.iter();
        copies.find(|(_, vtep)| **vtep == host).map(|(address, _)| IpAddr::V4(*address))
    }

    /// A host is not heard by BFD any more. If it has the active copy, that one is asked whether it is so.
    ///
    /// `seen`: it was heard by another way since.
    pub(super) fn peer_down(
        &mut self,
        down: &PeerDown,
        (host, seen): (IpAddr, bool),
        shared: &mut Shared,
        now: Instant,
    ) -> Suspicion {
        let suspicion = self.vrrp.handle_peer_down(down, now);
        if suspicion == Suspicion::Listening {
            self.inquire(Some(host), seen, shared, now);
            self.decide(shared, now);
        }
        if suspicion == Suspicion::Listening
            && let (Some(mac), Some(from)) = (self.heard_mac, self.heard_from)
            && IpAddr::V4(from) == down.peer
        {
            // To it alone: to another backup, priority 0 would say that the active resigns.
            self.transmit_to(Some(mac), &self.vrrp.solicitation(), shared);
        }
        self.drain(shared, now);
        suspicion
    }

    /// Takes the state of a link in the namespace.
    pub(super) fn handle_links(&mut self, links: &BTreeMap<u32, bool>, shared: &mut Shared, now: Instant) {
        let gone: Vec<u32> = self.links.keys().filter(|ifindex| !links.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            self.handle_link(ifindex, None, shared, now);
        }
        for (&ifindex, &up) in links {
            self.handle_link(ifindex, Some(up), shared, now);
        }
    }

    pub(super) fn handle_link(&mut self, ifindex: u32, up: Option<bool>, shared: &mut Shared, now: Instant) {
        let before = match up {
            Some(up) => self.links.insert(ifindex, up),
            None => self.links.remove(&ifindex),
        };
        if before == up {
            return;
        }
        let used = ifindex == self.spec.ha_ifindex || self.spec.announce.iter().any(|one| one.ifindex == ifindex);
        if ifindex == self.spec.ha_ifindex && up.is_none() {
            self.access.fail("its HA interface is gone", now);
        } else if used && before.is_none() {
            // Another link by the index of one that is gone: sockets on that one stay dead.
            self.open_sockets(How::Fresh, shared);
        }
        if self.spec.gateways.iter().any(|one| one.ifindex == ifindex) {
            self.attend_health(shared, now);
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
        if self.access.retry_at().is_some_and(|at| at <= now) {
            self.open_sockets(How::Fresh, shared);
        }
        if matches!(self.past, Past::Found { until } if until <= now) {
            self.clean_up(shared);
        }
        self.repair_if_due(shared, now);
        if let Some((_, what)) = self.announce_again.take_if(|(at, _)| *at <= now)
            && self.is_active()
        {
            self.announce(what, shared);
        }
        self.attend_health(shared, now);
        if self.inquiry.as_ref().and_then(Inquiry::poll_timeout).is_some_and(|at| at <= now) {
            self.decide(shared, now);
            self.drain(shared, now);
        }
        self.attend_wish(shared, now);
        if self.handover_deadline().is_some_and(|at| at <= now) || self.leaving {
            self.attend_handover(shared, now);
        }
        if self.asking_deadline().is_some_and(|at| at <= now) {
            self.settle(shared, now);
        }
    }

    /// Whether its next timer is an advertisement's that may be sent with others now.
    pub(super) fn may_join(&self, due: Instant, now: Instant) -> bool {
        self.vrrp.next_advertisement() == Some(due) && pacing::may_join(&self.vrrp, now)
    }

    fn repair_if_due(&mut self, shared: &mut Shared, now: Instant) {
        let Some((_, links)) = self.repair.take_if(|(at, _)| *at <= now) else { return };
        if !self.is_active() {
            return;
        }
        self.repair(shared);
        let there = |one: &&Announce| links.contains(&one.ifindex) && self.links.get(&one.ifindex) == Some(&true);
        let what = self.spec.announce.iter().filter(there).cloned().collect();
        self.announce(what, shared);
    }

    /// Does every item again, unless the kernel is at it anyway.
    pub(super) fn repair(&mut self, shared: &mut Shared) {
        if self.is_active() && self.waiting.is_over() {
            let batches = self.ledger.update(shared.wanted(self.id()), &self.items);
            self.run(batches, shared);
        }
    }

    /// When `handle_timeout` is wanted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let keep = match self.past {
            Past::Found { until } => Some(until),
            Past::Unknown | Past::Nothing | Past::Settled => None,
        };
        let vrrp = self.vrrp.poll_timeout().map(|(at, _)| at);
        let repair = self.repair.as_ref().map(|(at, _)| *at);
        let again = self.announce_again.as_ref().map(|(at, _)| *at);
        [
            vrrp,
            self.ledger.retry_at(),
            self.access.retry_at(),
            keep,
            repair,
            again,
            self.inquiry.as_ref().and_then(Inquiry::poll_timeout),
            self.asking_deadline(),
            self.wish_deadline(),
            self.health_deadline(),
            self.handover_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Leaves the election for good: an active resigns with priority 0.
    pub(super) fn stop(&mut self, shared: &mut Shared, now: Instant) {
        (self.handover, self.leaving) = (None, false);
        self.spec.ready = false;
        self.vrrp.handle_shutdown(now);
        self.drain(shared, now);
        if matches!(self.past, Past::Found { .. }) {
            self.clean_up(shared);
        }
    }

    /// Whether the kernel has what an active copy has.
    pub(super) fn holds(&self) -> bool {
        self.is_active() || self.lingering.is_some()
    }

    /// Ends without a word, and undoes what it has done.
    pub(super) fn end(mut self, shared: &mut Shared, _now: Instant) {
        self.clean_up(shared);
        self.depart(shared);
    }

    /// Ends without a word, and leaves to control what is in the kernel.
    pub(super) fn bequeath(self, shared: &mut Shared, _now: Instant) {
        self.depart(shared);
    }

    fn depart(self, shared: &mut Shared) {
        shared.outbox.withdraw(self.id());
        shared.discards.forget(self.id());
        shared.effects.push_back(Effect::CloseSockets { router: self.id() });
    }

    /// Leaves nothing of the copy behind.
    pub(super) fn remove(mut self, shared: &mut Shared, now: Instant) {
        let was_active = self.is_active();
        self.stop(shared, now);
        if !was_active || self.lingering.take().is_some() {
            self.clean_up(shared);
        }
        self.depart(shared);
    }

    pub(super) fn status(&self, shared: &Shared) -> RouterStatus {
        let state = self.vrrp.state();
        let active = state == State::Active;
        RouterStatus {
            router: self.id(),
            netns: self.spec.netns.clone(),
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
            problem: self.problem(),
            hindrance: self.hindrance(shared).map(|hindrance| hindrance.to_string()).unwrap_or_default(),
            impairment: self.health.impairment(),
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
