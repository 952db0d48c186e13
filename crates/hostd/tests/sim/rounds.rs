//! Rounds of reconciliation: when they run, what they touch, and what comes after a failure.

use std::time::Duration;

use evergate_dataplane::{Netns, Op};
use evergate_hostd::core::PERIOD;
use evergate_model::host::Location;
use evergate_model::names;
use evergate_model::stream::Change;

use crate::common::{self, EXTERNAL_NETWORK, PROJECT_NETWORK, ROUTER, add_port, base, port, port_id};
use crate::harness::{Sim, with_router};

#[test]
fn a_host_that_knows_nothing_touches_nothing() {
    let mut sim = Sim::new(None);
    sim.pass(PERIOD * 3);
    assert_eq!(sim.rounds, 0);
    assert!(!sim.reports.is_empty(), "the server must learn of the host all the same");
    assert_eq!(sim.reports[0].sequence, 1);
}

#[test]
fn an_older_state_is_refused_and_said_to_be() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    let rounds = sim.rounds;
    sim.snapshot(base(4));
    assert_eq!((sim.rounds, sim.resyncs), (rounds, 0), "to ask again would bring the same answer");
    assert!(sim.has_netns());
    assert!(sim.report().warnings.iter().any(|w| w.contains("revision 4")));
    for (revision, resyncs) in [(5, 0), (6, 1)] {
        sim.core.handle_change(Change { revision, routers_removed: [ROUTER].into(), ..Change::default() }, sim.now);
        sim.settle();
        assert_eq!((sim.rounds, sim.resyncs), (rounds, resyncs), "changes to what was refused mean nothing");
    }
    sim.snapshot(with_router(6));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_stale_change_asks_for_the_whole_state() {
    let mut sim = Sim::new(None);
    sim.core.handle_change(Change { revision: 9, ..Change::default() }, sim.now);
    sim.settle();
    assert_eq!(sim.resyncs, 1, "a change to nothing");
    sim.snapshot(with_router(5));
    sim.core.handle_change(Change { revision: 5, ..Change::default() }, sim.now);
    sim.settle();
    assert_eq!(sim.resyncs, 2);
    assert_eq!(sim.core.config().unwrap().revision, 5);
}

#[test]
fn a_restart_adopts_everything() {
    let sim = Sim::with_router_in_keeper();
    let cached = sim.core.config().map(|config| (**config).clone());
    let mut sim = sim.restart(cached);
    assert_eq!((sim.rounds, sim.ops), (1, 0), "the plan is empty");
    sim.connect_keeper();
    assert!(sim.specs()[0].ready && sim.said_end());
    sim.snapshot(with_router(5));
    assert_eq!(sim.rounds, 1, "the server says nothing new");
    assert!(!sim.core.is_from_cache());
}

#[test]
fn what_failed_is_tried_again_with_growing_pauses() {
    let mut sim = Sim::new(None);
    for _ in 0..3 {
        sim.kernel().fail_next("no buffer space", |op| matches!(op, Op::AddNetns { .. }));
    }
    sim.snapshot(with_router(5));
    assert_eq!(sim.report().applied_revision, None);
    assert!(sim.report().warnings.iter().any(|w| w.contains("no buffer space")));
    sim.pass(Duration::from_millis(200));
    sim.pass(Duration::from_millis(400));
    assert_eq!(sim.rounds, 3);
    sim.pass(Duration::from_millis(700));
    assert_eq!(sim.rounds, 3, "the third pause is longer");
    sim.pass(Duration::from_millis(200));
    assert!(sim.has_netns());
    assert_eq!(sim.report().applied_revision, Some(5));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_kernel_that_cannot_be_read_is_tried_again() {
    let mut sim = Sim::new(None);
    sim.worker.machine_mut().broken = true;
    sim.snapshot(with_router(5));
    assert!(sim.report().warnings.iter().any(|w| w.contains("out of memory")));
    sim.worker.machine_mut().broken = false;
    sim.pass(Duration::from_secs(1));
    assert!(sim.has_netns());
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn what_somebody_changed_by_hand_is_put_right() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    sim.kernel().remove_link("vxlan-1002");
    sim.core.handle_link_event("vxlan-1002", false, false, sim.now);
    sim.settle();
    assert!(sim.has_link("vxlan-1002"), "at once where an event tells");
    sim.kernel().remove_link("vxlan-1002");
    sim.pass(PERIOD);
    assert!(sim.has_link("vxlan-1002"), "or at the next periodic round");
}

#[test]
fn a_tap_is_plugged_in_when_it_appears_and_its_port_reported() {
    let mut sim = Sim::new(None);
    let mut config = with_router(5);
    add_port(&mut config, PROJECT_NETWORK, port_id(0x60), port(0x60, &["10.0.0.60"], Location::Local));
    sim.snapshot(config);
    assert!(!sim.report().ports_up.contains(&port_id(0x60)));
    let rounds = sim.rounds;
    sim.core.handle_link_event("tapunrelated", true, true, sim.now);
    sim.settle();
    assert_eq!(sim.rounds, rounds, "not ours to plug");
    sim.kernel().add_foreign_link("tap00600000-00");
    sim.core.handle_link_event("tap00600000-00", true, false, sim.now);
    sim.settle();
    let tap = &sim.kernel().state().netns[&Netns::Host].links["tap00600000-00"];
    assert_eq!(tap.master.as_deref(), Some("brq02000000-00"));
    assert!(sim.report().ports_up.contains(&port_id(0x60)));
    sim.kernel().remove_link("tap00600000-00");
    sim.core.handle_link_event("tap00600000-00", false, false, sim.now);
    sim.settle();
    assert!(!sim.report().ports_up.contains(&port_id(0x60)));
}

#[test]
fn a_foreign_object_by_our_name_is_left_alone_and_said_to_be_in_the_way() {
    let mut sim = Sim::new(None);
    let bridge = names::bridge(EXTERNAL_NETWORK);
    sim.kernel().add_foreign_link(&bridge);
    sim.snapshot(with_router(5));
    assert!(sim.report().warnings.iter().any(|w| w.contains(&bridge) && w.contains("not made by Evergate")));
    let rounds = sim.rounds;
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.rounds, rounds, "a refusal is no failure to try again");
}

