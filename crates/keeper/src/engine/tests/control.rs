//! Control's specifications and its connection: which routers there are, and when they go.

use super::*;

#[test]
fn a_router_that_is_not_ready_takes_no_part() {
    let mut host = Host::new();
    host.spec.ready = false;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(60));
    assert_eq!(host.state(), "initialize");
    host.spec.ready = true;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.state(), "backup");
    host.advance(ACTIVE_DOWN);
    assert_eq!(host.state(), "active");
    host.spec.ready = false;
    host.log.clear();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert!(host.log.contains(&"advertise 0".to_owned()), "it hands over: {:?}", host.log);
    assert_eq!((host.state(), host.kernel.len()), ("initialize".to_owned(), 0));
}

#[test]
fn removing_a_router_resigns_removes_closes_and_answers() {
    let mut host = Host::active();
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    assert_eq!(host.log[0], "advertise 0");
    assert_eq!(host.log[host.log.len() - 2..], ["close", "removed"]);
    assert_eq!(host.kernel, [""; 0]);
    host.say(ToKeeper::Unfollow { router: R });
    host.log.clear();
    host.advance(Duration::from_secs(100));
    assert_eq!(host.log, [""; 0], "nothing of it is left");
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    assert_eq!(host.log, ["removed"], "also when it was not known");
}

#[test]
fn copies_of_a_router_that_becomes_another_end_without_a_word() {
    let mut host = Host::active();
    let before = host.kernel.clone();
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Remains });
    assert_eq!(host.log, ["close", "removed"]);
    host.advance(Duration::from_secs(100));
    assert_eq!(host.kernel, before);
    // One that goes on elsewhere, or in another namespace, is undone.
    let mut host = Host::active();
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Changes });
    assert!(!host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    assert_eq!(host.log[host.log.len() - 2..], ["close", "removed"]);
    assert_eq!(host.kernel, [""; 0]);
    // What was not active has nothing to leave.
    let mut host = Host::with_router();
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Remains });
    assert_eq!(host.log[host.log.len() - 2..], ["close", "removed"]);
    assert_eq!(host.kernel, [""; 0]);
}

#[test]
fn what_control_does_not_mention_goes_at_the_end_of_state() {
    let mut host = Host::active();
    let other = RouterId::from_u128(2);
    let spec = RouterSpec { router: other, vrid: 2, ..host.spec.clone() };
    host.say(ToKeeper::Router(Box::new(spec)));
    host.connect();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.state(), "active", "the state goes on while control tells its own");
    host.say(ToKeeper::EndOfState);
    assert!(host.log.contains(&"removed".to_owned()));
    let routers: Vec<_> = host.engine.status().routers.iter().map(|router| router.router).collect();
    assert_eq!(routers, [R]);
}

#[test]
fn stopping_resigns_everything() {
    let mut host = Host::active();
    host.log.clear();
    host.engine.handle_stop(host.now);
    host.settle();
    assert_eq!(host.log[0], "advertise 0");
    assert_eq!(host.log.last().unwrap(), "transition standby 1");
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
}

#[test]
fn a_namespace_that_is_not_there_yet_is_tried_again() {
    let mut host = Host::new();
    host.namespace_missing = true;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(60));
    assert!(host.engine.status().routers[0].hindrance.contains("no namespace"));
    let tries = host.log.iter().filter(|line| *line == "open").count();
    assert!((10..25).contains(&tries), "{tries} tries in a minute");
    assert_eq!(host.log.iter().filter(|line| line.starts_with("warning")).count(), 1);
    host.namespace_missing = false;
    host.advance(Duration::from_secs(6));
    assert_eq!(host.state(), "backup");
}

#[test]
fn a_specification_that_makes_no_sense_is_refused_as_a_whole() {
    let mut host = Host::active();
    type Spoil = fn(&mut RouterSpec);
    let cases: [(Spoil, &str); 12] = [
        (|spec| spec.vrid = 0, "VRID 0"),
        (|spec| spec.priority = 0, "priority 0"),
        (|spec| spec.advertise_interval_cs = 150, "150 cs"),
        (|spec| spec.advertise_interval_cs = 0, "0 cs"),
        (|spec| (spec.vrrp_version, spec.advertise_interval_cs) = (3, 0), "0 cs"),
        (|spec| (spec.vrrp_version, spec.advertise_interval_cs) = (3, 4096), "4096 cs"),
        (|spec| spec.vrrp_version = 4, "no VRRP version 4"),
        (|spec| spec.password = Some("much too long".to_owned()), "longer than 8"),
        (|spec| spec.items[0].add = "zz".to_owned(), "'tap' is unusable"),
        (|spec| spec.items[1].del = "0000".to_owned(), "'vip' is not one netlink message"),
        (|spec| spec.items[1].key = "tap".to_owned(), "listed twice"),
        (|spec| spec.netns = "../etc".to_owned(), "cannot be the name"),
    ];
    for (spoil, words) in cases {
        let mut spec = host.spec.clone();
        spoil(&mut spec);
        host.log.clear();
        host.say(ToKeeper::Router(Box::new(spec)));
        assert!(host.log.len() == 1 && host.log[0].contains(words), "{words}: {:?}", host.log);
        assert!(!host.log[0].contains("much too long"), "a password is not shown");
        assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    }
}

#[test]
fn another_version_of_the_protocol_is_answered_and_otherwise_ignored() {
    let mut host = Host::new();
    host.engine.handle_disconnected(host.now);
    host.say(ToKeeper::Hello { version: 99, settings: settings() });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert!(host.log.contains(&"hello".to_owned()));
    assert!(host.engine.status().routers.is_empty());
}

#[test]
fn a_connection_lost_in_the_middle_of_the_state_drops_nothing_and_starts_what_was_told() {
    let mut host = Host::active();
    host.connect();
    let other = RouterSpec { router: RouterId::from_u128(2), vrid: 2, ..host.spec.clone() };
    host.say(ToKeeper::Router(Box::new(other)));
    host.engine.handle_disconnected(host.now);
    host.settle();
    let states: Vec<_> = host.engine.status().routers.into_iter().map(|router| router.vrrp_state).collect();
    assert_eq!(states, ["active", "backup"]);
}

#[test]
fn what_control_says_of_one_router_gives_no_turn_to_the_others() {
    let mut host = Host::new();
    let spec = |n: u16| RouterSpec {
        router: RouterId::from_u128(n.into()),
        vrid: (n % 250 + 1) as u8,
        ha_network: NetworkId::from_u128(u128::from(n / 250)),
        ..super::spec()
    };
    let turns = |host: &mut Host, message: ToKeeper| {
        let before = host.engine.turns;
        host.say(message);
        host.engine.turns - before
    };
    let first = turns(&mut host, ToKeeper::Router(Box::new(spec(0))));
    let mut most = first;
    for n in 1..1000 {
        most = most.max(turns(&mut host, ToKeeper::Router(Box::new(spec(n)))));
    }
    // Its own, and those of the copy that it follows as the one that hears all VRIDs.
    assert!(most <= 2 * first, "{first}, and {most} beside others");
    let repaired = turns(&mut host, ToKeeper::Router(Box::new(spec(7))));
    assert!(repaired <= first, "{first}, and {repaired} when it is told again");
    let removed = turns(&mut host, ToKeeper::RemoveRouter { router: spec(0).router, how: Removal::Leaves });
    assert!(removed <= 2 * first, "{removed}");
}
