//! The role follows what it is for: the way to the gateway.

use std::time::Duration;

use evergate_lab::fault::Fault;
use evergate_lab::spec::Link;
use evergate_lab::{Node, Profile, wait_for};
use evergate_model::RouterId;

use crate::support::{Cloud, PATIENCE, for_a_while};

#[test]
fn a_host_that_loses_its_uplink_or_its_gateway_gives_its_routers_away() {
    let mut cloud = Cloud::up_with("gateways", |spec| {
        spec.advert_int = Some(1);
        spec.health_check_interval = Some(1);
    });
    let router = cloud.with_router();
    cloud.with_instance();

    // The cable is out: the link says so.
    let first = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    let uplink = Fault::Cut(Link::Uplink);
    cloud.lab.fail(first, uplink.clone()).unwrap();
    let second = moved(&cloud, router, first);
    cloud.wait_shown_active("router1", second);
    cloud.wait_instance_reaches_the_world();

    // Frames are lost further away: only who asks the gateway finds out. The host without uplink is no choice.
    let loss = Fault::Loss(Link::Uplink, 100);
    cloud.lab.fail(second, loss.clone()).unwrap();
    let third = moved(&cloud, router, second);
    assert_ne!(third, first, "its uplink is still dead");
    cloud.wait_shown_active("router1", third);
    cloud.wait_instance_reaches_the_world();
    let log = "tail -n 1 /var/lib/evergate/ha_confs/*/neutron-keepalived-state-change.log";
    let log = cloud.lab.machine(second).shell(log).unwrap();
    assert!(log.contains("lost its way to the gateway"), "{log}");

    // All are well again, and nothing moves for that: not while four advertisements are sent, nor to and fro.
    let before = epoch(&cloud, third, router);
    cloud.lab.heal(first, &uplink).unwrap();
    cloud.lab.heal(second, &loss).unwrap();
    for_a_while("the role stays where it is", Duration::from_secs(4), || {
        cloud.lab.active_hosts(router).unwrap() == [third]
    });
    assert_eq!(epoch(&cloud, third, router), before);
    cloud.wait_instance_reaches_the_world();
}

#[test]
fn the_source_nat_of_a_distributed_router_follows_its_gateway_and_goes_round_when_no_copy_has_one() {
    let mut cloud = Cloud::up_with("goround", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 1);
        spec.advert_int = Some(1);
        spec.health_check_interval = Some(1);
    });
    let router = cloud.with_router();
    cloud.with_instance();
    let first = cloud.lab.wait_copies(router, 2, &["ha-", "sg-", "qg-"]).unwrap();
    cloud.lab.wait_watching(router).unwrap();
    let loss = Fault::Loss(Link::Uplink, 100);
    cloud.lab.fail(first, loss.clone()).unwrap();
    let second = moved(&cloud, router, first);
    cloud.wait_shown_active("router1", second);
    cloud.wait_instance_reaches_the_world();

    // No copy has a way to the gateway any more: each tries in turn, whichever did not for longest.
    cloud.lab.fail(second, loss.clone()).unwrap();
    for from in [second, first, second] {
        moved(&cloud, router, from);
    }
    // Until one finds it again.
    cloud.lab.heal(second, &loss).unwrap();
    wait_for("the copy that recovered serves", PATIENCE, || {
        Ok((cloud.lab.active_hosts(router)? == [second]).then_some(()))
    })
    .unwrap();
    cloud.wait_instance_reaches_the_world();
    let before = epoch(&cloud, second, router);
    cloud.lab.heal(first, &loss).unwrap();
    for_a_while("the role stays where it is", Duration::from_secs(4), || {
        cloud.lab.active_hosts(router).unwrap() == [second]
    });
    assert_eq!(epoch(&cloud, second, router), before);
    cloud.wait_shown_active("router1", second);
}

/// Grows with every takeover.
fn epoch(cloud: &Cloud, host: Node, router: RouterId) -> u64 {
    let text = cloud.lab.machine(host).shell("evergate show --json").unwrap();
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    shown["routers"][router.to_string()]["epoch"].as_u64().unwrap()
}

fn moved(cloud: &Cloud, router: RouterId, from: Node) -> Node {
    wait_for("another copy alone is active", PATIENCE, || {
        let active = cloud.lab.active_hosts(router)?;
        Ok(match active[..] {
            [one] if one != from => Some(one),
            _ => None,
        })
    })
    .unwrap()
}
