//! The book chapter's walk-through (B1 to B11), with assertions.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Node, Traces, wait_for};
use evergate_model::RouterId;
use serde_json::Value;

use crate::support::{Cloud, PATIENCE, column};

/// What VRRP alone would take at the least: three intervals of 2 s and a skew of (256 - 50) / 256 s, from an advertisement
/// that may be 2 s old.
const VRRP_ALONE: Duration = Duration::from_millis(4_800);

#[test]
fn an_ha_router_survives_the_loss_of_its_host() {
    let mut cloud = Cloud::up("walk", None);

    // D6, B8: three network hosts are listed as L3 agents, and compute hosts are not.
    let agents = cloud.admin.json("network agent list --agent-type l3").unwrap();
    assert_eq!(column(&agents, "Host").into_iter().collect::<BTreeSet<_>>(), names(&["net1", "net2", "net3"]));
    let agents = cloud.admin.json("network agent list").unwrap();
    assert_eq!(agents.as_array().unwrap().len(), 8, "three L3 agents and five L2 agents: {agents}");

    let router = cloud.with_router();
    only_admins_choose_ha(&mut cloud);
    the_ha_network_is_hidden_from_members(&mut cloud);
    let active = cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();
    addresses_are_on_the_active_copy_only(&mut cloud, router, active);
    keepalived_conf_is_written(&mut cloud, router);

    // Source NAT: the web server sees the router's address.
    cloud.with_instance();
    let page = cloud.wait_instance_reaches_the_world();
    let external = external_address(&mut cloud);
    assert!(page.contains(&format!("Your address is {external}.")), "{page}");

    // Floating IP: the world reaches the instance, and sees it under that address.
    let floating = cloud.member.json("floating ip create public --port vm1-port").unwrap();
    let floating = floating["floating_ip_address"].as_str().unwrap().to_owned();
    let web = cloud.lab.machine(Node::Web);
    let ask = format!("evergate lab fetch http://{floating}/");
    let page = wait_for("the floating IP answers", PATIENCE, || web.shell(&ask).map(Some)).unwrap();
    assert!(page.contains("Hello from vm1. Your address is 198.51.100.10."), "{page}");
    wait_for("from behind the floating IP the world sees it", PATIENCE, || {
        Ok(cloud.fetch("http://198.51.100.10/")?.contains(&format!("Your address is {floating}.")).then_some(()))
    })
    .unwrap();

    let next = power_off_moves_the_router(&mut cloud, router, active);
    assert!(
        cloud.lab.machine(Node::Web).shell(&ask).unwrap().contains("Hello from vm1"),
        "the floating IP moved along"
    );
    the_old_host_returns_as_standby(&mut cloud, router, active, next);
    killing_control_disturbs_nothing(&cloud, next);
    deleting_cleans_every_host_and_keeps_the_ha_network(&mut cloud, router);

    let (spec, dir) = (cloud.lab.spec().clone(), cloud.lab.dir().to_owned());
    assert!(!Traces::of(&spec, &dir).unwrap().is_empty());
    drop(cloud);
    assert_eq!(Traces::of(&spec, &dir).unwrap(), Traces::default(), "the lab left something behind");
}

/// B8: a member may not pass `--ha`, and gets the configured default without being shown it.
fn only_admins_choose_ha(cloud: &mut Cloud) {
    for wish in ["--ha", "--no-ha"] {
        let refusal = cloud.member.refused(&format!("router create wish {wish}")).unwrap();
        assert!(refusal.contains("403") && refusal.contains("create_router:ha"), "{refusal}");
    }
    let shown = cloud.member.json("router create by-default").unwrap();
    assert!(shown.get("ha").is_none_or(Value::is_null), "members are not shown 'ha': {shown}");
    assert_eq!(cloud.admin.json("router show by-default").unwrap()["ha"], true, "l3_ha = True in neutron.conf");
    cloud.member.ok("router delete by-default").unwrap();
}

/// B4, B5: hidden, of nobody, named after the project, with a port for each copy.
fn the_ha_network_is_hidden_from_members(cloud: &mut Cloud) {
    let project = cloud.admin.ok("project show demo -f value -c id").unwrap();
    let name = format!("HA network tenant {}", project.trim());
    let network = cloud.admin.json(&format!("network show '{name}'")).unwrap();
    assert_eq!(network["project_id"], "");
    assert_eq!(network["provider:network_type"], "vxlan");
    let list = cloud.member.json("network list").unwrap();
    assert_eq!(column(&list, "Name").into_iter().collect::<BTreeSet<_>>(), names(&["private", "public"]));
    cloud.member.refused(&format!("network show {}", network["id"].as_str().unwrap())).unwrap();
    let subnets = cloud.admin.json(&format!("subnet list --network {}", network["id"].as_str().unwrap())).unwrap();
    assert_eq!(column(&subnets, "Subnet"), ["169.254.192.0/18"]);
    let ports = "port list --router router1 --device-owner network:router_ha_interface";
    assert_eq!(cloud.admin.json(ports).unwrap().as_array().unwrap().len(), 3);
    assert!(cloud.member.json(ports).unwrap().as_array().unwrap().is_empty());
}

