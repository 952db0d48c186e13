//! Whether a host has to be told of a change at all.
//!
//! Reading what a host must know costs more the more it knows, and most changes concern few hosts; a
//! port that came up concerns none. The change log says what was touched, and that is enough to tell.
//! When in doubt the answer is yes: a needless look finds no difference.

use std::collections::BTreeSet;

use evergate_model::host::{Network, Segment};
use evergate_model::{HostConfig, NetworkId, RouterId};

use crate::error::ApiError;
use crate::hostview::{needed_networks, read_networks};
use crate::objects::fleet::Fleet;
use crate::objects::query_in;
use crate::store::{Kind, StoreError, Tx};
use crate::values;

/// Tells whether anything after `since` may differ from what the host was told in `sent`.
///
/// Whatever moves a port between networks, addresses or hosts touches its network too, whatever a router does or
/// translates touches the router, and what else a network's subnets say touches the subnet: see the callers of
/// [`Tx::changed`].
///
/// # Errors
///
/// As [`Tx::query`].
pub fn concerns(tx: &Tx<'_>, host: &str, sent: &HostConfig, since: u64) -> Result<bool, ApiError> {
    let Some(changes) = tx.changes_since(since)? else { return Ok(true) };
    let mut networks: BTreeSet<String> = BTreeSet::new();
    let mut routers: BTreeSet<String> = BTreeSet::new();
    let mut has_subnets = false;
    for change in changes {
        match change.kind {
            Kind::Agent => return Ok(true),
            Kind::Network => drop(networks.insert(change.id)),
            Kind::Subnet => has_subnets = true,
            Kind::Router => drop(routers.insert(change.id)),
            // By themselves they are the API's matter: a status, a name.
            Kind::Port | Kind::FloatingIp => {}
        }
    }
    let (tunnelled, physical): (Vec<&Network>, Vec<_>) = networks
        .iter()
        .filter_map(|id| sent.networks.get(&id.parse::<NetworkId>().ok()?))
        .partition(|network| is_tunnelled(network));
    // What a subnet is may be told with a router that is on it.
    if !tunnelled.is_empty() || (has_subnets && !physical.is_empty()) {
        return Ok(true);
    }
    let known = |id: &RouterId| sent.routers.contains_key(id) || sent.active_copies.contains_key(id);
    if routers.iter().any(|id| id.parse::<RouterId>().is_ok_and(|id| known(&id))) || differ(tx, host, &physical)? {
        return Ok(true);
    }
    networks.retain(|id| !physical.iter().any(|network| network.id.to_string() == *id));
    if !networks.is_empty() && needed_networks(tx, host)?.iter().any(|id| networks.contains(id)) {
        return Ok(true);
    }
    let routers = Vec::from_iter(routers);
    Ok(has_part(tx, host, &routers)? || is_on_network(tx, sent, &routers)?)
}

/// A router that the host has a copy of, or routes for.
fn has_part(tx: &Tx<'_>, host: &str, routers: &[String]) -> Result<bool, StoreError> {
    if routers.is_empty() {
        return Ok(false);
    }
    let sql = "SELECT b.router_id FROM router_bindings b JOIN agents a ON a.id = b.agent_id WHERE a.host = ?1 \
               UNION SELECT router_id FROM router_hosts WHERE host = ?1";
    Ok(tx.query(sql, &values![host], |row| row.text(0))?.iter().any(|id| routers.contains(id)))
}

/// A router whose role matters to the host, because it has a port on a network that the host has: one that
/// tunnels carry, of which it is told all ports.
fn is_on_network(tx: &Tx<'_>, sent: &HostConfig, routers: &[String]) -> Result<bool, StoreError> {
    let sql = "SELECT DISTINCT network_id FROM router_ports WHERE router_id IN ({})";
    let networks: Vec<NetworkId> = query_in(tx, sql, routers, |row| row.parse(0))?;
    Ok(networks.iter().any(|id| sent.networks.get(id).is_some_and(is_tunnelled)))
}

fn is_tunnelled(network: &Network) -> bool {
    matches!(network.segment, Segment::Vxlan { .. })
}

/// Looks whether any of these networks is another for the host now. All hosts may have the external network, and
/// every router and floating IP has a port there, but hardly any of them is this host's: finding that out costs
/// less than building all that the host is told.
fn differ(tx: &Tx<'_>, host: &str, sent: &[&Network]) -> Result<bool, ApiError> {
    if sent.is_empty() {
        return Ok(false);
    }
    let ids: Vec<String> = sent.iter().map(|network| network.id.to_string()).collect();
    let (now, _) = read_networks(tx, host, &ids, &Fleet::read(tx)?.tunnel_ips())?;
    Ok(sent.iter().any(|network| now.get(&network.id) != Some(*network)))
}
