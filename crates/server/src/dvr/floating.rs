//! Where a floating IP is translated: on the host of the port that it leads to, or where the router's source NAT is.

use std::collections::BTreeMap;

use evergate_model::{FloatingIpId, NetworkId, PortId};

use super::agent_gateways::segments;
use crate::objects::fleet::Fleet;
use crate::objects::network::Segment;
use crate::objects::query_in;
use crate::store::{StoreError, Tx};
use crate::values;

/// Where a floating IP is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'h> {
    /// Where the router's external gateway is.
    Gateway,
    /// On this host, whose `fip-` namespace leads out.
    Host(&'h str),
}

/// What decides where the floating IPs of distributed routers are translated.
#[derive(Debug)]
pub struct Places<'f> {
    fleet: &'f Fleet,
    segments: BTreeMap<NetworkId, Segment>,
}

impl<'f> Places<'f> {
    /// Reads what carries these external networks.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn read<'n>(
        tx: &Tx<'_>,
        fleet: &'f Fleet,
        external: impl Iterator<Item = &'n NetworkId>,
    ) -> Result<Self, StoreError> {
        Ok(Self { fleet, segments: segments(tx, external)? })
    }

    /// Tells where a distributed router's floating IP is translated whose port is bound to `host`, if it is bound.
    pub fn of<'h>(&self, external: NetworkId, host: Option<&'h str>) -> Place<'h> {
        let leads_out =
            |host: &&str| self.segments.get(&external).is_some_and(|segment| self.fleet.leads_to(host, segment));
        host.filter(leads_out).map_or(Place::Gateway, Place::Host)
    }
}

/// The hosts that these ports are bound to, of those that are bound and no router's own.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn hosts_of_ports(tx: &Tx<'_>, ports: &[String]) -> Result<BTreeMap<PortId, String>, StoreError> {
    let sql = "SELECT id, host_id FROM ports WHERE host_id <> '' AND id IN ({}) \
               AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = ports.id)";
    Ok(query_in(tx, sql, ports, |row| Ok((row.parse(0)?, row.text(1)?)))?.into_iter().collect())
}

/// A floating IP that a host may have the word on.
struct Candidate {
    status: String,
    external: NetworkId,
    distributed: bool,
    port: Option<PortId>,
    /// The router's gateway port is bound to the host.
    at_gateway: bool,
}

/// A floating IP that a host has the word on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfHost {
    /// The floating IP.
    pub id: FloatingIpId,
    /// The status that it has.
    pub status: String,
}

/// Floating IPs whose status is for this host to say.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of_host(tx: &Tx<'_>, host: &str) -> Result<Vec<OfHost>, StoreError> {
    let candidates = candidates(tx, host)?;
    let distributed = || candidates.values().filter(|candidate| candidate.distributed);
    let ports: Vec<String> = distributed().filter_map(|candidate| candidate.port).map(|id| id.to_string()).collect();
    let hosts = hosts_of_ports(tx, &ports)?;
    let fleet = if ports.is_empty() { Fleet::default() } else { Fleet::read(tx)? };
    let places = Places::read(tx, &fleet, distributed().map(|candidate| &candidate.external))?;
    let is_here = |candidate: &Candidate| {
        let bound_to = candidate.port.and_then(|port| hosts.get(&port)).filter(|_| candidate.distributed);
        match places.of(candidate.external, bound_to.map(String::as_str)) {
            Place::Gateway => candidate.at_gateway,
            Place::Host(at) => at == host,
        }
    };
    let here = candidates.iter().filter(|(_, candidate)| is_here(candidate));
    let of_host = |(id, candidate): (&FloatingIpId, &Candidate)| OfHost { id: *id, status: candidate.status.clone() };
    Ok(here.map(of_host).collect())
}

fn candidates(tx: &Tx<'_>, host: &str) -> Result<BTreeMap<FloatingIpId, Candidate>, StoreError> {
    let by_port = "SELECT f.id, f.status, f.floating_network_id, r.distributed, f.port_id FROM floating_ips f \
                   JOIN routers r ON r.id = f.router_id AND r.distributed = 1 \
                   JOIN ports p ON p.id = f.port_id WHERE p.host_id = ?1";
    // A standby copy has nothing to say about floating IPs: only the copy that the gateway port is bound to
    // does, and a legacy router's only one.
    let by_gateway = "SELECT f.id, f.status, f.floating_network_id, r.distributed, f.port_id FROM floating_ips f \
                      JOIN routers r ON r.id = f.router_id \
                      JOIN router_ports rp ON rp.router_id = f.router_id AND rp.role = 'gateway' \
                      JOIN ports p ON p.id = rp.port_id WHERE p.host_id = ?1";
    let mut candidates = BTreeMap::new();
    for (sql, at_gateway) in [(by_port, false), (by_gateway, true)] {
        candidates.extend(tx.query(sql, &values![host], |row| {
            let (status, external) = (row.text(1)?, row.parse(2)?);
            let (distributed, port) = (row.bool(3)?, row.opt_parse(4)?);
            Ok((row.parse(0)?, Candidate { status, external, distributed, port, at_gateway }))
        })?);
    }
    Ok(candidates)
}
