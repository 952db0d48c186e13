//! Quotas: how many objects of each kind a project may have.
//!
//! [`claim`] is called in the transaction that makes the objects, before the first of them is made: there is one
//! writer at a time, so what it counts is what there is, and no two requests share the last place.
//! Nothing is written down, so nothing can be counted wrong: `used` is always a count of rows.

use serde_json::{Value as Json, json};

use super::Call;
use crate::attributes::{Attribute, Body, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::{Later, ask};
use crate::options::Limits;
use crate::policy::{self, Rule};
use crate::values;

/// A kind of object that is counted.
struct Counted {
    /// Its name in quotas: the singular of its resource.
    name: &'static str,
    /// Counts those of project `?1`.
    count: &'static str,
    /// The configured limit.
    configured: fn(&Limits) -> i64,
}

/// Extra routes of one router.
const ROUTES: &str = "router_route";

/// What a project's ports are counted by leaves out those of gateways, floating IPs and HA networks: they
/// belong to no project.
static COUNTED: &[Counted] = &[
    Counted {
        name: "floatingip",
        count: "SELECT count(*) FROM floating_ips WHERE project_id = ?1",
        configured: |limits| limits.floatingip,
    },
    Counted {
        name: "network",
        count: "SELECT count(*) FROM networks WHERE project_id = ?1",
        configured: |limits| limits.network,
    },
    Counted {
        name: "port",
        count: "SELECT count(*) FROM ports WHERE project_id = ?1",
        configured: |limits| limits.port,
    },
    Counted {
        name: "rbac_policy",
        count: "SELECT count(*) FROM rbac_policies WHERE project_id = ?1",
        configured: |limits| limits.rbac_policy,
    },
    Counted {
        name: "router",
        count: "SELECT count(*) FROM routers WHERE project_id = ?1",
        configured: |limits| limits.router,
    },
    // The limit is for each router: its routes are not counted together, and so nothing is used of it.
    Counted {
        name: ROUTES,
        count: "SELECT count(*) FROM quotas WHERE project_id = ?1 AND 1 = 0",
        configured: |limits| limits.router_route,
    },
    Counted {
        name: "security_group",
        count: "SELECT count(*) FROM security_groups WHERE project_id = ?1",
        configured: |limits| limits.security_group,
    },
    Counted {
        name: "security_group_rule",
        count: "SELECT count(*) FROM security_group_rules WHERE project_id = ?1",
        configured: |limits| limits.security_group_rule,
    },
    Counted {
        name: "subnet",
        count: "SELECT count(*) FROM subnets WHERE project_id = ?1",
        configured: |limits| limits.subnet,
    },
    Counted {
        name: "subnetpool",
        count: "SELECT count(*) FROM subnet_pools WHERE project_id = ?1",
        configured: |limits| limits.subnetpool,
    },
];

const fn limit(name: &'static str) -> Attribute {
    Attribute::new(name, Kind::Limit).put()
}

/// Only for the body of a PUT: quotas are no rows with ids.
pub(crate) static TABLE: Table = Table {
    singular: "quota",
    plural: "quotas",
    sql: "quotas",
    bulk: false,
    tagged: false,
    create: Rule::Nobody,
    get: Rule::Admin,
    update: Rule::Admin,
    delete: Rule::Admin,
    scope: "1 = 0",
    attributes: &[
        limit("floatingip"),
        limit("network"),
        limit("port"),
        limit("rbac_policy"),
        limit("router"),
        limit(ROUTES),
        limit("security_group"),
        limit("security_group_rule"),
        limit("subnet"),
        limit("subnetpool"),
        Attribute::new("check_limit", Kind::BoolOrNull).put(),
        // What Neutron calls its default of not checking.
        Attribute::new("force", Kind::BoolOrNull).put(),
    ],
};

/// Refuses so many more objects of a kind to a project that may not have them all. Kinds that are not counted
/// pass, and so does what belongs to no project.
///
/// # Errors
///
/// 409 `OverQuota`.
pub fn claim(call: Call<'_>, kind: &str, project: &str, count: i64) -> Result<(), ApiError> {
    if ask_claim(call, kind, project, count)?.read()? { Ok(()) } else { Err(over(kind)) }
}

/// The refusal of an object of a kind.
pub fn over(kind: &str) -> ApiError {
    ApiError::OverQuota { overs: format!("['{kind}']") }
}

/// Asks whether a project may have so many more objects of a kind.
///
/// # Errors
///
/// When the store cannot be read.
pub fn ask_claim<'t>(call: Call<'t>, kind: &str, project: &str, count: i64) -> Result<Later<'t, bool>, ApiError> {
    let Some(counted) = COUNTED.iter().find(|counted| counted.name == kind).filter(|_| !project.is_empty()) else {
        return Ok(Later::known(true));
    };
    let own = "SELECT max_count FROM quotas WHERE project_id = ?1 AND resource = ?2";
    let sql = format!("SELECT ({own}), ({})", counted.count);
    let found = ask(call.tx, &sql, &values![project, counted.name], |row| Ok((row.opt_int(0)?, row.int(1)?)))?;
    Ok(found.map(move |found| {
        let (own, used) = found.first().copied().unwrap_or_default();
        let limit = own.unwrap_or_else(|| (counted.configured)(&call.options.limits));
        limit < 0 || used + count <= limit
    }))
}

