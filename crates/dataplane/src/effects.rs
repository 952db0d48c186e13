//! What each op does to a kernel's state, by the real kernel's rules as far as a plan depends on them.
//!
//! [`diff`](crate::diff()) follows its own plan with it, so that it knows what is left after a link went
//! with all that was on it; [`FakeKernel`](crate::fake::FakeKernel) is made of it. Crate `evergate-kernel`
//! compares it with a real kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::Mac;
use ipnet::IpNet;

use crate::nft::{NftFamily, NftRule, NftTable};
use crate::op::{LinkChange, Op};
use crate::state::{
    Address, BridgePort, FdbEntry, FdbTable, KernelState, Link, LinkKind, NeighbourKey, Netns, NetnsState, Route,
    TABLE_MAIN,
};

/// Why a kernel would refuse an op.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Something that the op needs is not there.
    #[error("{0} does not exist")]
    Missing(String),
    /// Something else has the name or number.
    #[error("{0} exists already")]
    Exists(String),
    /// The kernel does not accept this.
    #[error("{0}")]
    Invalid(String),
}

/// Longest name of a link: IFNAMSIZ without the terminating zero.
const LINK_NAME_MAX: usize = 15;

/// A port's flags when it joins a bridge, whatever they were before.
const NEW_PORT: BridgePort = BridgePort { learning: true, neigh_suppress: false, isolated: false };

/// Does what the op does.
///
/// A link may become a port of a bridge that is not in the state: the operator's bridges are not observed.
pub fn apply(state: &mut KernelState, op: &Op) -> Result<(), Impossible> {
    match op {
        Op::AddNetns { name, alias } => add_netns(state, name, alias),
        Op::DeleteNetns { name } => delete_netns(state, name),
        Op::AddLink { netns, name, link, peer_link } => add_link(state, netns, name, link, peer_link.as_deref()),
        Op::SetLink { netns, name, change } => set_link(place(state, netns)?, name, change),
        Op::DeleteLink { netns, name } => {
            place(state, netns)?;
            delete_link(state, netns, name);
            Ok(())
        }
        Op::AddAddress { netns, address } => add_address(place(state, netns)?, address),
        Op::DeleteAddress { netns, address } => delete_address(place(state, netns)?, address),
        Op::AddRoute { netns, route } => add_route(place(state, netns)?, route),
        Op::DeleteRoute { netns, route } => done(place(state, netns)?.routes.remove(route)),
        Op::AddRule { netns, rule } => done(place(state, netns)?.rules.insert(rule.clone())),
        Op::DeleteRule { netns, rule } => done(place(state, netns)?.rules.remove(rule)),
        Op::SetNeighbour { netns, link, ip, mac } => {
            let ns = place(state, netns)?;
            require_link(ns, link)?;
            require_family(ns, link, *ip)?;
            done(ns.neighbours.insert(NeighbourKey { link: link.clone(), ip: *ip }, *mac))
        }
        Op::DeleteNeighbour { netns, link, ip } => {
            done(place(state, netns)?.neighbours.remove(&NeighbourKey { link: link.clone(), ip: *ip }))
        }
        Op::SetFdb { netns, entry } => set_fdb(place(state, netns)?, entry),
        Op::DeleteFdb { netns, entry } => done(place(state, netns)?.fdb.remove(entry)),
        Op::SetSysctl { netns, path, value } => {
            require_sysctl(state, netns, path)?;
            let ns = place(state, netns)?;
            ns.sysctls.insert(path.clone(), value.clone());
            let link = sysctl_link(path);
            if path == "ipv6/conf/all/disable_ipv6" {
                // The kernel writes it to every link.
                let is_links = |path: &str| path.ends_with("/disable_ipv6") && sysctl_link(path).is_some();
                ns.sysctls.iter_mut().filter(|(path, _)| is_links(path)).for_each(|(_, own)| own.clone_from(value));
            }
            if path.ends_with("/disable_ipv6") && value == "1" && (link.is_some() || path.contains("/all/")) {
                forget_ipv6(ns, link);
            }
            Ok(())
        }
        Op::ReplaceNft { netns, table } => replace_nft(place(state, netns)?, table),
        Op::DeleteNft { netns, family } => {
            place(state, netns)?.nft.remove(family);
            Ok(())
        }
    }
}

