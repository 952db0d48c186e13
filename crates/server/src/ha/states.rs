//! Who is active: what hosts say of their copies, and what the API makes of it.
//!
//! Every takeover has a higher epoch than the one before, so of several copies that call themselves
//! active the highest epoch is, and the API never shows two.

use std::collections::BTreeMap;

use evergate_model::host::{HaState, HaStateReport};
use evergate_model::{AgentId, PortId, RouterId};

use super::moving_ports;
use crate::error::ApiError;
use crate::objects::port;
use crate::objects::router::{self, Binding};
use crate::store::{Kind, Tx};
use crate::values;

/// `ha_state` of a copy, as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It forwards.
    Active,
    /// It stands by, or nothing was heard of it yet.
    Standby,
    /// Nobody knows: all of the router's agents are dead.
    Unknown,
}

impl CopyState {
    /// Neutron's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
            Self::Unknown => "unknown",
        }
    }
}

/// Finds the copy that is active: of those that say so, the one with the highest epoch.
pub fn active_copy(bindings: &[Binding]) -> Option<&Binding> {
    bindings.iter().filter(|binding| binding.active == Some(true)).max_by(|a, b| {
        // The same epoch twice only comes of a copy that lost its memory: the later heartbeat knows better.
        (a.epoch, &a.heartbeat_at, &a.host).cmp(&(b.epoch, &b.heartbeat_at, &b.host))
    })
}

/// Makes the states that the API shows of a router's copies. `is_alive` tells whether an agent is heard of.
///
/// An active copy on a dead agent is shown as standby, because it may well be dead itself; when all
/// agents are dead nothing is known of any.
pub fn copy_states(bindings: &[Binding], is_alive: impl Fn(&Binding) -> bool) -> BTreeMap<AgentId, CopyState> {
    let all_dead = !bindings.iter().any(&is_alive);
    let alive: Vec<Binding> = bindings.iter().filter(|binding| is_alive(binding)).cloned().collect();
    let active = active_copy(&alive).map(|binding| binding.agent_id);
    let state = |binding: &Binding| match active {
        _ if all_dead => CopyState::Unknown,
        Some(agent) if agent == binding.agent_id => CopyState::Active,
        _ => CopyState::Standby,
    };
    bindings.iter().map(|binding| (binding.agent_id, state(binding))).collect()
}

/// Takes a host's word on its HA copies, and binds the routers' ports to whoever is active now.
///
/// Copies that the host does not mention stay as they were last reported.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn record_states(tx: &Tx<'_>, host: &str, states: &BTreeMap<RouterId, HaStateReport>) -> Result<(), ApiError> {
    let mut changed = Vec::new();
    for binding in router::bindings_on(tx, host)? {
        let Some(report) = states.get(&binding.router_id) else { continue };
        let active = report.state == HaState::Active;
        if binding.ha_port_id.is_none() || (binding.active, binding.epoch) == (Some(active), report.epoch) {
            continue;
        }
        let word = if active { "active" } else { "standby" };
        let sql = "UPDATE router_bindings SET state = ?3, epoch = ?4, reported_at = ?5 \
                   WHERE router_id = ?1 AND agent_id = ?2";
        let epoch = i64::try_from(report.epoch).unwrap_or(i64::MAX);
        tx.execute(sql, &values![binding.router_id, binding.agent_id, word, epoch, tx.now_text()])?;
        tx.changed(Kind::Router, binding.router_id);
        changed.push(binding.router_id.to_string());
    }
    for (router, copies) in by_router(router::bindings_of(tx, &changed)?) {
        if let Some(active) = active_copy(&copies) {
            let ports: Vec<PortId> = moving_ports(tx, router)?;
            port::bind(tx, &ports, &active.host)?;
            // It has arrived where it was to go.
            let sql = "UPDATE routers SET move_to = NULL WHERE id = ?1 AND move_to = ?2";
            tx.execute(sql, &values![router, active.host.as_str()])?;
        }
    }
    Ok(())
}

fn by_router(bindings: Vec<Binding>) -> BTreeMap<RouterId, Vec<Binding>> {
    let mut routers: BTreeMap<RouterId, Vec<Binding>> = BTreeMap::new();
    for binding in bindings {
        routers.entry(binding.router_id).or_default().push(binding);
    }
    routers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(n: u128, active: Option<bool>, epoch: u64) -> Binding {
        Binding {
            router_id: RouterId::from_u128(9),
            agent_id: AgentId::from_u128(n),
            host: format!("h{n}"),
            ha_port_id: Some(PortId::from_u128(n)),
            active,
            epoch,
            heartbeat_at: String::new(),
        }
    }

    fn shown(bindings: &[Binding], dead: &[&str]) -> Vec<&'static str> {
        let states = copy_states(bindings, |binding| !dead.contains(&binding.host.as_str()));
        bindings.iter().map(|binding| states[&binding.agent_id].as_str()).collect()
    }

    #[test]
    fn of_two_actives_the_higher_epoch_is_shown_whoever_reported_last() {
        let copies = [copy(1, Some(true), 4), copy(2, Some(true), 5), copy(3, None, 0)];
        assert_eq!(shown(&copies, &[]), ["standby", "active", "standby"]);
    }

    #[test]
    fn an_active_copy_on_a_dead_agent_is_not_shown_as_active() {
        let copies = [copy(1, Some(true), 4), copy(2, Some(false), 4)];
        assert_eq!(shown(&copies, &["h1"]), ["standby", "standby"]);
        assert_eq!(shown(&copies, &["h1", "h2"]), ["unknown", "unknown"]);
    }

    #[test]
    fn the_survivor_is_shown_as_soon_as_it_says_so() {
        let copies = [copy(1, Some(true), 4), copy(2, Some(true), 5)];
        assert_eq!(shown(&copies, &["h1"]), ["standby", "active"]);
    }
}
