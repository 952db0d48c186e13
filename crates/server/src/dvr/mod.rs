//! What follows from distributed routers, made so at the end of every write: [`settle`].
//!
//! Three things follow from routers, ports and agents, and nobody sets them by hand: the `sg-` ports that lead
//! to a router's source NAT ([`snat`]), the hosts that route for it ([`hosts`]), and those hosts' ports on
//! external networks ([`agent_gateways`]). All are compared with what they should be, whatever the write was,
//! so no path through the API can forget one. What is looked at are the routers that the write can have
//! touched; everybody else's are as the write before left them.

mod agent_gateways;
pub mod floating;
mod hosts;
mod snat;

pub use hosts::unserved;

use std::collections::BTreeSet;

use crate::error::ApiError;
use crate::objects::fleet::Fleet;
use crate::objects::{ask, ask_in};
use crate::options::Options;
use crate::store::{Kind, StoreError, Tx};

/// Makes what follows from distributed routers agree with what this transaction has changed so far.
///
/// # Errors
///
/// When a subnet has no address left for a port.
pub fn settle(tx: &Tx<'_>, options: &Options) -> Result<(), ApiError> {
    let routers = tx.changed_so_far(Kind::Router);
    let networks = tx.changed_so_far(Kind::Network);
    let agents = !tx.changed_so_far(Kind::Agent).is_empty();
    if routers.is_empty() && networks.is_empty() && !agents {
        return Ok(());
    }
    let touched = if agents { every_distributed(tx, &routers)? } else { touched(tx, routers, &networks)? };
    settle_routers(tx, options, &touched)
}

/// Does the same for all routers: for a server that starts, whose options may be others than before.
///
/// # Errors
///
/// As [`settle`].
pub fn settle_all(tx: &Tx<'_>, options: &Options) -> Result<(), ApiError> {
    settle_routers(tx, options, &every_distributed(tx, &[])?)
}

fn settle_routers(tx: &Tx<'_>, options: &Options, touched: &[String]) -> Result<(), ApiError> {
    if touched.is_empty() {
        return Ok(());
    }
    let fleet = Fleet::read(tx)?;
    snat::settle(tx, options, touched)?;
    let near = hosts::connected(tx, touched)?;
    hosts::settle(tx, &fleet, &near)?;
    agent_gateways::settle(tx, options, &fleet, &near)
}

/// All distributed routers, and those that were named.
fn every_distributed(tx: &Tx<'_>, named: &[String]) -> Result<Vec<String>, StoreError> {
    let mut ids: BTreeSet<String> = named.iter().cloned().collect();
    ids.extend(tx.query("SELECT id FROM routers WHERE distributed = 1", &[], |row| row.text(0))?);
    ids.extend(tx.query("SELECT DISTINCT router_id FROM router_hosts", &[], |row| row.text(0))?);
    Ok(ids.into_iter().collect())
}

/// Routers that were changed, or have an interface on a network that was; empty if none of this has to do with
/// distributed routers.
fn touched(tx: &Tx<'_>, routers: Vec<String>, networks: &[String]) -> Result<Vec<String>, StoreError> {
    let on_networks = "SELECT DISTINCT rp.router_id FROM router_ports rp JOIN routers r ON r.id = rp.router_id \
                       WHERE rp.role = 'interface' AND r.distributed = 1 AND rp.network_id IN ({})";
    // A central router is a distributed one's neighbour, or was distributed; or it is gone, and what it leaves behind
    // are hosts' ports on external networks.
    let concerned = "SELECT r.id FROM routers r WHERE r.id IN ({}) AND (r.distributed = 1 \
                     OR EXISTS (SELECT 1 FROM router_hosts h WHERE h.router_id = r.id) \
                     OR EXISTS (SELECT 1 FROM router_ports rp WHERE rp.router_id = r.id AND rp.role = 'snat') \
                     OR EXISTS (SELECT 1 FROM router_subnets mine \
                       JOIN router_subnets theirs ON theirs.subnet_id = mine.subnet_id \
                       JOIN routers d ON d.id = theirs.router_id AND d.distributed = 1 WHERE mine.router_id = r.id))";
    let on_networks = ask_in(tx, on_networks, networks, |row| row.text(0))?;
    let concerned = ask_in(tx, concerned, &routers, |row| row.text(0))?;
    let leftovers = ask(tx, "SELECT 1 FROM agent_gateway_ports LIMIT 1", &[], |_| Ok(()))?;
    let mut ids: BTreeSet<String> = on_networks.read()?.into_iter().collect();
    ids.extend(concerned.read()?);
    if !leftovers.read()?.is_empty() {
        ids.extend(routers);
    }
    Ok(ids.into_iter().collect())
}
