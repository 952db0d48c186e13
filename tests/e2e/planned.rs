//! Planned moves lose nothing: no packet, and no connection.

use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Node, wait_for};
use evergate_model::RouterId;
use serde_json::json;

use crate::connections::{End, tracked};
use crate::support::{Cloud, PATIENCE};

const DEVICES: [&str; 3] = ["ha-", "qr-", "qg-"];

/// What goes through a router: a probe of one datagram per millisecond, a hundred connections through source NAT
/// and a hundred to a floating IP, half of which the server uses first.
struct Traffic {
    probe: Running,
    servers: [End; 2],
    clients: [End; 2],
}

impl Traffic {
    /// Makes the instances, one of them with a floating IP, and lets them talk.
    fn start(cloud: &mut Cloud) -> Self {
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
        let python = |name: &str| cloud.lab.instance_command(name, "python3").unwrap();
        let web = || cloud.lab.machine(Node::Web).command("python3").unwrap();
        let mut servers = [End::start(web(), &["serve", "9000"]), End::start(python("vm1"), &["serve", "9001"])];
        assert_eq!(servers.each_mut().map(End::says), ["ready", "ready"]);
        let out = End::start(python("vm2"), &["connect", "198.51.100.10", "9000", "100"]);
        let mut clients = [out, End::start(web(), &["connect", &floating, "9001", "100"])];
        assert_eq!(clients.each_mut().map(End::says), ["ready", "ready"]);
        let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(1)).unwrap();
        cloud.wait_instance_reaches_the_world();
        Self { probe, servers, clients }
    }

    /// Ends it, after everything was used once more.
    fn finish_unharmed(mut self, cloud: &Cloud) {
        cloud.wait_instance_reaches_the_world();
        let report = self.probe.finish().unwrap();
        eprintln!("{report}");
        assert!(report.is_unharmed(), "{report}");
        for server in &mut self.servers {
            server.go();
            assert_eq!(server.says(), "pushed");
        }
        for client in &mut self.clients {
            client.go();
            assert_eq!(client.says(), "alive 100 of 100, udp same");
        }
    }
}

fn wait_all_copies(cloud: &Cloud, router: RouterId) -> Node {
    cloud.lab.wait_copies(router, 3, &DEVICES).unwrap()
}

/// Restarts a daemon with everything that it supervises, as an upgrade does.
pub(crate) fn stop_and_start(cloud: &Cloud, node: Node, daemon: Daemon) {
    let stop = Fault::Process(daemon, Signal::Term);
    let parts: &[Daemon] = if daemon == Daemon::Host { &[daemon, Daemon::Control, Daemon::Keeper] } else { &[daemon] };
    let running = |part: &Daemon| !cloud.lab.machine(node).daemons(*part).is_empty();
    cloud.lab.fail(node, stop.clone()).unwrap();
    wait_for("it has stopped", PATIENCE, || Ok((!parts.iter().any(running)).then_some(()))).unwrap();
    cloud.lab.heal(node, &stop).unwrap();
    wait_for("it runs again", PATIENCE, || Ok(parts.iter().all(running).then_some(()))).unwrap();
}

/// Kills a daemon, and waits for the one that takes its place.
pub(crate) fn kill(cloud: &Cloud, node: Node, daemon: Daemon) {
    let pids = || cloud.lab.machine(node).daemons(daemon).iter().map(|process| process.pid).collect::<Vec<_>>();
    let found = || {
        let log = std::fs::read_to_string(cloud.lab.machine(node).log_path("host")).unwrap_or_default();
        log.matches("control runs already").count()
    };
    let (old, times, killed) = (pids(), found(), Fault::Process(daemon, Signal::Kill));
    cloud.lab.fail(node, killed.clone()).unwrap();
    wait_for("it is gone", PATIENCE, || Ok((pids() != old).then_some(()))).unwrap();
    if daemon == Daemon::Host {
        // Of the others, their supervisor takes care.
        cloud.lab.heal(node, &killed).unwrap();
        // Before that it does not listen to signals yet.
        wait_for("it has found the others", PATIENCE, || Ok((found() > times).then_some(()))).unwrap();
    }
    wait_for("another one runs", PATIENCE, || Ok((!pids().is_empty()).then_some(()))).unwrap();
}

