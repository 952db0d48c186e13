//! A distributed router, seen from a compute host and from gateway hosts: two project networks with an
//! instance each, on two compute hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use evergate_dataplane::check::followed;
use evergate_dataplane::op::Op;
use evergate_dataplane::state::{FdbEntry, FdbTable, NeighbourKey, Netns, Route};
use evergate_dataplane::{Desired, KernelState, NetnsState, compile, diff};
use evergate_model::host::{
    AddressScopes, AgentGateway, AllowedAddress, Distributed, ExtraRoute, FloatingIp, Interface, Location, NetworkPort,
    Segment,
};
use evergate_model::{AddressScopeId, FloatingIpId, HostConfig, NetworkId, PortId, names};

use crate::cloud::{
    self, COMPUTE, EXTERNAL_NET, FIP, HA_NET, HA_PORT, INSTANCE_PORT, NETWORK_1, NETWORK_2, PROJECT_NET, QG_PORT,
    QR_PORT, ROUTER, ip, mac,
};
use crate::plans::{between_states, check};

const SECOND_NET: NetworkId = NetworkId::from_u128(0xa4 << 120);
const QR2_PORT: PortId = PortId::from_u128(0xc5 << 120);
const SG_PORT: PortId = PortId::from_u128(0xc6 << 120);
const SG2_PORT: PortId = PortId::from_u128(0xc7 << 120);
const FG_PORT: PortId = PortId::from_u128(0xc8 << 120);
const INSTANCE2_PORT: PortId = PortId::from_u128(0xc9 << 120);
const COMPUTE_2: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 32));

/// Where the configuration is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// On the compute host of the first instance.
    Compute,
    /// On the first gateway host.
    Gateway,
}

fn port(n: u8, address: &str, location: Location) -> NetworkPort {
    NetworkPort { mac: mac(n), ips: vec![ip(address)], location, admin_state_up: true, allowed_addresses: Vec::new() }
}

fn interface(network_id: NetworkId, n: u8, address: &str) -> Interface {
    Interface {
        network_id,
        mac: mac(n),
        addresses: vec![address.parse().unwrap()],
        address_scopes: AddressScopes::default(),
        advertisement: None,
    }
}

/// The host's configuration; `ha`: the source NAT is highly available.
fn host(at: At, ha: bool) -> HostConfig {
    let mut config = if ha { cloud::ha_host() } else { cloud::legacy_host() };
    let there = |here: At, vtep| if at == here { Location::Local } else { Location::Remote { vtep } };
    let sg = if ha { Location::Active { router: ROUTER } } else { there(At::Gateway, NETWORK_1) };
    let everywhere = Location::Everywhere { router: ROUTER };
    let ports = BTreeMap::from([
        (QR_PORT, port(1, "10.0.0.1", everywhere.clone())),
        (SG_PORT, port(6, "10.0.0.5", sg.clone())),
        (INSTANCE_PORT, port(4, "10.0.0.9", there(At::Compute, COMPUTE))),
    ]);
    let ports2 = BTreeMap::from([
        (QR2_PORT, port(5, "10.0.1.1", everywhere)),
        (SG2_PORT, port(7, "10.0.1.5", sg)),
        (INSTANCE2_PORT, port(9, "10.0.1.9", Location::Remote { vtep: COMPUTE_2 })),
    ]);
    let own = if at == At::Compute { COMPUTE } else { NETWORK_1 };
    let peers: BTreeSet<IpAddr> =
        [COMPUTE, COMPUTE_2, NETWORK_1, NETWORK_2].into_iter().filter(|p| *p != own).collect();
    let project = config.networks.get_mut(&PROJECT_NET).unwrap();
    (project.ports, project.peers) = (ports, peers.clone());
    let mut second = project.clone();
    (second.id, second.segment, second.ports) = (SECOND_NET, Segment::Vxlan { vni: 103 }, ports2);
    config.networks.insert(SECOND_NET, second);
    let external = config.networks.get_mut(&EXTERNAL_NET).unwrap();
    external.ports.insert(FG_PORT, port(8, "203.0.113.11", Location::Local));
    if at == At::Compute {
        config.networks.remove(&HA_NET);
    }
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.ha = router.ha.take().filter(|_| at == At::Gateway);
    router.interfaces.insert(QR2_PORT, interface(SECOND_NET, 5, "10.0.1.1/24"));
    router.distributed = Some(Distributed {
        routes_here: at == At::Compute,
        translates_here: at == At::Gateway,
        snat_ports: BTreeMap::from([
            (SG_PORT, interface(PROJECT_NET, 6, "10.0.0.5/24")),
            (SG2_PORT, interface(SECOND_NET, 7, "10.0.1.5/24")),
        ]),
        agent_gateway: (at == At::Compute).then(|| AgentGateway {
            port_id: FG_PORT,
            mac: mac(8),
            addresses: vec!["203.0.113.11/24".parse().unwrap()],
        }),
    });
    config
}

