//! Connections go on when the active host loses power.

use std::process::Command;

use evergate_lab::fault::Fault;
use evergate_lab::{Node, flows, wait_for};
use evergate_model::RouterId;

use crate::support::{Cloud, PATIENCE};

/// One end of connections, whose failure fails its test.
pub(crate) struct End(flows::End);

impl End {
    pub(crate) fn start(command: Command, args: &[&str]) -> Self {
        Self(flows::End::start(command, args).unwrap())
    }

    pub(crate) fn run(command: Command, script: &str, args: &[&str]) -> Self {
        Self(flows::End::run(command, script, args).unwrap())
    }

    pub(crate) fn says(&mut self) -> String {
        self.0.says().unwrap()
    }

    pub(crate) fn go(&mut self) {
        self.0.go().unwrap();
    }
}

/// Connections that a host's kernel holds for a router.
pub(crate) fn tracked(cloud: &Cloud, node: Node, router: RouterId) -> anyhow::Result<usize> {
    let mut command = cloud.lab.machine(node).router_command(router, "conntrack")?;
    let done = command.arg("-C").output()?;
    Ok(String::from_utf8(done.stdout)?.trim().parse()?)
}

#[test]
fn connections_through_source_nat_a_floating_ip_and_port_forwardings_survive_the_power_off_of_the_active() {
    let mut cloud = Cloud::up("connections", Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let floating = floating.trim().to_owned();
    cloud.member.ok(&format!("floating ip set {floating} --port vm1-port")).unwrap();
    cloud.member.ok("port create vm2-port --network private").unwrap();
    cloud.lab.add_instance("vm2", "vm2-port", Node::Compute(2)).unwrap();
    wait_for("the second instance reaches the world", PATIENCE, || {
        cloud.lab.instance_shell("vm2", "evergate lab fetch http://198.51.100.10/").map(Some)
    })
    .unwrap();

    // Another floating IP, of which one port leads to the second instance.
    let forwarding = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let forwarding = forwarding.trim().to_owned();
    let shown = cloud.member.json("port show vm2-port").unwrap();
    let inside = shown["fixed_ips"][0]["ip_address"].as_str().unwrap().to_owned();
    for protocol in ["tcp", "udp"] {
        let create = format!(
            "floating ip port forwarding create --port vm2-port --internal-ip-address {inside} --internal-protocol-port \
             9002 --external-protocol-port 2200 --protocol {protocol} {forwarding}"
        );
        cloud.member.ok(&create).unwrap();
    }

    // From an instance without a floating IP: source NAT. From outside to one that has one: the other way.
    let mut web = End::start(cloud.lab.machine(Node::Web).command("python3").unwrap(), &["serve", "9000"]);
    let mut vm1 = End::start(cloud.lab.instance_command("vm1", "python3").unwrap(), &["serve", "9001"]);
    let mut vm2 = End::start(cloud.lab.instance_command("vm2", "python3").unwrap(), &["serve", "9002"]);
    assert_eq!([&mut web, &mut vm1, &mut vm2].map(End::says), ["ready"; 3]);
    let args = ["connect", "198.51.100.10", "9000", "1100"];
    let mut out = End::start(cloud.lab.instance_command("vm2", "python3").unwrap(), &args);
    let args = ["connect", floating.as_str(), "9001", "100"];
    let mut inward = End::start(cloud.lab.machine(Node::Web).command("python3").unwrap(), &args);
    wait_for("the port leads to the second instance", PATIENCE, || {
        let dial = format!("python3 -c \"import socket; socket.create_connection(('{forwarding}', 2200), 2)\"");
        cloud.lab.machine(Node::Web).shell(&dial).map(Some)
    })
    .unwrap();
    let args = ["connect", forwarding.as_str(), "2200", "50"];
    let mut forwarded = End::start(cloud.lab.machine(Node::Web).command("python3").unwrap(), &args);
    assert_eq!([&mut out, &mut inward, &mut forwarded].map(End::says), ["ready"; 3]);

    let active = cloud.lab.wait_active(router).unwrap();
    wait_for("every standby's kernel holds the connections", PATIENCE, || {
        let others = cloud.lab.hosts_of(router).into_iter().filter(|node| *node != active);
        let counts = others.map(|node| tracked(&cloud, node, router)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((counts.len() == 2 && counts.iter().all(|count| *count >= 1253)).then_some(()))
    })
    .unwrap();
    wait_for("the operator is shown how it goes", PATIENCE, || {
        let shown = cloud.lab.machine(active).shell(&format!("evergate show router {router}"))?;
        Ok(shown.lines().any(|line| line.starts_with("connections ") && line.contains("told to 2 other")).then_some(()))
    })
    .unwrap();

    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    assert_ne!(next, active);
    // The servers speak first on half of the connections, which nothing but an entry can let pass.
    for end in [&mut web, &mut vm1, &mut vm2] {
        end.go();
        assert_eq!(end.says(), "pushed");
    }
    for end in [&mut out, &mut inward, &mut forwarded] {
        end.go();
    }
    assert_eq!(out.says(), "alive 1100 of 1100, udp same");
    assert_eq!(inward.says(), "alive 100 of 100, udp same");
    assert_eq!(forwarded.says(), "alive 50 of 50, udp same");

    // New connections find free ports among those that are taken; the old ones go on.
    let args = ["connect", "198.51.100.10", "9000", "300"];
    let mut more = End::start(cloud.lab.instance_command("vm2", "python3").unwrap(), &args);
    assert_eq!(more.says(), "ready");
    web.go();
    assert_eq!(web.says(), "pushed");
    more.go();
    assert_eq!(more.says(), "alive 300 of 300, udp same");
}
