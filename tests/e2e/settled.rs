//! What must hold of all hosts of a lab, whatever happened before.
//!
//! What there is, is gathered first ([`Seen`]); the checks look at nothing else, so each of them is shown to fail on a
//! state that is wrong in one respect, below.

use std::collections::{BTreeMap, BTreeSet};
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

/// Waits until every host's kernel is what it must be, each router is served by one host, no address is on two, and
/// nothing is left of what was deleted.
pub(crate) fn wait_settled(lab: &Lab) -> Result<()> {
    let api = Told::by(lab)?;
    wait_for("every host holds what it must", PATIENCE, || check(&api, &Seen::of(lab, &api)?).map(Some))
}

fn check(told: &Told, seen: &Seen) -> Result<()> {
    check_plans(seen)?;
    check_served(told, seen)?;
    check_left_over(told, seen)?;
    check_addresses(told, seen)
}

/// What the API says that there is.
#[derive(Clone, Debug)]
struct Told {
    routers: BTreeMap<RouterId, Kind>,
    ports: BTreeSet<String>,
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
        let id = |port: &Value| port["id"].as_str().map(ToOwned::to_owned);
        Ok(Self {
            routers: list(lab, "router")?.iter().map(of).collect::<Result<_>>()?,
            ports: list(lab, "port")?.iter().filter_map(id).collect(),
        })
    }
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
                device.strip_prefix(start).is_none_or(|of| told.ports.iter().any(|port| port.starts_with(of)))
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
    let ports = ["aaaaaaaa-1", "bbbbbbbb-2", "cccccccc-3", "dddddddd-4"].map(str::to_owned);
    let told = Told { routers: routers.into(), ports: ports.into() };
    let (one, two) = (Node::Network(1), Node::Network(2));
    let host = |namespaces: &[String], devices: &[&str], addresses: &[(String, &str, &str)]| Host {
        plan: "nothing to do\n".to_owned(),
        namespaces: namespaces.iter().cloned().collect(),
        devices: devices.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|(n, d, a)| (n.clone(), (*d).to_owned(), (*a).to_owned())).collect(),
    };
    let apart = names::snat_namespace(distributed);
    let [ha_space, shared, single] = [ha, distributed, legacy].map(names::qrouter_namespace);
    let hosts = [
        (
            one,
            host(
                &[ha_space.clone(), apart.clone(), shared.clone(), "instance-vm".to_owned()],
                &["lo", "eth0", "qr-aaaaaaaa-1", "qg-bbbbbbbb-2", "tapdddddddd-4"],
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
                &["lo", "eth0", "qr-aaaaaaaa-1", "qg-bbbbbbbb-2", "qr-cccccccc-3"],
                &[(shared, "qr-aaaaaaaa-1", "10.0.0.1/24"), (single, "qr-cccccccc-3", "10.1.0.1/24")],
            ),
        ),
    ];
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
    let wrong: [Wrong; 13] = [
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
    ];
    for (expected, make) in wrong {
        let mut state = seen.clone();
        make(&mut state);
        let error = check(&told, &state).expect_err(expected).to_string();
        assert!(error.contains(expected), "'{expected}' is expected, and not\n{error}");
    }
}
