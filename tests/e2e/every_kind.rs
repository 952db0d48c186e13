//! What a router does that is no matter of its kind, on each of the four kinds: three routers, converted from kind to kind.
//!
//! Address scopes, several networks, two routers on one subnet with routes by way of each other, an extra route by way of
//! an instance, a gateway with several addresses, IPv6 by static addresses and by what the router advertises, floating
//! IPs, also of an instance on a host in mode `dvr_no_external` and of an address that two instances share, forwarded
//! ports, and a router that does not translate and has the addresses of another. More of it on a distributed HA router,
//! and that it survives a power-off, is in `side_by_side.rs`.

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::spec::PHYSICAL_NETWORK;
use evergate_lab::{Lab, Node, Profile, wait_for};
use serde_json::{Value, json};

use crate::side_by_side::learned_address;
use crate::support::{Cloud, PATIENCE, column};

const WEB: &str = "http://198.51.100.10/";
const GATEWAYS: [&str; 2] = ["203.0.113.110", "203.0.113.111"];
/// The address that two instances share.
const SHARED: &str = "10.1.1.200";

/// Tells the network that whoever says so has an address now: a gratuitous ARP request.
const ANNOUNCE: &str = r#"
import socket, sys
address = socket.inet_aton(sys.argv[1])
way = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
way.bind(("eth0", 0x0806))
mac = way.getsockname()[4]
way.send(b"\xff" * 6 + mac + b"\x08\x06" + bytes([0, 1, 8, 0, 6, 4, 0, 1]) + mac + address + b"\0" * 6 + address)
"#;

/// Whether a kind is HA, and whether it is distributed.
type Kind = (bool, bool);

const KINDS: [(&str, Kind); 4] = [
    ("legacy", (false, false)),
    ("HA", (true, false)),
    ("distributed HA", (true, true)),
    ("distributed", (false, true)),
];

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

fn update_router(lab: &Lab, router: &Value, body: &Value) {
    update(lab, &format!("/v2.0/routers/{}", id(router)), "router", body);
}

pub(crate) fn add_interface(lab: &Lab, router: &Value, subnet: &Value) {
    let body = json!({"subnet_id": id(subnet)});
    lab.api_ok("PUT", &format!("/v2.0/routers/{}/add_router_interface", id(router)), Some(&body)).unwrap();
}

/// A port of an instance that runs from then on.
fn instance(lab: &Lab, name: &str, (network, subnet, address): (&Value, &Value, &str), host: u16) -> Value {
    let fixed_ips = json!([{"subnet_id": id(subnet), "ip_address": address}]);
    let port = create(lab, "port", &json!({"network_id": id(network), "fixed_ips": fixed_ips}));
    lab.add_instance(name, id(&port), Node::Compute(host)).unwrap();
    port
}

