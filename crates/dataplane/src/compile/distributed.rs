//! Distributed routers: routing where the instances are, the way out elsewhere.
//!
//! `qrouter-<id>` has the router's own addresses and Ethernet addresses on every host that needs it. Who is
//! where is known from the server's list of ports, so neighbours are permanent entries and nothing between
//! two instances is ever asked of a third host. Addresses that move between instances are the exception: for
//! those the router asks on the network (`arp`).
//!
//! What the main table does not know (it has no default route) is decided by policy rules behind it:
//! 1. from an instance with a floating IP that is translated here: out by this host's `fip-` namespace;
//! 2. from a subnet of the router: to the subnet's `sg-` port, on whichever host is the gateway.
//!
//! `snat-<id>` on a gateway host is built as any central router is, with `sg-` devices instead of `qr-` ones.

use std::collections::BTreeSet;
use std::net::IpAddr;

use evergate_model::host::{Distributed, Gateway, Location, Router, Segment};
use evergate_model::{NetworkId, PortId, names};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::l3::InnerPorts;
use super::namespace::{Leg, Part, RouterNamespace, port_addresses};
use super::{Compiler, routes, scopes};
use crate::state::{FdbEntry, FdbTable, NeighbourKey, Route, Rule, TABLE_MAIN};

/// Priority of the rules that take instances with a floating IP to the `fip-` namespace: behind the main table
/// (32766), so that what stays inside does, and the first of those that Neutron uses.
pub(super) const FLOATING_RULE: u32 = 32768;

/// Routing table of a router's way to the `fip-` namespace; Neutron's number.
pub(super) const FLOATING_TABLE: u32 = 16;

impl<'a> Compiler<'a> {
    pub(super) fn distributed(&mut self, router: &'a Router, parts: &'a Distributed) {
        if parts.routes_here {
            self.anycast_namespace(router, parts);
        }
        if parts.translates_here {
            let ports = InnerPorts { ports: &parts.snat_ports, device: names::snat_device };
            self.gateway_namespace(router, Part::Gateway, names::snat_namespace(router.id), &ports);
        }
    }

    fn anycast_namespace(&mut self, router: &'a Router, distributed: &Distributed) {
        let mut parts = self.router_namespace(router, Part::Anycast, names::qrouter_namespace(router.id));
        for (port, interface) in &router.interfaces {
            if self.may_be_everywhere(router, *port, interface.network_id) {
                self.interface(&mut parts, *port, interface, names::internal_device);
            }
        }
        for leg in parts.interfaces.clone() {
            let entry = FdbEntry { link: names::tap(leg.port), mac: leg.mac, table: FdbTable::BridgeSticky };
            self.host_ns.fdb.insert(entry);
            self.known_neighbours(&mut parts, &leg);
            self.anycast.push(leg);
        }
        parts.state.addresses = port_addresses(&parts).into_iter().map(|(address, _)| address).collect();
        parts.state.routes.extend(self.inner_routes(&parts));
        to_source_nat(&mut parts, distributed);
        self.floating_ips_here(&mut parts, distributed);
        scopes::keep_apart(&mut parts);
        self.out.kernel.netns.insert(parts.netns, parts.state);
    }

    /// A physical network would see the one address come from every host: its switches would move it to and
    /// fro, and another host's gateway would answer.
    fn may_be_everywhere(&mut self, router: &Router, port: PortId, network: NetworkId) -> bool {
        let segment = self.config.networks.get(&network).map(|network| &network.segment);
        let is_flat = matches!(segment, Some(Segment::Flat { .. }));
        if is_flat {
            self.problem(
                format!("router {}", router.id),
                format!(
                    "port {port} is left out: a distributed router has the same address on all hosts, which cannot be \
                     on the physical network {network}; let the router not be distributed, or use a VXLAN network"
                ),
            );
        }
        !is_flat
    }

