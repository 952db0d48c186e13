//! Which agents have which routers: `/routers/<id>/l3-agents`, `/routers/<id>/evergate:hosts` and
//! `/agents/<id>/l3-routers`.

use std::collections::BTreeSet;

use evergate_model::RouterId;
use serde_json::{Value as Json, json};

use super::{Call, Resource, agents, must_see, object, parse_id, routers};
use crate::attributes::Object;
use crate::attributes::present::View;
use crate::error::ApiError;
use crate::ha::{self, Candidates};
use crate::objects::agent::{Agent, L3_AGENT, alive_since};
use crate::objects::fleet::Mode;
use crate::objects::router::Router;
use crate::policy;
use crate::values;

/// Lists a router's copies, with `ha_state`.
///
/// # Errors
///
/// 403 for who is no admin, 404 where there is no such router.
pub fn agents_of_router(call: Call<'_>, id: &str, fields: &[String]) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_l3-agents", "")?;
    must_see(call, &routers::Routers, id)?;
    let router = Router::get(call.tx, parse_id(&routers::Routers, id)?)?;
    let since = alive_since(call.tx.now(), call.options);
    let agents = Agent::of_router(call.tx, router.id)?;
    // A disabled agent's copy goes on until it has handed over, so it counts until its host says that it stands by.
    let serves = |host: &str| agents.iter().any(|agent| agent.host == host && agent.is_alive(&since));
    let bindings = router.bindings(call.tx)?;
    let states = ha::copy_states(&bindings, |binding| serves(&binding.host));
    let shown = agents.iter().map(|agent| {
        let mut shown = agents::show(agent, &since);
        shown.insert("resource_versions".into(), json!({}));
        let state = states.get(&agent.id).filter(|_| router.ha).map(|state| state.as_str());
        shown.insert("ha_state".into(), json!(state));
        if !fields.is_empty() {
            shown.retain(|name, _| fields.contains(name));
        }
        shown
    });
    Ok(json!({"agents": shown.collect::<Vec<_>>()}))
}

/// Lists the hosts that a router is on: for a distributed one also those that only route for it, which
/// `l3-agents` does not show, as in Neutron.
///
/// # Errors
///
/// 403 for who is no admin, 404 where there is no such router.
pub fn hosts_of_router(call: Call<'_>, id: &str) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_l3-agents", "")?;
    must_see(call, &routers::Routers, id)?;
    let router = Router::get(call.tx, parse_id(&routers::Routers, id)?)?;
    let since = alive_since(call.tx.now(), call.options);
    let bindings = router.bindings(call.tx)?;
    let sql = "SELECT host FROM router_hosts WHERE router_id = ?1";
    let routing: BTreeSet<String> = call.tx.query(sql, &values![router.id], |row| row.text(0))?.into_iter().collect();
    let agents = Agent::all_l3(call.tx)?;
    let serves = |host: &str| agents.iter().any(|agent| agent.host == host && agent.is_alive(&since));
    let states = ha::copy_states(&bindings, |binding| serves(&binding.host));
    let hosts = agents.iter().filter_map(|agent| {
        let bound = bindings.iter().any(|binding| binding.agent_id == agent.id);
        let routes = if router.distributed { routing.contains(&agent.host) } else { bound };
        let state = states.get(&agent.id).filter(|_| router.ha).map(|state| state.as_str());
        (bound || routes).then(|| {
            json!({
                "host": agent.host,
                "agent_id": agent.id,
                "agent_mode": agent.mode().as_str(),
                "alive": agent.is_alive(&since),
                "routes": routes,
                "translates": bound,
                "ha_state": state,
            })
        })
    });
    Ok(json!({"hosts": hosts.collect::<Vec<_>>()}))
}

