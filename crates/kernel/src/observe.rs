//! What the kernel holds, in the words of [`KernelState`].
//!
//! First everything is read as the kernel lists it, namespace by namespace; then link indexes become
//! names, other ends of veths are found, and what is nobody's business of ours is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use evergate_dataplane::nft::{NftFamily, NftTable};
use evergate_dataplane::state::{Address, FdbEntry, Link, LinkKind, NeighbourKey, NetnsState, Route, Rule};
use evergate_dataplane::{KernelState, Netns};

use crate::error::{Cause, Error};
use crate::kernel::{Kernel, Space, is_ours, is_visible};
use crate::nft;
use crate::route::address::{self, RawAddress, is_link_local};
use crate::route::link::{self, RawLink};
use crate::route::neighbour::{self, RawFdb, RawNeighbour};
use crate::route::routes::{self, RawRoute};
use crate::route::rule;
use crate::socket::Socket;
use crate::wire::{Frame, Frames, Message};

/// A namespace as the kernel lists it.
#[derive(Debug, Default)]
struct Raw {
    links: Vec<RawLink>,
    addresses: Vec<RawAddress>,
    routes: Vec<RawRoute>,
    rules: Vec<Rule>,
    neighbours: Vec<RawNeighbour>,
    fdb: Vec<RawFdb>,
    nft: Option<NftTable>,
    sysctls: BTreeMap<String, String>,
}

pub(crate) fn observe(kernel: &mut Kernel, desired: &KernelState) -> Result<KernelState, Error> {
    let mut raw = BTreeMap::new();
    let mut state = KernelState::default();
    for netns in namespaces(kernel, desired).map_err(|cause| Error::new("list network namespaces", cause))? {
        let wanted = desired.netns.get(&netns);
        match read(kernel, &netns, wanted) {
            Ok(Some(found)) => {
                raw.insert(netns, found);
            }
            Ok(None) if wanted.is_some() => {
                state.netns.insert(netns, NetnsState { owned: false, ..NetnsState::default() });
            }
            // Somebody else's, or it went while we looked.
            Ok(None) | Err(Cause::NoNetns(_)) => {}
            Err(cause) => return Err(Error::new(format!("observe {netns}"), cause)),
        }
    }
    let peers = Peers::find(kernel, &raw).map_err(|cause| Error::new("find the other ends of veths", cause))?;
    let nothing = NetnsState::default();
    for (netns, found) in raw {
        let wanted = desired.netns.get(&netns).unwrap_or(&nothing);
        let seen = translate(&netns, found, wanted, &peers);
        state.netns.insert(netns, seen);
    }
    Ok(state)
}

/// The host's namespace and all named ones, but for those known to be foreign and not wanted.
fn namespaces(kernel: &mut Kernel, desired: &KernelState) -> Result<Vec<Netns>, Cause> {
    let host = kernel.space(&Netns::Host)?.id;
    let names = kernel.directory.names()?;
    let present: BTreeSet<&String> = names.iter().collect();
    kernel.foreign.retain(|name, _| present.contains(name));
    let mut found = vec![Netns::Host];
    for name in &names {
        let id = kernel.directory.id(name);
        let is_foreign = id.is_some() && kernel.foreign.get(name).copied() == id;
        let netns = Netns::Named(name.clone());
        let is_wanted = desired.netns.contains_key(&netns);
        // In a lab the host's own namespace may have a name, too.
        if id != Some(host) && (is_wanted || !is_foreign) {
            found.push(netns);
        }
    }
    // Sockets in a namespace that has lost its name would keep it alive.
    let gone: Vec<_> = kernel
        .spaces
        .keys()
        .filter(|netns| matches!(netns, Netns::Named(name) if !present.contains(name)))
        .cloned()
        .collect();
    for netns in gone {
        kernel.close(&netns);
    }
    Ok(found)
}

