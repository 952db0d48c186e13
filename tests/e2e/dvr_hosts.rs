//! Hosts of a distributed HA router that are restarted, cut off or wrongly set up: the others go on, and each is
//! right when it is back.

use std::time::{Duration, Instant};

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::{ECHO_PORT, Running};
use evergate_lab::router::is_nothing_to_do;
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

/// Makes every program on a host read a clock that is an hour ahead.
const HOUR_AHEAD: &str = r#"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += 3600;
    return failed;
}
"#;

/// Keeps every datagram to a UDP port that the host sends, until a line of input, and prints them.
const RECORD: &str = r#"
import os, socket, sys, threading
way = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
way.bind(("eth0", 3))
way.settimeout(0.1)
over = threading.Event()
threading.Thread(target=lambda: over.set() if sys.stdin.readline() else os._exit(0), daemon=True).start()
kept = []
print("ready", flush=True)
while not over.is_set():
    try:
        packet, (_, kind, how, *_) = way.recvfrom(2048)
    except TimeoutError:
        continue
    if how == socket.PACKET_OUTGOING and kind == 0x0800 and packet[9] == 17:
        if packet[22:24] == int(sys.argv[1]).to_bytes(2, "big"):
            kept.append(packet.hex())
print(" ".join(kept), flush=True)
"#;

/// Sends packets as they are, from whomever they say that they are, twice each.
const REPLAY: &str = r#"
import socket, sys
way = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for packet in map(bytes.fromhex, sys.stdin.read().split()):
    for _ in range(2):
        way.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
"#;

/// Where hosts listen for claims, unless their files say otherwise.
const CLAIM_PORT: &str = "3796";

/// Within this time a host that returns is right, on a machine that is busy with other tests. What it takes is
/// printed, and is in `docs/failures.md`.
const SOON: Duration = Duration::from_secs(10);

/// Starts a host's daemon with a wrong tunnel address, a mapping to a bridge that there is not, and a wrong clock.
fn set_up_wrongly(cloud: &Cloud, node: Node) {
    let machine = cloud.lab.machine(node);
    let source = machine.disk().join("hour-ahead.c");
    std::fs::write(&source, HOUR_AHEAD).unwrap();
    let library = machine.disk().join("var/lib/evergate/hour-ahead.so");
    let mut compile = std::process::Command::new("cc");
    assert!(compile.args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap().success());
    let mistakes = "sed -i 's/^local_ip.*/local_ip = 10.60.99.99/; s/^bridge_mappings.*/bridge_mappings = external:br-nowhere/' \
                    /etc/neutron/openvswitch_agent.ini; echo /var/lib/evergate/hour-ahead.so > /etc/ld.so.preload";
    machine.shell(mistakes).unwrap();
    stop_and_start(cloud, node, Daemon::Host);
}

