//! The real thing on a host of its own: namespaces for network and mounts, the real kernel, the real
//! processes, and a server that this test plays. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod common;
mod host;
mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use common::{PROJECT_NETWORK, ROUTER, add_ha_router, add_port, base, many_routers, port, port_id, remove_router};
use evergate_hostd::view::HostView;
use evergate_kernel::sys::{self, Signal};
use evergate_model::host::{AddressMode, HaStateReport, HostConfig, Location, RouterAdvertisement};
use evergate_model::{FloatingIpId, HaState, names};
use host::{Host, on_a_host};

/// A router with a single copy: it is active as soon as it may.
fn single_copy(revision: u64) -> HostConfig {
    let mut config = base(revision);
    add_ha_router(&mut config);
    config.routers.get_mut(&ROUTER).unwrap().ha.as_mut().unwrap().peers.clear();
    config
}

fn is_active(host: &Host) -> bool {
    host.server.last_report().is_some_and(|r| r.ha_states.get(&ROUTER).is_some_and(|s| s.state == HaState::Active))
}

fn start_active(host: &mut Host) {
    host.server.set_config(single_copy(5));
    host.start();
    host.wait("the router is reported active", is_active);
}

/// The project network has an IPv6 subnet whose instances make their addresses from what the router advertises.
fn with_slaac(mut config: HostConfig) -> HostConfig {
    let interface = config.routers.get_mut(&ROUTER).unwrap().interfaces.get_mut(&port_id(0x20)).unwrap();
    interface.addresses.push("2001:db8:1::1/64".parse().unwrap());
    interface.advertisement = Some(RouterAdvertisement {
        prefixes: [("2001:db8:1::/64".parse().unwrap(), AddressMode::Slaac)].into(),
        dns_servers: Vec::new(),
    });
    add_port(
        &mut config,
        PROJECT_NETWORK,
        port_id(0x60),
        port(0x60, &["2001:db8:1::f816:3eff:fe00:60"], Location::Local),
    );
    config
}

/// An instance behind port 0x60, which believes in router advertisements as any does.
fn start_instance(host: &Host) {
    // In this test's own view of the file system, the name is nobody else's.
    let script = "mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; ip netns add vm; ip link add tap00600000-00 type veth peer name eth0 netns vm; \
                  ip netns exec vm sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.forwarding=0; \
                  ip -n vm link set eth0 address fa:16:3e:00:00:60 up; ip link set tap00600000-00 up";
    host.run(&["sh", "-ec", script]);
}

fn instance(host: &Host, words: &str) -> String {
    host.run(&["sh", "-ec", &format!("ip -n vm -6 {words}")])
}

