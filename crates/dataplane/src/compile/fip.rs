//! Floating IPs of distributed routers, on the host of the instance.
//!
//! Per external network a host has one namespace, `fip-<network>`, with one device on that network, `fg-`. It
//! answers for the floating IPs of all routers here (proxy ARP), and hands packets to them to the router by a
//! pair of devices, `fpr-` to `rfp-`. The router translates, and sends what its instances with a floating IP
//! say to the outside by the same pair. Nothing is translated in the `fip-` namespace, so nothing is tracked.
//!
//! The pair's addresses are two neighbours of Neutron's range. Which two is computed from the ids of the
//! routers here alone: the same after every restart, and different for any two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::host::{AgentGateway, Distributed, Gateway};
use evergate_model::{Mac, NetworkId, RouterId, names};
use ipnet::{IpNet, Ipv4Net};

use super::distributed::{FLOATING_RULE, FLOATING_TABLE, in_table};
use super::namespace::{Leg, RouterNamespace, loopback, track_connections};
use super::{Compiler, nat, routes};
use crate::state::{
    Address, BridgePort, FIP_PAIRS, Link, LinkKind, NeighbourKey, Netns, NetnsState, OWNER_MARK, Route, Rule,
};

/// A `fip-` namespace while it is compiled.
pub(super) struct FipNamespace {
    netns: Netns,
    gateway: AgentGateway,
    /// Name of the `fg-` device.
    link: String,
    /// Of the external network.
    mtu: Option<u32>,
    /// Subnets of the external network that the device has no address on.
    on_link: BTreeSet<Ipv4Net>,
    state: NetnsState,
}

/// Both ends of the pair between a router and a `fip-` namespace.
struct Pair {
    router_link: String,
    router_ip: Ipv4Addr,
    router_mac: Mac,
    fip_link: String,
    fip_ip: Ipv4Addr,
    fip_mac: Mac,
}

impl Pair {
    fn new(router: RouterId, number: u32) -> Self {
        let base = u32::from(FIP_PAIRS.network()) + 2 * number;
        let [a, b, c, d, e, ..] = *router.0.as_bytes();
        Self {
            router_link: names::router_to_fip_device(router),
            router_ip: Ipv4Addr::from(base),
            // Locally administered, and seen by each other alone.
            router_mac: Mac([0x02, a, b, c, d, e]),
            fip_link: names::fip_to_router_device(router),
            fip_ip: Ipv4Addr::from(base + 1),
            fip_mac: Mac([0x06, a, b, c, d, e]),
        }
    }
}

