//! RBAC policies: an object is shared with, or a network external for, one project or all.
//!
//! An object's `shared` and a network's `router:external` are the same thing in other words: setting one
//! grants or revokes the policy for `*`. What a caller sees follows from the policies alone ([`SCOPE`], and
//! the scopes in the tables of networks and subnets), and `shared` is shown as it is for the caller.

use std::collections::BTreeSet;

use evergate_model::NetworkId;
use serde_json::{Value as Json, json};

use super::{Call, Resource, address_scopes, networks, object, security_groups, subnet_pools, visible};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::network::Network;
use crate::objects::{Later, ask_in, bump, query_in};
use crate::policy::{self, Rule};
use crate::random;
use crate::store::Kind as Changed;
use crate::values;

/// The resource `rbac-policies`.
#[derive(Clone, Copy, Debug)]
pub struct RbacPolicies;

/// The action that lets a project use an object as its own.
pub(super) const SHARED: &str = "access_as_shared";
/// The action that lets a project lead its routers out through a network.
pub(super) const EXTERNAL: &str = "access_as_external";
/// The target that stands for every project.
pub(super) const ALL: &str = "*";

/// The scope of tables whose objects can be shared: one's own, and what a policy lets one see.
pub(super) const SCOPE: &str = "t.project_id = ?1 OR EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = t.id \
                                AND p.target_project IN (?1, '*'))";
/// The filter `shared` of such tables.
pub(super) const IS_SHARED: &str = "(CASE WHEN EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = t.id \
                                    AND p.action = 'access_as_shared' AND p.target_project IN (?, '*')) \
                                    THEN 1 ELSE 0 END)";

/// A kind of object that policies can be about.
struct Shareable {
    /// Its name in `object_type`.
    name: &'static str,
    resource: &'static dyn Resource,
    actions: &'static [&'static str],
    /// SQL: counts what of others there is on or in object `?1`, each with the project for whom it is in
    /// `{..}`: a condition on that project takes its place.
    used_by: &'static [(&'static str, &'static str)],
}

/// Every kind of object that policies can be about.
static KINDS: &[Shareable] = &[
    Shareable {
        name: "network",
        resource: &networks::Networks,
        actions: &[EXTERNAL, SHARED],
        used_by: &[
            (SHARED, "SELECT count(*) FROM ports u WHERE u.network_id = ?1 AND {u.project_id}"),
            (SHARED, "SELECT count(*) FROM subnets u WHERE u.network_id = ?1 AND {u.project_id}"),
            (
                EXTERNAL,
                "SELECT count(*) FROM router_ports rp JOIN routers u ON u.id = rp.router_id \
                 WHERE rp.network_id = ?1 AND rp.role = 'gateway' AND {u.project_id}",
            ),
            (EXTERNAL, "SELECT count(*) FROM floating_ips u WHERE u.floating_network_id = ?1 AND {u.project_id}"),
        ],
    },
    Shareable {
        name: "subnetpool",
        resource: &subnet_pools::SubnetPools,
        actions: &[SHARED],
        used_by: &[(SHARED, "SELECT count(*) FROM subnets u WHERE u.subnetpool_id = ?1 AND {u.project_id}")],
    },
    Shareable {
        name: "address_scope",
        resource: &address_scopes::AddressScopes,
        actions: &[SHARED],
        used_by: &[(SHARED, "SELECT count(*) FROM subnet_pools u WHERE u.address_scope_id = ?1 AND {u.project_id}")],
    },
    Shareable {
        name: "security_group",
        resource: &security_groups::SecurityGroups,
        actions: &[SHARED],
        used_by: &[(
            SHARED,
            "SELECT count(*) FROM port_security_groups b JOIN ports u ON u.id = b.port_id \
             WHERE b.security_group_id = ?1 AND {u.project_id}",
        )],
    },
];

