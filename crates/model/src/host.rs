//! What a host is told ([`HostConfig`]) and what it answers ([`HostReport`]).
//!
//! Both are whole states, not commands: losing any message costs a new snapshot, never truth. The
//! server builds a `HostConfig` from its store; the host compiles it, with its own settings, into what
//! its kernel must hold. A host is told of exactly the networks and routers it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::id::{AddressScopeId, FloatingIpId, NetworkId, PortForwardingId, PortId, RouterId};
use crate::mac::Mac;

/// Everything one host must know, at one revision of the server's change log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostConfig {
    /// The change log's revision this state was read at. Newer wins; an older one is refused.
    pub revision: u64,
    /// What holds for all hosts alike.
    pub cluster: ClusterConfig,
    /// The networks that a port or a router on this host needs.
    pub networks: BTreeMap<NetworkId, Network>,
    /// The routers that this host has a copy of.
    pub routers: BTreeMap<RouterId, Router>,
    /// For every HA router with a port on one of `networks`: who was active when last reported.
    pub active_copies: BTreeMap<RouterId, ActiveCopy>,
}

/// Settings that all hosts of a deployment share.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The secret that authenticates claims between hosts, in hexadecimal. Never logged.
    pub claim_key: String,
}

impl std::fmt::Debug for ClusterConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterConfig").field("claim_key", &"<secret>").finish()
    }
}

/// A layer-2 network, with every port on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The network's id.
    pub id: NetworkId,
    /// What carries it between hosts.
    pub segment: Segment,
    /// Largest IP packet, in bytes, that the network carries.
    pub mtu: u16,
    /// Every port of the network, on whatever host: what Neutron's l2population distributes. Of a network that
    /// no tunnels carry, where the switches outside know the others: ports of this host and of its routers.
    pub ports: BTreeMap<PortId, NetworkPort>,
    /// The tunnel addresses of the *other* hosts that have the network: where flooded frames go. None for a
    /// network that no tunnels carry.
    pub peers: BTreeSet<IpAddr>,
    /// Of an HA network: every VRID in use on it, so that a foreign one can be told from a neighbour's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub vrids: BTreeSet<u8>,
}

/// What carries a network between hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Segment {
    /// A VXLAN segment.
    Vxlan {
        /// VXLAN network identifier, 1 to 16777215.
        vni: u32,
    },
    /// An untagged physical network, reached through the host's `bridge_mappings`.
    Flat {
        /// Name of the physical network in `bridge_mappings`.
        physical_network: String,
    },
    /// A network that never leaves the host.
    Local,
}

/// One port of a network, as forwarding needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPort {
    /// The port's Ethernet address.
    pub mac: Mac,
    /// The port's fixed addresses.
    pub ips: Vec<IpAddr>,
    /// Where frames to it must go.
    pub location: Location,
    /// False when the port's `admin_state_up` is false: its tap is kept down.
    pub admin_state_up: bool,
    /// Addresses that the instance may have beside its own, and that may move between instances
    /// (Neutron's `allowed_address_pairs`): who has one now is learned from the data plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_addresses: Vec<AllowedAddress>,
}

/// An entry of a port's `allowed_address_pairs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AllowedAddress {
    /// The address, or a range of addresses.
    pub ip: IpNet,
    /// The Ethernet address that may answer for it: the port's own unless the pair names another.
    pub mac: Mac,
}

/// Where a port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Location {
    /// Bound to no host, or to one that is not known: frames to it are flooded.
    Unbound,
    /// On this host: an instance's tap, or a legacy router's or an HA interface's device.
    Local,
    /// On another host.
    Remote {
        /// That host's tunnel address.
        vtep: IpAddr,
    },
    /// On whichever host has the active copy of this HA router: follows claims.
    Active {
        /// The HA router.
        router: RouterId,
    },
    /// On every host that has the distributed router it belongs to: each host answers for it at home, with
    /// the same address and the same Ethernet address (an anycast gateway). Nothing is ever sent elsewhere.
    Everywhere {
        /// The distributed router.
        router: RouterId,
    },
}

/// Who is active, as the server last learned it from a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveCopy {
    /// Grows with every takeover of the router; the highest wins.
    pub epoch: u64,
    /// Tunnel address of the active copy's host.
    pub vtep: IpAddr,
}

