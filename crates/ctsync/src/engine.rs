//! A host's side of replication, for all its routers and towards all its peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_model::RouterId;
use evergate_model::flow::{Flow, FlowKey};

use crate::link::{Carried, Link};
use crate::message::{Malformed, Message, Record, Writer};
use crate::mirror::{Change, Mirror, Verdict};
use crate::subscriber::{Lags, Say};
use crate::table::{Counters, Table, is_replicated};

/// What a peer may subscribe to: more than any host has routers.
const MAX_SUBSCRIPTIONS: usize = 65_536;
/// Items that one message carries at most: the smallest is a removal of about 20 bytes.
const MAX_ITEMS: usize = 64;
/// The kernel's work for a listing, in look-ups of one flow: so many for its empty table, and one more for so many flows
/// of all namespaces together (`benches/events.rs` of `evergate-kernel`).
const LISTING_IN_LOOK_UPS: (usize, usize) = (1_024, 16);

/// What a host's copy of a router is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It tells.
    Active {
        /// The epoch that it became active with.
        epoch: u64,
    },
    /// It is told.
    Standby,
}

/// What the engine must be told of a router's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// What became of these flows, by [`Engine::handle_looked_up`]. If the kernel holds others, a listing is to follow at
    /// leisure.
    LookUp(Vec<FlowKey>),
    /// All flows, by [`Engine::handle_listing`]. An active copy tells nothing before that.
    Listing,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows of one router that are replicated. What is more is counted as shed.
    pub max_flows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Four times the kernel's usual bound for one namespace.
        Self { max_flows: 1 << 20 }
    }
}

/// How a router's replication goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterStats {
    /// Whether this copy tells.
    pub active: bool,
    /// Flows told of, or kept ready.
    pub entries: u64,
    /// Standbys that are told; on a standby, 1 if somebody tells it.
    pub peers: u64,
    /// Whether everything there is has been told: by this copy to all standbys, or to this one.
    pub in_step: bool,
    /// How long the oldest change has been waiting that a standby has not confirmed; where there is none, how
    /// long the last one took.
    pub lag: Duration,
    /// Changes that standbys have confirmed, by how long that took.
    pub lags: Lags,
    /// Flows that ended before they could be told, or that did not fit.
    pub shed: u64,
    /// Flows that a standby was told of and that its kernel has no room for.
    pub missing: u64,
    /// Streams that were begun anew because the two sides disagreed.
    pub resyncs: u64,
}

#[derive(Debug)]
enum Side {
    Active { epoch: u64, table: Table },
    Standby(Mirror),
}

#[derive(Debug)]
struct Router {
    peers: BTreeSet<IpAddr>,
    side: Side,
    resyncs: u64,
    /// Of tables that this copy had when it was active before.
    former: Counters,
}

impl Router {
    fn entries(&self) -> usize {
        match &self.side {
            Side::Active { table, .. } => table.len(),
            Side::Standby(mirror) => mirror.len(),
        }
    }

    /// Of this and of former tables.
    fn counters(&self) -> Counters {
        let mut counters = self.former;
        if let Side::Active { table, .. } = &self.side {
            counters.shed += table.counters.shed;
            counters.lags.add(&table.counters.lags);
        }
        counters
    }
}

/// Replication for all routers of a host.
///
/// Calling order: [`Engine::set_router`] and [`Engine::remove_router`] say what there is; the first answers what it must be
/// told of the router's kernel. A link to a peer
/// exists from [`Engine::handle_peer_up`] on, which is said again whenever its process is another one. After
/// any input take everything from [`Engine::poll_changes`] (and answer with [`Engine::handle_injected`]) and
/// [`Engine::poll_transmit`], then sleep until [`Engine::poll_timeout`] and call [`Engine::handle_timeout`].
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    routers: BTreeMap<RouterId, Router>,
    links: BTreeMap<IpAddr, Link>,
    changes: VecDeque<(RouterId, Vec<Change>)>,
    /// Numbers of subscriptions and of streams; never 0.
    counter: u32,
}

impl Engine {
    /// Makes one. `seed` spreads the numbers of its streams, so that those of an earlier life do not fit.
    pub fn new(limits: Limits, seed: u32) -> Self {
        Self { limits, routers: BTreeMap::new(), links: BTreeMap::new(), changes: VecDeque::new(), counter: seed }
    }

