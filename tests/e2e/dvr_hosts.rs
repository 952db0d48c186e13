//! Hosts of a distributed HA router that are restarted, cut off or wrongly set up: the others go on, and each is
//! right when it is back.

use std::time::{Duration, Instant};

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::{ECHO_PORT, Running};
use evergate_lab::spec::{Link, WEB};
use evergate_lab::{Node, Profile, wait_for};
use evergate_model::RouterId;
use serde_json::Value;

use crate::connections::End;
use crate::planned::{kill, stop_and_start};
use crate::support::{Cloud, PATIENCE};

/// Two networks behind a distributed HA router, `vm1` on `cmp1` and `vm2` with a floating IP on `cmp2`.
fn furnish(cloud: &mut Cloud) -> (RouterId, String) {
    let router = cloud.with_router();
    cloud.member.ok("network create second").unwrap();
    cloud.member.ok("subnet create second-subnet --network second --subnet-range 10.0.1.0/24").unwrap();
    cloud.member.ok("router add subnet router1 second-subnet").unwrap();
    for (name, network, host) in [("vm1", "private", 1), ("vm2", "second", 2)] {
        cloud.member.ok(&format!("port create {name}-port --network {network}")).unwrap();
        cloud.lab.add_instance(name, &format!("{name}-port"), Node::Compute(host)).unwrap();
    }
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let floating = floating.trim().to_owned();
    cloud.member.ok(&format!("floating ip set {floating} --port vm2-port")).unwrap();
    cloud.lab.wait_copies(router, 3, &["qg-", "sg-", "ha-"]).unwrap();
    cloud.wait_instance_reaches_the_world();
    wait_for("the floating IP answers", PATIENCE, || {
        cloud.lab.machine(Node::Web).shell(&format!("evergate lab fetch http://{floating}/")).map(Some)
    })
    .unwrap();
    (router, floating)
}

/// Every way through the router: between instances, by source NAT, and to the floating IP.
struct Traffic {
    probes: [Running; 3],
    server: End,
    client: End,
}

impl Traffic {
    fn start(cloud: &Cloud, floating: &str) -> Self {
        let vm2 = cloud.lab.instances().unwrap()["vm2"].address.split('/').next().unwrap().to_owned();
        let evergate = &cloud.lab.spec().evergate;
        let from_vm1 = || cloud.lab.instance_command("vm1", evergate).unwrap();
        let from_web = cloud.lab.machine(Node::Web).command(evergate).unwrap();
        let probe = |command, to: &str| {
            Running::start_by(command, format!("{to}:{ECHO_PORT}").parse().unwrap(), Duration::from_millis(2)).unwrap()
        };
        let probes = [probe(from_vm1(), &vm2), probe(from_vm1(), &WEB.to_string()), probe(from_web, floating)];
        let mut server = End::start(cloud.lab.machine(Node::Web).command("python3").unwrap(), &["serve", "9000"]);
        assert_eq!(server.says(), "ready");
        let args = ["connect", "198.51.100.10", "9000", "50"];
        let mut client = End::start(cloud.lab.instance_command("vm1", "python3").unwrap(), &args);
        assert_eq!(client.says(), "ready");
        Self { probes, server, client }
    }

    fn finish_unharmed(mut self) {
        for probe in self.probes {
            let report = probe.finish().unwrap();
            assert!(report.is_unharmed(), "{report}");
        }
        self.server.go();
        assert_eq!(self.server.says(), "pushed");
        self.client.go();
        assert_eq!(self.client.says(), "alive 50 of 50, udp same");
    }
}

#[test]
fn hosts_of_a_distributed_router_are_restarted_cut_off_and_wrongly_set_up() {
    let mut cloud = Cloud::up_with("hosts", |spec| {
        spec.profile = Profile::DvrHa;
        // A keeper that is killed is back before the others notice, also on a busy machine.
        spec.bfd_interval_ms = Some(700);
        // Two that are left hear each other: a host that hears nobody serves nobody.
        (spec.network_hosts, spec.compute_hosts) = (3, 3);
    });
    // A third compute host, with mistakes in its files that its daemon starts with.
    let odd = Node::Compute(3);
    let mistakes = "sed -i 's/^local_ip.*/local_ip = 10.60.99.99/; s/^bridge_mappings.*/bridge_mappings = external:br-nowhere/' \
                    /etc/neutron/openvswitch_agent.ini";
    cloud.lab.machine(odd).shell(mistakes).unwrap();
    stop_and_start(&cloud, odd, Daemon::Host);
    let (router, floating) = furnish(&mut cloud);
    cloud.member.ok("port create vm3-port --network second").unwrap();
    cloud.lab.add_instance("vm3", "vm3-port", odd).unwrap();
    wait_for("the host tells of its mistakes", PATIENCE, || {
        let shown: Value = serde_json::from_str(&cloud.lab.machine(odd).shell("evergate show --json")?)?;
        let problems = shown["problems"].to_string();
        let told = problems.contains("local_ip 10.60.99.99 is not an address") && problems.contains("'br-nowhere'");
        anyhow::ensure!(told, "{problems}");
        Ok(Some(()))
    })
    .unwrap();
    wait_for("the server's log names the host with its mistakes", PATIENCE, || {
        let log = std::fs::read_to_string(cloud.lab.machine(Node::Controller).log_path("server"))?;
        let told = |what: &str| log.lines().any(|line| line.contains("cmp3") && line.contains(what));
        Ok((told("10.60.99.99") && told("br-nowhere")).then_some(()))
    })
    .unwrap();

    // Every daemon of a compute host and of the active gateway's.
    let active = cloud.lab.wait_active(router).unwrap();
    cloud.lab.wait_watching(router).unwrap();
    let traffic = Traffic::start(&cloud, &floating);
    for node in [Node::Compute(1), Node::Compute(2), active] {
        for daemon in [Daemon::Control, Daemon::Keeper, Daemon::Host] {
            kill(&cloud, node, daemon);
            cloud.lab.machine(node).wait_nothing_to_do().unwrap();
        }
    }
    stop_and_start(&cloud, Node::Compute(1), Daemon::Host);
    cloud.lab.machine(Node::Compute(1)).wait_nothing_to_do().unwrap();
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active], "nothing moved for that");
    traffic.finish_unharmed();

    // Compute hosts that do not hear of a takeover: one is cut off, one's keeper does not run. The server is stopped.
    let stopped = Fault::Process(Daemon::Server, Signal::Stop);
    let away = [
        (Node::Compute(1), Fault::Cut(Link::Underlay)),
        (Node::Compute(2), Fault::Process(Daemon::Keeper, Signal::Stop)),
    ];
    cloud.lab.wait_watching(router).unwrap();
    cloud.lab.fail(Node::Controller, stopped.clone()).unwrap();
    away.iter().for_each(|(node, fault)| cloud.lab.fail(*node, fault.clone()).unwrap());
    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    assert_ne!(next, active);
    for (node, fault) in &away {
        let back = Instant::now();
        cloud.lab.heal(*node, fault).unwrap();
        cloud.lab.machine(*node).wait_nothing_to_do().unwrap();
        eprintln!("{node} is right {:?} after its return", back.elapsed());
    }
    cloud.wait_instance_reaches_the_world();
    cloud.lab.heal(Node::Controller, &stopped).unwrap();
    cloud.wait_shown_active("router1", next);
}
