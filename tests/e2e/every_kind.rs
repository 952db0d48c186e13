//! What a router does that is no matter of its kind, on each of the four kinds: one router, converted from kind to kind.
//!
//! Address scopes, an extra route by way of an instance, a gateway with several addresses, IPv6 by static addresses
//! (with and without advertisements), floating IPs, also of an instance on a host in mode `dvr_no_external`, and
//! a router that does not translate. Two routers on one subnet and forwarded ports are in `side_by_side.rs`.

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::spec::PHYSICAL_NETWORK;
use evergate_lab::{Lab, Node, Profile, wait_for};
use serde_json::{Value, json};

use crate::support::{Cloud, PATIENCE, column};

const WEB: &str = "http://198.51.100.10/";
const GATEWAYS: [&str; 2] = ["203.0.113.110", "203.0.113.111"];

/// Creates an object, and returns it.
pub(crate) fn create(lab: &Lab, kind: &str, body: &Value) -> Value {
    let path = format!("/v2.0/{}s", kind.replace('_', "-").replace("subnet-pool", "subnetpool"));
    let made = lab.api_ok("POST", &path, Some(&json!({ kind: body }))).unwrap();
    made[kind].clone()
}

pub(crate) fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

fn update(lab: &Lab, path: &str, kind: &str, body: &Value) -> Value {
    lab.api_ok("PUT", path, Some(&json!({ kind: body }))).unwrap()
}

pub(crate) fn add_interface(lab: &Lab, router: &Value, subnet: &Value) {
    let body = json!({"subnet_id": id(subnet)});
    lab.api_ok("PUT", &format!("/v2.0/routers/{}/add_router_interface", id(router)), Some(&body)).unwrap();
}

/// A network with a subnet of an address scope or of none, and an instance on it. Returns network and port.
fn project_network(lab: &Lab, name: &str, cidr: &str, pool: Option<&Value>, host: u16) -> (Value, Value, Value) {
    let network = create(lab, "network", &json!({"name": name}));
    let pool = pool.map(|pool| id(pool).to_owned());
    let subnet = json!({"network_id": id(&network), "ip_version": 4, "cidr": cidr, "subnetpool_id": pool});
    let subnet = create(lab, "subnet", &subnet);
    let address = cidr.replace(".0/24", ".10");
    let fixed_ips = json!([{"subnet_id": id(&subnet), "ip_address": address}]);
    let port = create(lab, "port", &json!({"network_id": id(&network), "fixed_ips": fixed_ips}));
    lab.add_instance(&format!("vm-{name}"), id(&port), Node::Compute(host)).unwrap();
    (network, subnet, port)
}

/// Puts a host into another mode.
fn set_agent_mode(cloud: &Cloud, node: Node, mode: &str) {
    let machine = cloud.lab.machine(node);
    machine.shell(&format!("sed -i 's/^agent_mode.*/agent_mode = {mode}/' /etc/neutron/l3_agent.ini")).unwrap();
    let stop = Fault::Process(Daemon::Host, Signal::Term);
    cloud.lab.fail(node, stop.clone()).unwrap();
    wait_for("the daemon has stopped", PATIENCE, || {
        let parts = [Daemon::Host, Daemon::Control, Daemon::Keeper];
        Ok(parts.iter().all(|part| machine.daemons(*part).is_empty()).then_some(()))
    })
    .unwrap();
    cloud.lab.heal(node, &stop).unwrap();
    wait_for(&format!("{node} is in mode {mode}"), PATIENCE, || {
        let agents = cloud.lab.api_ok("GET", &format!("/v2.0/agents?host={node}"), None)?;
        Ok(agents.to_string().contains(&format!("\"agent_mode\":\"{mode}\"")).then_some(()))
    })
    .unwrap();
}

fn shell(cloud: &Cloud, from: &str, line: &str) -> anyhow::Result<String> {
    if from == "web" { cloud.lab.machine(Node::Web).shell(line) } else { cloud.lab.instance_shell(from, line) }
}

