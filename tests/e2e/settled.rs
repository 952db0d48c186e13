//! What must hold of all hosts of a lab, whatever happened before.
//!
//! What there is, is gathered first ([`Seen`]); the checks look at nothing else, so each of them is shown to fail on a
//! state that is wrong in one respect, below.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evergate_lab::router::is_nothing_to_do;
use evergate_lab::{Lab, Node, wait_for};
use evergate_model::{RouterId, names};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
/// Devices of ports of routers, by the start of their names; the rest is of the port's id.
const PORT_DEVICES: [&str; 5] = ["qr-", "qg-", "sg-", "ha-", "fg-"];
/// Those whose addresses the outside or an instance may ask for.
const ADDRESSED: [&str; 4] = ["qr-", "qg-", "sg-", "fg-"];
/// Ports of HA routers that are where the active copy is.
const FOLLOWING: [&str; 2] = ["network:ha_router_replicated_interface", "network:router_centralized_snat"];
/// A distributed router's, which are on every host that has it.
const EVERYWHERE: &str = "network:router_interface_distributed";
const FLOODED: &str = "00:00:00:00:00:00";

/// Waits until every host's kernel is what it must be, each router is served by one host, no address is on two,
/// all hosts send to each port where it is, and nothing is left of what was deleted.
///
/// A host's plan compares its kernel with what it was told; the last two compare the kernels with what the API says and with
/// each other, by nothing of the product's own.
pub(crate) fn wait_settled(lab: &Lab) -> Result<()> {
    let api = Told::by(lab)?;
    wait_for("every host holds what it must", PATIENCE, || check(&api, &Seen::of(lab, &api)?).map(Some))
}

fn check(told: &Told, seen: &Seen) -> Result<()> {
    check_plans(seen)?;
    check_served(told, seen)?;
    check_left_over(told, seen)?;
    check_addresses(told, seen)?;
    check_flooding(seen)?;
    check_forwarding(told, seen)?;
    check_neighbours(told, seen)
}

/// What the API says that there is.
#[derive(Clone, Debug)]
struct Told {
    routers: BTreeMap<RouterId, Kind>,
    ports: BTreeMap<String, Port>,
}

/// What it says of a port.
#[derive(Clone, Debug, Default)]
struct Port {
    mac: String,
    owner: String,
    device: String,
    /// Name of the host that it is bound to; empty: none.
    host: String,
    /// The device that tunnels its network, if that is a VXLAN network.
    tunnel: Option<String>,
    /// Address and subnet.
    ips: Vec<(IpAddr, String)>,
    /// Addresses that it shares.
    pairs: Vec<String>,
}

/// What it says of a router.
#[derive(Clone, Copy, Debug)]
struct Kind {
    ha: bool,
    distributed: bool,
}

impl Told {
    fn by(lab: &Lab) -> Result<Self> {
        let of = |router: &Value| -> Result<(RouterId, Kind)> {
            let id = router["id"].as_str().unwrap_or_default().parse()?;
            Ok((id, Kind { ha: router["ha"] == true, distributed: router["distributed"] == true }))
        };
        let networks = list(lab, "network")?;
        let tunnel = |network: &Value| {
            let found = networks.iter().find(|other| other["id"] == network["network_id"])?;
            found["provider:segmentation_id"].as_u64().map(|vni| format!("vxlan-{vni}"))
        };
        Ok(Self {
            routers: list(lab, "router")?.iter().map(of).collect::<Result<_>>()?,
            ports: list(lab, "port")?.iter().map(|port| (text(port, "id"), Port::of(port, tunnel(port)))).collect(),
        })
    }
}

