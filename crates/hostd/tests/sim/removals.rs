//! Routers that go, or become another kind of router: the keeper lets go of them first.

use evergate_dataplane::Netns;
use evergate_dataplane::state::{FdbEntry, FdbTable};
use evergate_hostd::core::{DESCRIBE_PATIENCE, PERIOD, REMOVAL_PATIENCE};
use evergate_keeper::protocol::{FromKeeper, Removal, RouterStatus, ToKeeper};
use evergate_model::host::{HostConfig, Location};
use evergate_model::{RouterId, names};

use crate::common::{PEER_VTEP, ROUTER, base, ip, mac, many_routers, no_ha, port_id, remove_router};
use crate::harness::{Sim, active, distributed, with_router};

#[test]
fn removal_waits_for_the_keeper() {
    let mut sim = Sim::with_router_in_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    assert_eq!(sim.removals(), 1);
    assert!(sim.has_netns(), "the keeper has sockets in it");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns() && !sim.has_link("tap00100000-00"));
    assert_eq!(sim.removals(), 1, "asked once");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn a_router_that_becomes_distributed_moves_its_copy_to_another_namespace_and_back() {
    let mut sim = Sim::with_router_in_keeper();
    let ways = [
        (distributed(with_router(6)), names::snat_namespace(ROUTER)),
        (with_router(7), names::qrouter_namespace(ROUTER)),
    ];
    for (config, netns) in ways {
        sim.to_keeper.clear();
        sim.change(&config);
        assert_eq!((sim.removals(), sim.specs().len()), (1, 0), "the copy that was is let go of first");
        let changes = |m: &ToKeeper| matches!(m, ToKeeper::RemoveRouter { how: Removal::Changes, .. });
        assert!(sim.to_keeper.iter().any(changes), "it has nobody to hand over to");
        sim.keeper_says(FromKeeper::Removed { router: ROUTER });
        assert_eq!(sim.specs().last().unwrap().netns, netns);
        let inside = sim.kernel().state().netns[&Netns::Named(names::qrouter_namespace(ROUTER))].clone();
        assert_eq!(inside.links.keys().any(|link| link.starts_with("ha-")), netns.starts_with("qrouter-"));
        assert_eq!(sim.report().applied_revision, Some(config.revision));
        sim.pass(PERIOD * 2);
        assert_eq!(sim.removals(), 1, "asked once");
    }
    let left = Netns::Named(names::snat_namespace(ROUTER));
    assert!(!sim.kernel().state().netns.contains_key(&left));
}

#[test]
fn a_router_that_is_ha_no_more_goes_on_where_it_is() {
    let mut sim = Sim::with_router_in_keeper();
    let mut config = no_ha(with_router(6), Location::Local);
    sim.change(&config);
    let removal = sim.to_keeper.iter().find(|message| matches!(message, ToKeeper::RemoveRouter { .. }));
    assert!(matches!(removal, Some(ToKeeper::RemoveRouter { how: Removal::Remains, .. })), "{removal:?}");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    let inside = &sim.kernel().state().netns[&Netns::Named(names::qrouter_namespace(ROUTER))];
    assert!(!inside.links.keys().any(|link| link.starts_with("ha-")) && inside.addresses.len() == 3);
    // It becomes another's, and is nothing to be left here.
    config = with_router(7);
    sim.change(&config);
    remove_router(&mut config);
    config.revision = 8;
    sim.to_keeper.clear();
    sim.change(&config);
    let removal = sim.to_keeper.iter().find(|message| matches!(message, ToKeeper::RemoveRouter { .. }));
    assert!(matches!(removal, Some(ToKeeper::RemoveRouter { how: Removal::Leaves, .. })), "{removal:?}");
}

#[test]
fn a_control_that_has_just_started_tells_the_keeper_what_a_removal_means() {
    for keeper_is_first in [true, false] {
        let mut sim = Sim::new(None);
        sim.connect_keeper();
        sim.snapshot(with_router(5));
        // The server's word comes while the first round, towards what was cached, is under way.
        let mut sim = sim.restart_in_a_round(with_router(5));
        sim.status = active(4);
        let converted = no_ha(with_router(6), Location::Local);
        if keeper_is_first {
            sim.connect_keeper();
            sim.snapshot(converted);
        } else {
            sim.snapshot(converted);
            sim.connect_keeper();
        }
        sim.end_round();
        assert_eq!(sim.removal_kinds(), [Removal::Remains]);
        let position = |wanted: fn(&ToKeeper) -> bool| sim.to_keeper.iter().position(wanted).expect("it was said");
        let asked = position(|m| matches!(m, ToKeeper::RemoveRouter { .. }));
        assert!(asked < position(|m| matches!(m, ToKeeper::EndOfState)), "what is not mentioned, it hands over");
        sim.keeper_says(FromKeeper::Removed { router: ROUTER });
        sim.pass(PERIOD);
        let inside = &sim.kernel().state().netns[&Netns::Named(names::qrouter_namespace(ROUTER))];
        assert!(!inside.links.keys().any(|link| link.starts_with("ha-")) && inside.addresses.len() == 3);
        assert_eq!((sim.removals(), sim.report().applied_revision), (1, Some(6)));
    }
}

