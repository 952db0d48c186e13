//! Distributed routers: routing where the instances are, the way out elsewhere.
//!
//! `qrouter-<id>` has the router's own addresses and Ethernet addresses on every host that needs it. Who is
//! where is known from the server's list of ports, so neighbours are permanent entries and nothing between
//! two instances is ever asked of a third host. Addresses that move between instances are the exception: for
//! those the router asks on the network (`arp`).
//!
//! Out leads a default route to an `sg-` port, on whichever host is the gateway. Where the way depends on who
//! sends, there is none, and what the main table does not know is decided by policy rules behind it:
//! 1. from an instance with a floating IP that is translated here: out by this host's `fip-` namespace;
//! 2. in by the device of a subnet: to the subnet's own `sg-` port. (Neutron goes by the sender's address, and so loses
//!    what another router on the subnet sends on.)
//!
//! Rules are not there without a reason: from the first one in a namespace on, the kernel looks up every packet in
//! one table after the other, which costs each 5 % of its way between two instances on two hosts.
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
        let routes_and_rules = to_source_nat(&parts, distributed);
        parts.state.routes.extend(routes_and_rules.0);
        parts.state.rules.extend(routes_and_rules.1);
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

/// Takes what goes outside to the gateway host: by one default route, or by rules for each subnet.
fn to_source_nat(parts: &RouterNamespace<'_>, distributed: &Distributed) -> (Vec<Route>, Vec<Rule>) {
    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for is_ipv4 in [true, false] {
        let ways = ways_out(parts, distributed, is_ipv4);
        let is_everywhere = |route: &&Route| route.destination.prefix_len() == 0;
        let mut defaults = parts.state.routes.iter().filter(is_everywhere);
        let has_default = defaults.any(|route| routes::is_ipv4(&route.destination) == is_ipv4);
        if has_default {
            // An extra route to everywhere, by way of an instance.
        } else if depends_on_sender(parts, &ways, is_ipv4) {
            rules.extend(ways.iter().map(|way| {
                let (priority, iif) = (subnet_number(way.subnet.addr()), Some(way.leg.link.clone()));
                Rule { priority, from: None, to: None, iif, table: priority }
            }));
            routes.extend(ways.iter().map(|way| in_table(subnet_number(way.subnet.addr()), way.route())));
        } else {
            routes.extend(ways.first().map(Way::route));
        }
    }
    (routes, rules)
}

/// Out by a subnet's `sg-` port.
struct Way<'p> {
    leg: &'p Leg,
    /// The router's address there.
    subnet: IpNet,
    hop: IpAddr,
}

impl Way<'_> {
    fn route(&self) -> Route {
        routes::by_way_of(everywhere(self.subnet), self.hop, &self.leg.link)
    }
}

fn ways_out<'p>(parts: &'p RouterNamespace<'_>, distributed: &Distributed, is_ipv4: bool) -> Vec<Way<'p>> {
    let of_family = |net: &IpNet| routes::is_ipv4(net) == is_ipv4;
    // A way out is of a family that the gateway has an address of.
    if !parts.router.gateway.as_ref().is_some_and(|gateway| gateway.addresses.iter().any(of_family)) {
        return Vec::new();
    }
    let nets = |leg: &'p Leg| leg.addresses.iter().filter(|net| of_family(net)).map(move |net| (leg, *net));
    let way = |(leg, subnet): (&'p Leg, IpNet)| {
        Some(Way { leg, subnet, hop: snat_address(distributed, leg.network, subnet)? })
    };
    parts.interfaces.iter().flat_map(nets).filter_map(way).collect()
}

/// Tells whether it matters by which `sg-` port what leaves comes to the gateway host, or whether something leaves
/// by another way. Packets are marked with the address scope of the network that they come in by.
fn depends_on_sender(parts: &RouterNamespace<'_>, ways: &[Way<'_>], is_ipv4: bool) -> bool {
    let scope = |way: &Way<'_>| {
        let scopes = parts.router.interfaces.get(&way.leg.port).map(|interface| interface.address_scopes);
        scopes.and_then(|scopes| if is_ipv4 { scopes.v4 } else { scopes.v6 })
    };
    let scopes: BTreeSet<_> = ways.iter().map(scope).collect();
    scopes.len() > 1 || (is_ipv4 && parts.floating_ips().next().is_some())
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