impl Port {
    fn of(port: &Value, tunnel: Option<String>) -> Self {
        let items = |name: &str| port[name].as_array().cloned().unwrap_or_default();
        let fixed = |fixed: &Value| Some((text(fixed, "ip_address").parse().ok()?, text(fixed, "subnet_id")));
        Self {
            mac: text(port, "mac_address"),
            owner: text(port, "device_owner"),
            device: text(port, "device_id"),
            host: text(port, "binding:host_id"),
            tunnel,
            ips: items("fixed_ips").iter().filter_map(fixed).collect(),
            pairs: items("allowed_address_pairs").iter().map(|pair| text(pair, "ip_address")).collect(),
        }
    }
}

fn text(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap_or_default().to_owned()
}

fn list(lab: &Lab, kind: &str) -> Result<Vec<Value>> {
    let mut body = lab.api_ok("GET", &format!("/v2.0/{kind}s"), None)?;
    body[format!("{kind}s")].as_array_mut().map(std::mem::take).context("the API lists nothing")
}

/// What there is on all hosts.
#[derive(Clone, Debug, Default)]
struct Seen {
    hosts: BTreeMap<Node, Host>,
    /// Instances that run.
    instances: BTreeSet<String>,
    /// The hosts that serve each router: that act as active, or have a copy at all if there is only one.
    serving: BTreeMap<RouterId, Vec<Node>>,
}

/// What there is on one host.
#[derive(Clone, Debug, Default)]
struct Host {
    /// What `evergate plan` prints.
    plan: String,
    namespaces: BTreeSet<String>,
    /// Names of all devices, in all namespaces.
    devices: Vec<String>,
    /// Namespace, device and IPv4 address of everything in the namespaces.
    addresses: Vec<(String, String, String)>,
    /// By device and Ethernet address, the hosts that frames are sent to through a tunnel.
    tunnelled: BTreeMap<(String, String), BTreeSet<IpAddr>>,
    /// Permanent neighbours: namespace and IP address, and the Ethernet address.
    neighbours: BTreeMap<(String, IpAddr), String>,
}

impl Seen {
    fn of(lab: &Lab, told: &Told) -> Result<Self> {
        let mut seen = Self { instances: lab.instances()?.into_keys().collect(), ..Self::default() };
        for node in lab.spec().hosts() {
            let plan = lab.machine(node).shell("evergate plan")?;
            seen.hosts.insert(node, Host { plan, ..Host::default() });
        }
        // Most of the time this is what is waited for.
        check_plans(&seen)?;
        for (router, kind) in &told.routers {
            let serving = if kind.ha { lab.active_hosts(*router)? } else { lab.hosts_of(*router) };
            seen.serving.insert(*router, serving);
        }
        for (node, host) in &mut seen.hosts {
            let machine = lab.machine(*node);
            let devices = "ls /sys/class/net; for n in $(ls /run/netns); do ip netns exec $n ls /sys/class/net; done";
            host.namespaces = machine.namespaces().into_iter().collect();
            host.devices = machine.shell(devices)?.split_whitespace().map(ToOwned::to_owned).collect();
            host.addresses = addresses(lab, *node)?;
            host.tunnelled = tunnelled(lab, *node)?;
            host.neighbours = neighbours(lab, *node)?;
        }
        Ok(seen)
    }
}

fn addresses(lab: &Lab, node: Node) -> Result<Vec<(String, String, String)>> {
    let line = "for n in $(ls /run/netns); do ip -n $n -4 -o address show | sed \"s/^/$n /\"; done";
    let text = lab.machine(node).shell(line)?;
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (namespace, device, address) = (words.next()?, words.nth(1)?, words.nth(1)?);
        Some((namespace.to_owned(), device.to_owned(), address.to_owned()))
    };
    Ok(text.lines().filter_map(row).collect())
}

