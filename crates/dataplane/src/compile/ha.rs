//! HA routers: what stands on every copy, and what follows the role.
//!
//! The items come in the order of adding: the virtual address, whose presence says "was active" to a
//! keeper that starts; internal and external addresses; floating IPs; routes; and last the forwarding
//! entries that turn this host's bridges to its own copy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use evergate_model::host::{HaCopy, Location, Network, Segment};
use evergate_model::names;

use super::dispatch::CopyPort;
use super::gateways;
use super::namespace::{self, Leg, RouterNamespace};
use super::{Announcement, Compiler, Prepared, PreparedItem, ipv6};
use crate::op::Op;
use crate::state::{Address, FdbEntry, FdbTable, Netns, Route};

impl<'a> Compiler<'a> {
    pub(super) fn ha_copy(&mut self, parts: &mut RouterNamespace<'a>, copy: &HaCopy) {
        let leg = Leg {
            port: copy.port_id,
            network: copy.network_id,
            link: names::ha_device(copy.port_id),
            mac: copy.mac,
            addresses: vec![copy.address.into()],
        };
        let virtual_address = namespace::address(&leg.link, copy.virtual_address);
        if role_following_legs(parts).any(Leg::has_ipv6) {
            ipv6::keep_quiet(&mut parts.state);
        }
        // Without its HA interface a copy must not have addresses: they stay the keeper's all the same.
        let plugged = self.plug(parts, &leg);
        if plugged {
            parts.state.addresses.insert(namespace::address(&leg.link, copy.address));
        }
        self.host_ns.keeper.fdb_macs.extend(role_following_legs(parts).map(|leg| leg.mac));
        let links = role_following_legs(parts).map(|leg| leg.link.clone()).collect();
        let keeper = &mut parts.state.keeper;
        keeper.links = links;
        keeper.addresses.insert(virtual_address.clone());
        if plugged {
            let place = CopyPort { mac: leg.mac, tap: names::tap(leg.port) };
            self.ha_copies.entry(leg.network).or_default().insert(copy.vrid, place);
            let prepared = self.prepare(parts, copy, &leg, virtual_address);
            self.out.prepared.insert(parts.router.id, prepared);
        }
    }

    fn prepare(&self, parts: &RouterNamespace<'_>, copy: &HaCopy, leg: &Leg, virtual_address: Address) -> Prepared {
        let ports = namespace::port_addresses(parts);
        let floating = namespace::floating_addresses(parts);
        let netns = &parts.netns;
        let mut items = vec![address_item(netns, virtual_address.clone())];
        items.extend(ports.iter().chain(&floating).map(|(address, _)| address_item(netns, address.clone())));
        items.extend(parts.routes.iter().map(|route| route_item(netns, route.clone())));
        items.extend(self.forwarding_items(parts));

        // The outside first: its neighbours are the most, and the farthest.
        let external = parts.gateway.as_ref().map(|(leg, _)| leg.link.clone());
        let (outside, inside): (Vec<_>, Vec<_>) =
            ports.into_iter().partition(|(address, _)| Some(&address.link) == external.as_ref());
        let virtual_address = [(virtual_address, leg.mac)];
        let announce = outside.into_iter().chain(floating).chain(inside).chain(virtual_address);
        Prepared {
            netns: parts.netns.to_string(),
            ha_link: leg.link.clone(),
            items,
            announce: announce.map(|(a, mac)| Announcement { link: a.link, mac, ip: a.net.addr() }).collect(),
            gateways: gateways::gateways(parts),
            uplinks: parts.gateway.as_ref().map(|(leg, _)| self.uplinks(leg.network)).unwrap_or_default(),
            claim_to: self.claim_to(parts, copy),
        }
    }

    /// The bridges' way to the router's addresses.
    ///
    /// Where a network's bridge learns, the entry is sticky. The next active copy says outside where it is while this one
    /// still forwards; a frame of this one's that is on its way then takes the outside switches' entries back, and its
    /// answer comes here. Had this bridge learned meanwhile that the way is by its uplink, where that answer came from, it
    /// would drop it.
    fn forwarding_items(&self, parts: &RouterNamespace<'_>) -> Vec<PreparedItem> {
        let item = |leg: &Leg| {
            let table = if self.is_tunnelled(leg.network) { FdbTable::Bridge } else { FdbTable::BridgeSticky };
            forwarding_item(FdbEntry { link: names::tap(leg.port), mac: leg.mac, table })
        };
        role_following_legs(parts).filter(|leg| self.segments.contains_key(&leg.network)).map(item).collect()
    }

    /// Hosts with a VXLAN network that the router has a port on, and hosts with another copy.
    fn claim_to(&self, parts: &RouterNamespace<'_>, copy: &HaCopy) -> BTreeSet<IpAddr> {
        let mut to: BTreeSet<IpAddr> = copy.peers.values().filter_map(|peer| peer.vtep).collect();
        let on_vxlan = |network: &&Network| matches!(network.segment, Segment::Vxlan { .. });
        for network in self.config.networks.values().filter(on_vxlan) {
            let follows = |l: &Location| matches!(l, Location::Active { router } if *router == parts.router.id);
            if network.ports.values().any(|port| follows(&port.location)) {
                to.extend(&network.peers);
            }
        }
        to.retain(|ip| Some(*ip) != self.host.local_ip);
        to
    }
}

fn address_item(netns: &Netns, address: Address) -> PreparedItem {
    PreparedItem {
        key: format!("address {} on {}", address.net, address.link),
        netns: netns.clone(),
        add: Op::AddAddress { netns: netns.clone(), address: address.clone() },
        del: Some(Op::DeleteAddress { netns: netns.clone(), address }),
    }
}

fn route_item(netns: &Netns, route: Route) -> PreparedItem {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let link = route.link.as_ref().map(|link| format!(" dev {link}")).unwrap_or_default();
    let destination =
        if route.destination.prefix_len() == 0 { "default".to_owned() } else { route.destination.to_string() };
    PreparedItem {
        key: format!("route {destination}{via}{link}"),
        netns: netns.clone(),
        add: Op::AddRoute { netns: netns.clone(), route: route.clone() },
        del: Some(Op::DeleteRoute { netns: netns.clone(), route }),
    }
}

fn forwarding_item(entry: FdbEntry) -> PreparedItem {
    PreparedItem {
        key: format!("forwarding of {} to {}", entry.mac, entry.link),
        netns: Netns::Host,
        add: Op::SetFdb { netns: Netns::Host, entry: entry.clone() },
        del: Some(Op::DeleteFdb { netns: Netns::Host, entry }),
    }
}

/// The ports whose addresses the active copy alone has.
fn role_following_legs<'a>(parts: &'a RouterNamespace<'_>) -> impl Iterator<Item = &'a Leg> {
    parts.interfaces.iter().chain(parts.gateway.iter().map(|(leg, _)| leg))
}
