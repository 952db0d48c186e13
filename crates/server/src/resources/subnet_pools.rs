//! Subnet pools: prefixes that subnets are cut from.

use evergate_model::{AddressScopeId, NetworkId};
use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::{Call, Resource, address_scopes, networks, object, rbac_policies, standard, visible, writable};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::subnet::Subnet;
use crate::objects::subnet_pool::SubnetPool;
use crate::objects::{Standard, bump, tags};
use crate::policy::Rule;
use crate::prefixes;
use crate::random;
use crate::values;

/// The resource `subnetpools`.
#[derive(Clone, Copy, Debug)]
pub struct SubnetPools;

static TABLE: Table = Table {
    singular: "subnetpool",
    plural: "subnetpools",
    sql: "subnet_pools",
    bulk: true,
    tagged: true,
    create: Rule::Member,
    get: Rule::ReaderOrGranted,
    update: Rule::Member,
    delete: Rule::Member,
    scope: rbac_policies::SCOPE,
    attributes: &[
        attributes::ID,
        Attribute::new("name", Kind::NotBlank(255)).post(Absent::Required).put().column("t.name"),
        attributes::DESCRIPTION,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        attributes::TAGS,
        Attribute::new("prefixes", Kind::Prefixes).post(Absent::Required).put(),
        Attribute::new("ip_version", Kind::Int).column("t.ip_version"),
        Attribute::new("default_quota", Kind::Int).post(Absent::Unset).put().column("t.default_quota"),
        Attribute::new("min_prefixlen", Kind::Int).post(Absent::Unset).put().column("t.min_prefixlen"),
        Attribute::new("max_prefixlen", Kind::Int).post(Absent::Unset).put().column("t.max_prefixlen"),
        Attribute::new("default_prefixlen", Kind::Int).post(Absent::Unset).put().column("t.default_prefixlen"),
        Attribute::new("address_scope_id", Kind::UuidOrNull).post(Absent::Null).put().column("t.address_scope_id"),
        Attribute::new("is_default", Kind::Bool)
            .post(Absent::Bool(false))
            .put()
            .set_by(Rule::Admin)
            .column("t.is_default"),
        Attribute::new("shared", Kind::Bool)
            .post(Absent::Bool(false))
            .set_by(Rule::Admin)
            .filter(Filter::ForProject(rbac_policies::IS_SHARED))
            .sort(rbac_policies::IS_SHARED),
    ],
};

impl Resource for SubnetPools {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::SubnetPoolNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (tags, shared) = (tags::of_many(call.tx, ids)?, rbac_policies::shared_with_caller(call, ids)?);
        let (mut tags, shared) = (tags.read()?, shared.read()?);
        let pools = SubnetPool::many(call.tx, ids)?.into_iter().map(|pool| {
            let mut shown = show(&pool, shared.contains(&pool.id));
            standard(&mut shown, &pool.standard, tags.remove(&pool.id));
            shown
        });
        Ok(pools.collect())
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let prefixes: Vec<IpNet> = body.need("prefixes")?;
        let ip_version = version_of(&prefixes)?;
        let (default_min, default_max) = default_bounds(ip_version);
        let min = length(body, "min_prefixlen")?.unwrap_or(default_min);
        let pool = SubnetPool {
            id: random::id().to_string(),
            project_id: body.need("project_id")?,
            name: body.need("name")?,
            description: body.need("description")?,
            ip_version,
            prefixes: prefixes::compact(&prefixes),
            min_prefixlen: min,
            max_prefixlen: length(body, "max_prefixlen")?.unwrap_or(default_max),
            default_prefixlen: length(body, "default_prefixlen")?.unwrap_or(min),
            default_quota: body.get("default_quota")?,
            is_default: body.need("is_default")?,
            address_scope_id: body.need("address_scope_id")?,
            standard: Standard::default(),
        };
        check_bounds(&pool)?;
        check_default(call, &pool)?;
        check_scope(call, &pool)?;
        pool.insert(call.tx)?;
        if body.need("shared")? {
            rbac_policies::share(call, "subnetpool", &pool.id, &pool.project_id)?;
        }
        Ok(pool.id)
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let mut pool = SubnetPool::get(call.tx, id)?;
        pool.name = body.get("name")?.unwrap_or(pool.name);
        pool.description = body.get("description")?.unwrap_or(pool.description);
        pool.min_prefixlen = length(body, "min_prefixlen")?.unwrap_or(pool.min_prefixlen);
        pool.max_prefixlen = length(body, "max_prefixlen")?.unwrap_or(pool.max_prefixlen);
        pool.default_prefixlen = length(body, "default_prefixlen")?.unwrap_or(pool.default_prefixlen);
        pool.default_quota = body.get("default_quota")?.or(pool.default_quota);
        pool.is_default = body.get("is_default")?.unwrap_or(pool.is_default);
        let scope_before = pool.address_scope_id;
        pool.address_scope_id = body.get("address_scope_id")?.unwrap_or(pool.address_scope_id);
        if let Some(prefixes) = body.get::<Vec<IpNet>>("prefixes")? {
            set_prefixes(&mut pool, &prefixes)?;
        }
        write(call, &pool, scope_before)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let pool = SubnetPool::get(call.tx, id)?;
        if !pool.taken(call.tx)?.is_empty() {
            return Err(ApiError::SubnetPoolDeleteError { reason: "Subnet pool has existing allocations".into() });
        }
        Ok(pool.delete(call.tx)?)
    }
}