    /// Says what this host's copy of a router is, and at which tunnel addresses the others are. Tells what must
    /// be said of its kernel: a copy that was told of flows knows their names, and one that told of them knows them.
    pub fn set_router(&mut self, router: RouterId, role: Role, peers: BTreeSet<IpAddr>) -> Wanted {
        let (before, former) = match self.routers.get(&router) {
            Some(known) => (Some((role_of(&known.side), known.resyncs)), known.counters()),
            None => (None, Counters::default()),
        };
        let same_role = matches!(
            (before, role),
            (Some((Role::Active { .. }, _)), Role::Active { .. }) | (Some((Role::Standby, _)), Role::Standby)
        );
        let wanted = if same_role {
            if let Some(known) = self.routers.get_mut(&router) {
                known.peers = peers;
                if let (Side::Active { epoch, .. }, Role::Active { epoch: new }) = (&mut known.side, role) {
                    *epoch = new;
                }
            }
            Wanted::Nothing
        } else {
            let (side, wanted) = self.begin(router, role);
            let resyncs = before.map_or(0, |(_, resyncs)| resyncs);
            self.routers.insert(router, Router { peers, side, resyncs, former });
            wanted
        };
        self.align(router);
        wanted
    }

    /// A copy in a new role.
    fn begin(&self, router: RouterId, role: Role) -> (Side, Wanted) {
        let before = self.routers.get(&router).map(|router| &router.side);
        match (role, before) {
            (Role::Active { epoch }, before) => {
                let side = Side::Active { epoch, table: Table::new(self.limits.max_flows) };
                let (empty, each) = LISTING_IN_LOOK_UPS;
                let all = || self.routers.values().map(Router::entries).sum::<usize>();
                let is_less = |look_ups: usize| look_ups <= empty || look_ups <= empty + all() / each;
                match before {
                    Some(Side::Standby(mirror)) if mirror.is_listed() && is_less(mirror.len()) => {
                        (side, Wanted::LookUp(mirror.in_kernel().collect()))
                    }
                    Some(Side::Standby(_) | Side::Active { .. }) | None => (side, Wanted::Listing),
                }
            }
            (Role::Standby, Some(Side::Active { table, .. })) if table.is_listed() => {
                (Side::Standby(Mirror::of(table.flows())), Wanted::Nothing)
            }
            (Role::Standby, _) => (Side::Standby(Mirror::default()), Wanted::Listing),
        }
    }

    /// The router's copy is gone from this host.
    pub fn remove_router(&mut self, router: RouterId) {
        if self.routers.remove(&router).is_some() {
            for link in self.links.values_mut() {
                want(link, router, 0);
            }
        }
    }

    /// Brings subscriptions in line with the router's role and peers.
    fn align(&mut self, router: RouterId) {
        let Some(entry) = self.routers.get_mut(&router) else { return };
        match &mut entry.side {
            Side::Active { table, .. } => {
                for (peer, link) in &mut self.links {
                    want(link, router, 0);
                    let asked = link.subscribed.get(&router).filter(|_| entry.peers.contains(peer)).copied();
                    match asked {
                        Some(token) if table.token(*peer) != Some(token) => {
                            self.counter = next(self.counter);
                            table.subscribe(*peer, token, self.counter);
                        }
                        Some(_) => {}
                        None => table.unsubscribe(*peer),
                    }
                }
            }
            Side::Standby(mirror) => {
                for (peer, link) in &mut self.links {
                    if !entry.peers.contains(peer) {
                        mirror.tokens.remove(peer);
                        want(link, router, 0);
                    } else if !mirror.tokens.contains_key(peer) {
                        self.counter = next(self.counter);
                        mirror.tokens.insert(*peer, self.counter);
                        want(link, router, self.counter);
                    }
                }
            }
        }
    }

    /// A peer's process is there: the first time, or another one than before.
    pub fn handle_peer_up(&mut self, peer: IpAddr) {
        self.drop_peer(peer);
        self.links.insert(peer, Link::new());
        for router in self.routers.keys().copied().collect::<Vec<_>>() {
            self.align(router);
        }
    }

    /// A host is no peer any more.
    pub fn handle_peer_removed(&mut self, peer: IpAddr) {
        self.drop_peer(peer);
    }

    fn drop_peer(&mut self, peer: IpAddr) {
        self.links.remove(&peer);
        for router in self.routers.values_mut() {
            match &mut router.side {
                Side::Active { table, .. } => table.unsubscribe(peer),
                Side::Standby(mirror) => mirror.peer_restarted(peer),
            }
        }
    }

