//! The active copy's side of one router: its flows, and which standby must still be told of which.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_model::flow::{Flow, FlowKey, L4, Tuple, protocol, status, tcp_state};

/// So many standbys of one router are told at most: one bit each in every entry.
const MAX_SUBSCRIBERS: u32 = 32;
/// A standby that must be told of more removals than this is told everything anew.
const MAX_DELETES: usize = 100_000;
/// Flows queued at once while everything is told.
const SLICE: usize = 512;
/// What is told is renewed after a third of its timeout, so that a lost renewal or two do not matter. The
/// timeout told is at least this: what a listing says of a flow is what is left of its time.
const MIN_TIMEOUT_S: u32 = 30;
/// How often a standby that has everything may compare.
const CHECK_PERIOD: Duration = Duration::from_secs(5);

/// Whether flows of this kind are replicated: of those protocols that the kernel can go on with from what is
/// told, and not what is said to a group (VRRP itself, in a router's namespace).
pub fn is_replicated(tuple: &Tuple) -> bool {
    let known = matches!(
        tuple.protocol,
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::ICMP | protocol::ICMPV6 | protocol::GRE
    );
    // What has neither ports nor an identifier cannot be told apart.
    known && tuple.l4 != L4::None && !tuple.dst.is_multicast()
}

/// A hash of what names a flow (FNV-1a over its parts): the same on every host.
pub(crate) fn hash(key: &FlowKey) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut byte = |byte: u8| state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let tuple = &key.original;
    for address in [tuple.src, tuple.dst] {
        match address {
            IpAddr::V4(address) => address.octets().into_iter().for_each(&mut byte),
            IpAddr::V6(address) => address.octets().into_iter().for_each(&mut byte),
        }
    }
    let (a, b) = match tuple.l4 {
        L4::Ports { src, dst } => (src, dst),
        L4::Icmp { kind, code, id } => (u16::from_be_bytes([kind, code]), id),
        L4::None => (0, 0),
    };
    for part in [key.zone, a, b] {
        part.to_be_bytes().into_iter().for_each(&mut byte);
    }
    byte(tuple.protocol);
    state
}

/// Whether losing it would hurt: a connection that both sides use, rather than an attempt or an end.
fn is_valuable(flow: &Flow) -> bool {
    flow.has(status::ASSURED) && !is_over(flow)
}

/// Over, and kept by the kernel only to catch late packets.
fn is_over(flow: &Flow) -> bool {
    flow.tcp.is_some_and(|tcp| matches!(tcp.state, tcp_state::TIME_WAIT | tcp_state::CLOSE))
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    /// Bit per subscriber: it was told of the flow.
    told: u32,
    /// Bit per subscriber: it waits in the first or second queue.
    queued: [u32; 2],
    /// When it is to be renewed, and the earliest such moment that is scheduled.
    due: Option<Instant>,
    scheduled: Option<Instant>,
}

/// What a message carried, so that it can be told again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Begin,
    Flow(FlowKey),
    Delete(FlowKey),
    Check,
}

/// What to tell next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Begin { token: u32, generation: u32 },
    Put(Flow),
    Delete(FlowKey),
    Check { count: u64, digest: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be told that a stream begins.
    New,
    /// It was told so, and has not said that it heard.
    Announced,
    /// Everything up to this flow was queued.
    Bulk(Option<FlowKey>),
    /// Everything was queued; the first check ends this.
    Settling,
    Live,
}

/// A standby that is behind for less than this lacks nothing but what has just happened.
const FRESH: Duration = Duration::from_millis(50);

/// A standby that is told.
#[derive(Debug)]
struct Subscriber {
    slot: u32,
    token: u32,
    generation: u32,
    phase: Phase,
    queues: [VecDeque<FlowKey>; 2],
    deletes: BTreeSet<FlowKey>,
    in_flight: usize,
    count: u64,
    digest: u64,
    check_at: Option<Instant>,
    /// Since when something waits or is unacknowledged.
    behind_since: Option<Instant>,
    lag: Duration,
}

/// Counters of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Flows that ended before a standby was told of them, or that did not fit.
    pub(crate) shed: u64,
    /// Streams begun anew.
    pub(crate) streams: u64,
}

/// The flows of one router that is active here.
#[derive(Debug)]
pub(crate) struct Table {
    flows: BTreeMap<FlowKey, Entry>,
    subscribers: BTreeMap<IpAddr, Subscriber>,
    renewals: BinaryHeap<Reverse<(Instant, FlowKey)>>,
    max_flows: usize,
    /// Nothing is told before the first listing.
    listed: bool,
    pub(crate) counters: Counters,
}

