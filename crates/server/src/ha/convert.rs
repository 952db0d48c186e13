//! Conversion: a router of one kind becomes one of another, as it stands, also while it is up.
//!
//! Whether it can be is asked first, and nothing is changed when it cannot. What both kinds have is kept: the
//! router's ports with their addresses and Ethernet addresses, copies on agents that may have the router in its
//! new kind, VRID, and the epoch, which must never go back. The copy on the host that served the router is the
//! first active one: nobody's silence need be waited for.
//!
//! Deviation: Neutron wants `admin_state_up` to be false first. Clients that follow that rule are served as well.

use std::fmt;

use super::{Candidates, active_copy, current_host, interface_host, interface_owner, make_ha_port, moving_ports};
use crate::dvr;
use crate::error::ApiError;
use crate::objects::agent::Agent;
use crate::objects::fleet::Fleet;
use crate::objects::port::{self, Port};
use crate::objects::router::{Binding, Role, Router};
use crate::options::Options;
use crate::placement;
use crate::store::{Kind, Tx};
use crate::values;

/// More takeovers than the last copies of an HA router can have made while it was converted.
const UNHEARD_EPOCHS: u64 = 16;

/// Which of the four kinds a router is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Highly available.
    pub ha: bool,
    /// Distributed.
    pub distributed: bool,
}

impl Form {
    /// What the router is now.
    pub fn of(router: &Router) -> Self {
        Self { ha: router.ha, distributed: router.distributed }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.distributed, self.ha) {
            (false, false) => "a legacy router",
            (false, true) => "a highly available router",
            (true, false) => "a distributed router",
            (true, true) => "a distributed, highly available router",
        })
    }
}

/// Makes a router one of another kind.
///
/// # Errors
///
/// Why it cannot be one; nothing is changed then.
pub fn convert(tx: &Tx<'_>, options: &Options, router: &mut Router, to: Form) -> Result<(), ApiError> {
    let bindings = router.bindings(tx)?;
    let mut epoch = bindings.iter().map(|binding| binding.epoch).max().unwrap_or(0);
    let serving = if router.ha { active_copy(&bindings) } else { bindings.first() }.map(|binding| binding.agent_id);
    let candidates = Candidates::read(tx, options)?;
    refuse_impossible(tx, &candidates, router, to, &bindings)?;
    let (kept, dropped) = divide(tx, &candidates, router, bindings, to)?;
    for binding in &dropped {
        super::unbind(tx, router, binding)?;
    }
    let was_ha = std::mem::replace(&mut router.ha, to.ha);
    router.distributed = to.distributed;
    let sql = "UPDATE routers SET ha = ?2, distributed = ?3 WHERE id = ?1";
    tx.execute(sql, &values![router.id, to.ha, to.distributed])?;
    match (was_ha, to.ha) {
        (false, true) => gain_ha(tx, options, router, &kept)?,
        (true, false) => lose_ha(tx, router, &kept)?,
        (false, false) | (true, true) => {}
    }
    let heir = kept.iter().find(|binding| Some(binding.agent_id) == serving).map(|binding| &binding.host);
    if to.ha && !was_ha && (epoch > 0 || heir.is_some()) {
        // Epochs of its earlier life as an HA router may have been claimed while that was being ended, and hosts
        // may remember them; none of them is a reason for the heir to wait. And in epoch 0, all copies would take it for a new
        // router, whose first active waits for nobody.
        epoch = epoch.saturating_add(UNHEARD_EPOCHS);
    }
    let sql = "UPDATE ha_routers SET heir = ?2, heir_epoch = ?3 WHERE router_id = ?1";
    tx.execute(sql, &values![router.id, heir, i64::try_from(epoch).unwrap_or(i64::MAX)])?;
    super::schedule(tx, options, &candidates, router)?;
    let sql = "UPDATE router_bindings SET epoch = ?2 WHERE router_id = ?1 AND epoch < ?2";
    tx.execute(sql, &values![router.id, i64::try_from(epoch).unwrap_or(i64::MAX)])?;
    rebind_ports(tx, router)?;
    tx.changed(Kind::Router, router.id);
    Ok(())
}

