use std::net::IpAddr;

use evergate_dataplane::Op;
use evergate_dataplane::state::{KernelState, LinkKind, NeighbourKey, Netns, NetnsState, Route, Rule};
use evergate_model::Mac;

use crate::sandbox::*;

const HOST: Netns = Netns::Host;

fn ns() -> Netns {
    named("ns")
}

fn add_route(route: Route) -> Op {
    Op::AddRoute { netns: ns(), route }
}

fn delete_route(route: Route) -> Op {
    Op::DeleteRoute { netns: ns(), route }
}

/// A namespace with a bridge and its address.
fn netns_with_bridge() -> evergate_kernel::Kernel {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), bridge(&ns(), "br"), add_address(&ns(), "br", "10.0.0.1/24")]);
    kernel
}

#[test]
fn addresses_come_and_go_without_duplicate_detection() {
    let mut kernel = netns_with_bridge();
    let more = [add_address(&ns(), "br", "2001:db8::1/64"), add_address(&ns(), "br", "169.254.0.7/24")];
    apply(&mut kernel, &more);
    apply(&mut kernel, &more);
    let shown = run("ip -n ns address show dev br");
    assert!(shown.contains("2001:db8::1/64 scope global nodad"), "{shown}");
    // Neutron lets the kernel make the route to the subnet.
    assert!(run("ip -n ns route").contains("10.0.0.0/24 dev br"));
    let expected = ["10.0.0.1/24", "169.254.0.7/24", "2001:db8::1/64"].map(|net| address("br", net));
    assert_eq!(observe(&mut kernel, &ns()).addresses, expected.into());
    let delete = delete_address(&ns(), "br", "10.0.0.1/24");
    apply(&mut kernel, &[delete.clone(), delete, delete_address(&ns(), "gone", "10.0.0.1/24")]);
    assert_eq!(observe(&mut kernel, &ns()).addresses.len(), 2);
}

#[test]
fn an_error_names_operation_object_place_and_cause() {
    let mut kernel = netns_with_bridge();
    let error = refused(&mut kernel, add_address(&ns(), "br9", "10.0.0.1/24"));
    assert_eq!(error.full(), "failed to add address 10.0.0.1/24 to br9 in ns: there is no link br9");
    let error = refused(&mut kernel, add_route(route("10.9.0.0/16", Some("192.0.2.9"), None)));
    assert_eq!(error.errno(), Some(libc::ENETUNREACH));
    assert_eq!(
        error.full(),
        "failed to add route 10.9.0.0/16 via 192.0.2.9 table 254 in ns: Nexthop has invalid gateway (Network is unreachable)"
    );
    assert_eq!(error.to_string(), "failed to add route 10.9.0.0/16 via 192.0.2.9 table 254 in ns");
}

#[test]
fn link_local_addresses_show_only_where_they_are_wanted() {
    let mut kernel = netns_with_bridge();
    let wanted = address("br", "fe80::1/64");
    apply(&mut kernel, &[add_address(&ns(), "br", "fe80::1/64")]);
    assert_eq!(observe(&mut kernel, &ns()).addresses, [address("br", "10.0.0.1/24")].into());
    let desired = NetnsState { addresses: [wanted.clone()].into(), ..NetnsState::default() };
    let state = kernel.observe(&KernelState { netns: [(ns(), desired)].into() }).unwrap();
    assert_eq!(state.netns[&ns()].addresses, [address("br", "10.0.0.1/24"), wanted].into());
}

#[test]
fn routes_are_added_replaced_and_deleted_in_any_table() {
    let mut kernel = netns_with_bridge();
    apply(&mut kernel, &[add_address(&ns(), "br", "2001:db8::1/64")]);
    let far = Route { table: 1000, ..route("192.168.0.0/16", Some("10.0.0.9"), Some("br")) };
    let routes = [
        route("198.51.100.1/32", None, Some("br")),
        route("0.0.0.0/0", Some("198.51.100.1"), Some("br")),
        route("::/0", Some("2001:db8::9"), Some("br")),
        far.clone(),
    ];
    let ops = routes.clone().map(add_route);
    apply(&mut kernel, &ops);
    apply(&mut kernel, &ops);
    assert!(run("ip -n ns route").contains("default via 198.51.100.1 dev br proto static"));
    assert_eq!(observe(&mut kernel, &ns()).routes, routes.clone().into());
    let moved = route("0.0.0.0/0", Some("10.0.0.3"), Some("br"));
    apply(&mut kernel, &[add_route(moved.clone()), delete_route(far.clone()), delete_route(far)]);
    let expected = [routes[0].clone(), routes[2].clone(), moved];
    assert_eq!(observe(&mut kernel, &ns()).routes, expected.into());
}

