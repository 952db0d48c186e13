//! Many HA routers on one HA network: from eight copies on a host on, an advertisement that comes in by the tunnel is led to the
//! copy that it is for, and one of a copy here to the tunnel (`dataplane::compile::dispatch`). Seen from outside, nothing else is
//! different.

use std::collections::BTreeSet;
use std::time::Duration;

use evergate_lab::fault::Fault;
use evergate_lab::probe::Running;
use evergate_lab::spec::PHYSICAL_NETWORK;
use evergate_lab::{Lab, Node, wait_for};
use evergate_model::{RouterId, names};
use serde_json::{Value, json};

use crate::every_kind::{add_interface, create, id};
use crate::support::{PATIENCE, lab};

/// From so many copies on advertisements are led.
const MANY: usize = 8;
const HOSTS: [Node; 2] = [Node::Network(1), Node::Network(2)];

/// A router with a network and an instance of its own.
struct Served {
    router: RouterId,
    subnet: String,
    instance: String,
}

/// Makes the routers, all of one project, and waits until each has two copies.
fn furnish(lab: &Lab) -> Vec<Served> {
    let public = json!({
        "name": "public", "router:external": true,
        "provider:network_type": "flat", "provider:physical_network": PHYSICAL_NETWORK,
    });
    let public = create(lab, "network", &public);
    let subnet = json!({
        "network_id": id(&public), "ip_version": 4, "cidr": "203.0.113.0/24", "gateway_ip": "203.0.113.254",
        "enable_dhcp": false,
    });
    create(lab, "subnet", &subnet);
    let one = |n: usize| {
        let gateway = json!({"network_id": id(&public)});
        let router = create(lab, "router", &json!({"ha": true, "external_gateway_info": gateway}));
        let network = create(lab, "network", &json!({"name": format!("net{n}")}));
        let cidr = format!("10.0.{n}.0/24");
        let subnet = create(lab, "subnet", &json!({"network_id": id(&network), "ip_version": 4, "cidr": cidr}));
        add_interface(lab, &router, &subnet);
        let port = create(lab, "port", &json!({"network_id": id(&network)}));
        let instance = format!("vm{n}");
        lab.add_instance(&instance, id(&port), Node::Compute(1)).unwrap();
        Served { router: id(&router).parse().unwrap(), subnet: id(&subnet).to_owned(), instance }
    };
    (1..=MANY).map(one).collect()
}

/// Waits until each router has two copies, one of which alone is active; returns where.
fn wait_complete(lab: &Lab, all: &[Served]) -> Vec<Node> {
    all.iter().map(|one| lab.wait_copies(one.router, 2, &["ha-", "qr-", "qg-"]).unwrap()).collect()
}

fn wait_all_reach_the_world(lab: &Lab, all: &[Served]) {
    for one in all {
        wait_for(&format!("{} reaches the web server", one.instance), PATIENCE, || {
            lab.instance_shell(&one.instance, "evergate lab fetch http://198.51.100.10/").map(Some)
        })
        .unwrap();
    }
}

/// The copies that advertisements from the tunnel of the HA network are led to on a host, and whose are led out by it; without
/// the table, 0.
fn led(lab: &Lab, host: Node, tunnel: &str) -> anyhow::Result<usize> {
    let text =
        lab.machine(host).shell("nft -j list tables netdev; nft list table netdev evergate 2>/dev/null || true")?;
    if !text.contains("\"evergate\"") {
        return Ok(0);
    }
    anyhow::ensure!(text.contains(&format!("device \"{tunnel}\"")), "{text}");
    // A number stands there instead where the device with it is gone.
    anyhow::ensure!(text.contains(&format!("fwd to \"{tunnel}\"")), "{text}");
    let listed = |what: &str| {
        let list = text.split_once(&format!("{what} = {{")).and_then(|(_, rest)| rest.split_once('}'));
        list.map_or(0, |(list, _)| list.split(',').count())
    };
    anyhow::ensure!(listed("elements") == listed("devices"), "{text}");
    Ok(listed("elements"))
}

