//! A small cloud: one project network with an instance on a compute host, an external network, and one
//! router, seen from a network host or from the compute host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use evergate_dataplane::{Desired, HostSettings, KernelState, View, compile};
use evergate_model::host::{
    ActiveCopy, AddressMode, AddressScopes, FloatingIp, Gateway, HaCopy, HaPeer, Interface, Location, Network,
    NetworkPort, Router, RouterAdvertisement, Segment,
};
use evergate_model::{FloatingIpId, HostConfig, Mac, NetworkId, PortId, RouterId};

pub(crate) const PROJECT_NET: NetworkId = id(0xa1).0;
pub(crate) const HA_NET: NetworkId = id(0xa2).0;
pub(crate) const EXTERNAL_NET: NetworkId = id(0xa3).0;
pub(crate) const ROUTER: RouterId = id(0xb1).1;
pub(crate) const QR_PORT: PortId = id(0xc1).2;
pub(crate) const QG_PORT: PortId = id(0xc2).2;
pub(crate) const HA_PORT: PortId = id(0xc3).2;
pub(crate) const INSTANCE_PORT: PortId = id(0xc4).2;
pub(crate) const FIP: FloatingIpId = FloatingIpId::from_u128(0xd1 << 120);

pub(crate) const COMPUTE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 31));
pub(crate) const NETWORK_1: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 21));
pub(crate) const NETWORK_2: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 22));

/// Ids that differ in their first characters, which is what device names are made of.
const fn id(n: u128) -> (NetworkId, RouterId, PortId) {
    let n = n << 120;
    (NetworkId::from_u128(n), RouterId::from_u128(n), PortId::from_u128(n))
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 0, n])
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(n: u8, address: &str, location: Location) -> NetworkPort {
    NetworkPort { mac: mac(n), ips: vec![ip(address)], location, admin_state_up: true, allowed_addresses: Vec::new() }
}

fn network(
    id: NetworkId,
    segment: Segment,
    mtu: u16,
    ports: BTreeMap<PortId, NetworkPort>,
    peers: &[IpAddr],
) -> (NetworkId, Network) {
    (id, Network { id, segment, mtu, ports, peers: peers.iter().copied().collect(), vrids: BTreeSet::new() })
}

fn flat() -> Segment {
    Segment::Flat { physical_network: "provider".to_owned() }
}

fn project_ports(instance: Location, router: Location) -> BTreeMap<PortId, NetworkPort> {
    BTreeMap::from([(QR_PORT, port(1, "10.0.0.1", router)), (INSTANCE_PORT, port(4, "10.0.0.9", instance))])
}

fn external_ports(router: Location) -> BTreeMap<PortId, NetworkPort> {
    BTreeMap::from([(QG_PORT, port(2, "203.0.113.10", router))])
}

fn router(ha: Option<HaCopy>) -> Router {
    Router {
        id: ROUTER,
        project_id: "demo".to_owned(),
        admin_state_up: true,
        ha,
        gateway: Some(Gateway {
            port_id: QG_PORT,
            network_id: EXTERNAL_NET,
            mac: mac(2),
            addresses: vec!["203.0.113.10/24".parse().unwrap()],
            next_hops: vec![ip("203.0.113.254")],
            onlink_subnets: Vec::new(),
            enable_snat: true,
            address_scopes: AddressScopes::default(),
        }),
        interfaces: BTreeMap::from([(
            QR_PORT,
            Interface {
                network_id: PROJECT_NET,
                mac: mac(1),
                addresses: vec!["10.0.0.1/24".parse().unwrap()],
                address_scopes: AddressScopes::default(),
                advertisement: None,
            },
        )]),
        routes: BTreeSet::new(),
        floating_ips: BTreeMap::new(),
        port_forwardings: BTreeMap::new(),
        distributed: None,
    }
}

pub(crate) fn ha_copy() -> HaCopy {
    HaCopy {
        port_id: HA_PORT,
        network_id: HA_NET,
        mac: mac(3),
        address: "169.254.192.5/18".parse().unwrap(),
        vrid: 7,
        virtual_address: "169.254.0.7/24".parse().unwrap(),
        priority: 50,
        peers: BTreeMap::from([(
            "network2".to_owned(),
            HaPeer { address: Ipv4Addr::new(169, 254, 192, 6), vtep: Some(NETWORK_2) },
        )]),
        epoch: 3,
        inherits: None,
        wish: None,
    }
}

/// A network host with a copy of an HA router; the instance is on the compute host.
pub(crate) fn ha_host() -> HostConfig {
    let active = Location::Active { router: ROUTER };
    let ha_ports = BTreeMap::from([(HA_PORT, port(3, "169.254.192.5", Location::Local))]);
    let project = project_ports(Location::Remote { vtep: COMPUTE }, active.clone());
    HostConfig {
        revision: 1,
        networks: BTreeMap::from([
            network(PROJECT_NET, Segment::Vxlan { vni: 101 }, 1450, project, &[COMPUTE, NETWORK_2]),
            network(HA_NET, Segment::Vxlan { vni: 102 }, 1450, ha_ports, &[NETWORK_2]),
            network(EXTERNAL_NET, flat(), 1500, external_ports(active), &[]),
        ]),
        routers: BTreeMap::from([(ROUTER, router(Some(ha_copy())))]),
        active_copies: BTreeMap::from([(ROUTER, ActiveCopy { epoch: 3, vtep: NETWORK_2 })]),
        ..HostConfig::default()
    }
}

