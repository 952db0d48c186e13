//! From what a host is told to what its kernel must hold.
//!
//! [`compile`] is a pure function: the same [`HostConfig`], [`HostSettings`] and [`View`] always give
//! the same [`Desired`]. What control applies itself is in [`Desired::kernel`]; what follows the role of
//! an HA router is [`Prepared`] for the keeper, which adds and removes it as the role changes.
//!
//! Read `l2` (networks), then `l3` (routers), `namespace` and `routes` (what each of a router's namespaces holds),
//! `ha` (what follows the role), `dispatch` (advertisements) and `nat`; then `distributed` and `fip`.

mod arp;
mod dispatch;
mod distributed;
mod fip;
mod gateways;
mod ha;
mod ipv6;
mod l2;
mod l3;
mod namespace;
mod nat;
mod routes;
mod scopes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use evergate_model::host::{ActiveCopy, Location, Router, RouterAdvertisement};
use evergate_model::{HostConfig, Mac, NetworkId, PortId, RouterId, names};

use crate::op::Op;
use crate::state::{KernelState, Link, LinkKind, Netns, NetnsState};
pub use dispatch::{Copies, CopyPort, dispatch_table};
pub use gateways::PreparedGateway;

/// What only this host's own configuration files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Tunnel address (`local_ip`). Without one there are no tunnels.
    pub local_ip: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The device that leads to each physical network: `bridge_mappings` and `physical_interface_mappings`
    /// taken together. Whether it is a bridge is seen, not said: [`View::bridges`].
    pub physical_networks: BTreeMap<String, String>,
    /// Turns `bridge-nf-call-*` off for the host's namespace. These settings hold for *all* bridges of the
    /// namespace, also those of others (a container engine may need them), so this is the operator's choice.
    pub disable_bridge_netfilter: bool,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            local_ip: None,
            // RFC 7348: the port that IANA assigned.
            vxlan_port: 4789,
            physical_networks: BTreeMap::new(),
            disable_bridge_netfilter: false,
        }
    }
}

/// What this host sees by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Names of all links in the host's namespace.
    pub links: BTreeSet<String>,
    /// Those of them that are bridges.
    pub bridges: BTreeSet<String>,
    /// What is plugged into bridges that somebody else made, but for taps of instances and routers: what leads
    /// away from this host.
    pub bridge_uplinks: BTreeMap<String, BTreeSet<String>>,
    /// The newest claims that the keeper knows of, local ones included: they may be newer than what the
    /// server knew.
    pub claims: BTreeMap<RouterId, ActiveCopy>,
    /// Whether the kernel has IPv6 at all (`/proc/sys/net/ipv6` exists).
    pub has_ipv6: bool,
    /// Whether bridged frames pass the host's iptables (`/proc/sys/net/bridge/bridge-nf-call-iptables`
    /// exists and is not 0).
    pub bridge_netfilter: bool,
    /// Whether no device of the host has the tunnel address.
    pub lacks_local_ip: bool,
}

/// What the host must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What control applies.
    pub kernel: KernelState,
    /// For every HA router copy here: what the keeper adds and removes.
    pub prepared: BTreeMap<RouterId, Prepared>,
    /// For every router that advertises itself to instances here: how.
    pub advertise: BTreeMap<RouterId, Advertising>,
    /// For every HA router with a port on a VXLAN network here: which forwarding entries follow its
    /// active copy.
    pub follow: BTreeMap<RouterId, Follow>,
    /// What cannot be done, and why.
    pub problems: Vec<Problem>,
}

/// What follows the role of one HA router copy on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Name of the router's namespace.
    pub netns: String,
    /// Name of the HA interface in it.
    pub ha_link: String,
    /// What the active copy has and the others have not, in the order of adding.
    pub items: Vec<PreparedItem>,
    /// What a new active announces, in that order: the outside first.
    pub announce: Vec<Announcement>,
    /// The gateways that the active copy must reach.
    pub gateways: Vec<PreparedGateway>,
    /// Names of the host's links that lead to them; one of them must have carrier.
    pub uplinks: BTreeSet<String>,
    /// Tunnel addresses of the other hosts that must learn where the router is.
    pub claim_to: BTreeSet<IpAddr>,
}

