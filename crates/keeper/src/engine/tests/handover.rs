//! Planned moves: the next copy is ready before this one stops.

use super::agreement::{Say, active, shared};
use super::liveness::Peer;
use super::*;

/// What a host says that wants this one to take over, in answer to a question of this number, if it was asked.
fn wanted_by(host: IpAddr, epoch: u64, number: u64) -> Question {
    let entries = vec![Entry { router: R, epoch, vtep: Some(host) }];
    Question { kind: Say::Handover, sender: host, origin: host, subject: OURS, number, entries }
}

impl Host {
    /// The number of the question whether this host is to take over, if it has asked another.
    fn asks_back(&mut self, other: IpAddr) -> Option<u64> {
        let asked = std::mem::take(&mut self.asked);
        let about = |(to, q): &&(IpAddr, Question)| *to == other && q.kind == Say::Question && q.entries.len() == 1;
        asked.iter().find(about).map(|(_, question)| question.number)
    }

    /// Another host hands over, and confirms it when it is asked.
    fn handed_over_by(&mut self, other: IpAddr, epoch: u64) {
        self.asked.clear();
        self.receive(&wanted_by(other, epoch, 0));
        let number = self.asks_back(other).expect("it asks whether it is still to");
        self.receive(&wanted_by(other, epoch, number));
    }
}

#[test]
fn a_handover_is_taken_when_it_is_confirmed_and_one_that_is_over_or_was_recorded_is_not() {
    let mut host = shared(200);
    host.claim_from(THEIRS, Kind::Claim, 3);
    host.hear(advertisement(200, 50));
    host.asked.clear();
    host.receive(&wanted_by(THEIRS, 2, 0));
    host.receive(&wanted_by(THIRD, 3, 0));
    assert_eq!(host.asks_back(THEIRS), None, "of an epoch that is over, or of a host that is not active");
    host.receive(&wanted_by(THEIRS, 3, 0));
    let number = host.asks_back(THEIRS).expect("it asks whether it is still to");
    assert_eq!(host.state(), "backup");
    // It was not, and is not any more: what it said then comes again, and so does what it said when it was asked before.
    host.advance(Duration::from_millis(400));
    for recorded in [0, number, number.wrapping_add(1000)] {
        host.receive(&wanted_by(THEIRS, 3, recorded));
        assert_eq!(host.state(), "backup");
    }
    let number = host.asks_back(THEIRS).expect("each time");
    host.receive(&wanted_by(THEIRS, 3, number));
    assert_eq!(host.state(), "active");
    assert!(host.log.contains(&"transition active 4".to_owned()), "{:?}", host.log);
    assert!(host.engine.status().routers[0].problem.is_empty());
}

#[test]
fn a_handover_is_confirmed_to_whom_it_is_offered_while_it_is() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    let entries = vec![Entry { router: R, epoch: 1, vtep: None }];
    let about = |from| Question {
        kind: Say::Question,
        sender: from,
        origin: from,
        subject: OURS,
        number: 77,
        entries: entries.clone(),
    };
    let asked_by = |host: &mut Host, from: IpAddr| {
        host.asked.clear();
        host.receive(&about(from));
        let said = std::mem::take(&mut host.asked);
        let confirmed = |(to, q): &&(IpAddr, Question)| q.kind == Say::Handover && (*to, q.number) == (from, 77);
        said.iter().filter(confirmed).map(|(_, question)| question.entries[0].epoch).next()
    };
    assert_eq!(asked_by(&mut host, THEIRS), None);
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    assert_eq!(asked_by(&mut host, THEIRS), Some(1));
    assert_eq!(asked_by(&mut host, THIRD), None, "it has no copy");
    // It is wanted here again.
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!((asked_by(&mut host, THEIRS), host.state()), (None, "active".to_owned()));
    // The other one did not take it in time.
    host.spec.wish = Some(WishSpec { host: THEIRS, at_once: true });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_millis(1));
    assert_eq!(asked_by(&mut host, THEIRS), Some(1));
    host.advance(Duration::from_millis(1100));
    assert_eq!((asked_by(&mut host, THEIRS), host.state()), (None, "active".to_owned()));
}

