//! Networks: a bridge each, a tunnel device or an uplink, and what the server knows of the ports.
//!
//! A VXLAN network's device learns nothing. The server's list of ports fills it: forwarding entries to the
//! hosts that have the ports, flooding to the hosts that have the network, and neighbour entries on the
//! bridge, from which it answers address resolution in the name of distant ports. For the router ports of
//! HA routers the forwarding entries follow the active copy and are the keeper's; the neighbour entry is
//! always true, because all copies share one Ethernet address.
//!
//! On flat and local networks bridges learn as any switch does: the physical network moves its own entries
//! when a router's new active copy announces itself, and so must ours, as soon as the copy behind them forwards no more
//! (`ha::forwarding_items`).

use std::net::IpAddr;

use evergate_model::host::{Location, Network, NetworkPort, Segment};
use evergate_model::{Mac, NetworkId, RouterId, names};

use super::{Compiler, arp};
use crate::state::{BridgePort, FdbEntry, FdbTable, Link, LinkKind, NeighbourKey, OWNER_MARK};

/// Where ports of a network are plugged in on this host.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    /// The bridge: ours, or the operator's.
    pub(super) bridge: String,
    /// The tunnel device, where there is one.
    pub(super) vxlan: Option<String>,
    /// Of every device on the network.
    pub(super) mtu: u32,
}