    /// Everything that the kernel holds of a router.
    pub fn handle_listing(&mut self, router: RouterId, flows: Vec<Flow>, now: Instant) {
        let flows = flows.into_iter().filter(|flow| is_replicated(&flow.original)).collect::<Vec<_>>();
        match self.routers.get_mut(&router).map(|router| &mut router.side) {
            Some(Side::Active { table, .. }) => table.handle_listing(flows, now),
            Some(Side::Standby(mirror)) => {
                let changes = mirror.handle_listing(&flows);
                self.changed(router, changes);
            }
            None => {}
        }
    }

    /// Those that there are of the flows that were asked for.
    pub fn handle_looked_up(&mut self, router: RouterId, flows: Vec<Flow>, now: Instant) {
        // One that stands by again since is told.
        if let Some(Side::Active { table, .. }) = self.routers.get_mut(&router).map(|router| &mut router.side) {
            table.handle_looked_up(flows, now);
        }
    }

    /// The kernel says that a flow appeared or changed; what it does not say is as it was.
    pub fn handle_changed(&mut self, router: RouterId, flow: Flow, now: Instant) {
        if let Some(Side::Active { table, .. }) = self.routers.get_mut(&router).map(|router| &mut router.side) {
            table.handle_changed(flow, false, now);
        }
    }

    /// The kernel says that a flow is gone.
    pub fn handle_gone(&mut self, router: RouterId, key: &FlowKey, now: Instant) {
        if let Some(Side::Active { table, .. }) = self.routers.get_mut(&router).map(|router| &mut router.side) {
            table.handle_gone(key, now);
        }
    }

    /// Takes a message of a peer that is up, as the transport made sure.
    pub fn handle_message(&mut self, peer: IpAddr, bytes: &[u8], now: Instant) -> Result<(), Malformed> {
        let message = Message::parse(bytes)?;
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        if let Some(ack) = message.ack {
            let (arrived, lost) = link.acknowledged(ack, now);
            self.settle(peer, arrived, lost, now);
        }
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        if message.sequence > 0 && link.take(message.sequence) {
            for record in message.records {
                self.handle_record(peer, record, now);
            }
        }
        Ok(())
    }

    fn settle(&mut self, peer: IpAddr, arrived: Vec<Carried>, lost: Vec<Carried>, now: Instant) {
        for (carried, has_arrived) in arrived.into_iter().map(|c| (c, true)).chain(lost.into_iter().map(|c| (c, false)))
        {
            match carried {
                Carried::Subscribe { router, token } => {
                    let Some(link) = self.links.get_mut(&peer) else { continue };
                    match (link.subscriptions.get(&router) == Some(&token), has_arrived) {
                        (true, false) => drop(link.to_subscribe.insert(router)),
                        // A withdrawal that has arrived needs no memory.
                        (true, true) if token == 0 => drop(link.subscriptions.remove(&router)),
                        (true, true) | (false, _) => {}
                    }
                }
                Carried::Table { router, generation, item, since } => {
                    let side = self.routers.get_mut(&router).map(|router| &mut router.side);
                    match (side, has_arrived) {
                        (Some(Side::Active { table, .. }), true) => {
                            table.acknowledged(peer, generation, (item, since), now);
                        }
                        (Some(Side::Active { table, .. }), false) => table.lost(peer, generation, (item, since)),
                        (Some(Side::Standby(_)) | None, _) => {}
                    }
                }
            }
        }
    }

    fn handle_record(&mut self, peer: IpAddr, record: Record, now: Instant) {
        if let Record::Subscribe { router, token } = record {
            return self.handle_subscribe(peer, router, token);
        }
        let (Record::Begin { router, .. }
        | Record::Put { router, .. }
        | Record::Delete { router, .. }
        | Record::Check { router, .. }
        | Record::Subscribe { router, .. }) = record;
        let Some(Side::Standby(mirror)) = self.routers.get_mut(&router).map(|router| &mut router.side) else { return };
        let mut changes = Vec::new();
        let mut verdict = Verdict::Fine;
        match record {
            Record::Begin { token, generation, epoch, .. } => mirror.begin(peer, token, generation, epoch, now),
            Record::Put { generation, flow, .. } => changes.extend(mirror.put(peer, generation, flow, now)),
            Record::Delete { generation, key, .. } => changes.extend(mirror.delete(peer, generation, key, now)),
            Record::Check { generation, count, digest, .. } => {
                (changes, verdict) = mirror.check(peer, generation, (count, digest), now);
            }
            Record::Subscribe { .. } => {}
        }
        if verdict == Verdict::Resubscribe && mirror.tokens.remove(&peer).is_some() {
            self.align(router);
        }
        self.changed(router, changes);
    }

