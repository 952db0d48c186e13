//! Routers on hosts: copies, their HA network and VRIDs, and who is active.
//!
//! A highly available router is one row in `ha_routers` (its HA network and VRID) and a copy per
//! agent: a binding with a port on the HA network. A legacy router is one binding without such a port.
//! A distributed router's bindings are about its source NAT alone; which hosts route for it follows from
//! its ports ([`dvr`](crate::dvr)).
//! Everything about a router happens in the transaction that makes it, so several first HA routers of
//! a project at once find, or make, the same HA network.

mod convert;
mod network;
mod states;

use std::collections::BTreeMap;

use evergate_model::{AgentId, PortId, RouterId};

use crate::error::ApiError;
use crate::objects::agent::{Agent, alive_since};
use crate::objects::ask;
use crate::objects::fleet::Mode;
use crate::objects::port::{self, NewPort, Port, owner};
use crate::objects::router::{self, Binding, Role, Router, RouterPort};
use crate::options::Options;
use crate::placement::{self, Candidate};
use crate::store::{Kind, StoreError, Tx};
use crate::values;

pub use convert::{Form, convert};
pub use network::{HaNetwork, virtual_address};
pub use states::{CopyState, active_copy, copy_states, record_states};

/// Makes a router highly available: a VRID on its project's HA network, and its copies.
///
/// # Errors
///
/// When no HA network can be made.
pub fn enable(tx: &Tx<'_>, options: &Options, router: &Router) -> Result<(), ApiError> {
    let candidates = Candidates::read(tx, options)?;
    take_vrid(tx, options, router)?;
    schedule(tx, options, &candidates, router)?;
    Ok(())
}

fn take_vrid(tx: &Tx<'_>, options: &Options, router: &Router) -> Result<(), ApiError> {
    let (network, vrid) = network::with_free_vrid(tx, options, &router.project_id)?;
    let sql = "INSERT INTO ha_routers (router_id, network_id, vrid) VALUES (?1, ?2, ?3)";
    tx.execute(sql, &values![router.id, network.network_id, vrid])?;
    // Hosts on the network are told which VRIDs are in use.
    tx.changed(Kind::Network, network.network_id);
    Ok(())
}

/// Takes the router's VRID, if it has one.
fn give_vrid_back(tx: &Tx<'_>, router: RouterId) -> Result<(), StoreError> {
    if let Some(network) = HaNetwork::of_router(tx, router)? {
        tx.execute("DELETE FROM ha_routers WHERE router_id = ?1", &values![router])?;
        tx.changed(Kind::Network, network.network_id);
    }
    Ok(())
}

/// Gives a router the agents that it lacks, as far as there are any; answers how many it got.
///
/// # Errors
///
/// When a copy's port cannot be made.
pub fn schedule(tx: &Tx<'_>, options: &Options, candidates: &Candidates, router: &Router) -> Result<usize, ApiError> {
    let present: Vec<AgentId> = router.bindings(tx)?.into_iter().map(|binding| binding.agent_id).collect();
    let wanted = match (router.ha, options.max_l3_agents_per_router) {
        (false, _) => 1,
        (true, 0) => usize::MAX,
        (true, max) => max as usize,
    };
    let missing = wanted.saturating_sub(present.len());
    let list = candidates.list(router.distributed);
    let chosen = placement::choose(&list, &present, &router.availability_zone_hints, missing);
    let network = if router.ha && !chosen.is_empty() { Some(ha_network_of(tx, router)?) } else { None };
    for agent in list.iter().filter(|candidate| chosen.contains(&candidate.agent_id)) {
        put(tx, options, router, network, (agent.agent_id, &agent.host))?;
        candidates.count(agent.agent_id);
    }
    Ok(chosen.len())
}

/// Gives every router that has too few copies the ones it lacks. To be called when an agent appears, is
/// admitted, or goes.
///
/// # Errors
///
/// When a copy's port cannot be made.
pub fn schedule_missing(tx: &Tx<'_>, options: &Options) -> Result<(), ApiError> {
    let candidates = Candidates::read(tx, options)?;
    let wanted = match options.max_l3_agents_per_router {
        0 => candidates.len() as i64,
        max => i64::from(max),
    };
    let sql = "SELECT r.id FROM routers r LEFT JOIN \
               (SELECT router_id, count(*) AS copies FROM router_bindings GROUP BY router_id) b ON b.router_id = r.id \
               WHERE coalesce(b.copies, 0) < CASE WHEN r.ha = 1 THEN ?1 ELSE 1 END ORDER BY r.created_at, r.id";
    let ids = tx.query(sql, &values![wanted], |row| row.text(0))?;
    for router in Router::many(tx, &ids)? {
        if schedule(tx, options, &candidates, &router)? > 0 {
            router.note(tx)?;
        }
    }
    Ok(())
}

