//! What a configuration turns into.

use std::collections::{BTreeMap, BTreeSet};

use evergate_dataplane::nft::{NftFamily, NftHook, NftMap, NftRule, NftStatement};
use evergate_dataplane::op::Op;
use evergate_dataplane::state::{BridgePort, FdbEntry, FdbTable, LinkKind, NeighbourKey, Netns};
use evergate_dataplane::{Desired, HostSettings, NetnsState, View, compile, diff};
use evergate_model::host::{ActiveCopy, AddressScopes, ExtraRoute, Location, PortForwarding, Segment};
use evergate_model::{AddressScopeId, HostConfig, Mac, NetworkId, PortForwardingId, names};

use crate::cloud::{
    self, COMPUTE, EXTERNAL_NET, HA_NET, HA_PORT, INSTANCE_PORT, NETWORK_1, NETWORK_2, PROJECT_NET, QG_PORT, QR_PORT,
    ROUTER, mac,
};

fn host(desired: &Desired) -> &NetnsState {
    &desired.kernel.netns[&Netns::Host]
}

fn router(desired: &Desired) -> &NetnsState {
    &desired.kernel.netns[&Netns::Named(names::qrouter_namespace(ROUTER))]
}

fn compute(config: &HostConfig, view: &View) -> Desired {
    compile(config, &cloud::settings(COMPUTE), view)
}

fn addresses(ns: &NetnsState) -> Vec<String> {
    ns.addresses.iter().map(|a| format!("{} {}", a.link, a.net)).collect()
}

fn problems(desired: &Desired) -> Vec<String> {
    desired.problems.iter().map(ToString::to_string).collect()
}

// Networks.

#[test]
fn a_vxlan_network_floods_to_its_peers_and_forwards_to_distant_ports() {
    let desired = cloud::network_host(&cloud::ha_host());
    let vxlan = |mac, dst| FdbEntry { link: "vxlan-101".to_owned(), mac, table: FdbTable::Vxlan { dst } };
    let at_port = |mac| FdbEntry { link: "vxlan-101".to_owned(), mac, table: FdbTable::Bridge };
    let fdb: Vec<_> = host(&desired).fdb.iter().filter(|entry| entry.link == "vxlan-101").cloned().collect();
    assert_eq!(fdb, [vxlan(Mac::ZERO, NETWORK_2), vxlan(Mac::ZERO, COMPUTE), at_port(mac(4)), vxlan(mac(4), COMPUTE)]);
}

#[test]
fn the_bridge_answers_for_distant_ports_and_for_the_gateway_wherever_it_is_active() {
    let desired = cloud::network_host(&cloud::ha_host());
    let link = names::bridge(PROJECT_NET);
    let key = |ip| NeighbourKey { link: link.clone(), ip: cloud::ip(ip) };
    let expected = BTreeMap::from([(key("10.0.0.1"), mac(1)), (key("10.0.0.9"), mac(4))]);
    assert_eq!(host(&desired).neighbours, expected);
}

#[test]
fn ipv6_addresses_of_ports_are_not_answered_for() {
    let mut config = cloud::ha_host();
    let ports = &mut config.networks.get_mut(&PROJECT_NET).unwrap().ports;
    ports.get_mut(&INSTANCE_PORT).unwrap().ips.push(cloud::ip("2001:db8::9"));
    assert!(host(&cloud::network_host(&config)).neighbours.keys().all(|key| key.ip.is_ipv4()));
}

#[test]
fn forwarding_of_an_ha_routers_ports_is_the_keepers() {
    let desired = compute(&cloud::compute_host(), &cloud::view(&[INSTANCE_PORT]));
    assert!(host(&desired).keeper.fdb_macs.contains(&mac(1)));
    assert!(host(&desired).fdb.iter().all(|entry| entry.mac != mac(1)));
    let follow = &desired.follow[&ROUTER];
    assert_eq!(follow.active, Some(ActiveCopy { epoch: 3, vtep: NETWORK_2 }));
    assert_eq!((follow.entries[0].mac, follow.entries[0].vxlan.as_str()), (mac(1), "vxlan-101"));
    assert_eq!(follow.entries[0].tap, None);
}

#[test]
fn a_claim_that_is_newer_than_the_servers_word_counts() {
    let mut view = cloud::view(&[]);
    for (epoch, expected) in [(2, NETWORK_2), (4, NETWORK_1)] {
        view.claims.insert(ROUTER, ActiveCopy { epoch, vtep: NETWORK_1 });
        let follow = &compute(&cloud::compute_host(), &view).follow[&ROUTER];
        assert_eq!(follow.active.map(|copy| copy.vtep), Some(expected), "epoch {epoch}");
    }
}

