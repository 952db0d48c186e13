//! Transitions: what goes into the kernel and what is said of it, in which order, and what is tried again.

use super::*;

#[test]
fn a_takeover_advertises_then_adds_in_order_then_reports_and_claims_and_announces_in_its_turn() {
    let mut host = Host::with_router();
    host.log.clear();
    host.advance(ACTIVE_DOWN);
    let expected = [
        "advertise 50",
        "host + tap",
        "router + vip",
        "router + lan",
        "router + default",
        "transition active 1",
        "claim 192.0.2.2 claim 1",
        "claim 192.0.2.3 claim 1",
        "announce 10.0.0.1",
    ];
    assert_eq!(host.log, expected);
    assert_eq!(host.kernel, ["tap", "vip", "lan", "default"]);
}

#[test]
fn version_3_takes_over_in_fractions_of_a_second() {
    let mut host = Host::new();
    (host.spec.vrrp_version, host.spec.advertise_interval_cs) = (3, 10);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    // Three intervals of 0.1 s, and (256 - 50) / 256 of one.
    host.advance(Duration::from_millis(380));
    assert_eq!(host.state(), "backup");
    // The others are asked first.
    host.advance(Duration::from_millis(25));
    assert_eq!(host.state(), "active");
    let before = host.engine.status().routers[0].sent;
    host.advance(Duration::from_secs(1));
    assert_eq!(host.engine.status().routers[0].sent, before + 10);
}

#[test]
fn a_kernel_that_takes_its_time_delays_what_is_said_but_no_advertisement() {
    let mut host = Host::with_router();
    host.kernel_stalls = true;
    host.advance(ACTIVE_DOWN + Duration::from_secs(4));
    assert_eq!(host.log, ["advertise 50"; 3], "neither announced nor claimed nor reported");
    host.log.clear();
    host.kernel_goes_on();
    let said: Vec<_> = host.log.iter().filter(|line| !line.contains(" + ")).collect();
    let expected = ["transition active 1", "claim 192.0.2.2 claim 1", "claim 192.0.2.3 claim 1", "announce 10.0.0.1"];
    assert_eq!(said, expected);
}

#[test]
fn a_copy_that_has_lost_the_role_when_its_turn_to_announce_comes_says_nothing() {
    let mut host = Host::with_router();
    host.is_busy = true;
    host.advance(ACTIVE_DOWN);
    assert_eq!(host.state(), "active");
    assert!(host.engine.has_announcements() && !host.log.iter().any(|line| line.starts_with("announce")));
    host.hear(advertisement(200, 50));
    assert_eq!(host.state(), "backup");
    host.is_busy = false;
    host.settle();
    assert!(!host.engine.has_announcements() && !host.log.iter().any(|line| line.starts_with("announce")));
}

#[test]
fn a_transition_that_is_overtaken_before_the_kernel_answers_leaves_nothing_and_says_both() {
    let mut host = Host::with_router();
    host.kernel_stalls = true;
    host.advance(ACTIVE_DOWN);
    host.hear(advertisement(200, 50));
    assert_eq!(host.state(), "backup");
    host.refuses = Some("vip".to_owned());
    host.kernel_goes_on();
    host.refuses = None;
    host.advance(Duration::from_secs(1));
    assert_eq!(host.kernel, [""; 0], "what was refused then is not tried again now");
    let said: Vec<_> = host.log.iter().filter(|line| line.starts_with("transition")).collect();
    assert_eq!(said, ["transition active 1", "transition standby 1"]);
    assert!(!host.log.iter().any(|line| line.starts_with("announce") || line.contains(" claim ")));
}

#[test]
fn stopping_and_removing_wait_for_the_kernel() {
    let mut host = Host::active();
    host.kernel_stalls = true;
    host.engine.handle_stop(host.now);
    host.settle();
    assert!(!host.engine.is_stopped());
    host.kernel_goes_on();
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
}

#[test]
fn what_somebody_else_removed_is_back_after_a_while() {
    let mut host = Host::active();
    host.kernel.retain(|item| item != "tap");
    host.advance(Duration::from_secs(61));
    assert!(host.kernel.contains(&"tap".to_owned()));

    let mut host = Host::with_router();
    host.claim_from(THEIRS, Kind::Claim, 5);
    host.log.clear();
    for _ in 0..14 {
        host.advance(Duration::from_secs(5));
        host.hear(advertisement(200, 50));
    }
    let follows = host.log.iter().filter(|line| *line == "follow + 192.0.2.2").count();
    assert_eq!(follows, 1);
}

#[test]
fn stepping_down_undoes_in_reverse_and_follows_the_new_active() {
    let mut host = Host::active();
    host.log.clear();
    host.hear(advertisement(200, 50));
    assert_eq!(host.log[..4], ["router - default", "router - lan", "router - vip", "host - tap"]);
    assert_eq!(host.log.last().unwrap(), "transition standby 1");
    assert_eq!(host.kernel, [""; 0]);
    host.log.clear();
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert_eq!(host.log[..3], ["follow + 192.0.2.2", "claimed 2 192.0.2.2", "claim 192.0.2.2 ack 2"]);
}