impl Table {
    pub(crate) fn new(max_flows: usize) -> Self {
        Self {
            flows: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            renewals: BinaryHeap::new(),
            max_flows,
            listed: false,
            counters: Counters::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Everything that there is: the difference to what was known is told.
    pub(crate) fn handle_listing(&mut self, flows: Vec<Flow>, now: Instant) {
        let present: BTreeSet<FlowKey> = flows.iter().map(Flow::key).collect();
        let gone: Vec<FlowKey> = self.flows.keys().filter(|key| !present.contains(key)).copied().collect();
        for key in gone {
            self.handle_gone(&key, now);
        }
        for flow in flows {
            // What is left of a timeout is no reason to tell it again.
            let same = self.flows.get(&flow.key()).is_some_and(|entry| same_but_timeout(&entry.flow, &flow));
            if !same {
                self.handle_changed(flow, true, now);
            }
        }
        self.listed = true;
    }

    /// A flow appeared or changed. `whole`: the TCP state is as the message says, also where it says none.
    pub(crate) fn handle_changed(&mut self, mut flow: Flow, whole: bool, now: Instant) {
        if !is_replicated(&flow.original) || flow.has(status::DYING) {
            return;
        }
        let key = flow.key();
        let is_full = self.flows.len() >= self.max_flows && !self.flows.contains_key(&key);
        if is_full && !self.make_room(&flow, now) {
            self.counters.shed += 1;
            return;
        }
        if let Some(old) = self.flows.get(&key).filter(|old| old.flow.reply == flow.reply && !whole) {
            flow.tcp = flow.tcp.or(old.flow.tcp);
            flow.labels = if flow.labels == [0; 16] { old.flow.labels } else { flow.labels };
            if flow.timeout_s == 0 {
                flow.timeout_s = old.flow.timeout_s;
            }
            for (adjustment, old) in flow.sequence_adjustment.iter_mut().zip(old.flow.sequence_adjustment) {
                *adjustment = adjustment.or(old);
            }
        }
        let entry =
            self.flows.entry(key).or_insert(Entry { flow, told: 0, queued: [0; 2], due: None, scheduled: None });
        entry.flow = flow;
        self.schedule(&key, now);
        self.queue_for_all(&key, now);
    }

    pub(crate) fn handle_gone(&mut self, key: &FlowKey, now: Instant) {
        let Some(entry) = self.flows.remove(key) else { return };
        for subscriber in self.subscribers.values_mut() {
            let bit = 1 << subscriber.slot;
            if entry.told & bit != 0 {
                subscriber.deletes.insert(*key);
                subscriber.count -= 1;
                subscriber.digest = subscriber.digest.wrapping_sub(hash(key));
                subscriber.behind_since.get_or_insert(now);
            } else if (entry.queued[0] | entry.queued[1]) & bit != 0 && subscriber.phase == Phase::Live {
                self.counters.shed += 1;
            }
        }
    }

    /// Room for one more: a full table keeps what is valuable.
    fn make_room(&mut self, flow: &Flow, now: Instant) -> bool {
        // A look at a few suffices: where nothing but valuable flows is found, there is hardly anything else.
        const LOOK_AT: usize = 64;
        if !is_valuable(flow) {
            return false;
        }
        let start = flow.key();
        let around = self.flows.range(start..).chain(self.flows.range(..start)).take(LOOK_AT);
        let victim = around.filter(|(_, entry)| !is_valuable(&entry.flow)).map(|(key, _)| *key).next();
        if let Some(victim) = victim {
            self.counters.shed += 1;
            self.handle_gone(&victim, now);
        }
        victim.is_some()
    }

    fn schedule(&mut self, key: &FlowKey, now: Instant) {
        let Some(entry) = self.flows.get_mut(key) else { return };
        if is_over(&entry.flow) {
            entry.due = None;
            return;
        }
        entry.flow.timeout_s = entry.flow.timeout_s.max(MIN_TIMEOUT_S);
        let due = now + Duration::from_secs(entry.flow.timeout_s.into()) / 3;
        entry.due = Some(due);
        if entry.scheduled.is_none_or(|at| due < at) {
            entry.scheduled = Some(due);
            self.renewals.push(Reverse((due, *key)));
        }
    }

    fn queue_for_all(&mut self, key: &FlowKey, now: Instant) {
        let Some(entry) = self.flows.get_mut(key) else { return };
        for subscriber in self.subscribers.values_mut() {
            subscriber.queue(key, entry, now);
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let renewal = self.renewals.peek().map(|Reverse((at, _))| *at);
        let checks = self.subscribers.values().filter(|one| one.is_quiet()).filter_map(|one| one.check_at);
        renewal.into_iter().chain(checks).min()
    }

    /// Renews what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.renewals.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.renewals.pop();
            let Some(entry) = self.flows.get_mut(&key) else { continue };
            if entry.scheduled != Some(at) {
                continue;
            }
            entry.scheduled = None;
            match entry.due {
                Some(due) if due <= now => {
                    self.schedule(&key, now);
                    self.queue_for_all(&key, now);
                }
                Some(due) => {
                    entry.scheduled = Some(due);
                    self.renewals.push(Reverse((due, key)));
                }
                None => {}
            }
        }
    }

    /// Begins to tell a standby everything. False if there are too many.
    pub(crate) fn subscribe(&mut self, peer: IpAddr, token: u32, generation: u32) -> bool {
        let used: u32 = self.subscribers.iter().filter(|(at, _)| **at != peer).map(|(_, one)| 1 << one.slot).sum();
        let slot = self.subscribers.get(&peer).map_or_else(|| used.trailing_ones(), |one| one.slot);
        if slot >= MAX_SUBSCRIBERS {
            return false;
        }
        let lag = self.subscribers.get(&peer).map_or(Duration::ZERO, |one| one.lag);
        for entry in self.flows.values_mut() {
            entry.told &= !(1 << slot);
            entry.queued.iter_mut().for_each(|bits| *bits &= !(1 << slot));
        }
        self.counters.streams += 1;
        let subscriber = Subscriber {
            slot,
            token,
            generation,
            phase: Phase::New,
            queues: Default::default(),
            deletes: BTreeSet::new(),
            in_flight: 0,
            count: 0,
            digest: 0,
            check_at: None,
            behind_since: None,
            lag,
        };
        self.subscribers.insert(peer, subscriber);
        true
    }

    pub(crate) fn unsubscribe(&mut self, peer: IpAddr) {
        if let Some(gone) = self.subscribers.remove(&peer) {
            for entry in self.flows.values_mut() {
                entry.told &= !(1 << gone.slot);
                entry.queued.iter_mut().for_each(|bits| *bits &= !(1 << gone.slot));
            }
        }
    }

    /// The token that a standby is being told under.
    pub(crate) fn token(&self, peer: IpAddr) -> Option<u32> {
        self.subscribers.get(&peer).map(|one| one.token)
    }

    pub(crate) fn generation(&self, peer: IpAddr) -> Option<u32> {
        self.subscribers.get(&peer).map(|one| one.generation)
    }

    /// Takes the next thing to tell a standby.
    pub(crate) fn take(&mut self, peer: IpAddr, now: Instant) -> Option<(Item, Say)> {
        let subscriber = self.subscribers.get_mut(&peer).filter(|_| self.listed)?;
        if subscriber.phase == Phase::New {
            subscriber.phase = Phase::Announced;
            subscriber.in_flight += 1;
            let say = Say::Begin { token: subscriber.token, generation: subscriber.generation };
            return Some((Item::Begin, say));
        }
        if subscriber.phase == Phase::Announced {
            return None;
        }
        if let Some(key) = subscriber.deletes.pop_first() {
            subscriber.in_flight += 1;
            return Some((Item::Delete(key), Say::Delete(key)));
        }
        while subscriber.is_idle() && matches!(subscriber.phase, Phase::Bulk(_)) {
            subscriber.fill(&mut self.flows, now);
        }
        let bit = 1 << subscriber.slot;
        for which in 0..2 {
            while let Some(key) = subscriber.queues[which].pop_front() {
                let Some(entry) = self.flows.get_mut(&key).filter(|entry| entry.queued[which] & bit != 0) else {
                    continue;
                };
                entry.queued.iter_mut().for_each(|bits| *bits &= !bit);
                if entry.told & bit == 0 {
                    entry.told |= bit;
                    subscriber.count += 1;
                    subscriber.digest = subscriber.digest.wrapping_add(hash(&key));
                }
                subscriber.in_flight += 1;
                return Some((Item::Flow(key), Say::Put(entry.flow)));
            }
        }
        subscriber.take_check(now)
    }

    /// Tells whether `take` might have something.
    pub(crate) fn has_something(&self, peer: IpAddr, now: Instant) -> bool {
        self.listed
            && self.subscribers.get(&peer).is_some_and(|one| match one.phase {
                Phase::New | Phase::Bulk(_) => true,
                Phase::Announced => false,
                Phase::Settling | Phase::Live => {
                    !one.is_idle() || one.is_quiet() && one.check_at.is_none_or(|at| at <= now)
                }
            })
    }

    /// What a message carried has arrived.
    pub(crate) fn acknowledged(&mut self, peer: IpAddr, generation: u32, item: Item, now: Instant) {
        let Some(subscriber) = self.subscribers.get_mut(&peer).filter(|one| one.generation == generation) else {
            return;
        };
        subscriber.in_flight -= 1;
        match item {
            Item::Begin => subscriber.phase = Phase::Bulk(None),
            Item::Check if subscriber.phase == Phase::Settling => subscriber.phase = Phase::Live,
            Item::Check | Item::Flow(_) | Item::Delete(_) => {}
        }
        if subscriber.is_quiet()
            && let Some(since) = subscriber.behind_since.take()
        {
            subscriber.lag = now.saturating_duration_since(since);
        }
    }

    /// What a message carried was lost: it is told again, as it is then.
    pub(crate) fn lost(&mut self, peer: IpAddr, generation: u32, item: Item, now: Instant) {
        let Some(subscriber) = self.subscribers.get_mut(&peer).filter(|one| one.generation == generation) else {
            return;
        };
        subscriber.in_flight -= 1;
        match item {
            Item::Begin => subscriber.phase = Phase::New,
            Item::Check => subscriber.check_at = None,
            Item::Flow(key) | Item::Delete(key) => match self.flows.get_mut(&key) {
                Some(entry) => subscriber.queue(&key, entry, now),
                None => drop(subscriber.deletes.insert(key)),
            },
        }
    }

    /// The standbys that have fallen too far behind to be told what changed.
    pub(crate) fn hopeless(&self) -> Vec<IpAddr> {
        let behind = |one: &Subscriber| one.deletes.len() > MAX_DELETES;
        self.subscribers.iter().filter(|(_, one)| behind(one)).map(|(peer, _)| *peer).collect()
    }

    /// The standbys that have everything, but for what is on its way.
    pub(crate) fn complete(&self, now: Instant) -> BTreeSet<IpAddr> {
        let is_fresh = |since: Instant| now.saturating_duration_since(since) < FRESH;
        let complete = |one: &Subscriber| one.phase == Phase::Live && one.behind_since.is_none_or(is_fresh);
        self.subscribers.iter().filter(|(_, one)| complete(one)).map(|(peer, _)| *peer).collect()
    }

    /// How far the slowest standby is behind, and whether all have everything; `None` if there is none.
    pub(crate) fn lag(&self, now: Instant) -> Option<(Duration, bool)> {
        let lag = |one: &Subscriber| one.behind_since.map_or(one.lag, |since| now.saturating_duration_since(since));
        let longest = self.subscribers.values().map(lag).max()?;
        Some((longest, self.subscribers.values().all(|one| one.phase == Phase::Live)))
    }
}

impl Subscriber {
    fn queue(&mut self, key: &FlowKey, entry: &mut Entry, now: Instant) {
        let bit = 1 << self.slot;
        if is_over(&entry.flow) && entry.told & bit == 0 {
            // It ended before it was told of: nothing is missed.
            return;
        }
        let which = if is_valuable(&entry.flow) { 0 } else { 1 };
        // What waits in the first queue is not also put into the second; the other way round it moves ahead.
        if entry.queued[0] & bit == 0 && entry.queued[which] & bit == 0 {
            entry.queued[which] |= bit;
            self.queues[which].push_back(*key);
            self.behind_since.get_or_insert(now);
        }
    }