#[test]
fn a_tap_is_plugged_when_it_appears_and_not_before() {
    let tap = names::tap(INSTANCE_PORT);
    let before = compute(&cloud::compute_host(), &cloud::view(&[]));
    assert!(!host(&before).links.contains_key(&tap));
    let after = compute(&cloud::compute_host(), &cloud::view(&[INSTANCE_PORT]));
    let link = &host(&after).links[&tap];
    assert_eq!((&link.kind, link.up, link.master.clone()), (&LinkKind::Other, true, Some(names::bridge(PROJECT_NET))));
    assert_eq!(host(&after).sysctls[&format!("ipv6/conf/{tap}/disable_ipv6")], "1");
}

#[test]
fn the_tap_of_a_disabled_port_is_kept_down() {
    let mut config = cloud::compute_host();
    let ports = &mut config.networks.get_mut(&PROJECT_NET).unwrap().ports;
    ports.get_mut(&INSTANCE_PORT).unwrap().admin_state_up = false;
    let desired = compute(&config, &cloud::view(&[INSTANCE_PORT]));
    assert!(!host(&desired).links[&names::tap(INSTANCE_PORT)].up);
}

#[test]
fn a_flat_network_plugs_into_the_operators_bridge() {
    let desired = cloud::network_host(&cloud::legacy_host());
    assert_eq!(host(&desired).links[&names::tap(QG_PORT)].master.as_deref(), Some("br-ex"));
    assert!(!host(&desired).links.contains_key(&names::bridge(EXTERNAL_NET)));
    assert!(!host(&desired).links.contains_key("br-ex"), "the operator's bridge is not ours to change");
}

#[test]
fn a_flat_network_takes_an_ordinary_interface_into_a_bridge_of_its_own() {
    let view = View { bridges: Default::default(), ..cloud::view(&[]) };
    let desired = compile(&cloud::legacy_host(), &cloud::settings(NETWORK_1), &view);
    let bridge = names::bridge(EXTERNAL_NET);
    assert_eq!(host(&desired).links["br-ex"].master.as_ref(), Some(&bridge));
    assert_eq!(host(&desired).links["br-ex"].kind, LinkKind::Other);
    assert_eq!(host(&desired).links[&names::tap(QG_PORT)].master.as_ref(), Some(&bridge));
}

#[test]
fn an_active_copy_must_reach_the_external_subnets_gateways_by_what_leads_out_of_the_host() {
    let mut config = cloud::ha_host();
    let gateway = config.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap();
    gateway.next_hops.push(cloud::ip("2001:db8::1")); // a router without an IPv6 address cannot ask it
    let prepared = cloud::network_host(&config).prepared[&ROUTER].clone();
    let link = names::external_device(QG_PORT);
    let [one] = &prepared.gateways[..] else { panic!("{:?}", prepared.gateways) };
    assert_eq!((one.gateway, &one.link, one.source), (cloud::ip("203.0.113.254"), &link, cloud::ip("203.0.113.10")));
    assert_eq!(prepared.uplinks, BTreeSet::from(["eth1".to_owned()]), "what is plugged into the operator's bridge");

    let view = View { bridges: Default::default(), ..cloud::view(&[]) };
    let desired = compile(&config, &cloud::settings(NETWORK_1), &view);
    assert_eq!(desired.prepared[&ROUTER].uplinks, BTreeSet::from(["br-ex".to_owned()]), "the interface itself");
}

#[test]
fn a_physical_network_without_a_device_is_explained() {
    let settings = HostSettings { physical_networks: BTreeMap::new(), ..cloud::settings(NETWORK_1) };
    let text = problems(&compile(&cloud::legacy_host(), &settings, &cloud::view(&[]))).join("\n");
    assert!(text.contains("'provider'") && text.contains("bridge_mappings"), "{text}");

    let view = View { links: Default::default(), bridges: Default::default(), ..cloud::view(&[]) };
    let text = problems(&compile(&cloud::legacy_host(), &cloud::settings(NETWORK_1), &view)).join("\n");
    assert!(text.contains("'br-ex'") && text.contains("no such device"), "{text}");
}

#[test]
fn a_host_without_tunnel_address_says_which_option_to_set() {
    let settings = HostSettings { local_ip: None, ..cloud::settings(NETWORK_1) };
    let desired = compile(&cloud::legacy_host(), &settings, &cloud::view(&[]));
    assert!(problems(&desired)[0].contains("local_ip"), "{:?}", desired.problems);
    assert!(host(&desired).links.contains_key(&names::bridge(PROJECT_NET)), "ports on this host still meet");
    assert!(host(&desired).fdb.is_empty());
}

#[test]
fn two_networks_whose_devices_would_share_a_name_do_not_share_a_device() {
    let mut config = cloud::compute_host();
    let mut twin = config.networks[&PROJECT_NET].clone();
    // The same first eleven characters, and another VNI.
    twin.id = NetworkId::from_u128((0xa1 << 120) + 1);
    twin.segment = Segment::Vxlan { vni: 999 };
    twin.ports.clear();
    config.networks.insert(twin.id, twin);
    let desired = compute(&config, &cloud::view(&[]));
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
    assert!(!host(&desired).links.contains_key("vxlan-999"));
}