fn addresses(host: &Host) -> String {
    let netns = format!("--net={}", host.netns_path().display());
    // Empty while the namespace is not there, or is just being made.
    let done = Command::new("nsenter").args([&netns, "ip", "-o", "-4", "address", "show"]).output().unwrap();
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_router_is_built_becomes_active_and_is_described() {
    on_a_host("built", |host| {
        start_active(host);
        let seen = addresses(host);
        for address in ["169.254.0.7/24", "10.0.0.1/24", "203.0.113.10/24"] {
            assert!(seen.contains(address), "{address} in {seen}");
        }
        host.wait("the floating IP is reported to work", |host| {
            host.server.last_report().unwrap().floating_ips_active.contains(&FloatingIpId::from_u128(1))
        });
        let report = host.server.last_report().unwrap();
        assert_eq!(report.applied_revision, Some(5));
        let up: BTreeSet<_> = [0x10, 0x20, 0x30].map(port_id).into();
        assert_eq!(report.ports_up, up);
        assert!(!report.warnings.iter().any(|w| w.contains("router")), "{:?}", report.warnings);

        let confs = host.ha_confs();
        host.wait("the role is in its file", |_| std::fs::read(confs.join("state")).is_ok_and(|s| s == b"primary"));
        let log = std::fs::read_to_string(confs.join("neutron-keepalived-state-change.log")).unwrap();
        assert!(log.contains("transition to master"), "{log}");
        assert!(std::fs::read_to_string(confs.join("keepalived.conf")).unwrap().contains("virtual_router_id 7"));

        assert_eq!(host.plan(), "# nothing to do\n");
        let shown = host.show();
        assert!(shown.server.connected && shown.keeper.connected);
        assert_eq!((shown.routers[&ROUTER].role.as_str(), shown.revision), ("active", Some(5)));
        let text = host.verb(&["show", "router", "a000"]).0;
        assert!(text.contains("role        active") && text.contains("VRID 7"), "{text}");
    });
}

#[test]
fn killing_control_disturbs_nothing_and_its_successor_finds_nothing_to_do() {
    on_a_host("killed", |host| {
        start_active(host);
        let before = (addresses(host), host.keeper_pid());
        let epoch = host.server.last_report().unwrap().ha_states[&ROUTER].epoch;
        let incarnation = host.server.last_report().unwrap().incarnation;
        sys::kill(host.control_pid(), Signal::Kill).unwrap();
        host.wait("another control reports", |host| {
            host.server.last_report().is_some_and(|r| r.incarnation != incarnation && r.applied_revision == Some(5))
        });
        host.wait("it knows the role", is_active);
        assert_eq!((addresses(host), host.keeper_pid()), before);
        let state = host.server.last_report().unwrap().ha_states[&ROUTER];
        assert_eq!(state, HaStateReport { state: HaState::Active, epoch });
        let shown = host.show();
        assert_eq!(shown.last_round.unwrap().ops, 0);
        assert_eq!(host.plan(), "# nothing to do\n");
    });
}

#[test]
fn instances_learn_of_a_router_by_its_advertisements_and_of_its_end() {
    on_a_host("advertised", |host| {
        start_instance(host);
        host.server.set_config(with_slaac(single_copy(5)));
        host.start();
        host.wait("the instance has a default route", |host| {
            instance(host, "route show default").contains("via fe80::f816:3eff:fe00:20 dev eth0 proto ra")
        });
        host.wait("it has made an address", |host| {
            instance(host, "address show eth0").contains("2001:db8:1:0:f816:3eff:fe00:60/64 scope global dynamic")
                || instance(host, "address show eth0").contains("2001:db8:1::f816:3eff:fe00:60/64 scope global")
        });
        host.wait("the router answers", |host| {
            !host
                .run(&["sh", "-c", "ip netns exec vm ping -6 -c1 -W1 2001:db8:1::1 || true"])
                .contains("100% packet loss")
        });
        let mtu = host.run(&["ip", "netns", "exec", "vm", "sysctl", "-n", "net.ipv6.conf.eth0.mtu"]);
        assert_eq!(mtu.trim(), "1450", "the network's MTU");
        assert_eq!(host.plan(), "# nothing to do\n");

        // A keeper that starts anew advertises what it finds active; nothing was said to have ended.
        sys::kill(host.keeper_pid(), Signal::Kill).unwrap();
        host.run(&["ip", "-n", "vm", "-6", "route", "flush", "proto", "ra"]);
        host.wait("the instance has heard of the router again", |host| {
            instance(host, "route show default").contains("via fe80::f816:3eff:fe00:20")
        });

        let mut config = with_slaac(single_copy(6));
        config.routers.get_mut(&ROUTER).unwrap().interfaces.clear();
        host.server.set_config(config);
        host.wait("the instance has no default route any more", |host| instance(host, "route show default").is_empty());
    });
}

#[test]
fn a_legacy_router_advertises_itself_and_answers_who_asks() {
    on_a_host("asked", |host| {
        let mut config = with_slaac(single_copy(5));
        config.routers.get_mut(&ROUTER).unwrap().ha = None;
        host.server.set_config(config);
        host.start();
        host.wait("the configuration is applied", |host| {
            host.server.last_report().is_some_and(|report| report.applied_revision == Some(5))
        });
        // It asks as it starts: the next advertisement to everybody may be most of a minute away.
        start_instance(host);
        host.wait("the instance has a default route", |host| {
            instance(host, "route show default").contains("via fe80::f816:3eff:fe00:20 dev eth0 proto ra")
        });
    });
}

#[test]
fn a_deleted_router_leaves_nothing() {
    on_a_host("deleted", |host| {
        start_active(host);
        let mut config = single_copy(6);
        remove_router(&mut config);
        config.networks.clear();
        host.server.set_config(config);
        host.wait("all of it is gone", |host| {
            let links = host.run(&["ip", "-o", "link"]);
            !host.netns_path().exists() && !["brq", "tap", "vxlan-"].iter().any(|name| links.contains(name))
        });
        host.wait("its files are gone", |host| !host.ha_confs().exists());
        host.wait("that is reported", |host| host.server.last_report().unwrap().applied_revision == Some(6));
        assert!(host.server.last_report().unwrap().ha_states.is_empty());
    });
}

#[test]
fn version_3_and_its_interval_come_from_the_configuration() {
    on_a_host("version3", |host| {
        host.configure("vrrp_version = 3\nvrrp_advert_interval_ms = 100\n");
        start_active(host);
        let script = "timeout 30 tcpdump -lnv -c 1 -i any 'ip proto 112' 2>/dev/null";
        let heard = host.run(&["nsenter", &format!("--net={}", host.netns_path().display()), "sh", "-c", script]);
        assert!(heard.contains("VRRPv3") && heard.contains("intvl 10cs"), "{heard}");
        let text = std::fs::read_to_string(host.ha_confs().join("keepalived.conf")).unwrap();
        assert!(text.contains("vrrp_version 3\n") && text.contains("advert_int 0.1\n"), "{text}");
        assert_eq!(host.plan(), "# nothing to do\n");
    });
}

#[test]
fn a_clean_stop_resigns_and_keeps_the_namespace() {
    on_a_host("stopped", |host| {
        start_active(host);
        host.stop();
        let seen = addresses(host);
        assert!(seen.contains("169.254.192.11/18"), "the HA address is control's: {seen}");
        assert!(!seen.contains("169.254.0.7/24") && !seen.contains("10.0.0.1/24"), "{seen}");
        let report = host.server.last_report().unwrap();
        assert_eq!(report.ha_states[&ROUTER].state, HaState::Standby, "the last report says so");
        let log = host.ha_confs().join("neutron-keepalived-state-change.log");
        assert!(std::fs::read_to_string(log).unwrap().lines().last().unwrap().contains("transition to backup"));
    });
}

#[test]
fn a_host_that_starts_without_its_server_does_what_it_did() {
    on_a_host("alone", |host| {
        start_active(host);
        host.stop();
        sys::unmount(&host.netns_path()).unwrap();
        std::fs::remove_file(host.netns_path()).unwrap();
        host.server.refuse(true);
        host.start();
        host.wait("the router is back", |host| {
            host.netns_path().exists() && addresses(host).contains("169.254.0.7/24")
        });
        host.wait("what is wrong with the server is shown", |host| {
            host.show().server.error.is_some_and(|error| error.contains("status 503"))
        });
        assert!(host.show().from_cache && !host.show().server.connected);
        host.server.refuse(false);
        host.wait("the server is followed again", |host| !host.show().from_cache);
    });
}

#[test]
fn a_foreign_bridge_by_our_name_is_left_alone_and_explained() {
    on_a_host("foreign", |host| {
        let bridge = names::bridge(PROJECT_NETWORK);
        host.run(&["ip", "link", "add", &bridge, "type", "bridge"]);
        host.server.set_config(single_copy(5));
        host.start();
        let explained = |text: &str| text.contains(&bridge) && text.contains("not made by Evergate");
        host.wait("the server is told", |host| {
            host.server.last_report().is_some_and(|r| r.warnings.iter().any(|w| explained(w)))
        });
        assert!(host.show().problems.iter().any(|p| explained(p)));
        assert!(explained(&host.plan()), "{}", host.plan());
        let link = host.run(&["ip", "-d", "link", "show", &bridge]);
        assert!(!link.contains("alias") && link.contains("state DOWN"), "{link}");
        host.run(&["ip", "link", "delete", &bridge]);
        host.wait("it is made when its place is free", |host| {
            host.run(&["ip", "-o", "link"]).lines().any(|l| l.contains(&bridge) && l.contains("alias evergate"))
        });
    });
}

#[test]
fn a_tap_that_appears_is_plugged_in_at_once() {
    on_a_host("tap", |host| {
        let mut config = base(5);
        add_port(&mut config, PROJECT_NETWORK, port_id(0x60), port(0x60, &["10.0.0.60"], Location::Local));
        host.server.set_config(config);
        host.start();
        host.wait("the host is ready", |host| host.server.last_report().is_some_and(|r| r.applied_revision == Some(5)));
        host.run(&["ip", "link", "add", "tap00600000-00", "type", "veth", "peer", "name", "instance"]);
        host.wait("the port is reported up", |host| {
            host.server.last_report().unwrap().ports_up.contains(&port_id(0x60))
        });
        let log = host.log();
        let plugged = |line: &str| line.contains("reconciled") && line.contains("link tap00600000-00");
        assert!(log.lines().any(plugged), "not by a round because of it: {log}");
        let link = host.run(&["ip", "-o", "link", "show", "tap00600000-00"]);
        assert!(link.contains(&format!("master {}", names::bridge(PROJECT_NETWORK))), "{link}");
    });
}

#[test]
fn many_routers_come_and_go() {
    on_a_host("many", |host| {
        let active = |host: &Host| {
            let is_active = |s: &&HaStateReport| s.state == HaState::Active;
            host.server.last_report().map_or(0, |r| r.ha_states.values().filter(is_active).count())
        };
        host.server.set_config(many_routers(12, 5));
        host.start();
        host.wait("all are active", |host| active(host) == 12);
        host.server.set_config(many_routers(13, 6));
        host.wait("one more is active", |host| active(host) == 13);
        host.server.set_config(base(7));
        host.wait("all are gone", |host| host.server.last_report().unwrap().applied_revision == Some(7));
        assert_eq!(std::fs::read_dir(host.netns_path().parent().unwrap()).unwrap().count(), 0);
        assert!(!host.run(&["ip", "-o", "link"]).contains("tap"));
        assert!(!host.log().contains("WARN"), "{}", host.log());
    });
}

#[test]
fn a_supervisor_keeps_what_runs_and_there_is_only_one() {
    on_a_host("supervisor", |host| {
        start_active(host);
        let pids = (host.keeper_pid(), host.control_pid());
        let (_, error) = host.verb(&["host"]);
        assert!(error.contains("a host daemon runs already"), "{error}");
        sys::kill(host.supervisor_pid(), Signal::Kill).unwrap();
        host.start();
        host.wait("both are found", |host| host.log().matches("runs already; keeping it").count() == 2);
        assert_eq!((host.keeper_pid(), host.control_pid()), pids);
        sys::kill(pids.0, Signal::Kill).unwrap();
        host.wait("there is another keeper", |host| host.keeper_pid() != pids.0 && host.keeper_pid() != 0);
        host.wait("it resumes", |host| host.show().keeper.pid == Some(host.keeper_pid()) && is_active(host));
        assert_eq!(host.control_pid(), pids.1);
        sys::kill(host.supervisor_pid(), Signal::Hup).unwrap();
        host.wait("control reads its files again", |host| ![0, pids.1].contains(&host.control_pid()));
        host.stop();
        assert_eq!((host.keeper_pid(), host.control_pid()), (0, 0));
    });
}

#[test]
fn verbs_explain_themselves_where_no_daemon_runs() {
    on_a_host("verbs", |host| {
        let (_, error) = host.verb(&["show"]);
        assert!(error.contains("control does not run") && error.contains("control.sock"), "{error}");
        let (_, error) = host.verb(&["plan"]);
        assert!(error.contains("host-config.json"), "{error}");
        let state = host.state_path();
        std::fs::create_dir_all(&state).unwrap();
        evergate_hostd::cache::save(Path::new(&state), &single_copy(9)).unwrap();
        let (plan, note) = host.verb(&["plan"]);
        assert!(plan.contains("ip netns add") && note.contains("revision 9"), "{plan} {note}");
        let (config, _) = host.verb(&["host", "--check-config"]);
        assert!(config.contains("local_ip = 192.0.2.11"), "{config}");
    });
}

#[test]
fn the_view_survives_json() {
    let view: HostView = serde_json::from_str(&serde_json::to_string(&HostView::default()).unwrap()).unwrap();
    assert_eq!(view, HostView::default());
}