/// Entries of VXLAN devices; those that share a path name a group of next hops instead of a host.
fn tunnelled(lab: &Lab, node: Node) -> Result<BTreeMap<(String, String), BTreeSet<IpAddr>>> {
    let json = |line: &str| -> Result<Vec<Value>> {
        let text = lab.machine(node).shell(line)?;
        Ok(serde_json::from_str::<Option<Vec<Value>>>(text.trim())?.unwrap_or_default())
    };
    let hops = json("ip -j nexthop show | grep . || echo null")?;
    let hop = |id: &Value| hops.iter().find(|hop| hop["id"] == *id);
    let mut found = BTreeMap::<_, BTreeSet<IpAddr>>::new();
    for entry in json("bridge -j fdb show")?.iter().filter(|entry| text(entry, "ifname").starts_with("vxlan-")) {
        let to = &mut found.entry((text(entry, "ifname"), text(entry, "mac"))).or_default();
        to.extend(text(entry, "dst").parse::<IpAddr>());
        let group = hop(&entry["nhid"]).and_then(|group| group["group"].as_array()).into_iter().flatten();
        to.extend(group.filter_map(|member| text(hop(&member["id"])?, "gateway").parse::<IpAddr>().ok()));
    }
    found.retain(|_, to| !to.is_empty());
    Ok(found)
}

fn neighbours(lab: &Lab, node: Node) -> Result<BTreeMap<(String, IpAddr), String>> {
    let line = "for n in $(ls /run/netns | grep qrouter- || true); do ip -n $n neighbour show nud permanent | sed \"s/^/$n /\"; done";
    let text = lab.machine(node).shell(line)?;
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let mac = words.iter().position(|word| *word == "lladdr")? + 1;
        Some((((*words.first()?).to_owned(), words.get(1)?.parse().ok()?), (*words.get(mac)?).to_owned()))
    };
    Ok(text.lines().filter_map(row).collect())
}

/// No host has anything to do.
fn check_plans(seen: &Seen) -> Result<()> {
    for (node, Host { plan, .. }) in &seen.hosts {
        ensure!(is_nothing_to_do(plan), "{node}: {plan}");
    }
    Ok(())
}

/// One active copy of an HA router; one copy of the others' source NAT.
fn check_served(told: &Told, seen: &Seen) -> Result<()> {
    for (router, kind) in &told.routers {
        let serving = seen.serving.get(router).map(Vec::as_slice).unwrap_or_default();
        let source_nat = names::snat_namespace(*router);
        let has_source_nat =
            |node: &Node| seen.hosts.get(node).is_some_and(|host| host.namespaces.contains(&source_nat));
        // Of a distributed router, hosts with instances have a namespace, too, which is no copy.
        let some = !kind.distributed || serving.iter().any(has_source_nat);
        ensure!(serving.len() == 1 && some, "router {router} is served by {serving:?}");
    }
    Ok(())
}

/// Addresses that the outside or an instance may ask for are on one host each.
fn check_addresses(told: &Told, seen: &Seen) -> Result<()> {
    let mut found: BTreeMap<(&str, &str), Node> = BTreeMap::new();
    for (node, host) in &seen.hosts {
        for (namespace, device, address) in &host.addresses {
            let distributed =
                router_of(namespace).and_then(|id| told.routers.get(&id)).is_some_and(|kind| kind.distributed);
            // Copies of a distributed router share the addresses of its ports.
            let shared = device.starts_with("qr-") && distributed;
            if shared || !ADDRESSED.iter().any(|start| device.starts_with(start)) {
                continue;
            }
            if let Some(other) = found.insert((device, address), *node) {
                ensure!(other == *node, "{address} on {device} is on {other} and on {node}");
            }
        }
    }
    ensure!(!found.is_empty(), "no host has an address for anybody");
    Ok(())
}

/// Hosts that have a network flood it to each other, and to nobody else.
fn check_flooding(seen: &Seen) -> Result<()> {
    let with = |tunnel: &str, but: &Node| -> BTreeSet<IpAddr> {
        let has = |(node, host): &(&Node, &Host)| *node != but && host.devices.iter().any(|device| device == tunnel);
        seen.hosts.iter().filter(has).filter_map(|(node, _)| node.underlay().map(IpAddr::from)).collect()
    };
    for (node, host) in &seen.hosts {
        for tunnel in host.devices.iter().filter(|device| device.starts_with("vxlan-")) {
            let to = host.tunnelled.get(&(tunnel.clone(), FLOODED.to_owned())).cloned().unwrap_or_default();
            let others = with(tunnel, node);
            ensure!(to == others, "{node} floods {tunnel} to {to:?}, and {others:?} have it");
        }
    }
    Ok(())
}

