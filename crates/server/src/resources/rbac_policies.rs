//! RBAC policies: a network is shared with, or external for, one project or all.
//!
//! A network's `shared` and `router:external` are the same thing in other words: setting one grants or
//! revokes the policy for `*`. What a caller sees follows from the policies alone (the scopes in the
//! tables of networks and subnets), and `shared` is shown as it is for the caller.

use std::collections::BTreeSet;

use evergate_model::NetworkId;
use serde_json::json;

use super::{Call, Resource, networks, object, visible};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::network::Network;
use crate::objects::{bump, query_in};
use crate::policy::{self, Rule};
use crate::random;
use crate::values;

/// The resource `rbac-policies`.
#[derive(Clone, Copy, Debug)]
pub struct RbacPolicies;

/// The action that lets a project use a network as its own.
pub(super) const SHARED: &str = "access_as_shared";
/// The action that lets a project lead its routers out through a network.
pub(super) const EXTERNAL: &str = "access_as_external";
/// The target that stands for every project.
pub(super) const ALL: &str = "*";

static TABLE: Table = Table {
    singular: "rbac_policy",
    plural: "rbac_policies",
    sql: "rbac_policies",
    bulk: true,
    tagged: false,
    create: Rule::Member,
    get: Rule::Any,
    update: Rule::Member,
    delete: Rule::Member,
    scope: "t.project_id = ?1",
    attributes: &[
        attributes::ID,
        attributes::PROJECT_ID,
        Attribute::new("object_type", Kind::Text(255)).post(Absent::Required).column("t.object_type"),
        Attribute::new("object_id", Kind::Uuid).post(Absent::Required).column("t.object_id"),
        Attribute::new("action", Kind::Text(255)).post(Absent::Required).column("t.action"),
        Attribute::new("target_tenant", Kind::Text(255))
            .post(Absent::Required)
            .put()
            .set_by(Rule::NotEveryProject)
            .filter(Filter::Column("t.target_project"))
            .sort("t.target_project"),
    ],
};

/// A policy, read back.
struct Policy {
    id: String,
    network: NetworkId,
    target: String,
    action: String,
}

impl Resource for RbacPolicies {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::RbacPolicyNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let sql = "SELECT id, project_id, object_type, object_id, target_project, action FROM rbac_policies \
                   WHERE id IN ({})";
        let policies = query_in(call.tx, sql, ids, |row| {
            Ok(object(json!({
                "id": row.text(0)?,
                "project_id": row.text(1)?,
                "object_type": row.text(2)?,
                "object_id": row.text(3)?,
                "target_tenant": row.text(4)?,
                "action": row.text(5)?,
            })))
        });
        Ok(policies?)
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let object_type: String = body.need("object_type")?;
        if !object_type.trim().eq_ignore_ascii_case("network") {
            return Err(ApiError::invalid(format!("'{object_type}' is not a valid RBAC object type")));
        }
        let action: String = body.need("action")?;
        if ![SHARED, EXTERNAL].contains(&action.as_str()) {
            let (object_type, valid_actions) = ("network".to_owned(), format!("['{EXTERNAL}', '{SHARED}']"));
            return Err(ApiError::InvalidActionForType { action, object_type, valid_actions });
        }
        let id: String = body.need("object_id")?;
        visible(call, &networks::Networks, &id)?;
        let network = Network::get(call.tx, super::parse_id(&networks::Networks, &id)?)?;
        if !call.ctx.is_admin && call.ctx.project_id.as_deref() != Some(network.project_id.as_str()) {
            return Err(ApiError::invalid("Only admins can manipulate policies on networks they do not own"));
        }
        // Deviation: in Neutron a member can make its own network external in this way, though not by PUT.
        if action == EXTERNAL && !call.ctx.is_admin {
            return Err(policy::forbidden("create_rbac_policy", &["action"]));
        }
        let target = target(&body.need::<String>("target_tenant")?)?;
        if has(call, network.id, &action, &target)? {
            return Err(ApiError::DuplicateRbacPolicy {});
        }
        grant(call, network.id, &action, &target, &body.need::<String>("project_id")?)
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let policy = Policy::get(call, id)?;
        let Some(target_now) = body.get::<String>("target_tenant")? else { return Ok(()) };
        let target_now = target(&target_now)?;
        if target_now == policy.target {
            return Ok(());
        }
        if has(call, policy.network, &policy.action, &target_now)? {
            return Err(ApiError::DuplicateRbacPolicy {});
        }
        let sql = "UPDATE rbac_policies SET target_project = ?2 WHERE id = ?1";
        call.tx.execute(sql, &values![id, &target_now])?;
        // What the policy allows now is there already, so it covers what it can.
        refuse_if_needed(call, &policy)?;
        follow(call, policy.network, &policy.action)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let policy = Policy::get(call, id)?;
        call.tx.execute("DELETE FROM rbac_policies WHERE id = ?1", &values![id])?;
        refuse_if_needed(call, &policy)?;
        follow(call, policy.network, &policy.action)
    }
}

