//! Hosts that are gone, and hosts that only seem to be.

use evergate_vrrp::bfd::auth::Key;
use evergate_vrrp::bfd::session as bfd;
use evergate_vrrp::bfd::sessions::{Output, Path, Sessions};
use evergate_vrrp::bfd::wire::{Diagnostic, State};
use evergate_vrrp::router::Version;

use super::*;

#[test]
fn a_host_that_falls_silent_is_asked_and_then_replaced() {
    let (mut host, mut peer) = Host::with_session();
    host.hear(advertisement(200, 50));
    host.run_beside(&mut peer, Duration::from_millis(500));
    host.log.clear();
    // It dies: within the detection time its one router is here.
    host.advance(Duration::from_millis(900 + 20));
    assert_eq!(host.state(), "active");
    assert_eq!(host.log[..2], ["ask 0", "advertise 50"]);
    assert!(host.log.contains(&"transition active 1".to_owned()), "{:?}", host.log);
}

#[test]
fn a_host_that_was_heard_to_be_active_by_its_claim_alone_is_replaced_as_fast() {
    let (mut host, mut peer) = Host::with_session();
    host.claim_from(THEIRS, Kind::Repeat, 1);
    host.run_beside(&mut peer, Duration::from_millis(500));
    assert_eq!(host.state(), "backup");
    host.advance(Duration::from_millis(900 + 20));
    assert_eq!(host.state(), "active");
}

#[test]
fn the_routers_of_a_dead_host_are_claimed_before_the_kernel_is_ready() {
    let (mut host, mut peer) = Host::with_session();
    host.hear(advertisement(200, 50));
    host.run_beside(&mut peer, Duration::from_millis(500));
    host.log.clear();
    host.kernel_stalls = true;
    host.advance(Duration::from_millis(900 + 20));
    assert_eq!(host.state(), "active");
    assert!(host.sent_to(THIRD) > 0, "{:?}", host.log);
    assert!(!host.log.iter().any(|line| line.starts_with("announce") || line.starts_with("transition")));
    // Nobody is told twice.
    host.claim_from(THIRD, Kind::Ack, 1);
    let told = host.sent_to(THIRD);
    host.kernel_goes_on();
    assert_eq!(host.sent_to(THIRD), told);
}

#[test]
fn a_host_whose_router_still_advertises_keeps_it_and_the_operator_is_told_once() {
    // Whether the advertisement came before the silence was noticed, or answers the question.
    for answers in [false, true] {
        let (mut host, mut peer) = Host::with_session();
        host.hear(advertisement(200, 50));
        host.run_beside(&mut peer, Duration::from_millis(100));
        host.log.clear();
        host.advance(Duration::from_millis(600));
        if !answers {
            host.hear(advertisement(200, 50));
        }
        while !host.is_down(THEIRS) {
            host.advance(Duration::from_millis(10));
        }
        assert_eq!(host.log.contains(&"ask 0".to_owned()), answers, "{:?}", host.log);
        for _ in 0..5 {
            host.hear(advertisement(200, 50));
            host.advance(Duration::from_secs(2));
        }
        assert_eq!(host.state(), "backup");
        let told: Vec<_> = host.log.iter().filter(|line| line.contains("still advertise")).collect();
        assert_eq!(told.len(), 1, "{:?}", host.log);
        // When it dies in earnest, VRRP notices.
        host.advance(ACTIVE_DOWN);
        assert_eq!(host.state(), "active");
    }
}

#[test]
fn a_host_that_says_that_it_is_down_or_stops_is_not_replaced() {
    for stops in [true, false] {
        let (mut host, mut peer) = Host::with_session();
        host.hear(advertisement(200, 50));
        if stops {
            peer.sessions.handle_stop(host.now);
        } else {
            // It does not hear us: its side goes down, and it says so.
            peer.deaf = true;
        }
        host.run_beside(&mut peer, Duration::from_millis(1500));
        assert_eq!(host.state(), "backup");
        assert!(!host.log.iter().any(|line| line.starts_with("ask")), "{:?}", host.log);
    }
}

#[test]
fn a_host_that_has_another_router_is_no_matter_and_sessions_follow_the_routers() {
    let (mut host, _) = Host::with_session();
    assert_eq!(host.engine.status().bfd[0].state, "up");
    host.hear(advertisement(201, 50)); // the third host's copy is active
    host.log.clear();
    host.advance(Duration::from_secs(1));
    assert_eq!((host.state(), host.log.len()), ("backup".to_owned(), 0));
    host.spec.peer_hosts.clear();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(5));
    assert_eq!(host.engine.status().bfd, []);
}