#[test]
fn peers_of_another_ip_version_are_explained_once() {
    let mut config = cloud::compute_host();
    let network = config.networks.get_mut(&PROJECT_NET).unwrap();
    network.peers.insert(cloud::ip("2001:db8::1"));
    let desired = compute(&config, &cloud::view(&[]));
    assert_eq!(desired.problems.len(), 1);
    assert!(problems(&desired)[0].contains("IP version"));
}

#[test]
fn a_kernel_without_ipv6_is_not_asked_to_disable_it() {
    let view = View { has_ipv6: false, ..cloud::view(&[]) };
    let desired = compile(&cloud::ha_host(), &cloud::settings(NETWORK_1), &view);
    assert!(desired.kernel.netns.values().flat_map(|ns| ns.sysctls.keys()).all(|path| !path.starts_with("ipv6")));
}

#[test]
fn bridge_netfilter_is_switched_off_only_when_asked() {
    let view = View { bridge_netfilter: true, ..cloud::view(&[]) };
    let told = compile(&cloud::ha_host(), &cloud::settings(NETWORK_1), &view);
    assert!(problems(&told)[0].contains("bridge-nf-call"), "{:?}", told.problems);
    let settings = HostSettings { disable_bridge_netfilter: true, ..cloud::settings(NETWORK_1) };
    let desired = compile(&cloud::ha_host(), &settings, &view);
    assert_eq!(host(&desired).sysctls["bridge/bridge-nf-call-iptables"], "0");
    assert_eq!(desired.problems, []);
}

#[test]
fn the_host_has_no_part_in_its_instances_networks() {
    let desired = cloud::network_host(&cloud::legacy_host());
    let setting =
        |name: &str| host(&desired).sysctls[&format!("ipv4/conf/{}/{name}", names::bridge(PROJECT_NET))].clone();
    assert_eq!(
        (setting("arp_ignore"), setting("forwarding"), setting("rp_filter")),
        ("8".into(), "0".into(), "1".into())
    );
}

// Routers.

#[test]
fn a_tap_does_not_change_the_address_of_the_operators_bridge() {
    let desired = cloud::network_host(&cloud::legacy_host());
    // A bridge takes the lowest of its ports' addresses.
    assert_eq!(host(&desired).links[&names::tap(QG_PORT)].mac, Some(Mac([0xfe, 0x16, 0x3e, 0, 0, 2])));
}

#[test]
fn a_legacy_router_has_everything_at_once() {
    let mut config = cloud::with_floating_ip(cloud::legacy_host());
    let gateway = config.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap();
    gateway.onlink_subnets.push("198.51.100.0/24".parse().unwrap());
    let desired = cloud::network_host(&config);
    let (qr, qg) = (names::internal_device(QR_PORT), names::external_device(QG_PORT));
    assert_eq!(
        addresses(router(&desired)),
        [format!("{qg} 203.0.113.10/24"), format!("{qg} 203.0.113.50/32"), format!("{qr} 10.0.0.1/24")]
    );
    let routes: Vec<String> = router(&desired).routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, [format!("0.0.0.0/0 via 203.0.113.254 dev {qg}"), format!("198.51.100.0/24 dev {qg}")]);
    assert_eq!(desired.prepared, BTreeMap::new());
    assert_eq!(router(&desired).keeper, Default::default());
}

#[test]
fn devices_have_the_ports_addresses_and_the_networks_mtu() {
    let desired = cloud::network_host(&cloud::ha_host());
    let qr = &router(&desired).links[&names::internal_device(QR_PORT)];
    assert_eq!((qr.mac, qr.mtu, qr.up), (Some(mac(1)), Some(1450), true));
    assert_eq!(host(&desired).links[&names::tap(QR_PORT)].mtu, Some(1450));
    assert_eq!(router(&desired).links[&names::external_device(QG_PORT)].mtu, Some(1500));
    let alias = qr.alias.as_deref().unwrap();
    assert!(alias.starts_with("evergate: router ") && alias.contains(&ROUTER.to_string()), "{alias}");
}

#[test]
fn a_standby_copy_has_no_address_but_that_of_its_ha_interface() {
    let desired = cloud::network_host(&cloud::with_floating_ip(cloud::ha_host()));
    let ns = router(&desired);
    assert_eq!(addresses(ns), [format!("{} 169.254.192.5/18", names::ha_device(HA_PORT))]);
    assert!(ns.routes.is_empty());
    assert!(!ns.nft.is_empty(), "its rules are in place all the same");
    assert_eq!(ns.keeper.links.len(), 2);
    assert_eq!(ns.keeper.addresses.len(), 1);
    assert_eq!(ns.sysctls["ipv6/conf/default/disable_ipv6"], "1");
    assert_eq!(ns.sysctls["ipv4/ip_nonlocal_bind"], "1");
}

