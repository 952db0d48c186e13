//! What control and keeper say to each other.

use std::collections::BTreeSet;
use std::time::Duration;

use evergate_dataplane::{Netns, Op};
use evergate_hostd::core::{DESCRIBE_PATIENCE, FileJob, INTRODUCTION_PATIENCE, PERIOD};
use evergate_keeper::protocol::{FromKeeper, ToKeeper};
use evergate_model::host::ActiveCopy;
use evergate_model::stream::Letter;
use evergate_model::{HaState, names};

use crate::common::{self, HOST_VTEP, PEER_VTEP, ROUTER, ip};
use crate::harness::{Sim, active, became, transitions, with_router};

#[test]
fn the_keeper_is_told_of_a_router_when_its_namespace_stands() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    assert!(sim.to_keeper.is_empty(), "without a configuration there is no key to greet with: {:?}", sim.to_keeper);
    sim.snapshot(with_router(5));
    assert!(sim.has_netns() && sim.has_link("tap00100000-00") && sim.has_link("vxlan-1001"));
    assert!(matches!(&sim.to_keeper[0], ToKeeper::Hello { settings, .. } if !settings.claim_key.is_empty()));
    let specs = sim.specs();
    assert_eq!(specs.len(), 1);
    assert!(specs[0].ready && specs[0].ha_ifindex > 0 && !specs[0].items.is_empty());
    assert_eq!(specs[0].claim_to, BTreeSet::from([ip(PEER_VTEP), ip(common::COMPUTE_VTEP)]));
    let position = |wanted: fn(&ToKeeper) -> bool| sim.to_keeper.iter().position(wanted).expect("it was said");
    assert!(position(|m| matches!(m, ToKeeper::Router(_))) < position(|m| matches!(m, ToKeeper::EndOfState)));
    assert_eq!(sim.report().applied_revision, Some(5));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_copy_is_not_ready_while_a_way_to_its_networks_is_missing() {
    let mut sim = Sim::new(None);
    sim.kernel().remove_link("ext0");
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.specs()[0].ready);
    assert!(sim.report().warnings.iter().any(|w| w.contains("not ready") && w.contains("physnet1")));
    sim.kernel().add_foreign_link("ext0");
    sim.core.handle_link_event("ext0", true, false, sim.now);
    sim.settle();
    assert!(sim.specs().last().unwrap().ready);
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_copy_that_takes_part_is_not_taken_out_for_one_network() {
    let mut sim = Sim::with_router_in_keeper();
    sim.kernel().remove_link("ext0");
    sim.pass(PERIOD * 2);
    assert!(sim.specs().iter().all(|spec| spec.ready));
    assert!(sim.report().warnings.iter().any(|w| w.contains("ext0") || w.contains("physnet1")));
}

#[test]
fn what_the_keeper_did_is_left_alone() {
    let mut sim = Sim::with_router_in_keeper();
    // The router becomes active: the keeper puts its addresses and its forwarding entries.
    let config = sim.core.config().unwrap().clone();
    let round = evergate_hostd::round::Round {
        vtep: Some(ip(HOST_VTEP)),
        ..evergate_hostd::round::Round::towards((*config).clone())
    };
    let items = sim.worker.plan(&round).unwrap().desired.prepared.remove(&ROUTER).unwrap().items;
    let ops: Vec<Op> = items.into_iter().map(|item| item.add).collect();
    assert!(sim.kernel().apply(&ops).iter().all(Result::is_ok));
    let before = sim.ops;
    sim.pass(PERIOD * 2);
    assert_eq!(sim.ops, before);
}

#[test]
fn letters_pass_between_keeper_and_server_and_the_keeper_knows_whether_they_do() {
    let mut sim = Sim::new(Some(with_router(5)));
    let reachable = |sim: &Sim| -> Vec<bool> {
        let one =
            |message: &ToKeeper| if let ToKeeper::Server { reachable } = message { Some(*reachable) } else { None };
        sim.to_keeper.iter().filter_map(one).collect()
    };
    sim.core.handle_server(true, sim.now);
    sim.settle();
    sim.connect_keeper();
    assert_eq!(reachable(&sim), [true], "a keeper that comes later is told as well");
    sim.core.handle_server(true, sim.now);
    sim.core.handle_server(false, sim.now);
    sim.settle();
    assert_eq!(reachable(&sim), [true, false]);
    let peer = "192.0.2.9".parse().unwrap();
    sim.keeper_says(FromKeeper::Letter { to: peer, datagram: "0a".to_owned() });
    assert_eq!(sim.letters, [Letter { peer, datagram: "0a".to_owned() }]);
    sim.core.handle_letter(Letter { peer, datagram: "0b".to_owned() }, sim.now);
    sim.settle();
    let brought = sim.to_keeper.last().unwrap();
    assert!(matches!(brought, ToKeeper::Letter { from, datagram } if *from == peer && datagram == "0b"), "{brought:?}");
}