    fn changed(&mut self, router: RouterId, mut changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        match self.changes.back_mut().filter(|(last, _)| *last == router) {
            Some((_, more)) => more.append(&mut changes),
            None => self.changes.push_back((router, changes)),
        }
    }

    fn handle_subscribe(&mut self, peer: IpAddr, router: RouterId, token: u32) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if token == 0 {
            link.subscribed.remove(&router);
        } else if link.subscribed.len() < MAX_SUBSCRIPTIONS || link.subscribed.contains_key(&router) {
            link.subscribed.insert(router, token);
        }
        if matches!(self.routers.get(&router).map(|router| &router.side), Some(Side::Active { .. })) {
            self.align(router);
        }
    }

    /// Takes what a router's kernel must be told, in order.
    pub fn poll_changes(&mut self) -> Option<(RouterId, Vec<Change>)> {
        self.changes.pop_front()
    }

    /// Takes what came of changes: what they put is in the kernel now, but for what is missing there.
    pub fn handle_injected(&mut self, router: RouterId, changes: &[Change], missing: &BTreeSet<FlowKey>) {
        // A copy that has become active since looks for itself.
        if let Some(Side::Standby(mirror)) = self.routers.get_mut(&router).map(|router| &mut router.side) {
            mirror.injected(changes, missing);
        }
    }

    /// Names a flow of those that this copy keeps ready in the kernel, which may go so that one that matters more has
    /// room; each once, until it changes.
    pub fn take_lesser(&mut self, router: RouterId) -> Option<FlowKey> {
        match &mut self.routers.get_mut(&router)?.side {
            Side::Standby(mirror) => mirror.take_lesser(),
            Side::Active { .. } => None,
        }
    }

    /// Takes the next message to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(IpAddr, Vec<u8>)> {
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            if let Some(bytes) = self.transmit_to(peer, now) {
                return Some((peer, bytes));
            }
        }
        None
    }

    fn transmit_to(&mut self, peer: IpAddr, now: Instant) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&peer)?;
        if link.has_window() {
            let mut writer = Writer::new(link.next_sequence(), link.ack());
            let mut carried = Vec::new();
            while carried.len() < MAX_ITEMS && writer.has_room() {
                let Some(router) = link.to_subscribe.pop_first() else { break };
                let Some(&token) = link.subscriptions.get(&router) else { continue };
                writer.push(&Record::Subscribe { router, token });
                carried.push(Carried::Subscribe { router, token });
            }
            self.fill(peer, &mut writer, &mut carried, now);
            let link = self.links.get_mut(&peer)?;
            if !writer.is_empty() {
                link.sent(carried, now);
                link.ack_due = false;
                return Some(writer.finish());
            }
        }
        let link = self.links.get_mut(&peer)?;
        std::mem::take(&mut link.ack_due).then(|| Writer::new(0, link.ack()).finish())
    }

    /// Fills a message with what routers have to say, each in turn.
    fn fill(&mut self, peer: IpAddr, writer: &mut Writer, carried: &mut Vec<Carried>, now: Instant) {
        let turn = self.links.get(&peer).and_then(|link| link.turn);
        let after = turn.map_or(Bound::Unbounded, Bound::Excluded);
        let ready = |(id, router): (&RouterId, &Router)| match &router.side {
            Side::Active { table, .. } if table.has_something(peer, now) => Some(*id),
            Side::Active { .. } | Side::Standby(_) => None,
        };
        let later = self.routers.range((after, Bound::Unbounded)).filter_map(ready);
        let first = turn.into_iter().flat_map(|turn| self.routers.range(..=turn)).filter_map(ready);
        let order: Vec<RouterId> = later.chain(first).take(MAX_ITEMS).collect();
        for router in order {
            let Some(Side::Active { table, epoch }) = self.routers.get_mut(&router).map(|router| &mut router.side)
            else {
                continue;
            };
            let Some(generation) = table.generation(peer) else { continue };
            while carried.len() < MAX_ITEMS && writer.has_room() {
                let Some((item, since, say)) = table.take(peer, now) else { break };
                writer.push(&record(router, generation, *epoch, say));
                carried.push(Carried::Table { router, generation, item, since });
            }
            if let Some(link) = self.links.get_mut(&peer) {
                link.turn = Some(router);
            }
            if carried.len() >= MAX_ITEMS || !writer.has_room() {
                return;
            }
        }
    }

    /// When `handle_timeout` is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self.links.values().filter_map(Link::deadline);
        let tables = self.routers.values().filter_map(|router| match &router.side {
            Side::Active { table, .. } => table.next_due(),
            Side::Standby(_) => None,
        });
        links.chain(tables).min()
    }

    /// Gives up on messages that were not answered, and renews what would be forgotten.
    pub fn handle_timeout(&mut self, now: Instant) {
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            let lost = self.links.get_mut(&peer).map(|link| link.overdue(now)).unwrap_or_default();
            self.settle(peer, Vec::new(), lost, now);
        }
        for router in self.routers.values_mut() {
            if let Side::Active { table, .. } = &mut router.side {
                table.handle_timeout(now);
                for peer in table.hopeless() {
                    if let Some(token) = table.token(peer) {
                        self.counter = next(self.counter);
                        table.subscribe(peer, token, self.counter);
                        router.resyncs += 1;
                    }
                }
            }
        }
    }

    /// How each router's replication goes.
    pub fn stats(&self, now: Instant) -> BTreeMap<RouterId, RouterStats> {
        self.routers.iter().map(|(id, router)| (*id, stats_of(router, now))).collect()
    }

    /// The standbys that have been told of everything there is in this copy's table, but for what has just happened.
    pub fn complete(&self, router: RouterId, now: Instant) -> BTreeSet<IpAddr> {
        match self.routers.get(&router).map(|router| &router.side) {
            Some(Side::Active { table, .. }) => table.complete(now),
            Some(Side::Standby(_)) | None => BTreeSet::new(),
        }
    }

    /// Places that are taken in what waits to be told (for tests): bounded by the number of flows.
    pub fn waiting(&self, router: RouterId) -> usize {
        self.routers.get(&router).map_or(0, |router| match &router.side {
            Side::Active { table, .. } => table.waiting(),
            Side::Standby(_) => 0,
        })
    }

    /// How many flows this copy tells of, or has been told of.
    pub fn entries(&self, router: RouterId) -> usize {
        self.routers.get(&router).map_or(0, Router::entries)
    }
}