/// A device that is missing is left out of the table, and told.
fn replace_nft(ns: &mut NetnsState, table: &NftTable) -> Result<(), Impossible> {
    let mut maps = table.chains.values().flat_map(|chain| &chain.rules).flat_map(NftRule::maps);
    if let Some(map) = maps.find(|map| !table.maps.contains_key(*map)) {
        return Err(Impossible::Missing(format!("nftables map {map}")));
    }
    let is_missing = |device: &str| !ns.links.contains_key(device);
    let missing = table.devices().into_iter().find(|device| is_missing(device));
    let made = if missing.is_some() { table.without_devices(is_missing).as_observed() } else { table.as_observed() };
    ns.nft.insert(table.family, made);
    missing.map_or(Ok(()), |device| Err(Impossible::Missing(format!("link {device}"))))
}

/// Takes a link away with all that is on it; of a veth, both ends.
pub fn delete_link(state: &mut KernelState, netns: &Netns, name: &str) {
    let Some(link) = state.netns.get_mut(netns).and_then(|ns| forget_link(ns, name)) else { return };
    if let LinkKind::Veth { peer: Some((peer_netns, peer_name)) } = link.kind
        && let Some(ns) = state.netns.get_mut(&peer_netns)
    {
        forget_link(ns, &peer_name);
    }
}

/// Finds the link whose setting a path below `/proc/sys/net` is; `all` and `default` are not links.
pub fn sysctl_link(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    let (family, table, link) = (parts.next()?, parts.next()?, parts.next()?);
    let per_link = matches!(family, "ipv4" | "ipv6") && matches!(table, "conf" | "neigh");
    (per_link && !matches!(link, "all" | "default")).then_some(link)
}

fn done<T>(_: T) -> Result<(), Impossible> {
    // Adding what is there and deleting what is gone both succeed.
    Ok(())
}

fn place<'a>(state: &'a mut KernelState, netns: &Netns) -> Result<&'a mut NetnsState, Impossible> {
    state.netns.get_mut(netns).ok_or_else(|| Impossible::Missing(format!("namespace {netns}")))
}

fn require_link<'a>(ns: &'a NetnsState, name: &str) -> Result<&'a Link, Impossible> {
    ns.links.get(name).ok_or_else(|| Impossible::Missing(format!("link {name}")))
}

/// A protocol family that is switched off on a link takes neither addresses nor neighbours.
fn require_family(ns: &NetnsState, link: &str, ip: IpAddr) -> Result<(), Impossible> {
    let off = |what: &str| ns.sysctls.get(&format!("ipv6/conf/{what}/disable_ipv6")).map(|value| value == "1");
    if ip.is_ipv6() && off(link).or(off("all")).unwrap_or(false) {
        return Err(Impossible::Invalid(format!("IPv6 is disabled on {link}")));
    }
    Ok(())
}

pub(crate) fn require_sysctl(state: &KernelState, netns: &Netns, path: &str) -> Result<(), Impossible> {
    if let (Some(link), Some(ns)) = (sysctl_link(path), state.netns.get(netns)) {
        require_link(ns, link)?;
    }
    // Connection tracking is a module that NAT rules load.
    if path.starts_with("netfilter/") && state.netns.values().all(|ns| ns.nft.is_empty()) {
        return Err(Impossible::Missing(format!("setting {path}")));
    }
    Ok(())
}

fn add_netns(state: &mut KernelState, name: &str, alias: &str) -> Result<(), Impossible> {
    let loopback = Link {
        kind: LinkKind::Loopback,
        alias: Some(alias.to_owned()),
        up: true,
        mtu: Some(65536),
        mac: Some(Mac::ZERO),
        master: None,
        port: None,
    };
    state.netns.entry(Netns::Named(name.to_owned())).or_insert_with(|| NetnsState {
        owned: true,
        links: BTreeMap::from([("lo".to_owned(), loopback)]),
        ..NetnsState::default()
    });
    Ok(())
}

fn delete_netns(state: &mut KernelState, name: &str) -> Result<(), Impossible> {
    let netns = Netns::Named(name.to_owned());
    let links: Vec<String> = state.netns.get(&netns).map(|ns| ns.links.keys().cloned().collect()).unwrap_or_default();
    for link in links {
        delete_link(state, &netns, &link);
    }
    done(state.netns.remove(&netns))
}