    /// Queues the next slice of everything.
    fn fill(&mut self, flows: &mut BTreeMap<FlowKey, Entry>, now: Instant) {
        let Phase::Bulk(done) = self.phase else { return };
        let from = done.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, entry) in flows.range_mut((from, Bound::Unbounded)).take(SLICE) {
            last = Some(*key);
            if entry.told & 1 << self.slot == 0 {
                self.queue(key, entry, now);
            }
        }
        self.phase = last.map_or(Phase::Settling, |last| Phase::Bulk(Some(last)));
    }

    /// Nothing waits to be sent.
    fn is_idle(&self) -> bool {
        self.deletes.is_empty() && self.queues.iter().all(VecDeque::is_empty)
    }

    /// Everything was told and has arrived.
    fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Settling | Phase::Live) && self.in_flight == 0 && self.is_idle()
    }

    fn take_check(&mut self, now: Instant) -> Option<(Item, Say)> {
        if !self.is_quiet() || self.check_at.is_some_and(|at| at > now) {
            return None;
        }
        self.check_at = Some(now + CHECK_PERIOD);
        self.in_flight += 1;
        Some((Item::Check, Say::Check { count: self.count, digest: self.digest }))
    }
}

fn same_but_timeout(a: &Flow, b: &Flow) -> bool {
    Flow { timeout_s: b.timeout_s, ..*a } == *b
}
