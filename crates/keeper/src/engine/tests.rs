//! The engine on a virtual clock, with a kernel that remembers what it was told.

mod health;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_kernel::rt::FoundPaths;
use evergate_model::{HaState, Mac, NetworkId, RouterId};
use evergate_vrrp::bfd::auth::Key;
use evergate_vrrp::bfd::session as bfd;
use evergate_vrrp::bfd::sessions::{Output, Path, Sessions};
use evergate_vrrp::bfd::wire::{Diagnostic, State};
use evergate_vrrp::router::{Config, Vrid};
use evergate_vrrp::wire::{self, Advertisement, Ipv4Checksum};

use super::effect::{Action, Batch, Effect, Opened, Purpose};
use super::{Engine, Start};
use crate::claims::question::Question;
use crate::claims::wire::{ClaimKey, Entry, Kind, MAX_ENTRIES, Message};
use crate::hex;
use crate::protocol::*;

mod agreement;

const R: RouterId = RouterId::from_u128(1);
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));
const HA_LINK: u32 = 10;
const QR_LINK: u32 = 11;
/// Silence after which a lone backup of priority 50 takes over at a 2 s interval, and the time in which others
/// may object.
const ACTIVE_DOWN: Duration = Duration::from_millis(6000 + 805 + 20);

#[test]
fn a_takeover_advertises_then_adds_in_order_then_announces_reports_and_claims() {
    let mut host = Host::with_router();
    host.log.clear();
    host.advance(ACTIVE_DOWN);
    let expected = [
        "advertise 50",
        "host + tap",
        "router + vip",
        "router + lan",
        "router + default",
        "announce 10.0.0.1",
        "transition active 1",
        "claim 192.0.2.2 claim 1",
        "claim 192.0.2.3 claim 1",
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
    let expected = ["announce 10.0.0.1", "transition active 1", "claim 192.0.2.2 claim 1", "claim 192.0.2.3 claim 1"];
    assert_eq!(said, expected);
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
fn an_heir_starts_as_active_unless_somebody_was_since() {
    for (known, state) in [(4, "active"), (5, "backup")] {
        let mut host = Host::new();
        host.spec = RouterSpec { epoch: known, inherits: Some(4), ..host.spec.clone() };
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.state(), state);
    }
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
fn the_highest_epoch_wins_whatever_the_order_of_arrival() {
    let mut host = Host::with_router();
    host.claim_from(THEIRS, Kind::Claim, 5);
    host.claim_from(THIRD, Kind::Claim, 4);
    host.claim_from(THEIRS, Kind::Repeat, 5);
    let follows: Vec<_> = host.log.iter().filter(|line| line.starts_with("follow +")).collect();
    assert_eq!(follows, ["follow + 192.0.2.2"]);
    assert!(host.log.contains(&"claim 192.0.2.3 ack 5".to_owned()), "the loser hears of the higher epoch");
    // Both fall silent at once, as if this host were cut off.
    host.say(ToKeeper::Settings { settings: Settings { serve_alone: true, ..settings() } });
    host.advance(Duration::from_millis(300));
    host.advance(ACTIVE_DOWN);
    assert!(host.log.contains(&"transition active 6".to_owned()), "the next epoch is above all that are known");
}

#[test]
fn a_claim_under_another_key_or_for_another_host_changes_nothing() {
    let mut host = Host::with_router();
    host.log.clear();
    let entry = Entry { router: R, epoch: 9, vtep: Some(THEIRS) };
    let message = Message { kind: Kind::Claim, sender: THEIRS, entries: vec![entry] };
    let foreign = message.emit(&ClaimKey::new(vec![1]).unwrap());
    let ours = message.emit(&key());
    for (datagram, from) in [(foreign.clone(), THEIRS), (foreign, THEIRS), (ours, THIRD), (vec![0; 60], THEIRS)] {
        host.engine.handle_claim(&datagram, from, host.now);
        host.settle();
    }
    let discards = host.engine.status().discards;
    assert_eq!((discards["claim_key"], discards["claim_sender"], discards["claim_format"]), (2, 1, 1));
    assert_eq!(host.log.len(), 3, "each is told once per kind and sender: {:?}", host.log);
    assert!(host.log.iter().all(|line| line.starts_with("warning refused a packet")));
}

#[test]
fn a_claim_for_an_unknown_router_is_not_acknowledged_so_that_it_comes_again() {
    let mut host = Host::new();
    host.log.clear();
    host.claim_from(THEIRS, Kind::Claim, 5);
    assert_eq!(host.log, [""; 0]);
    assert!(host.engine.status().claims.is_empty(), "and takes no memory");
}

#[test]
fn a_claim_is_repeated_until_it_is_acknowledged() {
    let mut host = Host::active();
    host.log.clear();
    host.advance(Duration::from_millis(100));
    assert_eq!(host.sent_to(THEIRS), 2, "after 20 and 60 ms: {:?}", host.log);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.advance(Duration::from_millis(500));
    assert_eq!((host.sent_to(THEIRS), host.sent_to(THIRD) > 0), (0, true));
}

#[test]
fn an_epoch_of_ours_that_others_remember_is_exceeded() {
    let mut host = Host::active();
    let entry = Entry { router: R, epoch: 40, vtep: Some(OURS) };
    let ack = Message { kind: Kind::Ack, sender: THEIRS, entries: vec![entry] };
    host.engine.handle_claim(&ack.emit(&key()), THEIRS, host.now);
    host.settle();
    assert!(host.log.contains(&"claimed 41 192.0.2.1".to_owned()));
}

#[test]
fn forwarding_entries_that_are_no_longer_followed_are_removed() {
    let mut host = Host::with_router();
    host.say(ToKeeper::Follow(follow(3, Some(THEIRS))));
    host.log.clear();
    let mut changed = follow(3, Some(THEIRS));
    changed.entries[0].mac = Mac([2, 0, 0, 0, 0, 9]);
    host.say(ToKeeper::Follow(changed));
    assert_eq!(host.log, ["follow -", "follow + 192.0.2.2"]);
    host.log.clear();
    host.say(ToKeeper::Unfollow { router: R });
    assert_eq!(host.log, ["follow -"]);
}

#[test]
fn forwarding_entries_that_are_controls_from_now_on_stay_as_they_are() {
    let mut host = Host::new();
    host.connect();
    let spec = follow(3, Some(THEIRS));
    host.say(ToKeeper::Follow(spec.clone()));
    host.say(ToKeeper::EndOfState);
    host.log.clear();
    host.say(ToKeeper::Cede { router: R, entries: spec.entries });
    host.claim_from(THIRD, Kind::Claim, 4);
    host.say(ToKeeper::Unfollow { router: R });
    assert!(!host.log.iter().any(|line| line.starts_with("follow")), "{:?}", host.log);
}

#[test]
fn foreign_and_malformed_packets_are_counted_and_told_once() {
    let mut host = Host::with_router();
    host.say(ToKeeper::Vrids { network: NetworkId::from_u128(1), vrids: BTreeSet::from([1, 2, 3]) });
    host.log.clear();
    let good = advertisement(200, 50);
    let mut bad_sum = good.clone();
    *bad_sum.last_mut().unwrap() ^= 1;
    let mut low_ttl = good.clone();
    (low_ttl[22], low_ttl[24]) = (254, low_ttl[24].wrapping_add(1)); // TTL, and the header's checksum
    let foreign = advertisement_of(99, 200, 50);
    let neighbour = advertisement_of(3, 200, 50);
    for frame in [&bad_sum, &bad_sum, &low_ttl, &foreign, &neighbour, &vec![0; 5]] {
        host.hear(frame.clone());
    }
    let discards = host.engine.status().discards;
    let expected = [("checksum", 2), ("truncated", 1), ("ttl_not_255", 1), ("unknown_vrid", 1)];
    assert_eq!(discards, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
    // A VRID that is unknown only for now is counted, not told.
    assert_eq!(host.log.len(), 3, "{:?}", host.log);
    assert_eq!(host.engine.status().routers[0].received, 0);
}

#[test]
fn a_vrid_that_stays_unknown_is_told_once() {
    let mut host = Host::with_router();
    host.hear(advertisement_of(99, 200, 50));
    host.log.clear();
    host.advance(Duration::from_secs(11));
    host.log.retain(|line| line.contains("unknown_vrid"));
    assert!(host.log.is_empty());
    for _ in 0..2 {
        host.hear(advertisement_of(99, 200, 50));
    }
    host.log.retain(|line| line.contains("unknown_vrid"));
    assert_eq!(host.log.len(), 1, "{:?}", host.log);
}

#[test]
fn the_lowest_vrid_of_a_network_is_the_sentinel() {
    let mut host = Host::new();
    let with = |router, vrid, network| RouterSpec {
        router: RouterId::from_u128(router),
        vrid,
        ha_network: NetworkId::from_u128(network),
        ..host.spec.clone()
    };
    let specs = [with(1, 30, 1), with(2, 20, 1), with(3, 40, 2), with(4, 25, 1)];
    for spec in specs {
        host.say(ToKeeper::Router(Box::new(spec)));
    }
    let all = |host: &Host| -> Vec<u128> {
        host.listening.iter().filter(|(_, vrid)| vrid.is_none()).map(|(router, _)| router.0.as_u128()).collect()
    };
    assert_eq!(all(&host), [2, 3]);
    host.say(ToKeeper::RemoveRouter { router: RouterId::from_u128(2), how: Removal::Leaves });
    assert_eq!(all(&host), [3, 4]);
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
fn a_late_timer_is_noticed() {
    let mut host = Host::active();
    let (due, _) = host.engine.poll_timeout().unwrap();
    host.engine.handle_timeout(due + Duration::from_millis(7));
    assert_eq!(host.engine.status().worst_lateness_us, 7000);
}

// Hosts that are gone.

#[test]
fn a_host_that_falls_silent_is_asked_and_then_replaced() {
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
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
fn the_routers_of_a_dead_host_are_claimed_before_the_kernel_is_ready() {
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
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
fn followed_routers_that_move_together_move_by_one_message() {
    let mut host = Host::new();
    let start = Start { seed: 1, paths: Some(FoundPaths::default()), ..Start::default() };
    host.engine = Engine::new(start, host.now);
    host.connect();
    let routers: Vec<RouterId> = (1..=60).map(RouterId::from_u128).collect();
    for (n, router) in (1..).zip(&routers) {
        let mac = Mac([2, 0, 0, 0, 0, n]);
        let entries = vec![FollowEntry { mac, vxlan_ifindex: 5, tap_ifindex: None }];
        host.say(ToKeeper::Follow(FollowSpec { router: *router, epoch: 3, vtep: Some(THIRD), entries }));
    }
    host.say(ToKeeper::EndOfState);
    let mut messages = 0;
    let mut claim = |host: &mut Host, routers: &[RouterId], epoch| {
        let entry = |router: &RouterId| Entry { router: *router, epoch, vtep: Some(THEIRS) };
        for some in routers.chunks(MAX_ENTRIES) {
            let entries = some.iter().map(entry).collect();
            let datagram = Message { kind: Kind::Claim, sender: THEIRS, entries }.emit(&key());
            host.engine.handle_claim(&datagram, THEIRS, host.now);
            while let Some(effect) = host.engine.poll_effect() {
                if let Effect::RunBatch(batch) = &effect {
                    messages += batch.messages.len();
                }
                host.carry_out(effect);
            }
        }
        std::mem::take(&mut messages)
    };
    assert_eq!(claim(&mut host, &routers, 4), 1, "in two datagrams");
    assert_eq!(claim(&mut host, &routers, 4), 0, "a claim that comes again changes nothing");
    assert_eq!(claim(&mut host, &routers, 2), 0, "nor does one that comes late");
    host.log.clear();
    host.advance(Duration::from_secs(1));
    assert_eq!(host.log, [""; 0], "nobody waits for anybody");
}

#[test]
fn a_host_whose_router_still_advertises_keeps_it_and_the_operator_is_told_once() {
    // Whether the advertisement came before the silence was noticed, or answers the question.
    for answers in [false, true] {
        let mut host = Host::beside(THEIRS, 300);
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
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
        let mut host = Host::beside(THEIRS, 300);
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
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
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
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
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.engine.handle_stop(host.now);
    host.settle();
    host.run_beside(&mut peer, Duration::from_millis(1));
    assert_eq!(peer.last_change, Some((State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)));
}

#[test]
fn a_restarted_keeper_asks_before_it_resumes() {
    // Nobody knows better; nobody answers; somebody took over and says so; somebody advertises.
    for (answer, expected) in [("same", "active"), ("none", "active"), ("newer", "backup"), ("advertisement", "backup")]
    {
        let mut host = Host::new();
        host.say(ToKeeper::Settings { settings: bfd_settings(300) });
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

fn bfd_settings(interval_ms: u32) -> Settings {
    Settings { bfd: BfdSettings { interval_ms, multiplier: 3 }, ..settings() }
}

/// The other host's end of the session.
struct Peer {
    address: IpAddr,
    sessions: Sessions,
    deaf: bool,
    /// It was stopped, and stays so.
    stopped: bool,
    last_change: Option<(State, Diagnostic)>,
}

impl Peer {
    fn new(address: IpAddr, interval_ms: u64) -> Self {
        let config = bfd::Config::symmetric(Duration::from_millis(interval_ms), 3.try_into().unwrap());
        let keys = vec![Key::new(1, key().derived(b"bfd"))];
        let sessions = Sessions::new(Path::Multihop, config, keys, 77);
        Self { address, sessions, deaf: false, stopped: false, last_change: None }
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        self.sessions.handle_stop(now);
    }
}

impl Host {
    /// Backup of a router that it shares with another host.
    fn beside(other: IpAddr, interval_ms: u32) -> Self {
        let mut host = Self::new();
        host.say(ToKeeper::Settings { settings: bfd_settings(interval_ms) });
        host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 200), other);
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        assert_eq!(host.state(), "backup");
        host
    }

    fn run_beside(&mut self, peer: &mut Peer, duration: Duration) {
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

    fn is_down(&self, peer: IpAddr) -> bool {
        self.engine.status().bfd.iter().any(|session| session.peer == Some(peer) && session.state == "down")
    }

    fn say_known(&mut self, sender: IpAddr, epoch: u64, vtep: Option<IpAddr>) {
        let entries = vec![Entry { router: R, epoch, vtep }];
        let datagram = Message { kind: Kind::Ack, sender, entries }.emit(&key());
        self.engine.handle_claim(&datagram, sender, self.now);
        self.settle();
    }
}

/// An engine with everything around it.
struct Host {
    engine: Engine,
    now: Instant,
    spec: RouterSpec,
    /// What happened, a line each.
    log: Vec<String>,
    /// Items that are in the kernel, in order of adding.
    kernel: Vec<String>,
    listening: BTreeMap<RouterId, Option<u8>>,
    has_virtual_address: bool,
    namespace_missing: bool,
    links: BTreeMap<u32, bool>,
    /// The kernel answers later.
    kernel_stalls: bool,
    stalled: Vec<Batch>,
    /// The item that the kernel does not take.
    refuses: Option<String>,
    /// BFD packets that were sent, by receiver.
    bfd_out: Vec<(IpAddr, Vec<u8>)>,
    /// Questions, answers and handovers that were sent, with the receiver.
    asked: Vec<(IpAddr, Question)>,
    /// Those that were given to the server.
    letters: Vec<(IpAddr, Question)>,
    /// Hosts that hold all connections of the router.
    complete: BTreeSet<IpAddr>,
}

impl Host {
    /// Connected, and told nothing.
    fn new() -> Self {
        Self::after(None)
    }

    fn after(away: Option<Duration>) -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        let engine = Engine::new(Start { away, seed: 1, ..Start::default() }, now);
        let mut host = Self {
            engine,
            now,
            spec: spec(),
            log: Vec::new(),
            kernel: Vec::new(),
            listening: BTreeMap::new(),
            has_virtual_address: false,
            namespace_missing: false,
            links: BTreeMap::from([(HA_LINK, true), (QR_LINK, true)]),
            kernel_stalls: false,
            stalled: Vec::new(),
            refuses: None,
            bfd_out: Vec::new(),
            asked: Vec::new(),
            letters: Vec::new(),
            complete: BTreeSet::new(),
        };
        host.connect();
        host.say(ToKeeper::EndOfState);
        host.log.clear();
        host
    }

    /// Backup.
    fn with_router() -> Self {
        let mut host = Self::new();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        host.say(ToKeeper::Follow(follow(0, None)));
        assert_eq!(host.state(), "backup");
        host.log.clear();
        host
    }

    /// Active with epoch 1, its claims unacknowledged.
    fn active() -> Self {
        let mut host = Self::with_router();
        host.advance(ACTIVE_DOWN);
        assert_eq!(host.state(), "active");
        host
    }

    fn connect(&mut self) {
        self.say(ToKeeper::Hello { version: PROTOCOL_VERSION, settings: settings() });
    }

    fn say(&mut self, message: ToKeeper) {
        // As it would arrive.
        let text = serde_json::to_string(&message).unwrap();
        self.engine.handle_message(serde_json::from_str(&text).unwrap(), self.now);
        self.settle();
    }

    fn hear(&mut self, frame: Vec<u8>) {
        self.engine.handle_frame(R, &frame, self.now);
        self.settle();
    }

    fn link(&mut self, ifindex: u32, up: Option<bool>) {
        match up {
            Some(up) => self.links.insert(ifindex, up),
            None => self.links.remove(&ifindex),
        };
        self.engine.handle_link(R, ifindex, up, self.now);
        self.settle();
    }

    fn claim_from(&mut self, sender: IpAddr, kind: Kind, epoch: u64) {
        let entries = vec![Entry { router: R, epoch, vtep: Some(sender) }];
        let datagram = Message { kind, sender, entries }.emit(&key());
        self.engine.handle_claim(&datagram, sender, self.now);
        self.settle();
    }

    /// Lets time pass, timer by timer.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some((at, _)) = self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    /// The kernel answers what it was asked meanwhile.
    fn kernel_goes_on(&mut self) {
        self.kernel_stalls = false;
        for batch in std::mem::take(&mut self.stalled) {
            let results = self.run(&batch);
            self.engine.handle_batch(&batch, results, self.now);
            self.settle();
        }
    }

    fn state(&self) -> String {
        self.engine.status().routers[0].vrrp_state.clone()
    }

    fn sent_to(&self, to: IpAddr) -> usize {
        self.log.iter().filter(|line| line.starts_with(&format!("claim {to} claim"))).count()
    }

    fn settle(&mut self) {
        let mut effects = 0;
        while let Some(effect) = self.engine.poll_effect() {
            effects += 1;
            assert!(effects < 10_000, "the engine goes round in circles");
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::OpenSockets { router, request, fresh: _ } => {
                self.listening.insert(router, request.vrid);
                let opened = if !self.links.contains_key(&HA_LINK) {
                    Err("there is no such link".to_owned())
                } else if self.namespace_missing {
                    self.log.push("open".to_owned());
                    Err("there is no namespace".to_owned())
                } else {
                    let has_virtual_address = self.has_virtual_address;
                    Ok(Opened { links: Some(self.links.clone()), has_virtual_address })
                };
                self.engine.handle_opened(router, &request, opened, self.now);
            }
            Effect::CloseSockets { router } => {
                self.listening.remove(&router);
                self.log.push("close".to_owned());
                self.engine.handle_closed(router);
            }
            Effect::SendFrame { frame, .. } => self.log.push(describe(&frame)),
            Effect::RunBatch(batch) if self.kernel_stalls => self.stalled.push(batch),
            Effect::RunBatch(batch) => {
                let results = self.run(&batch);
                self.engine.handle_batch(&batch, results, self.now);
            }
            Effect::RunScript(run) => self.log.push(format!("script {}", run.arguments[1..].join(" "))),
            Effect::BindClaims(address) => {
                assert!(address.is_none_or(|address| address == SocketAddr::new(OURS, 3796)));
            }
            Effect::BindBfd(address) => assert!(address.is_none_or(|address| address == SocketAddr::new(OURS, 4784))),
            Effect::SendBfd { to, datagram } => self.bfd_out.push((to.ip(), datagram)),
            Effect::SendClaim { to, datagram } if Question::is_one(&datagram) => {
                // Some tests give it another key.
                self.asked.extend(Question::parse(&datagram, OURS, &key()).ok().map(|question| (to.ip(), question)));
            }
            Effect::SendClaim { to, datagram } => {
                let message = Message::parse(&datagram, OURS, &key()).unwrap();
                let kind = format!("{:?}", message.kind).to_lowercase();
                self.log.push(format!("claim {} {kind} {}", to.ip(), message.entries[0].epoch));
            }
            Effect::AskWhoIsComplete(router) => self.engine.handle_complete(router, self.complete.clone(), self.now),
            Effect::Emit(message) => self.emitted(message),
        }
    }

    fn run(&mut self, batch: &Batch) -> Vec<Result<(), String>> {
        if batch.purpose == Purpose::Follow {
            let (what, action) = &batch.steps[0];
            self.log.push(match action {
                Action::Add => format!("follow + {}", what.rsplit(' ').next().unwrap()),
                Action::Del => "follow -".to_owned(),
            });
            return vec![Ok(()); batch.messages.len()];
        }
        let place = format!("{:?}", batch.place).to_lowercase();
        let mut results = Vec::new();
        for ((_, action), message) in batch.steps.iter().zip(&batch.messages) {
            let text = String::from_utf8(message[17..].to_vec()).unwrap();
            let sign = if *action == Action::Add { '+' } else { '-' };
            assert_eq!(message[16], sign as u8, "the right message of the pair is sent");
            let refused = self.refuses.as_ref() == Some(&text);
            match action {
                Action::Add if refused => self.log.push(format!("{place} + {text}")),
                Action::Add => {
                    self.log.push(format!("{place} + {text}"));
                    if !self.kernel.contains(&text) {
                        self.kernel.push(text);
                    }
                }
                Action::Del => {
                    self.log.push(format!("{place} - {text}"));
                    self.kernel.retain(|item| *item != text);
                }
            }
            results.push(if refused { Err("refused".to_owned()) } else { Ok(()) });
        }
        results
    }

    fn emitted(&mut self, message: FromKeeper) {
        let line = match message {
            FromKeeper::Hello { .. } => "hello".to_owned(),
            FromKeeper::Transition(transition) => {
                let state = if transition.state == HaState::Active { "active" } else { "standby" };
                format!("transition {state} {}", transition.epoch)
            }
            FromKeeper::Claimed { epoch, vtep, .. } => format!("claimed {epoch} {vtep}"),
            FromKeeper::Removed { .. } => "removed".to_owned(),
            FromKeeper::Status(_) => return,
            FromKeeper::Letter { to, datagram } => {
                let bytes = hex::decode(&datagram).unwrap();
                return self.letters.push((to, Question::parse(&bytes, OURS, &key()).unwrap()));
            }
            FromKeeper::Note { text, .. } => format!("note {text}"),
            FromKeeper::Warning { text } => format!("warning {text}"),
        };
        self.log.push(line);
    }
}

fn describe(frame: &[u8]) -> String {
    if let Some(question) = health::described(frame) {
        return question;
    }
    if let Ok(seen) = wire::peek(frame) {
        if frame[0] & 1 == 0 {
            return format!("ask {}", seen.priority);
        }
        return format!("advertise {}", seen.priority);
    }
    let ip: [u8; 4] = frame[28..32].try_into().unwrap();
    format!("announce {}", Ipv4Addr::from(ip))
}

fn key() -> ClaimKey {
    ClaimKey::new(b"cluster".to_vec()).unwrap()
}

fn settings() -> Settings {
    Settings {
        host: "h1".to_owned(),
        vtep: Some(OURS),
        claim_port: 3796,
        claim_key: hex::encode(b"cluster"),
        replication_port: None,
        serve_alone: false,
        bfd: BfdSettings::default(),
        health: HealthSettings::default(),
    }
}

/// A netlink header (length, type, flags, sequence, sender) and a text.
fn netlink(text: &str, replace: bool) -> String {
    let mut bytes = (16 + text.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(20u16.to_ne_bytes());
    bytes.extend(if replace { 0x100u16 } else { 0 }.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(text.bytes());
    hex::encode(&bytes)
}

fn item(key: &str, place: Place) -> Item {
    let message = |sign| netlink(&format!("{sign}{key}"), false);
    Item { key: key.to_owned(), place, add: message('+'), del: message('-') }
}

fn announce(ifindex: u32, ip: [u8; 4]) -> Announce {
    Announce { link: "qr-1".to_owned(), ifindex, mac: Mac([2, 0, 0, 0, 0, 1]), ip: IpAddr::from(ip) }
}

fn spec() -> RouterSpec {
    RouterSpec {
        router: R,
        ha_network: NetworkId::from_u128(1),
        netns: "qrouter-1".to_owned(),
        ha_link: "ha-1".to_owned(),
        ha_ifindex: HA_LINK,
        ha_mac: Mac([2, 0, 0, 0, 0, 0x10]),
        ha_address: "169.254.192.10/18".parse().unwrap(),
        vrid: 1,
        virtual_address: "169.254.0.1/24".parse().unwrap(),
        vrrp_version: 2,
        priority: 50,
        advertise_interval_cs: 200,
        preempt: false,
        preempt_delay_s: 0,
        password: None,
        peers: BTreeSet::new(),
        peer_hosts: BTreeMap::new(),
        items: vec![
            item("tap", Place::Host),
            item("vip", Place::Router),
            item("lan", Place::Router),
            item("default", Place::Router),
        ],
        announce: vec![announce(QR_LINK, [10, 0, 0, 1])],
        gateways: Vec::new(),
        uplinks: BTreeSet::new(),
        claim_to: BTreeSet::from([OURS, THEIRS, THIRD]),
        epoch: 0,
        wish: None,
        new: false,
        inherits: None,
        ready: true,
    }
}

fn follow(epoch: u64, vtep: Option<IpAddr>) -> FollowSpec {
    let entry = FollowEntry { mac: Mac([2, 0, 0, 0, 0, 1]), vxlan_ifindex: 5, tap_ifindex: Some(6) };
    FollowSpec { router: R, epoch, vtep, entries: vec![entry] }
}

fn advertisement(last_octet: u8, priority: u8) -> Vec<u8> {
    advertisement_of(1, last_octet, priority)
}

/// What another copy of a router with this VRID sends.
fn advertisement_of(vrid: u8, last_octet: u8, priority: u8) -> Vec<u8> {
    let source = Ipv4Addr::new(169, 254, 192, last_octet);
    frame_of(&Config::neutron(Vrid::new(vrid).unwrap(), source), last_octet, priority)
}

fn frame_of(config: &Config, last_octet: u8, priority: u8) -> Vec<u8> {
    let source = Ipv4Addr::new(169, 254, 192, last_octet);
    let config = config.clone();
    let advertisement = Advertisement {
        version: config.version,
        vrid: config.vrid,
        priority,
        advertise_interval_cs: config.advertise_interval_cs,
        addresses: config.addresses,
        password: None,
    };
    wire::ethernet_frame(&advertisement, [2, 0, 0, 0, 0, last_octet], source.into(), Ipv4Checksum::MessageOnly).unwrap()
}