#[test]
fn without_a_key_or_an_interval_no_bfd_is_spoken() {
    for (interval_ms, claim_key) in [(0, "00"), (300, "")] {
        let mut host = Host::new();
        let bfd = BfdSettings { interval_ms, multiplier: 3 };
        host.say(ToKeeper::Settings { settings: Settings { bfd, claim_key: claim_key.to_owned(), ..settings() } });
        host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 200), THEIRS);
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        host.advance(Duration::from_secs(2));
        assert_eq!((host.bfd_out.len(), host.engine.status().bfd.len()), (0, 0));
    }
}

#[test]
fn a_stopping_keeper_says_that_its_silence_is_no_failure() {
    let (mut host, mut peer) = Host::with_session();
    host.engine.handle_stop(host.now);
    host.settle();
    host.run_beside(&mut peer, Duration::from_millis(1));
    assert_eq!(peer.last_change, Some((State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)));
}

#[test]
fn a_keeper_that_is_restarted_on_purpose_is_given_time_even_at_short_intervals() {
    let mut host = Host::beside(THEIRS, 300);
    (host.spec.vrrp_version, host.spec.advertise_interval_cs) = (3, 10);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.claim_from(THEIRS, Kind::Claim, 1);
    host.log.clear();
    let config = Config::neutron(Vrid::new(1).unwrap(), COPY);
    let config = Config { version: Version::V3, advertise_interval_cs: 10, ..config };
    host.hear(frame_of(&config, 200, 50));
    peer.stop(host.now);
    host.run_beside(&mut peer, Duration::from_millis(2900));
    assert_eq!(host.state(), "backup", "{:?}", host.log);
    host.advance(Duration::from_millis(400));
    assert_eq!(host.state(), "active", "but not for ever");

    // Whoever restarts says so, and touches nothing.
    let (mut host, mut peer) = Host::with_session();
    host.hear(advertisement(200, 0));
    host.run_beside(&mut peer, Duration::from_secs(2));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    host.log.clear();
    host.engine.handle_restart(host.now);
    host.settle();
    host.run_beside(&mut peer, Duration::from_millis(1));
    assert_eq!(peer.last_change, Some((State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)));
    assert_eq!((host.kernel.len(), host.log.len()), (4, 0), "{:?}", host.log);
}

/// The other host's end of the session.
pub(super) struct Peer {
    address: IpAddr,
    pub(super) sessions: Sessions,
    pub(super) deaf: bool,
    /// It was stopped, and stays so.
    stopped: bool,
    pub(super) last_change: Option<(State, Diagnostic)>,
}

impl Peer {
    pub(super) fn new(address: IpAddr, interval_ms: u64) -> Self {
        let config = bfd::Config::symmetric(Duration::from_millis(interval_ms), 3.try_into().unwrap());
        let keys = vec![Key::new(1, key().derived(b"bfd"))];
        let sessions = Sessions::new(Path::Multihop, config, keys, 77);
        Self { address, sessions, deaf: false, stopped: false, last_change: None }
    }

    pub(super) fn stop(&mut self, now: Instant) {
        self.stopped = true;
        self.sessions.handle_stop(now);
    }
}

impl Host {
    /// Backup of a router that it shares with another host.
    pub(super) fn beside(other: IpAddr, interval_ms: u32) -> Self {
        let mut host = Self::new();
        host.say(ToKeeper::Settings { settings: bfd_settings(interval_ms) });
        host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 200), other);
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.state(), "backup");
        host
    }

    /// The same, with a session between the two that is up.
    pub(super) fn with_session() -> (Self, Peer) {
        let (mut host, mut peer) = (Self::beside(THEIRS, 300), Peer::new(THEIRS, 300));
        host.run_beside(&mut peer, Duration::from_secs(3));
        (host, peer)
    }

    pub(super) fn run_beside(&mut self, peer: &mut Peer, duration: Duration) {
        let end = self.now + duration;
        if !peer.stopped {
            peer.sessions.set_peers(&BTreeSet::from([OURS]), self.now);
        }
        loop {
            for (to, datagram) in std::mem::take(&mut self.bfd_out) {
                assert_eq!(to, peer.address);
                if !peer.deaf {
                    peer.sessions.handle_datagram(&datagram, OURS, None, self.now);
                }
            }
            while let Some(output) = peer.sessions.poll_output() {
                match output {
                    Output::Send { datagram, .. } => {
                        self.engine.handle_bfd(&datagram, peer.address, None, self.now);
                        self.settle();
                    }
                    Output::StateChanged { to, diagnostic, .. } => peer.last_change = Some((to, diagnostic)),
                }
            }
            let timers = [self.engine.poll_timeout().map(|(at, _)| at), peer.sessions.poll_timeout().map(|(at, _)| at)];
            let Some(next) = timers.into_iter().flatten().min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            peer.sessions.handle_timeout(self.now);
            self.engine.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    pub(super) fn is_down(&self, peer: IpAddr) -> bool {
        self.engine.status().bfd.iter().any(|session| session.peer == Some(peer) && session.state == "down")
    }
}
