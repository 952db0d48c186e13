//! Whether a copy may take part in the election: a host that has just started must not win one before
//! frames can reach the router on every one of its networks.

use std::collections::{BTreeMap, BTreeSet};

use evergate_dataplane::state::{Link, LinkKind};
use evergate_dataplane::{Desired, KernelState, Netns, Prepared};
use evergate_model::host::{HostConfig, Interface, Network, Router, Segment};
use evergate_model::{NetworkId, PortId, names};

use super::{Planned, Worker};
use crate::round::Round;

impl<M> Worker<M> {
    /// Says what keeps a copy from taking part, if anything does.
    pub(super) fn hindrance(
        &self,
        round: &Round,
        router: &Router,
        prepared: &Prepared,
        sight: &Planned,
    ) -> Option<String> {
        networks(router)
            .find_map(|network| self.cut_off(&round.config, network, sight))
            .or_else(|| missing_device(&round.config, router, prepared, sight))
            .or_else(|| missing_link(prepared, sight))
    }

    /// A network that has other hosts, but no way to them from here.
    fn cut_off(&self, config: &HostConfig, network: NetworkId, sight: &Planned) -> Option<String> {
        let Some(network) = config.networks.get(&network) else {
            return Some(format!("the server has not told of its network {network}"));
        };
        match &network.segment {
            Segment::Vxlan { vni } => {
                let has_tunnel = || host_link(&sight.desired, &names::vxlan(*vni)).is_some();
                (!network.peers.is_empty() && !has_tunnel()).then(|| {
                    format!("network {} has no tunnel here, for want of a tunnel address (local_ip)", network.id)
                })
            }
            Segment::Flat { physical_network } => {
                let device = self.host.physical_networks.get(physical_network);
                (!device.is_some_and(|device| sight.view.links.contains(device)))
                    .then(|| format!("network {}'s physical network '{physical_network}' is not there", network.id))
            }
            Segment::Local => None,
        }
    }
}

fn networks(router: &Router) -> impl Iterator<Item = NetworkId> {
    let ha = router.ha.iter().map(|ha| ha.network_id);
    let gateway = router.gateway.iter().map(|gateway| gateway.network_id);
    ha.chain(gateway).chain(inner_ports(router).values().map(|interface| interface.network_id))
}

/// The ports on project networks that follow the role.
fn inner_ports(router: &Router) -> &BTreeMap<PortId, Interface> {
    router.distributed.as_ref().map_or(&router.interfaces, |parts| &parts.snat_ports)
}

/// A device that the router must have inside its namespace, and that could not even be planned.
fn missing_device(config: &HostConfig, router: &Router, prepared: &Prepared, sight: &Planned) -> Option<String> {
    let inside = sight.desired.kernel.netns.get(&Netns::Named(prepared.netns.clone()))?;
    // A port that is administratively down is no interface of the router.
    let is_up = |port: PortId, network: NetworkId| {
        let port_of = |network: &Network| network.ports.get(&port).map(|port| port.admin_state_up);
        config.networks.get(&network).and_then(port_of).unwrap_or(true)
    };
    let gateway = router.gateway.iter().map(|g| (g.port_id, g.network_id, names::external_device(g.port_id)));
    let device = if router.distributed.is_some() { names::snat_device } else { names::internal_device };
    let interfaces = inner_ports(router).iter().map(|(id, i)| (*id, i.network_id, device(*id)));
    gateway
        .chain(interfaces)
        .find(|(port, network, device)| is_up(*port, *network) && !inside.links.contains_key(device))
        .map(|(_, network, device)| format!("{device} cannot be plugged into network {network} here"))
}

/// A planned link, inside the namespace or on the way to it, that is not as planned.
fn missing_link(prepared: &Prepared, sight: &Planned) -> Option<String> {
    let inside = Netns::Named(prepared.netns.clone());
    let own = sight.desired.kernel.netns.get(&inside)?.links.iter().map(|(name, link)| (&inside, name, link));
    let outside = outside_links(&inside, &sight.desired).into_iter().map(|(name, link)| (&Netns::Host, name, link));
    own.chain(outside).find_map(|(netns, name, link)| differs(netns, name, link, &sight.observed))
}

/// The host's links that frames of the router's networks pass: taps, their bridges, those bridges' tunnels
/// and uplinks.
fn outside_links<'a>(inside: &Netns, desired: &'a Desired) -> Vec<(&'a String, &'a Link)> {
    let Some(host) = desired.kernel.netns.get(&Netns::Host) else { return Vec::new() };
    let is_tap = |link: &Link| matches!(&link.kind, LinkKind::Veth { peer: Some((netns, _)) } if netns == inside);
    let bridges: BTreeSet<&str> =
        host.links.values().filter(|link| is_tap(link)).filter_map(|link| link.master.as_deref()).collect();
    let leads_away = |name: &str, link: &Link| match link.kind {
        LinkKind::Vxlan { .. } => true,
        // An instance's tap is no way for others.
        LinkKind::Other => !name.starts_with("tap"),
        LinkKind::Bridge | LinkKind::Veth { .. } | LinkKind::Loopback => false,
    };
    let matters = |name: &str, link: &Link| {
        let on_bridge = link.master.as_deref().is_some_and(|master| bridges.contains(master));
        is_tap(link) || bridges.contains(name) || (on_bridge && leads_away(name, link))
    };
    host.links.iter().filter(|(name, link)| matters(name, link)).collect()
}

fn host_link<'a>(desired: &'a Desired, name: &str) -> Option<&'a Link> {
    desired.kernel.netns.get(&Netns::Host).and_then(|host| host.links.get(name))
}

fn differs(netns: &Netns, name: &str, wanted: &Link, observed: &KernelState) -> Option<String> {
    let Some(seen) = observed.netns.get(netns).and_then(|state| state.links.get(name)) else {
        return Some(format!("{name} is not there"));
    };
    if wanted.up && !seen.up {
        return Some(format!("{name} is down"));
    }
    if wanted.master.is_some() && wanted.master != seen.master {
        return Some(format!("{name} is not plugged into {}", wanted.master.as_deref().unwrap_or_default()));
    }
    None
}