fn show(pool: &SubnetPool, shared: bool) -> Object {
    object(json!({
        "id": pool.id,
        "project_id": pool.project_id,
        "name": pool.name,
        "description": pool.description,
        "ip_version": pool.ip_version,
        "prefixes": pool.prefixes,
        // Lengths are texts in Neutron's answers.
        "min_prefixlen": pool.min_prefixlen.to_string(),
        "max_prefixlen": pool.max_prefixlen.to_string(),
        "default_prefixlen": pool.default_prefixlen.to_string(),
        "default_quota": pool.default_quota,
        "is_default": pool.is_default,
        "shared": shared,
        "address_scope_id": pool.address_scope_id,
    }))
}

/// Shortest and longest subnet of a pool whose creator named none.
fn default_bounds(ip_version: u8) -> (u8, u8) {
    if ip_version == 4 { (8, 32) } else { (64, 128) }
}

fn version_of(prefixes: &[IpNet]) -> Result<u8, ApiError> {
    let first = prefixes.first().ok_or(ApiError::EmptySubnetPoolPrefixList {})?;
    if prefixes.iter().any(|prefix| prefix.addr().is_ipv4() != first.addr().is_ipv4()) {
        return Err(ApiError::PrefixVersionMismatch {});
    }
    Ok(if first.addr().is_ipv4() { 4 } else { 6 })
}

/// Reads a prefix length; what is too long for any is refused as the longest of all.
fn length(body: &Body, name: &str) -> Result<Option<u8>, ApiError> {
    Ok(body.get::<i64>(name)?.map(|length| u8::try_from(length).unwrap_or(u8::MAX)))
}

fn check_bounds(pool: &SubnetPool) -> Result<(), ApiError> {
    let (min, max, default) = (pool.min_prefixlen, pool.max_prefixlen, pool.default_prefixlen);
    let longest = if pool.ip_version == 4 { 32 } else { 128 };
    let refused = |prefix_type: &str, prefixlen: u8, base_type: &str, base: u8| {
        let (prefix_type, base_type) = (prefix_type.to_owned(), base_type.to_owned());
        let (prefixlen, base) = (prefixlen.to_string(), base.to_string());
        Err(ApiError::IllegalSubnetPoolPrefixBounds { prefix_type, prefixlen, base_type, base })
    };
    if min > max {
        refused("min_prefixlen", min, "max_prefixlen", max)
    } else if max > longest {
        refused("max_prefixlen", max, "ip_version_max", longest)
    } else if default < min {
        refused("default_prefixlen", default, "min_prefixlen", min)
    } else if default > max {
        refused("default_prefixlen", default, "max_prefixlen", max)
    } else {
        Ok(())
    }
}

fn check_default(call: Call<'_>, pool: &SubnetPool) -> Result<(), ApiError> {
    let other = SubnetPool::default_of(call.tx, pool.ip_version)?.filter(|other| other.id != pool.id);
    if pool.is_default && other.is_some() {
        return Err(ApiError::invalid(
            "A default subnetpool for this IP family has already been set. Only one default may exist per IP family",
        ));
    }
    Ok(())
}

/// A pool enters a scope that is the caller's or shared, of its own IP version, and brings no prefix twice.
fn check_scope(call: Call<'_>, pool: &SubnetPool) -> Result<(), ApiError> {
    let Some(scope) = pool.address_scope_id else { return Ok(()) };
    let shown = visible(call, &address_scopes::AddressScopes, &scope.to_string())?;
    if shown.get("ip_version") != Some(&Json::from(pool.ip_version)) {
        return Err(ApiError::IllegalSubnetPoolIpVersionAssociationToAddressScope {
            pool: pool.id.clone(),
            scope: scope.to_string(),
            version: shown.get("ip_version").map(Json::to_string).unwrap_or_default(),
        });
    }
    // Who sees a scope without owning it has it shared; but a pool of somebody else's is not a scope's own.
    let (own, shared) = (shown.get("project_id") == Some(&json!(pool.project_id)), shown.get("shared"));
    if !own && shared != Some(&Json::Bool(true)) && !call.ctx.is_admin {
        let (pool, scope) = (pool.id.clone(), scope.to_string());
        return Err(ApiError::IllegalSubnetPoolAssociationToAddressScope { pool, scope });
    }
    // First, so that no other pool enters the scope meanwhile.
    bump(call.tx, "address_scopes", scope)?;
    let others = SubnetPool::in_scope(call.tx, scope)?;
    if others.iter().any(|other| other.id != pool.id && prefixes::intersect(&other.prefixes, &pool.prefixes)) {
        return Err(ApiError::AddressScopePrefixConflict {});
    }
    Ok(())
}

