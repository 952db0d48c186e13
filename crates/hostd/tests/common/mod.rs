//! A small deployment as the server would describe it to one host, and that host's settings.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use evergate_config::{Config, HostSettings, Role};
use evergate_model::host::{
    AddressScopes, ClusterConfig, FloatingIp, Gateway, HaCopy, HaPeer, HostConfig, Interface, Location, Network,
    NetworkPort, Router, Segment,
};
use evergate_model::{FloatingIpId, Mac, NetworkId, PortId, RouterId};

pub const HOST_VTEP: &str = "192.0.2.11";
pub const PEER_VTEP: &str = "192.0.2.12";
pub const COMPUTE_VTEP: &str = "192.0.2.21";

pub const HA_NETWORK: NetworkId = network_id(1);
pub const PROJECT_NETWORK: NetworkId = network_id(2);
pub const EXTERNAL_NETWORK: NetworkId = network_id(3);
pub const ROUTER: RouterId = RouterId::from_u128(0xa000_0000_0000_0000_0000_0000_0000_0001);

/// Ids differ in their first characters: device names hold only those.
pub const fn network_id(n: u128) -> NetworkId {
    NetworkId::from_u128(n << 120)
}

pub const fn port_id(n: u128) -> PortId {
    PortId::from_u128(n << 112)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn mac(n: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 0, n])
}

/// Settings with every path below one folder.
pub fn settings(folder: &Path) -> HostSettings {
    settings_with(folder, "")
}

/// The same, with some lines more in section `[evergate]`.
pub fn settings_with(folder: &Path, lines: &str) -> HostSettings {
    let text = format!(
        "[DEFAULT]\nhost = network1\nstate_path = {0}/state\nha_vrrp_auth_password = secret\n\
         [vxlan]\nlocal_ip = {HOST_VTEP}\n[linux_bridge]\nphysical_interface_mappings = physnet1:ext0\n\
         [evergate]\nrun_path = {0}/run\n{lines}",
        folder.display()
    );
    let config = Config::from_texts(&[("test.conf".into(), text)], "network1", Role::Host, Vec::new()).unwrap();
    HostSettings::from_config(&config)
}

/// No routers yet, three networks, an instance on another host.
pub fn base(revision: u64) -> HostConfig {
    let mut config = HostConfig {
        revision,
        cluster: ClusterConfig { claim_key: "00112233445566778899aabbccddeeff".into() },
        ..HostConfig::default()
    };
    let peers = BTreeSet::from([ip(PEER_VTEP), ip(COMPUTE_VTEP)]);
    add_network(&mut config, HA_NETWORK, Segment::Vxlan { vni: 1001 }, 1450, BTreeSet::from([ip(PEER_VTEP)]));
    add_network(&mut config, PROJECT_NETWORK, Segment::Vxlan { vni: 1002 }, 1450, peers);
    let flat = Segment::Flat { physical_network: "physnet1".into() };
    add_network(&mut config, EXTERNAL_NETWORK, flat, 1500, BTreeSet::new());
    let instance = port(0x50, &["10.0.0.50"], Location::Remote { vtep: ip(COMPUTE_VTEP) });
    add_port(&mut config, PROJECT_NETWORK, port_id(0x50), instance);
    config
}

fn add_network(config: &mut HostConfig, id: NetworkId, segment: Segment, mtu: u16, peers: BTreeSet<IpAddr>) {
    config.networks.insert(id, Network { id, segment, mtu, ports: BTreeMap::new(), peers, vrids: BTreeSet::new() });
}

pub fn port(n: u8, ips: &[&str], location: Location) -> NetworkPort {
    NetworkPort {
        mac: mac(n),
        ips: ips.iter().map(|text| ip(text)).collect(),
        location,
        admin_state_up: true,
        allowed_addresses: Vec::new(),
    }
}

pub fn add_port(config: &mut HostConfig, network: NetworkId, id: PortId, port: NetworkPort) {
    config.networks.get_mut(&network).unwrap().ports.insert(id, port);
}

/// Adds an HA router with a gateway, an interface and a floating IP; the peer has the other copy.
pub fn add_ha_router(config: &mut HostConfig) {
    let active = Location::Active { router: ROUTER };
    add_port(config, HA_NETWORK, port_id(0x10), port(0x10, &["169.254.192.11"], Location::Local));
    let peer = Location::Remote { vtep: ip(PEER_VTEP) };
    add_port(config, HA_NETWORK, port_id(0x11), port(0x11, &["169.254.192.12"], peer));
    add_port(config, PROJECT_NETWORK, port_id(0x20), port(0x20, &["10.0.0.1"], active.clone()));
    add_port(config, EXTERNAL_NETWORK, port_id(0x30), port(0x30, &["203.0.113.10"], active));
    let copy = HaCopy {
        port_id: port_id(0x10),
        network_id: HA_NETWORK,
        mac: mac(0x10),
        address: "169.254.192.11/18".parse().unwrap(),
        vrid: 7,
        virtual_address: "169.254.0.7/24".parse().unwrap(),
        priority: 50,
        peers: BTreeMap::from([(
            "network2".to_owned(),
            HaPeer { address: "169.254.192.12".parse().unwrap(), vtep: Some(ip(PEER_VTEP)) },
        )]),
        epoch: 0,
        inherits: None,
        wish: None,
    };
    config.routers.insert(ROUTER, router(Some(copy)));
}