impl Policy {
    fn get(call: Call<'_>, id: &str) -> Result<Self, ApiError> {
        let sql = "SELECT id, object_id, target_project, action FROM rbac_policies WHERE id = ?1";
        let found = call.tx.query_opt(sql, &values![id], |row| {
            Ok(Self { id: row.text(0)?, network: row.parse(1)?, target: row.text(2)?, action: row.text(3)? })
        });
        found?.ok_or_else(|| ApiError::RbacPolicyNotFound { id: id.to_owned() })
    }
}

fn target(text: &str) -> Result<String, ApiError> {
    if text.trim().is_empty() {
        let message = "Invalid input for target_tenant. Reason: a project, or * for all, is needed.";
        return Err(ApiError::bad_request(message));
    }
    Ok(text.to_owned())
}

fn has(call: Call<'_>, network: NetworkId, action: &str, target: &str) -> Result<bool, ApiError> {
    let sql = "SELECT count(*) FROM rbac_policies WHERE object_id = ?1 AND action = ?2 AND target_project = ?3";
    Ok(call.tx.count(sql, &values![network, action, target])? > 0)
}

/// Lets a project use a network; answers the policy's id.
pub(super) fn grant(
    call: Call<'_>,
    network: NetworkId,
    action: &str,
    target: &str,
    project: &str,
) -> Result<String, ApiError> {
    let id = random::id().to_string();
    let sql = "INSERT INTO rbac_policies (id, project_id, object_type, object_id, target_project, action) \
               VALUES (?1, ?2, 'network', ?3, ?4, ?5)";
    call.tx.execute(sql, &values![&id, project, network, target, action])?;
    follow(call, network, action)?;
    Ok(id)
}

/// Brings a network's own columns after its policies, and counts the change.
fn follow(call: Call<'_>, network: NetworkId, action: &str) -> Result<(), ApiError> {
    let sql = if action == SHARED {
        "UPDATE networks SET shared = CASE WHEN EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = networks.id \
         AND p.action = 'access_as_shared' AND p.target_project = '*') THEN 1 ELSE 0 END WHERE id = ?1"
    } else {
        // As Neutron: a policy makes a network external, and its end leaves it so.
        "UPDATE networks SET external = 1 WHERE id = ?1 AND EXISTS (SELECT 1 FROM rbac_policies p \
         WHERE p.object_id = networks.id AND p.action = 'access_as_external')"
    };
    call.tx.execute(sql, &values![network])?;
    Ok(bump(call.tx, "networks", network)?)
}

/// Takes back the policy that all projects may use a network.
///
/// # Errors
///
/// When some use it that no other policy lets.
pub(super) fn unshare(call: Call<'_>, network: &Network) -> Result<(), ApiError> {
    let sql = "DELETE FROM rbac_policies WHERE object_id = ?1 AND action = ?2 AND target_project = ?3";
    call.tx.execute(sql, &values![network.id, SHARED, ALL])?;
    if strangers_on(call, network.id)? {
        return Err(ApiError::InvalidSharedSetting { network: network.name.clone() });
    }
    Ok(())
}

