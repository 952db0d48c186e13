//! The thread that replicates connections: its own event queue, its own sockets, at ordinary priority.
//!
//! Advertisements never wait for it. What it knows it is told by [`Command`]s; what there is to say about
//! it, it leaves in a shared place.
//!
//! Where much happens it works in rounds: after each it rests for [`GATHER`], or until a command comes, so that a
//! wake-up, a datagram and a system call serve many flows, and what begins and ends within a round is never told.
//! What happens after a quiet moment is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use evergate_ctsync::{Engine, Limits, Role, Wanted};
use evergate_kernel::conntrack::{FlowEvent, FlowTable, FlowWatch};
use evergate_kernel::rt::{self, Epoll, NetnsFd};
use evergate_model::{FlowKey, RouterId};
use tracing::{debug, info, warn};

use super::Snapshot;
use super::inject;
use super::peer::{Peer, Us};
use super::seal::{ClusterKey, Discard, Life, MAX_DATAGRAM};
use crate::claims::OTHER_VERSION;
use crate::protocol::ReplicationStatus;

/// What waits to be received: a burst of a whole window of several peers.
const RECEIVE_BUFFER: i32 = 8 << 20;
/// Events that are taken before others have their turn.
const PER_TURN: usize = 1024;
/// Datagrams that are taken before what they say goes to the kernel and is acknowledged. Each carries up to 64
/// flows, which take the kernel some 10 us each: the sender should not wait so long that it sends them again.
const DATAGRAMS_PER_TURN: usize = 64;
/// Rest between two rounds of work.
const GATHER: Duration = Duration::from_millis(4);
/// How often what failed is tried again (a namespace that is not there yet, an address that cannot be bound).
const RETRY: Duration = Duration::from_millis(500);
/// A table is listed anew at most so often.
const RELIST: Duration = Duration::from_millis(500);
/// What a copy that became active found besides what it was told of is listed so much later: what matters then is what others
/// do with the processors.
const AT_LEISURE: Duration = Duration::from_secs(2);
/// A listing that took no longer is followed by the next at once: there was nothing to list.
const AT_ONCE: Duration = Duration::from_millis(1);
/// How fresh the shared status is while something happens.
const PUBLISH: Duration = Duration::from_millis(100);
/// How fresh it is otherwise.
const IDLE: Duration = Duration::from_secs(1);

const BELL: u64 = 0;
const SOCKET: u64 = 1;
const FIRST_ROUTER: u64 = 2;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Settings(Option<Setup>),
    Router { router: RouterId, netns: String, peers: BTreeSet<IpAddr> },
    Role { router: RouterId, role: Role },
    Remove { router: RouterId },
}

/// Where to talk, and with which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) key: ClusterKey,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// One router's namespace.
struct Local {
    netns: String,
    peers: BTreeSet<IpAddr>,
    role: Role,
    access: Option<Access>,
    list_at: Option<Instant>,
    told: bool,
}

struct Access {
    netns: NetnsFd,
    table: FlowTable,
    /// Only an active copy listens to its kernel.
    watch: Option<(FlowWatch, u64)>,
}

/// The thread's state.
pub(super) struct Worker {
    netns_path: PathBuf,
    /// The life that the next peer is met with.
    life: Life,
    engine: Engine,
    setup: Option<Setup>,
    socket: Option<UdpSocket>,
    retry_at: Option<Instant>,
    peers: BTreeMap<IpAddr, Peer>,
    routers: BTreeMap<RouterId, Local>,
    tokens: BTreeMap<u64, RouterId>,
    next_token: u64,
    epoll: Epoll,
    discards: BTreeMap<Discard, u64>,
    shared: Arc<Mutex<Arc<Snapshot>>>,
    publish_at: Instant,
    /// Nothing is listed before: the kernel may let nothing else have a processor while it lists (`FlowTable::list`), so
    /// after each listing others have as long.
    rest_until: Instant,
}