/// A network with a subnet of an address scope or of none, and an instance on it. Returns network, subnet and port.
fn project_network(lab: &Lab, name: &str, cidr: &str, pool: Option<&Value>, host: u16) -> (Value, Value, Value) {
    let network = create(lab, "network", &json!({"name": name}));
    let pool = pool.map(|pool| id(pool).to_owned());
    let subnet = json!({"network_id": id(&network), "ip_version": 4, "cidr": cidr, "subnetpool_id": pool});
    let subnet = create(lab, "subnet", &subnet);
    let port = instance(lab, &format!("vm-{name}"), (&network, &subnet, &cidr.replace(".0/24", ".10")), host);
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

/// The routers, and what is used of them.
struct World {
    cloud: Cloud,
    /// With a gateway and most networks.
    router: Value,
    /// On one of its subnets, with a network of its own, and out by way of the first.
    beside: Value,
    /// Does not translate, and has the same addresses as the first.
    plain: Value,
    /// Of an instance.
    floating: String,
    /// With a forwarded port.
    forwarding: String,
    /// Of the address that two instances share, which no host has a port for.
    of_shared: String,
}

impl World {
    /// Gives all networks and instances, and legacy routers between them.
    #[expect(clippy::too_many_lines, reason = "one lab, everything once")]
    fn furnish(cloud: Cloud) -> Self {
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

        // Three networks of one address scope, one of another, and one with addresses that are in use.
        let pool = |name: &str, prefix: &str| {
            let scope = create(lab, "address_scope", &json!({"name": name, "ip_version": 4}));
            let pool = json!({"name": name, "prefixes": [prefix], "address_scope_id": id(&scope)});
            create(lab, "subnetpool", &pool)
        };
        let (one, other) = (pool("one", "10.1.0.0/16"), pool("other", "10.2.0.0/16"));
        let (a, a_four, a_port) = project_network(lab, "a", "10.1.1.0/24", Some(&one), 1);
        let a2_port = instance(lab, "vm-a2", (&a, &a_four, "10.1.1.11"), 2);
        let (b, b_four, b_port) = project_network(lab, "b", "10.1.2.0/24", Some(&one), 2);
        let (c, c_four, c_port) = project_network(lab, "c", "10.2.1.0/24", Some(&other), 1);
        let (_, d_four, _) = project_network(lab, "d", "10.1.1.0/24", None, 1);
        let (_, e_four, _) = project_network(lab, "e", "10.1.3.0/24", Some(&one), 2);

        // IPv6: two subnets whose addresses nobody makes of what is advertised: by DHCPv6, whose part is played here, or by
        // hand; and one where they are made of that.
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
        let c_six = six(&c, "2001:db8:3::/64", Some("slaac"));
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

        let fixed = |subnet: &Value, address: &str| json!({"subnet_id": id(subnet), "ip_address": address});
        let fixed_ips = json!([
            fixed(&outside_four, GATEWAYS[0]),
            fixed(&outside_four, GATEWAYS[1]),
            fixed(&outside_six, "2001:db8:ee::110"),
        ]);
        let gateway = json!({"network_id": id(&public), "external_fixed_ips": fixed_ips});
        let legacy = |name: &str, gateway: &Value| {
            let body = json!({"name": name, "ha": false, "distributed": false, "external_gateway_info": gateway});
            create(lab, "router", &body)
        };
        let router = legacy("router1", &gateway);
        for subnet in [&a_four, &b_four, &c_four, &a_six, &b_six, &c_six] {
            add_interface(lab, &router, subnet);
        }
        let route = |destination: &str, nexthop: &str| json!({"destination": destination, "nexthop": nexthop});
        let routes = json!([route("10.99.0.0/24", "10.1.2.10"), route("10.1.3.0/24", "10.1.1.2")]);
        update_router(lab, &router, &json!({"routes": routes}));
        lab.instance_shell("vm-b", "ip address add 10.99.0.1/32 dev lo").unwrap();

        let beside = legacy("router2", &Value::Null);
        let port = json!({"network_id": id(&a), "fixed_ips": [fixed(&a_four, "10.1.1.2")]});
        let port = create(lab, "port", &port);
        let body = json!({"port_id": id(&port)});
        lab.api_ok("PUT", &format!("/v2.0/routers/{}/add_router_interface", id(&beside)), Some(&body)).unwrap();
        add_interface(lab, &beside, &e_four);
        update_router(lab, &beside, &json!({"routes": [route("0.0.0.0/0", "10.1.1.1")]}));

        let fixed_ips = json!([fixed(&outside_four, "203.0.113.120")]);
        let plain = json!({"network_id": id(&public), "external_fixed_ips": fixed_ips, "enable_snat": false});
        let plain = legacy("router3", &plain);
        add_interface(lab, &plain, &d_four);

        for port in [&a_port, &a2_port] {
            let pairs = json!({"allowed_address_pairs": [{"ip_address": SHARED}]});
            update(lab, &format!("/v2.0/ports/{}", id(port)), "port", &pairs);
        }
        let shared = create(lab, "port", &json!({"network_id": id(&a), "fixed_ips": [fixed(&a_four, SHARED)]}));
        let floating = |port: Option<&Value>| {
            let body = json!({"floating_network_id": id(&public), "port_id": port.map(id)});
            create(lab, "floatingip", &body)
        };
        let address = |floating: &Value| floating["floating_ip_address"].as_str().unwrap().to_owned();
        let forwarding = floating(None);
        let rule = json!({
            "internal_ip_address": "10.2.1.10", "internal_port_id": id(&c_port), "internal_port": 80,
            "external_port": 8080, "protocol": "tcp",
        });
        let path = format!("/v2.0/floatingips/{}/port_forwardings", id(&forwarding));
        lab.api_ok("POST", &path, Some(&json!({"port_forwarding": rule}))).unwrap();
        let [floating, of_shared] = [&b_port, &shared].map(|port| address(&floating(Some(port))));
        let forwarding = address(&forwarding);

        crate::ipv6::give_the_world_ipv6(&cloud, "2001:db8:ee::110");
        let ways = "for n in 2 3; do ip route add 2001:db8:$n::/64 via 2001:db8:ee::110 dev eth0; done; \
                    ip route add 10.1.1.0/24 via 203.0.113.120";
        lab.machine(Node::Outside).shell(ways).unwrap();
        Self { cloud, router, beside, plain, floating, forwarding, of_shared }
    }

    fn convert(&self, router: &Value, (ha, distributed): Kind) {
        update_router(&self.cloud.lab, router, &json!({"ha": ha, "distributed": distributed}));
    }

    fn reaches(&self, from: &str, to: &str, kind: &str) {
        wait_for(&format!("{from} reaches {to} by a router of kind {kind}"), PATIENCE, || {
            Ok(pings(&self.cloud, from, to).then_some(()))
        })
        .unwrap();
    }

    /// Waits until the page says who serves it and who asked.
    fn sees(&self, (from, url): (&str, &str), says: &str, kind: &str) {
        wait_for(&format!("{from} sees '{says}' at {url} by a router of kind {kind}"), PATIENCE, || {
            let page = shell(&self.cloud, from, &format!("evergate lab fetch {url}"))?;
            anyhow::ensure!(page.contains(says), "{page}");
            Ok(Some(()))
        })
        .unwrap();
    }

    /// All networks and instances, by IPv4.
    fn check_four(&self, kind: &str) {
        let reaches = |from: &str, to: &str| self.reaches(from, to, kind);
        let sees = |from: &str, url: &str, says: &str| self.sees((from, url), says, kind);
        // Within a scope and not across; out by translation from both.
        reaches("vm-a", "10.1.2.10");
        sees("vm-a", WEB, GATEWAYS[0]);
        sees("vm-c", WEB, GATEWAYS[0]);
        let across = pings(&self.cloud, "vm-a", "10.2.1.10") || pings(&self.cloud, "vm-c", "10.1.2.10");
        assert!(!across, "{kind}: across scopes");
        reaches("vm-a", "10.99.0.1");
        GATEWAYS.iter().for_each(|gateway| reaches("web", gateway));
        sees("web", &format!("http://{}/", self.floating), "vm-b");
        sees("vm-b", WEB, &self.floating);
        sees("web", &format!("http://{}:8080/", self.forwarding), "vm-c");
        // An address that somebody else has, too.
        sees("vm-d", WEB, "10.1.1.10");
        sees("web", "http://10.1.1.10/", "vm-d");
    }

    /// Two routers on one subnet: each by way of the other, and out.
    fn check_beside(&self, kind: &str) {
        self.reaches("vm-b", "10.1.3.10", kind);
        self.reaches("vm-e", "10.1.2.10", kind);
        self.reaches("vm-e", "10.1.1.10", kind);
        self.sees(("vm-e", WEB), GATEWAYS[0], kind);
    }

    fn check_six(&self, kind: &str) {
        let reaches = |from: &str, to: &str| self.reaches(from, to, kind);
        reaches("vm-a", "2001:db8:2::10");
        reaches("vm-a", "2001:db8:64::10");
        reaches("web", "2001:db8:2::10");
        let way =
            self.cloud.lab.instance_shell("vm-a", "ip -6 route show default; ip -6 address show dev eth0").unwrap();
        assert!(way.contains("default via fe80:") && !way.contains("dynamic"), "{kind}: {way}");
        // Everything that was learned is forgotten, and asked for.
        let line =
            "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        self.cloud.lab.instance_shell("vm-c", line).unwrap();
        let learned = learned_address(&self.cloud, "vm-c");
        reaches("vm-c", "2001:db8:64::10");
        reaches("web", &learned);
        reaches("vm-a", &learned);
    }

    /// One instance after the other has the address, and says so.
    fn check_shared(&self, kind: &str) {
        let lab = &self.cloud.lab;
        for instance in ["vm-a", "vm-a2"] {
            lab.instance_shell(instance, &format!("ip address add {SHARED}/24 dev eth0")).unwrap();
            let mut announce = lab.instance_command(instance, "python3").unwrap();
            assert!(announce.args(["-c", ANNOUNCE, SHARED]).status().unwrap().success());
            self.sees(("vm-b", &format!("http://{SHARED}/")), &format!("from {instance}."), kind);
            self.sees(("web", &format!("http://{}/", self.of_shared)), &format!("from {instance}."), kind);
            lab.instance_shell(instance, &format!("ip address delete {SHARED}/24 dev eth0")).unwrap();
        }
    }
}

#[test]
fn every_kind_of_router_does_what_is_no_matter_of_its_kind() {
    let cloud = Cloud::up_with("kinds", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 2);
    });
    set_agent_mode(&cloud, Node::Compute(2), "dvr_no_external");
    let mut world = World::furnish(cloud);
    for (kind, form) in KINDS {
        [&world.router, &world.beside, &world.plain].iter().for_each(|router| world.convert(router, form));
        world.check_four(kind);
        world.check_beside(kind);
        world.check_six(kind);
        world.check_shared(kind);
        let namespaces = world.cloud.lab.machine(Node::Compute(2)).namespaces();
        assert!(!namespaces.iter().any(|name| name.starts_with("fip-")), "{kind}: cmp2 has no way out of its own");
    }
    // And the two on one subnet where they are of different kinds; the first is distributed now.
    for (kind, form) in KINDS {
        world.convert(&world.beside, form);
        world.check_beside(&format!("distributed, with a {kind} one beside it,"));
    }
    let shown = world.cloud.admin.json("router list --long").unwrap();
    assert_eq!(column(&shown, "Status"), ["ACTIVE"; 3]);
}