/// Takes back all policies that make a network external.
pub(super) fn make_internal(call: Call<'_>, network: NetworkId) -> Result<(), ApiError> {
    let sql = "DELETE FROM rbac_policies WHERE object_id = ?1 AND action = ?2";
    call.tx.execute(sql, &values![network, EXTERNAL])?;
    Ok(())
}

/// Refuses an end of a policy that somebody's ports or gateways need. To be asked when it has ended.
fn refuse_if_needed(call: Call<'_>, policy: &Policy) -> Result<(), ApiError> {
    let details = if policy.action == SHARED {
        strangers_on(call, policy.network)?.then(|| {
            format!(
                "Unable to reconfigure sharing settings for network {}. Multiple tenants are using it.",
                policy.network
            )
        })
    } else {
        strangers_through(call, policy.network)?
            .then(|| "There are routers attached to this network that depend on this policy for access.".to_owned())
    };
    match details {
        Some(details) => {
            tracing::debug!(policy = policy.id, details, "an RBAC policy is needed");
            Err(ApiError::RbacPolicyInUse { id: policy.network.to_string(), details })
        }
        None => Ok(()),
    }
}

/// SQL: project `{}` owns network `?1`, or a policy for the action `?2` lets it in. What belongs to no project is the
/// server's own.
const LET_IN: &str = "({} = '' OR EXISTS (SELECT 1 FROM networks n WHERE n.id = ?1 AND n.project_id = {}) \
                      OR EXISTS (SELECT 1 FROM rbac_policies a WHERE a.object_id = ?1 AND a.action = ?2 \
                      AND a.target_project IN ({}, '*')))";

/// Tells whether projects have ports or subnets on a network that is not shared with them.
fn strangers_on(call: Call<'_>, network: NetworkId) -> Result<bool, ApiError> {
    let (ports, subnets) = (LET_IN.replace("{}", "p.project_id"), LET_IN.replace("{}", "s.project_id"));
    let sql = format!(
        "SELECT (SELECT count(*) FROM ports p WHERE p.network_id = ?1 AND NOT {ports}) \
         + (SELECT count(*) FROM subnets s WHERE s.network_id = ?1 AND NOT {subnets})"
    );
    Ok(call.tx.count(&sql, &values![network, SHARED])? > 0)
}

/// Tells whether projects have gateways or floating IPs on a network that is not external for them.
fn strangers_through(call: Call<'_>, network: NetworkId) -> Result<bool, ApiError> {
    let (routers, floating) = (LET_IN.replace("{}", "r.project_id"), LET_IN.replace("{}", "f.project_id"));
    let sql = format!(
        "SELECT (SELECT count(*) FROM router_ports rp JOIN routers r ON r.id = rp.router_id \
         WHERE rp.network_id = ?1 AND rp.role = 'gateway' AND NOT {routers}) \
         + (SELECT count(*) FROM floating_ips f WHERE f.floating_network_id = ?1 AND NOT {floating})"
    );
    Ok(call.tx.count(&sql, &values![network, EXTERNAL])? > 0)
}

/// Tells which of the networks are shared with the caller's project, by name or with all.
pub(super) fn shared_with_caller(call: Call<'_>, networks: &[String]) -> Result<BTreeSet<NetworkId>, ApiError> {
    let sql = "SELECT object_id, target_project FROM rbac_policies WHERE action = 'access_as_shared' \
               AND object_id IN ({})";
    let own = call.ctx.project_id.as_deref();
    let policies = query_in(call.tx, sql, networks, |row| Ok((row.parse::<NetworkId>(0)?, row.text(1)?)))?;
    let mine = policies.into_iter().filter(|(_, target)| target == ALL || own == Some(target.as_str()));
    Ok(mine.map(|(network, _)| network).collect())
}