fn add_link(
    state: &mut KernelState,
    netns: &Netns,
    name: &str,
    link: &Link,
    peer_link: Option<&Link>,
) -> Result<(), Impossible> {
    check_new_link(place(state, netns)?, name, link)?;
    match &link.kind {
        LinkKind::Bridge | LinkKind::Vxlan { .. } => {}
        LinkKind::Veth { peer: Some((peer_netns, peer_name)) } => {
            let peer_link = peer_link
                .ok_or_else(|| Impossible::Invalid(format!("veth {name} is to be made without its other end")))?;
            let peer_ns = place(state, peer_netns)?;
            check_new_link(peer_ns, peer_name, peer_link)?;
            make_or_adjust(peer_ns, peer_name, peer_link)?;
        }
        LinkKind::Veth { peer: None } | LinkKind::Other | LinkKind::Loopback => {
            return Err(Impossible::Invalid(format!("{name} is of a kind that cannot be made")));
        }
    }
    make_or_adjust(place(state, netns)?, name, link)
}

/// A link that is there already is brought to what the new one would be.
fn make_or_adjust(ns: &mut NetnsState, name: &str, link: &Link) -> Result<(), Impossible> {
    let Some(present) = ns.links.get(name) else {
        ns.links.insert(name.to_owned(), made(name, link));
        return Ok(());
    };
    let moves = link.master != present.master;
    let change = LinkChange {
        up: Some(link.up).filter(|up| *up != present.up),
        mtu: link.mtu,
        mac: link.mac.filter(|_| link.mac != present.mac),
        master: Some(link.master.clone()).filter(|_| moves),
        alias: link.alias.clone(),
        port: link.port.filter(|_| link.master.is_some()),
    };
    set_link(ns, name, &change)
}

fn check_new_link(ns: &NetnsState, name: &str, link: &Link) -> Result<(), Impossible> {
    if name.is_empty() || name.len() > LINK_NAME_MAX {
        return Err(Impossible::Invalid(format!("'{name}' is not a link name")));
    }
    if let Some(present) = ns.links.get(name)
        && present.kind != link.kind
    {
        return Err(Impossible::Exists(format!("link {name}")));
    }
    if let LinkKind::Vxlan { vni, port, .. } = &link.kind {
        for (other_name, other) in ns.links.iter().filter(|(other_name, _)| *other_name != name) {
            if matches!(&other.kind, LinkKind::Vxlan { vni: v, port: p, .. } if v == vni && p == port) {
                return Err(Impossible::Exists(format!("a VXLAN device for VNI {vni}, {other_name},")));
            }
        }
    }
    Ok(())
}

/// A new link has the kernel's values where none are given.
fn made(name: &str, link: &Link) -> Link {
    let sum = name.bytes().fold(0u16, |sum, b| sum.wrapping_mul(31).wrapping_add(u16::from(b)));
    let [high, low] = sum.to_be_bytes();
    Link {
        mtu: link.mtu.or(Some(1500)),
        mac: link.mac.or(Some(Mac([0x02, 0, 0, 0, high, low]))),
        port: link.master.as_ref().map(|_| link.port.unwrap_or(NEW_PORT)),
        ..link.clone()
    }
}

fn set_link(ns: &mut NetnsState, name: &str, change: &LinkChange) -> Result<(), Impossible> {
    let link = ns.links.get_mut(name).ok_or_else(|| Impossible::Missing(format!("link {name}")))?;
    link.mtu = change.mtu.or(link.mtu);
    link.alias = change.alias.clone().or_else(|| link.alias.clone());
    let left_bridge = change.master.as_ref().is_some_and(|master| *master != link.master);
    if let Some(master) = &change.master {
        link.master.clone_from(master);
    }
    if left_bridge {
        link.port = link.master.as_ref().map(|_| NEW_PORT);
    }
    if let Some(port) = change.port {
        if link.master.is_none() {
            return Err(Impossible::Invalid(format!("{name} is not a bridge port")));
        }
        link.port = Some(port);
    }
    let went_down = link.up && change.up == Some(false);
    let readdressed = change.mac.is_some();
    link.mac = change.mac.or(link.mac);
    link.up = change.up.unwrap_or(link.up);
    if left_bridge {
        forget_fdb(ns, name, |entry| entry.table.is_bridge());
    }
    if went_down {
        ns.routes.retain(|route| route.link.as_deref() != Some(name));
        // IPv4 addresses stay on a link that is down, IPv6 ones do not (unless keep_addr_on_down says so).
        ns.addresses.retain(|address| address.link != name || address.net.addr().is_ipv4());
    }
    // The kernel forgets permanent neighbours, too, when a link goes down or its address is set.
    if went_down || readdressed {
        forget_neighbours(ns, name);
    }
    Ok(())
}

