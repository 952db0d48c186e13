//! A router's routes beside the connected ones: to the outside, and extra routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use evergate_model::RouterId;
use evergate_model::host::ExtraRoute;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::namespace::{Leg, RouterNamespace};
use super::{Compiler, Problem};
use crate::state::{Route, TABLE_MAIN};

impl Compiler<'_> {
    pub(super) fn routes(&mut self, parts: &RouterNamespace<'_>) -> Vec<Route> {
        let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
        let mut add = |route: Route| drop(routes.insert(route.destination, route));
        if let Some((leg, gateway)) = &parts.gateway {
            let spoken = |net: &&IpNet| leg.addresses.iter().any(|own| is_ipv4(own) == is_ipv4(net));
            for subnet in gateway.onlink_subnets.iter().filter(spoken) {
                add(on_link(subnet.trunc(), &leg.link));
            }
            for everywhere in [Ipv4Net::default().into(), Ipv6Net::default().into()].iter().filter(spoken) {
                let Some(hop) = gateway.next_hops.iter().find(|hop| hop.is_ipv4() == is_ipv4(everywhere)) else {
                    continue;
                };
                // A gateway outside all subnets (Neutron permits it) is first told to be on the link.
                let known = leg.addresses.iter().chain(&gateway.onlink_subnets).any(|net| net.contains(hop));
                if !known && !is_link_local(*hop) {
                    add(on_link(IpNet::from(*hop), &leg.link));
                }
                add(by_way_of(*everywhere, *hop, &leg.link));
            }
        }
        for route in &parts.router.routes {
            let same_family = is_ipv4(&route.destination) == route.nexthop.is_ipv4();
            match link_towards(parts, route.nexthop).filter(|_| same_family) {
                // An extra route to everywhere replaces the default route, as in Neutron.
                Some(link) => add(by_way_of(route.destination.trunc(), route.nexthop, &link)),
                None => self.out.problems.push(unreachable_nexthop(parts.router.id, route)),
            }
        }
        let mut routes: Vec<Route> = routes.into_values().collect();
        // A next hop must be reachable when the route by way of it is added.
        routes.sort_by_key(|route| route.via.is_some());
        routes
    }
}

pub(super) fn is_ipv4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

/// On the link by nature, and on no subnet.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

pub(super) fn on_link(destination: IpNet, link: &str) -> Route {
    Route { table: TABLE_MAIN, destination, via: None, link: Some(link.to_owned()) }
}

pub(super) fn by_way_of(destination: IpNet, via: IpAddr, link: &str) -> Route {
    Route { table: TABLE_MAIN, destination, via: Some(via), link: Some(link.to_owned()) }
}

/// The device on whose subnets an address is.
fn link_towards(parts: &RouterNamespace<'_>, ip: IpAddr) -> Option<String> {
    let on = |leg: &Leg| leg.addresses.iter().any(|net| net.contains(&ip));
    if let Some(leg) = parts.interfaces.iter().find(|leg| on(leg)) {
        return Some(leg.link.clone());
    }
    let (leg, gateway) = parts.gateway.as_ref()?;
    (on(leg) || gateway.onlink_subnets.iter().any(|net| net.contains(&ip))).then(|| leg.link.clone())
}

pub(super) fn unreachable_nexthop(router: RouterId, route: &ExtraRoute) -> Problem {
    let ExtraRoute { destination, nexthop } = route;
    Problem {
        object: format!("router {router}"),
        text: format!(
            "the route to {destination} is left out: its next hop {nexthop} is on none of the router's subnets here"
        ),
    }
}
