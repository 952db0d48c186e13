//! Paths are cut one by one and all at once, healed in either order, and never are two copies active for longer
//! than it takes to notice.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, HaCut, Signal};
use evergate_lab::probe::Running;
use evergate_lab::spec::Link;
use evergate_lab::{Node, wait_for};
use evergate_model::RouterId;

use crate::support::{Cloud, PATIENCE};

const ARP: &str = include_str!("arp.py");

/// How long two may serve, in detection times. A copy that is cut off knows it after one of them, and a third for
/// asking; by then another may serve for two thirds. The rest is for a machine that is short of processor time.
const LONGEST_DOUBLE: u32 = 4;

/// Asks for an address from the provider's router, see `arp.py`.
struct Watch {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Watch {
    fn start(cloud: &Cloud, address: &str) -> Self {
        let mut command = cloud.lab.machine(Node::Outside).command("python3").unwrap();
        command.args(["-c", ARP, "eth0", "203.0.113.254", address]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { process, output }
    }

    /// The longest time, in milliseconds, in which question after question was answered more than once. One
    /// answer that is lost or late does not end it.
    fn longest_double(mut self) -> u64 {
        drop(self.process.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        self.process.wait().unwrap();
        let seen: Vec<(u64, u64)> = serde_json::from_str(&text).unwrap();
        assert!(seen.iter().filter(|(_, answers)| *answers == 1).count() > seen.len() / 2, "{text}");
        let (mut longest, mut since, mut single) = (0, None, 0);
        for (at, answers) in seen {
            single = if answers > 1 { 0 } else { single + 1 };
            if answers > 1 {
                longest = longest.max(at - *since.get_or_insert(at));
            } else if single > 2 {
                since = None;
            }
        }
        longest
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What `evergate show router` says on a host.
fn shown(cloud: &Cloud, node: Node, router: RouterId, what: &str) -> anyhow::Result<String> {
    cloud.lab.machine(node).shell(&format!("evergate show router {router} {what}"))
}

fn wait_told(cloud: &Cloud, node: Node, router: RouterId, text: &str) {
    wait_for(&format!("the operator of {node} is told '{text}'"), PATIENCE, || {
        Ok(shown(cloud, node, router, "")?.contains(text).then_some(()))
    })
    .unwrap();
}

fn wait_well(cloud: &Cloud, router: RouterId) {
    wait_for("no copy has a problem any more", PATIENCE, || {
        for node in cloud.lab.hosts_of(router) {
            let text = shown(cloud, node, router, "")?;
            anyhow::ensure!(!text.contains("problem "), "{node}: {text}");
        }
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn whatever_way_is_cut_there_is_one_active_and_the_operator_can_read_why() {
    let mut cloud = Cloud::up("split", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let id = "router show router1 -f json -c external_gateway_info";
    let gateway = cloud.admin.json(id).unwrap()["external_gateway_info"]["external_fixed_ips"][0]["ip_address"].clone();
    let watch = Watch::start(&cloud, gateway.as_str().unwrap());
    let active = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    cloud.lab.wait_watching(router).unwrap();
    let longest_double = cloud.lab.machine(active).detection_time().unwrap() * LONGEST_DOUBLE;
    let others: Vec<Node> = cloud.lab.hosts_of(router).into_iter().filter(|node| *node != active).collect();

    // The HA network alone, then the underlay to each of the others: other hosts still see the active.
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    let ha = Fault::Ha(HaCut::All);
    cloud.lab.fail(active, ha.clone()).unwrap();
    for node in &others {
        wait_told(&cloud, *node, router, "says by another way that it serves");
    }
    cloud.lab.heal(active, &ha).unwrap();
    wait_well(&cloud, router);
    for node in &others {
        cloud.lab.fail(active, Fault::Between(node.to_string())).unwrap();
        wait_told(&cloud, *node, router, "says by another way that it serves");
    }
    for node in &others {
        cloud.lab.heal(active, &Fault::Between(node.to_string())).unwrap();
    }
    wait_well(&cloud, router);
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    assert!(report.is_unharmed(), "{report}");
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);

    // The active is cut off from everybody: it gives up, another serves, and goes on doing so.
    let underlay = Fault::Cut(Link::Underlay);
    cloud.lab.fail(active, underlay.clone()).unwrap();
    let next = cloud.wait_moved(router, active);
    cloud.wait_instance_reaches_the_world();
    wait_told(&cloud, active, router, "this host is cut off");
    cloud.lab.heal(active, &underlay).unwrap();
    wait_well(&cloud, router);
    assert_eq!(cloud.lab.wait_active(router).unwrap(), next);

    // Both kinds at once, in one order and the other.
    for [first, second] in [[&ha, &underlay], [&underlay, &ha]] {
        let before = cloud.lab.wait_active(router).unwrap();
        cloud.lab.fail(before, first.clone()).unwrap();
        cloud.lab.fail(before, second.clone()).unwrap();
        let next = cloud.wait_moved(router, before);
        cloud.lab.heal(before, first).unwrap();
        cloud.wait_instance_reaches_the_world();
        cloud.lab.heal(before, second).unwrap();
        wait_well(&cloud, router);
        assert_eq!(cloud.lab.wait_active(router).unwrap(), next);
    }

    let double = watch.longest_double();
    eprintln!("two hosts answered for {double} ms at most");
    assert!(Duration::from_millis(double) < longest_double, "two hosts answered for {double} ms");
    let history = shown(&cloud, active, router, "--history").unwrap();
    for text in ["ACTIVE here: ", "standby here: no other host can be reached any more", "active on 10.60."] {
        assert!(history.contains(text), "{text} is not in\n{history}");
    }
    let one = cloud.lab.wait_active(router).unwrap();
    cloud.wait_shown_active("router1", one);
    eprintln!("{history}");
}

/// Waits until these hosts have a stream of the server, or know that they have none.
fn wait_server(cloud: &Cloud, hosts: &[Node], connected: bool) {
    for node in hosts {
        wait_for(&format!("{node} knows whether there is a server: {connected}"), PATIENCE, || {
            let text = cloud.lab.machine(*node).shell("evergate show --json")?;
            let shown: serde_json::Value = serde_json::from_str(&text)?;
            Ok((shown["server"]["connected"] == connected).then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn of_two_gateways_that_hear_each_other_by_way_of_the_server_alone_one_serves() {
    let mut cloud = Cloud::up_with("pair", |spec| {
        spec.advert_int = Some(1);
        (spec.network_hosts, spec.compute_hosts) = (2, 1);
    });
    // No instance, so no third host has anything of the router.
    let router = cloud.with_router();
    let id = "router show router1 -f json -c external_gateway_info";
    let gateway = cloud.admin.json(id).unwrap()["external_gateway_info"]["external_fixed_ips"][0]["ip_address"].clone();
    let active = cloud.lab.wait_copies(router, 2, &["ha-", "qr-", "qg-"]).unwrap();
    cloud.lab.wait_watching(router).unwrap();
    let other = cloud.lab.hosts_of(router).into_iter().find(|node| *node != active).unwrap();
    let watch = Watch::start(&cloud, gateway.as_str().unwrap());

    // Any one way alone.
    let between = Fault::Between(other.to_string());
    for cut in [&Fault::Ha(HaCut::All), &between] {
        cloud.lab.fail(active, cut.clone()).unwrap();
        wait_told(&cloud, other, router, "says by another way that it serves");
        cloud.lab.heal(active, cut).unwrap();
        wait_well(&cloud, router);
    }
    let server = Fault::Process(Daemon::Server, Signal::Kill);
    cloud.lab.fail(Node::Controller, server.clone()).unwrap();
    wait_server(&cloud, &[active, other], false);
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
    cloud.lab.heal(Node::Controller, &server).unwrap();
    wait_server(&cloud, &[active, other], true);

    // Back and forth on the way between the two: what is said by way of the server is what holds the role.
    for _ in 0..2 {
        cloud.lab.fail(active, between.clone()).unwrap();
        wait_told(&cloud, other, router, "says by another way that it serves");
        cloud.lab.heal(active, &between).unwrap();
        wait_well(&cloud, router);
    }
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
    let double = watch.longest_double();
    eprintln!("two hosts answered for {double} ms at most");
    assert_eq!(double, 0);
    let history = shown(&cloud, other, router, "--history").unwrap();
    assert_eq!(history.matches("ACTIVE here: ").count(), 0, "{history}");

    // With the server cut as well nobody can tell, so each serves; and one when anything is healed.
    cloud.lab.fail(active, between.clone()).unwrap();
    wait_told(&cloud, other, router, "says by another way that it serves");
    cloud.lab.fail(Node::Controller, server.clone()).unwrap();
    wait_for("both serve", PATIENCE, || Ok((cloud.lab.active_hosts(router)?.len() == 2).then_some(()))).unwrap();
    cloud.lab.heal(Node::Controller, &server).unwrap();
    assert_eq!(cloud.lab.wait_active(router).unwrap(), other, "the newer one stays");
    cloud.lab.heal(active, &between).unwrap();
    wait_well(&cloud, router);
    assert_eq!(cloud.lab.wait_active(router).unwrap(), other);

    // A dead host is replaced as soon as without a server to ask.
    cloud.lab.fail(other, Fault::Power).unwrap();
    assert_eq!(cloud.wait_moved(router, other), active);
}

impl Cloud {
    /// Waits until one other host than `from` acts as active, and `from` does not.
    fn wait_moved(&self, router: RouterId, from: Node) -> Node {
        wait_for(&format!("{from} has given the router up, and one other serves"), PATIENCE, || {
            match self.lab.active_hosts(router)?[..] {
                [one] if one != from => Ok(Some(one)),
                _ => Ok(None),
            }
        })
        .unwrap()
    }
}