/// Takes one end of a link away, with what depends on it in its namespace.
fn forget_link(ns: &mut NetnsState, name: &str) -> Option<Link> {
    let link = ns.links.remove(name)?;
    ns.routes.retain(|route| route.link.as_deref() != Some(name));
    forget_addresses(ns, name);
    forget_neighbours(ns, name);
    forget_fdb(ns, name, |_| true);
    if let Some(table) = ns.nft.get_mut(&NftFamily::Netdev) {
        table.forget_device(name);
    }
    for table in ["ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"] {
        let start = format!("{table}/{name}/");
        let from_start = ns.sysctls.range(start.clone()..);
        let paths: Vec<String> =
            from_start.map(|(path, _)| path.clone()).take_while(|p| p.starts_with(&start)).collect();
        for path in &paths {
            ns.sysctls.remove(path);
        }
    }
    if matches!(link.kind, LinkKind::Bridge | LinkKind::Other) {
        free_ports(ns, name);
    }
    Some(link)
}

/// The ports of a bridge that is gone stay, with nothing that the bridge knew.
fn free_ports(ns: &mut NetnsState, bridge: &str) {
    let mut freed = Vec::new();
    for (port_name, port) in ns.links.iter_mut().filter(|(_, port)| port.master.as_deref() == Some(bridge)) {
        port.master = None;
        port.port = None;
        freed.push(port_name.clone());
    }
    freed.iter().for_each(|port| forget_fdb(ns, port, |entry| entry.table.is_bridge()));
}

// The sets are ordered by link first. With thousands of links on a host, what one link has is looked up,
// not searched for.

fn forget_addresses(ns: &mut NetnsState, link: &str) {
    let first = Address { link: link.to_owned(), net: IpNet::default() };
    let gone: Vec<Address> = ns.addresses.range(first..).take_while(|a| a.link == link).cloned().collect();
    for address in &gone {
        ns.addresses.remove(address);
    }
}

/// Switching IPv6 off on a link, or on all, takes away what is there of it.
fn forget_ipv6(ns: &mut NetnsState, link: Option<&str>) {
    let stays = |name: Option<&str>, is_ipv4: bool| is_ipv4 || link.is_some_and(|link| name != Some(link));
    ns.addresses.retain(|address| stays(Some(&address.link), address.net.addr().is_ipv4()));
    ns.routes.retain(|route| stays(route.link.as_deref(), route.destination.addr().is_ipv4()));
    ns.neighbours.retain(|key, _| stays(Some(&key.link), key.ip.is_ipv4()));
}

