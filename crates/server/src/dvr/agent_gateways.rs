//! A host's port on an external network (`fg-`), for the floating IPs that are translated on the host itself.
//!
//! As in Neutron there is one per external network and host, made as soon as the host routes for a router with
//! its gateway there, whether or not that router has floating IPs yet, and removed with the last such router.
//! Whether the port spends an address of the external network is the operator's choice
//! ([`Options::external_address_per_host`]). Where none is left the port is made without: an instance shall
//! not fail to start for want of an address that its host can do without.

use std::collections::BTreeMap;

use evergate_model::{NetworkId, PortId};

use crate::error::ApiError;
use crate::ipam::FixedIpRequest;
use crate::objects::fleet::Fleet;
use crate::objects::network::{Network, Segment};
use crate::objects::port::{NewPort, Port, owner};
use crate::objects::query_in;
use crate::options::Options;
use crate::store::{StoreError, Tx};
use crate::values;

/// Makes and removes these ports where the given routers, or the hosts' modes and links, ask for it.
pub(super) fn settle(tx: &Tx<'_>, options: &Options, fleet: &Fleet, routers: &[String]) -> Result<(), ApiError> {
    let needed = "SELECT DISTINCT gw.network_id, h.host FROM router_hosts h \
                  JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
                  WHERE h.router_id IN ({})";
    let needed: Vec<(NetworkId, String)> = query_in(tx, needed, routers, |row| Ok((row.parse(0)?, row.text(1)?)))?;
    let sql = "SELECT g.network_id, g.host, g.port_id, \
               CASE WHEN EXISTS (SELECT 1 FROM router_hosts h \
                 JOIN router_ports gw ON gw.router_id = h.router_id AND gw.role = 'gateway' \
                 WHERE h.host = g.host AND gw.network_id = g.network_id) THEN 1 ELSE 0 END, \
               CASE WHEN EXISTS (SELECT 1 FROM fixed_ips f WHERE f.port_id = g.port_id) THEN 1 ELSE 0 END \
               FROM agent_gateway_ports g";
    let rows = tx.query(sql, &[], |row| {
        let port = Existing { id: row.parse(2)?, is_needed: row.bool(3)?, has_address: row.bool(4)? };
        Ok(((row.parse(0)?, row.text(1)?), port))
    })?;
    let have: BTreeMap<(NetworkId, String), Existing> = rows.into_iter().collect();
    let networks = needed.iter().map(|(network, _)| network).chain(have.keys().map(|(network, _)| network));
    let segments = segments(tx, networks)?;
    let leads_to =
        |network: &NetworkId, host: &str| segments.get(network).is_some_and(|segment| fleet.leads_to(host, segment));
    for ((network, host), port) in &have {
        if !port.is_needed || !leads_to(network, host) {
            Port::get(tx, port.id)?.delete(tx)?;
        } else if port.has_address && !options.external_address_per_host {
            Port::get(tx, port.id)?.change_fixed_ips(tx, &[])?;
        } else if !port.has_address && options.external_address_per_host {
            give_address(tx, &mut Port::get(tx, port.id)?)?;
        }
    }
    for (network, host) in needed {
        if leads_to(&network, &host) && !have.contains_key(&(network, host.clone())) {
            make(tx, options, fleet, network, &host)?;
        }
    }
    Ok(())
}

/// Such a port that is there.
struct Existing {
    id: PortId,
    is_needed: bool,
    has_address: bool,
}

/// What carries these networks.
pub(super) fn segments<'n>(
    tx: &Tx<'_>,
    networks: impl Iterator<Item = &'n NetworkId>,
) -> Result<BTreeMap<NetworkId, Segment>, StoreError> {
    let ids: std::collections::BTreeSet<String> = networks.map(NetworkId::to_string).collect();
    let found = Network::many(tx, &Vec::from_iter(ids))?;
    Ok(found.into_iter().map(|network| (network.id, network.segment)).collect())
}

fn make(tx: &Tx<'_>, options: &Options, fleet: &Fleet, network: NetworkId, host: &str) -> Result<(), ApiError> {
    let agent = fleet.host(host).and_then(|host| host.l3).map(|(agent, _)| agent.to_string()).unwrap_or_default();
    let new = NewPort { host_id: host, fixed_ips: Some(&[]), ..NewPort::device(network, owner::AGENT_GATEWAY, &agent) };
    let mut port = Port::create(tx, options, &new)?;
    let sql = "INSERT INTO agent_gateway_ports (network_id, host, port_id) VALUES (?1, ?2, ?3)";
    tx.execute(sql, &values![network, host, port.id])?;
    if options.external_address_per_host {
        give_address(tx, &mut port)?;
    }
    Ok(())
}

/// Gives the port an address of the external network, if there is one left: of a subnet that is reserved for
/// such ports, or else of any.
fn give_address(tx: &Tx<'_>, port: &mut Port) -> Result<(), ApiError> {
    match port.change_fixed_ips(tx, &[FixedIpRequest::default()]) {
        Err(ApiError::IpAddressGenerationFailure { .. }) => {
            tracing::warn!(
                host = port.host_id,
                network = %port.network_id,
                "no external address is left for the host's floating IP gateway, which goes on without one"
            );
            Ok(())
        }
        given => given,
    }
}