impl Worker {
    pub(super) fn new(netns_path: PathBuf, shared: Arc<Mutex<Arc<Snapshot>>>) -> anyhow::Result<Self> {
        let mut life = [0; 16];
        getrandom::fill(&mut life).map_err(|error| anyhow::anyhow!("failed to draw a random number: {error}"))?;
        let life = u128::from_ne_bytes(life) | 1;
        Ok(Self {
            netns_path,
            life: Life(life),
            engine: Engine::new(Limits::default(), (life >> 64) as u32),
            setup: None,
            socket: None,
            retry_at: None,
            peers: BTreeMap::new(),
            routers: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_ROUTER,
            epoll: Epoll::new()?,
            discards: BTreeMap::new(),
            shared,
            publish_at: Instant::now(),
            rest_until: Instant::now(),
        })
    }

    /// Runs until nobody gives commands any more.
    pub(super) fn run(mut self, commands: &Receiver<Command>, mut bell: UnixStream) -> anyhow::Result<()> {
        self.epoll.add(&bell, BELL)?;
        let (mut rest, mut rung) = (Epoll::new()?, Vec::new());
        rest.add(&bell, BELL)?;
        let mut ready = Vec::new();
        loop {
            let until = self.deadline();
            self.epoll.wait(Some(until), &mut ready)?;
            if ready.contains(&BELL) {
                // First the bell, then the list: the other way round, what comes in between would be silent.
                while matches!(bell.read(&mut [0; 256]), Ok(256)) {}
                loop {
                    match commands.try_recv() {
                        Ok(command) => self.take(command),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Ok(()),
                    }
                }
            }
            let mut all = true;
            for token in ready.iter().copied().filter(|token| *token != BELL) {
                all &= match token {
                    SOCKET => self.receive(),
                    router => self.read_events(router),
                };
            }
            if all {
                // An answer that was not read yet is not late.
                self.handle_timers(Instant::now());
            }
            self.transmit(Instant::now());
            self.publish(Instant::now());
            if all && ready.iter().any(|token| *token != BELL) {
                // A command ends the rest.
                rest.wait(Some(Instant::now() + GATHER), &mut rung)?;
            }
        }
    }