#[test]
fn a_burst_of_changes_costs_one_round() {
    let mut sim = Sim::new(Some(base(1)));
    let rounds = sim.rounds;
    for revision in 2..50 {
        let mut config = with_router(revision);
        add_port(&mut config, PROJECT_NETWORK, port_id(u128::from(revision) + 0x100), port(1, &[], Location::Unbound));
        let change = Change::between(sim.core.config().unwrap(), &config).unwrap();
        sim.core.handle_change(change, sim.now);
    }
    sim.settle();
    assert_eq!(sim.rounds, rounds + 1);
}

#[test]
fn a_change_is_applied_without_observing_and_verified_when_the_changes_pause() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(base(5));
    let (rounds, observations) = (sim.rounds, sim.worker.machine_mut().observations);
    sim.change(&with_router(6));
    assert!(sim.has_netns() && sim.specs()[0].ready);
    assert_eq!(sim.worker.machine_mut().observations, observations);
    sim.pass(Duration::from_secs(1));
    assert_eq!((sim.rounds, sim.worker.machine_mut().observations), (rounds + 2, observations + 1));
    assert_eq!(sim.core.last_round().unwrap().outcome.ops, 0);
}

#[test]
fn what_changed_by_hand_behind_a_quick_round_is_found_by_the_next() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().remove_link("vxlan-1002");
    sim.change(&with_router(6));
    assert!(!sim.has_link("vxlan-1002"));
    sim.pass(Duration::from_secs(1));
    assert!(sim.has_link("vxlan-1002"));
}

#[test]
fn changes_without_pause_are_verified_all_the_same() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    let observations = sim.worker.machine_mut().observations;
    for revision in 6..46 {
        let mut config = with_router(revision);
        add_port(&mut config, PROJECT_NETWORK, port_id(0x70), port(revision as u8, &[], Location::Unbound));
        sim.change(&config);
        sim.pass(Duration::from_millis(100));
    }
    assert_eq!(sim.worker.machine_mut().observations, observations + 1);
}

#[test]
fn many_removals_let_the_next_change_pass() {
    let mut sim = Sim::new(None);
    let mut config = base(5);
    for n in 0..80 {
        let mut network = config.networks[&PROJECT_NETWORK].clone();
        network.id = common::network_id(0x20 + n);
        network.segment = evergate_model::host::Segment::Vxlan { vni: 2000 + n as u32 };
        config.networks.insert(network.id, network);
    }
    sim.snapshot(config);
    let rounds = sim.rounds;
    sim.change(&base(6));
    assert!(sim.rounds > rounds + 1, "in several rounds");
    let links = sim.kernel().state().netns[&Netns::Host].links.keys().filter(|l| l.starts_with("vxlan-")).count();
    assert_eq!((links, sim.report().applied_revision), (2, Some(6)));
}

#[test]
fn a_quick_round_does_not_touch_what_has_the_name_of_something_new() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().add_foreign_link("tap00100000-00");
    let name = Netns::Named(names::qrouter_namespace(ROUTER));
    sim.change(&with_router(6));
    assert!(sim.report().warnings.iter().any(|w| w.contains("tap00100000-00")));
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().state_mut().netns.insert(name.clone(), Default::default());
    sim.change(&with_router(6));
    assert_eq!(sim.kernel().state().netns[&name], Default::default());
}
