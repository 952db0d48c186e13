//! Do a host's forwarding tables say what ports, bindings and claims say?
//!
//! What control owns is compared by [`diff`](crate::diff()): an empty plan is the answer. What the keeper owns,
//! the entries of router ports that follow an active copy, is left out of plans, because two processes must not
//! write one object; here it is compared with the same [`Desired`], read only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use evergate_model::RouterId;

use crate::compile::{Desired, FollowEntry};
use crate::op::Op;
use crate::state::{FdbTable, KernelState, Netns, NetnsState};

/// Says which entries that follow active copies lead elsewhere than they should, in words. `own` is this host's
/// tunnel address, and `paths` says where each nexthop group leads.
pub fn followed(
    desired: &Desired,
    observed: &KernelState,
    own: Option<IpAddr>,
    paths: &BTreeMap<u32, IpAddr>,
) -> Vec<String> {
    let Some(host) = observed.netns.get(&Netns::Host) else { return Vec::new() };
    let mut wrong = Vec::new();
    for (router, follow) in &desired.follow {
        let at = if is_active_here(desired, observed, *router) {
            Place::Here
        } else {
            match follow.active.map(|active| active.vtep).filter(|vtep| Some(*vtep) != own) {
                Some(vtep) => Place::Host(vtep),
                None => Place::Unknown,
            }
        };
        for entry in &follow.entries {
            let seen = seen(host, entry, paths);
            if seen != at && !(at == Place::Here && entry.tap.is_none()) {
                wrong.push(format!(
                    "router {router}: frames to {} on {} lead to {seen}, and should lead to {at}",
                    entry.mac, entry.vxlan
                ));
            }
        }
    }
    wrong
}

/// Where frames to a router port go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To the copy on this host.
    Here,
    /// To another host.
    Host(IpAddr),
    /// To every host that has the network.
    Unknown,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("the copy here"),
            Self::Host(vtep) => write!(f, "the host at {vtep}"),
            Self::Unknown => f.write_str("every host that has the network"),
        }
    }
}

/// The virtual address is there on the active copy alone; it is the first thing that a copy adds.
fn is_active_here(desired: &Desired, observed: &KernelState, router: RouterId) -> bool {
    let Some(prepared) = desired.prepared.get(&router) else { return false };
    let Some(Op::AddAddress { netns, address }) = prepared.items.first().map(|item| &item.add) else { return false };
    observed.netns.get(netns).is_some_and(|ns| ns.addresses.contains(address))
}

/// The bridge decides first; then, for the tunnel, the VXLAN device.
fn seen(host: &NetnsState, entry: &FollowEntry, paths: &BTreeMap<u32, IpAddr>) -> Place {
    let of_mac = || host.fdb.iter().filter(|found| found.mac == entry.mac);
    if let Some(tap) = &entry.tap
        && of_mac().any(|found| found.table.is_bridge() && found.link == *tap)
    {
        return Place::Here;
    }
    let leads = |table: &FdbTable| match table {
        FdbTable::Vxlan { dst } => Some(*dst),
        FdbTable::Nexthop { group } => paths.get(group).copied(),
        FdbTable::Bridge | FdbTable::BridgeSticky => None,
    };
    let tunnel = of_mac().filter(|found| found.link == entry.vxlan).find_map(|found| leads(&found.table));
    tunnel.map_or(Place::Unknown, Place::Host)
}
