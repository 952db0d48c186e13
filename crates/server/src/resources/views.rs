//! Lists that are made of other resources: how full networks are, and where floating IPs come from.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::{NetworkId, SubnetId};
use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::{Call, subnets};
use crate::attributes::Object;
use crate::attributes::query::{fields, refuse_unknown};
use crate::error::ApiError;
use crate::ipam::{self, Pool, to_number};
use crate::policy::{self, Facts, Target};

/// Values of all pairs of one of the names.
fn wanted<'p>(pairs: &'p [(String, String)], names: &[&str]) -> BTreeSet<&'p str> {
    pairs.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.as_str()).collect()
}

fn is_wanted(wanted: &BTreeSet<&str>, value: &str) -> bool {
    wanted.is_empty() || wanted.contains(value)
}

/// A subnet, as far as its use is told.
struct Use {
    id: SubnetId,
    network: NetworkId,
    name: String,
    cidr: IpNet,
    ip_version: i64,
    total: u128,
    used: i64,
}

impl Use {
    fn show(&self) -> Json {
        json!({
            "subnet_id": self.id,
            "subnet_name": self.name,
            "cidr": self.cidr,
            "ip_version": self.ip_version,
            "total_ips": number(self.total),
            "used_ips": self.used,
        })
    }
}

/// JSON's numbers of this program end at 64 bits, and few will count further.
fn number(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn uses(call: Call<'_>) -> Result<Vec<Use>, ApiError> {
    let sql = "SELECT s.id, s.network_id, s.name, s.cidr, s.ip_version, s.allocation_pools, \
               (SELECT count(*) FROM fixed_ips f WHERE f.subnet_id = s.id) FROM subnets s ORDER BY s.created_at, s.id";
    let uses = call.tx.query(sql, &[], |row| {
        let (cidr, pools): (IpNet, Vec<Pool>) = (row.parse(3)?, row.json(5)?);
        let in_pools = pools.iter().map(|pool| to_number(pool.end) - to_number(pool.start) + 1);
        // A subnet without pools gives out nothing, but whatever is asked of it.
        let total = if pools.is_empty() {
            let (first, last) = ipam::usable(cidr);
            last - first + 1
        } else {
            in_pools.sum()
        };
        Ok(Use {
            id: row.parse(0)?,
            network: row.parse(1)?,
            name: row.text(2)?,
            cidr,
            ip_version: row.int(4)?,
            total,
            used: row.int(6)?,
        })
    });
    Ok(uses?)
}

/// Lists how many addresses networks have and how many of them are in use; filtered as Neutron does, and with
/// `ip_version` for subnets of that version alone.
///
/// # Errors
///
/// 403 for who is no admin.
pub fn ip_availabilities(call: Call<'_>, pairs: &[(String, String)]) -> Result<Json, ApiError> {
    policy::require(call.ctx, "get_network_ip_availability", call.ctx.project())?;
    let filters = ["network_id", "network_name", "project_id", "tenant_id", "ip_version"];
    refuse_unknown(pairs, |name| filters.contains(&name))?;
    let (ids, names) = (wanted(pairs, &["network_id"]), wanted(pairs, &["network_name"]));
    let (projects, versions) = (wanted(pairs, &["project_id", "tenant_id"]), wanted(pairs, &["ip_version"]));
    let mut of_network: BTreeMap<NetworkId, Vec<Use>> = BTreeMap::new();
    for used in uses(call)?.into_iter().filter(|used| is_wanted(&versions, &used.ip_version.to_string())) {
        of_network.entry(used.network).or_default().push(used);
    }
    let sql = "SELECT id, name, project_id FROM networks ORDER BY id";
    let networks = call.tx.query(sql, &[], |row| Ok((row.parse::<NetworkId>(0)?, row.text(1)?, row.text(2)?)))?;
    let networks = networks.into_iter().filter(|(id, name, project)| {
        is_wanted(&ids, &id.to_string()) && is_wanted(&names, name) && is_wanted(&projects, project)
    });
    let fields = fields(pairs);
    let shown = networks.map(|(id, name, project)| {
        let subnets = of_network.remove(&id).unwrap_or_default();
        let mut shown = super::object(json!({
            "network_id": id,
            "network_name": name,
            "project_id": project,
            "tenant_id": project,
            "total_ips": number(subnets.iter().map(|used| used.total).fold(0, u128::saturating_add)),
            "used_ips": subnets.iter().map(|used| used.used).sum::<i64>(),
            "subnet_ip_availability": subnets.iter().map(Use::show).collect::<Vec<_>>(),
        }));
        shown.retain(|key, _| fields.is_empty() || fields.contains(key));
        shown
    });
    Ok(json!({"network_ip_availabilities": shown.collect::<Vec<Object>>()}))
}

/// Shows one network's.
///
/// # Errors
///
/// 404 where there is no such network, 403 for who is no admin.
pub fn ip_availability(call: Call<'_>, id: &str) -> Result<Json, ApiError> {
    let mut all = ip_availabilities(call, &[("network_id".to_owned(), id.to_ascii_lowercase())])?;
    match all["network_ip_availabilities"].as_array_mut().and_then(Vec::pop) {
        Some(one) => Ok(json!({"network_ip_availability": one})),
        None => Err(ApiError::NetworkNotFound { id: id.to_owned() }),
    }
}

/// Lists the subnets that floating IPs come from: those of external networks that the caller may use.
///
/// # Errors
///
/// When the store cannot be read, or somebody asks for a selection: there is none.
pub fn floating_ip_pools(call: Call<'_>, pairs: &[(String, String)]) -> Result<Json, ApiError> {
    refuse_unknown(pairs, |_| false)?;
    let fields = fields(pairs);
    let only =
        [("router:external", "True"), ("ip_version", "4")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let found = super::list(call, &subnets::Subnets, &only, "")?;
    let found: Json = serde_json::from_slice(&found).map_err(|error| ApiError::internal(error.to_string()))?;
    let pools = found["subnets"].as_array().into_iter().flatten().map(|subnet| {
        super::object(json!({
            "network_id": subnet["network_id"],
            "subnet_id": subnet["id"],
            "subnet_name": subnet["name"],
            "cidr": subnet["cidr"],
            "project_id": subnet["project_id"],
            "tenant_id": subnet["project_id"],
        }))
    });
    let seen = pools.filter(|pool| {
        let target = Target::of_project(pool.get("project_id").and_then(Json::as_str).unwrap_or_default());
        let facts = Facts { target: &target, given: None, object: Some(pool) };
        policy::passes(call.ctx, "get_floatingip_pool", facts)
    });
    let pools = seen.map(|mut shown| {
        shown.retain(|key, _| fields.is_empty() || fields.contains(key));
        shown
    });
    Ok(json!({"floatingip_pools": pools.collect::<Vec<Object>>()}))
}
