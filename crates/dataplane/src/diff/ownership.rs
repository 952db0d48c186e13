//! What stands in the way of ours without being ours, and what of ours has to wait for it.

use std::collections::BTreeSet;

use super::LinkSet;
use crate::plan::Refusal;
use crate::state::{KernelState, Link, LinkKind, Netns, NetnsState};

/// What the plan must not touch.
pub(super) struct Blocked {
    /// Namespaces that are not ours.
    pub(super) netns: BTreeSet<Netns>,
    /// Links that are not ours, and links of ours that need one of them.
    links: LinkSet,
}

impl Blocked {
    pub(super) fn has_link(&self, netns: &Netns, link: &str) -> bool {
        self.netns.contains(netns) || self.links.contains(netns, link)
    }

    /// Tells whether any link of a namespace is.
    pub(super) fn has_links_of(&self, netns: &Netns) -> bool {
        self.netns.contains(netns) || self.links.0.contains_key(netns)
    }
}

/// Finds what is foreign and in the way.
pub(super) fn check(desired: &KernelState, observed: &KernelState) -> (Blocked, Vec<Refusal>) {
    let mut blocked = Blocked { netns: BTreeSet::new(), links: LinkSet::default() };
    let mut refusals = Vec::new();
    for (netns, wanted) in &desired.netns {
        let Some(present) = observed.netns.get(netns) else { continue };
        if let Netns::Named(name) = netns
            && !present.owned
        {
            refusals.push(foreign_netns(netns, name));
            blocked.netns.insert(netns.clone());
            continue;
        }
        for (name, link) in &wanted.links {
            let Some(there) = present.links.get(name) else { continue };
            if let Some(reason) = in_the_way(name, link, there, present) {
                refusals.push(Refusal { netns: netns.clone(), object: format!("link {name}"), reason });
                blocked.links.insert(netns, name);
            }
        }
    }
    spread(desired, &mut blocked);
    (blocked, refusals)
}

fn foreign_netns(netns: &Netns, name: &str) -> Refusal {
    Refusal {
        netns: Netns::Host,
        object: format!("namespace {netns}"),
        reason: format!(
            "exists already and was not made by Evergate (its loopback device has no alias 'evergate: …'), so it is \
             left alone; if nothing else uses it, remove it with 'ip netns delete {name}'"
        ),
    }
}

/// Says why a link that is there is in the way of one that must be, if it is.
fn in_the_way(name: &str, wanted: &Link, there: &Link, present: &NetnsState) -> Option<String> {
    match wanted.kind {
        LinkKind::Loopback => None,
        LinkKind::Other => held_by_another_bridge(name, wanted, there, present),
        LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Veth { .. } if there.is_owned() => None,
        LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Veth { .. } => Some(format!(
            "exists already and was not made by Evergate (it has no alias 'evergate: …'), so it is left alone; if \
             nothing else uses it, remove it with 'ip link delete {name}'"
        )),
    }
}

/// A physical interface that somebody made a port of a bridge of theirs is not taken away from it. An
/// instance's tap is: by its name it is there to be plugged by us.
fn held_by_another_bridge(name: &str, wanted: &Link, there: &Link, present: &NetnsState) -> Option<String> {
    let holder = there.master.as_ref().filter(|holder| wanted.master.as_ref() != Some(holder))?;
    let ours = present.links.get(holder).is_some_and(Link::is_owned);
    (!ours && !name.starts_with("tap")).then(|| {
        format!(
            "is a port of '{holder}', which was not made by Evergate, so it is left there; name '{holder}' instead of \
             '{name}' in bridge_mappings, or free the interface with 'ip link set dev {name} nomaster'"
        )
    })
}

/// What needs something that is blocked is blocked, too: ports of a bridge, the other end of a pair.
fn spread(desired: &KernelState, blocked: &mut Blocked) {
    if blocked.netns.is_empty() && blocked.links.iter().next().is_none() {
        return;
    }
    loop {
        let mut more = Vec::new();
        for (netns, wanted) in &desired.netns {
            for (name, link) in &wanted.links {
                let by_master = link.master.as_ref().is_some_and(|master| blocked.has_link(netns, master));
                let by_peer = match &link.kind {
                    LinkKind::Veth { peer: Some((peer_netns, peer)) } => blocked.has_link(peer_netns, peer),
                    LinkKind::Bridge
                    | LinkKind::Vxlan { .. }
                    | LinkKind::Veth { peer: None }
                    | LinkKind::Other
                    | LinkKind::Loopback => false,
                };
                if (by_master || by_peer) && !blocked.has_link(netns, name) {
                    more.push((netns, name));
                }
            }
        }
        if more.is_empty() {
            return;
        }
        more.into_iter().for_each(|(netns, name)| blocked.links.insert(netns, name));
    }
}