    fn deadline(&self) -> Instant {
        let greetings = self.peers.values().filter_map(Peer::deadline);
        let listings = self.routers.values().filter_map(|local| local.list_at).map(|at| at.max(self.rest_until));
        let idle = Instant::now() + IDLE;
        greetings.chain(listings).chain(self.retry_at).chain(self.engine.poll_timeout()).fold(idle, Instant::min)
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Settings(setup) => self.set_up(setup),
            Command::Router { router, netns, peers } => {
                let fresh = || Local {
                    netns: netns.clone(),
                    peers: BTreeSet::new(),
                    role: Role::Standby,
                    access: None,
                    list_at: None,
                    told: false,
                };
                if self.routers.get(&router).is_some_and(|local| local.netns != netns) {
                    self.remove(router);
                }
                self.routers.entry(router).or_insert_with(fresh).peers = peers;
                self.apply_router(router);
            }
            Command::Role { router, role } => {
                if let Some(local) = self.routers.get_mut(&router) {
                    local.role = role;
                    self.apply_router(router);
                }
            }
            Command::Remove { router } => self.remove(router),
        }
        self.align_peers();
    }

    fn remove(&mut self, router: RouterId) {
        self.unwatch(router);
        self.routers.remove(&router);
        self.engine.remove_router(router);
    }

    fn set_up(&mut self, setup: Option<Setup>) {
        if setup == self.setup && (setup.is_none() || self.socket.is_some()) {
            return;
        }
        let is_other = setup != self.setup;
        self.setup = setup;
        self.socket = None;
        self.retry_at = None;
        if is_other {
            for peer in std::mem::take(&mut self.peers).into_keys() {
                self.engine.handle_peer_removed(peer);
            }
        }
        let Some(setup) = &self.setup else {
            for router in self.routers.keys().copied().collect::<Vec<_>>() {
                self.close(router);
            }
            return;
        };
        let bound = UdpSocket::bind(SocketAddr::new(setup.address, setup.port)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            rt::set_receive_buffer(&socket, RECEIVE_BUFFER)?;
            self.epoll.add(&socket, SOCKET)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => {
                info!(address = %setup.address, port = setup.port, "connections are replicated");
                self.socket = Some(socket);
            }
            Err(error) => {
                if is_other {
                    warn!("connections cannot be replicated from {}: {error}; trying again", setup.address);
                }
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
        for router in self.routers.keys().copied().collect::<Vec<_>>() {
            self.apply_router(router);
        }
    }

    /// Hosts that have another copy of any router here are peers; others are not talked to.
    fn align_peers(&mut self) {
        let Some(setup) = &self.setup else { return };
        let wanted: BTreeSet<IpAddr> = self.routers.values().flat_map(|local| local.peers.iter().copied()).collect();
        let gone: Vec<IpAddr> = self.peers.keys().filter(|peer| !wanted.contains(peer)).copied().collect();
        for peer in gone {
            self.peers.remove(&peer);
            self.engine.handle_peer_removed(peer);
        }
        for peer in wanted.into_iter().filter(|peer| *peer != setup.address) {
            self.peers.entry(peer).or_insert_with(|| {
                let us = Us { key: setup.key.clone(), address: setup.address, life: self.life };
                self.life = self.life.next();
                Peer::new(us, peer, Instant::now())
            });
        }
    }

    fn close(&mut self, router: RouterId) {
        self.engine.remove_router(router);
        self.unwatch(router);
        if let Some(local) = self.routers.get_mut(&router) {
            local.access = None;
        }
    }

    /// Listens to a router's kernel no longer.
    fn unwatch(&mut self, router: RouterId) {
        let access = self.routers.get_mut(&router).and_then(|local| local.access.as_mut());
        if let Some((_, token)) = access.and_then(|access| access.watch.take()) {
            self.tokens.remove(&token);
        }
    }

    /// Brings sockets and engine in line with what the router's copy is.
    fn apply_router(&mut self, router: RouterId) {
        if self.setup.is_none() {
            return;
        }
        if self.routers.get(&router).is_some_and(|local| local.role == Role::Standby) {
            self.unwatch(router);
        }
        let Some(local) = self.routers.get_mut(&router) else { return };
        let result = open(local, &self.netns_path, &self.epoll, &mut self.next_token);
        match result {
            Ok(token) => drop(token.map(|token| self.tokens.insert(token, router))),
            Err(error) => {
                debug!(%router, "its connections cannot be replicated yet: {error}");
                self.retry_at.get_or_insert(Instant::now() + RETRY);
                return;
            }
        }
        let peers = local.peers.iter().copied().filter(|peer| self.setup.as_ref().is_none_or(|s| s.address != *peer));
        match self.engine.set_router(router, local.role, peers.collect()) {
            Wanted::Nothing => {}
            Wanted::LookUp(keys) => self.look_up(router, &keys),
            Wanted::Listing => local.list_at = Some(Instant::now()),
        }
    }

    /// Finds out what became of flows that this copy was told of.
    fn look_up(&mut self, router: RouterId, keys: &[FlowKey]) {
        let Some(local) = self.routers.get_mut(&router) else { return };
        let Some(access) = &mut local.access else { return };
        let now = Instant::now();
        let found = access.table.look_up(keys).and_then(|flows| Ok((access.table.count()?, flows)));
        match found {
            Ok((count, flows)) => {
                // What began before it was listened to here, or was there before anything was told.
                local.list_at = (count as usize > flows.len()).then(|| now + AT_LEISURE);
                self.engine.handle_looked_up(router, flows, now);
            }
            Err(error) => {
                warn!(%router, "{}; all are listed", error.full());
                local.list_at = Some(now);
            }
        }
    }

    /// Lists what is to be listed, first of copies that tell.
    fn list_due(&mut self, now: Instant) {
        if now < self.rest_until {
            return;
        }
        let due = |(id, local): (&RouterId, &Local)| {
            let at = local.list_at.filter(|at| *at <= now)?;
            Some((local.role == Role::Standby, at, *id))
        };
        let mut all: Vec<_> = self.routers.iter().filter_map(due).collect();
        all.sort_unstable();
        for (_, _, router) in all {
            let before = Instant::now();
            self.list(router);
            let took = before.elapsed();
            if took > AT_ONCE {
                self.rest_until = before + 2 * took;
                return;
            }
        }
    }

    fn list(&mut self, router: RouterId) {
        let Some(local) = self.routers.get_mut(&router) else { return };
        local.list_at = None;
        let Some(access) = &mut local.access else { return };
        match access.table.list() {
            Ok(flows) => {
                self.engine.handle_listing(router, flows, Instant::now());
                self.inject();
            }
            Err(error) => {
                warn!(%router, "{}; trying again", error.full());
                local.list_at = Some(Instant::now() + RELIST);
            }
        }
    }

    /// Takes what the kernel says of a router's flows; whether that was all.
    fn read_events(&mut self, token: u64) -> bool {
        let Some(&router) = self.tokens.get(&token) else { return true };
        let Some(local) = self.routers.get_mut(&router) else { return true };
        let Some((watch, _)) = local.access.as_mut().and_then(|access| access.watch.as_mut()) else { return true };
        let now = Instant::now();
        for _ in 0..PER_TURN {
            match watch.next_event() {
                Ok(Some(FlowEvent::Changed(seen))) => self.engine.handle_changed(router, seen.flow, now),
                Ok(Some(FlowEvent::Gone(key))) => self.engine.handle_gone(router, &key, now),
                Ok(Some(FlowEvent::Lost)) => drop(local.list_at.get_or_insert(now + RELIST)),
                Ok(None) => return true,
                Err(error) => {
                    warn!(%router, "{}", error.full());
                    local.list_at.get_or_insert(now + RELIST);
                    return true;
                }
            }
        }
        false
    }

    /// Takes datagrams and does what they say; whether those were all.
    fn receive(&mut self) -> bool {
        let mut datagram = [0; MAX_DATAGRAM + 1];
        let mut all = false;
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(socket) = &self.socket else { return true };
            let (length, from) = match socket.recv_from(&mut datagram) {
                Ok(received) => received,
                // What ICMP has to say about a datagram that was sent.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(_) => {
                    all = true;
                    break;
                }
            };
            if let Err(discard) = self.take_datagram(&datagram[..length], from) {
                let count = self.discards.entry(discard).or_default();
                *count += 1;
                if *count == 1 {
                    let words = if discard == Discard::Version { OTHER_VERSION } else { "" };
                    warn!(%from, "a datagram between hosts was refused: {discard}{words}");
                }
            }
        }
        self.inject();
        all
    }

    fn take_datagram(&mut self, datagram: &[u8], from: SocketAddr) -> Result<(), Discard> {
        let now = Instant::now();
        let peer = self.peers.get_mut(&from.ip()).ok_or(Discard::Stranger)?;
        let received = peer.receive(datagram, now)?;
        if received.is_new_life {
            debug!(peer = %from.ip(), "a host's replication has begun");
            self.engine.handle_peer_up(from.ip());
        }
        if let Some(answer) = received.answer {
            self.send(from.ip(), &answer);
        }
        match received.content {
            Some(content) => self.engine.handle_message(from.ip(), &content, now).map_err(|error| {
                if !self.discards.contains_key(&Discard::Content) {
                    warn!(peer = %from.ip(), "a host's replication cannot be understood: {error}");
                }
                Discard::Content
            }),
            None => Ok(()),
        }
    }

    /// Puts what was received into the kernel.
    fn inject(&mut self) {
        while let Some((router, changes)) = self.engine.poll_changes() {
            let Some(local) = self.routers.get_mut(&router) else { continue };
            let Some(access) = &mut local.access else { continue };
            let engine = &mut self.engine;
            let missing = inject::apply(&changes, |ops| access.table.apply(ops), || engine.take_lesser(router));
            engine.handle_injected(router, &changes, &missing.flows);
            if let Some(words) = missing.words.filter(|_| !local.told) {
                local.told = true;
                warn!(%router, "a replicated connection was refused by the kernel: {words}; later ones are only counted");
            }
        }
    }

    fn handle_timers(&mut self, now: Instant) {
        if self.engine.poll_timeout().is_some_and(|at| at <= now) {
            self.engine.handle_timeout(now);
        }
        self.list_due(now);
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            let greeting = self.peers.get_mut(&peer).filter(|peer| peer.deadline().is_some_and(|at| at <= now));
            if let Some(greeting) = greeting.map(|peer| peer.greet(now)) {
                self.send(peer, &greeting);
            }
        }
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            if self.socket.is_none() {
                self.set_up(self.setup.clone());
            }
            let unopened = |(id, local): (&RouterId, &Local)| {
                let watches = local.access.as_ref().is_some_and(|access| access.watch.is_some());
                let complete = local.access.is_some() && (local.role == Role::Standby || watches);
                (!complete).then_some(*id)
            };
            for router in self.routers.iter().filter_map(unopened).collect::<Vec<_>>() {
                self.apply_router(router);
            }
        }
    }

    fn transmit(&mut self, now: Instant) {
        while let Some((to, message)) = self.engine.poll_transmit(now) {
            if let Some(datagram) = self.peers.get_mut(&to).and_then(|peer| peer.seal(&message)) {
                self.send(to, &datagram);
            }
        }
    }

    /// What cannot be sent now is lost, and told again.
    fn send(&self, to: IpAddr, datagram: &[u8]) {
        if let (Some(socket), Some(setup)) = (&self.socket, &self.setup) {
            let _ = socket.send_to(datagram, SocketAddr::new(to, setup.port));
        }
    }

    fn publish(&mut self, now: Instant) {
        if now < self.publish_at {
            return;
        }
        self.publish_at = now + PUBLISH;
        let stats = self.engine.stats(now);
        let status = |router: &RouterId| {
            let stats = stats.get(router)?;
            Some(ReplicationStatus {
                router: *router,
                active: stats.active,
                entries: stats.entries,
                peers: stats.peers,
                in_step: stats.in_step,
                lag_us: stats.lag.as_micros() as u64,
                lags: stats.lags.0,
                shed: stats.shed,
                resyncs: stats.resyncs,
                refused: stats.missing,
            })
        };
        let complete = self.routers.keys().map(|router| (*router, self.engine.complete(*router, now)));
        let snapshot = Snapshot {
            complete: complete.filter(|(_, hosts)| !hosts.is_empty()).collect(),
            routers: self.routers.keys().filter_map(status).collect(),
            discards: self.discards.iter().map(|(discard, count)| (discard.to_string(), *count)).collect(),
        };
        // A reader that panicked has left nothing half-written.
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

/// Opens what the router's role needs; yields the token of a new watch.
fn open(
    local: &mut Local,
    netns_path: &std::path::Path,
    epoll: &Epoll,
    next_token: &mut u64,
) -> Result<Option<u64>, String> {
    let access = match &mut local.access {
        Some(access) => access,
        none => {
            let netns = NetnsFd::open(&netns_path.join(&local.netns)).map_err(|error| error.full())?;
            let table = FlowTable::open(&netns).map_err(|error| error.full())?;
            none.insert(Access { netns, table, watch: None })
        }
    };
    match local.role {
        Role::Standby => Ok(None),
        Role::Active { .. } if access.watch.is_some() => Ok(None),
        Role::Active { .. } => {
            let watch = FlowWatch::open(&access.netns).map_err(|error| error.full())?;
            let token = *next_token;
            *next_token += 1;
            epoll.add(&watch, token).map_err(|error| error.to_string())?;
            access.watch = Some((watch, token));
            Ok(Some(token))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread made to go by hand, with a router in the namespace that the test runs in.
    fn in_own_netns() -> (RouterId, Worker) {
        let router = RouterId::from_u128(1);
        let mut worker = Worker::new(PathBuf::from("/proc/self/ns"), Arc::default()).unwrap();
        let key = ClusterKey::new(b"cluster".to_vec()).unwrap();
        worker.take(Command::Settings(Some(Setup { key, address: IpAddr::from([127, 0, 0, 1]), port: 0 })));
        worker.take(Command::Router { router, netns: "net".to_owned(), peers: BTreeSet::new() });
        (router, worker)
    }

    /// Needs root, to listen to the namespace that it runs in.
    #[test]
    fn a_router_that_changes_its_role_again_and_again_leaves_nothing_of_it() {
        let (router, mut worker) = in_own_netns();
        let watches = |worker: &Worker| {
            let watch = worker.routers[&router].access.as_ref().and_then(|access| access.watch.as_ref());
            (watch.is_some(), worker.tokens.len())
        };
        for epoch in 1..4 {
            worker.take(Command::Role { router, role: Role::Active { epoch } });
            assert_eq!(watches(&worker), (true, 1), "tests of this crate must run as root");
            worker.take(Command::Role { router, role: Role::Standby });
            assert_eq!(watches(&worker), (false, 0));
        }
        worker.take(Command::Role { router, role: Role::Active { epoch: 4 } });
        worker.take(Command::Settings(None));
        assert_eq!(watches(&worker), (false, 0));
    }

    /// Needs root, to look into the namespace that it runs in.
    #[test]
    fn tables_are_listed_with_rests_between_and_a_copy_that_was_told_of_flows_looks_them_up() {
        let (router, mut worker) = in_own_netns();
        let due = |worker: &Worker| worker.routers[&router].list_at.is_some_and(|at| at <= Instant::now());
        assert!(due(&worker), "what its kernel holds is not known yet");
        worker.rest_until = Instant::now() + Duration::from_secs(3600);
        worker.list_due(Instant::now());
        assert!(due(&worker), "others have the processor");
        assert!(worker.deadline() > Instant::now(), "and nobody wakes up for it meanwhile");
        worker.rest_until = Instant::now();
        worker.list_due(Instant::now());
        assert!(!due(&worker), "it was listed");
        worker.take(Command::Role { router, role: Role::Active { epoch: 1 } });
        assert!(!due(&worker), "its flows were looked up");
        worker.take(Command::Role { router, role: Role::Standby });
        assert!(!due(&worker), "it knows what it told of");
    }

    /// Two hosts' threads, made to go by hand.
    fn two(port: u16) -> [(IpAddr, Worker); 2] {
        [1, 2].map(|last| {
            let address = IpAddr::from([127, 0, 0, last]);
            let mut worker = Worker::new(PathBuf::from("/nonexistent"), Arc::default()).unwrap();
            let key = ClusterKey::new(b"cluster".to_vec()).unwrap();
            worker.take(Command::Settings(Some(Setup { key, address, port })));
            worker.take(router(address));
            (address, worker)
        })
    }

    fn router(us: IpAddr) -> Command {
        let peers = [1, 2].map(|last| IpAddr::from([127, 0, 0, last])).into_iter().filter(|peer| *peer != us).collect();
        Command::Router { router: RouterId::from_u128(1), netns: "qrouter-1".to_owned(), peers }
    }

    /// Lets both go until each has proof of the other's present life.
    fn meet(hosts: &mut [(IpAddr, Worker); 2]) {
        let start = Instant::now();
        loop {
            for (_, worker) in hosts.iter_mut() {
                worker.receive();
                worker.handle_timers(Instant::now());
            }
            let [(_, a), (_, b)] = &*hosts;
            let met = |one: &Worker, other: &Worker| {
                let (one, other) = (one.peers.values().next(), other.peers.values().next());
                one.zip(other).is_some_and(|(one, other)| one.knows(other))
            };
            if met(a, b) && met(b, a) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "discarded: {:?}, {:?}", a.discards, b.discards);
        }
    }

    /// The first host says something that only the second one's engine refuses.
    fn say([(_, from), (to, at)]: &mut [(IpAddr, Worker); 2]) {
        let datagram = from.peers.get_mut(to).unwrap().seal(b"no message").unwrap();
        from.send(*to, &datagram);
        let heard = |at: &Worker| at.discards.values().sum::<u64>();
        let (before, start) = (heard(at), Instant::now());
        while heard(at) == before {
            at.receive();
            assert!(start.elapsed() < Duration::from_secs(20), "nothing arrives");
        }
    }

    #[test]
    fn hosts_that_part_with_their_last_common_router_meet_again_with_the_next() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut hosts = two(free);
        meet(&mut hosts);
        for said in 1..=3 {
            for _ in 0..100 {
                say(&mut hosts);
            }
            assert_eq!(hosts[1].1.discards.get(&Discard::Content), Some(&(100 * said)));
            assert_eq!(hosts[1].1.discards.get(&Discard::Replay), None);
            let (address, worker) = &mut hosts[0];
            worker.take(Command::Remove { router: RouterId::from_u128(1) });
            assert!(worker.peers.is_empty());
            worker.take(router(*address));
            meet(&mut hosts);
        }
    }
}