#[test]
fn every_daemon_is_restarted_in_turn_and_no_packet_or_connection_is_lost() {
    let mut cloud = Cloud::up("rolling", Some(1));
    let router = cloud.with_router();
    wait_all_copies(&cloud, router);
    let traffic = Traffic::start(&mut cloud);
    stop_and_start(&cloud, Node::Controller, Daemon::Server);
    for node in cloud.lab.spec().hosts() {
        kill(&cloud, node, Daemon::Control);
        // Control and keeper go on without it, and the next one finds them.
        kill(&cloud, node, Daemon::Host);
        stop_and_start(&cloud, node, Daemon::Host);
        wait_all_copies(&cloud, router);
        // A host that is not watched yet is not asked to take over.
        cloud.lab.wait_watching(router).unwrap();
    }
    traffic.finish_unharmed(&cloud);
    let active = cloud.lab.wait_active(router).unwrap();
    cloud.wait_shown_active("router1", active);
}

#[test]
fn a_clean_stop_hands_over_without_losing_a_packet_or_a_connection() {
    let mut cloud = Cloud::up("planned", Some(1));
    let router = cloud.with_router();
    let mut active = wait_all_copies(&cloud, router);
    let traffic = Traffic::start(&mut cloud);
    // Host after host, as in a rolling upgrade.
    for _ in 0..2 {
        stop_and_start(&cloud, active, Daemon::Host);
        let next = wait_all_copies(&cloud, router);
        assert_ne!(next, active);
        cloud.wait_shown_active("router1", next);
        active = next;
    }
    traffic.finish_unharmed(&cloud);
}

#[test]
fn hosts_that_are_restarted_without_waiting_and_keepers_alone_lose_no_packet_and_no_connection() {
    let mut cloud = Cloud::up_with("hasty", |spec| {
        spec.advert_int = Some(1);
        spec.network_hosts = 2;
    });
    let router = cloud.with_router();
    let mut active = cloud.lab.wait_copies(router, 2, &DEVICES).unwrap();
    let mut other = cloud.lab.hosts_of(router).into_iter().find(|node| *node != active).unwrap();
    cloud.lab.wait_watching(router).unwrap();
    let traffic = Traffic::start(&mut cloud);
    // Each is stopped as soon as the one before runs again: that one is the only other copy, and nobody knows yet that
    // it lives, nor does it hold any connections.
    for _ in 0..2 {
        stop_and_start(&cloud, other, Daemon::Host);
        stop_and_start(&cloud, active, Daemon::Host);
        assert_eq!(cloud.lab.wait_active(router).unwrap(), other);
        (active, other) = (other, active);
    }
    cloud.lab.wait_copies(router, 2, &DEVICES).unwrap();
    cloud.lab.wait_watching(router).unwrap();

    // A keeper that is replaced in place: its router stays where it is.
    let machine = cloud.lab.machine(active);
    for _ in 0..3 {
        let old = machine.daemons(Daemon::Keeper)[0].pid;
        cloud.lab.fail(active, Fault::Process(Daemon::Keeper, Signal::Hup)).unwrap();
        wait_for("a new keeper runs", PATIENCE, || {
            Ok(machine.daemons(Daemon::Keeper).iter().any(|process| process.pid != old).then_some(()))
        })
        .unwrap();
        cloud.lab.wait_watching(router).unwrap();
        assert_eq!(cloud.lab.wait_active(router).unwrap(), active);
    }
    let history = machine.shell(&format!("evergate show router {router} --history")).unwrap();
    assert!(history.contains("was active when the keeper was restarted"), "{history}");
    // And one that is stopped alone hands over, and comes back.
    let old = machine.daemons(Daemon::Keeper)[0].pid;
    cloud.lab.fail(active, Fault::Process(Daemon::Keeper, Signal::Term)).unwrap();
    wait_for("a new keeper runs", PATIENCE, || {
        Ok(machine.daemons(Daemon::Keeper).iter().any(|process| process.pid != old).then_some(()))
    })
    .unwrap();
    assert_eq!(cloud.lab.wait_active(router).unwrap(), other);
    traffic.finish_unharmed(&cloud);
}