/// Frames to a port are sent to the host where it is, by every host that has its network.
fn check_forwarding(told: &Told, seen: &Seen) -> Result<()> {
    for port in told.ports.values().filter(|port| port.owner != EVERYWHERE) {
        let (Some(tunnel), Some(place)) = (&port.tunnel, place(told, seen, port)) else { continue };
        for (node, host) in seen.hosts.iter().filter(|(_, host)| host.devices.contains(tunnel)) {
            let elsewhere = if *node == place { None } else { place.underlay().map(IpAddr::from) };
            let to = host.tunnelled.get(&(tunnel.clone(), port.mac.clone())).cloned().unwrap_or_default();
            ensure!(
                to == elsewhere.into_iter().collect(),
                "{node} sends frames to {} ({}) on {tunnel} to {to:?}, and it is on {place}",
                port.mac,
                port.owner
            );
        }
    }
    Ok(())
}

/// Where a port is: on the host that it is bound to, or where its router is active.
fn place(told: &Told, seen: &Seen, port: &Port) -> Option<Node> {
    let router = port.device.parse().ok().filter(|_| FOLLOWING.contains(&port.owner.as_str()));
    let ha = router.filter(|router| told.routers.get(router).is_some_and(|kind| kind.ha));
    match ha {
        Some(router) => seen.serving.get(&router)?.first().copied(),
        None => seen.hosts.keys().copied().find(|node| node.to_string() == port.host),
    }
}

/// A distributed router knows everybody on its subnets, wherever it is.
fn check_neighbours(told: &Told, seen: &Seen) -> Result<()> {
    let shared: BTreeSet<&String> = told.ports.values().flat_map(|port| &port.pairs).collect();
    for (node, host) in &seen.hosts {
        for namespace in &host.namespaces {
            let Some(router) = names::router_of_namespace(namespace) else { continue };
            let of_router = |port: &&Port| port.device == router.to_string() && port.owner == EVERYWHERE;
            let ports = told.ports.values().filter(of_router);
            let subnets: BTreeSet<&String> = ports.flat_map(|port| port.ips.iter().map(|(_, subnet)| subnet)).collect();
            for port in told.ports.values().filter(|port| !of_router(port) && place(told, seen, port).is_some()) {
                for (ip, _) in port.ips.iter().filter(|(_, subnet)| subnets.contains(subnet)) {
                    let known = host.neighbours.get(&(namespace.clone(), *ip));
                    let fits = known == Some(&port.mac) || shared.contains(&ip.to_string());
                    ensure!(fits, "{node} takes {known:?} for {ip} in {namespace}, and it is {}", port.mac);
                }
            }
        }
    }
    Ok(())
}

fn router_of(namespace: &str) -> Option<RouterId> {
    names::router_of_namespace(namespace).or_else(|| names::router_of_snat_namespace(namespace))
}

/// Namespaces are those of routers and instances that exist, and devices those of ports that do.
fn check_left_over(told: &Told, seen: &Seen) -> Result<()> {
    for (node, host) in &seen.hosts {
        for namespace in &host.namespaces {
            if let Some(router) = router_of(namespace) {
                ensure!(told.routers.contains_key(&router), "{node} has {namespace}, and there is no such router");
            } else if let Some(name) = namespace.strip_prefix("instance-") {
                ensure!(seen.instances.contains(name), "{node} has {namespace}, which is over");
            }
        }
        for device in &host.devices {
            let known = |start: &&str| {
                device.strip_prefix(start).is_none_or(|of| told.ports.keys().any(|port| port.starts_with(of)))
            };
            ensure!(PORT_DEVICES.iter().chain(&["tap"]).all(known), "{node} has {device} of no port");
        }
    }
    Ok(())
}