fn wait_led(lab: &Lab, tunnel: &str, copies: usize) {
    for host in HOSTS {
        wait_for(&format!("advertisements are led to {copies} copies on {host}"), PATIENCE, || {
            let found = led(lab, host, tunnel)?;
            anyhow::ensure!(found == copies, "to {found}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

/// The identifiers of virtual routers whose advertisements reach a copy: of the next so many that do.
fn heard(lab: &Lab, host: Node, router: RouterId, count: usize) -> Vec<u8> {
    let line = format!(
        "ip netns exec {} tcpdump -nn -l -c {count} -i any -Q in 'ip proto 112' 2>/dev/null",
        names::qrouter_namespace(router)
    );
    let text = lab.machine(host).shell(&format!("timeout {} {line}", PATIENCE.as_secs())).unwrap();
    let vrid = |line: &str| line.split_once("vrid ")?.1.split_once(',')?.0.parse().ok();
    text.lines().filter_map(vrid).collect()
}

/// An advertisement of an active copy's, as `tcpdump` in its namespace shows it.
fn said(lab: &Lab, host: Node, router: RouterId) -> String {
    let line = format!(
        "ip netns exec {} tcpdump -nn -l -c 1 -i any -Q out 'ip proto 112' 2>/dev/null",
        names::qrouter_namespace(router)
    );
    lab.machine(host).shell(&format!("timeout {} {line}", PATIENCE.as_secs())).unwrap()
}

/// The identifier of a router whose active copy is on a host: the last octet of its virtual address.
fn vrid(lab: &Lab, host: Node, router: RouterId) -> u8 {
    let addresses = lab.machine(host).router_addresses(router).unwrap().unwrap();
    let mut all = addresses.values().flatten();
    let last = all.find_map(|address| address.strip_prefix("169.254.0.")?.split('/').next()?.parse().ok());
    last.expect("the active copy has its virtual address")
}

#[test]
fn eight_routers_of_one_ha_network_hear_their_own_advertisements_and_survive_a_power_off() {
    let lab = lab("many", |spec| {
        spec.advert_int = Some(1);
        (spec.network_hosts, spec.compute_hosts) = (2, 1);
    });
    let mut all = furnish(&lab);
    let active = wait_complete(&lab, &all);
    let networks = lab.api_ok("GET", "/v2.0/networks", None).unwrap();
    let is_ha = |network: &&Value| network["name"].as_str().unwrap().starts_with("HA network tenant ");
    let ha: Vec<_> = networks["networks"].as_array().unwrap().iter().filter(is_ha).collect();
    assert_eq!(ha.len(), 1, "{networks}");
    let tunnel = format!("vxlan-{}", ha[0]["provider:segmentation_id"]);
    wait_led(&lab, &tunnel, MANY);
    wait_all_reach_the_world(&lab, &all);
    all.iter().for_each(|one| lab.wait_watching(one.router).unwrap());

    // The host with the most active copies dies, and the other serves them all.
    let dead = HOSTS.into_iter().max_by_key(|host| active.iter().filter(|one| *one == host).count()).unwrap();
    let left = HOSTS.into_iter().find(|host| *host != dead).unwrap();
    let watched = active.iter().position(|host| *host == dead).unwrap();
    let probe = Running::start(&lab, &all[watched].instance, Duration::from_millis(5)).unwrap();
    wait_all_reach_the_world(&lab, &all[watched..=watched]);
    lab.fail(dead, Fault::Power).unwrap();
    for one in &all {
        wait_for(&format!("router {} is active on {left}", one.router), PATIENCE, || {
            Ok((lab.active_hosts(one.router)? == [left]).then_some(()))
        })
        .unwrap();
    }
    wait_all_reach_the_world(&lab, &all);
    let report = probe.finish().unwrap();
    eprintln!("power-off of the host of {} active copies: {report}", active.iter().filter(|one| **one == dead).count());
    assert_eq!(report.gaps.len(), 1, "one interruption, and no flapping after it: {report}");

    // It returns, and all its copies stand by: a copy hears its own router's advertisements, and no others. The one with
    // the lowest identifier listens for strangers, so it is not asked.
    lab.heal(dead, &Fault::Power).unwrap();
    assert_eq!(wait_complete(&lab, &all), [left; MANY]);
    wait_led(&lab, &tunnel, MANY);
    let highest = |all: &[Served]| all.iter().map(|one| (vrid(&lab, left, one.router), one.router)).max().unwrap();
    let (own, router) = highest(&all);
    assert_eq!(heard(&lab, dead, router, 4), [own; 4]);
    let text = said(&lab, left, router);
    assert!(text.contains(&format!("vrid {own},")), "{text}");

    // The active host's tunnel is removed; control makes another, and nothing moves.
    lab.machine(left).shell(&format!("ip link delete {tunnel}")).unwrap();
    wait_led(&lab, &tunnel, MANY);
    assert_eq!(heard(&lab, dead, router, 4), [own; 4]);
    assert_eq!(wait_complete(&lab, &all), [left; MANY]);

    // With one router less, flooding is cheaper: a copy hears all of them.
    let gone = all.pop().unwrap();
    lab.delete_instance(&gone.instance).unwrap();
    let path = format!("/v2.0/routers/{}", gone.router);
    let body = json!({"subnet_id": gone.subnet});
    lab.api_ok("PUT", &format!("{path}/remove_router_interface"), Some(&body)).unwrap();
    lab.api_ok("DELETE", &path, None).unwrap();
    wait_led(&lab, &tunnel, 0);
    assert_eq!(wait_complete(&lab, &all), [left; MANY - 1]);
    let flooded: BTreeSet<u8> = heard(&lab, dead, highest(&all).1, 4 * MANY).into_iter().collect();
    assert_eq!(flooded.len(), MANY - 1, "{flooded:?}");
    wait_all_reach_the_world(&lab, &all);
}