/// One change that follows the role, and its undoing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedItem {
    /// Says what it is, in words; unique in the router.
    pub key: String,
    /// Where both ops belong: the host's namespace or the router's.
    pub netns: Netns,
    /// Does it.
    pub add: Op,
    /// Undoes it; `None` where nothing need be undone.
    pub del: Option<Op>,
}

/// An address that a new active announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Device in the router's namespace.
    pub link: String,
    /// The device's Ethernet address.
    pub mac: Mac,
    /// The address.
    pub ip: IpAddr,
}

/// How a router advertises itself from this host (RFC 4861).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertising {
    /// Name of the namespace with its devices.
    pub netns: String,
    /// Only while this host's copy is active; otherwise always.
    pub follows_role: bool,
    /// On which devices.
    pub links: Vec<AdvertisingLink>,
}

/// A router's device on a network whose instances learn of it by advertisements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvertisingLink {
    /// Name of the device.
    pub link: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its link-local address, where advertisements come from.
    pub source: Ipv6Addr,
    /// The network's MTU.
    pub mtu: u32,
    /// What is advertised.
    pub advertisement: RouterAdvertisement,
}

/// Forwarding entries of this host that follow an HA router's active copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    /// Who is active, as far as this host or the server knows; the higher epoch counts.
    pub active: Option<ActiveCopy>,
    /// The entries.
    pub entries: Vec<FollowEntry>,
}

/// A router port's Ethernet address in this host's forwarding tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowEntry {
    /// The address.
    pub mac: Mac,
    /// The network's VXLAN device.
    pub vxlan: String,
    /// The router port's own tap, where a copy is on this host.
    pub tap: Option<String>,
}

/// Something that cannot be done as the server wants it, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which object, such as `network 1f2e…`.
    pub object: String,
    /// What is the matter, and what to do about it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)
    }
}

/// Computes what this host must look like.
pub fn compile(config: &HostConfig, host: &HostSettings, view: &View) -> Desired {
    let mut compiler = Compiler::new(config, host, view);
    compiler.host_settings();
    compiler.networks();
    compiler.routers();
    compiler.finish_fip_namespaces();
    compiler.moving_addresses();
    compiler.advertisements();
    compiler.follow();
    compiler.finish()
}