pub fn router(ha: Option<HaCopy>) -> Router {
    let gateway = Gateway {
        port_id: port_id(0x30),
        network_id: EXTERNAL_NETWORK,
        mac: mac(0x30),
        addresses: vec!["203.0.113.10/24".parse().unwrap()],
        next_hops: vec![ip("203.0.113.254")],
        onlink_subnets: Vec::new(),
        enable_snat: true,
        address_scopes: AddressScopes::default(),
    };
    let interface = Interface {
        network_id: PROJECT_NETWORK,
        mac: mac(0x20),
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        address_scopes: AddressScopes::default(),
        advertisement: None,
    };
    let floating = FloatingIp {
        floating: "203.0.113.20".parse().unwrap(),
        fixed: "10.0.0.50".parse().unwrap(),
        distributed: false,
    };
    Router {
        id: ROUTER,
        project_id: "5f6b".into(),
        admin_state_up: true,
        ha,
        gateway: Some(gateway),
        interfaces: BTreeMap::from([(port_id(0x20), interface)]),
        routes: BTreeSet::new(),
        floating_ips: BTreeMap::from([(FloatingIpId::from_u128(1), floating)]),
        port_forwardings: BTreeMap::new(),
        distributed: None,
    }
}

/// Removes the router with its ports.
pub fn remove_router(config: &mut HostConfig) {
    config.routers.remove(&ROUTER);
    for network in config.networks.values_mut() {
        for n in [0x10, 0x11, 0x20, 0x30] {
            network.ports.remove(&port_id(n));
        }
    }
}

/// As a router that is not HA is told of: its ports are at one place.
pub fn no_ha(mut config: HostConfig, at: Location) -> HostConfig {
    config.routers.values_mut().for_each(|router| router.ha = None);
    config.networks.get_mut(&HA_NETWORK).unwrap().ports.clear();
    for network in config.networks.values_mut() {
        network.ports.values_mut().filter(|port| is_active(&port.location)).for_each(|port| port.location = at.clone());
    }
    config
}

fn is_active(location: &Location) -> bool {
    matches!(location, Location::Active { .. })
}

/// A deployment with `count` HA routers whose only copies are here, each with a network of its own.
pub fn many_routers(count: u32, revision: u64) -> HostConfig {
    let mut config = base(revision);
    (1..=count).for_each(|n| add_numbered_router(&mut config, n));
    config
}

/// Device names hold an id's first eleven characters: the kind is in the first, the number after it.
const fn numbered(kind: u128, n: u32) -> u128 {
    kind << 124 | (n as u128) << 100
}

fn add_numbered_router(config: &mut HostConfig, n: u32) {
    let [.., high, low] = n.to_be_bytes();
    let id = RouterId::from_u128(numbered(0xa, n));
    let port_id = |kind| PortId::from_u128(numbered(kind, n));
    let (ha_ip, external_ip) = (format!("169.254.193.{low}"), format!("203.0.114.{low}"));
    let port = |kind, ip: &str, location| {
        let port = NetworkPort { mac: Mac([0xfa, 0x16, 0x3e, kind, high, low]), ..port(0, &[ip], location) };
        (port_id(u128::from(kind)), port)
    };
    let network = NetworkId::from_u128(numbered(0xb, n));
    let segment = Segment::Vxlan { vni: 5000 + n };
    add_network(config, network, segment, 1450, BTreeSet::from([ip(COMPUTE_VTEP)]));
    let active = Location::Active { router: id };
    let [ha, internal, external] = [
        (HA_NETWORK, port(1, &ha_ip, Location::Local)),
        (network, port(2, "10.0.0.1", active.clone())),
        (EXTERNAL_NETWORK, port(3, &external_ip, active)),
    ]
    .map(|(network, (id, port))| {
        add_port(config, network, id, port.clone());
        (id, port.mac)
    });
    let copy = HaCopy {
        port_id: ha.0,
        network_id: HA_NETWORK,
        mac: ha.1,
        address: format!("{ha_ip}/18").parse().unwrap(),
        vrid: low,
        virtual_address: format!("169.254.0.{low}/24").parse().unwrap(),
        priority: 50,
        peers: BTreeMap::new(),
        epoch: 0,
        inherits: None,
        wish: None,
    };
    let mut router = Router { id, floating_ips: BTreeMap::new(), ..router(Some(copy)) };
    if let Some(gateway) = &mut router.gateway {
        (gateway.port_id, gateway.mac) = external;
        gateway.addresses = vec![format!("{external_ip}/16").parse().unwrap()];
    }
    let addresses = vec!["10.0.0.1/24".parse().unwrap()];
    router.interfaces = BTreeMap::from([(
        internal.0,
        Interface {
            network_id: network,
            mac: internal.1,
            addresses,
            address_scopes: AddressScopes::default(),
            advertisement: None,
        },
    )]);
    config.routers.insert(id, router);
}