#[test]
fn what_follows_the_role_is_prepared_in_order() {
    let mut config = cloud::with_floating_ip(cloud::ha_host());
    let routes = &mut config.routers.get_mut(&ROUTER).unwrap().routes;
    routes.insert(ExtraRoute { destination: "172.16.0.0/12".parse().unwrap(), nexthop: cloud::ip("10.0.0.9") });
    let desired = cloud::network_host(&config);
    let prepared = &desired.prepared[&ROUTER];
    let (qr, qg) = (names::internal_device(QR_PORT), names::external_device(QG_PORT));
    let keys: Vec<&str> = prepared.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            format!("address 169.254.0.7/24 on {}", names::ha_device(HA_PORT)),
            format!("address 10.0.0.1/24 on {qr}"),
            format!("address 203.0.113.10/24 on {qg}"),
            format!("address 203.0.113.50/32 on {qg}"),
            format!("route default via 203.0.113.254 dev {qg}"),
            format!("route 172.16.0.0/12 via 10.0.0.9 dev {qr}"),
            format!("forwarding of {} to {}", mac(1), names::tap(QR_PORT)),
            format!("forwarding of {} to {}", mac(2), names::tap(QG_PORT)),
        ]
    );
    // Bridges of physical networks learn, and must not learn otherwise while this copy forwards.
    for (item, table) in prepared.items.iter().rev().zip([FdbTable::BridgeSticky, FdbTable::Bridge]) {
        assert_eq!(item.netns, Netns::Host);
        assert!(matches!(&item.add, Op::SetFdb { entry, .. } if entry.table == table), "{}", item.add);
        assert!(matches!(&item.del, Some(Op::DeleteFdb { .. })));
    }
    assert!(host(&desired).keeper.fdb_macs.is_superset(&[mac(1), mac(2)].into()));
    let announced: Vec<String> = prepared.announce.iter().map(|a| format!("{} {}", a.ip, a.mac)).collect();
    assert_eq!(
        announced,
        [
            format!("203.0.113.10 {}", mac(2)),
            format!("203.0.113.50 {}", mac(2)),
            format!("10.0.0.1 {}", mac(1)),
            format!("169.254.0.7 {}", mac(3)),
        ]
    );
    assert_eq!(prepared.claim_to, [NETWORK_2, COMPUTE].into());
    assert_eq!(desired.follow[&ROUTER].entries[0].tap, Some(names::tap(QR_PORT)));
}

#[test]
fn prepared_items_work_on_a_standby_and_can_be_undone() {
    let mut kernel = cloud::kernel(&[]);
    let desired = cloud::network_host(&cloud::with_floating_ip(cloud::ha_host()));
    cloud::converge(&mut kernel, &desired.kernel);
    let standby = kernel.state().clone();
    let items = &desired.prepared[&ROUTER].items;
    for item in items {
        assert_eq!(kernel.apply(std::slice::from_ref(&item.add)), [Ok(())], "{}", item.key);
    }
    assert_ne!(*kernel.state(), standby);
    // What the keeper did is not drift.
    cloud::converge(&mut kernel, &desired.kernel);
    for item in items.iter().rev() {
        assert_eq!(kernel.apply(item.del.as_slice()), [Ok(())], "{}", item.key);
    }
    assert_eq!(*kernel.state(), standby);
}

#[test]
fn only_taps_whose_way_the_keeper_knows_do_not_learn() {
    let learns = |desired: &Desired, port| host(desired).links[&names::tap(port)].port.map(|flags| flags.learning);
    let ha = cloud::network_host(&cloud::ha_host());
    assert_eq!(learns(&ha, QR_PORT), Some(false));
    // On a flat network the switch outside learns, and so does the bridge.
    assert_eq!(learns(&ha, QG_PORT), Some(true));
    assert_eq!(learns(&ha, HA_PORT), Some(true));
    assert_eq!(learns(&cloud::network_host(&cloud::legacy_host()), QR_PORT), Some(true));
    let vxlan = host(&ha).links["vxlan-101"].port;
    assert_eq!(vxlan, Some(BridgePort { learning: false, neigh_suppress: true, isolated: false }));
}