/// Reads a namespace; `None` for one without our mark.
fn read(kernel: &mut Kernel, netns: &Netns, wanted: Option<&NetnsState>) -> Result<Option<Raw>, Cause> {
    let links = kernel.links(netns)?;
    if let Netns::Named(name) = netns
        && !links.iter().any(|link| link.is_loopback && is_ours(link))
    {
        kernel.close(netns);
        if let Some(id) = kernel.directory.id(name) {
            kernel.foreign.insert(name.clone(), id);
        }
        return Ok(None);
    }
    let space = kernel.space(netns)?;
    let mut raw = Raw { links, ..Raw::default() };
    let route = &mut space.route;
    raw.addresses = list(route, address::dump(0), address::read)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        raw.routes.extend(list(route, routes::dump(family), routes::read)?);
        raw.rules.extend(list(route, rule::dump(family), rule::read)?);
    }
    raw.neighbours = list(route, neighbour::dump(), neighbour::read)?;
    // Only bridges and VXLAN devices have any.
    if raw.links.iter().any(|link| matches!(link.kind.as_str(), "bridge" | "vxlan")) {
        raw.fdb = list(route, neighbour::dump_fdb(), neighbour::read_fdb)?;
    }
    raw.nft = read_nft(space, netns, wanted.and_then(|wanted| wanted.nft.as_ref()))?;
    raw.sysctls = read_sysctls(space, wanted)?;
    Ok(Some(raw))
}