/// Puts a copy of a router on an agent.
///
/// # Errors
///
/// When its port cannot be made.
pub fn bind(tx: &Tx<'_>, options: &Options, router: &Router, agent: AgentId) -> Result<(), ApiError> {
    let agent = Agent::get(tx, agent)?;
    let network = if router.ha { Some(ha_network_of(tx, router)?) } else { None };
    put(tx, options, router, network, (agent.id, &agent.host))
}

/// Puts a copy on an agent of a host; of an HA router, with a port on its HA network.
fn put(
    tx: &Tx<'_>,
    options: &Options,
    router: &Router,
    network: Option<HaNetwork>,
    (agent, host): (AgentId, &str),
) -> Result<(), ApiError> {
    let ha_port = network.map(|network| make_ha_port(tx, options, router, network, host)).transpose()?;
    let sql = "INSERT INTO router_bindings (router_id, agent_id, ha_port_id) VALUES (?1, ?2, ?3)";
    tx.execute(sql, &values![router.id, agent, ha_port])?;
    if !router.ha {
        port::bind(tx, &moving_ports(tx, router.id)?, host)?;
    }
    tx.changed(Kind::Router, router.id);
    Ok(())
}

/// Takes a copy of a router from its agent.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn unbind(tx: &Tx<'_>, router: &Router, binding: &Binding) -> Result<(), ApiError> {
    let sql = "DELETE FROM router_bindings WHERE router_id = ?1 AND agent_id = ?2";
    tx.execute(sql, &values![router.id, binding.agent_id])?;
    if let Some(id) = binding.ha_port_id {
        Port::get(tx, id)?.delete(tx)?;
    }
    let moving = moving_ports(tx, router.id)?;
    let bound_here: Vec<PortId> =
        Port::many(tx, &texts(&moving))?.into_iter().filter(|p| p.host_id == binding.host).map(|p| p.id).collect();
    port::bind(tx, &bound_here, "")?;
    tx.changed(Kind::Router, router.id);
    Ok(())
}

/// Takes all copies of a router from their agents, and its VRID if it had one.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn disable(tx: &Tx<'_>, router: &Router) -> Result<(), ApiError> {
    for binding in router.bindings(tx)? {
        unbind(tx, router, &binding)?;
    }
    Ok(give_vrid_back(tx, router.id)?)
}

/// Takes everything from an agent that is about to be removed, and finds other agents for it.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn vacate(tx: &Tx<'_>, agent: &Agent) -> Result<(), ApiError> {
    let on_agent: Vec<Binding> =
        router::bindings_on(tx, &agent.host)?.into_iter().filter(|binding| binding.agent_id == agent.id).collect();
    let ids: Vec<String> = on_agent.iter().map(|binding| binding.router_id.to_string()).collect();
    let routers: BTreeMap<RouterId, Router> = Router::many(tx, &ids)?.into_iter().map(|r| (r.id, r)).collect();
    for binding in &on_agent {
        if let Some(router) = routers.get(&binding.router_id) {
            unbind(tx, router, binding)?;
            router.note(tx)?;
        }
    }
    Ok(())
}

/// Takes from an agent, whose mode is another now, the routers that it can no longer have, and finds other
/// agents for them.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn vacate_unfit(tx: &Tx<'_>, options: &Options, agent: AgentId) -> Result<(), ApiError> {
    let agent = Agent::get(tx, agent)?;
    for binding in router::bindings_on(tx, &agent.host)? {
        let router = Router::get(tx, binding.router_id)?;
        if binding.agent_id == agent.id && !agent.mode().takes_copies(router.distributed) {
            unbind(tx, &router, &binding)?;
            router.note(tx)?;
        }
    }
    schedule_missing(tx, options)
}

/// What an interface of the router is called.
pub fn interface_owner(router: &Router) -> &'static str {
    match (router.distributed, router.ha) {
        (true, _) => owner::DISTRIBUTED,
        (false, true) => owner::HA_REPLICATED,
        (false, false) => owner::INTERFACE,
    }
}