#[test]
fn a_repeated_specification_repairs_and_a_changed_one_changes_only_what_differs() {
    let mut host = Host::active();
    host.kernel.retain(|item| item != "lan");
    host.log.clear();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.kernel, ["tap", "vip", "default", "lan"], "what was lost is there again");
    assert!(!host.log.iter().any(|line| line.contains(" - ")), "{:?}", host.log);

    host.spec.items.remove(3);
    host.spec.items.push(item("floating 203.0.113.9", Place::Router));
    host.spec.announce.push(announce(QR_LINK, [203, 0, 113, 9]));
    host.log.clear();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.log[0], "router - default");
    assert!(host.log.contains(&"router + floating 203.0.113.9".to_owned()));
    let announced: Vec<_> = host.log.iter().filter(|line| line.starts_with("announce")).collect();
    assert_eq!(announced, ["announce 203.0.113.9"], "only what is new");
}

#[test]
fn a_changed_item_is_undone_first_unless_its_message_replaces() {
    for replaces in [false, true] {
        let mut host = Host::active();
        host.spec.items[3].add = netlink("+default by another way", replaces);
        host.log.clear();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.log.contains(&"router - default".to_owned()), !replaces, "{:?}", host.log);
        assert!(host.log.contains(&"router + default by another way".to_owned()));
    }
}

#[test]
fn a_standby_changes_nothing_when_its_specification_changes() {
    let mut host = Host::with_router();
    host.log.clear();
    host.spec.items.push(item("floating", Place::Router));
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    assert_eq!(host.log, [""; 0]);
    host.advance(ACTIVE_DOWN);
    assert!(host.kernel.contains(&"floating".to_owned()));
}

#[test]
fn without_its_ha_interface_a_copy_is_in_no_election_and_comes_back_as_backup() {
    for gone in [Some(false), None] {
        let mut host = Host::active();
        host.link(HA_LINK, gone);
        assert_eq!((host.state(), host.kernel.len()), ("initialize".to_owned(), 0));
        host.advance(Duration::from_secs(30));
        assert_eq!(host.state(), "initialize");
        host.link(HA_LINK, Some(true));
        assert_eq!(host.state(), "backup");
    }
}

#[test]
fn a_list_of_all_links_says_what_was_missed_of_them() {
    for gone in [Some(false), None] {
        let mut host = Host::active();
        let all = host.links.clone();
        host.list_links(all.clone());
        assert_eq!(host.state(), "active");
        let mut without = all.clone();
        match gone {
            Some(up) => without.insert(HA_LINK, up),
            None => without.remove(&HA_LINK),
        };
        host.list_links(without);
        assert_eq!((host.state(), host.kernel.len()), ("initialize".to_owned(), 0));
        host.list_links(all);
        assert_eq!(host.state(), "backup");
    }
}

#[test]
fn a_link_that_comes_back_gets_its_items_and_its_announcement_again() {
    let mut host = Host::active();
    host.link(QR_LINK, Some(false));
    host.advance(Duration::from_millis(100));
    host.kernel.retain(|item| item != "default");
    host.log.clear();
    host.link(QR_LINK, Some(true));
    host.advance(Duration::from_millis(100));
    assert!(host.kernel.contains(&"default".to_owned()));
    assert!(host.log.contains(&"announce 10.0.0.1".to_owned()));
    host.log.clear();
    host.link(QR_LINK, Some(true));
    host.advance(Duration::from_millis(100));
    assert!(!host.log.iter().any(|line| line.starts_with("router")), "an event that changes nothing");
}

#[test]
fn what_the_kernel_refuses_is_tried_again_and_in_the_end_told_by_key() {
    let mut host = Host::with_router();
    host.refuses = Some("lan".to_owned());
    host.advance(ACTIVE_DOWN);
    assert!(host.log.contains(&"transition active 1".to_owned()), "one failure does not stop a takeover");
    host.refuses = None;
    host.advance(Duration::from_millis(60));
    assert!(host.kernel.contains(&"lan".to_owned()), "the cause went away");

    host.refuses = Some("lan".to_owned());
    host.kernel.retain(|item| item != "lan");
    host.log.clear();
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.advance(Duration::from_secs(10));
    let tries = host.log.iter().filter(|line| *line == "router + lan").count();
    assert_eq!(tries, 6, "the first, and five retries");
    let warnings: Vec<_> = host.log.iter().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("failed to add lan: refused"), "{warnings:?}");
}

#[test]
fn a_late_timer_is_noticed() {
    let mut host = Host::active();
    let (due, _) = host.engine.poll_timeout().unwrap();
    host.engine.handle_timeout(due + Duration::from_millis(7));
    assert_eq!(host.engine.status().worst_lateness_us, 7000);
}

#[test]
fn a_sleep_that_lasted_too_long_is_noticed_although_no_timer_was_due() {
    let mut host = Host::new();
    assert_eq!(host.engine.poll_timeout(), None);
    let due = host.now;
    host.now += Duration::from_millis(700);
    host.engine.handle_wakeup(due, host.now);
    assert_eq!(host.engine.status().worst_lateness_us, 700_000);
    // Whoever is asked is given as long, as far as there is time.
    let rules = host.engine.shared.rules(host.now);
    assert_eq!(rules.listen, rules.patience);
    host.engine.handle_wakeup(host.now + Duration::from_secs(1), host.now);
    assert_eq!(host.engine.status().worst_lateness_us, 700_000, "whoever is woken early was not late");
}
