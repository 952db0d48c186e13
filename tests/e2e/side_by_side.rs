//! Distributed HA routers with all that a router can do, of projects that use the same addresses: each on the real
//! data plane, before and after the active gateway host lost its power.

use evergate_lab::fault::Fault;
use evergate_lab::{Node, Profile, wait_for};

use crate::ipv6::{gateway_address, give_the_world_ipv6};
use crate::support::{Cloud, PATIENCE};

const WEB: &str = "http://198.51.100.10/";

/// A page as an instance sees it, or the machine `web`.
fn page(cloud: &Cloud, from: &str, url: &str) -> anyhow::Result<String> {
    let line = format!("evergate lab fetch {url}");
    if from == "web" { cloud.lab.machine(Node::Web).shell(&line) } else { cloud.lab.instance_shell(from, &line) }
}

/// Waits until the page says who serves it and who asked, or whatever else is looked for.
fn wait_page(cloud: &Cloud, (from, url): (&str, &str), says: &str) {
    wait_for(&format!("{from} sees '{says}' at {url}"), PATIENCE, || {
        let page = page(cloud, from, url)?;
        anyhow::ensure!(page.contains(says), "{page}");
        Ok(Some(()))
    })
    .unwrap();
}

fn wait_ping(cloud: &Cloud, from: &str, to: &str) {
    let line = format!("ping -c1 -W1 {to} >/dev/null && echo yes || true");
    wait_for(&format!("{from} reaches {to}"), PATIENCE, || {
        let said = match from {
            "web" => cloud.lab.machine(Node::Web).shell(&line)?,
            instance => cloud.lab.instance_shell(instance, &line)?,
        };
        Ok((said == "yes\n").then_some(()))
    })
    .unwrap();
}

/// The IPv6 address that an instance made of what its router advertises.
pub(crate) fn learned_address(cloud: &Cloud, instance: &str) -> String {
    let line = "ip -6 -o address show dev eth0 scope global dynamic | awk '{print $4}' | cut -d/ -f1 | head -n1";
    wait_for(&format!("{instance} has an IPv6 address"), PATIENCE, || {
        let address = cloud.lab.instance_shell(instance, line)?.trim().to_owned();
        Ok((!address.is_empty()).then_some(address))
    })
    .unwrap()
}

/// A router with two networks and an instance on each, on two hosts. Every project has the same addresses.
fn furnish(cloud: &mut Cloud, whose: &str, router: &str) {
    let (client, lab) = match whose {
        "a" => (&mut cloud.member, &cloud.lab),
        _ => (&mut cloud.admin, &cloud.lab),
    };
    client.ok(&format!("router set {router} --external-gateway public")).unwrap();
    for (n, host) in [(1, 1), (2, 2)] {
        let (network, port) = (format!("{whose}-net{n}"), format!("{whose}{n}-port"));
        client.ok(&format!("network create {network}")).unwrap();
        let range = format!("10.0.{n}.0/24");
        client.ok(&format!("subnet create {network}-four --network {network} --subnet-range {range}")).unwrap();
        client.ok(&format!("router add subnet {router} {network}-four")).unwrap();
        client.ok(&format!("port create {port} --network {network} --fixed-ip ip-address=10.0.{n}.10")).unwrap();
        lab.add_instance(&format!("{whose}{n}"), &port, Node::Compute(host)).unwrap();
    }
}