#[test]
fn advertisements_are_led_to_their_copies_only_where_many_are_behind_a_tunnel() {
    let with = |count| cloud::with_copies(cloud::ha_host(), count);
    assert!(!host(&cloud::network_host(&with(7))).nft.contains_key(&NftFamily::Netdev));
    let config = with(8);
    let many = cloud::network_host(&config);
    let table = &host(&many).nft[&NftFamily::Netdev];
    let expected = (0..8).map(|n| (7 + n, if n == 0 { mac(3) } else { mac(0x40 + n) })).collect();
    assert_eq!(table.maps.values().collect::<Vec<_>>(), [&NftMap::Stations(expected)]);
    // What comes in by the tunnel, and what the copies say: by each tap of theirs, and no other's.
    assert_eq!(table.chains.keys().collect::<Vec<_>>(), ["from_vxlan_102", "to_vxlan_102"]);
    let taps: BTreeSet<String> =
        config.routers.values().map(|router| names::tap(router.ha.as_ref().unwrap().port_id)).collect();
    assert_eq!(taps.len(), 8);
    let devices = |chain: &str| {
        let NftHook::Ingress { devices } = &table.chains[chain].hook else { panic!("{chain} is of no devices") };
        devices.clone()
    };
    assert_eq!(devices("from_vxlan_102"), ["vxlan-102".to_owned()].into());
    assert_eq!(devices("to_vxlan_102"), taps);
    let out = [NftStatement::VrrpAdvertisement, NftStatement::Forward { link: "vxlan-102".to_owned() }];
    assert_eq!(table.chains["to_vxlan_102"].rules, [NftRule { statements: out.into() }]);
    // The bridge knows the way to each of them, and there is a tap for each.
    for (vrid, mac) in (0..8).map(|n| (n, if n == 0 { mac(3) } else { mac(0x40 + n) })) {
        let is_it = |entry: &&FdbEntry| entry.mac == mac && entry.table == FdbTable::Bridge;
        let entry = host(&many).fdb.iter().find(is_it).unwrap_or_else(|| panic!("no way to {vrid}"));
        assert!(host(&many).links.contains_key(&entry.link));
    }
    // Without a tunnel there is no device of the network alone.
    let mut local = cloud::with_copies(cloud::ha_host(), 8);
    local.networks.get_mut(&HA_NET).unwrap().segment = Segment::Local;
    assert!(!host(&cloud::network_host(&local)).nft.contains_key(&NftFamily::Netdev));
}

#[test]
fn a_router_that_is_administratively_down_leaves_the_host() {
    let mut config = cloud::ha_host();
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = false;
    let desired = cloud::network_host(&config);
    assert_eq!(desired.kernel.netns.keys().collect::<Vec<_>>(), [&Netns::Host]);
    assert!(desired.prepared.is_empty());
    assert_eq!(desired.follow[&ROUTER].entries[0].tap, None);
}

#[test]
fn the_devices_of_a_router_are_never_taken_for_an_instances() {
    // The router is down, but its devices are still there: they are to go, not to be plugged.
    let mut config = cloud::legacy_host();
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = false;
    let desired = compile(&config, &cloud::settings(NETWORK_1), &cloud::view(&[QR_PORT, QG_PORT]));
    assert!(!host(&desired).links.contains_key(&names::tap(QR_PORT)));
}

#[test]
fn an_interface_whose_port_is_down_is_no_interface() {
    let mut config = cloud::legacy_host();
    config.networks.get_mut(&PROJECT_NET).unwrap().ports.get_mut(&QR_PORT).unwrap().admin_state_up = false;
    let desired = cloud::network_host(&config);
    assert!(!router(&desired).links.contains_key(&names::internal_device(QR_PORT)));
}

#[test]
fn a_route_whose_next_hop_is_nowhere_near_is_left_out_and_explained() {
    let mut config = cloud::legacy_host();
    let routes = &mut config.routers.get_mut(&ROUTER).unwrap().routes;
    routes.insert(ExtraRoute { destination: "172.16.0.0/12".parse().unwrap(), nexthop: cloud::ip("10.9.9.9") });
    let desired = compile(&config, &cloud::settings(NETWORK_1), &cloud::view(&[]));
    assert_eq!(router(&desired).routes.len(), 1);
    assert!(problems(&desired)[0].contains("10.9.9.9"), "{:?}", desired.problems);
}

#[test]
fn an_extra_route_to_everywhere_replaces_the_default_route() {
    let mut config = cloud::legacy_host();
    let routes = &mut config.routers.get_mut(&ROUTER).unwrap().routes;
    routes.insert(ExtraRoute { destination: "0.0.0.0/0".parse().unwrap(), nexthop: cloud::ip("10.0.0.9") });
    let desired = cloud::network_host(&config);
    let routes: Vec<String> = router(&desired).routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, [format!("0.0.0.0/0 via 10.0.0.9 dev {}", names::internal_device(QR_PORT))]);
}

#[test]
fn a_gateway_outside_all_subnets_is_first_told_to_be_on_the_link() {
    let mut config = cloud::legacy_host();
    let gateway = config.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap();
    gateway.next_hops = vec![cloud::ip("198.51.100.1")];
    let mut kernel = cloud::kernel(&[]);
    cloud::converge(&mut kernel, &cloud::network_host(&config).kernel);
    assert_eq!(router(&cloud::network_host(&config)).routes.len(), 2);
}

#[test]
fn a_router_on_a_network_that_the_host_was_not_told_of_is_explained() {
    let mut config = cloud::ha_host();
    config.networks.remove(&HA_NET);
    let desired = compile(&config, &cloud::settings(NETWORK_1), &cloud::view(&[]));
    assert!(problems(&desired)[0].contains(&HA_NET.to_string()), "{:?}", desired.problems);
    assert!(desired.prepared.is_empty(), "without HA interface the copy cannot take part");
    assert!(addresses(router(&desired)).is_empty(), "nor may it act as if it were alone");
}