fn pings(cloud: &Cloud, from: &str, to: &str) -> bool {
    let said = shell(cloud, from, &format!("ping -c1 -W1 {to} >/dev/null && echo yes || true"));
    said.is_ok_and(|said| said == "yes\n")
}

#[test]
#[expect(clippy::too_many_lines, reason = "one lab, many checks")]
fn every_kind_of_router_does_what_is_no_matter_of_its_kind() {
    let mut cloud = Cloud::up_with("kinds", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 2);
    });
    set_agent_mode(&cloud, Node::Compute(2), "dvr_no_external");
    let lab = &cloud.lab;
    let public = create(
        lab,
        "network",
        &json!({
            "name": "public", "router:external": true,
            "provider:network_type": "flat", "provider:physical_network": PHYSICAL_NETWORK,
        }),
    );
    let outside = |version, cidr, gateway| json!({"network_id": id(&public), "ip_version": version, "cidr": cidr, "gateway_ip": gateway, "enable_dhcp": false});
    let outside_four = create(lab, "subnet", &outside(4, "203.0.113.0/24", "203.0.113.254"));
    let outside_six = create(lab, "subnet", &outside(6, "2001:db8:ee::/64", "2001:db8:ee::1"));

    // Two networks of one address scope, one of another.
    let pool = |name: &str, prefix: &str| {
        let scope = create(lab, "address_scope", &json!({"name": name, "ip_version": 4}));
        let pool = json!({"name": name, "prefixes": [prefix], "address_scope_id": id(&scope)});
        create(lab, "subnetpool", &pool)
    };
    let (one, other) = (pool("one", "10.1.0.0/16"), pool("other", "10.2.0.0/16"));
    let (a, a_four, _) = project_network(lab, "a", "10.1.1.0/24", Some(&one), 1);
    let (b, b_four, b_port) = project_network(lab, "b", "10.1.2.0/24", Some(&one), 2);
    let (_, c_four, _) = project_network(lab, "c", "10.2.1.0/24", Some(&other), 1);
    let (_, d_four, _) = project_network(lab, "d", "10.3.1.0/24", None, 1);

    // IPv6 whose addresses nobody makes of what is advertised: by DHCPv6, whose part is played here, or by hand.
    let six = |network: &Value, cidr: &str, mode: Option<&str>| {
        let mut subnet = json!({"network_id": id(network), "ip_version": 6, "cidr": cidr});
        if let Some(mode) = mode {
            (subnet["ipv6_ra_mode"], subnet["ipv6_address_mode"]) = (mode.into(), mode.into());
        } else {
            subnet["enable_dhcp"] = false.into();
        }
        create(lab, "subnet", &subnet)
    };
    let a_six = six(&a, "2001:db8:1::/64", Some("dhcpv6-stateful"));
    let b_six = six(&b, "2001:db8:2::/64", None);
    for (vm, subnet, address, way) in [
        ("vm-a", &a_six, "2001:db8:1::10", ""),
        ("vm-b", &b_six, "2001:db8:2::10", "; ip route add default via 2001:db8:2::1 dev eth0"),
    ] {
        let port = lab.instances().unwrap()[vm].port;
        let path = format!("/v2.0/ports/{port}");
        let shown = lab.api_ok("GET", &path, None).unwrap();
        let mut fixed_ips = shown["port"]["fixed_ips"].as_array().unwrap().clone();
        fixed_ips.push(json!({"subnet_id": id(subnet), "ip_address": address}));
        update(lab, &path, "port", &json!({"fixed_ips": fixed_ips}));
        let line = format!("ip address add {address}/64 dev eth0 nodad{way}");
        lab.instance_shell(vm, &line).unwrap();
    }

    // The router, and one that does not translate.
    let fixed = |subnet: &Value, address: &str| json!({"subnet_id": id(subnet), "ip_address": address});
    let fixed_ips = json!([
        fixed(&outside_four, GATEWAYS[0]),
        fixed(&outside_four, GATEWAYS[1]),
        fixed(&outside_six, "2001:db8:ee::110"),
    ]);
    let gateway = json!({"network_id": id(&public), "external_fixed_ips": fixed_ips});
    let legacy = |name: &str, gateway: &Value| {
        create(
            lab,
            "router",
            &json!({"name": name, "ha": false, "distributed": false, "external_gateway_info": gateway}),
        )
    };
    let router = legacy("router1", &gateway);
    for subnet in [&a_four, &b_four, &c_four, &a_six, &b_six] {
        add_interface(lab, &router, subnet);
    }
    let routes = json!([{"destination": "10.99.0.0/24", "nexthop": "10.1.2.10"}]);
    update(lab, &format!("/v2.0/routers/{}", id(&router)), "router", &json!({"routes": routes}));
    lab.instance_shell("vm-b", "ip address add 10.99.0.1/32 dev lo").unwrap();
    let fixed_ips = json!([fixed(&outside_four, "203.0.113.120")]);
    let plain = json!({"network_id": id(&public), "external_fixed_ips": fixed_ips, "enable_snat": false});
    let plain = legacy("router2", &plain);
    add_interface(lab, &plain, &d_four);
    let floating = create(lab, "floatingip", &json!({"floating_network_id": id(&public), "port_id": id(&b_port)}));
    let floating = floating["floating_ip_address"].as_str().unwrap().to_owned();

    crate::ipv6::give_the_world_ipv6(&cloud, "2001:db8:ee::110");
    let ways = "ip route add 2001:db8:2::/64 via 2001:db8:ee::110 dev eth0; ip route add 10.3.1.0/24 via 203.0.113.120";
    lab.machine(Node::Outside).shell(ways).unwrap();

    for (kind, ha, distributed) in
        [("legacy", false, false), ("HA", true, false), ("distributed HA", true, true), ("distributed", false, true)]
    {
        for router in [&router, &plain] {
            let path = format!("/v2.0/routers/{}", id(router));
            update(&cloud.lab, &path, "router", &json!({"ha": ha, "distributed": distributed}));
        }
        let reaches = |from: &str, to: &str| {
            wait_for(&format!("{from} reaches {to} by a router of kind {kind}"), PATIENCE, || {
                Ok(pings(&cloud, from, to).then_some(()))
            })
            .unwrap();
        };
        let sees = |from: &str, url: &str, says: &str| {
            wait_for(&format!("{from} sees '{says}' at {url} by a router of kind {kind}"), PATIENCE, || {
                let page = shell(&cloud, from, &format!("evergate lab fetch {url}"))?;
                anyhow::ensure!(page.contains(says), "{page}");
                Ok(Some(()))
            })
            .unwrap();
        };
        // Within a scope and not across; out by translation from both.
        reaches("vm-a", "10.1.2.10");
        sees("vm-a", WEB, GATEWAYS[0]);
        sees("vm-c", WEB, GATEWAYS[0]);
        assert!(!pings(&cloud, "vm-a", "10.2.1.10") && !pings(&cloud, "vm-c", "10.1.2.10"), "{kind}: across scopes");
        reaches("vm-a", "10.99.0.1");
        GATEWAYS.iter().for_each(|gateway| reaches("web", gateway));
        sees("web", &format!("http://{floating}/"), "vm-b");
        sees("vm-b", WEB, &floating);
        sees("vm-d", WEB, "10.3.1.10");
        reaches("vm-a", "2001:db8:2::10");
        reaches("vm-a", "2001:db8:64::10");
        reaches("web", "2001:db8:2::10");
        let way = cloud.lab.instance_shell("vm-a", "ip -6 route show default; ip -6 address show dev eth0").unwrap();
        assert!(way.contains("default via fe80:") && !way.contains("dynamic"), "{kind}: {way}");
        let has_fip = |n| cloud.lab.machine(Node::Compute(n)).namespaces().iter().any(|name| name.starts_with("fip-"));
        assert!(!has_fip(2), "{kind}: cmp2 has no way out of its own");
    }
    let shown = cloud.admin.json("router list --long").unwrap();
    assert_eq!(column(&shown, "Status"), ["ACTIVE", "ACTIVE"]);
}