/// A router with a standby, a distributed one, and one with a single copy; an instance; all is well.
fn sound() -> (Told, Seen) {
    let [ha, distributed, legacy] = [1, 2, 3].map(RouterId::from_u128);
    let kind = |ha, distributed| Kind { ha, distributed };
    let routers = [(ha, kind(true, false)), (distributed, kind(true, true)), (legacy, kind(false, false))];
    let port = |id: &str, owner: &str, ip: &str| Port {
        mac: format!("fa:{id}"),
        owner: owner.to_owned(),
        device: distributed.to_string(),
        tunnel: Some("vxlan-7".to_owned()),
        ips: vec![(ip.parse().unwrap(), "subnet".to_owned())],
        ..Port::default()
    };
    let ports = [
        ("aaaaaaaa-1", port("1", EVERYWHERE, "10.0.0.1")),
        ("bbbbbbbb-2", Port::default()),
        ("cccccccc-3", Port::default()),
        ("dddddddd-4", Port { host: "net1".to_owned(), ..port("4", "compute:nova", "10.0.0.9") }),
        ("ffffffff-6", port("6", FOLLOWING[1], "10.0.0.2")),
    ];
    let told = Told { routers: routers.into(), ports: ports.map(|(id, port)| (id.to_owned(), port)).into() };
    let (one, two) = (Node::Network(1), Node::Network(2));
    let shared = names::qrouter_namespace(distributed);
    // The active copy of the distributed router is on the second host.
    let tunnelled = |to: Node, macs: &[&str]| {
        let entry = |mac: &&str| (("vxlan-7".to_owned(), (*mac).to_owned()), [to.underlay().unwrap().into()].into());
        macs.iter().map(entry).collect::<BTreeMap<_, BTreeSet<IpAddr>>>()
    };
    let neighbour = |(ip, mac): (&str, &str)| ((shared.clone(), ip.parse().unwrap()), mac.to_owned());
    let neighbours = [("10.0.0.9", "fa:4"), ("10.0.0.2", "fa:6")].map(neighbour);
    let host = |namespaces: &[String], devices: &[&str], addresses: &[(String, &str, &str)]| Host {
        plan: "nothing to do\n".to_owned(),
        namespaces: namespaces.iter().cloned().collect(),
        devices: devices.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|(n, d, a)| (n.clone(), (*d).to_owned(), (*a).to_owned())).collect(),
        tunnelled: BTreeMap::new(),
        neighbours: neighbours.clone().into(),
    };
    let apart = names::snat_namespace(distributed);
    let [ha_space, single] = [ha, legacy].map(names::qrouter_namespace);
    let mut hosts = [
        (
            one,
            host(
                &[ha_space.clone(), apart.clone(), shared.clone(), "instance-vm".to_owned()],
                &["lo", "eth0", "qr-aaaaaaaa-1", "qg-bbbbbbbb-2", "tapdddddddd-4", "vxlan-7"],
                &[
                    (ha_space.clone(), "qg-bbbbbbbb-2", "203.0.113.9/24"),
                    (shared.clone(), "qr-aaaaaaaa-1", "10.0.0.1/24"),
                ],
            ),
        ),
        (
            two,
            host(
                &[ha_space, apart, shared.clone(), single.clone()],
                &["lo", "eth0", "qr-aaaaaaaa-1", "qg-bbbbbbbb-2", "qr-cccccccc-3", "vxlan-7"],
                &[(shared.clone(), "qr-aaaaaaaa-1", "10.0.0.1/24"), (single, "qr-cccccccc-3", "10.1.0.1/24")],
            ),
        ),
    ];
    hosts[0].1.tunnelled = tunnelled(two, &[FLOODED, "fa:6"]);
    hosts[1].1.tunnelled = tunnelled(one, &[FLOODED, "fa:4"]);
    let serving = [(ha, vec![one]), (distributed, vec![two]), (legacy, vec![two])];
    (told, Seen { hosts: hosts.into(), instances: ["vm".to_owned()].into(), serving: serving.into() })
}