/// What was asked of another host's copy, as (receiver, epoch).
fn handovers(host: &mut Host) -> Vec<(IpAddr, u64)> {
    let asked = std::mem::take(&mut host.asked);
    let handovers = asked.into_iter().filter(|(_, question)| question.kind == Say::Handover);
    handovers.map(|(to, question)| (to, question.entries[0].epoch)).collect()
}

#[test]
fn a_stopping_keeper_hands_over_and_goes_on_until_the_other_is_ready() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.engine.handle_stop(host.now);
    host.settle();
    assert_eq!(handovers(&mut host), [(THEIRS, 1)]);
    host.advance(Duration::from_millis(120));
    assert_eq!(handovers(&mut host), [(THEIRS, 1); 2], "a request may be lost");
    // The other one advertises before its kernel is ready.
    host.hear(advertisement(200, 50));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    assert!(!host.log.iter().any(|line| line.contains("claim 192.0.2.2 claim")), "{:?}", host.log);
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert_eq!((host.state(), host.kernel.len()), ("backup".to_owned(), 4), "it goes on for a moment");
    assert!(!host.engine.is_stopped());
    host.advance(Duration::from_millis(300));
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
    assert!(!host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    assert!(host.log.contains(&"follow + 192.0.2.2".to_owned()), "{:?}", host.log);
}

#[test]
fn one_that_hands_over_after_a_dispute_goes_on_too_and_leads_no_frame_away_however_it_stepped_down() {
    for is_late in [false, true] {
        let mut host = active(200);
        // The other one was active until a moment ago.
        host.hear(advertisement(200, 50));
        host.say_known(THEIRS, 1, Some(OURS));
        host.engine.handle_stop(host.now);
        host.settle();
        host.log.clear();
        host.hear(advertisement(200, 50));
        assert_eq!(host.state(), "active", "it steps down when the other one is ready");
        if is_late {
            host.advance(Duration::from_millis(200));
            assert_eq!(host.state(), "backup", "the address has decided");
        }
        host.claim_from(THEIRS, Kind::Claim, 2);
        host.advance(Duration::from_millis(90));
        let follows = |host: &Host| host.log.iter().filter(|line| line.starts_with("follow")).count();
        assert_eq!((host.state(), host.kernel.len(), follows(&host)), ("backup".to_owned(), 4, 0), "{:?}", host.log);
        host.advance(Duration::from_millis(210));
        assert_eq!((host.kernel.len(), follows(&host)), (0, 1), "{:?}", host.log);
    }
}

#[test]
fn a_handover_that_nobody_takes_becomes_a_resignation() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.engine.handle_stop(host.now);
    host.settle();
    host.advance(Duration::from_millis(999));
    assert!(!host.engine.is_stopped() && host.kernel.len() == 4);
    host.advance(Duration::from_millis(10));
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
    assert!(host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
}

#[test]
fn a_router_that_is_taken_from_this_host_is_handed_over_first() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    assert_eq!(handovers(&mut host), [(THEIRS, 1)]);
    assert_eq!((host.kernel.len(), host.log.contains(&"removed".to_owned())), (4, false));
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert_eq!(host.kernel.len(), 4, "it goes on for a moment");
    host.advance(Duration::from_millis(300));
    assert_eq!(host.kernel, [""; 0]);
    assert_eq!(host.log[host.log.len() - 2..], ["close", "removed"]);
    assert!(!host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);

    // It is wanted again meanwhile.
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.log.clear();
    host.advance(Duration::from_secs(2));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    assert!(!host.log.contains(&"removed".to_owned()));
}

/// Active, with a standby on each of the two other hosts, and connections to replicate.
fn active_and_replicating() -> Host {
    let mut host = active(200);
    host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 5), THIRD);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.say(ToKeeper::Settings { settings: Settings { replication_port: Some(3797), ..settings() } });
    for other in [THEIRS, THIRD] {
        host.say_known(other, 1, Some(OURS));
    }
    host.asked.clear();
    host.log.clear();
    host
}