fn with_floating_ip(mut config: HostConfig) -> HostConfig {
    let fip =
        FloatingIp { floating: Ipv4Addr::new(203, 0, 113, 50), fixed: Ipv4Addr::new(10, 0, 0, 9), distributed: true };
    config.routers.get_mut(&ROUTER).unwrap().floating_ips.insert(FIP, fip);
    config
}

fn desired(at: At, config: &HostConfig) -> Desired {
    let (own, taps): (_, &[PortId]) = match at {
        At::Compute => (COMPUTE, &[INSTANCE_PORT]),
        At::Gateway => (NETWORK_1, &[]),
    };
    let desired = compile(config, &cloud::settings(own), &cloud::view(taps));
    assert_eq!(desired.problems, []);
    desired
}

fn netns<'a>(desired: &'a Desired, name: &str) -> &'a NetnsState {
    &desired.kernel.netns[&Netns::Named(name.to_owned())]
}

fn host_ns(desired: &Desired) -> &NetnsState {
    &desired.kernel.netns[&Netns::Host]
}

// Golden plans.

#[test]
fn a_distributed_router_is_created_on_a_compute_host() {
    let kernel = cloud::kernel(&[INSTANCE_PORT]);
    let desired = desired(At::Compute, &host(At::Compute, true)).kernel;
    check(
        "dvr-compute-created",
        "A compute host is given a distributed HA router, because one of its instances is on one of the router's \
         networks. The router has its addresses here as everywhere; all who are known are permanent neighbours; \
         what goes outside goes to the sg- addresses, whose way is the keeper's.",
        diff(&desired, &kernel.observe(&desired)),
    );
}

#[test]
fn a_distributed_routers_source_nat_is_created_on_gateway_hosts() {
    let kernel = cloud::kernel(&[]);
    let ha = desired(At::Gateway, &host(At::Gateway, true)).kernel;
    check(
        "dvr-snat-ha-created",
        "A gateway host is given a copy of a distributed HA router's source NAT. As a legacy HA router's, the copy \
         stands by without addresses; the keeper adds them when it becomes active.",
        diff(&ha, &kernel.observe(&ha)),
    );
    let single = desired(At::Gateway, &host(At::Gateway, false)).kernel;
    check(
        "dvr-snat-created",
        "A gateway host is given a distributed router's only source NAT, which has its addresses at once.",
        diff(&single, &kernel.observe(&single)),
    );
}

#[test]
fn a_floating_ip_comes_to_an_instance_on_a_compute_host_and_goes() {
    let (without, with) = (host(At::Compute, true), with_floating_ip(host(At::Compute, true)));
    let state = |config: &HostConfig| desired(At::Compute, config).kernel;
    check(
        "dvr-floating-ip-added",
        "A floating IP is associated with an instance here: translated in the router, led out by the fip- \
         namespace, which answers for it from now on.",
        between(&state(&without), &state(&with)),
    );
    check("dvr-floating-ip-removed", "The floating IP goes again.", between(&state(&with), &state(&without)));
}

fn between(before: &KernelState, after: &KernelState) -> (evergate_dataplane::Plan, Vec<evergate_dataplane::Refusal>) {
    between_states(&mut cloud::kernel(&[INSTANCE_PORT]), before, after)
}

// What is where.

#[test]
fn the_gateway_is_at_home_on_every_host() {
    let desired = desired(At::Compute, &host(At::Compute, true));
    let host = host_ns(&desired);
    let sticky = FdbEntry { link: names::tap(QR_PORT), mac: mac(1), table: FdbTable::BridgeSticky };
    assert!(host.fdb.contains(&sticky));
    assert!(host.fdb.iter().all(|entry| entry.mac != mac(1) || *entry == sticky), "never by a tunnel");
    assert_eq!(host.neighbours[&NeighbourKey { link: names::bridge(PROJECT_NET), ip: ip("10.0.0.1") }], mac(1));
    assert!(!host.links[&names::tap(QR_PORT)].port.unwrap().learning);
    let elsewhere = self::desired(At::Gateway, &self::host(At::Gateway, true));
    assert!(host_ns(&elsewhere).fdb.iter().all(|entry| entry.mac != mac(1)));
    assert!(!elsewhere.kernel.netns.contains_key(&Netns::Named(names::qrouter_namespace(ROUTER))));
}

