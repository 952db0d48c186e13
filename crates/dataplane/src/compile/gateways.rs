//! What the active copy's role is for: the gateways it must reach, and the links that lead there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use evergate_model::host::Segment;
use evergate_model::{Mac, NetworkId};

use super::Compiler;
use super::namespace::RouterNamespace;

/// A gateway that the active copy must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedGateway {
    /// Its address.
    pub gateway: IpAddr,
    /// The device that leads to it.
    pub link: String,
    /// The device's Ethernet address.
    pub mac: Mac,
    /// The active copy's address there.
    pub source: IpAddr,
}

/// The configured gateways of the external subnets. One of a family that the router has no address of there is
/// left out: nobody could ask it.
pub(super) fn gateways(parts: &RouterNamespace<'_>) -> Vec<PreparedGateway> {
    let Some((leg, gateway)) = &parts.gateway else { return Vec::new() };
    let source = |hop: &IpAddr| {
        let same_family = || gateway.addresses.iter().filter(|net| net.addr().is_ipv4() == hop.is_ipv4());
        same_family().find(|net| net.contains(hop)).or_else(|| same_family().next()).map(|net| net.addr())
    };
    let prepared = |hop: &IpAddr| {
        let (gateway, link, mac) = (*hop, leg.link.clone(), leg.mac);
        Some(PreparedGateway { gateway, link, mac, source: source(hop)? })
    };
    gateway.next_hops.iter().filter_map(prepared).collect()
}

impl Compiler<'_> {
    /// Names of the host's links that lead out of a flat network: the interface that is mapped to it, or what
    /// is plugged into the bridge that is. The latter is known only for bridges that somebody else made.
    pub(super) fn uplinks(&self, network: NetworkId) -> BTreeSet<String> {
        let network = self.config.networks.get(&network);
        let Some(Segment::Flat { physical_network }) = network.map(|network| &network.segment) else {
            return BTreeSet::new();
        };
        match self.host.physical_networks.get(physical_network) {
            Some(bridge) if self.view.bridges.contains(bridge) => {
                self.view.bridge_uplinks.get(bridge).cloned().unwrap_or_default()
            }
            Some(device) if self.view.links.contains(device) => BTreeSet::from([device.clone()]),
            _ => BTreeSet::new(),
        }
    }
}
