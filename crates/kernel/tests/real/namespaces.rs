use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use evergate_dataplane::Op;
use evergate_dataplane::state::{KernelState, LinkKind, Netns, NetnsState};
use evergate_kernel::rt::NetnsFd;

use crate::sandbox::*;

#[test]
fn a_namespace_shows_in_ip_netns_with_its_mark_and_loopback_up() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("qrouter-1")]);
    assert_eq!(run("ip netns list").trim(), "qrouter-1");
    let lo = run("ip -n qrouter-1 link show lo");
    assert!(lo.contains("UP") && lo.contains(&format!("alias {ALIAS}")), "{lo}");
    let seen = observe(&mut kernel, &named("qrouter-1"));
    assert!(seen.owned);
    let lo = &seen.links["lo"];
    assert_eq!((&lo.kind, lo.up, lo.alias.as_deref()), (&LinkKind::Loopback, true, Some(ALIAS)));
}

#[test]
fn adding_twice_and_deleting_twice_succeed() {
    let mut kernel = host();
    let again = Op::AddNetns { name: "qrouter-1".to_owned(), alias: "evergate: other".to_owned() };
    apply(&mut kernel, &[add_netns("qrouter-1"), add_netns("qrouter-1"), again]);
    let seen = observe(&mut kernel, &named("qrouter-1"));
    assert_eq!(seen.links["lo"].alias.as_deref(), Some("evergate: other"));
    let delete = Op::DeleteNetns { name: "qrouter-1".to_owned() };
    apply(&mut kernel, &[delete.clone(), delete]);
    assert_eq!(run("ip netns list"), "");
    assert_eq!(fs::read_dir(NETNS_PATH).unwrap().count(), 0);
}

#[test]
fn a_foreign_namespace_is_neither_taken_nor_deleted() {
    let mut kernel = host();
    run("ip netns add qrouter-1; ip netns add other");
    let error = refused(&mut kernel, add_netns("qrouter-1")).full();
    assert_eq!(
        error,
        "failed to add network namespace qrouter-1: a network namespace of this name exists that Evergate did not make"
    );
    let error = refused(&mut kernel, Op::DeleteNetns { name: "qrouter-1".to_owned() }).full();
    assert_eq!(error, "failed to delete network namespace qrouter-1: Evergate did not make it");
    let wanted = NetnsState { owned: true, ..NetnsState::default() };
    let desired = KernelState { netns: [(named("qrouter-1"), wanted)].into() };
    for _ in 0..2 {
        let state = kernel.observe(&desired).unwrap();
        assert_eq!(state.netns[&named("qrouter-1")], NetnsState::default());
        assert!(!state.netns.contains_key(&named("other")));
    }
}

#[test]
fn a_namespace_that_was_exchanged_behind_our_back_is_noticed() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), bridge(&named("ns"), "br")]);
    run("ip netns del ns; ip netns add ns; ip -n ns link set lo alias 'evergate: test'");
    assert!(!observe(&mut kernel, &named("ns")).links.contains_key("br"));
    run("ip netns del ns");
    assert!(!kernel.observe(&KernelState::default()).unwrap().netns.contains_key(&named("ns")));
    let error = refused(&mut kernel, bridge(&named("ns"), "br")).full();
    assert_eq!(error, "failed to add bridge br in ns: there is no network namespace ns");
}

#[test]
fn a_deleted_namespace_that_somebody_still_uses_loses_our_links_at_once() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), veth("tap1", &named("ns"), "qr-1")]);
    // As the keeper's sockets, or a stock keepalived, would.
    let _user = NetnsFd::open(&Path::new(NETNS_PATH).join("ns")).unwrap();
    apply(&mut kernel, &[Op::DeleteNetns { name: "ns".to_owned() }]);
    assert_eq!(kernel.link_index(&Netns::Host, "tap1").unwrap(), None);
}

#[test]
fn a_file_that_an_interrupted_creation_left_is_no_obstacle() {
    let mut kernel = host();
    fs::create_dir_all(NETNS_PATH).unwrap();
    fs::write(Path::new(NETNS_PATH).join("ns"), "").unwrap();
    assert!(!kernel.observe(&KernelState::default()).unwrap().netns.contains_key(&named("ns")));
    apply(&mut kernel, &[add_netns("ns")]);
    assert!(observe(&mut kernel, &named("ns")).owned);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut kernel = host();
    for name in ["", ".", "..", "../../etc/x", "a/b"] {
        let error = refused(&mut kernel, add_netns(name)).full();
        assert!(error.contains("cannot be the name of a network namespace"), "{error}");
    }
    let op = Op::SetSysctl { netns: Netns::Host, path: "../kernel/hostname".to_owned(), value: "x".to_owned() };
    let error = refused(&mut kernel, op).full();
    assert!(error.ends_with("'../kernel/hostname' is not a path below /proc/sys/net"), "{error}");
}