#[test]
fn all_handovers_ask_at_once_who_is_complete_and_only_while_somebody_lives() {
    const ROUTERS: u128 = 100;
    let mut host = active_and_replicating();
    for n in 2..=ROUTERS {
        let spec = RouterSpec { router: RouterId::from_u128(n), vrid: n as u8, ..host.spec.clone() };
        host.say(ToKeeper::Router(Box::new(spec)));
    }
    host.say(ToKeeper::Settings {
        settings: Settings { serve_alone: true, replication_port: Some(3797), ..settings() },
    });
    host.advance(2 * ACTIVE_DOWN);
    let active = host.engine.status().routers.iter().filter(|router| router.vrrp_state == "active").count();
    assert_eq!(active, ROUTERS as usize);
    host.say_known(THEIRS, 1, Some(OURS));
    host.engine.handle_stop(host.now);
    host.settle();
    assert_eq!(host.incomplete.iter().map(BTreeSet::len).collect::<Vec<_>>(), [ROUTERS as usize], "in one go");
    host.advance(Duration::from_millis(500));
    assert_eq!(host.incomplete.len(), 11, "and again every 50 ms");

    // Heard lately is not alive: while nobody is, nobody can be asked.
    let mut host = Host::beside(THEIRS, 300);
    host.say(ToKeeper::Settings { settings: Settings { replication_port: Some(3797), ..bfd_settings(300) } });
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    peer.stop(host.now);
    host.hear(advertisement(200, 0));
    host.run_beside(&mut peer, Duration::from_secs(2));
    host.engine.handle_stop(host.now);
    host.settle();
    host.advance(Duration::from_secs(2));
    assert_eq!((host.state(), host.incomplete.len()), ("active".to_owned(), 0));
}

#[test]
fn a_handover_waits_for_a_host_that_was_just_started_and_for_its_copy() {
    for returns in [true, false] {
        let mut host = Host::beside(THEIRS, 300);
        let replicating = Settings { replication_port: Some(3797), ..bfd_settings(300) };
        host.say(ToKeeper::Settings { settings: replicating });
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
        // It stops, as the first host of a rolling restart, and this one takes over.
        peer.stop(host.now);
        host.hear(advertisement(200, 0));
        host.run_beside(&mut peer, Duration::from_secs(2));
        assert_eq!(host.state(), "active");
        host.asked.clear();
        host.engine.handle_stop(host.now);
        host.settle();
        host.advance(Duration::from_secs(2));
        assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
        if !returns {
            host.advance(Duration::from_millis(3900));
            assert_eq!(handovers(&mut host), []);
            host.advance(Duration::from_millis(200));
            assert!(!handovers(&mut host).is_empty(), "it may be that BFD alone does not pass");
            host.advance(Duration::from_millis(1000));
            assert!(host.engine.is_stopped(), "but nobody waits for ever");
            continue;
        }
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_millis(2500));
        assert_eq!(handovers(&mut host), [], "its kernel does not hold the connections yet");
        host.complete = BTreeSet::from([THEIRS]);
        host.run_beside(&mut peer, Duration::from_millis(1200));
        let asked = handovers(&mut host).len();
        assert!(asked > 20, "its copy may take no part yet, so it is asked again and again: {asked}");
        host.claim_from(THEIRS, Kind::Claim, 2);
        host.run_beside(&mut peer, Duration::from_millis(300));
        assert!(host.engine.is_stopped() && !host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    }
}

#[test]
fn a_stop_ends_in_time_whoever_was_asked_and_whatever_control_still_says() {
    let mut host = active_and_replicating();
    let others: Vec<IpAddr> = (2..12).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    for (n, other) in (100..).zip(&others) {
        host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, n), *other);
    }
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let all_live = |host: &mut Host| others.iter().for_each(|other| host.say_known(*other, 1, Some(OURS)));
    all_live(&mut host);
    let asked = host.now;
    host.engine.handle_stop(host.now);
    host.settle();
    let mut hosts_asked = BTreeSet::new();
    while !host.engine.is_stopped() {
        host.advance(Duration::from_millis(100));
        all_live(&mut host);
        hosts_asked.extend(handovers(&mut host).into_iter().map(|(to, _)| to));
        // Control repairs it meanwhile, as it does whenever it likes.
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert!(host.now < asked + STOP_PATIENCE, "{:?}", host.log);
    }
    assert!(hosts_asked.len() >= 3, "{hosts_asked:?}");
    assert!(host.kernel.is_empty() && host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    let left = STOP_PATIENCE - (host.now - asked);
    assert!(left > Duration::from_secs(3), "the kernel may need seconds, and has {left:?}");
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(20));
    assert_eq!((host.state(), host.kernel.len()), ("initialize".to_owned(), 0), "it takes part in nothing any more");
}

