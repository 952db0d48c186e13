//! One namespace of a router, and how its ports are plugged into their networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use evergate_model::host::{FloatingIp, Gateway, Router};
use evergate_model::{Mac, NetworkId, PortId, RouterId, names};
use ipnet::{IpNet, Ipv4Net};

use super::{Compiler, ipv6};
use crate::state::{Address, BridgePort, Link, LinkKind, Netns, NetnsState, OWNER_MARK, Route};

/// A router port's device in the router's namespace.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub(super) port: PortId,
    pub(super) network: NetworkId,
    /// Name of the device.
    pub(super) link: String,
    pub(super) mac: Mac,
    /// Its addresses with their subnets' prefix lengths, without the link-local one that IPv6 brings along.
    pub(super) addresses: Vec<IpNet>,
}

impl Leg {
    /// Whether IPv6 is spoken there.
    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|net| net.addr().is_ipv6())
    }

    /// Every address of the device. The link-local one comes last, so that a copy that stands back gives it
    /// up first: what the kernel then has to say without it is not said ([`ipv6::keep_quiet`]).
    pub(super) fn all_addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        let link_local = self.has_ipv6().then(|| ipv6::link_local(self.mac));
        self.addresses.iter().copied().chain(link_local.map(IpNet::V6))
    }
}

/// What a namespace is to its router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of a router that is not distributed.
    Whole,
    /// The part of a distributed router that is wherever its instances are, with the same addresses everywhere.
    Anycast,
    /// The part of a distributed router that meets the outside for instances without a floating IP.
    Gateway,
}

/// One of a router's namespaces while it is compiled.
pub(super) struct RouterNamespace<'a> {
    pub(super) router: &'a Router,
    pub(super) part: Part,
    pub(super) netns: Netns,
    /// The `qr-` devices, by port.
    pub(super) interfaces: Vec<Leg>,
    /// The `qg-` device.
    pub(super) gateway: Option<(Leg, &'a Gateway)>,
    /// Every route that the router needs beside the connected ones, in the order of adding.
    pub(super) routes: Vec<Route>,
    pub(super) state: NetnsState,
}

impl RouterNamespace<'_> {
    /// The floating IPs that are translated in this namespace.
    pub(super) fn floating_ips(&self) -> impl Iterator<Item = &FloatingIp> {
        let is_here = |fip: &&FloatingIp| match self.part {
            Part::Whole => true,
            Part::Anycast => fip.distributed,
            Part::Gateway => !fip.distributed,
        };
        self.router.floating_ips.values().filter(is_here)
    }
}