#[test]
fn what_a_removal_means_depends_on_where_the_keeper_says_that_the_copy_is() {
    let at_peer = || Location::Remote { vtep: ip(PEER_VTEP) };
    let elsewhere = |mut config: HostConfig| {
        let router = config.routers.get_mut(&ROUTER).unwrap();
        router.ha = None;
        router.distributed.as_mut().unwrap().translates_here = false;
        config
    };
    let gone = || {
        let mut config = with_router(6);
        remove_router(&mut config);
        config
    };
    let (qrouter, snat) = (names::qrouter_namespace(ROUTER), names::snat_namespace(ROUTER));
    // An empty name: an older keeper, which does not say.
    let cases = [
        (no_ha(with_router(6), Location::Local), qrouter.as_str(), Removal::Remains),
        (no_ha(with_router(6), Location::Local), snat.as_str(), Removal::Changes),
        (no_ha(with_router(6), Location::Local), "", Removal::Remains),
        (no_ha(distributed(with_router(6)), Location::Local), qrouter.as_str(), Removal::Changes),
        (no_ha(distributed(with_router(6)), Location::Local), snat.as_str(), Removal::Remains),
        (elsewhere(no_ha(distributed(with_router(6)), at_peer())), qrouter.as_str(), Removal::Changes),
        (elsewhere(no_ha(distributed(with_router(6)), at_peer())), "", Removal::Changes),
        // HA as ever; this host has its instances and no copy any more.
        (elsewhere(distributed(with_router(6))), snat.as_str(), Removal::Leaves),
        (elsewhere(distributed(with_router(6))), "", Removal::Leaves),
        (gone(), qrouter.as_str(), Removal::Leaves),
    ];
    for (n, (config, netns, how)) in cases.into_iter().enumerate() {
        let mut sim = Sim::new(None);
        sim.status = active(4);
        sim.status.routers[0].netns = netns.to_owned();
        sim.connect_keeper();
        sim.snapshot(config);
        assert_eq!(sim.removal_kinds(), [how], "case {n}");
    }
}

/// A control that has just started where a keeper has so many routers, of which the first leaves this host and the others
/// are HA no more.
fn converted_together(count: u32) -> (Sim, Vec<RouterId>) {
    let many = |revision| many_routers(count, revision);
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(many(5));
    let routers: Vec<RouterId> = many(5).routers.into_keys().collect();
    let copy = |router: &RouterId| RouterStatus {
        router: *router,
        netns: names::qrouter_namespace(*router),
        ..active(4).routers.remove(0)
    };
    let mut sim = sim.restart_in_a_round(many(5));
    sim.status.routers = routers.iter().map(copy).collect();
    let mut converted = no_ha(many(6), Location::Local);
    converted.routers.remove(&routers[0]);
    sim.snapshot(converted);
    sim.connect_keeper();
    sim.end_round();
    (sim, routers)
}

#[test]
fn the_keeper_is_told_what_becomes_of_each_of_many_routers_before_it_drops_any() {
    let (mut sim, routers) = converted_together(6);
    assert_eq!(sim.removal_kinds(), [Removal::Remains; 4], "a few at a time, those first that do not wait for others");
    for (asked, removed) in [(5, routers[1]), (6, routers[2])] {
        assert!(!sim.said_end());
        sim.keeper_says(FromKeeper::Removed { router: removed });
        assert_eq!(sim.removal_kinds().len(), asked);
    }
    assert_eq!(sim.removal_kinds().last(), Some(&Removal::Leaves));
    assert!(sim.said_end());
}

