//! Whether the hosts that share routers with this one live: one BFD session with each, however many
//! routers they share.
//!
//! A session that goes down because nothing is heard any more stands in for the expiry of the
//! Active_Down_Timer of every router that was active there, so a takeover takes tenths of a second where
//! VRRP at Neutron's interval takes seconds. Why that does not make two actives:
//!
//! - **The host is dead.** Nothing is sent by it, on any path. Every backup notices in its own time; they
//!   go by rank (`VirtualRouter::handle_peer_down`), so one takes over and the others hear it.
//! - **Only the path between the tunnel addresses is cut**, and advertisements still arrive (an HA network
//!   that is a VLAN; or one direction lost). An advertisement later than the last packet here proves that
//!   the host outlived the path, and nothing moves. If none was due in between, the backup asks the
//!   active for one and listens before it takes over; an active answers at once. Either way nothing
//!   moves, and the operator is told, once.
//! - **The peer says Down** instead of falling silent: it lives, and does not hear *us*. Nothing moves.
//! - **The peer's keeper is stopped on purpose**: it says AdminDown here and priority 0 there. The second
//!   counts. Without the second it is being restarted ([`Engine::handle_restart`]) while its kernel goes on, and
//!   silence of it is no reason to take over for [`RESTART`].
//! - **The peer's keeper was killed**, while its kernel goes on forwarding. If it is back, has resumed and
//!   advertised within the detection time, that advertisement contradicts the silence and nothing moves.
//!   If not, another copy takes over with a higher epoch; and a keeper that finds itself in the kernel as
//!   active asks the other hosts for what they know before it resumes (`mastership`).
//! - **We were not running ourselves**: BFD does not count that time against the peer.
//! - **Tunnels and HA network are cut at once between hosts that both live**: neither path says anything,
//!   as with VRRP alone, only sooner. So the backup also asks by way of other hosts ([`inquiry`](super::inquiry)).
//!   The first question goes out when a packet is late (`Engine::doubts`), and so costs no time when the
//!   host is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use evergate_vrrp::bfd::MULTIHOP_PORT;
use evergate_vrrp::bfd::auth::Key;
use evergate_vrrp::bfd::session::{Config, SHORTEST_INTERVAL};
use evergate_vrrp::bfd::sessions::{Output, Path, Sessions};
use evergate_vrrp::bfd::wire::{Diagnostic, State};
use evergate_vrrp::router::{PeerDown, Suspicion};
use tracing::{info, warn};

use super::Engine;
use super::effect::Effect;
use crate::claims::wire::ClaimKey;
use crate::protocol::{BfdSettings, BfdStatus};

/// Longest listening for an active's answer: what a question and its answer take on a loaded network, with
/// both keepers being woken up. Shorter where the interval is: who wants 10 ms has a network for it.
pub(super) const LISTEN: Duration = Duration::from_millis(20);

/// How long the other hosts are patient with a keeper that is being restarted on purpose.
pub(super) const RESTART: Duration = Duration::from_secs(3);

/// The hosts' sessions.
#[derive(Debug)]
pub(super) struct Liveness {
    sessions: Option<Sessions>,
    in_force: Option<(BfdSettings, SocketAddr)>,
    /// How many routers are shared with each host.
    shared_with: BTreeMap<IpAddr, usize>,
    changed: bool,
    /// Hosts that fell silent, and whether it was told that their routers still advertise.
    gone: BTreeMap<IpAddr, bool>,
    /// Hosts that said that their silence is no failure, and until when that is believed.
    excused: BTreeMap<IpAddr, Instant>,
    seed: u64,
}

impl Liveness {
    pub(super) fn new(seed: u64) -> Self {
        let (shared_with, gone, excused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { sessions: None, in_force: None, shared_with, changed: false, gone, excused, seed }
    }

    /// Takes the settings; returns what to bind to if that has changed. Without a key there is no session:
    /// several hops away, anybody could say that a dead host lives.
    pub(super) fn configure(
        &mut self,
        settings: BfdSettings,
        at: Option<IpAddr>,
        key: Option<&ClaimKey>,
        now: Instant,
    ) -> Option<Option<SocketAddr>> {
        let wanted = key.zip(at).zip(NonZeroU8::new(settings.multiplier)).filter(|_| settings.interval_ms > 0);
        let Some(((key, at), multiplier)) = wanted else {
            let was = self.in_force.take();
            (self.sessions, self.gone) = (None, BTreeMap::new());
            return was.map(|_| None);
        };
        let address = SocketAddr::new(at, MULTIHOP_PORT);
        let interval = Duration::from_millis(settings.interval_ms.into()).max(SHORTEST_INTERVAL);
        let config = Config::symmetric(interval, multiplier);
        let keys = vec![Key::new(1, key.derived(b"bfd"))];
        let moved = self.in_force.replace((settings, address)).is_none_or(|(_, before)| before != address);
        match &mut self.sessions {
            Some(sessions) if !moved => sessions.handle_config(config, keys, now),
            // Sessions are between addresses: from another one they are others.
            Some(_) | None => {
                self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                self.sessions = Some(Sessions::new(Path::Multihop, config, keys, self.seed));
                self.changed = true;
            }
        }
        moved.then_some(Some(address))
    }

    /// A router is shared with other hosts than before.
    pub(super) fn share<'a>(
        &mut self,
        before: impl IntoIterator<Item = &'a IpAddr>,
        after: impl IntoIterator<Item = &'a IpAddr>,
    ) {
        for host in after {
            *self.shared_with.entry(*host).or_default() += 1;
            self.changed = true;
        }
        for host in before {
            self.changed = true;
            if let Some(count) = self.shared_with.get_mut(host) {
                *count -= 1;
                if *count == 0 {
                    self.shared_with.remove(host);
                    self.gone.remove(host);
                    self.excused.remove(host);
                }
            }
        }
    }