#[test]
fn everybody_is_a_permanent_neighbour_but_who_may_move() {
    let mut config = host(At::Compute, true);
    let ports = &mut config.networks.get_mut(&SECOND_NET).unwrap().ports;
    // Two instances share 10.0.1.100, which a port without a host reserves; one also allows anything.
    ports.insert(PortId::from_u128(0xd2 << 120), port(20, "10.0.1.100", Location::Unbound));
    let allow = |address: &str, n| AllowedAddress { ip: address.parse().unwrap(), mac: mac(n) };
    let mut pair = port(21, "10.0.1.20", Location::Remote { vtep: COMPUTE_2 });
    pair.allowed_addresses = vec![allow("10.0.1.100/32", 21), allow("10.0.1.0/24", 21)];
    ports.insert(PortId::from_u128(0xd3 << 120), pair);
    // And one of them takes an address that is another's own.
    let mut taker = port(22, "10.0.1.21", Location::Local);
    taker.allowed_addresses = vec![allow("10.0.1.22/32", 22), allow("10.0.1.21/32", 22)];
    ports.insert(PortId::from_u128(0xd4 << 120), taker);
    ports.insert(PortId::from_u128(0xd5 << 120), port(23, "10.0.1.22", Location::Remote { vtep: COMPUTE_2 }));
    let desired = desired(At::Compute, &config);
    let router = netns(&desired, &names::qrouter_namespace(ROUTER));
    let known: Vec<String> = router
        .neighbours
        .iter()
        .filter(|(key, _)| key.link == names::internal_device(QR2_PORT))
        .map(|(k, _)| k.ip.to_string())
        .collect();
    assert_eq!(known, ["10.0.1.5", "10.0.1.9", "10.0.1.20", "10.0.1.21"]);
}

#[test]
fn what_stays_inside_never_meets_the_rules_for_the_outside() {
    let desired = desired(At::Compute, &with_floating_ip(host(At::Compute, true)));
    let router = netns(&desired, &names::qrouter_namespace(ROUTER));
    // The main table is asked at 32766, and has no default route.
    assert!(router.rules.iter().all(|rule| rule.priority > 32766));
    assert!(router.routes.iter().all(|route| route.table != 254 || route.destination.prefix_len() > 0));
    let rules: Vec<String> =
        router.rules.iter().map(|r| format!("{} {:?} {:?} {}", r.priority, r.from, r.iif, r.table)).collect();
    // By where it comes in, and not by who sends: another router on the subnet sends on what is of others.
    let (first, second) = (names::internal_device(QR_PORT), names::internal_device(QR2_PORT));
    assert_eq!(
        rules,
        [
            "32768 Some(10.0.0.9/32) None 16".to_owned(),
            format!("167772161 None Some({first:?}) 167772161"),
            format!("167772417 None Some({second:?}) 167772417"),
        ]
    );
}

/// Routes to everywhere and rules of the router on the compute host.
fn ways_out(config: &HostConfig) -> (Vec<String>, Vec<u32>) {
    let desired = desired(At::Compute, config);
    let router = netns(&desired, &names::qrouter_namespace(ROUTER));
    let defaults = router.routes.iter().filter(|route| route.destination.prefix_len() == 0);
    let shown = |route: &Route| format!("{} via {}", route.table, route.via.unwrap());
    (defaults.map(shown).collect(), router.rules.iter().map(|rule| rule.priority).collect())
}

#[test]
fn one_default_route_leads_to_the_gateway_host_and_no_rule_where_the_sender_makes_no_difference() {
    let mut config = host(At::Compute, true);
    // Table 16 is for instances with a floating IP.
    assert_eq!(ways_out(&config), (vec!["16 via 169.254.81.41".into(), "254 via 10.0.0.5".into()], vec![]));
    // An instance that leads everywhere goes before, as on every kind of router.
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.routes = BTreeSet::from([ExtraRoute { destination: "0.0.0.0/0".parse().unwrap(), nexthop: ip("10.0.1.9") }]);
    assert_eq!(ways_out(&config), (vec!["16 via 169.254.81.41".into(), "254 via 10.0.1.9".into()], vec![]));
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.routes.clear();
    // Packets are marked with the scope of the network that they come in by.
    router.interfaces.get_mut(&QR2_PORT).unwrap().address_scopes.v4 = Some(AddressScopeId::from_u128(1));
    let (routes, rules) = ways_out(&config);
    assert_eq!((routes.len(), rules), (3, vec![167_772_161, 167_772_417]));
    config.routers.get_mut(&ROUTER).unwrap().gateway = None;
    assert_eq!(ways_out(&config), (vec![], vec![]));
}