#[test]
fn extra_routes_of_both_families_are_made_and_mixed_ones_explained() {
    let mut config = cloud::with_ipv6(cloud::legacy_host());
    let routes = &mut config.routers.get_mut(&ROUTER).unwrap().routes;
    let mut add = |destination: &str, nexthop| {
        routes.insert(ExtraRoute { destination: destination.parse().unwrap(), nexthop: cloud::ip(nexthop) })
    };
    add("2001:db8:ff::/48", "2001:db8:1::9");
    add("2001:db8:fe::/48", "10.0.0.9");
    let desired = compile(&config, &cloud::settings(NETWORK_1), &cloud::view(&[]));
    let routes: Vec<String> = router(&desired).routes.iter().map(ToString::to_string).collect();
    let (qr, qg) = (names::internal_device(QR_PORT), names::external_device(QG_PORT));
    let expected = [
        format!("0.0.0.0/0 via 203.0.113.254 dev {qg}"),
        format!("::/0 via 2001:db8:ee::1 dev {qg}"),
        format!("2001:db8:ff::/48 via 2001:db8:1::9 dev {qr}"),
    ];
    assert_eq!(routes, expected);
    assert!(problems(&desired)[0].contains("2001:db8:fe::/48"), "{:?}", desired.problems);
}

// IPv6.

#[test]
fn a_link_local_gateway_outside_needs_no_route_of_its_own() {
    let mut config = cloud::with_ipv6(cloud::legacy_host());
    let gateway = config.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap();
    gateway.next_hops = vec![cloud::ip("203.0.113.254"), cloud::ip("fe80::1")];
    let desired = cloud::network_host(&config);
    let routes: Vec<String> = router(&desired).routes.iter().map(ToString::to_string).collect();
    assert!(routes.contains(&format!("::/0 via fe80::1 dev {}", names::external_device(QG_PORT))), "{routes:?}");
    assert_eq!(routes.len(), 2);
}

#[test]
fn the_link_local_address_moves_with_the_role_and_is_given_up_first() {
    let desired = cloud::network_host(&cloud::with_ipv6(cloud::ha_host()));
    assert!(addresses(router(&desired)).iter().all(|address| address.starts_with("ha-")));
    let qr = names::internal_device(QR_PORT);
    let of_qr: Vec<&str> = desired.prepared[&ROUTER]
        .items
        .iter()
        .filter_map(|item| item.key.strip_prefix("address ")?.strip_suffix(&format!(" on {qr}")))
        .collect();
    assert_eq!(of_qr, ["10.0.0.1/24", "2001:db8:1::1/64", "fe80::f816:3eff:fe00:1/64"]);
    let announced: Vec<_> = desired.prepared[&ROUTER].announce.iter().map(|one| one.ip).collect();
    assert!(announced.contains(&cloud::ip("fe80::f816:3eff:fe00:1")), "{announced:?}");
}

#[test]
fn a_copy_that_may_stand_by_never_speaks_without_an_address() {
    let ha = cloud::network_host(&cloud::with_ipv6(cloud::ha_host()));
    let table = router(&ha).nft[&NftFamily::Ip6].to_string();
    assert!(
        table.contains("type filter hook output priority 0; policy accept;\n\t\tip6 saddr ::/128 counter drop"),
        "{table}"
    );
    // Where there is no other copy, there is nobody to disturb.
    let legacy = cloud::network_host(&cloud::with_ipv6(cloud::legacy_host()));
    assert!(!router(&legacy).nft.contains_key(&NftFamily::Ip6));
    // The rules hold before the device comes up.
    let (plan, _) = diff(&ha.kernel, &cloud::kernel(&[]).observe(&ha.kernel));
    let qr = names::internal_device(QR_PORT);
    let is_quiet = |op: &Op| matches!(op, Op::ReplaceNft { table, .. } if table.family == NftFamily::Ip6);
    let comes_up = |op: &Op| matches!(op, Op::SetLink { name, change, .. } if *name == qr && change.up == Some(true));
    let place = |which: &dyn Fn(&Op) -> bool| plan.ops().position(which).unwrap();
    assert!(place(&is_quiet) < place(&comes_up), "{plan}");
}

#[test]
fn devices_without_ipv6_addresses_have_none_at_all() {
    let desired = cloud::network_host(&cloud::with_ipv6(cloud::ha_host()));
    let settings = &router(&desired).sysctls;
    assert_eq!(settings["ipv6/conf/default/disable_ipv6"], "1");
    let of = |link: String| settings.get(&format!("ipv6/conf/{link}/disable_ipv6")).map(String::as_str);
    assert_eq!(of(names::internal_device(QR_PORT)), Some("0"));
    assert_eq!(of(names::ha_device(HA_PORT)), None);
    assert!(!router(&cloud::network_host(&cloud::ha_host())).sysctls.contains_key("ipv6/conf/all/forwarding"));
}

#[test]
fn a_kernel_without_ipv6_is_told_of() {
    let view = View { has_ipv6: false, ..cloud::view(&[]) };
    let desired = compile(&cloud::with_ipv6(cloud::legacy_host()), &cloud::settings(NETWORK_1), &view);
    assert!(problems(&desired)[0].contains("2001:db8:1::1/64"), "{:?}", desired.problems);
    assert!(router(&desired).routes.iter().all(|route| route.destination.addr().is_ipv4()));
    assert!(desired.advertise.is_empty());
}