#[test]
fn distributed_routers_of_projects_with_the_same_addresses_do_all_that_routers_do() {
    let mut cloud = Cloud::up_with("sides", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 2);
    });
    for command in [
        "network create public --external --provider-network-type flat --provider-physical-network external",
        "subnet create public-subnet --network public --subnet-range 203.0.113.0/24 --gateway 203.0.113.254 --no-dhcp",
        "subnet create public-six --network public --ip-version 6 --subnet-range 2001:db8:ee::/64 \
         --gateway 2001:db8:ee::1 --no-dhcp",
        "router create router1 --ha --distributed --project demo",
        "router create router2 --ha --distributed",
    ] {
        cloud.admin.ok(command).unwrap();
    }
    furnish(&mut cloud, "a", "router1");
    furnish(&mut cloud, "b", "router2");

    // The first project has IPv6 on both networks, and the world knows the way to them.
    for n in [1, 2] {
        let subnet = format!(
            "subnet create a-net{n}-six --network a-net{n} --ip-version 6 --subnet-range 2001:db8:{n}::/64 \
             --ipv6-ra-mode slaac --ipv6-address-mode slaac"
        );
        cloud.member.ok(&subnet).unwrap();
        cloud.member.ok(&format!("router add subnet router1 a-net{n}-six")).unwrap();
    }
    let gateway = gateway_address(&mut cloud);
    give_the_world_ipv6(&cloud, &gateway);
    let outside = cloud.lab.machine(Node::Outside);
    outside.shell(&format!("ip route add 2001:db8:2::/64 via {gateway} dev eth0")).unwrap();

    // It forwards a port, and has a second router on a network of the first.
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let floating = floating.trim().to_owned();
    let forward = "--internal-ip-address 10.0.1.10 --port a1-port --internal-protocol-port 80 \
                   --external-protocol-port 8080 --protocol tcp";
    cloud.member.ok(&format!("floating ip port forwarding create {forward} {floating}")).unwrap();
    cloud.admin.ok("router create router3 --ha --distributed --project demo").unwrap();
    for command in [
        "port create router3-port --network a-net1 --fixed-ip ip-address=10.0.1.2",
        "network create a-net3",
        "subnet create a-net3-four --network a-net3 --subnet-range 10.0.3.0/24",
        "router add port router3 router3-port",
        "router add subnet router3 a-net3-four",
        "port create a3-port --network a-net3 --fixed-ip ip-address=10.0.3.10",
    ] {
        cloud.member.ok(command).unwrap();
    }
    cloud.lab.add_instance("a3", "a3-port", Node::Compute(2)).unwrap();
    cloud.lab.instance_shell("a1", "ip route add 10.0.3.0/24 via 10.0.1.2").unwrap();

    // The second project's router does not translate, and the world knows the way to one of its networks.
    cloud.admin.ok("router set router2 --external-gateway public --disable-snat").unwrap();
    let shown = cloud.admin.json("router show router2").unwrap();
    let fixed_ips = shown["external_gateway_info"]["external_fixed_ips"].as_array().unwrap().clone();
    let mut four = fixed_ips.iter().filter_map(|fixed| fixed["ip_address"].as_str()).filter(|ip| ip.contains('.'));
    let untranslated = four.next().unwrap().to_owned();
    let outside = cloud.lab.machine(Node::Outside);
    outside.shell(&format!("ip route add 10.0.1.0/24 via {untranslated} dev eth0")).unwrap();

    let (six1, six2) = (learned_address(&cloud, "a1"), learned_address(&cloud, "a2"));
    let works = |cloud: &Cloud| {
        // Everybody reaches the neighbour of the own project by an address that both projects have.
        wait_page(cloud, ("a1", "http://10.0.2.10/"), "a2");
        wait_page(cloud, ("b1", "http://10.0.2.10/"), "b2");
        // Outside one is seen by the router's address, the other by its own.
        wait_page(cloud, ("a1", WEB), "203.0.113.");
        wait_page(cloud, ("b1", WEB), "10.0.1.10");
        wait_page(cloud, ("web", &format!("http://{floating}:8080/")), "a1");
        wait_ping(cloud, "a1", "10.0.3.10");
        wait_ping(cloud, "a3", "10.0.1.10");
        wait_ping(cloud, "a1", &six2);
        wait_ping(cloud, "a2", &six1);
        wait_ping(cloud, "a1", "2001:db8:64::10");
        wait_ping(cloud, "web", &six2);
    };
    works(&cloud);
    wait_for("the floating IP that forwards ports is shown active", PATIENCE, || {
        let status = cloud.member.ok(&format!("floating ip show {floating} -f value -c status"))?;
        Ok(status.contains("ACTIVE").then_some(()))
    })
    .unwrap();

    let router = cloud.router_id("router1");
    let active = cloud.lab.wait_active(router).unwrap();
    cloud.lab.fail(active, Fault::Power).unwrap();
    assert_ne!(cloud.lab.wait_active(router).unwrap(), active);
    works(&cloud);
}
