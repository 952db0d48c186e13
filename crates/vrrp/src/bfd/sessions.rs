//! All sessions of a host: one per peer, told apart, authenticated and counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Instant;

use super::HOP_LIMIT;
use super::auth::{Key, Sequences, silence};
use super::session::{Config, Output as SessionOutput, Session, Status, Timer};
use super::wire::{Diagnostic, Discard, Packet, State};

/// How far away peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// On the same link (RFC 5881): a packet that crossed a router is refused.
    SingleHop,
    /// Anywhere (RFC 5883): the TTL says nothing, authentication does.
    Multihop,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram to the peer.
    Send {
        /// To whom.
        to: IpAddr,
        /// UDP payload.
        datagram: Vec<u8>,
    },
    /// Tell whoever listens.
    StateChanged {
        /// With whom.
        peer: IpAddr,
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        diagnostic: Diagnostic,
    },
}

/// All sessions of a host.
///
/// Calling order as for [`Session`]. Bounded by the peers that it was told of: a stranger gets no session.
#[derive(Debug)]
pub struct Sessions {
    path: Path,
    config: Config,
    keys: Vec<Key>,
    peers: BTreeMap<IpAddr, Peer>,
    by_discriminator: BTreeMap<NonZeroU32, IpAddr>,
    discards: BTreeMap<Discard, u64>,
    random: u64,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Peer {
    session: Session,
    sequences: Sequences,
    /// Not wanted any more: goes when it has said so for long enough.
    leaving: bool,
}

impl Sessions {
    /// Makes it without peers. `keys`: the first one signs, all of them are believed; none: no
    /// authentication. The seed must be unpredictable to others where there are keys.
    pub fn new(path: Path, config: Config, keys: Vec<Key>, seed: u64) -> Self {
        Self {
            path,
            config,
            keys,
            peers: BTreeMap::new(),
            by_discriminator: BTreeMap::new(),
            discards: BTreeMap::new(),
            random: seed | 1,
            outputs: VecDeque::new(),
        }
    }

    /// Sets whom there are sessions with. One that is not wanted any more is held down on purpose, so
    /// that the peer does not take it for a failure, and forgotten a little later.
    pub fn set_peers(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) {
        for &address in wanted {
            match self.peers.get_mut(&address) {
                Some(peer) if peer.leaving => {
                    peer.leaving = false;
                    peer.session.handle_admin_up(now);
                }
                Some(_) => {}
                None => self.add(address, now),
            }
        }
        for (address, peer) in &mut self.peers {
            if !wanted.contains(address) {
                peer.leaving = true;
                peer.session.handle_admin_down(now);
            }
        }
        self.drain();
    }

    fn add(&mut self, address: IpAddr, now: Instant) {
        let discriminator = self.new_discriminator();
        let session = Session::new(self.config, discriminator, self.next_random(), now);
        let sequences = Sequences::new(self.next_random() as u32);
        self.peers.insert(address, Peer { session, sequences, leaving: false });
        self.by_discriminator.insert(discriminator, address);
    }

    /// RFC 5880 §6.8.1: random, not 0, and unique here.
    fn new_discriminator(&mut self) -> NonZeroU32 {
        loop {
            if let Some(number) = NonZeroU32::new((self.next_random() >> 16) as u32)
                && !self.by_discriminator.contains_key(&number)
            {
                return number;
            }
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Takes changed intervals, and keys. What was signed with an old key is refused from now on.
    pub fn handle_config(&mut self, config: Config, keys: Vec<Key>, now: Instant) {
        (self.config, self.keys) = (config, keys);
        for peer in self.peers.values_mut() {
            peer.session.handle_config(config, now);
        }
        self.drain();
    }

    /// Holds every session down on purpose: this host leaves.
    pub fn handle_stop(&mut self, now: Instant) {
        self.set_peers(&BTreeSet::new(), now);
    }

    /// Takes a datagram. `hop_limit`: the TTL it arrived with, where it is known.
    pub fn handle_datagram(&mut self, datagram: &[u8], from: IpAddr, hop_limit: Option<u8>, now: Instant) {
        if let Err(reason) = self.take(datagram, from.to_canonical(), hop_limit, now) {
            *self.discards.entry(reason).or_default() += 1;
        }
        self.drain();
    }

    fn take(&mut self, datagram: &[u8], from: IpAddr, hop_limit: Option<u8>, now: Instant) -> Result<(), Discard> {
        // RFC 5881 §5: over a single hop nobody else can send a packet that arrives with 255.
        if self.path == Path::SingleHop && hop_limit != Some(HOP_LIMIT) {
            return Err(Discard::TtlNot255);
        }
        let packet = Packet::parse(datagram)?;
        // RFC 5880 §6.8.6: by discriminator; before the peer knows ours, by where it comes from.
        let address = match NonZeroU32::new(packet.control.your_discriminator) {
            Some(number) => *self.by_discriminator.get(&number).ok_or(Discard::UnknownDiscriminator)?,
            None => from,
        };
        // A session is with an address: a packet with a discriminator that was overheard is no peer's.
        if address != from {
            return Err(Discard::UnknownPeer);
        }
        let peer = self.peers.get_mut(&address).ok_or(Discard::UnknownPeer)?;
        let silent = silence(peer.session.heard_at(), now);
        peer.sequences.forget_if_silent(silent, peer.session.detection_time());
        peer.sequences.verify(&packet, &self.keys)?;
        peer.session.handle_control(&packet.control, now)
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            if peer.session.poll_timeout().is_some_and(|(at, _)| at <= now) {
                peer.session.handle_timeout(now);
            }
        }
        self.drain();
        let by_discriminator = &mut self.by_discriminator;
        self.peers.retain(|_, peer| {
            let stays = !(peer.leaving && peer.session.is_quiet(now));
            if !stays {
                by_discriminator.remove(&peer.session.discriminator());
            }
            stays
        });
    }

    fn drain(&mut self) {
        for (&address, peer) in &mut self.peers {
            while let Some(output) = peer.session.poll_output() {
                self.outputs.push_back(match output {
                    SessionOutput::Transmit(control) => {
                        let datagram = match self.keys.first() {
                            Some(key) => peer.sequences.emit(&control, key),
                            None => control.emit(),
                        };
                        Output::Send { to: address, datagram }
                    }
                    SessionOutput::StateChanged { from, to, diagnostic } => {
                        Output::StateChanged { peer: address, from, to, diagnostic }
                    }
                });
            }
        }
    }

    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells when to call `handle_timeout`, and for which timer.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.peers.values().filter_map(|peer| peer.session.poll_timeout()).min()
    }

    /// The session with a peer.
    pub fn session(&self, peer: IpAddr) -> Option<&Session> {
        self.peers.get(&peer).map(|peer| &peer.session)
    }

    /// Every session, as `show` prints it.
    pub fn status(&self) -> impl Iterator<Item = (IpAddr, Status)> {
        self.peers.iter().map(|(&address, peer)| (address, peer.session.status()))
    }

    /// Refused packets, by reason.
    pub fn discards(&self) -> impl Iterator<Item = (Discard, u64)> {
        self.discards.iter().map(|(&reason, &count)| (reason, count))
    }
}