#[test]
fn foreign_routes_of_protocol_static_show_as_drift_in_our_namespaces_only() {
    let mut kernel = netns_with_bridge();
    run(
        "ip -n ns route add blackhole 203.0.113.0/24 proto static; ip -n ns route add 203.0.114.0/24 dev br proto boot",
    );
    let blackhole = route("203.0.113.0/24", None, None);
    assert_eq!(observe(&mut kernel, &ns()).routes, [blackhole.clone()].into());
    apply(&mut kernel, &[delete_route(blackhole)]);
    assert!(observe(&mut kernel, &ns()).routes.is_empty());
    run("ip link add e0 type veth peer name e1; ip link set e0 up; ip route add 203.0.113.0/24 dev e0 proto static");
    assert!(observe(&mut kernel, &HOST).routes.is_empty());
}

#[test]
fn a_next_hop_of_another_family_is_refused_before_the_kernel_sees_it() {
    let mut kernel = netns_with_bridge();
    let error = refused(&mut kernel, add_route(route("0.0.0.0/0", Some("2001:db8::9"), None))).full();
    assert!(error.ends_with("next hop 2001:db8::9 is of another address family"), "{error}");
}

#[test]
fn rules_are_added_once_and_deleted() {
    let mut kernel = netns_with_bridge();
    let prefix = |net: &str| Some(net.parse().unwrap());
    let rules = [
        Rule { priority: 100, from: prefix("10.0.0.0/24"), to: None, iif: None, table: 16 },
        Rule { priority: 101, from: None, to: prefix("2001:db8::/64"), iif: Some("br".to_owned()), table: 5000 },
        Rule { priority: 102, from: None, to: None, iif: Some("br".to_owned()), table: 254 },
    ];
    let ops = rules.clone().map(|rule| Op::AddRule { netns: ns(), rule });
    apply(&mut kernel, &ops);
    apply(&mut kernel, &ops);
    let shown = run("ip -n ns rule; ip -n ns -6 rule");
    assert!(shown.contains("100:\tfrom 10.0.0.0/24 lookup 16 proto static"), "{shown}");
    assert_eq!(shown.matches("lookup 5000").count(), 1);
    assert_eq!(observe(&mut kernel, &ns()).rules, rules.clone().into());
    let ops = rules.map(|rule| Op::DeleteRule { netns: ns(), rule });
    apply(&mut kernel, &ops);
    apply(&mut kernel, &ops);
    assert!(observe(&mut kernel, &ns()).rules.is_empty());
    run("ip rule add from 10.1.0.0/16 lookup 77");
    assert!(observe(&mut kernel, &HOST).rules.is_empty());
}

#[test]
fn permanent_neighbours_are_set_replaced_and_deleted() {
    let mut kernel = netns_with_bridge();
    let set = |ip: &str, last| Op::SetNeighbour {
        netns: ns(),
        link: "br".to_owned(),
        ip: ip.parse().unwrap(),
        mac: mac(last),
    };
    apply(&mut kernel, &[set("10.0.0.5", 5), set("2001:db8::5", 6), set("10.0.0.5", 7)]);
    run("ip -n ns neigh add 10.0.0.6 lladdr fa:16:3e:00:00:06 dev br nud reachable");
    assert!(run("ip -n ns neigh").contains("10.0.0.5 dev br lladdr fa:16:3e:00:00:07 PERMANENT"));
    let key = |ip: &str| NeighbourKey { link: "br".to_owned(), ip: ip.parse::<IpAddr>().unwrap() };
    let seen = observe(&mut kernel, &ns()).neighbours;
    assert_eq!(seen, [(key("10.0.0.5"), mac(7)), (key("2001:db8::5"), mac(6))].into());
    let delete = |ip: &str| Op::DeleteNeighbour { netns: ns(), link: "br".to_owned(), ip: ip.parse().unwrap() };
    apply(&mut kernel, &[delete("10.0.0.5"), delete("10.0.0.5"), delete("2001:db8::5")]);
    assert!(observe(&mut kernel, &ns()).neighbours.is_empty());
}

/// A host with a network's bridge, its VXLAN device and a router's tap.
fn network() -> evergate_kernel::Kernel {
    let mut kernel = host();
    let mut tap = veth("tap1", &ns(), "qr-1");
    if let Op::AddLink { link, .. } = &mut tap {
        link.master = Some("brq1".to_owned());
    }
    let tunnel = as_port(vxlan(7), "brq1");
    apply(&mut kernel, &[add_netns("ns"), bridge(&HOST, "brq1"), add_link(&HOST, "vxlan-7", tunnel), tap]);
    kernel
}