/// Waits until the host itself and the server say what is wrong with it, by name.
fn wait_told(cloud: &Cloud, node: Node) {
    wait_for("the host tells of its mistakes", PATIENCE, || {
        let shown: Value = serde_json::from_str(&cloud.lab.machine(node).shell("evergate show --json")?)?;
        let problems = shown["problems"].to_string();
        let told = problems.contains("local_ip 10.60.99.99 is not an address") && problems.contains("'br-nowhere'");
        anyhow::ensure!(told, "{problems}");
        Ok(Some(()))
    })
    .unwrap();
    wait_for("the server's log names the host with its mistakes", PATIENCE, || {
        let log = std::fs::read_to_string(cloud.lab.machine(Node::Controller).log_path("server"))?;
        let name = node.to_string();
        let told = |what: &str| log.lines().any(|line| line.contains(&name) && line.contains(what));
        let missing = ["10.60.99.99", "br-nowhere", "60 min ahead"].into_iter().find(|what| !told(what));
        anyhow::ensure!(missing.is_none(), "nothing of {missing:?}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Sets its files right, but not its clock.
fn set_right(cloud: &Cloud, node: Node) {
    let address = node.underlay().unwrap();
    let line = format!(
        "sed -i 's/^local_ip.*/local_ip = {address}/; s/^bridge_mappings.*/bridge_mappings = external:br-ex/' \
         /etc/neutron/openvswitch_agent.ini"
    );
    cloud.lab.machine(node).shell(&line).unwrap();
    stop_and_start(cloud, node, Daemon::Host);
}

/// A host that is away, and an instance of it without a floating IP.
struct Away {
    node: Node,
    instance: &'static str,
    how: &'static str,
    faults: Vec<Fault>,
}

impl Away {
    /// Breaks it.
    fn go(&self, cloud: &Cloud) {
        self.faults.iter().for_each(|fault| cloud.lab.fail(self.node, fault.clone()).unwrap());
    }

    /// Mends it, and waits until its tables are right and its instance reaches the world.
    fn come_back(&self, cloud: &Cloud) {
        let Self { node, instance, how, faults } = self;
        // The links last: whatever else is mended has had no news until then.
        let in_force: Vec<_> = cloud.lab.faults().unwrap().of(*node).cloned().collect();
        let mut mended = Instant::now();
        for fault in faults.iter().filter(|fault| in_force.contains(fault)) {
            mended = Instant::now();
            cloud.lab.heal(*node, fault).unwrap();
        }
        // Not by TCP, which asks again after a second.
        wait_for(&format!("{node} is right after its return ({how})"), SOON, || {
            cloud.lab.instance_shell(instance, &format!("ping -q -c1 -W0.1 {WEB}")).map(Some)
        })
        .unwrap();
        let reached = mended.elapsed();
        wait_for(&format!("{node} has nothing to do after its return ({how})"), SOON, || {
            let plan = cloud.lab.machine(*node).shell("evergate plan")?;
            anyhow::ensure!(is_nothing_to_do(&plan), "{plan}");
            Ok(Some(()))
        })
        .unwrap();
        eprintln!("{node} ({how}): its instance reaches the world {reached:?} after the return");
    }
}

/// Kills the active gateway while compute hosts are away and the server is stopped, and returns the next one. Those
/// that were away are right when they are back.
fn take_over_unheard(cloud: &Cloud, router: RouterId, away: &[Away]) -> Node {
    cloud.lab.wait_watching(router).unwrap();
    let active = cloud.lab.wait_active(router).unwrap();
    away.iter().for_each(|host| host.go(cloud));
    cloud.lab.fail(active, Fault::Power).unwrap();
    let next = wait_for("another gateway is active", PATIENCE, || {
        let hosts = cloud.lab.active_hosts(router)?;
        Ok(hosts.into_iter().find(|host| *host != active))
    })
    .unwrap();
    away.iter().for_each(|host| host.come_back(cloud));
    cloud.lab.heal(active, &Fault::Power).unwrap();
    cloud.lab.wait_copies(router, 3, &["qg-", "sg-", "ha-"]).unwrap();
    assert_eq!(cloud.lab.wait_active(router).unwrap(), next);
    next
}

/// What the keepers of all hosts take for true of where routers are.
fn believed(cloud: &Cloud) -> Vec<(Node, Value)> {
    let of = |node: Node| {
        let shown: Value =
            serde_json::from_str(&cloud.lab.machine(node).shell("evergate show --json").unwrap()).unwrap();
        (node, shown["keeper"]["claims"].clone())
    };
    cloud.lab.spec().hosts().into_iter().map(of).collect()
}

/// Everything that a gateway said to other hosts when it became active, twice, when another one is.
fn repeat_late(cloud: &Cloud, said: &str) {
    let count = said.split_whitespace().count();
    assert!(count > 0, "it claimed the router");
    let hosts = cloud.lab.spec().hosts();
    let rules = format!(
        "add table inet heard; add chain inet heard input {{ type filter hook input priority 0; }}; \
         add rule inet heard input udp dport {CLAIM_PORT} counter"
    );
    for node in &hosts {
        cloud.lab.machine(*node).shell(&format!("nft '{rules}'")).unwrap();
    }
    let before = believed(cloud);
    let mut replay = cloud.lab.machine(Node::Controller).command("python3").unwrap();
    let mut replay = replay.args(["-c", REPLAY]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut replay.stdin.take().unwrap(), said.as_bytes()).unwrap();
    assert!(replay.wait().unwrap().success());
    let heard = |node: &Node| -> usize {
        let text = cloud.lab.machine(*node).shell("nft list table inet heard").unwrap();
        text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    wait_for("all of it was heard", PATIENCE, || {
        Ok((hosts.iter().map(heard).sum::<usize>() >= 2 * count).then_some(()))
    })
    .unwrap();
    assert_eq!(believed(cloud), before);
    hosts.iter().for_each(|node| cloud.lab.machine(*node).wait_nothing_to_do().unwrap());
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
    // A third compute host, with mistakes that its daemon starts with.
    let odd = Node::Compute(3);
    set_up_wrongly(&cloud, odd);
    let (router, floating) = furnish(&mut cloud);
    for (name, network, host) in [("vm3", "second", odd), ("vm4", "private", Node::Compute(2))] {
        cloud.member.ok(&format!("port create {name}-port --network {network}")).unwrap();
        cloud.lab.add_instance(name, &format!("{name}-port"), host).unwrap();
    }
    wait_told(&cloud, odd);

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

    // The mistakes are mended, and the clock is not: it harms nobody.
    set_right(&cloud, odd);
    wait_for("the instance of the host that was wrongly set up reaches the world", PATIENCE, || {
        cloud.lab.instance_shell("vm3", "evergate lab fetch http://198.51.100.10/").map(Some)
    })
    .unwrap();
    cloud.lab.machine(odd).wait_nothing_to_do().unwrap();

    // Compute hosts that do not hear of a takeover, each in its way, and of another one. The server is stopped.
    let server = Fault::Process(Daemon::Server, Signal::Stop);
    cloud.lab.fail(Node::Controller, server.clone()).unwrap();
    let all = |signal| [Daemon::Host, Daemon::Control, Daemon::Keeper].map(|daemon| Fault::Process(daemon, signal));
    let links = [Fault::Cut(Link::Uplink), Fault::Cut(Link::Underlay)];
    let away = |number, instance, how, faults| Away { node: Node::Compute(number), instance, how, faults };
    let recorders = cloud.lab.hosts_of(router).into_iter().filter(|node| *node != active).map(|node| {
        let mut recorder = End::run(cloud.lab.machine(node).command("python3").unwrap(), RECORD, &[CLAIM_PORT]);
        assert_eq!(recorder.says(), "ready");
        (node, recorder)
    });
    let recorders: Vec<_> = recorders.collect();
    let suspended = all(Signal::Stop).into_iter().chain(links.clone()).collect();
    let next = take_over_unheard(
        &cloud,
        router,
        &[
            away(1, "vm1", "its links were cut", links.to_vec()),
            away(2, "vm4", "it was suspended", suspended),
            away(3, "vm3", "its daemons were killed", all(Signal::Kill).to_vec()),
        ],
    );
    let recorder = recorders.into_iter().find(|(node, _)| *node == next);
    let (_, mut recorder) = recorder.unwrap();
    recorder.go();
    let said = recorder.says();
    let last = take_over_unheard(
        &cloud,
        router,
        &[
            away(1, "vm1", "its keeper was stopped", vec![Fault::Process(Daemon::Keeper, Signal::Stop)]),
            away(2, "vm4", "it had no power", vec![Fault::Power]),
            away(3, "vm3", "its control was stopped", vec![Fault::Process(Daemon::Control, Signal::Stop)]),
        ],
    );
    assert_ne!(last, next);
    repeat_late(&cloud, &said);
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [last]);
    cloud.wait_instance_reaches_the_world();
    cloud.lab.heal(Node::Controller, &server).unwrap();
    cloud.wait_shown_active("router1", last);
}