/// A router that this host has a copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// The router's id.
    pub id: RouterId,
    /// The project that owns it, for messages.
    pub project_id: String,
    /// False: the namespace is kept without forwarding anything, as Neutron's agent removes the router.
    pub admin_state_up: bool,
    /// Set when the router is highly available: this host's copy.
    pub ha: Option<HaCopy>,
    /// The external gateway, if one is set.
    pub gateway: Option<Gateway>,
    /// The router's ports on project networks, by port.
    pub interfaces: BTreeMap<PortId, Interface>,
    /// Extra routes.
    pub routes: BTreeSet<ExtraRoute>,
    /// Floating IPs that this host translates for the router.
    pub floating_ips: BTreeMap<FloatingIpId, FloatingIp>,
    /// Port forwardings, translated where the router's source NAT is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_forwardings: BTreeMap<PortForwardingId, PortForwarding>,
    /// Set when the router is distributed: which of its parts are on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributed: Option<Distributed>,
}

/// The parts of a distributed router on one host.
///
/// Instances' traffic is routed in `qrouter-<id>` on their own host, whose `qr-` devices have the router's
/// addresses everywhere ([`Location::Everywhere`]). Traffic to the outside without a floating IP goes by
/// policy route to the address of the subnet's `sg-` port, in `snat-<id>` on a gateway host. With
/// [`Router::ha`] set, this host's `snat-<id>` is one of several copies, and [`HaCopy`] is about it: its
/// `ha-` device stands there, and the `sg-` and `qg-` addresses are the active copy's alone.
///
/// [`Router::gateway`] is told to every host of the router, as what decides about its routes. The external
/// network itself is among [`HostConfig::networks`] only where the host has a device on it: where it
/// translates, or has an [`AgentGateway`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distributed {
    /// Ports of this host (or of a router connected to this one) need the router: it has `qrouter-<id>`.
    pub routes_here: bool,
    /// The router's source NAT is on this host, or one copy of it: it has `snat-<id>`.
    pub translates_here: bool,
    /// The `sg-` ports, on all hosts of the router, because traffic is sent to their addresses: one per IPv4
    /// subnet of the router, and one per network with IPv6 subnets.
    pub snat_ports: BTreeMap<PortId, Interface>,
    /// This host's `fg-` port in the external network's `fip-` namespace; none on hosts that have no
    /// way out of their own (`dvr_no_external`), or before a gateway is set.
    pub agent_gateway: Option<AgentGateway>,
}

/// A host's port on an external network, for floating IPs that are translated on the host itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentGateway {
    /// The port (`network:floatingip_agent_gateway`).
    pub port_id: PortId,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses on the external network; empty where the deployment does not spend one per host.
    pub addresses: Vec<IpNet>,
}

/// A port of the router's external address that leads to a port of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForwarding {
    /// The floating IP, as far as the server says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floating_ip_id: Option<FloatingIpId>,
    /// The floating IP's address.
    pub floating: Ipv4Addr,
    /// IP protocol number: 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// First and last port outside.
    pub external_ports: (u16, u16),
    /// The instance's fixed address.
    pub fixed: Ipv4Addr,
    /// First and last port inside: as many as outside, in the same order, or a single one.
    pub internal_ports: (u16, u16),
}

/// This host's copy of an HA router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaCopy {
    /// The HA port of this copy.
    pub port_id: PortId,
    /// The project's HA network.
    pub network_id: NetworkId,
    /// The HA port's Ethernet address.
    pub mac: Mac,
    /// The HA port's address, with the prefix length of the HA subnet: the source of advertisements.
    pub address: Ipv4Net,
    /// Virtual router identifier, 1 to 255, unique on the HA network.
    pub vrid: u8,
    /// The virtual address, present on the active copy's `ha-` interface alone (`169.254.0.<vrid>/24`).
    pub virtual_address: Ipv4Net,
    /// VRRP priority of this copy.
    pub priority: u8,
    /// The router's other copies.
    pub peers: BTreeMap<String, HaPeer>,
    /// The highest epoch the server has seen for this router.
    pub epoch: u64,
    /// Set where the host served the router until it was converted: its copy is to start as active, unless
    /// somebody has been active in an epoch above this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherits: Option<u64>,
    /// Where the active copy is wanted, if somebody wants it somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
}

/// Where the active copy of a router is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The host, which has a copy or not.
    pub host: String,
    /// Somebody waits for it; otherwise the role returns there when the active copy has had it for a while.
    pub at_once: bool,
}

/// Another copy of an HA router; the map's key is its host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaPeer {
    /// Address of that copy's HA port.
    pub address: Ipv4Addr,
    /// Tunnel address of its host, if known.
    pub vtep: Option<IpAddr>,
}