#[test]
fn the_flood_list_grows_and_shrinks_by_single_entries() {
    let mut kernel = network();
    let flood = |i: u32| tunnel("vxlan-7", Mac::ZERO, &format!("192.0.2.{i}"));
    let ops: Vec<Op> = (2..202).map(|i| set_fdb(flood(i))).collect();
    apply(&mut kernel, &ops);
    apply(&mut kernel, &ops);
    assert_eq!(observe(&mut kernel, &HOST).fdb.len(), 200);
    assert_eq!(run("bridge fdb show dev vxlan-7 | grep -c 00:00:00:00:00:00").trim(), "200");
    apply(&mut kernel, &[delete_fdb(flood(7)), delete_fdb(flood(7))]);
    let seen = observe(&mut kernel, &HOST).fdb;
    assert!(seen.len() == 199 && !seen.contains(&flood(7)));
    let rest: Vec<Op> = seen.into_iter().map(delete_fdb).collect();
    apply(&mut kernel, &rest);
    assert!(observe(&mut kernel, &HOST).fdb.is_empty());
}

#[test]
fn forwarding_entries_move_between_tunnel_and_tap() {
    let mut kernel = network();
    let away = [behind("vxlan-7", mac(9)), tunnel("vxlan-7", mac(9), "192.0.2.2")];
    apply(&mut kernel, &away.clone().map(set_fdb));
    assert_eq!(observe(&mut kernel, &HOST).fdb, away.clone().into());
    let shown = run("bridge fdb show dev vxlan-7 | grep fa:16:3e:00:00:09");
    assert!(shown.contains("master brq1 static") && shown.contains("dst 192.0.2.2 self permanent"), "{shown}");
    // Another host has it, then our own copy.
    apply(&mut kernel, &[set_fdb(tunnel("vxlan-7", mac(9), "192.0.2.3")), set_fdb(behind("tap1", mac(9)))]);
    let expected = [behind("tap1", mac(9)), tunnel("vxlan-7", mac(9), "192.0.2.3")];
    assert_eq!(observe(&mut kernel, &HOST).fdb, expected.clone().into());
    apply(&mut kernel, &expected.map(delete_fdb));
    apply(&mut kernel, &away.map(delete_fdb));
    assert!(observe(&mut kernel, &HOST).fdb.is_empty());
    let unplugged = evergate_dataplane::op::LinkChange { master: Some(None), ..Default::default() };
    let unplug = Op::SetLink { netns: HOST, name: "tap1".to_owned(), change: unplugged };
    apply(&mut kernel, &[unplug, delete_fdb(behind("tap1", mac(9)))]);
}

#[test]
fn learned_entries_are_not_ours_to_see() {
    let mut kernel = network();
    wait_for("the tap's forwarding state", || run("bridge link show dev tap1").contains("state forwarding"));
    run("bridge fdb add fa:16:3e:00:00:77 dev tap1 master dynamic");
    run("bridge fdb append fa:16:3e:00:00:78 dev vxlan-7 dst 192.0.2.9 self dynamic");
    assert!(observe(&mut kernel, &HOST).fdb.is_empty());
}

#[test]
fn a_thousand_objects_fit_one_call() {
    let mut kernel = network();
    let entry = |i: u32| {
        let [_, _, high, low] = i.to_be_bytes();
        set_fdb(tunnel("vxlan-7", Mac([2, 0, 0, 1, high, low]), "192.0.2.2"))
    };
    let ops: Vec<Op> = (0..3000).map(entry).collect();
    apply(&mut kernel, &ops);
    assert_eq!(observe(&mut kernel, &HOST).fdb.len(), 3000);
}

#[test]
fn foreign_addresses_and_neighbours_are_not_seen() {
    let mut kernel = host();
    run("ip link add e0 type veth peer name e1; ip link set e0 up; ip address add 10.0.0.1/24 dev e0; \
         ip neigh add 10.0.0.2 lladdr fa:16:3e:00:00:06 dev e0 nud permanent");
    let wanted = [("e0".to_owned(), link(LinkKind::Other))].into();
    let desired = KernelState { netns: [(HOST, NetnsState { links: wanted, ..NetnsState::default() })].into() };
    let state = kernel.observe(&desired).unwrap();
    let seen = &state.netns[&HOST];
    assert!(seen.links.contains_key("e0") && seen.addresses.is_empty() && seen.neighbours.is_empty());
}