#[test]
fn a_handover_waits_for_a_copy_that_holds_all_connections() {
    let mut host = active_and_replicating();
    host.engine.handle_stop(host.now);
    host.settle();
    host.advance(Duration::from_millis(500));
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
    // Not the one with the highest address, but the one that is ready.
    host.complete = BTreeSet::from([THIRD]);
    host.advance(Duration::from_millis(60));
    assert_eq!(handovers(&mut host).first(), Some(&(THIRD, 1)));
    // It does not take the router over: the other one is asked as soon as it is ready, too.
    host.complete = BTreeSet::from([THEIRS, THIRD]);
    host.advance(Duration::from_millis(1100));
    assert_eq!(handovers(&mut host).last(), Some(&(THEIRS, 1)));
}

#[test]
fn a_copy_that_never_holds_all_connections_is_asked_in_the_end_and_the_operator_is_told() {
    let mut host = active_and_replicating();
    host.engine.handle_stop(host.now);
    host.settle();
    for _ in 0..3 {
        host.advance(Duration::from_millis(1300));
        host.say_known(THEIRS, 1, Some(OURS));
    }
    assert_eq!(handovers(&mut host), []);
    host.advance(Duration::from_millis(200));
    assert_eq!(handovers(&mut host).first(), Some(&(THEIRS, 1)));
    let told = host.log.iter().filter(|line| line.contains("not known to hold all its connections")).count();
    assert_eq!(told, 1, "{:?}", host.log);
}

#[test]
fn the_role_goes_where_it_is_wanted_when_that_host_can_have_it_and_is_not_forced_on_it() {
    let mut host = active_and_replicating();
    host.complete = BTreeSet::from([THEIRS]);
    host.spec.wish = Some(WishSpec { host: THIRD, at_once: true });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let keep = |host: &mut Host, seconds: u64| {
        for _ in 0..seconds {
            host.advance(Duration::from_secs(1));
            host.say_known(THEIRS, 1, Some(OURS));
            host.say_known(THIRD, 1, Some(OURS));
        }
    };
    keep(&mut host, 40);
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()), "it lacks connections");
    assert_eq!(host.told("does not take it over yet"), 1);
    host.complete = BTreeSet::from([THEIRS, THIRD]);
    keep(&mut host, 20);
    let asked = handovers(&mut host);
    assert!(!asked.is_empty() && asked.iter().all(|one| *one == (THIRD, 1)), "{asked:?}");
    // It is not wanted there any more.
    host.spec.wish = None;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    keep(&mut host, 2);
    host.asked.clear();
    keep(&mut host, 20);
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
}

#[test]
fn a_router_returns_to_where_it_belongs_after_a_while_and_later_each_time_that_it_comes_back() {
    let mut host = active_and_replicating();
    host.complete = BTreeSet::from([THIRD]);
    host.spec.wish = Some(WishSpec { host: THIRD, at_once: false });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let mut waits = Vec::new();
    for round in 1..=2_u64 {
        host.asked.clear();
        let mut waited = 0;
        while handovers(&mut host).is_empty() {
            host.advance(Duration::from_secs(1));
            host.say_known(THEIRS, round * 2 - 1, Some(OURS));
            host.say_known(THIRD, round * 2 - 1, Some(OURS));
            waited += 1;
            assert!(waited < 60, "round {round}: {:?}", host.log);
        }
        waits.push(waited);
        host.claim_from(THIRD, Kind::Claim, round * 2);
        assert_eq!(host.state(), "backup");
        host.advance(Duration::from_millis(500));
        host.handed_over_by(THIRD, round * 2);
        assert_eq!(host.state(), "active");
    }
    assert!(waits[0] >= 10 && waits[1] >= 20, "{waits:?}");
}