/// Refuses to let a router of a project have so many extra routes.
///
/// # Errors
///
/// 409 `OverQuota`.
pub fn check_routes(call: Call<'_>, project: &str, routes: usize) -> Result<(), ApiError> {
    let Some(counted) = COUNTED.iter().find(|counted| counted.name == ROUTES) else { return Ok(()) };
    let limit = limit_of(call, project, counted)?;
    if limit >= 0 && i64::try_from(routes).unwrap_or(i64::MAX) > limit {
        return Err(over(ROUTES));
    }
    Ok(())
}

fn limit_of(call: Call<'_>, project: &str, counted: &Counted) -> Result<i64, ApiError> {
    let sql = "SELECT max_count FROM quotas WHERE project_id = ?1 AND resource = ?2";
    let own = call.tx.query_opt(sql, &values![project, counted.name], |row| row.int(0))?;
    Ok(own.unwrap_or_else(|| (counted.configured)(&call.options.limits)))
}

fn used(call: Call<'_>, project: &str, counted: &Counted) -> Result<i64, ApiError> {
    Ok(call.tx.count(counted.count, &values![project])?)
}

fn limits(call: Call<'_>, project: &str) -> Result<Object, ApiError> {
    let mut shown = Object::new();
    for counted in COUNTED {
        shown.insert(counted.name.into(), limit_of(call, project, counted)?.into());
    }
    Ok(shown)
}

/// Lists the quotas of projects that have some of their own.
///
/// # Errors
///
/// 403 for who is no admin.
pub fn list(call: Call<'_>) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_quota", "")?;
    let sql = "SELECT DISTINCT project_id FROM quotas ORDER BY project_id";
    let mut shown = Vec::new();
    for project in call.tx.query(sql, &[], |row| row.text(0))? {
        let mut quotas = limits(call, &project)?;
        quotas.insert("project_id".into(), project.clone().into());
        quotas.insert("tenant_id".into(), project.into());
        shown.push(quotas);
    }
    Ok(json!({"quotas": shown}))
}

/// Names the caller's project, as clients ask that do not know it.
///
/// # Errors
///
/// 400 where the caller has none.
pub fn own_project(call: Call<'_>, key: &str) -> Result<Json, ApiError> {
    match call.ctx.project() {
        "" => Err(ApiError::QuotaMissingTenant {}),
        project => Ok(json!({key: {(format!("{key}_id")): project}})),
    }
}

/// Shows a project's quotas, its own and the configured ones.
///
/// # Errors
///
/// 403 for another project, but for admins.
pub fn show(call: Call<'_>, project: &str) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_quota", project)?;
    Ok(json!({"quota": limits(call, project)?}))
}

/// Shows the configured quotas.
///
/// # Errors
///
/// As [`show`].
pub fn defaults(call: Call<'_>, project: &str) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_quota", project)?;
    let shown = COUNTED.iter().map(|c| (c.name.to_owned(), Json::from((c.configured)(&call.options.limits))));
    Ok(json!({"quota": shown.collect::<Object>()}))
}

/// Shows a project's quotas with what is used of them.
///
/// # Errors
///
/// As [`show`].
pub fn details(call: Call<'_>, project: &str) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_quota", project)?;
    let mut shown = Object::new();
    for counted in COUNTED {
        let (limit, used) = (limit_of(call, project, counted)?, used(call, project, counted)?);
        shown.insert(counted.name.into(), json!({"limit": limit, "used": used, "reserved": 0}));
    }
    Ok(json!({"quota": shown}))
}

/// Gives a project quotas of its own. With `check_limit`, none below what is used.
///
/// # Errors
///
/// What is wrong with the body; nothing is changed then.
pub fn update(call: Call<'_>, project: &str, json: &Object) -> Result<Json, ApiError> {
    policy::require(call.ctx, "update_quota", project)?;
    if project.chars().count() > 255 {
        return Err(ApiError::bad_request("Invalid input for project_id. Reason: it exceeds maximum length of 255."));
    }
    let body = Body::of_put(&TABLE, json)?;
    let check = body.get::<Option<bool>>("check_limit")?.flatten() == Some(true);
    for counted in COUNTED {
        let Some(limit) = body.get::<i64>(counted.name)? else { continue };
        let used = used(call, project, counted)?;
        if check && used > limit {
            return Err(ApiError::bad_request(format!(
                "Quota limit {limit} for {} must be greater than or equal to already used {used}",
                counted.name
            )));
        }
        let sql = "DELETE FROM quotas WHERE project_id = ?1 AND resource = ?2";
        call.tx.execute(sql, &values![project, counted.name])?;
        let sql = "INSERT INTO quotas (project_id, resource, max_count) VALUES (?1, ?2, ?3)";
        call.tx.execute(sql, &values![project, counted.name, limit])?;
    }
    show(call, project)
}

/// Lets a project fall back to the configured quotas.
///
/// # Errors
///
/// 404 where it has none of its own.
pub fn delete(call: Call<'_>, project: &str) -> Result<(), ApiError> {
    policy::require(call.ctx, "delete_quota", project)?;
    match call.tx.execute_counted("DELETE FROM quotas WHERE project_id = ?1", &values![project])? {
        0 => Err(ApiError::TenantQuotaNotFound { project: project.to_owned() }),
        _ => Ok(()),
    }
}
