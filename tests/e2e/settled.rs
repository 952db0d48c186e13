//! What must hold of all hosts of a lab, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evergate_lab::{Lab, Node, wait_for};
use evergate_model::{RouterId, names};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
/// Devices of ports of routers, by the start of their names; the rest is of the port's id.
const PORT_DEVICES: [&str; 5] = ["qr-", "qg-", "sg-", "ha-", "fg-"];

/// Waits until every host's kernel is what it must be, each router is served by one host, no address is on two, and
/// nothing is left of what was deleted.
pub(crate) fn wait_settled(lab: &Lab) -> Result<()> {
    let routers = Routers::of(lab)?;
    let ports = ids(lab, "port")?;
    wait_for("every host holds what it must", PATIENCE, || {
        for node in lab.spec().hosts() {
            let plan = lab.machine(node).shell("evergate plan")?;
            ensure!(plan.contains("nothing to do") && !plan.contains("is to mend"), "{node}: {plan}");
        }
        routers.check_served(lab)?;
        check_left_over(lab, &routers, &ports)?;
        routers.check_addresses(lab)?;
        Ok(Some(()))
    })
}

fn list(lab: &Lab, kind: &str) -> Result<Vec<Value>> {
    let mut body = lab.api_ok("GET", &format!("/v2.0/{kind}s"), None)?;
    body[format!("{kind}s")].as_array_mut().map(std::mem::take).context("the API lists nothing")
}

fn ids(lab: &Lab, kind: &str) -> Result<BTreeSet<String>> {
    Ok(list(lab, kind)?.iter().filter_map(|item| item["id"].as_str()).map(ToOwned::to_owned).collect())
}

/// What the API says of a router.
struct Kind {
    ha: bool,
    distributed: bool,
}

struct Routers(BTreeMap<RouterId, Kind>);

impl Routers {
    fn of(lab: &Lab) -> Result<Self> {
        let of = |router: &Value| -> Result<(RouterId, Kind)> {
            let id = router["id"].as_str().unwrap_or_default().parse()?;
            Ok((id, Kind { ha: router["ha"] == true, distributed: router["distributed"] == true }))
        };
        list(lab, "router")?.iter().map(of).collect::<Result<_>>().map(Self)
    }

    /// One active copy of an HA router; one copy of the others' source NAT.
    fn check_served(&self, lab: &Lab) -> Result<()> {
        for (router, kind) in &self.0 {
            let serving = if kind.ha { lab.active_hosts(*router)? } else { lab.hosts_of(*router) };
            let source_nat = names::snat_namespace(*router);
            // Of a distributed router, hosts with instances have a namespace, too, which is no copy.
            let some = !kind.distributed || serving.iter().any(|n| lab.machine(*n).namespaces().contains(&source_nat));
            ensure!(serving.len() == 1 && some, "router {router} is served by {serving:?}");
        }
        Ok(())
    }

    /// Addresses that the outside or an instance may ask for are on one host each.
    fn check_addresses(&self, lab: &Lab) -> Result<()> {
        let mut seen: BTreeMap<(String, String), Node> = BTreeMap::new();
        for node in lab.spec().hosts() {
            for (namespace, device, address) in addresses(lab, node)? {
                let router =
                    names::router_of_namespace(&namespace).or_else(|| names::router_of_snat_namespace(&namespace));
                let distributed = router.and_then(|id| self.0.get(&id)).is_some_and(|kind| kind.distributed);
                // Copies of a distributed router share the addresses of its ports.
                let shared = device.starts_with("qr-") && distributed;
                if shared || !["qr-", "qg-", "sg-", "fg-"].iter().any(|start| device.starts_with(start)) {
                    continue;
                }
                if let Some(other) = seen.insert((device.clone(), address.clone()), node) {
                    ensure!(other == node, "{address} on {device} is on {other} and on {node}");
                }
            }
        }
        ensure!(!seen.is_empty(), "no host has an address for anybody");
        Ok(())
    }
}

/// Namespace, device and IPv4 address of everything in a host's namespaces.
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

/// Namespaces are those of routers and instances that exist, and devices those of ports that do.
fn check_left_over(lab: &Lab, routers: &Routers, ports: &BTreeSet<String>) -> Result<()> {
    let instances = lab.instances()?;
    for node in lab.spec().hosts() {
        for namespace in lab.machine(node).namespaces() {
            if let Some(router) =
                names::router_of_namespace(&namespace).or_else(|| names::router_of_snat_namespace(&namespace))
            {
                ensure!(routers.0.contains_key(&router), "{node} has {namespace}, and there is no such router");
            } else if let Some(name) = namespace.strip_prefix("instance-") {
                ensure!(instances.contains_key(name), "{node} has {namespace}, which is over");
            }
        }
        let line = "ls /sys/class/net; for n in $(ls /run/netns); do ip netns exec $n ls /sys/class/net; done";
        for device in lab.machine(node).shell(line)?.split_whitespace() {
            let known = |start: &&str| {
                device.strip_prefix(start).is_none_or(|of| ports.iter().any(|port| port.starts_with(of)))
            };
            ensure!(PORT_DEVICES.iter().chain(&["tap"]).all(known), "{node} has {device} of no port");
        }
    }
    Ok(())
}