#[test]
fn a_router_advertises_itself_where_the_subnets_say_so() {
    let desired = cloud::network_host(&cloud::with_ipv6(cloud::ha_host()));
    let advertising = &desired.advertise[&ROUTER];
    assert!(advertising.follows_role);
    let [link] = advertising.links.as_slice() else { panic!("{advertising:?}") };
    assert_eq!((link.link.clone(), link.mtu), (names::internal_device(QR_PORT), 1450));
    assert_eq!(link.source.to_string(), "fe80::f816:3eff:fe00:1");
    assert!(!cloud::network_host(&cloud::with_ipv6(cloud::legacy_host())).advertise[&ROUTER].follows_role);
    assert!(cloud::network_host(&cloud::ha_host()).advertise.is_empty());
}

// Translation.

fn snat_rules(config: &HostConfig) -> usize {
    let desired = cloud::network_host(config);
    let table = router(&desired).nft[&NftFamily::Ip].clone();
    let rules = table.chains["nat_postrouting"].rules.clone();
    rules.iter().flat_map(|rule| &rule.statements).filter(|s| matches!(s, NftStatement::Snat { .. })).count()
}

#[test]
fn source_nat_is_left_out_when_it_is_off_and_floating_ips_stay() {
    let mut config = cloud::with_floating_ip(cloud::legacy_host());
    assert_eq!(snat_rules(&config), 2);
    config.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap().enable_snat = false;
    assert_eq!(snat_rules(&config), 0);
    let desired = cloud::network_host(&config);
    let maps = &router(&desired).nft[&NftFamily::Ip].maps;
    let size = |map: &NftMap| if let NftMap::Addresses(elements) = map { elements.len() } else { 0 };
    assert_eq!((size(&maps["floating_to_fixed"]), size(&maps["fixed_to_floating"])), (1, 1));
}

fn forwarding(external_ports: (u16, u16), internal_ports: (u16, u16)) -> PortForwarding {
    let (floating, fixed) = ("203.0.113.60".parse().unwrap(), "10.0.0.9".parse().unwrap());
    PortForwarding { floating_ip_id: None, floating, protocol: 6, external_ports, fixed, internal_ports }
}

#[test]
fn forwarded_ports_are_a_map_per_protocol_and_ranges_that_keep_their_numbers_a_rule() {
    let mut config = cloud::legacy_host();
    let forwardings = &mut config.routers.get_mut(&ROUTER).unwrap().port_forwardings;
    let mut add = |n, forwarding| forwardings.insert(PortForwardingId::from_u128(n), forwarding);
    add(1, forwarding((80, 80), (8080, 8080)));
    add(2, PortForwarding { protocol: 17, ..forwarding((53, 53), (53, 53)) });
    add(3, forwarding((6000, 6999), (6000, 6999)));
    add(4, forwarding((7000, 7002), (17000, 17002)));
    add(5, forwarding((9000, 9001), (443, 443)));
    let desired = cloud::network_host(&config);
    let table = &router(&desired).nft[&NftFamily::Ip];
    let service = |ip: &str, port| (ip.parse().unwrap(), port);
    let expected = [(80, 8080), (7000, 17000), (7001, 17001), (7002, 17002), (9000, 443), (9001, 443)]
        .map(|(outside, inside)| (service("203.0.113.60", outside), service("10.0.0.9", inside)));
    assert_eq!(table.maps["forwarded_tcp"], NftMap::Services(expected.into()));
    let dns = [(service("203.0.113.60", 53), service("10.0.0.9", 53))];
    assert_eq!(table.maps["forwarded_udp"], NftMap::Services(dns.into()));
    for chain in ["nat_prerouting", "nat_output"] {
        let rules: Vec<String> = table.chains[chain].rules.iter().map(ToString::to_string).collect();
        assert!(rules[0].starts_with("dnat to ip daddr map @floating_to_fixed"), "{rules:?}");
        assert!(rules[1].starts_with("meta l4proto 6 dnat ip to ip daddr . th dport map @forwarded_tcp"), "{rules:?}");
        let range = "ip daddr 203.0.113.60/32 meta l4proto 6 th dport 6000-6999 dnat to 10.0.0.9";
        assert!(rules[3].starts_with(range), "{rules:?}");
    }
    let qg = names::external_device(QG_PORT);
    assert!(addresses(router(&desired)).contains(&format!("{qg} 203.0.113.60/32")));
}

#[test]
fn a_range_of_too_many_new_numbers_is_left_out_and_explained() {
    let mut config = cloud::legacy_host();
    let forwardings = &mut config.routers.get_mut(&ROUTER).unwrap().port_forwardings;
    forwardings.insert(PortForwardingId::from_u128(1), forwarding((1, 60_000), (2, 60_001)));
    let desired = compile(&config, &cloud::settings(NETWORK_1), &cloud::view(&[]));
    assert!(problems(&desired)[0].contains("60000 ports other numbers"), "{:?}", desired.problems);
    assert!(!router(&desired).nft[&NftFamily::Ip].maps.contains_key("forwarded_tcp"));
}