/// Numbers of pairs, for all routers of a host: each router's is drawn from its id, and the next free one is
/// taken by the later of two that draw the same.
pub(super) fn pair_numbers(routers: impl Iterator<Item = RouterId>) -> BTreeMap<RouterId, u32> {
    const PAIRS: u32 = 1 << (32 - 18 - 1);
    let routers: BTreeSet<RouterId> = routers.collect();
    let (mut numbers, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for router in routers.into_iter().take(PAIRS as usize) {
        let draw = (crate::nft::fnv1a(router.0.as_bytes()) % u64::from(PAIRS)) as u32;
        let free = (0..PAIRS).map(|step| (draw + step) % PAIRS).find(|number| !taken.contains(number));
        let number = free.expect("no more routers are asked for than there are pairs");
        taken.insert(number);
        numbers.insert(router, number);
    }
    numbers
}

impl<'a> Compiler<'a> {
    /// Translates floating IPs here, and leads to the host's `fip-` namespace.
    pub(super) fn floating_ips_here(&mut self, parts: &mut RouterNamespace<'a>, distributed: &Distributed) {
        let Some(gateway) = &parts.router.gateway else { return };
        let Some(agent) = &distributed.agent_gateway else {
            for fip in parts.floating_ips() {
                let text = format!("floating IP {} is left out: this host has no way out of its own", fip.floating);
                self.out.problems.push(super::Problem { object: format!("router {}", parts.router.id), text });
            }
            return;
        };
        let Some(number) = self.fip_pairs.get(&parts.router.id).copied() else {
            self.problem(format!("router {}", parts.router.id), "there are no more addresses for fpr- devices here");
            return;
        };
        if !self.fip_namespace(gateway.network_id, agent) {
            return;
        }
        let pair = Pair::new(parts.router.id, number);
        let Some(fip) = self.fip_namespaces.get_mut(&gateway.network_id) else { return };
        fip.join(parts, &pair);
        fip.lead_out(gateway, parts, &pair);
        let to_fip = routes::by_way_of(IPV4.into(), pair.fip_ip.into(), &pair.router_link);
        parts.state.routes.insert(in_table(FLOATING_TABLE, to_fip));
        let fixed: BTreeSet<Ipv4Addr> = parts.floating_ips().map(|fip| fip.fixed).collect();
        parts.state.rules.extend(fixed.into_iter().map(|fixed| Rule {
            priority: FLOATING_RULE,
            from: Some(IpNet::V4(Ipv4Net::from(fixed))),
            to: None,
            iif: None,
            table: FLOATING_TABLE,
        }));
        // Without any, nothing is translated, and what goes from instance to instance need not be tracked.
        if parts.floating_ips().next().is_some() {
            let table = nat::table(&pair.router_link, None, parts.floating_ips());
            parts.state.nft.insert(table.family, table);
            track_connections(&mut parts.state);
        }
    }

    /// Begins the namespace, unless another router did; false where it cannot be.
    fn fip_namespace(&mut self, network: NetworkId, agent: &AgentGateway) -> bool {
        if let Some(begun) = self.fip_namespaces.get(&network) {
            let is_same = begun.gateway == *agent;
            if !is_same {
                let text = "its routers are told of different ports of this host on it; the first is used";
                self.problem(format!("network {network}"), text);
            }
            return true;
        }
        let owner = format!("network {network}");
        let netns = Netns::Named(names::fip_namespace(network));
        let link = names::agent_gateway_device(agent.port_id);
        let mut state = NetnsState {
            owned: true,
            links: BTreeMap::from([("lo".to_owned(), loopback(&owner))]),
            sysctls: self.sysctls(false, false),
            ..NetnsState::default()
        };
        let leg = Leg { port: agent.port_id, network, link: link.clone(), mac: agent.mac, addresses: Vec::new() };
        let port = BridgePort { learning: true, neigh_suppress: false, isolated: false };
        if !self.make_pair(&owner, &netns, &mut state.links, (&leg, port)) {
            return false;
        }
        // It answers for every address that it has a route for by another device, and at once: by default an
        // answer in another's name waits for up to 0.8 s.
        state.sysctls.insert(format!("ipv4/conf/{link}/proxy_arp"), "1".to_owned());
        state.sysctls.insert(format!("ipv4/neigh/{link}/proxy_delay"), "0".to_owned());
        let v4 = agent.addresses.iter().filter(|net| matches!(net, IpNet::V4(_)));
        state.addresses = v4.map(|net| Address { link: link.clone(), net: *net }).collect();
        let mtu = self.segments.get(&network).map(|segment| segment.mtu);
        let begun = FipNamespace { netns, gateway: agent.clone(), link, mtu, on_link: BTreeSet::new(), state };
        self.fip_namespaces.insert(network, begun);
        true
    }

    /// Puts the namespaces into the state, when all routers have joined.
    pub(super) fn finish_fip_namespaces(&mut self) {
        for (_, mut fip) in std::mem::take(&mut self.fip_namespaces) {
            let connected = |net: &Ipv4Net| fip.state.addresses.iter().any(|a| a.net.trunc() == IpNet::V4(*net));
            let on_link = fip.on_link.iter().filter(|net| !connected(net));
            let on_link: Vec<Route> = on_link.map(|net| routes::on_link((*net).into(), &fip.link)).collect();
            fip.state.routes.extend(on_link);
            self.out.kernel.netns.insert(fip.netns, fip.state);
        }
    }
}

impl FipNamespace {
    /// Makes the pair of devices to a router, with what both ends know of each other.
    fn join(&mut self, parts: &mut RouterNamespace<'_>, pair: &Pair) {
        let alias = Some(format!("{OWNER_MARK} router {} floating IPs", parts.router.id));
        let end = |netns: &Netns, name: &str, mac| Link {
            kind: LinkKind::Veth { peer: Some((netns.clone(), name.to_owned())) },
            alias: alias.clone(),
            up: true,
            mtu: self.mtu,
            mac: Some(mac),
            master: None,
            port: None,
        };
        let (here, there) = (&parts.netns, &self.netns);
        let (outer, inner) = (end(there, &pair.fip_link, pair.router_mac), end(here, &pair.router_link, pair.fip_mac));
        let net = |ip| IpNet::V4(Ipv4Net::new_assert(ip, 31));
        let furnish = |state: &mut NetnsState, name: &str, link, (own, other, mac)| {
            state.links.insert(name.to_owned(), link);
            state.addresses.insert(Address { link: name.to_owned(), net: net(own) });
            state.neighbours.insert(NeighbourKey { link: name.to_owned(), ip: IpAddr::V4(other) }, mac);
        };
        let (router_ip, fip_ip) = (pair.router_ip, pair.fip_ip);
        furnish(&mut parts.state, &pair.router_link, outer, (router_ip, fip_ip, pair.fip_mac));
        furnish(&mut self.state, &pair.fip_link, inner, (fip_ip, router_ip, pair.router_mac));
    }

    /// Leads packets to floating IPs to the router, and those from it to the router's next hop outside.
    fn lead_out(&mut self, gateway: &Gateway, parts: &RouterNamespace<'_>, pair: &Pair) {
        for fip in parts.floating_ips() {
            let to = Ipv4Net::from(fip.floating).into();
            self.state.routes.insert(routes::by_way_of(to, pair.router_ip.into(), &pair.fip_link));
        }
        let subnets = ipv4_subnets(gateway);
        // Routers of one host may have different next hops. Neutron's number for both: the device's address.
        let number = u32::from(pair.fip_ip);
        let iif = Some(pair.fip_link.clone());
        self.state.rules.insert(Rule { priority: number, from: None, to: None, iif, table: number });
        let mut outward: BTreeMap<IpNet, Ipv4Addr> = BTreeMap::new();
        outward.extend(gateway.next_hops.iter().find_map(|hop| ipv4(*hop)).map(|hop| (IPV4.into(), hop)));
        let extra =
            parts.router.routes.iter().filter_map(|route| Some((route.destination.trunc(), ipv4(route.nexthop)?)));
        // An extra route to everywhere replaces the default route, as in Neutron.
        outward.extend(extra.filter(|(_, hop)| subnets.iter().any(|net| net.contains(hop))));
        for (to, hop) in outward {
            if !subnets.iter().any(|net| net.contains(&hop)) {
                self.on_link.insert(Ipv4Net::from(hop));
            }
            self.state.routes.insert(in_table(number, routes::by_way_of(to, hop.into(), &self.link)));
        }
        self.on_link.extend(subnets);
    }
}

const IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

fn ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn ipv4_subnets(gateway: &Gateway) -> BTreeSet<Ipv4Net> {
    let nets = gateway.addresses.iter().chain(&gateway.onlink_subnets);
    nets.filter_map(|net| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_router_has_a_pair_of_its_own_whichever_others_there_are() {
        let routers = |n: u128| (1..=n).map(|n| RouterId::from_u128(n << 64));
        let numbers = pair_numbers(routers(4000));
        assert_eq!(numbers.values().collect::<BTreeSet<_>>().len(), 4000);
        assert_eq!(pair_numbers(routers(4000)), numbers);
        let alone = pair_numbers(routers(1));
        assert_eq!(alone.values().next(), numbers.values().next(), "the first in order has what it draws");
    }

    #[test]
    fn more_routers_than_pairs_leave_the_last_without() {
        let numbers = pair_numbers((1..=8200).map(RouterId::from_u128));
        assert_eq!(numbers.len(), 8192);
    }

    #[test]
    fn a_pair_is_within_neutrons_range() {
        let last = Pair::new(RouterId::from_u128(1), 8191);
        assert_eq!(
            (last.router_ip.to_string(), last.fip_ip.to_string()),
            ("169.254.127.254".into(), "169.254.127.255".into())
        );
    }
}