/// Divides a router's copies into those that the new kind keeps and the rest.
fn divide(
    tx: &Tx<'_>,
    candidates: &Candidates,
    router: &Router,
    bindings: Vec<Binding>,
    to: Form,
) -> Result<(Vec<Binding>, Vec<Binding>), ApiError> {
    if to.ha {
        // Those on hosts that are away may come back.
        let agents = Agent::of_router(tx, router.id)?;
        let fits = |binding: &Binding| {
            agents.iter().any(|agent| agent.id == binding.agent_id && agent.mode().takes_copies(to.distributed))
        };
        return Ok(bindings.into_iter().partition(fits));
    }
    let fits = |binding: &Binding| candidates.contains(binding.agent_id, to.distributed);
    // The active copy stays where it is, so that its connections can go on.
    let active = active_copy(&bindings).filter(|active| fits(active));
    let stays = active.or_else(|| bindings.iter().find(|binding| fits(binding))).map(|binding| binding.agent_id);
    Ok(bindings.into_iter().partition(|binding| Some(binding.agent_id) == stays))
}

fn refuse_impossible(
    tx: &Tx<'_>,
    candidates: &Candidates,
    router: &Router,
    to: Form,
    bindings: &[Binding],
) -> Result<(), ApiError> {
    let refuse = |why: String| Err(ApiError::bad_router(format!("Router {} cannot become {to}: {why}", router.id)));
    let needs_a_copy = !to.distributed || to.ha || router.gateway(tx)?.is_some();
    let one_stays = || bindings.iter().any(|binding| candidates.contains(binding.agent_id, to.distributed));
    let hints = &router.availability_zone_hints;
    let one_comes = || !placement::choose(&candidates.list(to.distributed), &[], hints, 1).is_empty();
    if needs_a_copy && !one_stays() && !one_comes() {
        let modes = if to.distributed { "dvr_snat" } else { "legacy or dvr_snat" };
        return refuse(format!("no L3 agent in mode {modes} is alive, enabled and in its availability zones"));
    }
    if to.distributed {
        let id = router.id.to_string();
        let unserved = dvr::unserved(tx, &Fleet::read(tx)?, std::slice::from_ref(&id))?;
        if let Some(hosts) = unserved.get(&router.id) {
            return refuse(format!("ports on its subnets are on hosts that route for none: {}", hosts.join(", ")));
        }
    }
    Ok(())
}

/// Gives the router a VRID, and its copy a port on the HA network.
fn gain_ha(tx: &Tx<'_>, options: &Options, router: &Router, kept: &[Binding]) -> Result<(), ApiError> {
    super::take_vrid(tx, options, router)?;
    let network = super::ha_network_of(tx, router)?;
    for binding in kept {
        let port = make_ha_port(tx, options, router, network, &binding.host)?;
        let sql = "UPDATE router_bindings SET ha_port_id = ?3 WHERE router_id = ?1 AND agent_id = ?2";
        tx.execute(sql, &values![router.id, binding.agent_id, port])?;
    }
    Ok(())
}

/// Takes the port on the HA network from the copy that stays, and the router's VRID.
fn lose_ha(tx: &Tx<'_>, router: &Router, kept: &[Binding]) -> Result<(), ApiError> {
    for binding in kept {
        let sql = "UPDATE router_bindings SET ha_port_id = NULL, state = NULL WHERE router_id = ?1 AND agent_id = ?2";
        tx.execute(sql, &values![router.id, binding.agent_id])?;
        if let Some(port) = binding.ha_port_id {
            Port::get(tx, port)?.delete(tx)?;
        }
    }
    Ok(super::give_vrid_back(tx, router.id)?)
}

/// Calls the router's interfaces by their new name, and binds all of its ports to where they are now.
fn rebind_ports(tx: &Tx<'_>, router: &Router) -> Result<(), ApiError> {
    let interfaces: Vec<_> = router.ports(tx, Role::Interface)?.into_iter().map(|port| port.port_id).collect();
    for port in &interfaces {
        let sql = "UPDATE ports SET device_owner = ?2 WHERE id = ?1";
        tx.execute(sql, &values![port, interface_owner(router)])?;
        tx.changed(Kind::Port, port);
    }
    port::bind(tx, &interfaces, &interface_host(tx, router)?)?;
    Ok(port::bind(tx, &moving_ports(tx, router.id)?, &current_host(tx, router)?)?)
}
