//! A router's routes beside the connected ones: to the outside, and extra routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::RouterId;
use ipnet::{IpNet, Ipv4Net};

use super::namespace::{Leg, RouterNamespace};
use super::{Compiler, Problem};
use crate::state::{Route, TABLE_MAIN};

impl Compiler<'_> {
    pub(super) fn routes(&mut self, parts: &RouterNamespace<'_>) -> Vec<Route> {
        let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
        let mut add = |route: Route| routes.insert(route.destination, route);
        if let Some((leg, gateway)) = &parts.gateway {
            for subnet in ipv4_only(&gateway.onlink_subnets) {
                add(on_link(subnet, &leg.link));
            }
            let next_hop = gateway.next_hops.iter().find_map(|hop| match hop {
                IpAddr::V4(hop) => Some(*hop),
                IpAddr::V6(_) => None,
            });
            if let Some(hop) = next_hop {
                // A gateway outside all subnets (Neutron permits it) is first told to be on the link.
                let onlink = || ipv4_only(&gateway.onlink_subnets).any(|net| net.contains(&hop));
                if !leg.addresses.iter().any(|net| net.contains(&hop)) && !onlink() {
                    add(on_link(Ipv4Net::from(hop), &leg.link));
                }
                add(by_way_of(Ipv4Net::default(), hop, &leg.link));
            }
        }
        for route in &parts.router.routes {
            let (IpNet::V4(destination), IpAddr::V4(nexthop)) = (route.destination, route.nexthop) else {
                continue;
            };
            match link_towards(parts, nexthop) {
                // An extra route to everywhere replaces the default route, as in Neutron.
                Some(link) => drop(add(by_way_of(destination.trunc(), nexthop, &link))),
                None => self.out.problems.push(unreachable_nexthop(parts.router.id, destination, nexthop)),
            }
        }
        let mut routes: Vec<Route> = routes.into_values().collect();
        // A next hop must be reachable when the route by way of it is added.
        routes.sort_by_key(|route| route.via.is_some());
        routes
    }
}

fn ipv4_only(nets: &[IpNet]) -> impl Iterator<Item = Ipv4Net> + '_ {
    nets.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    })
}

fn on_link(destination: Ipv4Net, link: &str) -> Route {
    Route { table: TABLE_MAIN, destination: IpNet::V4(destination), via: None, link: Some(link.to_owned()) }
}

fn by_way_of(destination: Ipv4Net, via: Ipv4Addr, link: &str) -> Route {
    let (destination, via) = (IpNet::V4(destination), Some(IpAddr::V4(via)));
    Route { table: TABLE_MAIN, destination, via, link: Some(link.to_owned()) }
}

/// The device on whose subnets an address is.
fn link_towards(parts: &RouterNamespace<'_>, ip: Ipv4Addr) -> Option<String> {
    let on = |leg: &Leg| leg.addresses.iter().any(|net| net.contains(&ip));
    if let Some(leg) = parts.interfaces.iter().find(|leg| on(leg)) {
        return Some(leg.link.clone());
    }
    let (leg, gateway) = parts.gateway.as_ref()?;
    (on(leg) || ipv4_only(&gateway.onlink_subnets).any(|net| net.contains(&ip))).then(|| leg.link.clone())
}

fn unreachable_nexthop(router: RouterId, destination: Ipv4Net, nexthop: Ipv4Addr) -> Problem {
    Problem {
        object: format!("router {router}"),
        text: format!(
            "the route to {destination} is left out: its next hop {nexthop} is on none of the router's subnets here"
        ),
    }
}
