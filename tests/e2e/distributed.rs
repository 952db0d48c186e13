//! A distributed HA router, in the deployment that the documents describe (`--profile dvr-ha`): what stays on
//! the compute hosts does, and what leaves by a gateway survives its power-off without the server.

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::{Node, Profile, wait_for};

use crate::connections::{End, tracked};
use crate::support::{Cloud, PATIENCE};

/// Pings and their answers that a host has received in tunnels, since [`count_tunnelled`].
fn tunnelled(cloud: &Cloud, node: Node) -> u64 {
    let text = cloud.lab.machine(node).shell("nft -j list chain netdev count tunnel").unwrap();
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counters = listed["nftables"].as_array().unwrap().iter().filter_map(|item| item["rule"]["expr"].as_array());
    counters.flatten().filter_map(|expr| expr["counter"]["packets"].as_u64()).sum()
}

/// Inside of what comes to the tunnel port: the frame's type and the packet's protocol.
fn count_tunnelled(cloud: &Cloud, node: Node) {
    let rules = "add table netdev count; add chain netdev count tunnel { type filter hook ingress device eth0 priority 0; }; \
                 add rule netdev count tunnel udp dport 4789 @th,224,16 0x0800 @th,312,8 1 counter";
    cloud.lab.machine(node).shell(&format!("nft '{rules}'")).unwrap();
}

#[test]
fn a_distributed_router_keeps_to_its_hosts_and_its_source_nat_survives_a_power_off() {
    let mut cloud = Cloud::up_with("distributed", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 2);
    });
    let router = cloud.with_router();
    cloud.member.ok("network create second").unwrap();
    cloud.member.ok("subnet create second-subnet --network second --subnet-range 10.0.1.0/24").unwrap();
    cloud.member.ok("router add subnet router1 second-subnet").unwrap();
    for (name, network, host) in [("vm1", "private", 1), ("vm2", "second", 2)] {
        cloud.member.ok(&format!("port create {name}-port --network {network}")).unwrap();
        cloud.lab.add_instance(name, &format!("{name}-port"), Node::Compute(host)).unwrap();
    }
    let active = cloud.lab.wait_copies(router, 2, &["qg-", "sg-", "ha-"]).unwrap();
    cloud.wait_instance_reaches_the_world();
    let vm2 = cloud.lab.instances().unwrap()["vm2"].address.split('/').next().unwrap().to_owned();
    let ping = |cloud: &Cloud, count: u32| {
        cloud.lab.instance_shell("vm1", &format!("ping -q -c{count} -i0.01 -W2 {vm2} || true")).unwrap()
    };
    wait_for("the instances reach each other", PATIENCE, || {
        Ok(ping(&cloud, 1).contains(" 0% packet loss").then_some(()))
    })
    .unwrap();

    // East-west: counted where it would come in.
    let nodes = [Node::Network(1), Node::Network(2), Node::Compute(1), Node::Compute(2)];
    nodes.iter().for_each(|node| count_tunnelled(&cloud, *node));
    let said = ping(&cloud, 100);
    assert!(said.contains(" 0% packet loss"), "{said}");
    let seen = nodes.map(|node| tunnelled(&cloud, node));
    assert_eq!(seen, [0, 0, 100, 100], "each way once, and no third host has a part in it");

    // A floating IP: on the instance's own host.
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let floating = floating.trim().to_owned();
    cloud.member.ok(&format!("floating ip set {floating} --port vm2-port")).unwrap();
    let web = |cloud: &Cloud, line: &str| cloud.lab.machine(Node::Web).shell(line);
    wait_for("the floating IP answers", PATIENCE, || {
        Ok(web(&cloud, &format!("evergate lab fetch http://{floating}/")).ok().filter(|page| page.contains("vm2")))
    })
    .unwrap();
    let page = cloud.lab.instance_shell("vm2", "evergate lab fetch http://198.51.100.10/").unwrap();
    assert!(page.contains(&floating), "it calls out by its floating IP: {page}");
    let namespaces = |node| cloud.lab.machine(node).namespaces();
    assert!(namespaces(Node::Compute(2)).iter().any(|name| name.starts_with("fip-")));
    wait_for("the floating IP is shown active", PATIENCE, || {
        Ok(cloud
            .member
            .ok(&format!("floating ip show {floating} -f value -c status"))?
            .contains("ACTIVE")
            .then_some(()))
    })
    .unwrap();

    // The active gateway loses its power while the server is stopped: connections by source NAT go on.
    let mut server = End::start(cloud.lab.machine(Node::Web).command("python3").unwrap(), &["serve", "9000"]);
    assert_eq!(server.says(), "ready");
    let args = ["connect", "198.51.100.10", "9000", "100"];
    let mut out = End::start(cloud.lab.instance_command("vm1", "python3").unwrap(), &args);
    assert_eq!(out.says(), "ready");
    cloud.lab.wait_watching(router).unwrap();
    wait_all_agree(&cloud, &cloud.lab.spec().hosts());
    let standby = cloud.lab.hosts_of(router).into_iter().find(|node| *node != active).unwrap();
    wait_for("the standby's kernel holds the connections", PATIENCE, || {
        Ok((tracked(&cloud, standby, router)? >= 100).then_some(()))
    })
    .unwrap();
    cloud.lab.fail(Node::Controller, Fault::Process(Daemon::Server, Signal::Stop)).unwrap();
    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    assert_eq!(next, standby);
    server.go();
    assert_eq!(server.says(), "pushed");
    out.go();
    assert_eq!(out.says(), "alive 100 of 100, udp same");
    wait_for("the instance reaches the world by the other gateway", PATIENCE, || {
        Ok(cloud.fetch("http://198.51.100.10/").ok())
    })
    .unwrap();
    let said = ping(&cloud, 20);
    assert!(said.contains(" 0% packet loss"), "{said}");
    let page = web(&cloud, &format!("evergate lab fetch http://{floating}/")).unwrap();
    assert!(page.contains("vm2"));
    wait_all_agree(&cloud, &[next, Node::Compute(1), Node::Compute(2)]);
}

/// Waits until every host's tables say what ports, bindings and claims say: control's and the keeper's.
fn wait_all_agree(cloud: &Cloud, hosts: &[Node]) {
    hosts.iter().for_each(|host| cloud.lab.machine(*host).wait_nothing_to_do().unwrap());
}
