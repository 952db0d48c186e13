//! The active copy's side of one router: its flows, and which standby must still be told of which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_model::flow::{Flow, FlowKey, L4, Tuple, protocol, status, tcp_state};

use crate::subscriber::{Item, Lags, Say, Subscriber};

/// So many standbys of one router are told at most: one bit each in every entry.
const MAX_SUBSCRIBERS: u32 = 32;
/// What is told is renewed when two thirds of its timeout are over, or up to one [`LAP`] before. The timeout
/// told is at least this: what a listing says of a flow is what is left of its time.
const MIN_TIMEOUT_S: u32 = 30;
/// So long it takes to look at every flow once, for what is to be renewed. A third of the shortest timeout,
/// so that what is told later than it should be is still in time.
const LAP: Duration = Duration::from_secs(10);
/// A look takes in at least so many flows, or one of [`LOOKS`] parts of all, and comes at least this often.
const SLICE: usize = 256;
const LOOKS: usize = 100;
const LOOK: Duration = Duration::from_secs(1);

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
pub fn is_valuable(flow: &Flow) -> bool {
    flow.has(status::ASSURED) && !is_over(flow)
}

/// Over, and kept by the kernel only to catch late packets.
pub(crate) fn is_over(flow: &Flow) -> bool {
    flow.tcp.is_some_and(|tcp| matches!(tcp.state, tcp_state::TIME_WAIT | tcp_state::CLOSE))
}

/// A flow, and who was told of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) flow: Flow,
    /// Bit per subscriber: it was told of the flow.
    pub(crate) told: u32,
    /// Bit per subscriber: it waits in the first or second queue.
    pub(crate) queued: [u32; 2],
    /// When it is to be renewed, in tenths of a second since the table's first moment; `None`: it is over.
    renew: Option<u32>,
}

/// Counters of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Flows that ended before a standby was told of them, or that did not fit.
    pub(crate) shed: u64,
    /// What was confirmed, by how long that took.
    pub(crate) lags: Lags,
}

/// The flows of one router that is active here.
#[derive(Debug)]
pub(crate) struct Table {
    flows: BTreeMap<FlowKey, Entry>,
    subscribers: BTreeMap<IpAddr, Subscriber>,
    /// The last flow that was looked at, and when the next are.
    looked_at: Option<FlowKey>,
    look_at: Option<Instant>,
    first_moment: Option<Instant>,
    max_flows: usize,
    /// Nothing is told before it is known what there is.
    listed: bool,
    pub(crate) counters: Counters,
}