/// The inner network and the external one in these scopes.
fn in_scopes(inner: Option<u128>, outer: Option<u128>) -> HostConfig {
    let mut config = cloud::with_ipv6(cloud::ha_host());
    let scopes = |scope: Option<u128>| {
        let scope = scope.map(AddressScopeId::from_u128);
        AddressScopes { v4: scope, v6: scope }
    };
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.interfaces.get_mut(&QR_PORT).unwrap().address_scopes = scopes(inner);
    router.gateway.as_mut().unwrap().address_scopes = scopes(outer);
    config
}

fn rules(config: &HostConfig, family: NftFamily, chain: &str) -> Vec<String> {
    let desired = cloud::network_host(config);
    let chain = router(&desired).nft[&family].chains.get(chain).cloned();
    chain.into_iter().flat_map(|chain| chain.rules).map(|rule| rule.to_string()).collect()
}

#[test]
fn without_scopes_nothing_is_kept_apart() {
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        assert!(rules(&in_scopes(None, None), family, "keep_scopes_apart").is_empty());
    }
}

#[test]
fn networks_of_other_scopes_are_dropped_but_for_what_is_translated() {
    let (qr, qg) = (names::internal_device(QR_PORT), names::external_device(QG_PORT));
    let config = in_scopes(Some(1), None);
    let v4 = rules(&config, NftFamily::Ip, "keep_scopes_apart");
    assert!(v4[0].starts_with("ct direction reply accept") && v4[1].starts_with("ct status dnat accept"), "{v4:?}");
    let drops = format!("oifname \"{qr}\" meta mark & 0xffff0000 != 0x00020000 counter drop");
    assert!(v4[2].starts_with(&drops), "{v4:?}");
    assert_eq!(v4.len(), 3, "what leaves for the outside is translated");
    let v6 = rules(&config, NftFamily::Ip6, "keep_scopes_apart");
    assert_eq!(v6.len(), 2, "{v6:?}");
    let drops = format!("oifname \"{qg}\" meta mark & 0xffff0000 != 0x00010000 counter drop");
    assert!(v6[1].starts_with(&drops), "{v6:?}");
    assert!(!rules(&config, NftFamily::Ip6, "no_speech_without_address").is_empty());
    let mut plain = config;
    plain.routers.get_mut(&ROUTER).unwrap().gateway.as_mut().unwrap().enable_snat = false;
    assert_eq!(rules(&plain, NftFamily::Ip, "keep_scopes_apart").len(), 4);
}

#[test]
fn towards_an_external_network_of_the_same_scope_nothing_is_translated() {
    let qg = names::external_device(QG_PORT);
    let spared = format!("oifname \"{qg}\" meta mark & 0xffff0000 == 0x00010000 accept");
    for (inner, spares) in [(Some(1), true), (None, true)] {
        let rules = rules(&in_scopes(inner, Some(1)), NftFamily::Ip, "nat_postrouting");
        let spared = if inner.is_none() { spared.replace("0x00010000", "0x00020000") } else { spared.clone() };
        assert_eq!(rules.iter().position(|rule| rule.starts_with(&spared)) == Some(2), spares, "{rules:?}");
        assert!(rules[3].contains("snat to"), "{rules:?}");
    }
    assert!(!rules(&in_scopes(Some(1), None), NftFamily::Ip, "nat_postrouting").iter().any(|rule| rule.contains("==")));
}

#[test]
fn all_copies_of_a_router_and_a_legacy_one_translate_alike() {
    let ha = cloud::network_host(&cloud::with_floating_ip(cloud::ha_host()));
    let legacy = cloud::network_host(&cloud::with_floating_ip(cloud::legacy_host()));
    assert_eq!(router(&ha).nft, router(&legacy).nft);
}

#[test]
fn a_router_without_gateway_translates_nothing() {
    let mut config = cloud::ha_host();
    config.routers.get_mut(&ROUTER).unwrap().gateway = None;
    let desired = cloud::network_host(&config);
    assert!(router(&desired).nft.is_empty());
    // Connection tracking may not even be loaded then.
    assert!(router(&desired).sysctls.keys().all(|path| !path.starts_with("netfilter/")));
}

#[test]
fn an_unbound_port_is_flooded_to() {
    let mut config = cloud::ha_host();
    let ports = &mut config.networks.get_mut(&PROJECT_NET).unwrap().ports;
    ports.get_mut(&INSTANCE_PORT).unwrap().location = Location::Unbound;
    let desired = cloud::network_host(&config);
    assert!(host(&desired).fdb.iter().all(|entry| entry.mac != mac(4)));
    assert!(host(&desired).neighbours.values().all(|known| *known != mac(4)));
}
