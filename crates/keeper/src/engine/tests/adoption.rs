//! What an earlier keeper left in the kernel: taken over, or cleared away.

use super::*;

#[test]
fn a_new_copy_clears_what_a_killed_keeper_may_have_left() {
    let mut host = Host::new();
    host.kernel.push("lan".to_owned());
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.kernel, [""; 0]);
    assert_eq!(host.log.last().unwrap(), "transition standby 0");
}

#[test]
fn a_restarted_keeper_adopts_without_a_flap() {
    let mut host = Host::new();
    host.has_virtual_address = true;
    host.kernel = ["tap", "vip", "lan", "default"].map(str::to_owned).to_vec();
    host.spec.epoch = 7;
    host.connect();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.log, ["hello"], "who else is active may come later");
    host.say(ToKeeper::Follow(follow(7, Some(OURS))));
    host.log.clear();
    host.say(ToKeeper::EndOfState);
    assert_eq!(host.log[0], "advertise 50");
    assert!(!host.log.iter().any(|line| line.contains(" - ")), "{:?}", host.log);
    assert!(host.log.contains(&"transition active 7".to_owned()), "the epoch goes on: {:?}", host.log);
    assert_eq!(host.kernel.len(), 4);
}

#[test]
fn nothing_is_adopted_that_another_host_is_known_to_have() {
    let mut host = Host::new();
    host.has_virtual_address = true;
    host.kernel = vec!["vip".to_owned()];
    host.connect();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.say(ToKeeper::Follow(follow(8, Some(THEIRS))));
    host.say(ToKeeper::EndOfState);
    assert_eq!(host.kernel, [""; 0]);
    assert_eq!(host.state(), "backup");
    assert!(host.log.contains(&"follow + 192.0.2.2".to_owned()));
}

#[test]
fn nothing_is_adopted_after_the_others_have_given_this_copy_up() {
    for (away, state) in [(5, "active"), (7, "backup")] {
        let mut host = Host::after(Some(Duration::from_secs(away)));
        host.has_virtual_address = true;
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.state(), state, "{away} s away");
    }
}

#[test]
fn addresses_found_for_a_router_that_is_not_ready_are_kept_for_a_while_only() {
    let mut host = Host::new();
    host.has_virtual_address = true;
    host.kernel = vec!["vip".to_owned()];
    host.spec.ready = false;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(9));
    assert_eq!(host.kernel, ["vip"]);
    host.advance(Duration::from_secs(2));
    assert_eq!(host.kernel, [""; 0]);
    assert_eq!(host.state(), "initialize");
}

#[test]
fn an_heir_starts_as_active_and_takes_nothing_away_first_unless_somebody_was_since() {
    for (known, state, serves) in [(4, "active", true), (5, "backup", false)] {
        let mut host = Host::new();
        host.spec = RouterSpec { epoch: known, inherits: Some(4), ..host.spec.clone() };
        host.kernel = ["lan", "default"].map(str::to_owned).to_vec();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.state(), state);
        assert_eq!(host.kernel.len(), if serves { 4 } else { 0 }, "{:?}", host.kernel);
        assert_eq!(host.log.iter().any(|line| line.contains(" - ")), !serves, "{:?}", host.log);
    }
}

#[test]
fn a_restarted_keeper_asks_before_it_resumes() {
    // Nobody knows better; nobody answers; somebody took over and says so; somebody advertises.
    let answers = [("same", "active"), ("none", "active"), ("newer", "backup"), ("advertisement", "backup")];
    let cases = answers.into_iter().flat_map(|(answer, expected)| [0, 300].map(|bfd_ms| (bfd_ms, answer, expected)));
    for (bfd_ms, answer, expected) in cases {
        let mut host = Host::new();
        host.say(ToKeeper::Settings { settings: bfd_settings(bfd_ms) });
        host.has_virtual_address = true;
        host.kernel = ["tap", "vip", "lan", "default"].map(str::to_owned).to_vec();
        host.spec.epoch = 7;
        host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 200), THEIRS);
        host.log.clear();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.log, ["claim 192.0.2.2 claim 7"], "{answer}");
        assert_eq!((host.state(), host.kernel.len()), ("initialize".to_owned(), 4), "it goes on forwarding");
        match answer {
            "same" => host.say_known(THEIRS, 7, Some(OURS)),
            "newer" => host.say_known(THEIRS, 8, Some(THEIRS)),
            "advertisement" => host.hear(advertisement(200, 50)),
            _ => host.advance(Duration::from_millis(200)),
        }
        assert_eq!(host.state(), expected, "{answer}");
        assert_eq!(host.kernel.is_empty(), expected == "backup", "{answer}");
    }
}

#[test]
fn only_who_was_asked_for_patience_waits_for_a_restart_longer_than_for_anybody() {
    for (bfd_ms, excused, state) in [(300, true, "active"), (0, false, "backup")] {
        let mut host = Host::new();
        host.say(ToKeeper::Settings { settings: bfd_settings(bfd_ms) });
        let was_excused = host.engine.handle_restart(host.now);
        assert_eq!(was_excused, excused, "BFD every {bfd_ms} ms");

        // At this interval the others wait for 0.4 s, and it was away for 0.6.
        let start = Start { away: Some(Duration::from_millis(600)), was_excused, ..Start::default() };
        let mut host = Host::new();
        host.engine = Engine::new(start, host.now);
        host.has_virtual_address = true;
        (host.spec.vrrp_version, host.spec.advertise_interval_cs) = (3, 10);
        host.connect();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        host.say(ToKeeper::EndOfState);
        assert_eq!(host.state(), state, "BFD every {bfd_ms} ms");
    }
}