fn set_prefixes(pool: &mut SubnetPool, new: &[IpNet]) -> Result<(), ApiError> {
    if version_of(new)? != pool.ip_version {
        return Err(ApiError::PrefixVersionMismatch {});
    }
    if !prefixes::is_subset(&pool.prefixes, new) {
        let reason = "Existing prefixes must be a subset of the new prefixes".to_owned();
        return Err(ApiError::IllegalSubnetPoolPrefixUpdate { reason });
    }
    pool.prefixes = prefixes::compact(new);
    Ok(())
}

/// Writes a changed pool, if it may be as it is now.
fn write(call: Call<'_>, pool: &SubnetPool, scope_before: Option<AddressScopeId>) -> Result<(), ApiError> {
    check_bounds(pool)?;
    check_default(call, pool)?;
    if let Some(scope) = scope_before {
        refuse_foreign_scope(call, pool, scope)?;
    }
    check_scope(call, pool)?;
    if scope_before != pool.address_scope_id {
        refuse_splitting_networks(call, pool)?;
    }
    pool.update(call.tx)?;
    Ok(pool.note_networks(call.tx)?)
}

/// What is in somebody else's scope stays as it is.
fn refuse_foreign_scope(call: Call<'_>, pool: &SubnetPool, scope: AddressScopeId) -> Result<(), ApiError> {
    let sql = "SELECT project_id FROM address_scopes WHERE id = ?1";
    let owner = call.tx.query_opt(sql, &values![scope], |row| row.text(0))?;
    if call.ctx.is_admin || owner.is_some() && owner == call.ctx.project_id {
        return Ok(());
    }
    let reason = format!("subnetpool {} cannot be updated when associated with shared address scope {scope}", pool.id);
    Err(ApiError::IllegalSubnetPoolUpdate { reason })
}

/// Subnets of one version on a network are in one scope: all change theirs, or none.
fn refuse_splitting_networks(call: Call<'_>, pool: &SubnetPool) -> Result<(), ApiError> {
    let sql = "SELECT count(*) FROM subnets s WHERE s.ip_version = ?2 AND (s.subnetpool_id IS NULL \
               OR s.subnetpool_id <> ?1) AND EXISTS (SELECT 1 FROM subnets o WHERE o.network_id = s.network_id \
               AND o.subnetpool_id = ?1)";
    if call.tx.count(sql, &values![&pool.id, pool.ip_version])? > 0 {
        return Err(ApiError::NetworkAddressScopeAffinityError {});
    }
    Ok(())
}

/// Adds (or removes) prefixes in one step.
///
/// # Errors
///
/// When they are no prefixes, or subnets need those to be removed.
pub fn change_prefixes(call: Call<'_>, id: &str, json: &Object, add: bool) -> Result<Json, ApiError> {
    let verb = if add { "add_prefixes" } else { "remove_prefixes" };
    writable(call, &SubnetPools, id, verb)?;
    let given = json
        .get("prefixes")
        .ok_or_else(|| ApiError::bad_request("Failed to parse request. Required attribute 'prefixes' not specified"))?;
    let body = Body::of_put(&TABLE, &object(json!({"subnetpool": {"prefixes": given}})))?;
    let given: Vec<IpNet> = body.need("prefixes")?;
    let mut pool = SubnetPool::get(call.tx, id)?;
    let same_version = |prefix: &IpNet| prefix.addr().is_ipv4() == (pool.ip_version == 4);
    if !given.iter().all(same_version) {
        return Err(ApiError::PrefixVersionMismatch {});
    }
    if given.is_empty() || !add && !prefixes::intersect(&pool.prefixes, &given) {
        return Ok(json!({"prefixes": pool.prefixes}));
    }
    if add {
        let all = [pool.prefixes.clone(), given].concat();
        set_prefixes(&mut pool, &all)?;
    } else {
        let taken: Vec<IpNet> = pool.taken(call.tx)?.into_iter().map(|(prefix, _)| prefix).collect();
        if prefixes::intersect(&taken, &given) {
            let reason = "One or more subnets are allocated from the prefixes to be removed".to_owned();
            return Err(ApiError::IllegalSubnetPoolPrefixUpdate { reason });
        }
        pool.prefixes = prefixes::difference(&pool.prefixes, &given);
        version_of(&pool.prefixes)?;
    }
    write(call, &pool, pool.address_scope_id)?;
    Ok(json!({"prefixes": pool.prefixes}))
}