/// A router's external gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The gateway port.
    pub port_id: PortId,
    /// The external network.
    pub network_id: NetworkId,
    /// The same on every copy, so that any frame from a new active moves the switch's entry.
    pub mac: Mac,
    /// Addresses on the external network, with their subnets' prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The external subnets' gateways: where default routes point.
    pub next_hops: Vec<IpAddr>,
    /// CIDRs of further subnets of the external network, reached on-link.
    pub onlink_subnets: Vec<IpNet>,
    /// Source NAT for instances without a floating IP.
    pub enable_snat: bool,
    /// The external network's address scopes.
    #[serde(default)]
    pub address_scopes: AddressScopes,
}

/// The address scopes that a network's subnets belong to, by way of their subnet pools. Between two networks
/// of one scope a router routes without translating; between different scopes it does not route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressScopes {
    /// Of the IPv4 subnets.
    pub v4: Option<AddressScopeId>,
    /// Of the IPv6 subnets.
    pub v6: Option<AddressScopeId>,
}

/// A router's port on a project network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The project network.
    pub network_id: NetworkId,
    /// The same on every copy.
    pub mac: Mac,
    /// The router's addresses there, with their subnets' prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The network's address scopes.
    #[serde(default)]
    pub address_scopes: AddressScopes,
    /// What the router advertises there (RFC 4861), for subnets whose `ipv6_ra_mode` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertisement: Option<RouterAdvertisement>,
}

/// What a router's advertisements on one network say; the link's MTU is the network's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterAdvertisement {
    /// The advertised prefixes.
    pub prefixes: BTreeMap<Ipv6Net, AddressMode>,
    /// Recursive DNS servers (RFC 8106), from the subnets' `dns_nameservers`.
    pub dns_servers: Vec<Ipv6Addr>,
}

/// Neutron's `ipv6_ra_mode`: how instances get addresses of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressMode {
    /// `slaac`: from the advertised prefix alone.
    Slaac,
    /// `dhcpv6-stateless`: from the prefix, other settings by DHCPv6.
    Dhcpv6Stateless,
    /// `dhcpv6-stateful`: by DHCPv6.
    Dhcpv6Stateful,
}

/// A route beside the connected ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExtraRoute {
    /// Where to.
    pub destination: IpNet,
    /// By way of.
    pub nexthop: IpAddr,
}

/// A floating IP, translated one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    /// The address on the external network.
    pub floating: Ipv4Addr,
    /// The instance's fixed address.
    pub fixed: Ipv4Addr,
    /// Of a distributed router: translated on this host, where the instance is, and sent out by its `fip-`
    /// namespace. Otherwise translated where the router's external gateway is.
    #[serde(default)]
    pub distributed: bool,
}

/// What a host tells the server, whole each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host's name, `host` in its configuration.
    pub host: String,
    /// Identifies one life of the control process; `sequence` starts over with it.
    pub incarnation: u64,
    /// Counts reports, so that a late one is recognised.
    pub sequence: u64,
    /// The host's clock when this was sent, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub clock_ms: Option<u64>,
    /// The revision that the kernel was last brought to, if any.
    pub applied_revision: Option<u64>,
    /// This host's roles: what `network agent list` shows.
    pub agents: Vec<AgentReport>,
    /// State of every HA router copy here.
    pub ha_states: BTreeMap<RouterId, HaStateReport>,
    /// Ports whose device is present and up here.
    pub ports_up: BTreeSet<PortId>,
    /// Floating IPs whose translation is in the kernel here.
    pub floating_ips_active: BTreeSet<FloatingIpId>,
    /// What an operator should know: a foreign object in the way, a failed operation.
    pub warnings: Vec<String>,
}

/// One role of a host, a Neutron "agent".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Which role.
    pub kind: AgentKind,
    /// Neutron's `availability_zone`.
    pub availability_zone: Option<String>,
    /// Neutron's free-form `configurations`.
    pub configurations: serde_json::Map<String, serde_json::Value>,
}

/// The kinds of agent that Evergate's host daemon stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentKind {
    /// "L3 agent", `neutron-l3-agent`.
    L3,
    /// "Linux bridge agent", `neutron-linuxbridge-agent`.
    LinuxBridge,
    /// "Open vSwitch agent", `neutron-openvswitch-agent`: what the configuration files asked for.
    OpenVSwitch,
}

/// State of one HA router copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaStateReport {
    /// Whether this copy is active.
    pub state: HaState,
    /// The epoch it last became active with, or has followed.
    pub epoch: u64,
}

/// Neutron's `ha_state` of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaState {
    /// RFC 9568's Active; the documents' master.
    Active,
    /// RFC 9568's Backup or Initialize.
    Standby,
}