#[test]
fn a_keeper_that_takes_long_to_let_go_is_not_told_to_drop_routers_that_do_not_just_leave() {
    let (mut sim, routers) = converted_together(10);
    sim.pass(DESCRIBE_PATIENCE.max(REMOVAL_PATIENCE));
    assert_eq!(sim.removal_kinds(), [Removal::Remains; 8], "the first are given up");
    assert!(!sim.said_end());
    sim.keeper_says(FromKeeper::Removed { router: routers[5] });
    assert_eq!(sim.removal_kinds(), [Removal::Remains; 9]);
    assert!(sim.said_end(), "the last one leaves: what is not mentioned does");
}

#[test]
fn entries_that_followed_an_active_copy_become_controls_without_a_moment_without() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let follows = |revision, location| {
        let mut config = with_router(revision);
        config.routers.clear();
        no_ha(config, location)
    };
    sim.snapshot(follows(5, Location::Active { router: ROUTER }));
    let followed = sim.follows()[0].entries.clone();
    // The keeper's, which control has not seen yet.
    let entry = |table| FdbEntry { link: "vxlan-1002".to_owned(), mac: mac(0x20), table };
    let host = |sim: &mut Sim| sim.kernel().state_mut().netns.get_mut(&Netns::Host).unwrap().fdb.clone();
    let path = entry(FdbTable::Nexthop { group: 7 });
    sim.kernel().state_mut().netns.get_mut(&Netns::Host).unwrap().fdb.insert(path.clone());
    sim.to_keeper.clear();
    sim.change(&follows(6, Location::Remote { vtep: ip(PEER_VTEP) }));
    let fdb = host(&mut sim);
    assert!(fdb.contains(&entry(FdbTable::Vxlan { dst: ip(PEER_VTEP) })) && !fdb.contains(&path), "{fdb:?}");
    let said: Vec<_> = sim.to_keeper.iter().filter(|m| !matches!(m, ToKeeper::Status)).collect();
    let [ToKeeper::Cede { router: ROUTER, entries }, ToKeeper::Unfollow { router: ROUTER }] = said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(*entries, followed);
}

#[test]
fn routers_that_go_together_are_let_go_one_by_one() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let mut config = with_router(5);
    let second = RouterId::from_u128(0xc000_0000_0000_0000_0000_0000_0000_0002);
    let mut router = config.routers[&ROUTER].clone();
    router.id = second;
    router.gateway = None;
    router.interfaces.clear();
    router.ha.as_mut().unwrap().port_id = port_id(0x12);
    config.routers.insert(second, router);
    sim.snapshot(config);
    assert_eq!(sim.specs().len(), 2);
    sim.to_keeper.clear();
    sim.change(&base(6));
    for router in [ROUTER, second] {
        assert!(sim.has_netns());
        // It takes its time, but gets on with it.
        sim.pass(REMOVAL_PATIENCE * 2 / 3);
        sim.keeper_says(FromKeeper::Removed { router });
    }
    assert!(!sim.has_netns());
    let asked = sim.to_keeper.iter().filter(|m| matches!(m, ToKeeper::RemoveRouter { .. })).count();
    assert_eq!(asked, 2, "each once");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn removal_does_not_wait_for_ever() {
    let mut sim = Sim::with_router_in_keeper();
    sim.disconnect_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    assert!(sim.has_netns());
    sim.pass(REMOVAL_PATIENCE);
    assert!(!sim.has_netns());
}

#[test]
fn a_router_that_was_deleted_while_control_was_down_is_let_go_first() {
    let sim = Sim::with_router_in_keeper();
    let mut sim = sim.restart(None);
    sim.connect_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.snapshot(config);
    assert_eq!(sim.removals(), 1);
    assert!(sim.has_netns());
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
}

#[test]
fn a_removal_is_asked_for_again_on_a_new_connection() {
    let mut sim = Sim::with_router_in_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    sim.disconnect_keeper();
    sim.to_keeper.clear();
    sim.connect_keeper();
    assert_eq!(sim.removals(), 1);
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
}

#[test]
fn a_router_that_comes_back_before_it_is_gone_stays() {
    let mut sim = Sim::with_router_in_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    sim.to_keeper.clear();
    sim.change(&with_router(7));
    assert_eq!(sim.specs().len(), 1, "it is told anew");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    sim.pass(PERIOD);
    assert!(sim.has_netns());
}

#[test]
fn a_router_that_is_put_down_leaves_the_keeper_and_the_host() {
    let mut sim = Sim::with_router_in_keeper();
    let mut config = with_router(6);
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = false;
    sim.change(&config);
    assert_eq!(sim.removals(), 1);
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
    config.revision = 7;
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = true;
    sim.change(&config);
    assert!(sim.has_netns() && sim.specs().len() == 2);
}
