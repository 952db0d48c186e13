//! Sessions with neighbours (`bfd_instance`): one engine each, and one socket that hears all neighbours of a
//! namespace, address family and port.
//!
//! They live in the speaker's loop, because a late packet of ours is a failure to the neighbour.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_kernel::rt::{Datagram, Epoll, HopSocket, NetnsFd};
use evergate_vrrp::bfd::session::Config;
use evergate_vrrp::bfd::sessions::{Output, Path, Sessions};
use evergate_vrrp::bfd::wire::{MAX_LEN, State};
use evergate_vrrp::bfd::{MULTIHOP_PORT, SINGLE_HOP_PORT, SOURCE_PORTS};
use tracing::{info, warn};

use crate::conf::{BfdInstance, What};
use crate::track::TrackId;

/// Datagrams that are taken from one socket before others have their turn.
const READS_AT_ONCE: usize = 64;

/// When to try again to open what could not be opened: an address may not be configured yet.
const RETRY: Duration = Duration::from_secs(1);

/// All sessions.
#[derive(Debug)]
pub(crate) struct Bfd {
    /// Epoll tokens from here on are sockets.
    tokens: u64,
    ears: Vec<Ear>,
    calls: BTreeMap<TrackId, Call>,
    seed: u64,
}

/// Hears everybody of a namespace on one port.
#[derive(Debug)]
struct Ear {
    netns: Option<String>,
    address: SocketAddr,
    socket: HopSocket,
}

/// One session.
#[derive(Debug)]
struct Call {
    spec: BfdInstance,
    sessions: Sessions,
    mouth: Option<HopSocket>,
    retry_at: Option<Instant>,
    is_up: bool,
    told: bool,
}

/// A session that came up or went down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: TrackId,
    pub(crate) is_up: bool,
}

impl Bfd {
    pub(crate) fn new(tokens: u64) -> Self {
        // Only spreads what several do at the same time; nothing is signed.
        let seed = u64::from(std::process::id()) << 20 | 1;
        Self { tokens, ears: Vec::new(), calls: BTreeMap::new(), seed }
    }

    /// Sets whom there are sessions with. One that stays notices nothing.
    pub(crate) fn set(&mut self, wanted: BTreeMap<TrackId, BfdInstance>, now: Instant) {
        let is_same = |a: &BfdInstance, b: &BfdInstance| {
            (a.neighbour, a.source, a.ttl, a.max_hops, a.multihop)
                == (b.neighbour, b.source, b.ttl, b.max_hops, b.multihop)
        };
        let gone: Vec<TrackId> = self
            .calls
            .iter()
            .filter(|(id, call)| !wanted.get(id).is_some_and(|spec| is_same(spec, &call.spec)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            if let Some(call) = self.calls.remove(&id) {
                call.hang_up(now);
            }
        }
        for (id, spec) in wanted {
            match self.calls.get_mut(&id) {
                Some(call) if call.spec == spec => {}
                Some(call) => {
                    call.sessions.handle_config(spec.config(), Vec::new(), now);
                    call.spec = spec;
                }
                None => {
                    self.seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    self.calls.insert(id, Call::new(spec, self.seed, now));
                }
            }
        }
        let calls = &self.calls;
        self.ears.retain(|ear| {
            calls.iter().any(|((netns, ..), call)| *netns == ear.netns && call.spec.listens_at() == ear.address)
        });
    }

    /// What each session is, for what tracks it.
    pub(crate) fn is_up(&self, id: &TrackId) -> bool {
        self.calls.get(id).is_some_and(|call| call.is_up)
    }

    /// Opens what is not open yet, in namespaces that `find` knows.
    pub(crate) fn open<'a>(
        &mut self,
        now: Instant,
        epoll: &Epoll,
        find: impl Fn(&Option<String>) -> Option<&'a NetnsFd>,
    ) {
        for (id, call) in &mut self.calls {
            if call.mouth.is_some() || call.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            let Some(netns) = find(&id.0) else { continue };
            let address = call.spec.listens_at();
            let is_heard = self.ears.iter().any(|ear| ear.netns == id.0 && ear.address == address);
            let opened = call.open(netns).and_then(|mouth| {
                if !is_heard {
                    let socket = inside(netns, || HopSocket::bind(address))?;
                    self.ears.push(Ear { netns: id.0.clone(), address, socket });
                }
                Ok(mouth)
            });
            match opened {
                Ok(mouth) => (call.mouth, call.retry_at, call.told) = (Some(mouth), None, false),
                Err(error) => {
                    call.retry_at = Some(now + RETRY);
                    if !std::mem::replace(&mut call.told, true) {
                        warn!(bfd = id.2, "cannot be spoken: {error}; trying again");
                    }
                }
            }
        }
        for (ear, token) in self.ears.iter().zip(self.tokens..) {
            // One that is watched already keeps its token only if it kept its place.
            let _ = epoll.remove(&ear.socket);
            if let Err(error) = epoll.add(&ear.socket, token) {
                warn!("BFD on {} cannot be watched: {error}", ear.address);
            }
        }
    }