impl Table {
    pub(crate) fn new(max_flows: usize) -> Self {
        Self {
            flows: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            looked_at: None,
            look_at: None,
            first_moment: None,
            max_flows,
            listed: false,
            counters: Counters::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Places in the queues of all standbys.
    pub(crate) fn waiting(&self) -> usize {
        self.subscribers.values().map(Subscriber::waiting).sum()
    }

    /// Whether it is known what to tell of.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.flows.values().map(|entry| &entry.flow)
    }

    /// What there is, as far as this copy was told of it when it stood by: that can be told now.
    pub(crate) fn handle_looked_up(&mut self, flows: Vec<Flow>, now: Instant) {
        for flow in flows {
            self.handle_changed(flow, true, now);
        }
        self.listed = true;
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
        if self.flows.len() >= self.max_flows && !self.flows.contains_key(&key) && !self.make_room(&flow, now) {
            self.counters.shed += 1;
            return;
        }
        let tick = self.tick(now);
        let entry = self.flows.entry(key).or_insert(Entry { flow, told: 0, queued: [0; 2], renew: None });
        if entry.flow.reply == flow.reply && !whole {
            fill_in(&mut flow, &entry.flow);
        }
        entry.flow = flow;
        entry.schedule(tick);
        for subscriber in self.subscribers.values_mut() {
            subscriber.queue(&key, entry, now);
        }
        self.look_at.get_or_insert(now + LOOK);
        self.tidy();
    }

    pub(crate) fn handle_gone(&mut self, key: &FlowKey, now: Instant) {
        let Some(entry) = self.flows.remove(key) else { return };
        for subscriber in self.subscribers.values_mut() {
            if subscriber.remove(key, &entry, now) {
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

    /// Tenths of a second since the first moment.
    fn tick(&mut self, now: Instant) -> u32 {
        let first = *self.first_moment.get_or_insert(now);
        (now.saturating_duration_since(first).as_millis() / 100) as u32
    }

    /// A queue holds what waits, and what has gone or moved ahead meanwhile: not more of that than of flows.
    fn tidy(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.tidy(&mut self.flows);
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let checks = self.subscribers.values().filter_map(Subscriber::next_due);
        self.look_at.into_iter().chain(checks).min()
    }

    /// Renews what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let Some(mut at) = self.look_at.take_if(|at| *at <= now) else { return };
        let tick = self.tick(now);
        let slice = SLICE.max(self.flows.len() / LOOKS);
        let interval = LOOK.min(LAP * slice as u32 / self.flows.len().max(1) as u32);
        let lap = interval * self.flows.len().div_ceil(slice) as u32;
        let until = tick + (lap.as_millis() / 100) as u32;
        // Whoever comes late has several looks to take, but one lap is enough for any delay.
        let mut seen = 0;
        while at <= now && seen < self.flows.len() {
            seen += slice;
            self.look(slice, (tick, until), now);
            at += interval;
        }
        if !self.flows.is_empty() {
            self.look_at = Some(at.max(now + interval / 2));
        }
    }

    /// Looks at the next flows, and renews what would be due before the next lap comes to it.
    fn look(&mut self, slice: usize, (tick, until): (u32, u32), now: Instant) {
        let from = self.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (at, (key, entry)) in self.flows.range_mut((from, Bound::Unbounded)).take(slice).enumerate() {
            if entry.renew.is_some_and(|renew| renew <= until) {
                entry.schedule(tick);
                for subscriber in self.subscribers.values_mut() {
                    subscriber.queue(key, entry, now);
                }
            }
            last = (at + 1 == slice).then_some(*key);
        }
        self.looked_at = last;
    }

    /// Begins to tell a standby everything. False if there are too many.
    pub(crate) fn subscribe(&mut self, peer: IpAddr, token: u32, generation: u32) -> bool {
        let others = self.subscribers.iter().filter(|(at, _)| **at != peer);
        let used = others.fold(0_u32, |used, (_, one)| used | 1 << one.slot);
        let slot = self.subscribers.get(&peer).map_or_else(|| used.trailing_ones(), |one| one.slot);
        if slot >= MAX_SUBSCRIBERS {
            return false;
        }
        self.clear(slot);
        self.subscribers.insert(peer, Subscriber::new(slot, token, generation));
        true
    }

    pub(crate) fn unsubscribe(&mut self, peer: IpAddr) {
        if let Some(gone) = self.subscribers.remove(&peer) {
            self.clear(gone.slot);
        }
    }

    fn clear(&mut self, slot: u32) {
        for entry in self.flows.values_mut() {
            entry.told &= !(1 << slot);
            entry.queued.iter_mut().for_each(|bits| *bits &= !(1 << slot));
        }
    }

    /// The token that a standby is being told under.
    pub(crate) fn token(&self, peer: IpAddr) -> Option<u32> {
        self.subscribers.get(&peer).map(|one| one.token)
    }

    pub(crate) fn generation(&self, peer: IpAddr) -> Option<u32> {
        self.subscribers.get(&peer).map(|one| one.generation)
    }

    /// Takes the next thing to tell a standby, and since when it was to be told.
    pub(crate) fn take(&mut self, peer: IpAddr, now: Instant) -> Option<(Item, Instant, Say)> {
        self.subscribers.get_mut(&peer).filter(|_| self.listed)?.take(&mut self.flows, now)
    }

    /// Tells whether `take` might have something.
    pub(crate) fn has_something(&self, peer: IpAddr, now: Instant) -> bool {
        self.listed && self.subscribers.get(&peer).is_some_and(|one| one.has_something(now))
    }

    /// What a message carried has arrived.
    pub(crate) fn acknowledged(&mut self, peer: IpAddr, generation: u32, (item, since): (Item, Instant), now: Instant) {
        if let Some(subscriber) = self.subscribers.get_mut(&peer).filter(|one| one.generation == generation) {
            subscriber.acknowledged(item, since, now);
            if matches!(item, Item::Flow(_) | Item::Delete(_)) {
                self.counters.lags.note(now.saturating_duration_since(since));
            }
        }
    }

    /// What a message carried was lost: it is told again, as it is then.
    pub(crate) fn lost(&mut self, peer: IpAddr, generation: u32, (item, since): (Item, Instant)) {
        if let Some(subscriber) = self.subscribers.get_mut(&peer).filter(|one| one.generation == generation) {
            subscriber.lost(item, since);
        }
    }

    /// The standbys that have fallen too far behind to be told what changed.
    pub(crate) fn hopeless(&self) -> Vec<IpAddr> {
        self.subscribers.iter().filter(|(_, one)| one.is_hopeless()).map(|(peer, _)| *peer).collect()
    }

    /// The standbys that have everything, but for what is on its way.
    pub(crate) fn complete(&self, now: Instant) -> BTreeSet<IpAddr> {
        self.subscribers.iter().filter(|(_, one)| one.is_complete(now)).map(|(peer, _)| *peer).collect()
    }

    /// How far the slowest standby is behind, or was at last where none is, and whether all have everything; `None` if
    /// there is none.
    pub(crate) fn lag(&self, now: Instant) -> Option<(Duration, bool)> {
        let behind = self.subscribers.values().filter_map(|one| one.behind(now)).max();
        let last = self.subscribers.values().map(Subscriber::last_took).max()?;
        Some((behind.unwrap_or(last), self.subscribers.values().all(Subscriber::is_live)))
    }
}

impl Entry {
    fn schedule(&mut self, tick: u32) {
        self.renew = None;
        if !is_over(&self.flow) {
            self.flow.timeout_s = self.flow.timeout_s.max(MIN_TIMEOUT_S);
            self.renew = Some(tick.saturating_add(self.flow.timeout_s.saturating_mul(10) / 3 * 2));
        }
    }
}

/// A notification tells only what has changed: the rest is as it was.
fn fill_in(flow: &mut Flow, old: &Flow) {
    flow.tcp = flow.tcp.or(old.tcp);
    flow.labels = if flow.labels == [0; 16] { old.labels } else { flow.labels };
    if flow.timeout_s == 0 {
        flow.timeout_s = old.timeout_s;
    }
    for (adjustment, old) in flow.sequence_adjustment.iter_mut().zip(old.sequence_adjustment) {
        *adjustment = adjustment.or(old);
    }
}

fn same_but_timeout(a: &Flow, b: &Flow) -> bool {
    Flow { timeout_s: b.timeout_s, ..*a } == *b
}