impl Compiler<'_> {
    pub(super) fn networks(&mut self) {
        for network in self.config.networks.values() {
            let Some(attachment) = self.attachment(network) else { continue };
            if let Some(vxlan) = &attachment.vxlan {
                self.flooding(network, vxlan);
                for port in network.ports.values() {
                    self.forwarding(network, &attachment.bridge, vxlan, port);
                }
            }
            self.segments.insert(network.id, attachment);
        }
        // Taps after all bridges and tunnels, so that a clash of names is told of the tap.
        for network in self.config.networks.values() {
            self.instance_taps(network);
        }
    }

    fn attachment(&mut self, network: &Network) -> Option<Attachment> {
        let mtu = u32::from(network.mtu);
        let on = |bridge: String, vxlan: Option<String>| Some(Attachment { bridge, vxlan, mtu });
        match &network.segment {
            Segment::Vxlan { vni } => {
                let bridge = self.own_bridge(network)?;
                let vxlan = self.vxlan_device(network, *vni, &bridge);
                on(bridge, vxlan)
            }
            Segment::Flat { physical_network } => match self.uplink(network.id, physical_network) {
                Some(device) if self.view.bridges.contains(&device) => on(device, None),
                Some(device) => {
                    let bridge = self.own_bridge(network)?;
                    let uplink = Link {
                        kind: LinkKind::Other,
                        alias: None,
                        up: true,
                        mtu: None,
                        mac: None,
                        master: Some(bridge.clone()),
                        port: None,
                    };
                    self.add_host_link(&object(network.id), device, uplink);
                    on(bridge, None)
                }
                // Without its uplink the network still joins what is on this host.
                None => on(self.own_bridge(network)?, None),
            },
            Segment::Local => on(self.own_bridge(network)?, None),
        }
    }

    fn own_bridge(&mut self, network: &Network) -> Option<String> {
        let name = names::bridge(network.id);
        let bridge = Link {
            kind: LinkKind::Bridge,
            alias: Some(format!("{OWNER_MARK} network {}", network.id)),
            up: true,
            mtu: Some(u32::from(network.mtu)),
            mac: Some(bridge_mac(network.id)),
            master: None,
            port: None,
        };
        if !self.add_host_link(&object(network.id), name.clone(), bridge) {
            return None;
        }
        // The bridge is a device of the host, too, and instances can send to it. The host answers no
        // address resolution there (an instance would find the host behind any address that both use),
        // takes no packet whose sender it would not look for there, and routes none.
        self.set(format!("ipv4/conf/{name}/arp_ignore"), "8");
        self.set(format!("ipv4/conf/{name}/rp_filter"), "1");
        self.set(format!("ipv4/conf/{name}/forwarding"), "0");
        Some(name)
    }

    fn vxlan_device(&mut self, network: &Network, vni: u32, bridge: &str) -> Option<String> {
        let Some(local) = self.host.local_ip else {
            self.problem(
                object(network.id),
                "is a VXLAN network, but this host has no tunnel address, so its ports here reach no other host; set \
                 local_ip in section [ovs] of openvswitch_agent.ini or in section [vxlan] of linuxbridge_agent.ini",
            );
            return None;
        };
        let name = names::vxlan(vni);
        let device = Link {
            kind: LinkKind::Vxlan { vni, local, port: self.host.vxlan_port },
            alias: Some(format!("{OWNER_MARK} network {} tunnel", network.id)),
            up: true,
            mtu: Some(u32::from(network.mtu)),
            mac: None,
            master: Some(bridge.to_owned()),
            // The server says where ports are; what a frame claims about its sender is not believed.
            // Addresses that move between instances must be asked for, and their announcements must come through.
            port: Some(BridgePort { learning: false, neigh_suppress: !arp::may_move(network), isolated: false }),
        };
        self.add_host_link(&object(network.id), name.clone(), device).then_some(name)
    }

    /// The device that leads to a physical network, if there is one.
    fn uplink(&mut self, network: NetworkId, physical_network: &str) -> Option<String> {
        let Some(device) = self.host.physical_networks.get(physical_network).cloned() else {
            self.problem(
                object(network),
                format!(
                    "is on physical network '{physical_network}', which this host has no device for; add \
                     {physical_network}:<bridge> to bridge_mappings in section [ovs] of openvswitch_agent.ini, or \
                     {physical_network}:<interface> to physical_interface_mappings in section [linux_bridge] of \
                     linuxbridge_agent.ini"
                ),
            );
            return None;
        };
        if !self.view.links.contains(&device) {
            self.problem(
                object(network),
                format!(
                    "is on physical network '{physical_network}', which is mapped to device '{device}', but this host \
                     has no such device; create it, or correct bridge_mappings or physical_interface_mappings"
                ),
            );
            return None;
        }
        Some(device)
    }

    /// Frames to nobody in particular go to every other host that has the network.
    fn flooding(&mut self, network: &Network, vxlan: &str) {
        for peer in &network.peers {
            if self.reachable(network.id, *peer) {
                let entry = self.tunnel_entry(vxlan, Mac::ZERO, *peer);
                self.host_ns.fdb.insert(entry);
            }
        }
    }

    fn forwarding(&mut self, network: &Network, bridge: &str, vxlan: &str, port: &NetworkPort) {
        match port.location {
            Location::Unbound | Location::Local => return,
            // A distributed router's port is answered for at home, and the question does not leave it.
            Location::Everywhere { router } if self.routes_here(router) => {}
            Location::Everywhere { .. } => return,
            Location::Remote { vtep } => {
                if !self.reachable(network.id, vtep) {
                    return;
                }
                let entry = self.tunnel_entry(vxlan, port.mac, vtep);
                self.host_ns.fdb.insert(entry);
                let entry = FdbEntry { link: vxlan.to_owned(), mac: port.mac, table: FdbTable::Bridge };
                self.host_ns.fdb.insert(entry);
            }
            Location::Active { .. } => {
                self.host_ns.keeper.fdb_macs.insert(port.mac);
            }
        }
        // IPv6 is disabled on the bridge, so the kernel takes no IPv6 neighbours there: neighbour
        // solicitations are flooded, and answered by the port itself.
        for ip in port.ips.iter().filter(|ip| ip.is_ipv4()) {
            self.host_ns.neighbours.insert(NeighbourKey { link: bridge.to_owned(), ip: *ip }, port.mac);
        }
    }

    /// Tells whether this host has the part of a distributed router that is everywhere.
    fn routes_here(&self, router: RouterId) -> bool {
        let router = self.config.routers.get(&router).filter(|router| router.admin_state_up);
        router.and_then(|router| router.distributed.as_ref()).is_some_and(|parts| parts.routes_here)
    }

    fn tunnel_entry(&self, vxlan: &str, mac: Mac, dst: IpAddr) -> FdbEntry {
        FdbEntry { link: vxlan.to_owned(), mac, table: FdbTable::Vxlan { dst } }
    }

    /// A tunnel has one family: a peer of the other one cannot be reached.
    fn reachable(&mut self, network: NetworkId, peer: IpAddr) -> bool {
        let Some(local) = self.host.local_ip else { return false };
        let same = local.is_ipv4() == peer.is_ipv4();
        if !same {
            let text = format!(
                "cannot reach the host at {peer}: this host's tunnel address {local} is of another IP version; let \
                 local_ip be of one version on all hosts"
            );
            let problem = super::Problem { object: object(network), text };
            if !self.out.problems.contains(&problem) {
                self.out.problems.push(problem);
            }
        }
        same
    }

    /// Plugs in the taps that are there. A hypervisor makes them when it starts an instance.
    fn instance_taps(&mut self, network: &Network) {
        let Some(bridge) = self.segments.get(&network.id).map(|segment| segment.bridge.clone()) else { return };
        for (id, port) in &network.ports {
            let tap = names::tap(*id);
            if port.location != Location::Local || self.router_ports.contains(id) || !self.view.links.contains(&tap) {
                continue;
            }
            let link = Link {
                kind: LinkKind::Other,
                alias: None,
                up: port.admin_state_up,
                mtu: None,
                mac: None,
                master: Some(bridge.clone()),
                port: None,
            };
            let plugged = self.add_host_link(&format!("port {id}"), tap.clone(), link);
            if plugged && self.view.has_ipv6 {
                self.disable_ipv6(&tap);
            }
        }
    }
}

/// The address of a network's bridge. A bridge without one of its own takes its ports' lowest, and each
/// time that changes the kernel forgets all of the bridge's neighbours, permanent ones included. The first
/// byte is that of our taps: locally administered, and no prefix that Neutron gives to ports.
fn bridge_mac(network: NetworkId) -> Mac {
    let [a, b, c, d, e, ..] = *network.0.as_bytes();
    Mac([0xfe, a, b, c, d, e])
}

fn object(network: NetworkId) -> String {
    format!("network {network}")
}
