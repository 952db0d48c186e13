//! One namespace of a router, and how its ports are plugged into their networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use evergate_model::host::{Gateway, Router};
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
    /// up first: what the kernel then has to say without it is not said ([`ipv6::table`]).
    pub(super) fn all_addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        let link_local = self.has_ipv6().then(|| ipv6::link_local(self.mac));
        self.addresses.iter().copied().chain(link_local.map(IpNet::V6))
    }
}

/// One of a router's namespaces while it is compiled.
pub(super) struct RouterNamespace<'a> {
    pub(super) router: &'a Router,
    pub(super) netns: Netns,
    /// The `qr-` devices, by port.
    pub(super) interfaces: Vec<Leg>,
    /// The `qg-` device.
    pub(super) gateway: Option<(Leg, &'a Gateway)>,
    /// Every route that the router needs beside the connected ones, in the order of adding.
    pub(super) routes: Vec<Route>,
    pub(super) state: NetnsState,
}

impl<'a> Compiler<'a> {
    /// Begins a namespace that holds nothing yet but its settings.
    pub(super) fn router_namespace(&self, router: &'a Router, name: String) -> RouterNamespace<'a> {
        let state = NetnsState {
            owned: true,
            links: BTreeMap::from([("lo".to_owned(), loopback(router.id))]),
            sysctls: self.sysctls(router),
            ..NetnsState::default()
        };
        let netns = Netns::Named(name);
        RouterNamespace { router, netns, interfaces: Vec::new(), gateway: None, routes: Vec::new(), state }
    }

    /// Settings of the namespace. New devices inherit them, so they are set before any is made.
    fn sysctls(&self, router: &Router) -> BTreeMap<String, String> {
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
        if router.ha.is_some() {
            settings.push(("ipv4/ip_nonlocal_bind", "1"));
        }
        if self.view.has_ipv6 {
            // Devices with IPv6 addresses have it on (see `ipv6`); the others have nothing to say.
            settings.push(("ipv6/conf/all/disable_ipv6", "1"));
            settings.push(("ipv6/conf/default/disable_ipv6", "1"));
            if ipv6::is_spoken(router) {
                settings.push(("ipv6/conf/all/forwarding", "1"));
            }
        }
        if router.gateway.is_some() {
            // A copy that takes over has not seen the windows of the connections it goes on with.
            settings.push(("netfilter/nf_conntrack_tcp_be_liberal", "1"));
            // Also of a connection that began while nobody listened (the keeper was being restarted) must be
            // told what becomes of it. By default such a one stays silent for life.
            settings.push(("netfilter/nf_conntrack_events", "1"));
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

    /// Makes the pair of devices of a router port. Its tap is on the network's bridge.
    pub(super) fn plug(&mut self, parts: &mut RouterNamespace<'a>, leg: &Leg) -> bool {
        let router = parts.router.id;
        let Some(segment) = self.segments.get(&leg.network).cloned() else {
            self.problem(
                format!("router {router}"),
                format!("port {} is left out: its network {} is not on this host", leg.port, leg.network),
            );
            return false;
        };
        let tap_name = names::tap(leg.port);
        let alias = format!("{OWNER_MARK} router {router} port {}", leg.port);
        let follows_role = parts.router.ha.as_ref().is_some_and(|ha| ha.port_id != leg.port);
        let tap = Link {
            kind: LinkKind::Veth { peer: Some((parts.netns.clone(), leg.link.clone())) },
            alias: Some(alias.clone()),
            up: true,
            // The network's own MTU: a veth drops what is too long without a word, before the router
            // could answer that fragmentation is needed.
            mtu: Some(segment.mtu),
            mac: Some(tap_mac(leg.mac)),
            master: Some(segment.bridge),
            // Where the keeper says which way a router's address lies, a frame that an outgoing active
            // copy still sends must not turn the bridge back to it.
            port: Some(BridgePort { learning: !(follows_role && segment.vxlan.is_some()), neigh_suppress: false }),
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
        if parts.state.links.contains_key(&leg.link) {
            self.problem(
                format!("router {router}"),
                format!("port {} is left out: another port's device is named {}, too", leg.port, leg.link),
            );
            return false;
        }
        if !self.add_host_link(&format!("router {router}"), tap_name, tap) {
            return false;
        }
        parts.state.links.insert(leg.link.clone(), device);
        if leg.has_ipv6() {
            parts.state.sysctls.extend(ipv6::settings(&leg.link));
        }
        true
    }
}

fn loopback(router: RouterId) -> Link {
    Link {
        kind: LinkKind::Loopback,
        alias: Some(format!("{OWNER_MARK} router {router}")),
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

/// Addresses of the ports, with the Ethernet address each is announced by: internal ones, then external.
pub(super) fn port_addresses(parts: &RouterNamespace<'_>) -> Vec<(Address, Mac)> {
    let legs = parts.interfaces.iter().chain(parts.gateway.iter().map(|(leg, _)| leg));
    legs.flat_map(|leg| leg.all_addresses().map(|net| (address(&leg.link, net), leg.mac))).collect()
}

/// Floating IPs, as addresses of the external device, so that the router answers for them there.
pub(super) fn floating_addresses(parts: &RouterNamespace<'_>) -> Vec<(Address, Mac)> {
    let Some((leg, _)) = &parts.gateway else { return Vec::new() };
    let floating: BTreeSet<Ipv4Addr> = parts.router.floating_ips.values().map(|fip| fip.floating).collect();
    floating.into_iter().map(|ip| (address(&leg.link, Ipv4Net::from(ip)), leg.mac)).collect()
}

pub(super) fn address(link: &str, net: impl Into<IpNet>) -> Address {
    Address { link: link.to_owned(), net: net.into() }
}