impl Shareable {
    fn named(name: &str) -> Result<&'static Self, ApiError> {
        let found = KINDS.iter().find(|kind| name.trim().eq_ignore_ascii_case(kind.name));
        found.ok_or_else(|| ApiError::invalid(format!("'{name}' is not a valid RBAC object type")))
    }

    /// Tells whether others use an object for what the action lets them do, without any policy for it.
    fn is_used(&self, call: Call<'_>, id: &str, action: &str) -> Result<bool, ApiError> {
        // What belongs to no project is the server's own.
        let let_in = format!(
            "NOT ({{}} = '' OR EXISTS (SELECT 1 FROM {} n WHERE n.id = ?1 AND n.project_id = {{}}) \
             OR EXISTS (SELECT 1 FROM rbac_policies a WHERE a.object_id = ?1 AND a.action = ?2 \
             AND a.target_project IN ({{}}, '*')))",
            self.resource.table().sql
        );
        for (_, sql) in self.used_by.iter().filter(|(by, _)| *by == action) {
            let sql = sql.replace("{u.project_id}", &let_in.replace("{}", "u.project_id"));
            if call.tx.count(&sql, &values![id, action])? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

static TABLE: Table = Table {
    singular: "rbac_policy",
    plural: "rbac_policies",
    sql: "rbac_policies",
    bulk: true,
    tagged: false,
    create: Rule::Member,
    get: Rule::Reader,
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
    kind: &'static Shareable,
    object: String,
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
        let kind = Shareable::named(&body.need::<String>("object_type")?)?;
        let action: String = body.need("action")?;
        if !kind.actions.contains(&action.as_str()) {
            let valid: Vec<String> = kind.actions.iter().map(|action| format!("'{action}'")).collect();
            let (object_type, valid_actions) = (kind.name.to_owned(), format!("[{}]", valid.join(", ")));
            return Err(ApiError::InvalidActionForType { action, object_type, valid_actions });
        }
        let shown = visible(call, kind.resource, &body.need::<String>("object_id")?)?;
        let text = |key: &str| shown.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        if !call.ctx.is_admin && call.ctx.project_id.as_deref() != Some(text("project_id").as_str()) {
            return Err(ApiError::invalid(format!(
                "Only admins can manipulate policies on {} they do not own",
                if kind.name == "network" { "networks" } else { "objects" }
            )));
        }
        // Deviation: in Neutron a member can make its own network external in this way, though not by PUT.
        if action == EXTERNAL && !call.ctx.is_admin {
            return Err(policy::forbidden("create_rbac_policy", &["action"]));
        }
        let (object, target) = (text("id"), target(&body.need::<String>("target_tenant")?)?);
        if has(call, &object, &action, &target)? {
            return Err(ApiError::DuplicateRbacPolicy {});
        }
        grant(call, kind, &object, &action, &target, &body.need::<String>("project_id")?)
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let policy = Policy::get(call, id)?;
        let Some(target_now) = body.get::<String>("target_tenant")? else { return Ok(()) };
        let target_now = target(&target_now)?;
        if target_now == policy.target {
            return Ok(());
        }
        if has(call, &policy.object, &policy.action, &target_now)? {
            return Err(ApiError::DuplicateRbacPolicy {});
        }
        let sql = "UPDATE rbac_policies SET target_project = ?2 WHERE id = ?1";
        call.tx.execute(sql, &values![id, &target_now])?;
        // What the policy allows now is there already, so it covers what it can.
        policy.refuse_if_default(call)?;
        policy.refuse_if_needed(call)?;
        follow(call, policy.kind, &policy.object, &policy.action)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let policy = Policy::get(call, id)?;
        call.tx.execute("DELETE FROM rbac_policies WHERE id = ?1", &values![id])?;
        policy.refuse_if_default(call)?;
        policy.refuse_if_needed(call)?;
        follow(call, policy.kind, &policy.object, &policy.action)
    }
}

impl Policy {
    fn get(call: Call<'_>, id: &str) -> Result<Self, ApiError> {
        let sql = "SELECT object_type, object_id, target_project, action FROM rbac_policies WHERE id = ?1";
        let row = call
            .tx
            .query_opt(sql, &values![id], |row| Ok((row.text(0)?, row.text(1)?, row.text(2)?, row.text(3)?)))?
            .ok_or_else(|| ApiError::RbacPolicyNotFound { id: id.to_owned() })?;
        Ok(Self { kind: Shareable::named(&row.0)?, object: row.1, target: row.2, action: row.3 })
    }

    /// Refuses to take the way out from all projects that they are given when they ask for none in particular.
    fn refuse_if_default(&self, call: Call<'_>) -> Result<(), ApiError> {
        if self.action != EXTERNAL || self.target != ALL {
            return Ok(());
        }
        let sql = "SELECT count(*) FROM networks WHERE id = ?1 AND external = 1 AND is_default = 1";
        if call.tx.count(sql, &values![&self.object])? == 0 {
            return Ok(());
        }
        let details = "Default external networks must be shared to everyone.".to_owned();
        Err(ApiError::RbacPolicyInUse { id: self.object.clone(), details })
    }

    /// Tells whether a network that is external no more by this policy's end still is a way out for anybody.
    fn is_last_way_out(&self, call: Call<'_>) -> Result<bool, ApiError> {
        let left = "SELECT count(*) FROM rbac_policies WHERE object_id = ?1 AND action = ?2";
        if self.action != EXTERNAL || call.tx.count(left, &values![&self.object, EXTERNAL])? > 0 {
            return Ok(false);
        }
        let used = "SELECT (SELECT count(*) FROM router_ports WHERE network_id = ?1 AND role = 'gateway') + \
                    (SELECT count(*) FROM floating_ips WHERE floating_network_id = ?1)";
        Ok(call.tx.count(used, &values![&self.object])? > 0)
    }

    /// Refuses an end of a policy that somebody depends on. To be asked when it has ended.
    fn refuse_if_needed(&self, call: Call<'_>) -> Result<(), ApiError> {
        if !self.kind.is_used(call, &self.object, &self.action)? && !self.is_last_way_out(call)? {
            return Ok(());
        }
        let (kind, id) = (self.kind.name, &self.object);
        let details = if self.action == EXTERNAL {
            "There are routers attached to this network that depend on this policy for access.".to_owned()
        } else {
            format!("Unable to reconfigure sharing settings for {kind} {id}. Multiple tenants are using it.")
        };
        tracing::debug!(object = id, details, "an RBAC policy is needed");
        Err(ApiError::RbacPolicyInUse { id: id.clone(), details })
    }
}

fn target(text: &str) -> Result<String, ApiError> {
    if text.trim().is_empty() {
        let message = "Invalid input for target_tenant. Reason: a project, or * for all, is needed.";
        return Err(ApiError::bad_request(message));
    }
    Ok(text.to_owned())
}

fn has(call: Call<'_>, object: &str, action: &str, target: &str) -> Result<bool, ApiError> {
    let sql = "SELECT count(*) FROM rbac_policies WHERE object_id = ?1 AND action = ?2 AND target_project = ?3";
    Ok(call.tx.count(sql, &values![object, action, target])? > 0)
}

/// Lets a project use an object; answers the policy's id.
fn grant(
    call: Call<'_>,
    kind: &Shareable,
    object: &str,
    action: &str,
    target: &str,
    project: &str,
) -> Result<String, ApiError> {
    let id = random::id().to_string();
    let sql = "INSERT INTO rbac_policies (id, project_id, object_type, object_id, target_project, action) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    call.tx.execute(sql, &values![&id, project, kind.name, object, target, action])?;
    follow(call, kind, object, action)?;
    Ok(id)
}

/// Lets all projects use an object, in the name of its own.
pub(super) fn share(call: Call<'_>, kind: &str, object: &str, project: &str) -> Result<(), ApiError> {
    grant(call, Shareable::named(kind)?, object, SHARED, ALL, project).map(drop)
}

/// Lets all projects lead their routers out through a network, in the name of its own.
pub(super) fn make_external(call: Call<'_>, network: NetworkId, project: &str) -> Result<(), ApiError> {
    grant(call, Shareable::named("network")?, &network.to_string(), EXTERNAL, ALL, project).map(drop)
}

/// Brings a network's own columns after its policies, and counts the change of any object.
fn follow(call: Call<'_>, kind: &Shareable, object: &str, action: &str) -> Result<(), ApiError> {
    if kind.name == "network" {
        let sql = if action == SHARED {
            "UPDATE networks SET shared = CASE WHEN EXISTS (SELECT 1 FROM rbac_policies p \
             WHERE p.object_id = networks.id AND p.action = 'access_as_shared' AND p.target_project = '*') \
             THEN 1 ELSE 0 END WHERE id = ?1"
        } else {
            "UPDATE networks SET external = CASE WHEN EXISTS (SELECT 1 FROM rbac_policies p \
             WHERE p.object_id = networks.id AND p.action = 'access_as_external') THEN 1 ELSE 0 END WHERE id = ?1"
        };
        call.tx.execute(sql, &values![object])?;
        call.tx.changed(Changed::Network, object);
    }
    Ok(bump(call.tx, kind.resource.table().sql, object)?)
}

/// Takes back the policy that all projects may use a network.
///
/// # Errors
///
/// When some use it that no other policy lets.
pub(super) fn unshare(call: Call<'_>, network: &Network) -> Result<(), ApiError> {
    let sql = "DELETE FROM rbac_policies WHERE object_id = ?1 AND action = ?2 AND target_project = ?3";
    call.tx.execute(sql, &values![network.id, SHARED, ALL])?;
    if Shareable::named("network")?.is_used(call, &network.id.to_string(), SHARED)? {
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

/// Tells whether an object is shared with all projects.
pub(super) fn shared_with_all(call: Call<'_>, object: &str) -> Result<bool, ApiError> {
    has(call, object, SHARED, ALL)
}

/// Tells which of the objects are shared with the caller's project, by name or with all.
pub(super) fn shared_with_caller<'t>(
    call: Call<'t>,
    objects: &[String],
) -> Result<Later<'t, BTreeSet<String>>, ApiError> {
    let sql = "SELECT object_id, target_project FROM rbac_policies WHERE action = 'access_as_shared' \
               AND object_id IN ({})";
    let own = call.ctx.project_id.as_deref();
    let policies = ask_in(call.tx, sql, objects, |row| Ok((row.text(0)?, row.text(1)?)))?;
    Ok(policies.map(move |policies| {
        let mine = policies.into_iter().filter(|(_, target)| target == ALL || own == Some(target.as_str()));
        mine.map(|(object, _)| object).collect()
    }))
}
