//! The parts of distributed routers that one host is told of.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::host::{AgentGateway, Distributed, FloatingIp as HostFloatingIp};
use evergate_model::{FloatingIpId, NetworkId, PortId, RouterId};

use super::Routers;
use crate::dvr::floating::{Place, Places, hosts_of_ports};
use crate::objects::fleet::Fleet;
use crate::objects::floating_ip::FloatingIp;
use crate::objects::router::{Role, Router};
use crate::store::{StoreError, Tx};
use crate::values;

/// Which routers the host has, and which parts of them.
pub(super) struct Parts {
    host: String,
    /// It has a copy, or of a distributed router the source NAT.
    bound: BTreeSet<RouterId>,
    /// It routes for the distributed router.
    routed: BTreeSet<RouterId>,
    /// Its ports on external networks.
    pub(super) agent_gateways: BTreeMap<NetworkId, PortId>,
    /// Where floating IPs are translated that are not translated at the router's gateway.
    elsewhere: BTreeMap<FloatingIpId, String>,
}

impl Parts {
    pub(super) fn of(tx: &Tx<'_>, host: &str) -> Result<Self, StoreError> {
        let bound = "SELECT b.router_id FROM router_bindings b JOIN agents a ON a.id = b.agent_id \
                     WHERE a.host = ?1 AND a.admin_state_up = 1";
        let routed = "SELECT router_id FROM router_hosts WHERE host = ?1";
        let gateways = "SELECT network_id, port_id FROM agent_gateway_ports WHERE host = ?1";
        let set = |sql| Ok::<_, StoreError>(tx.query(sql, &values![host], |row| row.parse(0))?.into_iter().collect());
        let gateways = tx.query(gateways, &values![host], |row| Ok((row.parse(0)?, row.parse(1)?)))?;
        Ok(Self {
            host: host.to_owned(),
            bound: set(bound)?,
            routed: set(routed)?,
            agent_gateways: gateways.into_iter().collect(),
            elsewhere: BTreeMap::new(),
        })
    }

    /// All routers that the host has a part of.
    pub(super) fn routers(&self) -> Vec<String> {
        self.bound.union(&self.routed).map(RouterId::to_string).collect()
    }

    /// Tells whether the host has a copy of the router, or of a distributed one its source NAT.
    pub(super) fn translates(&self, router: RouterId) -> bool {
        self.bound.contains(&router)
    }

    /// Finds where floating IPs are translated.
    pub(super) fn read_floating_ips<'f>(
        &mut self,
        tx: &Tx<'_>,
        fleet: &Fleet,
        floating_ips: impl Iterator<Item = &'f FloatingIp> + Clone,
    ) -> Result<(), StoreError> {
        let ports: Vec<String> = floating_ips.clone().filter_map(|f| f.port_id).map(|id| id.to_string()).collect();
        let hosts = hosts_of_ports(tx, &ports)?;
        let places = Places::read(tx, fleet, floating_ips.clone().map(|f| &f.floating_network_id))?;
        for floating_ip in floating_ips {
            let bound_to = floating_ip.port_id.and_then(|port| hosts.get(&port)).map(String::as_str);
            if let Place::Host(host) = places.of(floating_ip.floating_network_id, bound_to) {
                self.elsewhere.insert(floating_ip.id, host.to_owned());
            }
        }
        Ok(())
    }

    /// Tells whether the host translates a distributed router's floating IP, and if so whether by its own way out.
    fn translates_floating_ip(&self, router: RouterId, floating_ip: FloatingIpId) -> Option<bool> {
        match self.elsewhere.get(&floating_ip) {
            Some(host) => (*host == self.host).then_some(true),
            None => self.translates(router).then_some(false),
        }
    }
}

impl Routers {
    pub(super) fn distributed(&self, router: &Router) -> Distributed {
        Distributed {
            routes_here: self.parts.routed.contains(&router.id),
            translates_here: self.parts.translates(router.id),
            snat_ports: self.interfaces(router, Role::Snat),
            agent_gateway: self.agent_gateway(router),
        }
    }

    fn agent_gateway(&self, router: &Router) -> Option<AgentGateway> {
        if !self.parts.routed.contains(&router.id) {
            return None;
        }
        let external = self.ports(router.id, Role::Gateway).next()?.network_id;
        let port_id = *self.parts.agent_gateways.get(&external)?;
        Some(AgentGateway { port_id, mac: self.mac(port_id), addresses: self.nets(port_id) })
    }

    /// The floating IP as the host is told of it, if it is for the host to translate.
    pub(super) fn floating_ip(&self, router: &Router, found: &FloatingIp) -> Option<(FloatingIpId, HostFloatingIp)> {
        let distributed =
            if router.distributed { self.parts.translates_floating_ip(router.id, found.id)? } else { false };
        let (floating, fixed) = (found.floating_ip_address, found.fixed_ip_address?);
        Some((found.id, HostFloatingIp { floating, fixed, distributed }))
    }
}