fn forget_neighbours(ns: &mut NetnsState, link: &str) {
    let first = NeighbourKey { link: link.to_owned(), ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let keys = ns.neighbours.range(first..).map(|(key, _)| key);
    let gone: Vec<NeighbourKey> = keys.take_while(|key| key.link == link).cloned().collect();
    for key in &gone {
        ns.neighbours.remove(key);
    }
}

fn forget_fdb(ns: &mut NetnsState, link: &str, which: impl Fn(&FdbEntry) -> bool) {
    let first = FdbEntry { link: link.to_owned(), mac: Mac::ZERO, table: FdbTable::Bridge };
    let on_link = ns.fdb.range(first..).take_while(|entry| entry.link == link);
    let gone: Vec<FdbEntry> = on_link.filter(|entry| which(entry)).cloned().collect();
    for entry in &gone {
        ns.fdb.remove(entry);
    }
}

fn add_address(ns: &mut NetnsState, address: &Address) -> Result<(), Impossible> {
    require_link(ns, &address.link)?;
    require_family(ns, &address.link, address.net.addr())?;
    done(ns.addresses.insert(address.clone()))
}

fn delete_address(ns: &mut NetnsState, address: &Address) -> Result<(), Impossible> {
    if !ns.addresses.remove(address) {
        return Ok(());
    }
    // A link that loses its last IPv4 address loses its IPv4 routes, too.
    let is_v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
    if is_v4(&address.net) && !ns.addresses.iter().any(|a| a.link == address.link && is_v4(&a.net)) {
        ns.routes.retain(|route| route.link.as_deref() != Some(address.link.as_str()) || !is_v4(&route.destination));
    }
    Ok(())
}

fn add_route(ns: &mut NetnsState, route: &Route) -> Result<(), Impossible> {
    let mut route = route.clone();
    if let Some(via) = route.via {
        let found = on_link(ns, via, &route);
        let link = found.ok_or_else(|| Impossible::Invalid(format!("next hop {via} is not on any link")))?;
        // The kernel fills in the link that it finds.
        route.link = Some(link);
    }
    let link = route.link.as_deref().ok_or_else(|| Impossible::Invalid("a route leads nowhere".to_owned()))?;
    if !require_link(ns, link)?.up {
        return Err(Impossible::Invalid(format!("link {link} is down")));
    }
    // Adding replaces the route there is.
    ns.routes.retain(|r| (r.table, r.destination) != (route.table, route.destination));
    done(ns.routes.insert(route))
}

/// Finds the link that an address is reached on directly.
fn on_link(ns: &NetnsState, ip: IpAddr, route: &Route) -> Option<String> {
    let wanted = |link: &str| route.link.as_deref().is_none_or(|only| only == link);
    let connected = ns.addresses.iter().find(|a| wanted(&a.link) && a.net.contains(&ip)).map(|a| a.link.clone());
    connected.or_else(|| {
        let routes = ns.routes.iter().filter(|r| [TABLE_MAIN, route.table].contains(&r.table) && r.via.is_none());
        let mut links = routes.filter(|r| r.destination.contains(&ip)).filter_map(|r| r.link.clone());
        links.find(|link| wanted(link))
    })
}

fn set_fdb(ns: &mut NetnsState, entry: &FdbEntry) -> Result<(), Impossible> {
    let link = require_link(ns, &entry.link)?;
    match (&entry.table, &link.kind) {
        (FdbTable::Bridge | FdbTable::BridgeSticky, _) => {
            let master = link
                .master
                .clone()
                .ok_or_else(|| Impossible::Invalid(format!("{} is not a bridge port", entry.link)))?;
            if entry.mac == Mac::ZERO || entry.mac.is_multicast() {
                return Err(Impossible::Invalid(format!("{} is not one station's address", entry.mac)));
            }
            // A bridge knows an address on one port only.
            let NetnsState { links, fdb, .. } = ns;
            for (port, _) in links.iter().filter(|(_, link)| link.master.as_ref() == Some(&master)) {
                for table in [FdbTable::Bridge, FdbTable::BridgeSticky] {
                    fdb.remove(&FdbEntry { link: port.clone(), table, ..entry.clone() });
                }
            }
        }
        (FdbTable::Vxlan { dst }, LinkKind::Vxlan { local, .. }) => {
            if dst.is_ipv4() != local.is_ipv4() {
                return Err(Impossible::Invalid(format!("{dst} and {local} are of different families")));
            }
            if entry.mac != Mac::ZERO {
                forget_tunnel_entries(ns, entry);
            }
        }
        (FdbTable::Nexthop { .. }, LinkKind::Vxlan { .. }) => forget_tunnel_entries(ns, entry),
        (FdbTable::Vxlan { .. } | FdbTable::Nexthop { .. }, _) => {
            return Err(Impossible::Invalid(format!("{} is not a VXLAN device", entry.link)));
        }
    }
    done(ns.fdb.insert(entry.clone()))
}

/// Forgets where a VXLAN device sends frames to this entry's address.
fn forget_tunnel_entries(ns: &mut NetnsState, entry: &FdbEntry) {
    let first = FdbEntry { table: FdbTable::Bridge, ..entry.clone() };
    let same = ns.fdb.range(first..).take_while(|e| e.link == entry.link && e.mac == entry.mac);
    let replaced: Vec<FdbEntry> = same.filter(|e| !e.table.is_bridge()).cloned().collect();
    for e in &replaced {
        ns.fdb.remove(e);
    }
}