/// B1, B5, B6, B7: namespaces on three hosts; what follows the role is on the active one alone.
fn addresses_are_on_the_active_copy_only(cloud: &mut Cloud, router: RouterId, active: Node) {
    assert_eq!(cloud.lab.hosts_of(router), [Node::Network(1), Node::Network(2), Node::Network(3)]);
    let mut virtual_addresses = Vec::new();
    for node in cloud.lab.hosts_of(router) {
        let addresses = cloud.lab.machine(node).router_addresses(router).unwrap().unwrap();
        let of = |prefix: &str| -> Vec<String> {
            let (_, list) = addresses.iter().find(|(link, _)| link.starts_with(prefix)).expect("every copy has it");
            list.clone()
        };
        assert!(of("ha-")[0].starts_with("169.254.") && of("ha-")[0].ends_with("/18"), "{node}: {addresses:?}");
        if node == active {
            assert_eq!(of("qr-"), ["10.0.0.1/24"]);
            assert_eq!(of("qg-").len(), 1, "{addresses:?}");
            virtual_addresses.push(of("ha-")[1].clone());
        } else {
            assert_eq!((of("ha-").len(), of("qr-").len(), of("qg-").len()), (1, 0, 0), "{node}: {addresses:?}");
        }
        let routes = cloud.lab.machine(node).shell(&format!("ip -n qrouter-{router} route show default")).unwrap();
        assert_eq!(routes.contains("via 203.0.113.254"), node == active, "{node}: {routes}");
    }
    assert!(virtual_addresses[0].starts_with("169.254.0.") && virtual_addresses[0].ends_with("/24"));
    let shown = cloud.wait_shown_active("router1", active);
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|(_, alive, state)| *alive && (state == "active" || state == "standby")), "{shown:?}");
}

/// B10: on every host the configuration that keepalived would need, which a stock keepalived accepts.
fn keepalived_conf_is_written(cloud: &mut Cloud, router: RouterId) {
    for node in cloud.lab.hosts_of(router) {
        let machine = cloud.lab.machine(node);
        let conf = fs::read_to_string(machine.ha_conf_folder(router).join("keepalived.conf")).unwrap();
        for line in ["state BACKUP", "priority 50", "nopreempt", "advert_int 2", "10.0.0.1/24 dev qr-"] {
            assert!(conf.contains(line), "{node}: no '{line}' in {conf}");
        }
        let conf = format!("/var/lib/evergate/ha_confs/{router}/keepalived.conf");
        let test = format!("ip netns exec qrouter-{router} keepalived --config-test --use-file {conf} 2>&1 || :");
        let said = machine.shell(&test).unwrap();
        // The line is Neutron's, and keepalived remarks on it: it tracks its own interface anyhow.
        let known = |line: &&str| line.contains("Ignoring track_interface ha-");
        assert_eq!(said.lines().filter(|line| !known(line)).collect::<Vec<_>>(), Vec::<&str>::new(), "{node}");
    }
}

/// B3, B11: the power of the active host is cut; another copy takes over, and says so in its log and to
/// the API.
fn power_off_moves_the_router(cloud: &mut Cloud, router: RouterId, active: Node) -> Node {
    cloud.lab.wait_watching(router).unwrap();
    let detection = cloud.lab.machine(active).detection_time().unwrap();
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    cloud.wait_instance_reaches_the_world();
    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    assert_ne!(next, active);
    cloud.wait_instance_reaches_the_world();
    cloud.wait_shown_active("router1", next);
    wait_for("the dead host is shown as dead", PATIENCE, || {
        let copies = cloud.copies("router1");
        let dead =
            copies.iter().any(|(host, alive, state)| *host == active.to_string() && !alive && state == "standby");
        Ok(dead.then_some(()))
    })
    .unwrap();
    // Only now: the probe has watched until the dead host was given up by the server, too.
    let report = probe.finish().unwrap();
    eprintln!("power-off of the active host, advertisements every 2 s: {report}");
    // BFD notices within its detection time, of which a machine that is short of processor time gets eight.
    let limit = 8 * detection;
    assert!(limit < VRRP_ALONE, "VRRP might have been as fast as {limit:?}");
    let gap = Duration::from_secs_f64(report.longest_gap_ms() / 1000.0);
    assert!(!gap.is_zero() && gap < limit, "{report}");
    assert_eq!(report.gaps.len(), 1, "one interruption, and no flapping after it: {report}");

    let folder = cloud.lab.machine(next).ha_conf_folder(router);
    let log = fs::read_to_string(folder.join("neutron-keepalived-state-change.log")).unwrap();
    assert!(log.lines().last().unwrap().contains("transition to master"), "{log}");
    assert_eq!(fs::read_to_string(folder.join("state")).unwrap().trim(), "primary");
    next
}

