//! What the kernel holds, in the words of [`KernelState`].
//!
//! First everything is read as the kernel lists it, namespace by namespace; then link indexes become
//! names, other ends of veths are found, and what is nobody's business of ours is left out.

mod peers;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use evergate_dataplane::nft::{NftFamily, NftTable};
use evergate_dataplane::state::{NetnsState, OWNER_MARK, Rule};
use evergate_dataplane::{KernelState, Netns};

use crate::error::{Cause, Error};
use crate::kernel::{Kernel, Space, is_ours};
use crate::nft;
use crate::route::address::{self, RawAddress};
use crate::route::link::RawLink;
use crate::route::neighbour::{self, RawFdb, RawNeighbour};
use crate::route::routes::{self, RawRoute};
use crate::route::rule;
use crate::socket::Socket;
use crate::wire::{Frame, Frames, Message};

use peers::Peers;

/// A namespace as the kernel lists it.
#[derive(Debug, Default)]
struct Raw {
    links: Vec<RawLink>,
    addresses: Vec<RawAddress>,
    routes: Vec<RawRoute>,
    rules: Vec<Rule>,
    neighbours: Vec<RawNeighbour>,
    fdb: Vec<RawFdb>,
    nft: BTreeMap<NftFamily, NftTable>,
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
    mark_other_ends(&mut raw, &peers);
    let nothing = NetnsState::default();
    for (netns, found) in raw {
        let wanted = desired.netns.get(&netns).unwrap_or(&nothing);
        let seen = view::translate(&netns, found, wanted, &peers);
        state.netns.insert(netns, seen);
    }
    Ok(state)
}

/// A pair is made as one: where one end carries our mark, the other is ours, too. It lacks the mark if we
/// were killed after making the pair, before the message that marks the end in the other namespace.
fn mark_other_ends(raw: &mut BTreeMap<Netns, Raw>, peers: &Peers) {
    let marked = |netns: &Netns, name: &str, raw: &BTreeMap<Netns, Raw>| {
        raw.get(netns).is_some_and(|found| found.links.iter().any(|link| link.name == name && is_ours(link)))
    };
    let mut unmarked = Vec::new();
    for (netns, found) in raw.iter() {
        for link in found.links.iter().filter(|link| link.kind == "veth" && !is_ours(link)) {
            if let Some((peer_netns, peer)) = peers.of(netns, link)
                && marked(peer_netns, peer, raw)
            {
                unmarked.push((netns.clone(), link.index));
            }
        }
    }
    for (netns, index) in unmarked {
        let links = raw.get_mut(&netns).into_iter().flat_map(|found| &mut found.links);
        links.filter(|link| link.index == index).for_each(|link| link.alias = Some(OWNER_MARK.to_owned()));
    }
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
    // In the host's namespace we look only for what is wanted there, but for the tables of frames: networks are there
    // alone.
    for family in [NftFamily::Ip, NftFamily::Ip6, NftFamily::Bridge, NftFamily::Netdev] {
        let is_kept = (*netns == Netns::Host) == family.is_of_frames();
        let looked_for = is_kept || wanted.is_some_and(|wanted| wanted.nft.contains_key(&family));
        let link_name = |index| raw.links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        if let Some(socket) = space.nft.as_mut().filter(|_| looked_for)
            && let Some(table) = nft::observe(socket, family, &link_name)?
        {
            raw.nft.insert(family, table);
        }
    }
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