/// So many HA routers, without interfaces, have a copy here: VRIDs 7 and following.
pub(crate) fn with_copies(mut config: HostConfig, count: u8) -> HostConfig {
    for n in 1..count {
        let (_, router_id, port_id) = id(0x40 + u128::from(n));
        let copy = HaCopy {
            port_id,
            mac: mac(0x40 + n),
            address: format!("169.254.193.{n}/18").parse().unwrap(),
            vrid: 7 + n,
            virtual_address: format!("169.254.0.{}/24", 7 + n).parse().unwrap(),
            ..ha_copy()
        };
        let plain = Router { id: router_id, gateway: None, interfaces: BTreeMap::new(), ..router(Some(copy)) };
        config.routers.insert(router_id, plain);
        let own = port(0x40 + n, &format!("169.254.193.{n}"), Location::Local);
        config.networks.get_mut(&HA_NET).unwrap().ports.insert(port_id, own);
    }
    config
}

/// A network host with a legacy router.
pub(crate) fn legacy_host() -> HostConfig {
    let project = project_ports(Location::Remote { vtep: COMPUTE }, Location::Local);
    HostConfig {
        revision: 1,
        networks: BTreeMap::from([
            network(PROJECT_NET, Segment::Vxlan { vni: 101 }, 1450, project, &[COMPUTE]),
            network(EXTERNAL_NET, flat(), 1500, external_ports(Location::Local), &[]),
        ]),
        routers: BTreeMap::from([(ROUTER, router(None))]),
        ..HostConfig::default()
    }
}

/// The compute host with the instance, whose router is highly available elsewhere.
pub(crate) fn compute_host() -> HostConfig {
    let project = project_ports(Location::Local, Location::Active { router: ROUTER });
    HostConfig {
        revision: 1,
        networks: BTreeMap::from([network(
            PROJECT_NET,
            Segment::Vxlan { vni: 101 },
            1450,
            project,
            &[NETWORK_1, NETWORK_2],
        )]),
        active_copies: BTreeMap::from([(ROUTER, ActiveCopy { epoch: 3, vtep: NETWORK_2 })]),
        ..HostConfig::default()
    }
}

pub(crate) fn with_floating_ip(mut config: HostConfig) -> HostConfig {
    let fip =
        FloatingIp { floating: Ipv4Addr::new(203, 0, 113, 50), fixed: Ipv4Addr::new(10, 0, 0, 9), distributed: false };
    config.routers.get_mut(&ROUTER).unwrap().floating_ips.insert(FIP, fip);
    config
}

/// The project network has an IPv6 subnet with SLAAC, the external network an IPv6 subnet, too.
pub(crate) fn with_ipv6(mut config: HostConfig) -> HostConfig {
    let router = config.routers.get_mut(&ROUTER).unwrap();
    let interface = router.interfaces.get_mut(&QR_PORT).unwrap();
    interface.addresses.push("2001:db8:1::1/64".parse().unwrap());
    interface.advertisement = Some(RouterAdvertisement {
        prefixes: BTreeMap::from([("2001:db8:1::/64".parse().unwrap(), AddressMode::Slaac)]),
        dns_servers: vec!["2001:db8::53".parse().unwrap()],
    });
    let gateway = router.gateway.as_mut().unwrap();
    gateway.addresses.push("2001:db8:ee::10/64".parse().unwrap());
    gateway.next_hops.push(ip("2001:db8:ee::1"));
    config
}

pub(crate) fn settings(local_ip: IpAddr) -> HostSettings {
    HostSettings {
        local_ip: Some(local_ip),
        physical_networks: BTreeMap::from([("provider".to_owned(), "br-ex".to_owned())]),
        ..HostSettings::default()
    }
}

/// A host whose operator made br-ex, and whose kernel has IPv6.
pub(crate) fn view(taps: &[PortId]) -> View {
    let mut links: BTreeSet<String> = taps.iter().map(|port| evergate_model::names::tap(*port)).collect();
    links.insert("br-ex".to_owned());
    let bridge_uplinks = BTreeMap::from([("br-ex".to_owned(), BTreeSet::from(["eth1".to_owned()]))]);
    View { links, bridges: BTreeSet::from(["br-ex".to_owned()]), bridge_uplinks, has_ipv6: true, ..View::default() }
}

/// What a network host must look like; nothing may be the matter.
pub(crate) fn network_host(config: &HostConfig) -> Desired {
    let desired = compile(config, &settings(NETWORK_1), &view(&[]));
    assert_eq!(desired.problems, []);
    desired
}

/// A kernel on which the operator has made br-ex, and hypervisors these taps.
pub(crate) fn kernel(taps: &[PortId]) -> evergate_dataplane::fake::FakeKernel {
    let mut kernel = evergate_dataplane::fake::FakeKernel::new();
    kernel.add_foreign_link("br-ex");
    taps.iter().for_each(|port| kernel.add_foreign_link(&evergate_model::names::tap(*port)));
    kernel
}

/// Brings the kernel to the desired state, and expects every op to work and nothing to be left to do.
pub(crate) fn converge(kernel: &mut evergate_dataplane::fake::FakeKernel, desired: &KernelState) {
    let (plan, refusals) = evergate_dataplane::diff(desired, &kernel.observe(desired));
    assert_eq!(refusals, []);
    for (op, result) in plan.ops().zip(kernel.apply(&plan.clone().into_ops())) {
        assert_eq!(result, Ok(()), "{op}");
    }
    let (again, _) = evergate_dataplane::diff(desired, &kernel.observe(desired));
    assert!(again.is_empty(), "left to do:\n{again}in\n{}", kernel.state());
}