/// B11: the old active comes back as backup, and one active stays.
fn the_old_host_returns_as_standby(cloud: &mut Cloud, router: RouterId, old: Node, active: Node) {
    cloud.lab.heal(old, &Fault::Power).unwrap();
    wait_for("the old host is shown as standby", PATIENCE, || {
        let copies = cloud.copies("router1");
        let back = copies.iter().any(|(host, alive, state)| *host == old.to_string() && *alive && state == "standby");
        Ok((back && cloud.lab.hosts_of(router).contains(&old)).then_some(()))
    })
    .unwrap();
    cloud.wait_shown_active("router1", active);
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
    let folder = cloud.lab.machine(old).ha_conf_folder(router);
    wait_for("the log of the old host says so", PATIENCE, || {
        let log = fs::read_to_string(folder.join("neutron-keepalived-state-change.log"))?;
        Ok(log.lines().last().is_some_and(|line| line.contains("transition to backup")).then_some(()))
    })
    .unwrap();
}

/// Control is killed on the active host and on the instance's: both adopt what they find, and no packet
/// is lost.
fn killing_control_disturbs_nothing(cloud: &Cloud, active: Node) {
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(5)).unwrap();
    cloud.wait_instance_reaches_the_world();
    for node in [active, Node::Compute(1)] {
        let machine = cloud.lab.machine(node);
        let old: Vec<_> = machine.daemons(Daemon::Control).iter().map(|process| process.pid).collect();
        assert_eq!(old.len(), 1);
        cloud.lab.fail(node, Fault::Process(Daemon::Control, Signal::Kill)).unwrap();
        // A round, because only after one has it compared the kernel with what the server says.
        wait_for("a new control process has done a round", PATIENCE, || {
            let new = machine.daemons(Daemon::Control).iter().any(|process| !old.contains(&process.pid));
            let shown: Value = serde_json::from_str(&machine.shell("evergate show --json")?)?;
            assert_eq!(shown["last_round"]["ops"].as_u64().unwrap_or(0), 0, "{node} changed something: {shown}");
            Ok((new && shown["last_round"].is_object() && shown["server"]["connected"] == true).then_some(()))
        })
        .unwrap();
        assert_eq!(machine.shell("evergate plan").unwrap().trim(), "# nothing to do", "on {node}");
    }
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    assert!(report.is_unharmed(), "{report}");
}

/// B4: deleting the router leaves nothing of it on any host; the HA network stays and is used again.
fn deleting_cleans_every_host_and_keeps_the_ha_network(cloud: &mut Cloud, router: RouterId) {
    let ha_network = |cloud: &mut Cloud| {
        let list = cloud.admin.json("network list").unwrap();
        let rows =
            list.as_array().unwrap().iter().filter(|row| row["Name"].as_str().unwrap().starts_with("HA network"));
        rows.map(|row| row["ID"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let network = ha_network(cloud);
    let in_use = cloud.member.refused("router delete router1").unwrap();
    assert!(in_use.contains("409"), "a router with interfaces is in use: {in_use}");
    let floating = column(&cloud.member.json("floating ip list").unwrap(), "Floating IP Address");
    cloud.member.ok(&format!("floating ip delete {}", floating[0])).unwrap();
    cloud.member.ok("router remove subnet router1 private-subnet").unwrap();
    cloud.member.ok("router delete router1").unwrap();
    wait_for("no host has the router's namespace", PATIENCE, || {
        Ok(cloud.lab.hosts_of(router).is_empty().then_some(()))
    })
    .unwrap();
    for node in [Node::Network(1), Node::Network(2), Node::Network(3)] {
        let machine = cloud.lab.machine(node);
        wait_for(&format!("{node} has no tap, network or tunnel left"), PATIENCE, || {
            let links = machine.shell("ls /sys/class/net")?;
            Ok((links.split_whitespace().collect::<Vec<_>>() == ["br-ex", "eth0", "eth1", "lo"]).then_some(()))
        })
        .unwrap();
        wait_for(&format!("{node} keeps no configuration of it"), PATIENCE, || {
            Ok((!machine.ha_conf_folder(router).exists()).then_some(()))
        })
        .unwrap();
    }
    assert_eq!(ha_network(cloud), network);
    cloud.admin.ok("router create router2 --ha --project demo").unwrap();
    assert_eq!(ha_network(cloud), network, "the network is used again");
    let router2 = cloud.router_id("router2");
    cloud.lab.wait_active(router2).unwrap();
}

fn external_address(cloud: &mut Cloud) -> String {
    let shown = cloud.admin.json("router show router1").unwrap();
    shown["external_gateway_info"]["external_fixed_ips"][0]["ip_address"].as_str().unwrap().to_owned()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}