/// Compiles step by step: networks first, because routers plug into them.
struct Compiler<'a> {
    config: &'a HostConfig,
    host: &'a HostSettings,
    view: &'a View,
    /// Where ports of a network are plugged in.
    segments: BTreeMap<NetworkId, l2::Attachment>,
    /// Ports of the routers on this host, also of those that are down: they are not instances'.
    router_ports: BTreeSet<PortId>,
    host_ns: NetnsState,
    /// Which addresses each router here has on its way to a `fip-` namespace.
    fip_pairs: BTreeMap<RouterId, u32>,
    fip_namespaces: BTreeMap<NetworkId, fip::FipNamespace>,
    /// Ports of distributed routers that have their addresses here as everywhere.
    anycast: Vec<namespace::Leg>,
    /// Copies of HA routers here, by HA network and virtual router identifier.
    ha_copies: BTreeMap<NetworkId, BTreeMap<u8, CopyPort>>,
    out: Desired,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a HostConfig, host: &'a HostSettings, view: &'a View) -> Self {
        let host_ns = NetnsState { owned: true, ..NetnsState::default() };
        let ports = |router: &'a Router| {
            let gateway = router.gateway.iter().map(|gateway| gateway.port_id);
            let distributed = router.distributed.iter();
            let agent = distributed.clone().flat_map(|parts| &parts.agent_gateway).map(|agent| agent.port_id);
            let snat = distributed.flat_map(|parts| parts.snat_ports.keys().copied());
            let inner = router.interfaces.keys().copied().chain(snat);
            gateway.chain(router.ha.iter().map(|ha| ha.port_id)).chain(inner).chain(agent)
        };
        let router_ports = config.routers.values().flat_map(ports).collect();
        let has_pair = |router: &&Router| {
            router.distributed.as_ref().is_some_and(|parts| parts.routes_here && parts.agent_gateway.is_some())
        };
        Self {
            config,
            host,
            view,
            segments: BTreeMap::new(),
            router_ports,
            host_ns,
            fip_pairs: fip::pair_numbers(config.routers.values().filter(has_pair).map(|router| router.id)),
            fip_namespaces: BTreeMap::new(),
            anycast: Vec::new(),
            ha_copies: BTreeMap::new(),
            out: Desired::default(),
        }
    }

    fn finish(mut self) -> Desired {
        self.out.kernel.netns.insert(Netns::Host, self.host_ns);
        self.out
    }

    fn problem(&mut self, object: impl fmt::Display, text: impl Into<String>) {
        self.out.problems.push(Problem { object: object.to_string(), text: text.into() });
    }

    fn host_settings(&mut self) {
        if let Some(local) = self.host.local_ip.filter(|_| self.view.lacks_local_ip) {
            self.problem(
                "host",
                format!(
                    "local_ip {local} is not an address of this host, so its tunnels carry nothing; correct local_ip, or \
                     give a device that address"
                ),
            );
        }
        if !self.view.bridge_netfilter {
            return;
        }
        if self.host.disable_bridge_netfilter {
            for table in ["iptables", "ip6tables", "arptables"] {
                self.set(format!("bridge/bridge-nf-call-{table}"), "0");
            }
        } else {
            self.problem(
                "host",
                "bridged frames pass the host's iptables rules, which may drop them and costs about a fifth of the \
                 throughput; set net.bridge.bridge-nf-call-iptables and -ip6tables to 0 unless something else on \
                 this host needs them",
            );
        }
    }

    /// Puts a link into the host's namespace, unless another object has its name already: device names
    /// hold only the start of an id.
    fn add_host_link(&mut self, object: &str, name: String, link: Link) -> bool {
        if self.host_ns.links.contains_key(&name) {
            self.problem(
                object,
                format!("its device {name} would have the name of another object's device; it is left out"),
            );
            return false;
        }
        // A bridge or its ports have no business with IPv6 of their own: the host would be reachable from
        // the network, and would speak on it (router solicitations, listener reports).
        if self.view.has_ipv6 && link.kind != LinkKind::Other {
            self.disable_ipv6(&name);
        }
        self.host_ns.links.insert(name, link);
        true
    }

    fn disable_ipv6(&mut self, link: &str) {
        self.set(format!("ipv6/conf/{link}/disable_ipv6"), "1");
    }

    fn set(&mut self, path: String, value: &str) {
        self.host_ns.sysctls.insert(path, value.to_owned());
    }

    fn follow(&mut self) {
        let mut follow: BTreeMap<RouterId, Follow> = BTreeMap::new();
        for (id, network) in &self.config.networks {
            let Some(vxlan) = self.segments.get(id).and_then(|segment| segment.vxlan.clone()) else { continue };
            for (port_id, port) in &network.ports {
                let Location::Active { router } = port.location else { continue };
                let tap = names::tap(*port_id);
                let tap = self.host_ns.links.get(&tap).filter(|link| link.is_owned()).map(|_| tap.clone());
                let entry = FollowEntry { mac: port.mac, vxlan: vxlan.clone(), tap };
                follow.entry(router).or_default().entries.push(entry);
            }
        }
        for (router, follow) in &mut follow {
            let known = [self.config.active_copies.get(router), self.view.claims.get(router)];
            follow.active = known.into_iter().flatten().max_by_key(|copy| copy.epoch).copied();
        }
        self.out.follow = follow;
    }
}