#[test]
fn the_hosts_own_namespace_is_not_seen_twice_though_it_has_a_name() {
    let mut kernel = host();
    run("mkdir -p /run/netns; touch /run/netns/me; mount --bind /proc/self/ns/net /run/netns/me");
    run("ip link set lo alias 'evergate: host'");
    let state = kernel.observe(&KernelState::default()).unwrap();
    assert_eq!(state.netns.keys().collect::<Vec<_>>(), [&Netns::Host]);
}

#[test]
fn settings_are_written_and_read_inside_their_namespace() {
    let mut kernel = host();
    let set =
        |path: &str, value: &str| Op::SetSysctl { netns: named("ns"), path: path.to_owned(), value: value.to_owned() };
    apply(
        &mut kernel,
        &[
            add_netns("ns"),
            bridge(&named("ns"), "br"),
            set("ipv4/ip_forward", "1"),
            set("ipv6/conf/br/disable_ipv6", "1"),
            set("ipv4/ip_local_port_range", "2000 3000"),
        ],
    );
    assert_eq!(run("ip netns exec ns sysctl -n net.ipv4.ip_forward").trim(), "1");
    assert_eq!(run("sysctl -n net.ipv4.ip_forward").trim(), "0");
    let asked =
        ["ipv4/ip_forward", "ipv6/conf/br/disable_ipv6", "ipv4/ip_local_port_range", "ipv4/conf/gone/rp_filter"];
    let sysctls = asked.map(|path| (path.to_owned(), String::new())).into();
    let desired = KernelState { netns: [(named("ns"), NetnsState { sysctls, ..NetnsState::default() })].into() };
    let seen = &kernel.observe(&desired).unwrap().netns[&named("ns")].sysctls;
    let seen: Vec<_> = seen.iter().map(|(path, value)| format!("{path}={value}")).collect();
    assert_eq!(seen, ["ipv4/ip_forward=1", "ipv4/ip_local_port_range=2000 3000", "ipv6/conf/br/disable_ipv6=1"]);
    let error = refused(&mut kernel, set("ipv4/conf/gone/rp_filter", "2")).full();
    assert_eq!(error, "failed to set ipv4/conf/gone/rp_filter to 2 in ns: No such file or directory (os error 2)");
}

#[test]
fn code_runs_inside_a_namespace_and_the_caller_stays_outside() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), bridge(&named("ns"), "br")]);
    let netns = NetnsFd::open(&Path::new(NETNS_PATH).join("ns")).unwrap();
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(netns.run(devices).unwrap().contains("br:"));
    assert!(!devices().contains("br:"));
    let copy = netns.try_clone().unwrap();
    assert_ne!(copy.as_raw_fd(), netns.as_raw_fd());
    drop(netns);
    assert!(copy.run(devices).unwrap().contains("br:"));
    assert!(NetnsFd::open(Path::new("/etc/hostname")).unwrap_err().full().ends_with("is a file, not a namespace"));
}

#[test]
fn namespaces_are_deleted_together_with_both_ends_of_their_links() {
    let mut kernel = host();
    let names: Vec<String> = (0..10).map(|i| format!("n{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        apply(&mut kernel, &[add_netns(name), veth(&format!("tap{i}"), &named(name), "qr-1")]);
    }
    run("ip netns add foreign");
    let mut ops: Vec<Op> = names.iter().map(|name| Op::DeleteNetns { name: name.clone() }).collect();
    ops.insert(3, Op::DeleteNetns { name: "foreign".to_owned() });
    ops.insert(5, Op::DeleteNetns { name: "never".to_owned() });
    let results = kernel.apply(&ops);
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).map(|(i, _)| i).collect();
    assert_eq!(failed, [3]);
    let state = kernel.observe(&KernelState::default()).unwrap();
    assert!(state.netns.len() == 1 && state.netns[&Netns::Host].links.is_empty());
    assert_eq!(run("ip netns list").trim(), "foreign");
}