/// Takes a network's subnets into a pool, as if they had been cut from it.
///
/// # Errors
///
/// When the network is not there, or the pool has given their prefixes to others.
pub fn onboard(call: Call<'_>, id: &str, json: &Object) -> Result<Json, ApiError> {
    writable(call, &SubnetPools, id, "onboard_network_subnets")?;
    let network = json.get("network_id").and_then(Json::as_str);
    let network = network.ok_or_else(|| ApiError::invalid("network_id must be specified."))?;
    writable(call, &networks::Networks, network, "onboard_network_subnets")?;
    let network: NetworkId = super::parse_id(&networks::Networks, network)?;
    let mut pool = SubnetPool::get(call.tx, id)?;
    let subnets = Subnet::of_network(call.tx, network)?;
    let subnets: Vec<&Subnet> = subnets.iter().filter(|subnet| subnet.ip_version == pool.ip_version).collect();
    let taken: Vec<IpNet> = pool.taken(call.tx)?.into_iter().map(|(prefix, _)| prefix).collect();
    if let Some(subnet) = subnets.iter().find(|subnet| prefixes::intersect(&taken, &[subnet.cidr])) {
        let reason = format!(
            "Onboarding subnet {}: {} conflicts with allocated prefixes in subnet pool {id}",
            subnet.id, subnet.cidr
        );
        return Err(ApiError::IllegalSubnetPoolUpdate { reason });
    }
    let all: Vec<IpNet> = pool.prefixes.iter().copied().chain(subnets.iter().map(|subnet| subnet.cidr)).collect();
    set_prefixes(&mut pool, &all)?;
    for subnet in &subnets {
        let sql = "UPDATE subnets SET subnetpool_id = ?2 WHERE id = ?1";
        call.tx.execute(sql, &values![subnet.id, &pool.id])?;
        bump(call.tx, "subnets", subnet.id)?;
        subnet.note(call.tx)?;
    }
    write(call, &pool, pool.address_scope_id)?;
    Ok(subnets.iter().map(|subnet| json!({"id": subnet.id, "cidr": subnet.cidr})).collect())
}

/// What a new subnet wants of a pool: exactly this prefix, or any of a length.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    /// This prefix.
    Exactly(IpNet),
    /// Any of this length, or of the pool's default.
    Any(Option<u8>),
}

/// Cuts a prefix from a pool for a project.
///
/// # Errors
///
/// When the pool has none such, or the project has had its share.
pub(super) fn cut(call: Call<'_>, pool: &SubnetPool, project: &str, wish: Wish) -> Result<IpNet, ApiError> {
    let length = match wish {
        Wish::Exactly(prefix) => prefix.prefix_len(),
        Wish::Any(length) => length.unwrap_or(pool.default_prefixlen),
    };
    if length > pool.max_prefixlen {
        let (prefixlen, max) = (length.to_string(), pool.max_prefixlen.to_string());
        return Err(ApiError::MaxPrefixSubnetAllocationError { prefixlen, max });
    }
    if length < pool.min_prefixlen {
        let (prefixlen, min) = (length.to_string(), pool.min_prefixlen.to_string());
        return Err(ApiError::MinPrefixSubnetAllocationError { prefixlen, min });
    }
    // First, so that nobody else cuts from the pool meanwhile.
    bump(call.tx, "subnet_pools", &pool.id)?;
    let taken = pool.taken(call.tx)?;
    let prefixes: Vec<IpNet> = taken.iter().map(|(prefix, _)| *prefix).collect();
    let cut = match wish {
        Wish::Exactly(prefix) => {
            let free = prefixes::is_subset(&[prefix], &pool.prefixes) && !prefixes::intersect(&prefixes, &[prefix]);
            free.then_some(prefix)
                .ok_or_else(|| "Cannot allocate requested subnet from the available set of prefixes".to_owned())
        }
        Wish::Any(_) => prefixes::cut(&pool.prefixes, &prefixes, length)
            .ok_or_else(|| format!("Insufficient prefix space to allocate subnet size /{length}")),
    };
    let cut = cut.map_err(|reason| ApiError::SubnetAllocationError { reason })?;
    let own = taken.iter().filter(|(_, owner)| owner == project).map(|(prefix, _)| prefixes::quota_units(prefix));
    let used = own.fold(prefixes::quota_units(&cut), u128::saturating_add);
    // As Neutron: 0 is no limit.
    match pool.default_quota {
        Some(quota) if quota > 0 && used > quota as u128 => Err(ApiError::SubnetPoolQuotaExceeded {}),
        _ => Ok(cut),
    }
}