    /// Everybody on a network whose place is known, as permanent neighbours. An answer to a question could not
    /// come back: it would be taken by the router's own address on the host that answers.
    fn known_neighbours(&self, parts: &mut RouterNamespace<'a>, leg: &Leg) {
        let Some(network) = self.config.networks.get(&leg.network) else { return };
        let moving: BTreeSet<(PortId, IpAddr)> = network
            .ports
            .iter()
            .flat_map(|(id, port)| port.allowed_addresses.iter().map(|allowed| (*id, allowed.ip)))
            .filter(|(_, ip)| ip.prefix_len() == ip.max_prefix_len())
            .map(|(id, ip)| (id, ip.addr()))
            .collect();
        let may_move = |own: PortId, ip: IpAddr| moving.iter().any(|(other, moves)| *moves == ip && *other != own);
        for (id, port) in
            network.ports.iter().filter(|(id, port)| **id != leg.port && port.location != Location::Unbound)
        {
            for ip in &port.ips {
                let is_connected = leg.addresses.iter().any(|net| net.contains(ip));
                if is_connected && !may_move(*id, *ip) {
                    parts.state.neighbours.insert(NeighbourKey { link: leg.link.clone(), ip: *ip }, port.mac);
                }
            }
        }
    }

    /// Extra routes by way of an instance. Those by way of the outside are where the outside is.
    fn inner_routes(&mut self, parts: &RouterNamespace<'a>) -> Vec<Route> {
        let mut found = Vec::new();
        for route in &parts.router.routes {
            let on = |leg: &&Leg| leg.addresses.iter().any(|net| net.contains(&route.nexthop));
            if let Some(leg) = parts.interfaces.iter().find(on) {
                found.push(routes::by_way_of(route.destination.trunc(), route.nexthop, &leg.link));
            } else if !is_outside(parts.router, route.nexthop) {
                self.out.problems.push(routes::unreachable_nexthop(parts.router.id, route));
            }
        }
        found
    }
}

/// Tells whether an address is on a subnet of the router's external network.
pub(super) fn is_outside(router: &Router, ip: IpAddr) -> bool {
    let on = |gateway: &Gateway| gateway.addresses.iter().chain(&gateway.onlink_subnets).any(|net| net.contains(&ip));
    router.gateway.as_ref().is_some_and(on)
}

/// Takes what goes outside, per subnet, to the subnet's port on the gateway host.
fn to_source_nat(parts: &mut RouterNamespace<'_>, distributed: &Distributed) {
    let Some(gateway) = &parts.router.gateway else { return };
    for leg in &parts.interfaces {
        // A way out is of a family that the gateway has an address of.
        let is_led_out =
            |net: &&IpNet| gateway.addresses.iter().any(|own| routes::is_ipv4(own) == routes::is_ipv4(net));
        for net in leg.addresses.iter().filter(is_led_out) {
            let Some(hop) = snat_address(distributed, leg.network, *net) else { continue };
            let number = subnet_number(net.addr());
            let from = Some(net.trunc());
            parts.state.rules.insert(Rule { priority: number, from, to: None, iif: None, table: number });
            parts.state.routes.insert(in_table(number, routes::by_way_of(everywhere(*net), hop, &leg.link)));
        }
    }
}

/// Priority and table of a subnet's rule, from the router's address on it; Neutron's for IPv4. It is unique in
/// the router, and above all other numbers that are used here.
fn subnet_number(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip),
        // The families' tables and rules are apart, so only two IPv6 subnets might meet: at one in a milliard.
        IpAddr::V6(ip) => 1 << 30 | (crate::nft::fnv1a(&ip.octets()) as u32 >> 2),
    }
}

fn everywhere(like: IpNet) -> IpNet {
    if routes::is_ipv4(&like) { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

/// The address of the `sg-` port on a subnet.
fn snat_address(distributed: &Distributed, network: NetworkId, subnet: IpNet) -> Option<IpAddr> {
    let ports = distributed.snat_ports.values().filter(|port| port.network_id == network);
    let mut addresses = ports.flat_map(|port| &port.addresses);
    addresses.find(|address| address.trunc() == subnet.trunc()).map(IpNet::addr)
}

/// A rule's table is not the main one; a route's is, unless it says so.
pub(super) fn in_table(table: u32, route: Route) -> Route {
    debug_assert_ne!(table, TABLE_MAIN, "that is where it is");
    Route { table, ..route }
}