fn stats_of(router: &Router, now: Instant) -> RouterStats {
    match &router.side {
        Side::Active { table, .. } => {
            let (lag, in_step) = table.lag(now).unwrap_or((Duration::ZERO, false));
            RouterStats {
                active: true,
                entries: table.len() as u64,
                peers: router.peers.iter().filter(|peer| table.token(**peer).is_some()).count() as u64,
                in_step,
                lag,
                lags: router.counters().lags,
                shed: router.counters().shed,
                missing: 0,
                resyncs: router.resyncs,
            }
        }
        Side::Standby(mirror) => RouterStats {
            active: false,
            entries: (mirror.len() - mirror.missing()) as u64,
            peers: u64::from(mirror.is_complete()),
            in_step: mirror.is_complete(),
            lag: Duration::ZERO,
            lags: router.former.lags,
            shed: router.former.shed,
            missing: mirror.missing() as u64,
            resyncs: router.resyncs + mirror.resyncs,
        },
    }
}

fn role_of(side: &Side) -> Role {
    match side {
        Side::Active { epoch, .. } => Role::Active { epoch: *epoch },
        Side::Standby(_) => Role::Standby,
    }
}

fn record(router: RouterId, generation: u32, epoch: u64, say: Say) -> Record {
    match say {
        Say::Begin { token, generation } => Record::Begin { router, token, generation, epoch },
        Say::Put(flow) => Record::Put { router, generation, flow },
        Say::Delete(key) => Record::Delete { router, generation, key },
        Say::Check { count, digest } => Record::Check { router, generation, count, digest },
    }
}

/// Subscribes, or withdraws a subscription (token 0).
fn want(link: &mut Link, router: RouterId, token: u32) {
    let known = link.subscriptions.get(&router).copied();
    if token == 0 && known.is_none() || known == Some(token) {
        return;
    }
    link.subscriptions.insert(router, token);
    link.to_subscribe.insert(router);
}

fn next(counter: u32) -> u32 {
    counter.checked_add(1).unwrap_or(1)
}
