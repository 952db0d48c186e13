//! From the kernel's lists to [`NetnsState`]: indexes become names, and what does not concern us is left out.

use std::collections::{BTreeMap, BTreeSet};

use evergate_dataplane::Netns;
use evergate_dataplane::state::{Address, FdbEntry, Link, LinkKind, NeighbourKey, NetnsState, Route};

use super::Raw;
use super::peers::Peers;
use crate::kernel::is_ours;
use crate::route::address::{RawAddress, is_link_local};
use crate::route::link::RawLink;
use crate::route::routes::RawRoute;

/// What is needed to judge one object of a namespace.
struct View<'a> {
    is_host: bool,
    wanted: &'a NetnsState,
    names: BTreeMap<u32, String>,
    /// Indexes of our links, and of our bridges among them.
    ours: BTreeSet<u32>,
    bridges: BTreeSet<u32>,
}

/// Puts a namespace into our words.
pub(super) fn translate(netns: &Netns, raw: Raw, wanted: &NetnsState, peers: &Peers) -> NetnsState {
    let indexes = |links: &mut dyn Iterator<Item = &RawLink>| links.map(|link| link.index).collect();
    let view = View {
        is_host: *netns == Netns::Host,
        wanted,
        names: raw.links.iter().map(|link| (link.index, link.name.clone())).collect(),
        ours: indexes(&mut raw.links.iter().filter(|link| is_ours(link))),
        bridges: indexes(&mut raw.links.iter().filter(|link| is_ours(link) && link.kind == "bridge")),
    };
    let links = raw.links.iter().filter(|link| view.shows(link));
    NetnsState {
        owned: true,
        links: links.map(|link| (link.name.clone(), view.link(link, peers.of(netns, link)))).collect(),
        addresses: raw.addresses.iter().filter_map(|found| view.address(found)).collect(),
        routes: raw.routes.iter().filter_map(|found| view.route(found)).collect(),
        // A rule of the host's namespace is nobody's in particular, unless it is one that we want.
        rules: raw.rules.into_iter().filter(|rule| !view.is_host || wanted.rules.contains(rule)).collect(),
        neighbours: raw
            .neighbours
            .iter()
            .filter_map(|found| Some((NeighbourKey { link: view.our_link(found.index)?, ip: found.ip }, found.mac)))
            .collect(),
        fdb: raw
            .fdb
            .into_iter()
            .filter_map(|found| {
                Some(FdbEntry { link: view.our_link(found.index)?, mac: found.mac, table: found.table })
            })
            .collect(),
        sysctls: raw.sysctls,
        nft: raw.nft,
        ..NetnsState::default()
    }
}

impl View<'_> {
    /// Ours, wanted, or a port of a bridge of ours.
    fn shows(&self, link: &RawLink) -> bool {
        is_ours(link)
            || self.wanted.links.contains_key(&link.name)
            || link.master.is_some_and(|master| self.bridges.contains(&master))
    }

    fn our_link(&self, index: u32) -> Option<String> {
        self.names.get(&index).filter(|_| self.ours.contains(&index)).cloned()
    }

    fn link(&self, raw: &RawLink, peer: Option<&(Netns, String)>) -> Link {
        let kind = match (raw.kind.as_str(), raw.vxlan) {
            _ if raw.is_loopback => LinkKind::Loopback,
            // Whatever it is, it is not for us to make or unmake.
            _ if !is_ours(raw) => LinkKind::Other,
            ("bridge", _) => LinkKind::Bridge,
            ("veth", _) => LinkKind::Veth { peer: peer.cloned() },
            ("vxlan", Some(vxlan)) => match vxlan.local {
                Some(local) => LinkKind::Vxlan { vni: vxlan.vni, local, port: vxlan.port },
                None => LinkKind::Other,
            },
            _ => LinkKind::Other,
        };
        Link {
            kind,
            alias: raw.alias.clone(),
            up: raw.up,
            mtu: raw.mtu,
            mac: raw.mac,
            master: raw.master.and_then(|master| self.names.get(&master)).cloned(),
            port: raw.port,
        }
    }

    fn address(&self, found: &RawAddress) -> Option<Address> {
        let address = Address { link: self.our_link(found.index)?, net: found.net };
        let ip = found.net.addr();
        // Each link has a link-local address from the kernel; one that we want looks just the same.
        let is_kernels = ip.is_loopback() || is_link_local(ip);
        let shows = found.is_permanent && (!is_kernels || self.wanted.addresses.contains(&address));
        shows.then_some(address)
    }

    fn route(&self, found: &RawRoute) -> Option<Route> {
        let link = found.index.and_then(|index| self.names.get(&index)).cloned();
        let by_ours = found.index.is_some_and(|index| self.ours.contains(&index));
        let route = Route { table: found.table, destination: found.destination, via: found.via, link };
        let shows = !self.is_host || by_ours || self.wanted.routes.contains(&route);
        shows.then_some(route)
    }
}