#[test]
fn a_keeper_that_comes_back_is_told_everything_again() {
    let mut sim = Sim::with_router_in_keeper();
    sim.to_keeper.clear();
    sim.disconnect_keeper();
    sim.connect_keeper();
    assert!(matches!(sim.to_keeper[0], ToKeeper::Hello { .. }));
    assert_eq!((sim.specs().len(), sim.follows().len()), (1, 1));
    assert!(matches!(sim.to_keeper.last().unwrap(), ToKeeper::EndOfState));
}

#[test]
fn a_router_is_new_to_the_keeper_until_a_copy_was_active() {
    let mut sim = Sim::with_router_in_keeper();
    assert!(sim.specs()[0].new);
    sim.keeper_says(became(HaState::Active, 1, 1000));
    sim.pass(PERIOD);
    assert_eq!(sim.specs().len(), 1, "that it is not new any more is no news");
    sim.disconnect_keeper();
    sim.to_keeper.clear();
    sim.connect_keeper();
    assert!(!sim.specs()[0].new, "a keeper that starts again waits for silence");
    let mut sim = Sim::new(Some(with_router(5)));
    sim.connect_keeper();
    assert!(!sim.specs()[0].new, "the cache may be old");
}

#[test]
fn a_keeper_is_not_told_the_end_while_a_copy_cannot_be_described() {
    let mut sim = Sim::new(None);
    // Of all its objects, the router's HA device is in the way of nothing but itself.
    sim.kernel().fail_next("no", |op| matches!(op, Op::AddNetns { .. }));
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.said_end(), "what is not mentioned, the keeper drops");
    sim.pass(Duration::from_secs(1));
    assert!(sim.said_end() && sim.specs().len() == 1);
}

#[test]
fn a_keeper_does_not_wait_for_a_hopeless_copy_for_ever() {
    let mut sim = Sim::new(None);
    let name = names::qrouter_namespace(ROUTER);
    sim.kernel().state_mut().netns.insert(Netns::Named(name), Default::default());
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.said_end());
    sim.pass(DESCRIBE_PATIENCE);
    assert!(sim.said_end() && sim.specs().is_empty());
    assert!(sim.report().warnings.iter().any(|w| w.contains("namespace")));
}

#[test]
fn a_control_that_starts_learns_the_roles_from_the_keeper() {
    let mut sim = Sim::new(Some(with_router(5)));
    sim.status = active(4);
    sim.connect_keeper();
    assert_eq!(sim.report().ha_states[&ROUTER].epoch, 4);
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::State { state: HaState::Active, .. })));
    assert_eq!(transitions(&sim.files), 0, "nothing changed");
}

#[test]
fn a_control_that_starts_does_not_take_an_active_router_away() {
    let mut sim = Sim::with_router_in_keeper();
    sim.kernel().remove_link("ext0");
    let mut sim = sim.restart(Some(with_router(5)));
    sim.status = active(4);
    sim.connect_keeper();
    assert!(sim.specs()[0].ready, "a copy that is not ready would resign");
    assert!(sim.report().warnings.iter().any(|w| w.contains("physnet1")));
}

#[test]
fn a_keeper_that_does_not_say_what_it_has_is_told_all_the_same() {
    let mut sim = Sim::new(Some(with_router(5)));
    sim.connected = true;
    sim.core.handle_keeper_connected(sim.now);
    sim.settle();
    assert!(sim.specs().is_empty());
    sim.pass(INTRODUCTION_PATIENCE);
    assert!(sim.specs().len() == 1 && !sim.said_end(), "it may have others, and would drop them");
    sim.pass(DESCRIBE_PATIENCE);
    assert!(sim.said_end());
}

#[test]
fn a_takeover_elsewhere_costs_a_message_and_no_round() {
    let mut sim = Sim::with_router_in_keeper();
    let (rounds, follows) = (sim.rounds, sim.follows().len());
    let mut config = with_router(6);
    config.active_copies.insert(ROUTER, ActiveCopy { epoch: 2, vtep: ip(PEER_VTEP) });
    config.routers.get_mut(&ROUTER).unwrap().ha.as_mut().unwrap().epoch = 2;
    sim.change(&config);
    assert_eq!((sim.rounds, sim.specs().len()), (rounds, 1));
    assert_eq!(sim.follows().len(), follows + 1);
    let last = sim.follows()[follows];
    assert_eq!((last.epoch, last.vtep), (2, Some(ip(PEER_VTEP))));
    assert_eq!(last.entries.len(), 1, "the flat network learns by itself");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn a_router_whose_device_was_made_anew_is_told_anew() {
    let mut sim = Sim::with_router_in_keeper();
    sim.kernel().remove_link("tap00100000-00");
    sim.core.handle_link_event("tap00100000-00", false, false, sim.now);
    sim.settle();
    let specs = sim.specs();
    assert_eq!(specs.len(), 2);
    assert_ne!(specs[0].ha_ifindex, specs[1].ha_ifindex);
}
