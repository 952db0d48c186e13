//! What breaks other than a host, and what goes on regardless.

use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Node, wait_for};
use serde_json::json;

use crate::support::{Cloud, PATIENCE};

#[test]
fn without_the_server_traffic_flows_and_failover_works() {
    let mut cloud = Cloud::up("noserver", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_active(router).unwrap();

    // What was acknowledged survives a server that is killed, whatever it was doing.
    let kept = cloud.lab.api_ok("POST", "/v2.0/networks", Some(&json!({"network": {"name": "kept"}}))).unwrap();
    let killed = Fault::Process(Daemon::Server, Signal::Kill);
    cloud.lab.fail(Node::Controller, killed.clone()).unwrap();
    assert!(cloud.lab.api("GET", "/v2.0/networks", None).is_err());
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    assert!(report.is_unharmed(), "{report}");

    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    cloud.wait_instance_reaches_the_world();
    // A host that starts while there is no server works with what it knew last.
    cloud.lab.heal(active, &Fault::Power).unwrap();
    wait_for("the returned host has its copy again", PATIENCE, || {
        Ok(cloud.lab.hosts_of(router).contains(&active).then_some(()))
    })
    .unwrap();

    cloud.lab.heal(Node::Controller, &killed).unwrap();
    cloud.lab.wait_hosts_alive(&cloud.lab.spec().hosts()).unwrap();
    let id = kept["network"]["id"].as_str().unwrap();
    assert_eq!(cloud.lab.api_ok("GET", &format!("/v2.0/networks/{id}"), None).unwrap()["network"]["name"], "kept");
    cloud.wait_shown_active("router1", next);
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [next]);
}

#[test]
fn vrrp_alone_takes_over_after_three_missed_intervals() {
    let mut cloud = Cloud::up_with("vrrp", |spec| {
        spec.advert_int = Some(1);
        spec.bfd_interval_ms = Some(0);
    });
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    cloud.wait_instance_reaches_the_world();
    cloud.lab.fail(active, Fault::Power).unwrap();
    assert_ne!(cloud.lab.wait_active(router).unwrap(), active);
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    // Three intervals and a skew of (256 - 50) / 256 s make 3.8 s, from an advertisement that is up to 1 s
    // old when the power goes. The rest is for a loaded machine.
    let gap = report.longest_gap_ms();
    assert!(gap > 2_500.0 && gap < 6_500.0, "{report}");
}

#[test]
fn a_killed_keeper_loses_nothing() {
    let mut cloud = Cloud::up("keeper", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_active(router).unwrap();

    // The keeper dies; the kernel goes on forwarding, and a new keeper resumes before anyone misses it.
    let machine = cloud.lab.machine(active);
    let old = machine.daemons(Daemon::Keeper)[0].pid;
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    cloud.lab.fail(active, Fault::Process(Daemon::Keeper, Signal::Kill)).unwrap();
    wait_for("a new keeper runs", PATIENCE, || {
        Ok(machine.daemons(Daemon::Keeper).iter().any(|process| process.pid != old).then_some(()))
    })
    .unwrap();
    cloud.wait_instance_reaches_the_world();
    let shown = cloud.wait_shown_active("router1", active);
    assert_eq!(shown.len(), 3);
    let report = probe.finish().unwrap();
    assert!(report.is_unharmed(), "{report}");
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
}

#[test]
fn a_frozen_keeper_is_replaced_and_one_active_is_left_when_it_wakes() {
    let mut cloud = Cloud::up("frozen", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_active(router).unwrap();
    let stopped = Fault::Process(Daemon::Keeper, Signal::Stop);
    cloud.lab.fail(active, stopped.clone()).unwrap();
    // The frozen copy's kernel goes on; two copies act as active until it wakes and hears the other.
    wait_for("another copy has become active", PATIENCE, || {
        Ok(cloud.lab.active_hosts(router)?.iter().any(|node| *node != active).then_some(()))
    })
    .unwrap();
    cloud.lab.heal(active, &stopped).unwrap();
    let one = cloud.lab.wait_active(router).unwrap();
    cloud.wait_shown_active("router1", one);
    cloud.wait_instance_reaches_the_world();
}
