//! Agents: what `network agent list` shows, and the little that an admin can change about them.

use evergate_model::AgentId;
use serde_json::json;

use super::{Call, Resource, object, parse_id};
use crate::attributes::{self, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::ha;
use crate::objects::agent::{Agent, L3_AGENT, alive_since};
use crate::policy::Rule;
use crate::store::Kind as Changed;
use crate::values;

/// The resource `agents`.
#[derive(Clone, Copy, Debug)]
pub struct Agents;

static TABLE: Table = Table {
    singular: "agent",
    plural: "agents",
    sql: "agents",
    bulk: false,
    tagged: false,
    create: Rule::Nobody,
    get: Rule::Admin,
    update: Rule::Admin,
    delete: Rule::Admin,
    // They are of no project, so the rule alone decides.
    scope: "1 = 1",
    attributes: &[
        attributes::ID,
        Attribute::new("agent_type", Kind::Computed).column("t.agent_type"),
        Attribute::new("binary", Kind::Computed).column("t.binary_name"),
        Attribute::new("topic", Kind::Computed).column("t.topic"),
        Attribute::new("host", Kind::Computed).column("t.host"),
        Attribute::new("admin_state_up", Kind::Bool).put().column("t.admin_state_up"),
        Attribute::new("description", Kind::TextOrNull(255)).put().column("t.description"),
        Attribute::new("availability_zone", Kind::Computed).filter(Filter::Column("t.availability_zone")),
        Attribute::new("alive", Kind::Bool).filter(Filter::Shown).sort("t.heartbeat_at"),
        Attribute::new("configurations", Kind::Computed),
        Attribute::new("resources_synced", Kind::Computed),
        Attribute::new("created_at", Kind::Computed).sort("t.created_at"),
        Attribute::new("started_at", Kind::Computed).sort("t.started_at"),
        Attribute::new("heartbeat_timestamp", Kind::Computed).sort("t.heartbeat_at"),
    ],
};

impl Resource for Agents {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::AgentNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let since = alive_since(call.tx.now(), call.options);
        Ok(Agent::many(call.tx, ids)?.into_iter().map(|agent| show(&agent, &since)).collect())
    }

    fn create(&self, _call: Call<'_>, _body: &Body) -> Result<String, ApiError> {
        Err(ApiError::internal("agents come by themselves"))
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let agent: AgentId = parse_id(self, id)?;
        if let Some(up) = body.get::<bool>("admin_state_up")? {
            call.tx.execute("UPDATE agents SET admin_state_up = ?2 WHERE id = ?1", &values![agent, up])?;
            call.tx.changed(Changed::Agent, agent);
            if up {
                ha::schedule_missing(call.tx, call.options)?;
            }
        }
        if let Some(description) = body.get::<Option<String>>("description")? {
            call.tx.execute("UPDATE agents SET description = ?2 WHERE id = ?1", &values![agent, description])?;
        }
        Ok(())
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let agent = Agent::get(call.tx, parse_id(self, id)?)?;
        ha::vacate(call.tx, &agent)?;
        call.tx.execute("DELETE FROM agents WHERE id = ?1", &values![agent.id])?;
        call.tx.changed(Changed::Agent, agent.id);
        if agent.agent_type == L3_AGENT {
            ha::schedule_missing(call.tx, call.options)?;
        }
        Ok(())
    }
}

/// Shows an agent; alive is who was heard of since then.
pub(super) fn show(agent: &Agent, since: &str) -> Object {
    object(json!({
        "id": agent.id,
        "agent_type": agent.agent_type,
        "binary": agent.binary,
        "topic": agent.topic,
        "host": agent.host,
        "admin_state_up": agent.admin_state_up,
        "description": agent.description,
        "availability_zone": agent.availability_zone,
        "alive": agent.is_alive(since),
        "configurations": agent.configurations,
        "resources_synced": null,
        "created_at": spaced(&agent.created_at),
        "started_at": spaced(&agent.started_at),
        "heartbeat_timestamp": spaced(&agent.heartbeat_at),
    }))
}

/// Agents show their times as a database prints them: `2026-11-22 00:00:00`.
fn spaced(time: &str) -> String {
    time.replacen('T', " ", 1).trim_end_matches('Z').to_owned()
}