#[test]
fn a_drained_host_loses_its_routers_and_no_packet_or_connection_until_it_is_undrained() {
    let mut cloud = Cloud::up_with("drain", |spec| {
        spec.advert_int = Some(1);
        // Time enough for verbs that fail because a host is silent, before the server takes it for dead.
        spec.agent_down_time = Some(20);
    });
    let router = cloud.with_router();
    let active = wait_all_copies(&cloud, router);
    cloud.wait_shown_active("router1", active);
    let verb = |cloud: &Cloud, verb: &str| {
        cloud.lab.machine(Node::Controller).shell(&format!("evergate {verb} {active}")).unwrap()
    };
    let traffic = Traffic::start(&mut cloud);
    let said = verb(&cloud, "drain");
    assert!(said.ends_with(&format!("{active} is drained\n")), "{said}");
    wait_for("nothing of the router is left on the drained host", PATIENCE, || {
        Ok((!cloud.lab.hosts_of(router).contains(&active)).then_some(()))
    })
    .unwrap();
    let next = cloud.lab.wait_active(router).unwrap();
    verb(&cloud, "undrain");
    wait_all_copies(&cloud, router);
    wait_for("the copy that came back is told of all connections", PATIENCE, || {
        Ok((tracked(&cloud, active, router)? >= 200).then_some(()))
    })
    .unwrap();
    traffic.finish_unharmed(&cloud);
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [next]);

    // It is moved back by hand; and taken to be its place, to which it returns.
    let controller = |command: &str| cloud.lab.machine(Node::Controller).shell(command).unwrap();
    let probe = Running::start(&cloud.lab, "vm1", Duration::from_millis(1)).unwrap();
    cloud.wait_instance_reaches_the_world();
    let said = controller(&format!("evergate router move router1 --to {active}"));
    assert_eq!(said, format!("router1 is active on {active}\n"));
    assert_eq!(cloud.lab.wait_active(router).unwrap(), active);
    let body = json!({"router": {"evergate:preferred_host": next.to_string(), "evergate:preempt": true}});
    cloud.lab.api_ok("PUT", &format!("/v2.0/routers/{router}"), Some(&body)).unwrap();
    wait_for("it is where it belongs", PATIENCE, || Ok((cloud.lab.active_hosts(router)? == [next]).then_some(())))
        .unwrap();
    cloud.wait_instance_reaches_the_world();
    let report = probe.finish().unwrap();
    assert!(report.is_unharmed(), "{report}");

    // It does not belong anywhere any more, and is wanted where it cannot go.
    let body = json!({"router": {"evergate:preferred_host": null, "evergate:preempt": false}});
    cloud.lab.api_ok("PUT", &format!("/v2.0/routers/{router}"), Some(&body)).unwrap();
    verbs_end_when_they_cannot_do_what_they_are_asked(&cloud, router, next);
}

/// What an operator is told, and in time, where a verb waits for a process that is stopped.
fn verbs_end_when_they_cannot_do_what_they_are_asked(cloud: &Cloud, router: RouterId, active: Node) {
    let lab = &cloud.lab;
    let other = lab.hosts_of(router).into_iter().find(|node| *node != active).unwrap();
    let refused = |node: Node, command: &str| {
        let done = lab.machine(node).command("sh").unwrap().args(["-c", command]).output().unwrap();
        assert!(!done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stdout));
        String::from_utf8(done.stderr).unwrap()
    };
    let stopped = Fault::Process(Daemon::Keeper, Signal::Stop);
    lab.fail(other, stopped.clone()).unwrap();
    std::thread::scope(|scope| {
        let moved = scope
            .spawn(|| refused(Node::Controller, &format!("evergate router move router1 --to {other} --timeout 6")));
        wait_for("the active copy's host shows where the router is wanted", PATIENCE, || {
            let shown = lab.machine(active).shell(&format!("evergate show router {router}"))?;
            Ok(shown.lines().any(|line| line.starts_with("wanted at")).then_some(()))
        })
        .unwrap();
        let said = moved.join().unwrap();
        assert!(said.contains(&format!("router1 is still active on {active}; does {other} live")), "{said}");
    });
    let shown = lab.api_ok("GET", &format!("/v2.0/routers/{router}"), None).unwrap();
    assert!(shown["router"]["evergate:move_to"].is_null(), "the wish is taken back: {shown}");
    lab.heal(other, &stopped).unwrap();
    lab.wait_watching(router).unwrap();
    assert_eq!(lab.active_hosts(router).unwrap(), [active]);

    let stopped = Fault::Process(Daemon::Control, Signal::Stop);
    lab.fail(active, stopped.clone()).unwrap();
    // First, as the server takes the host for dead after a while.
    let said = refused(Node::Controller, &format!("evergate drain {active} --timeout 2"));
    assert!(said.contains(&format!("still active on {active}: {router}")) && said.contains("reported last"), "{said}");
    lab.machine(Node::Controller).shell(&format!("evergate undrain {active}")).unwrap();
    for verb in ["show", "plan"] {
        let said = refused(active, &format!("evergate {verb}"));
        assert!(said.contains("control (process ") && said.contains("was stopped (SIGSTOP)"), "{verb}: {said}");
    }
    wait_for("drain refuses a host that is not heard", PATIENCE, || {
        let drain = format!("evergate drain {active} --timeout 2 2>&1; evergate undrain {active}");
        Ok(lab.machine(Node::Controller).shell(&drain)?.contains("is not alive").then_some(()))
    })
    .unwrap();
    lab.heal(active, &stopped).unwrap();
    lab.wait_active(router).unwrap();
}
