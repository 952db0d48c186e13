//! Agents: the roles of hosts, as `network agent list` shows them.

use std::net::IpAddr;

use evergate_model::host::{AgentKind, AgentReport};
use evergate_model::{AgentId, RouterId};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::fleet::{DECISIVE, Mode};
use super::query_in;
use crate::error::ApiError;
use crate::options::Options;
use crate::random;
use crate::store::{Kind, Row, StoreError, Tx, timestamp_text};
use crate::values;

/// The type of an agent that hosts routers.
pub const L3_AGENT: &str = "L3 agent";

/// An agent.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Agent {
    pub id: AgentId,
    pub agent_type: String,
    pub binary: String,
    pub topic: String,
    pub host: String,
    pub admin_state_up: bool,
    pub description: Option<String>,
    pub availability_zone: Option<String>,
    pub configurations: Map<String, Value>,
    pub created_at: String,
    pub started_at: String,
    pub heartbeat_at: String,
}

/// Type, binary and topic of a kind of agent, in Neutron's words.
pub const fn words(kind: AgentKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        AgentKind::L3 => (L3_AGENT, "neutron-l3-agent", "l3_agent"),
        AgentKind::LinuxBridge => ("Linux bridge agent", "neutron-linuxbridge-agent", "N/A"),
        AgentKind::OpenVSwitch => ("Open vSwitch agent", "neutron-openvswitch-agent", "N/A"),
    }
}

const COLUMNS: &str = "id, agent_type, binary_name, topic, host, admin_state_up, description, availability_zone, \
                       configurations, created_at, started_at, heartbeat_at";

/// Agents that beat since then are alive; as the store keeps times.
pub fn alive_since(now: Timestamp, options: &Options) -> String {
    let down_time = SignedDuration::from_secs(i64::from(options.agent_down_time));
    timestamp_text(now.checked_sub(down_time).unwrap_or(now))
}

impl Agent {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            agent_type: row.text(1)?,
            binary: row.text(2)?,
            topic: row.text(3)?,
            host: row.text(4)?,
            admin_state_up: row.bool(5)?,
            description: row.opt_text(6)?,
            availability_zone: row.opt_text(7)?,
            configurations: row.json(8)?,
            created_at: row.text(9)?,
            started_at: row.text(10)?,
            heartbeat_at: row.text(11)?,
        })
    }

    /// Reads one agent.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: AgentId) -> Result<Self, ApiError> {
        let sql = format!("SELECT {COLUMNS} FROM agents WHERE id = ?1");
        tx.query_opt(&sql, &values![id], Self::read)?.ok_or_else(|| ApiError::AgentNotFound { id: id.to_string() })
    }

    /// Reads many agents, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        query_in(tx, &format!("SELECT {COLUMNS} FROM agents WHERE id IN ({{}})"), ids, Self::read)
    }

    /// Reads all L3 agents.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn all_l3(tx: &Tx<'_>) -> Result<Vec<Self>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM agents WHERE agent_type = ?1 ORDER BY host");
        tx.query(&sql, &values![L3_AGENT], Self::read)
    }

    /// Reads the agents of a router's copies.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn of_router(tx: &Tx<'_>, router: RouterId) -> Result<Vec<Self>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM agents WHERE id IN (SELECT agent_id FROM router_bindings WHERE router_id = ?1) \
             ORDER BY host"
        );
        tx.query(&sql, &values![router], Self::read)
    }

    /// Tells whether the agent was heard of since then ([`alive_since`]).
    pub fn is_alive(&self, since: &str) -> bool {
        // Times in one format and time zone compare as texts.
        self.heartbeat_at.as_str() >= since
    }

    /// Its mode, if it is an L3 agent.
    pub fn mode(&self) -> Mode {
        Mode::of(&self.configurations)
    }
}

/// What [`upsert`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upserted {
    /// The agent.
    pub id: AgentId,
    /// It was not known before, so routers may be waiting for it.
    pub is_new: bool,
    /// It takes other routers than before.
    pub has_new_mode: bool,
}

/// Takes a host's word on one of its roles, which is also that agent's heartbeat. `started` tells that
/// a new life of the daemon begins.
///
/// The change log only hears of what matters to other hosts: that an agent came, has another tunnel address,
/// or is configured to take other parts of routers.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn upsert(
    tx: &Tx<'_>,
    options: &Options,
    host: &str,
    report: &AgentReport,
    started: bool,
) -> Result<Upserted, StoreError> {
    let (agent_type, binary, topic) = words(report.kind);
    let configurations = Value::Object(report.configurations.clone()).to_string();
    let tunnel_ip = tunnel_ip(report).map(|ip| ip.to_string());
    let now = tx.now_text();
    let sql = "SELECT id, tunnel_ip, configurations FROM agents WHERE agent_type = ?1 AND host = ?2";
    let known = tx.query_opt(sql, &values![agent_type, host], |row| {
        Ok((row.parse::<AgentId>(0)?, row.opt_text(1)?, row.json::<Map<String, Value>>(2)?))
    })?;
    if let Some((id, old_tunnel_ip, old)) = known {
        let sql = "UPDATE agents SET availability_zone = ?2, configurations = ?3, tunnel_ip = ?4, heartbeat_at = ?5 \
                   WHERE id = ?1";
        let zone = report.availability_zone.clone();
        tx.execute(sql, &values![id, zone, configurations, tunnel_ip.clone(), now.clone()])?;
        if started {
            tx.execute("UPDATE agents SET started_at = ?2 WHERE id = ?1", &values![id, now])?;
        }
        let new = &report.configurations;
        if old_tunnel_ip != tunnel_ip || DECISIVE.iter().any(|key| old.get(*key) != new.get(*key)) {
            tx.changed(Kind::Agent, id);
        }
        return Ok(Upserted { id, is_new: false, has_new_mode: Mode::of(&old) != Mode::of(new) });
    }
    let id = AgentId(random::id());
    let sql = "INSERT INTO agents (id, agent_type, binary_name, topic, host, admin_state_up, availability_zone, \
               configurations, tunnel_ip, created_at, started_at, heartbeat_at) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10, ?10)";
    let zone = report.availability_zone.clone();
    let up = options.enable_new_agents;
    tx.execute(sql, &values![id, agent_type, binary, topic, host, up, zone, configurations, tunnel_ip, now])?;
    tx.changed(Kind::Agent, id);
    Ok(Upserted { id, is_new: true, has_new_mode: false })
}

/// Where tunnels to the host end: L2 agents say it in their `configurations`.
pub(crate) fn tunnel_ip(report: &AgentReport) -> Option<IpAddr> {
    match report.kind {
        AgentKind::L3 => None,
        AgentKind::LinuxBridge | AgentKind::OpenVSwitch => {
            report.configurations.get("tunneling_ip")?.as_str()?.parse().ok()
        }
    }
}