/// The host that a new interface of the router starts on. A distributed router's is on no one host.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn interface_host(tx: &Tx<'_>, router: &Router) -> Result<String, StoreError> {
    if router.distributed { Ok(String::new()) } else { current_host(tx, router) }
}

/// The host that the router's way out starts on: the active copy's, or the only one.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn current_host(tx: &Tx<'_>, router: &Router) -> Result<String, StoreError> {
    let bindings = router.bindings(tx)?;
    let current = if router.ha { active_copy(&bindings) } else { bindings.first() };
    Ok(current.map(|binding| binding.host.clone()).unwrap_or_default())
}

/// The ports that are wherever the router is active: of a distributed one, those of its source NAT.
fn moving_ports(tx: &Tx<'_>, router: RouterId) -> Result<Vec<PortId>, StoreError> {
    let sql = "SELECT rp.port_id FROM router_ports rp JOIN routers r ON r.id = rp.router_id \
               WHERE rp.router_id = ?1 AND rp.role <> 'ha' AND NOT (rp.role = 'interface' AND r.distributed = 1) \
               ORDER BY rp.port_id";
    tx.query(sql, &values![router], |row| row.parse(0))
}

fn texts(ids: &[PortId]) -> Vec<String> {
    ids.iter().map(PortId::to_string).collect()
}

fn ha_network_of(tx: &Tx<'_>, router: &Router) -> Result<HaNetwork, ApiError> {
    HaNetwork::of_router(tx, router.id)?
        .ok_or_else(|| ApiError::internal(format!("HA router {} has no HA network", router.id)))
}

fn make_ha_port(
    tx: &Tx<'_>,
    options: &Options,
    router: &Router,
    network: HaNetwork,
    host: &str,
) -> Result<PortId, ApiError> {
    let (name, device) = (format!("HA port tenant {}", router.project_id), router.id.to_string());
    let new = NewPort { name: &name, host_id: host, ..NewPort::device(network.network_id, owner::HA, &device) };
    let port = Port::create(tx, options, &new)?;
    let (router_id, network_id) = (router.id, network.network_id);
    router::attach(tx, &RouterPort { router_id, port_id: port.id, network_id, role: Role::Ha })?;
    Ok(port.id)
}

/// The agents that may get a router now, with how many they have.
#[derive(Debug)]
pub struct Candidates(std::cell::RefCell<Vec<(Mode, Candidate)>>);

impl Candidates {
    /// Reads the agents that are alive, admitted, and in a mode that takes central routers or the source NAT of
    /// distributed ones.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn read(tx: &Tx<'_>, options: &Options) -> Result<Self, StoreError> {
        let sql = "SELECT agent_id, count(*) FROM router_bindings GROUP BY agent_id";
        let loads = ask(tx, sql, &[], |row| Ok((row.parse(0)?, row.num(1)?)))?;
        let agents = Agent::all_l3(tx)?;
        let loads: BTreeMap<AgentId, u64> = loads.read()?.into_iter().collect();
        let since = alive_since(tx.now(), options);
        let eligible = agents.into_iter().filter(|agent| agent.admin_state_up && agent.is_alive(&since));
        let candidates = eligible.map(|agent| {
            let mode = agent.mode();
            let routers = loads.get(&agent.id).copied().unwrap_or(0);
            let zone = agent.availability_zone.unwrap_or_default();
            (mode, Candidate { agent_id: agent.id, host: agent.host, zone, routers })
        });
        let candidates = candidates.filter(|(mode, _)| mode.takes_copies(false) || mode.takes_copies(true));
        Ok(Self(candidates.collect::<Vec<_>>().into()))
    }

    /// Those that may get a router of that kind.
    fn list(&self, distributed: bool) -> Vec<Candidate> {
        let candidates = self.0.borrow();
        candidates.iter().filter(|(mode, _)| mode.takes_copies(distributed)).map(|(_, found)| found.clone()).collect()
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Tells whether the agent may get a router of that kind.
    pub fn contains(&self, agent: AgentId, distributed: bool) -> bool {
        let candidates = self.0.borrow();
        candidates.iter().any(|(mode, found)| found.agent_id == agent && mode.takes_copies(distributed))
    }

    /// Notes that an agent got one more.
    fn count(&self, agent: AgentId) {
        for (_, candidate) in self.0.borrow_mut().iter_mut().filter(|(_, candidate)| candidate.agent_id == agent) {
            candidate.routers += 1;
        }
    }
}