impl<'a> Compiler<'a> {
    /// Begins a namespace that holds nothing yet but its settings.
    pub(super) fn router_namespace(&self, router: &'a Router, part: Part, name: String) -> RouterNamespace<'a> {
        let state = NetnsState {
            owned: true,
            links: BTreeMap::from([("lo".to_owned(), loopback(&format!("router {}", router.id)))]),
            sysctls: self.sysctls(part != Part::Anycast && router.ha.is_some(), ipv6::is_spoken(router)),
            ..NetnsState::default()
        };
        let netns = Netns::Named(name);
        RouterNamespace { router, part, netns, interfaces: Vec::new(), gateway: None, routes: Vec::new(), state }
    }

    /// Settings of the namespace. New devices inherit them, so they are set before any is made.
    pub(super) fn sysctls(&self, follows_role: bool, speaks_ipv6: bool) -> BTreeMap<String, String> {
        let mut settings = vec![
            ("ipv4/ip_forward", "1"),
            // Each device answers for its own addresses only, and asks with one that fits: Neutron's choice.
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/arp_announce", "2"),
            // Replies may come by another way than the request left by.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Two subnets on one device: the router does not tell instances to talk past it.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Otherwise deleting a primary address takes along all others of its subnet.
            ("ipv4/conf/all/promote_secondaries", "1"),
        ];
        if follows_role {
            settings.push(("ipv4/ip_nonlocal_bind", "1"));
        }
        if self.view.has_ipv6 {
            // Devices with IPv6 addresses have it on (see `ipv6`); the others have nothing to say.
            settings.push(("ipv6/conf/all/disable_ipv6", "1"));
            settings.push(("ipv6/conf/default/disable_ipv6", "1"));
            if speaks_ipv6 {
                settings.push(("ipv6/conf/all/forwarding", "1"));
            }
        }
        settings.into_iter().map(|(path, value)| (path.to_owned(), value.to_owned())).collect()
    }

    /// The addresses that this host's kernel can have.
    pub(super) fn usable(&mut self, router: RouterId, addresses: &[IpNet]) -> Vec<IpNet> {
        let mut usable = Vec::with_capacity(addresses.len());
        for address in addresses {
            if address.addr().is_ipv4() || self.view.has_ipv6 {
                usable.push(*address);
            } else {
                self.problem(
                    format!("router {router}"),
                    format!(
                        "address {address} is left out: this host's kernel has no IPv6; remove ipv6.disable=1 from its \
                         command line"
                    ),
                );
            }
        }
        usable
    }

    /// Makes the pair of devices of a router port.
    pub(super) fn plug(&mut self, parts: &mut RouterNamespace<'a>, leg: &Leg) -> bool {
        // Where the keeper says which way a router's address lies, a frame that an outgoing active copy still
        // sends must not turn the bridge back to it. Nor is there anything to learn of an address that is
        // everywhere.
        let by_keeper =
            parts.part != Part::Anycast && parts.router.ha.as_ref().is_some_and(|ha| ha.port_id != leg.port);
        let learning = match parts.part {
            Part::Anycast => false,
            Part::Whole | Part::Gateway => !(by_keeper && self.is_tunnelled(leg.network)),
        };
        // Every advertisement is for the group, and a bridge floods it. This host's copies are of different
        // routers and have nothing to tell each other: unseparated, each of them would cost as much as there are.
        let isolated = parts.router.ha.as_ref().is_some_and(|ha| ha.port_id == leg.port);
        let owner = format!("router {}", parts.router.id);
        let port = BridgePort { learning, neigh_suppress: false, isolated };
        let is_made = self.make_pair(&owner, &parts.netns, &mut parts.state.links, (leg, port));
        if is_made && leg.has_ipv6() {
            parts.state.sysctls.extend(ipv6::settings(&leg.link));
        }
        is_made
    }

    /// Tells whether a network's frames reach other hosts through a tunnel from here.
    pub(super) fn is_tunnelled(&self, network: NetworkId) -> bool {
        self.segments.get(&network).is_some_and(|segment| segment.vxlan.is_some())
    }

    /// Makes a pair of devices, one end among `links` of `netns`, the other on the network's bridge.
    pub(super) fn make_pair(
        &mut self,
        owner: &str,
        netns: &Netns,
        links: &mut BTreeMap<String, Link>,
        (leg, port): (&Leg, BridgePort),
    ) -> bool {
        let Some(segment) = self.segments.get(&leg.network).cloned() else {
            self.problem(
                owner,
                format!("port {} is left out: its network {} is not on this host", leg.port, leg.network),
            );
            return false;
        };
        let tap_name = names::tap(leg.port);
        let alias = format!("{OWNER_MARK} {owner} port {}", leg.port);
        let tap = Link {
            kind: LinkKind::Veth { peer: Some((netns.clone(), leg.link.clone())) },
            alias: Some(alias.clone()),
            up: true,
            // The network's own MTU: a veth drops what is too long without a word, before the router
            // could answer that fragmentation is needed.
            mtu: Some(segment.mtu),
            mac: Some(tap_mac(leg.mac)),
            master: Some(segment.bridge),
            port: Some(port),
        };
        let device = Link {
            kind: LinkKind::Veth { peer: Some((Netns::Host, tap_name.clone())) },
            alias: Some(alias),
            up: true,
            mtu: Some(segment.mtu),
            mac: Some(leg.mac),
            master: None,
            port: None,
        };
        if links.contains_key(&leg.link) {
            self.problem(
                owner,
                format!("port {} is left out: another port's device is named {}, too", leg.port, leg.link),
            );
            return false;
        }
        if !self.add_host_link(owner, tap_name, tap) {
            return false;
        }
        links.insert(leg.link.clone(), device);
        true
    }
}

pub(super) fn loopback(owner: &str) -> Link {
    Link {
        kind: LinkKind::Loopback,
        alias: Some(format!("{OWNER_MARK} {owner}")),
        up: true,
        mtu: None,
        mac: None,
        master: None,
        port: None,
    }
}

/// The Ethernet address of a port's tap: high, as hypervisors choose it, because a bridge takes the lowest
/// address of its ports for its own, and the operator's bridge must keep the one that it has.
fn tap_mac(port: Mac) -> Mac {
    let [first, rest @ ..] = port.0;
    // Not the port's own: the bridge would take frames to the port for its own.
    let high = if first == 0xfe { 0xf2 } else { 0xfe };
    let [b, c, d, e, f] = rest;
    Mac([high, b, c, d, e, f])
}

/// Settings of a namespace that translates addresses, and so tracks connections.
pub(super) fn track_connections(state: &mut NetnsState) {
    for setting in [
        // A copy that takes over has not seen the windows of the connections it goes on with.
        "netfilter/nf_conntrack_tcp_be_liberal",
        // Also of a connection that began while nobody listened (the keeper was being restarted) must be
        // told what becomes of it. By default such a one stays silent for life.
        "netfilter/nf_conntrack_events",
    ] {
        state.sysctls.insert(setting.to_owned(), "1".to_owned());
    }
}

/// Addresses of the ports, with the Ethernet address each is announced by: internal ones, then external.
pub(super) fn port_addresses(parts: &RouterNamespace<'_>) -> Vec<(Address, Mac)> {
    let legs = parts.interfaces.iter().chain(parts.gateway.iter().map(|(leg, _)| leg));
    legs.flat_map(|leg| leg.all_addresses().map(|net| (address(&leg.link, net), leg.mac))).collect()
}

/// Floating IPs, and those whose ports are forwarded, as addresses of the external device, so that the router answers for them there.
pub(super) fn floating_addresses(parts: &RouterNamespace<'_>) -> Vec<(Address, Mac)> {
    let Some((leg, _)) = &parts.gateway else { return Vec::new() };
    let forwarded = parts.router.port_forwardings.values().map(|forwarding| forwarding.floating);
    let floating: BTreeSet<Ipv4Addr> = parts.floating_ips().map(|fip| fip.floating).chain(forwarded).collect();
    floating.into_iter().map(|ip| (address(&leg.link, Ipv4Net::from(ip)), leg.mac)).collect()
}

pub(super) fn address(link: &str, net: impl Into<IpNet>) -> Address {
    Address { link: link.to_owned(), net: net.into() }
}
