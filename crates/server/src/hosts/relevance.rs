//! Whether a host has to be told of a change at all.
//!
//! Reading what a host must know costs more the more it knows, and most changes concern few hosts; a
//! port that came up concerns none. The change log says what was touched, and that is enough to tell.
//! When in doubt the answer is yes: a needless look finds no difference.

use std::collections::BTreeSet;

use evergate_model::{HostConfig, NetworkId, RouterId};

use crate::hostview::needed_networks;
use crate::objects::query_in;
use crate::store::{Kind, StoreError, Tx};
use crate::values;

/// Tells whether anything after `since` may differ from what the host was told in `sent`.
///
/// Whatever moves a port between networks, addresses or hosts touches its network too, and whatever a
/// router does or translates touches the router: see the callers of [`Tx::changed`].
pub(super) fn concerns(tx: &Tx<'_>, host: &str, sent: &HostConfig, since: u64) -> Result<bool, StoreError> {
    let Some(changes) = tx.changes_since(since)? else { return Ok(true) };
    let mut networks: BTreeSet<String> = BTreeSet::new();
    let mut routers: BTreeSet<String> = BTreeSet::new();
    for change in changes {
        match change.kind {
            Kind::Agent => return Ok(true),
            Kind::Network => drop(networks.insert(change.id)),
            Kind::Router => drop(routers.insert(change.id)),
            // By themselves they are the API's matter: a status, a name.
            Kind::Subnet | Kind::Port | Kind::FloatingIp => {}
        }
    }
    let known = |id: &String| id.parse::<NetworkId>().is_ok_and(|id| sent.networks.contains_key(&id));
    if networks.iter().any(known) {
        return Ok(true);
    }
    let known = |id: &RouterId| sent.routers.contains_key(id) || sent.active_copies.contains_key(id);
    if routers.iter().any(|id| id.parse::<RouterId>().is_ok_and(|id| known(&id))) {
        return Ok(true);
    }
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

/// A router whose role matters to the host, because it has a port on a network that the host has.
fn is_on_network(tx: &Tx<'_>, sent: &HostConfig, routers: &[String]) -> Result<bool, StoreError> {
    let sql = "SELECT DISTINCT network_id FROM router_ports WHERE router_id IN ({})";
    let networks: Vec<NetworkId> = query_in(tx, sql, routers, |row| row.parse(0))?;
    Ok(networks.iter().any(|id| sent.networks.contains_key(id)))
}