/// Lists the routers that an agent has: those bound to it, and the distributed ones that its host routes for.
///
/// # Errors
///
/// 403 for who is no admin, 404 where there is no such agent.
pub fn routers_of_agent(call: Call<'_>, id: &str, fields: &[String]) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_l3-routers", "")?;
    let agent = l3_agent(call, id)?;
    let sql = "SELECT router_id FROM router_bindings WHERE agent_id = ?1 \
               UNION SELECT router_id FROM router_hosts WHERE host = ?2 ORDER BY 1";
    let ids = call.tx.query(sql, &values![agent.id, agent.host.as_str()], |row| row.text(0))?;
    let view = View::new(routers::Routers.table(), call.ctx, fields);
    let routers = routers::Routers.load(call, &ids)?.into_iter().map(|router| Json::Object(view.show(router)));
    Ok(json!({"routers": routers.collect::<Vec<_>>()}))
}

/// Puts a router on an agent.
///
/// # Errors
///
/// When the agent does not take it, or has it, or (of a legacy router) another one has it.
pub fn add_router(call: Call<'_>, id: &str, json: &Object) -> Result<Json, ApiError> {
    policy::require(call.ctx, "create_l3-router", "")?;
    let agent = l3_agent(call, id)?;
    let Some(router) = json.get("router_id").and_then(Json::as_str) else {
        return Err(ApiError::bad_request("Invalid input. router_id must be specified"));
    };
    let router = Router::get(call.tx, parse_id(&routers::Routers, router)?)?;
    match agent.mode() {
        Mode::Dvr | Mode::DvrNoExternal => return Err(ApiError::DVRL3CannotAssignToDvrAgent {}),
        Mode::Legacy if router.distributed => {
            let (router, agent) = (router.id.to_string(), agent.id.to_string());
            return Err(ApiError::RouterL3AgentMismatch { router, agent });
        }
        Mode::Legacy | Mode::DvrSnat => {}
    }
    if !Candidates::read(call.tx, call.options)?.contains(agent.id, router.distributed) {
        return Err(ApiError::InvalidL3Agent { id: agent.id.to_string() });
    }
    let bindings = router.bindings(call.tx)?;
    let in_the_way = bindings.iter().find(|binding| binding.agent_id == agent.id || !router.ha);
    match in_the_way {
        // Neutron answers a repeated request with success.
        Some(binding) if binding.agent_id == agent.id => return Ok(Json::Object(object(json!({})))),
        Some(binding) => {
            let (router, agent) = (router.id.to_string(), binding.agent_id.to_string());
            return Err(ApiError::RouterHostedByL3Agent { router, agent });
        }
        None => {}
    }
    ha::bind(call.tx, call.options, &router, agent.id)?;
    router.note(call.tx)?;
    Ok(Json::Object(object(json!({}))))
}

/// Takes a router from an agent. Nothing takes its place until it is asked to.
///
/// # Errors
///
/// When the agent does not have it.
pub fn remove_router(call: Call<'_>, id: &str, router: &str) -> Result<(), ApiError> {
    policy::require(call.ctx, "delete_l3-router", "")?;
    let agent = l3_agent(call, id)?;
    if matches!(agent.mode(), Mode::Dvr | Mode::DvrNoExternal) {
        return Err(ApiError::DVRL3CannotRemoveFromDvrAgent {});
    }
    let router_id: RouterId = parse_id(&routers::Routers, router)?;
    let router = Router::get(call.tx, router_id)?;
    let Some(binding) = router.bindings(call.tx)?.into_iter().find(|binding| binding.agent_id == agent.id) else {
        let (router, agent) = (router.id.to_string(), agent.id.to_string());
        return Err(ApiError::RouterNotHostedByL3Agent { router, agent });
    };
    ha::unbind(call.tx, &router, &binding)?;
    router.note(call.tx)?;
    Ok(())
}

fn l3_agent(call: Call<'_>, id: &str) -> Result<Agent, ApiError> {
    let agent = Agent::get(call.tx, parse_id(&agents::Agents, id)?)?;
    if agent.agent_type == L3_AGENT { Ok(agent) } else { Err(ApiError::InvalidL3Agent { id: id.to_owned() }) }
}