#[test]
fn every_check_of_a_settled_lab_fails_on_what_it_is_for() {
    let (told, seen) = sound();
    check(&told, &seen).unwrap();

    type Wrong = (&'static str, fn(&mut Seen));
    fn on(seen: &mut Seen, number: u16) -> &mut Host {
        seen.hosts.get_mut(&Node::Network(number)).unwrap()
    }
    fn to(seen: &mut Seen, number: u16, mac: &str) -> BTreeSet<IpAddr> {
        on(seen, number).tunnelled.remove(&("vxlan-7".to_owned(), mac.to_owned())).unwrap_or_default()
    }
    let wrong: [Wrong; 19] = [
        ("net2: ip link set", |seen| on(seen, 2).plan = "ip link set eth0 up\n".to_owned()),
        ("net1: nothing to do", |seen| on(seen, 1).plan.push_str("# the keeper is to mend: an entry\n")),
        ("is served by []", |seen| seen.serving.get_mut(&RouterId::from_u128(1)).unwrap().clear()),
        ("is served by [Network(1), Network(2)]", |seen| {
            seen.serving.get_mut(&RouterId::from_u128(1)).unwrap().push(Node::Network(2));
        }),
        ("is served by []", |seen| drop(seen.serving.remove(&RouterId::from_u128(3)))),
        ("is served by [Network(2)]", |seen| {
            on(seen, 2).namespaces.remove(&names::snat_namespace(RouterId::from_u128(2)));
        }),
        ("and there is no such router", |seen| {
            on(seen, 1).namespaces.insert(names::qrouter_namespace(RouterId::from_u128(9)));
        }),
        ("and there is no such router", |seen| {
            on(seen, 1).namespaces.insert(names::snat_namespace(RouterId::from_u128(9)));
        }),
        ("instance-gone, which is over", |seen| {
            on(seen, 1).namespaces.insert("instance-gone".to_owned());
        }),
        ("ha-eeeeeeee-5 of no port", |seen| on(seen, 2).devices.push("ha-eeeeeeee-5".to_owned())),
        ("tapeeeeeeee-5 of no port", |seen| on(seen, 2).devices.push("tapeeeeeeee-5".to_owned())),
        ("203.0.113.9/24 on qg-bbbbbbbb-2 is on net1 and on net2", |seen| {
            let twice = on(seen, 1).addresses[0].clone();
            on(seen, 2).addresses.push(twice);
        }),
        ("no host has an address for anybody", |seen| {
            seen.hosts.values_mut().for_each(|host| host.addresses.clear());
        }),
        ("net1 floods vxlan-7 to {}, and {10.60.0.12} have it", |seen| drop(to(seen, 1, FLOODED))),
        ("net1 floods vxlan-7 to {10.60.0.12}, and {} have it", |seen| {
            on(seen, 2).devices.retain(|device| device != "vxlan-7");
        }),
        ("fa:4 (compute:nova) on vxlan-7 to {}, and it is on net1", |seen| drop(to(seen, 2, "fa:4"))),
        ("fa:6 (network:router_centralized_snat) on vxlan-7 to {10.60.0.12}, and it is on net1", |seen| {
            seen.serving.insert(RouterId::from_u128(2), vec![Node::Network(1)]);
        }),
        ("takes None for 10.0.0.9", |seen| on(seen, 2).neighbours.clear()),
        ("takes Some(\"fa:4\") for 10.0.0.2", |seen| {
            on(seen, 1).neighbours.values_mut().for_each(|mac| *mac = "fa:4".to_owned());
        }),
    ];
    for (expected, make) in wrong {
        let mut state = seen.clone();
        make(&mut state);
        let error = check(&told, &state).expect_err(expected).to_string();
        assert!(error.contains(expected), "'{expected}' is expected, and not\n{error}");
    }
}