#[test]
fn a_host_may_serve_floating_ips_without_an_address_of_its_own() {
    let mut config = with_floating_ip(host(At::Compute, true));
    let parts = config.routers.get_mut(&ROUTER).unwrap().distributed.as_mut().unwrap();
    parts.agent_gateway.as_mut().unwrap().addresses.clear();
    let desired = desired(At::Compute, &config);
    let fip = netns(&desired, &names::fip_namespace(EXTERNAL_NET));
    let fg = names::agent_gateway_device(FG_PORT);
    assert!(fip.addresses.iter().all(|address| address.link != fg && address.is_of_link()));
    let routes: Vec<String> =
        fip.routes.iter().filter(|route| route.link.as_ref() == Some(&fg)).map(ToString::to_string).collect();
    assert_eq!(routes[0], format!("203.0.113.0/24 dev {fg}"));
    assert!(routes[1].starts_with("0.0.0.0/0 via 203.0.113.254"), "{routes:?}");
}

#[test]
fn a_floating_ip_without_a_host_is_translated_by_the_gateway() {
    for ha in [true, false] {
        let mut config = host(At::Gateway, ha);
        let router = config.routers.get_mut(&ROUTER).unwrap();
        let fip = |floating: [u8; 4], distributed| FloatingIp {
            floating: floating.into(),
            fixed: Ipv4Addr::new(10, 0, 0, 9),
            distributed,
        };
        router.floating_ips.insert(FIP, fip([203, 0, 113, 50], false));
        router.floating_ips.insert(FloatingIpId::from_u128(1), fip([203, 0, 113, 51], true));
        let desired = desired(At::Gateway, &config);
        let snat = netns(&desired, &names::snat_namespace(ROUTER));
        let text = snat.nft.values().next().unwrap().to_string();
        assert!(text.contains("203.0.113.50") && !text.contains("203.0.113.51"), "{text}");
        let qg = names::external_device(QG_PORT);
        let is_mine = |net: &str, link: &str| net == "203.0.113.50/32" && link == qg;
        let at_once = snat.addresses.iter().any(|a| is_mine(&a.net.to_string(), &a.link));
        let prepared = desired.prepared.get(&ROUTER).is_some_and(|prepared| {
            prepared.items.iter().any(|item| {
                matches!(&item.add, Op::AddAddress { address, .. } if is_mine(&address.net.to_string(), &address.link))
            })
        });
        assert_eq!((at_once, prepared), (!ha, ha));
    }
}

#[test]
fn an_ha_gateways_addresses_follow_its_role_and_its_peers_are_told() {
    let desired = desired(At::Gateway, &host(At::Gateway, true));
    let snat = netns(&desired, &names::snat_namespace(ROUTER));
    assert_eq!(snat.addresses.iter().map(|a| a.link.clone()).collect::<Vec<_>>(), [names::ha_device(HA_PORT)]);
    let prepared = &desired.prepared[&ROUTER];
    assert_eq!(prepared.netns, names::snat_namespace(ROUTER));
    let keys: Vec<&str> = prepared.items.iter().map(|item| item.key.as_str()).collect();
    let sg = names::snat_device(SG_PORT);
    assert!(keys.contains(&format!("address 10.0.0.5/24 on {sg}").as_str()), "{keys:?}");
    assert!(keys.contains(&format!("forwarding of {} to {}", mac(6), names::tap(SG_PORT)).as_str()), "{keys:?}");
    assert_eq!(prepared.claim_to, BTreeSet::from([COMPUTE, COMPUTE_2, NETWORK_2]));
    let follow = &self::desired(At::Compute, &host(At::Compute, true)).follow[&ROUTER];
    assert_eq!(follow.entries.iter().map(|entry| entry.mac).collect::<Vec<_>>(), [mac(6), mac(7)]);
}

#[test]
fn a_router_port_on_a_physical_network_is_left_out_with_the_reason() {
    let mut config = host(At::Compute, true);
    config.networks.get_mut(&SECOND_NET).unwrap().segment = Segment::Flat { physical_network: "provider".to_owned() };
    let desired = compile(&config, &cloud::settings(COMPUTE), &cloud::view(&[INSTANCE_PORT]));
    let problems: Vec<String> = desired.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("the same address on all hosts"), "{problems:?}");
}

