//! Routers that go, or become another kind of router: the keeper lets go of them first.

use evergate_dataplane::Netns;
use evergate_dataplane::state::{FdbEntry, FdbTable};
use evergate_hostd::core::{PERIOD, REMOVAL_PATIENCE};
use evergate_keeper::protocol::{FromKeeper, Removal, ToKeeper};
use evergate_model::host::Location;
use evergate_model::{RouterId, names};

use crate::common::{PEER_VTEP, ROUTER, base, ip, mac, port_id, remove_router};
use crate::harness::{Sim, distributed, no_ha, with_router};

#[test]
fn removal_waits_for_the_keeper() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
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
