//! Ops in words, and what they are about.

use evergate_dataplane::state::{FdbTable, LinkKind, Route, Rule};
use evergate_dataplane::{Netns, Op};

/// The links that an op is about, or refers to.
pub(super) fn links_of(op: &Op) -> Vec<(Netns, String)> {
    let one = |netns: &Netns, name: &str| vec![(netns.clone(), name.to_owned())];
    match op {
        Op::AddLink { netns, name, link, peer_link } => {
            let mut links = one(netns, name);
            links.extend(link.master.iter().map(|master| (netns.clone(), master.clone())));
            if let LinkKind::Veth { peer: Some((peer_netns, peer)) } = &link.kind {
                links.push((peer_netns.clone(), peer.clone()));
                let master = peer_link.iter().filter_map(|peer| peer.master.as_ref());
                links.extend(master.map(|master| (peer_netns.clone(), master.clone())));
            }
            links
        }
        Op::SetLink { netns, name, change } => {
            let mut links = one(netns, name);
            links.extend(change.master.iter().flatten().map(|master| (netns.clone(), master.clone())));
            links
        }
        Op::DeleteLink { netns, name } => one(netns, name),
        Op::AddAddress { netns, address } | Op::DeleteAddress { netns, address } => one(netns, &address.link),
        // Which link a route without one leaves by is found from the addresses that the others have.
        Op::AddRoute { netns, route } | Op::DeleteRoute { netns, route } => {
            route.link.as_ref().map_or_else(Vec::new, |link| one(netns, link))
        }
        Op::SetNeighbour { netns, link, .. } | Op::DeleteNeighbour { netns, link, .. } => one(netns, link),
        Op::SetFdb { netns, entry } | Op::DeleteFdb { netns, entry } => one(netns, &entry.link),
        Op::AddRule { .. }
        | Op::DeleteRule { .. }
        | Op::AddNetns { .. }
        | Op::DeleteNetns { .. }
        | Op::SetSysctl { .. }
        | Op::ReplaceNft { .. }
        | Op::DeleteNft { .. } => Vec::new(),
    }
}

/// Tells whether the op's purpose is that something be gone.
pub(super) fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteNetns { .. }
            | Op::DeleteLink { .. }
            | Op::DeleteAddress { .. }
            | Op::DeleteRoute { .. }
            | Op::DeleteRule { .. }
            | Op::DeleteNeighbour { .. }
            | Op::DeleteFdb { .. }
            | Op::DeleteNft { .. }
    )
}

/// The op in words, to come after "failed to".
pub(super) fn describe(op: &Op) -> String {
    match op {
        Op::AddNetns { name, .. } => format!("add network namespace {name}"),
        Op::DeleteNetns { name } => format!("delete network namespace {name}"),
        Op::AddLink { netns, name, link, .. } => format!("add {} {name} in {netns}", kind_word(&link.kind)),
        Op::SetLink { netns, name, .. } => format!("change link {name} in {netns}"),
        Op::DeleteLink { netns, name } => format!("delete link {name} in {netns}"),
        Op::AddAddress { netns, address } => format!("add address {} to {} in {netns}", address.net, address.link),
        Op::DeleteAddress { netns, address } => {
            format!("delete address {} from {} in {netns}", address.net, address.link)
        }
        Op::AddRoute { netns, route } => format!("add route {} in {netns}", route_words(route)),
        Op::DeleteRoute { netns, route } => format!("delete route {} in {netns}", route_words(route)),
        Op::AddRule { netns, rule } => format!("add rule {} in {netns}", rule_words(rule)),
        Op::DeleteRule { netns, rule } => format!("delete rule {} in {netns}", rule_words(rule)),
        Op::SetNeighbour { netns, link, ip, mac } => format!("set neighbour {ip} at {mac} on {link} in {netns}"),
        Op::DeleteNeighbour { netns, link, ip } => format!("delete neighbour {ip} on {link} in {netns}"),
        Op::SetFdb { netns, entry } => {
            format!("forward {} by {}{} in {netns}", entry.mac, entry.link, to_words(&entry.table))
        }
        Op::DeleteFdb { netns, entry } => {
            format!("stop forwarding {} by {}{} in {netns}", entry.mac, entry.link, to_words(&entry.table))
        }
        Op::SetSysctl { netns, path, value } => format!("set {path} to {value} in {netns}"),
        Op::ReplaceNft { netns, .. } => format!("replace the nftables table in {netns}"),
        Op::DeleteNft { netns, .. } => format!("delete the nftables table in {netns}"),
    }
}

fn kind_word(kind: &LinkKind) -> &'static str {
    match kind {
        LinkKind::Bridge => "bridge",
        LinkKind::Vxlan { .. } => "vxlan",
        LinkKind::Veth { .. } => "veth",
        LinkKind::Other => "foreign link",
        LinkKind::Loopback => "loopback",
    }
}

fn to_words(table: &FdbTable) -> String {
    match table {
        FdbTable::Bridge | FdbTable::BridgeSticky => String::new(),
        FdbTable::Nexthop { group } => format!(" to nexthop group {group}"),
        FdbTable::Vxlan { dst } => format!(" to {dst}"),
    }
}

fn route_words(route: &Route) -> String {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let link = route.link.as_ref().map(|link| format!(" dev {link}")).unwrap_or_default();
    format!("{}{via}{link} table {}", route.destination, route.table)
}

fn rule_words(rule: &Rule) -> String {
    let from = rule.from.map(|net| format!(" from {net}")).unwrap_or_default();
    let to = rule.to.map(|net| format!(" to {net}")).unwrap_or_default();
    let iif = rule.iif.as_ref().map(|iif| format!(" iif {iif}")).unwrap_or_default();
    format!("{}:{from}{to}{iif} table {}", rule.priority, rule.table)
}
