//! Routers: which namespaces each has on this host, and what is in them.
//!
//! A legacy router's addresses and routes are control's to apply. An HA router's follow the role of the
//! copy, so they become [`Prepared`](super::Prepared) items, and only the `ha-` device's own address is
//! applied; its `qr-` and `qg-` devices stand ready, up and without any address.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::host::{Gateway, Interface, Router};
use evergate_model::{PortId, names};
use ipnet::IpNet;

use super::namespace::{Leg, Part, RouterNamespace, floating_addresses, port_addresses, track_connections};
use super::{Advertising, AdvertisingLink, Compiler, ipv6, nat, scopes};
use crate::state::Address;

/// Ports of a router on project networks, and how their devices are named.
pub(super) struct InnerPorts<'a> {
    pub(super) ports: &'a BTreeMap<PortId, Interface>,
    pub(super) device: fn(PortId) -> String,
}

impl<'a> Compiler<'a> {
    pub(super) fn routers(&mut self) {
        let config = self.config;
        // As Neutron's agent does: a router whose admin_state_up is false is taken off the host.
        for router in config.routers.values().filter(|router| router.admin_state_up) {
            self.router(router);
        }
    }

    fn router(&mut self, router: &'a Router) {
        if let Some(parts) = &router.distributed {
            self.distributed(router, parts);
        } else {
            let ports = InnerPorts { ports: &router.interfaces, device: names::internal_device };
            self.gateway_namespace(router, Part::Whole, names::qrouter_namespace(router.id), &ports);
        }
    }

    /// The namespace in which a router meets the outside: with its gateway, its translation of addresses, and
    /// all that follows the role of an HA router's copy.
    pub(super) fn gateway_namespace(&mut self, router: &'a Router, part: Part, name: String, inner: &InnerPorts<'a>) {
        let mut parts = self.router_namespace(router, part, name);
        for (port, interface) in inner.ports {
            self.interface(&mut parts, *port, interface, inner.device);
        }
        if let Some(gateway) = &router.gateway {
            self.gateway(&mut parts, gateway);
        }
        scopes::keep_apart(&mut parts);
        parts.routes = self.routes(&parts);
        match &router.ha {
            Some(copy) => self.ha_copy(&mut parts, copy),
            None => legacy(&mut parts),
        }
        self.out.kernel.netns.insert(parts.netns, parts.state);
    }

    pub(super) fn interface(
        &mut self,
        parts: &mut RouterNamespace<'a>,
        port: PortId,
        interface: &Interface,
        device: fn(PortId) -> String,
    ) {
        let network = self.config.networks.get(&interface.network_id);
        // As Neutron's agent does: a port whose admin_state_up is false is no interface of the router.
        if network.and_then(|n| n.ports.get(&port)).is_some_and(|port| !port.admin_state_up) {
            return;
        }
        let leg = Leg {
            port,
            network: interface.network_id,
            link: device(port),
            mac: interface.mac,
            addresses: self.usable(parts.router.id, &interface.addresses),
        };
        if self.plug(parts, &leg) {
            self.advertise(parts, &leg, interface);
            parts.interfaces.push(leg);
        }
    }

    /// Instances learn their addresses and their gateway from the router, where the subnets say so.
    fn advertise(&mut self, parts: &RouterNamespace<'a>, leg: &Leg, interface: &Interface) {
        let (Some(advertisement), Some(segment)) = (&interface.advertisement, self.segments.get(&leg.network)) else {
            return;
        };
        if !leg.has_ipv6() {
            return;
        }
        let link = AdvertisingLink {
            link: leg.link.clone(),
            mac: leg.mac,
            source: ipv6::link_local(leg.mac).addr(),
            mtu: segment.mtu,
            advertisement: advertisement.clone(),
        };
        let router = parts.router;
        let advertising = self.out.advertise.entry(router.id).or_insert_with(|| Advertising {
            netns: parts.netns.to_string(),
            // A distributed router's instances have it on their own host, whichever copy is active.
            follows_role: router.ha.is_some() && router.distributed.is_none(),
            links: Vec::new(),
        });
        advertising.links.push(link);
    }

    fn gateway(&mut self, parts: &mut RouterNamespace<'a>, gateway: &'a Gateway) {
        let leg = Leg {
            port: gateway.port_id,
            network: gateway.network_id,
            link: names::external_device(gateway.port_id),
            mac: gateway.mac,
            addresses: self.usable(parts.router.id, &gateway.addresses),
        };
        if !self.plug(parts, &leg) {
            return;
        }
        let first = leg.addresses.iter().find_map(|net| if let IpNet::V4(net) = net { Some(net.addr()) } else { None });
        let snat = first.filter(|_| gateway.enable_snat);
        let mut table = nat::table(&leg.link, snat, parts.floating_ips());
        self.out.problems.extend(nat::forward_ports(&mut table, &parts.router.port_forwardings));
        parts.state.nft.insert(table.family, table);
        track_connections(&mut parts.state);
        parts.gateway = Some((leg, gateway));
    }
}

/// A legacy router has everything at once.
fn legacy(parts: &mut RouterNamespace<'_>) {
    let addresses: BTreeSet<Address> =
        port_addresses(parts).into_iter().chain(floating_addresses(parts)).map(|(address, _)| address).collect();
    parts.state.addresses = addresses;
    parts.state.routes = parts.routes.iter().cloned().collect();
}