// Addresses that move between instances.

/// Both instances may have 10.0.0.100; the second is on the second compute host.
fn with_moving_address(mut config: HostConfig) -> HostConfig {
    let pair = |n| AllowedAddress { ip: "10.0.0.100/32".parse().unwrap(), mac: mac(n) };
    let ports = &mut config.networks.get_mut(&PROJECT_NET).unwrap().ports;
    ports.get_mut(&INSTANCE_PORT).unwrap().allowed_addresses = vec![pair(4)];
    let mut other = port(30, "10.0.0.30", Location::Remote { vtep: COMPUTE_2 });
    other.allowed_addresses = vec![pair(30)];
    ports.insert(PortId::from_u128(0xd6 << 120), other);
    config
}

#[test]
fn an_address_that_may_move_is_asked_for_and_all_copies_of_the_router_hear_the_answer() {
    let (without, with) = (host(At::Compute, true), with_moving_address(host(At::Compute, true)));
    let state = |config: &HostConfig| desired(At::Compute, config).kernel;
    check(
        "dvr-moving-address",
        "Two instances are allowed one more address. From now on announcements cross the tunnel, answers to the \
         router are broadcast, and questions for the router stay here.",
        between(&state(&without), &state(&with)),
    );
    let back = between(&state(&with), &state(&without)).0.to_string();
    assert!(back.contains("nft delete table bridge evergate"), "{back}");
    // Without a distributed router there is nothing to broadcast, but announcements must come through, too.
    let mut central = with;
    central.routers.clear();
    let desired = desired(At::Compute, &central);
    assert!(host_ns(&desired).nft.is_empty());
    assert!(!host_ns(&desired).links["vxlan-101"].port.unwrap().neigh_suppress);
    assert!(host_ns(&desired).links["vxlan-103"].port.unwrap().neigh_suppress);
}

// The checker.

#[test]
fn entries_of_the_keeper_are_compared_with_claims() {
    let desired = desired(At::Compute, &host(At::Compute, true));
    let mut observed = desired.kernel.clone();
    let paths = BTreeMap::from([(7, NETWORK_2), (9, NETWORK_1)]);
    let astray = |observed: &KernelState| followed(&desired, observed, Some(COMPUTE), &paths);
    assert_eq!(astray(&observed).len(), 2, "nothing is there yet, so frames are flooded");
    let fdb = &mut observed.netns.get_mut(&Netns::Host).unwrap().fdb;
    let entry = |vxlan: &str, n, table| FdbEntry { link: vxlan.to_owned(), mac: mac(n), table };
    fdb.insert(entry("vxlan-101", 6, FdbTable::Nexthop { group: 7 }));
    fdb.insert(entry("vxlan-103", 7, FdbTable::Vxlan { dst: NETWORK_2 }));
    assert_eq!(astray(&observed), [""; 0]);
    let fdb = &mut observed.netns.get_mut(&Netns::Host).unwrap().fdb;
    fdb.remove(&entry("vxlan-101", 6, FdbTable::Nexthop { group: 7 }));
    fdb.insert(entry("vxlan-101", 6, FdbTable::Nexthop { group: 9 }));
    let expected = format!(
        "router {ROUTER}: frames to {} on vxlan-101 lead to the host at {NETWORK_1}, and should lead to the host at \
         {NETWORK_2}",
        mac(6)
    );
    assert_eq!(astray(&observed), [expected]);
}

#[test]
fn an_active_copys_entries_lead_to_its_own_taps() {
    let desired = desired(At::Gateway, &host(At::Gateway, true));
    let mut observed = desired.kernel.clone();
    let prepared = &desired.prepared[&ROUTER];
    for item in &prepared.items {
        // As the keeper does it: what is not in the kernel's rules here has no part in this.
        let _ = evergate_dataplane::effects::apply(&mut observed, &item.add);
    }
    let own = Some(NETWORK_1);
    assert_eq!(followed(&desired, &observed, own, &BTreeMap::new()), [""; 0]);
    let host = observed.netns.get_mut(&Netns::Host).unwrap();
    host.fdb.retain(|entry| entry.mac != mac(6));
    let astray = followed(&desired, &observed, own, &BTreeMap::new());
    assert!(astray.len() == 1 && astray[0].ends_with("should lead to the copy here"), "{astray:?}");
}