fn list<T>(route: &mut Socket, request: Message, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
    let found = match route.dump(request) {
        Ok(found) => found,
        // A kernel without IPv6 has none of its objects.
        Err(Cause::Kernel(refusal)) if matches!(refusal.errno, libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Vec::new(),
        Err(cause) => return Err(cause),
    };
    Ok(Frames(&found).filter_map(|frame: Frame<'_>| read(frame.payload)).collect())
}

/// A table of our name is ours inside our namespaces. In the host's we look only if one is wanted.
fn read_nft(space: &mut Space, netns: &Netns, wanted: Option<&NftTable>) -> Result<Option<NftTable>, Cause> {
    let Some(socket) = space.nft.as_mut().filter(|_| *netns != Netns::Host || wanted.is_some()) else {
        return Ok(None);
    };
    let families = match wanted.map(|table| table.family) {
        Some(NftFamily::Ip6) => [NftFamily::Ip6, NftFamily::Ip],
        Some(NftFamily::Ip) | None => [NftFamily::Ip, NftFamily::Ip6],
    };
    for family in families {
        if let Some(table) = nft::observe(socket, family)? {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Reads the settings that are wanted; one that does not exist (its link went) is left out.
fn read_sysctls(space: &Space, wanted: Option<&NetnsState>) -> Result<BTreeMap<String, String>, Cause> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.sysctls.is_empty()) else { return Ok(BTreeMap::new()) };
    let read = |path: &String| {
        let value = fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
        // The kernel separates several numbers by tabs.
        Some((path.clone(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    };
    Ok(space.netns.inside(|| wanted.sysctls.keys().filter_map(read).collect())?)
}

/// Where the other ends of veths are.
#[derive(Debug, Default)]
struct Peers(BTreeMap<(Netns, u32), (Netns, String)>);

impl Peers {
    /// Pairs up veth ends that name each other.
    ///
    /// Indexes are unique within a namespace only, so two ends that name each other's index may still not
    /// belong together: one of them is asked which namespace its other end is in.
    fn find(kernel: &mut Kernel, raw: &BTreeMap<Netns, Raw>) -> Result<Self, Cause> {
        let mut ends: BTreeMap<(u32, u32), Vec<(&Netns, &RawLink)>> = BTreeMap::new();
        for (netns, found) in raw {
            for link in found.links.iter().filter(|link| link.kind == "veth") {
                ends.entry((link.index, link.peer_index.unwrap_or(0))).or_default().push((netns, link));
            }
        }
        let mut numbers = BTreeMap::new();
        let mut peers = BTreeMap::new();
        for (netns, found) in raw {
            for link in found.links.iter().filter(|link| link.kind == "veth") {
                let mirrored = (link.peer_index.unwrap_or(0), link.index);
                for (peer_netns, peer) in ends.get(&mirrored).into_iter().flatten() {
                    if is_end_in(kernel, &mut numbers, (peer_netns, peer), netns)? {
                        peers.insert((netns.clone(), link.index), ((*peer_netns).clone(), peer.name.clone()));
                    }
                }
            }
        }
        Ok(Self(peers))
    }
}

/// By which number a namespace (first) knows another (second), as far as it was asked.
type Numbers = BTreeMap<(Netns, Netns), Option<i32>>;

/// Tells whether the other end of this veth end is in the given namespace.
fn is_end_in(
    kernel: &mut Kernel,
    numbers: &mut Numbers,
    (netns, link): (&Netns, &RawLink),
    other: &Netns,
) -> Result<bool, Cause> {
    let Some(number) = link.peer_netns else { return Ok(netns == other) };
    if netns == other {
        return Ok(false);
    }
    let key = (netns.clone(), other.clone());
    if let Some(known) = numbers.get(&key) {
        return Ok(*known == Some(number));
    }
    let asked = ask_number(kernel, netns, other);
    let known = match asked {
        Ok(known) => known,
        Err(Cause::NoNetns(_)) => None,
        Err(cause) => return Err(cause),
    };
    numbers.insert(key, known);
    Ok(known == Some(number))
}

fn ask_number(kernel: &mut Kernel, netns: &Netns, other: &Netns) -> Result<Option<i32>, Cause> {
    let request = link::get_netns_number(&kernel.space(other)?.netns);
    let answer = kernel.space(netns)?.route.get(request)?;
    Ok(answer.as_deref().and_then(link::read_netns_number))
}

/// Gives names to indexes and leaves out what does not concern us.
fn translate(netns: &Netns, raw: Raw, wanted: &NetnsState, peers: &Peers) -> NetnsState {
    let names: BTreeMap<u32, &str> = raw.links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let name = |index: u32| names.get(&index).map(|name| (*name).to_owned());
    let ours: BTreeSet<u32> = raw.links.iter().filter(|link| is_ours(link)).map(|link| link.index).collect();
    let our_bridges =
        raw.links.iter().filter(|link| is_ours(link) && link.kind == "bridge").map(|link| link.index).collect();
    let is_host = *netns == Netns::Host;
    let mut state = NetnsState { owned: true, sysctls: raw.sysctls, nft: raw.nft, ..NetnsState::default() };
    for link in &raw.links {
        let peer = peers.0.get(&(netns.clone(), link.index));
        let is_wanted = wanted.links.contains_key(&link.name);
        if is_visible(link, &our_bridges, is_wanted) {
            state.links.insert(link.name.clone(), translate_link(link, peer, link.master.and_then(name)));
        }
    }
    for found in raw.addresses.iter().filter(|found| found.is_permanent) {
        let Some(link) = name(found.index).filter(|_| ours.contains(&found.index)) else { continue };
        let is_loopback = found.net.addr().is_loopback();
        let address = Address { link, net: found.net };
        // Each link has one of these from the kernel; one that we want looks just the same.
        let is_kernels = is_loopback || is_link_local(found.net.addr());
        if !is_kernels || wanted.addresses.contains(&address) {
            state.addresses.insert(address);
        }
    }
    for found in raw.routes {
        let link = found.index.and_then(name);
        let is_ours = found.index.is_some_and(|index| ours.contains(&index));
        let route = Route { table: found.table, destination: found.destination, via: found.via, link };
        if !is_host || is_ours || wanted.routes.contains(&route) {
            state.routes.insert(route);
        }
    }
    state.rules.extend(raw.rules.into_iter().filter(|rule| !is_host || wanted.rules.contains(rule)));
    for found in raw.neighbours.iter().filter(|found| ours.contains(&found.index)) {
        if let Some(link) = name(found.index) {
            state.neighbours.insert(NeighbourKey { link, ip: found.ip }, found.mac);
        }
    }
    for found in raw.fdb {
        if let Some(link) = name(found.index).filter(|name| state.links.contains_key(name)) {
            state.fdb.insert(FdbEntry { link, mac: found.mac, table: found.table });
        }
    }
    state
}

fn translate_link(raw: &RawLink, peer: Option<&(Netns, String)>, master: Option<String>) -> Link {
    let kind = match (raw.kind.as_str(), raw.vxlan) {
        _ if raw.is_loopback => LinkKind::Loopback,
        _ if !is_ours(raw) => LinkKind::Other,
        ("bridge", _) => LinkKind::Bridge,
        ("veth", _) => LinkKind::Veth { peer: peer.cloned() },
        ("vxlan", Some(vxlan)) => match vxlan.local {
            Some(local) => LinkKind::Vxlan { vni: vxlan.vni, local, port: vxlan.port },
            None => LinkKind::Other,
        },
        _ => LinkKind::Other,
    };
    let alias = raw.alias.clone();
    Link { kind, alias, up: raw.up, mtu: raw.mtu, mac: raw.mac, master, port: raw.port }
}