    /// Makes and ends sessions as routers are shared.
    pub(super) fn attend(&mut self, now: Instant) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let own = self.in_force.as_ref().map(|(_, address)| address.ip());
        let wanted: BTreeSet<IpAddr> = self.shared_with.keys().copied().filter(|host| Some(*host) != own).collect();
        if let Some(sessions) = &mut self.sessions {
            sessions.set_peers(&wanted, now);
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.sessions.is_some()
    }

    pub(super) fn handle_datagram(&mut self, datagram: &[u8], from: IpAddr, hop_limit: Option<u8>, now: Instant) {
        if let Some(sessions) = &mut self.sessions {
            sessions.handle_datagram(datagram, from, hop_limit, now);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(sessions) = &mut self.sessions {
            sessions.handle_timeout(now);
        }
    }

    /// Tells every peer that this host's silence will be no failure.
    pub(super) fn handle_stop(&mut self, now: Instant) {
        if let Some(sessions) = &mut self.sessions {
            sessions.handle_stop(now);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.as_ref()?.poll_timeout().map(|(at, _)| at)
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.sessions.as_mut()?.poll_output()
    }

    /// Whether a host is heard; `None`: no BFD is spoken with it.
    pub(super) fn hears(&self, host: IpAddr) -> Option<bool> {
        Some(self.sessions.as_ref()?.session(host)?.state() == State::Up)
    }

    /// When a host was last heard, and how far apart its packets were.
    pub(super) fn last_heard(&self, host: IpAddr) -> Option<(Instant, Duration)> {
        let session = self.sessions.as_ref()?.session(host)?;
        Some((session.heard_at()?, session.heard_interval()))
    }

    /// Whether the session with a host is up.
    pub(super) fn is_up(&self, host: IpAddr) -> bool {
        self.hears(host) == Some(true)
    }

    /// The hosts that packets are expected of: when each was last heard, and the silence after which it is
    /// given up.
    pub(super) fn waiting_for(&self) -> impl Iterator<Item = (IpAddr, Instant, Duration)> {
        let up = |host: &IpAddr| {
            let session = self.sessions.as_ref()?.session(*host).filter(|session| session.state() == State::Up)?;
            Some((*host, session.heard_at()?, session.detection_time()))
        };
        self.shared_with.keys().filter_map(up)
    }

    /// A session went down because the host said so: if it said that this is on purpose, it is excused.
    fn note_said_down(&mut self, host: IpAddr, now: Instant) {
        self.note_back(host);
        let session = self.sessions.as_ref().and_then(|sessions| sessions.session(host));
        if session.is_some_and(|session| session.status().remote_state == State::AdminDown) {
            self.excused.insert(host, now + RESTART);
        }
    }

    /// Until when a host's silence is no failure, if it said so.
    pub(super) fn excused_until(&self, host: IpAddr, now: Instant) -> Option<Instant> {
        self.excused.get(&host).copied().filter(|until| *until > now)
    }

    /// A host fell silent.
    pub(super) fn note_gone(&mut self, host: IpAddr) {
        self.gone.insert(host, false);
    }

    /// A host is heard again, or has said why it is not.
    pub(super) fn note_back(&mut self, host: IpAddr) -> bool {
        self.gone.remove(&host).is_some()
    }

    /// A host that fell silent here advertises there: what to tell, once.
    pub(super) fn contradicted(&mut self, host: IpAddr) -> Option<String> {
        let told = self.gone.get_mut(&host).filter(|told| !**told)?;
        *told = true;
        Some(format!(
            "{host} is not heard at its tunnel address any more, but its routers still advertise: \
             is the way between the tunnel addresses cut? Its routers stay where they are"
        ))
    }

    pub(super) fn discards(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.sessions.iter().flat_map(Sessions::discards).map(|(reason, count)| (reason.name(), count))
    }

    pub(super) fn status(&self) -> Vec<BfdStatus> {
        let sessions = self.sessions.iter().flat_map(Sessions::status);
        let micros = |duration: Duration| duration.as_micros() as u64;
        sessions
            .map(|(peer, status)| BfdStatus {
                peer: Some(peer),
                state: status.state.name().to_owned(),
                remote_state: status.remote_state.name().to_owned(),
                diagnostic: status.diagnostic.to_string(),
                transmit_interval_us: micros(status.transmit_interval),
                receive_interval_us: micros(status.receive_interval),
                detection_time_us: micros(status.detection_time),
            })
            .collect()
    }
}

impl Engine {
    /// Takes a datagram from the BFD socket.
    pub fn handle_bfd(&mut self, datagram: &[u8], from: IpAddr, hop_limit: Option<u8>, now: Instant) {
        self.shared.liveness.handle_datagram(datagram, from, hop_limit, now);
        if let Some((heard, _)) = self.shared.liveness.last_heard(from.to_canonical()) {
            self.hear_host(from.to_canonical(), heard);
        }
        self.attend_liveness(now);
        self.finish(now);
    }

    /// Makes and ends sessions, sends what they say, and acts upon what they found out.
    pub(super) fn attend_liveness(&mut self, now: Instant) {
        self.shared.liveness.attend(now);
        while let Some(output) = self.shared.liveness.poll_output() {
            match output {
                Output::Send { to, datagram } => {
                    let to = SocketAddr::new(to, MULTIHOP_PORT);
                    self.shared.effects.push_back(Effect::SendBfd { to, datagram });
                }
                Output::StateChanged { peer, from, to, diagnostic } => {
                    self.handle_session_change(peer, (from, to), diagnostic, now);
                }
            }
        }
    }

    fn handle_session_change(&mut self, peer: IpAddr, (from, to): (State, State), why: Diagnostic, now: Instant) {
        match (from, to) {
            // Whoever says that it is down, lives.
            (State::Up, State::Down) if why == Diagnostic::DETECTION_TIME_EXPIRED => self.host_gone(peer, now),
            (State::Up, State::Down) => {
                info!(%peer, reason = %why, "the BFD session is down, but the host lives");
                self.shared.liveness.note_said_down(peer, now);
            }
            (_, State::Up) => {
                let back = self.shared.liveness.note_back(peer);
                self.shared.liveness.excused.remove(&peer);
                // It may have been cut off, and not know who is active; its silence is noticed from now on, and what
                // that means depends on it.
                self.shared.outbox.tell_again(peer);
                info!(%peer, back, "the BFD session is up");
            }
            (State::AdminDown | State::Down | State::Init | State::Up, _) => {}
        }
    }

    /// Leaves everything as it is, for a keeper that is started in this one's place at once: the other hosts are
    /// told that silence is no failure, and the next keeper resumes from what it finds in the kernel.
    ///
    /// Tells whether they were: where no BFD is spoken, nobody is, and the others wait for as long as VRRP does.
    pub fn handle_restart(&mut self, now: Instant) -> bool {
        let excused = self.shared.liveness.is_on();
        info!(
            excused,
            "restarting: what is active here goes on, and the other hosts are patient if they were asked to be"
        );
        self.shared.liveness.handle_stop(now);
        self.attend_liveness(now);
        excused
    }

    /// Tells every router whose active copy may be on a host that the host is gone.
    fn host_gone(&mut self, peer: IpAddr, now: Instant) {
        let Some((last_heard, interval)) = self.shared.liveness.last_heard(peer) else { return };
        let listen = interval.min(LISTEN);
        self.shared.liveness.note_gone(peer);
        let heard_elsewhere = self.shared.agreement.company.last_heard(peer);
        let seen = heard_elsewhere.is_some_and(|at| at > last_heard + interval);
        let concerned: Vec<_> =
            self.copies.values().filter_map(|copy| Some((copy.id(), copy.address_of(peer)?))).collect();
        let (mut listening, mut contradicted) = (0, 0);
        for (router, address) in concerned {
            let down = PeerDown { peer: address, last_heard, interval, listen };
            self.with(router, |copy, shared| match copy.peer_down(&down, (peer, seen), shared, now) {
                Suspicion::Listening => listening += 1,
                Suspicion::Contradicted => contradicted += 1,
                Suspicion::Irrelevant => {}
            });
        }
        warn!(%peer, routers = listening, advertising = contradicted, "a host is not heard any more");
        if contradicted > 0 {
            self.shared.still_advertises(peer);
        }
    }
}