    /// Takes what has arrived at a socket.
    pub(crate) fn serve(&mut self, token: u64, now: Instant) -> Vec<Change> {
        let Some(ear) = self.ears.get((token - self.tokens) as usize) else { return Vec::new() };
        let mut buffer = [0; MAX_LEN + 1];
        for _ in 0..READS_AT_ONCE {
            // An error is what ICMP had to say: the neighbour is not there now.
            let Ok(Some(datagram)) = ear.socket.recv(&mut buffer) else { break };
            let Datagram { length, from, hop_limit } = datagram;
            let is_from = |id: &TrackId, call: &Call| {
                id.0 == ear.netns
                    && call.spec.listens_at() == ear.address
                    && call.spec.neighbour == from.ip().to_canonical()
            };
            // From anybody else: there is no session with him.
            let Some((_, call)) = self.calls.iter_mut().find(|(id, call)| is_from(id, call)) else { continue };
            if call.spec.is_near_enough(hop_limit) {
                call.sessions.handle_datagram(&buffer[..length], from.ip(), hop_limit, now);
            }
        }
        self.carry_out()
    }

    /// Fires the timers that are due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Change> {
        for call in self.calls.values_mut() {
            if call.sessions.poll_timeout().is_some_and(|(at, _)| at <= now) {
                call.sessions.handle_timeout(now);
            }
        }
        self.carry_out()
    }

    /// When to call `handle_timeout`.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.calls.values().filter_map(|call| call.sessions.poll_timeout()).map(|(at, _)| at).min()
    }

    /// When to call `open` again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.calls.values().filter_map(|call| call.retry_at).min()
    }

    /// Tells every neighbour that this is no failure.
    pub(crate) fn stop(self, now: Instant) {
        for call in self.calls.into_values() {
            call.hang_up(now);
        }
    }

    fn carry_out(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, call) in &mut self.calls {
            if let Some(is_up) = call.carry_out(&id.2) {
                changes.push(Change { id: id.clone(), is_up });
            }
        }
        changes
    }
}

impl Call {
    fn new(spec: BfdInstance, seed: u64, now: Instant) -> Self {
        // The TTL is judged here, by what the configuration says of it.
        let mut sessions = Sessions::new(Path::Multihop, spec.config(), Vec::new(), seed);
        sessions.set_peers(&[spec.neighbour].into(), now);
        Self { spec, sessions, mouth: None, retry_at: None, is_up: false, told: false }
    }

    fn open(&self, netns: &NetnsFd) -> io::Result<HopSocket> {
        let source = self.spec.source.unwrap_or(any(self.spec.neighbour));
        inside(netns, || HopSocket::bind_in(source, SOURCE_PORTS, std::process::id() as u16))
    }

    /// Sends what is to be sent; tells of a change.
    fn carry_out(&mut self, name: &str) -> Option<bool> {
        let mut change = None;
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Send { to, datagram } => {
                    if let Some(mouth) = &self.mouth {
                        // What cannot be sent is lost, as on the wire.
                        let _ = mouth.send(&datagram, SocketAddr::new(to, self.spec.port()));
                    }
                }
                Output::StateChanged { to, diagnostic, .. } => {
                    let is_up = to == State::Up;
                    if is_up != self.is_up {
                        info!(bfd = name, neighbour = %self.spec.neighbour, state = to.name(), %diagnostic, "session changed");
                        (self.is_up, change) = (is_up, Some(is_up));
                    }
                }
            }
        }
        change
    }

    fn hang_up(mut self, now: Instant) {
        self.sessions.handle_stop(now);
        self.carry_out("");
    }
}

impl BfdInstance {
    fn config(&self) -> Config {
        Config { desired_min_tx: self.min_tx, required_min_rx: self.min_rx, detect_mult: self.multiplier }
    }

    fn port(&self) -> u16 {
        if self.multihop { MULTIHOP_PORT } else { SINGLE_HOP_PORT }
    }

    fn listens_at(&self) -> SocketAddr {
        SocketAddr::new(any(self.neighbour), self.port())
    }

    /// RFC 5881 §5: over one hop, a packet arrives with the TTL that it was sent with.
    fn is_near_enough(&self, hop_limit: Option<u8>) -> bool {
        self.max_hops == u8::MAX || hop_limit.is_some_and(|ttl| ttl >= self.ttl.saturating_sub(self.max_hops))
    }
}

fn any(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn inside<T: Send>(netns: &NetnsFd, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.run(open).map_err(|error| io::Error::other(error.full()))?
}

/// The identity of a session.
pub(crate) fn id(netns: &Option<String>, name: &str) -> TrackId {
    (netns.clone(), What::Bfd, name.to_owned())
}
