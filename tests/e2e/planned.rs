//! Planned moves lose nothing.

use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Node, wait_for};

use crate::support::{Cloud, PATIENCE};

#[test]
fn a_clean_stop_hands_over_without_losing_a_packet() {
    let mut cloud = Cloud::up("planned", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let mut active = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    // Host after host, as in a rolling upgrade.
    for _ in 0..2 {
        let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(1)).unwrap();
        cloud.wait_instance_reaches_the_world();
        let stop = Fault::Process(Daemon::Host, Signal::Term);
        cloud.lab.fail(active, stop.clone()).unwrap();
        let next = cloud.lab.wait_active(router).unwrap();
        assert_ne!(next, active);
        cloud.wait_instance_reaches_the_world();
        let report = probe.finish().unwrap();
        eprintln!("{report}");
        assert_eq!(report.lost(), 0, "{report}");
        cloud.lab.heal(active, &stop).unwrap();
        cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
        cloud.wait_shown_active("router1", next);
        active = next;
    }
}

#[test]
fn a_drained_host_loses_its_routers_and_no_packet_until_it_is_undrained() {
    let mut cloud = Cloud::up("drain", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    cloud.wait_shown_active("router1", active);
    let verb = |verb: &str| cloud.lab.machine(Node::Controller).shell(&format!("evergate {verb} {active}"));
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(1)).unwrap();
    cloud.wait_instance_reaches_the_world();
    let said = verb("drain").unwrap();
    assert!(said.ends_with(&format!("{active} is drained\n")), "{said}");
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    eprintln!("{said}{report}");
    assert_eq!(report.lost(), 0, "{report}");
    wait_for("nothing of the router is left on the drained host", PATIENCE, || {
        Ok((!cloud.lab.hosts_of(router).contains(&active)).then_some(()))
    })
    .unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    verb("undrain").unwrap();
    cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [next]);
}
