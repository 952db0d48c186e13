//! Routers: legacy, highly available, distributed, and both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use evergate_model::{PortId, RouterId};
use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::gateway::{self, GatewayInfo};
use super::quotas;
use super::shortage::{self, Copies};
use super::{Call, Resource, object, parse_id, standard, writable};
use crate::attributes::{self, Absent, Attribute, Body, Kind, Object, Part, Table};
use crate::error::ApiError;
use crate::ha::{self, Form};
use crate::ipam::FixedIp;
use crate::objects::agent::Agent;
use crate::objects::port::{self, Port};
use crate::objects::router::{self, Role, Router, RouterPort};
use crate::objects::subnet::Route;
use crate::objects::{Changes, Later, Standard, ask_in, tags};
use crate::policy::{self, Rule};
use crate::store::Kind as Changed;
use crate::values;

/// The resource `routers`.
#[derive(Clone, Copy, Debug)]
pub struct Routers;

/// The host that an HA router's active copy belongs to.
const PREFERRED_HOST: &str = "evergate:preferred_host";
/// Whether the role returns to that host as soon as it can have it.
const PREEMPT: &str = "evergate:preempt";
/// The host that the role is to go to once: null again when it is there.
const MOVE_TO: &str = "evergate:move_to";

static TABLE: Table = Table {
    singular: "router",
    plural: "routers",
    sql: "routers",
    bulk: false,
    tagged: true,
    create: Rule::Member,
    get: Rule::Reader,
    update: Rule::Member,
    delete: Rule::Member,
    scope: "t.project_id = ?1",
    attributes: &[
        attributes::ID,
        attributes::NAME,
        attributes::DESCRIPTION,
        attributes::ADMIN_STATE_UP,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        attributes::TAGS,
        Attribute::new("status", Kind::Computed).column(shortage::STATUS),
        Attribute::new(shortage::WARNINGS, Kind::Computed).seen_by(Rule::Admin),
        Attribute::new("ha", Kind::BoolOrNull).post(Absent::Unset).put().only(Rule::Admin).column("t.ha"),
        Attribute::new("distributed", Kind::BoolOrNull)
            .post(Absent::Unset)
            .put()
            .only(Rule::Admin)
            .column("t.distributed"),
        Attribute::new(PREFERRED_HOST, Kind::TextOrNull(255)).put().only(Rule::Admin),
        Attribute::new(PREEMPT, Kind::Bool).put().only(Rule::Admin),
        Attribute::new(MOVE_TO, Kind::TextOrNull(255)).put().only(Rule::Admin),
        Attribute::new("external_gateway_info", Kind::GatewayInfo).post(Absent::Null).put().parts(&[
            Part::new("network_id", Rule::Member),
            Part::new("enable_snat", Rule::Admin),
            Part::new("external_fixed_ips", Rule::Admin),
        ]),
        Attribute::new("routes", Kind::Routes).put(),
        Attribute::new("availability_zone_hints", Kind::Strings(255)).post(Absent::EmptyList),
        Attribute::new("availability_zones", Kind::Computed),
        // None has one.
        Attribute::new("flavor_id", Kind::NotOffered)
            .post(Absent::Null)
            .sort("(CASE WHEN t.id = '' THEN 1 ELSE 0 END)"),
    ],
};

impl Resource for Routers {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::RouterNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (routers, tags) = (Router::ask_many(call.tx, ids)?, tags::of_many(call.tx, ids)?);
        let (routes, zones) = (router::ask_routes_of(call.tx, ids)?, zones_of(call, ids)?);
        let tells = TABLE.attribute(shortage::WARNINGS).map(|warnings| policy::shows(&TABLE, call.ctx, warnings));
        let copies = Copies::of_many(call, ids, tells.flatten() != Some(false))?;
        let gateways = gateways_of(call, ids)?;
        let (mut tags, mut routes, mut zones) = (tags.read()?, routes.read()?, zones.read()?);
        let (routers, copies) = (routers.read()?, copies.read(call)?);
        let routers = routers.into_iter().map(|router| {
            let mut shown = object(json!({
                "id": router.id,
                "project_id": router.project_id,
                "name": router.name,
                "description": router.description,
                "admin_state_up": router.admin_state_up,
                "status": copies.status(&router),
                "ha": router.ha,
                "external_gateway_info": gateways.get(&router.id).map(|(port, ips)| json!({
                    "network_id": port.network_id,
                    "external_fixed_ips": ips,
                    "enable_snat": router.enable_snat,
                })),
                "routes": routes.remove(&router.id).unwrap_or_default(),
                "availability_zone_hints": router.availability_zone_hints,
                "availability_zones": zones.remove(&router.id).unwrap_or_default(),
                "flavor_id": null,
            }));
            // Unless somebody wants it somewhere, a router looks as Neutron's does.
            if router.ha && router.wishes != router::Wishes::default() {
                shown.insert(PREFERRED_HOST.into(), json!(router.wishes.preferred_host));
                shown.insert(PREEMPT.into(), router.wishes.preempt.into());
                shown.insert(MOVE_TO.into(), json!(router.wishes.move_to));
            }
            if call.options.enable_dvr {
                shown.insert("distributed".into(), router.distributed.into());
            }
            let warnings = copies.warnings(&router);
            if !warnings.is_empty() {
                shown.insert(shortage::WARNINGS.into(), warnings.into());
            }
            standard(&mut shown, &router.standard, tags.remove(&router.id.to_string()));
            shown
        });
        Ok(routers.collect())
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        refuse_unoffered(call, body)?;
        let gateway = GatewayInfo::read(body)?.flatten();
        let router = Router {
            id: router::new_id(),
            project_id: body.need("project_id")?,
            name: body.need("name")?,
            description: body.need("description")?,
            admin_state_up: body.need("admin_state_up")?,
            status: "ACTIVE".into(),
            ha: body.get::<Option<bool>>("ha")?.flatten().unwrap_or(call.options.l3_ha),
            distributed: body.get::<Option<bool>>("distributed")?.flatten().unwrap_or(distributed_by_default(call)),
            enable_snat: call.options.enable_snat_by_default,
            availability_zone_hints: zone_hints(call, body)?,
            standard: Standard::default(),
            wishes: router::Wishes::default(),
        };
        router.insert(call.tx)?;
        if router.ha {
            ha::enable(call.tx, call.options, &router)?;
        } else {
            ha::schedule(call.tx, call.options, &ha::Candidates::read(call.tx, call.options)?, &router)?;
        }
        if let Some(info) = &gateway {
            gateway::set(call, &router, Some(info))?;
        }
        Ok(router.id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        refuse_unoffered(call, body)?;
        let mut router = Router::get(call.tx, parse_id(self, id)?)?;
        let admin_state_up: Option<bool> = body.get("admin_state_up")?;
        router.admin_state_up = admin_state_up.unwrap_or(router.admin_state_up);
        let to = Form {
            ha: body.get::<Option<bool>>("ha")?.flatten().unwrap_or(router.ha),
            distributed: body.get::<Option<bool>>("distributed")?.flatten().unwrap_or(router.distributed),
        };
        if to != Form::of(&router) {
            ha::convert(call.tx, call.options, &mut router, to)?;
        }
        if let Some(info) = GatewayInfo::read(body)? {
            gateway::set(call, &router, info.as_ref())?;
        }
        if let Some(routes) = body.get::<Vec<Route>>("routes")? {
            set_routes(call, &router, routes)?;
        }
        let mut changes = Changes::default();
        changes.set("name", body.get::<String>("name")?);
        changes.set("description", body.get::<String>("description")?);
        changes.set("admin_state_up", admin_state_up);
        set_wishes(call, &router, body, &mut changes)?;
        changes.write(call.tx, "routers", router.id)?;
        call.tx.changed(Changed::Router, router.id);
        Ok(())
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let router = Router::get(call.tx, parse_id(self, id)?)?;
        if !router.ports(call.tx, Role::Interface)?.is_empty() {
            return Err(ApiError::RouterInUse { id: id.to_owned(), reason: "still has ports".into() });
        }
        gateway::set(call, &router, None)?;
        ha::disable(call.tx, &router)?;
        tags::replace(call.tx, id, &[])?;
        call.tx.execute("DELETE FROM routers WHERE id = ?1", &values![router.id])?;
        call.tx.changed(Changed::Router, router.id);
        Ok(())
    }
}

/// Takes where the active copy is wanted. Only hosts that exist can be named, and a move needs a copy there.
fn set_wishes(call: Call<'_>, router: &Router, body: &Body, changes: &mut Changes) -> Result<(), ApiError> {
    let (preferred, preempt, move_to) =
        (body.get::<Option<String>>(PREFERRED_HOST)?, body.get::<bool>(PREEMPT)?, body.get::<Option<String>>(MOVE_TO)?);
    if preferred.is_none() && preempt.is_none() && move_to.is_none() {
        return Ok(());
    }
    if !router.ha {
        return Err(ApiError::invalid(format!("router {} is not highly available: it has one copy", router.id)));
    }
    if let Some(Some(host)) = &preferred
        && !Agent::all_l3(call.tx)?.iter().any(|agent| agent.host == *host)
    {
        return Err(ApiError::invalid(format!("{PREFERRED_HOST}: no L3 agent runs on a host named '{host}'")));
    }
    if let Some(Some(host)) = &move_to
        && !router.bindings(call.tx)?.iter().any(|copy| copy.host == *host)
    {
        return Err(ApiError::invalid(format!("{MOVE_TO}: router {} has no copy on host '{host}'", router.id)));
    }
    if let Some(Some(host)) = &move_to
        && ha::active_copy(&router.bindings(call.tx)?).is_some_and(|copy| copy.host == *host)
    {
        // It is there already.
        changes.set("move_to", Some(None::<String>));
    } else {
        changes.set("move_to", move_to);
    }
    changes.set("preferred_host", preferred);
    changes.set("preempt", preempt);
    Ok(())
}

/// Without the extension `dvr` there is no such attribute.
fn refuse_unoffered(call: Call<'_>, body: &Body) -> Result<(), ApiError> {
    if body.has("distributed") && !call.options.enable_dvr {
        return Err(ApiError::bad_request("Unrecognized attribute(s) 'distributed'"));
    }
    Ok(())
}

fn distributed_by_default(call: Call<'_>) -> bool {
    call.options.enable_dvr && call.options.router_distributed
}

fn zone_hints(call: Call<'_>, body: &Body) -> Result<Vec<String>, ApiError> {
    let hints: Vec<String> = body.need("availability_zone_hints")?;
    if hints.is_empty() {
        // The operator's own choice: the zone's agents may still be to come.
        return Ok(call.options.default_availability_zones.clone());
    }
    let zones = Agent::all_l3(call.tx)?.into_iter().filter_map(|agent| agent.availability_zone);
    let zones: std::collections::BTreeSet<String> = zones.collect();
    match hints.iter().find(|hint| !zones.contains(*hint)) {
        Some(unknown) => Err(ApiError::AvailabilityZoneNotFound { zone: unknown.clone() }),
        None => Ok(hints),
    }
}

/// The zones that each router's copies are in.
fn zones_of<'t>(call: Call<'t>, ids: &[String]) -> Result<Later<'t, BTreeMap<RouterId, Vec<String>>>, ApiError> {
    let sql = "SELECT DISTINCT b.router_id, a.availability_zone FROM router_bindings b \
               JOIN agents a ON a.id = b.agent_id \
               WHERE a.availability_zone IS NOT NULL AND b.router_id IN ({}) ORDER BY b.router_id, a.availability_zone";
    Ok(ask_in(call.tx, sql, ids, |row| Ok((row.parse(0)?, row.text(1)?)))?.by_key())
}

/// Each router's gateway port, with its addresses.
fn gateways_of(call: Call<'_>, ids: &[String]) -> Result<BTreeMap<RouterId, (RouterPort, Vec<FixedIp>)>, ApiError> {
    let ports: Vec<RouterPort> =
        router::ports_of(call.tx, ids)?.into_iter().filter(|port| port.role == Role::Gateway).collect();
    let port_ids: Vec<String> = ports.iter().map(|port| port.port_id.to_string()).collect();
    let mut addresses: BTreeMap<PortId, Vec<FixedIp>> = port::fixed_ips_of(call.tx, &port_ids)?;
    let gateways = ports.into_iter().map(|port| {
        let ips = addresses.remove(&port.port_id).unwrap_or_default();
        (port.router_id, (port, ips))
    });
    Ok(gateways.collect())
}

/// Replaces a router's extra routes.
fn set_routes(call: Call<'_>, router: &Router, routes: Vec<Route>) -> Result<(), ApiError> {
    let (nets, own) = connected(call, router)?;
    for route in &routes {
        let refuse = |reason: &str| {
            let routes = format!("[{{'destination': '{}', 'nexthop': '{}'}}]", route.destination, route.nexthop);
            Err(ApiError::InvalidRoutes { routes, reason: reason.to_owned() })
        };
        if route.destination.addr().is_ipv4() != route.nexthop.is_ipv4() {
            return refuse("the destination and the nexthop are of different IP versions");
        }
        if !nets.iter().any(|net| net.contains(&route.nexthop)) {
            return refuse("the nexthop is not connected with router");
        }
        if own.contains(&route.nexthop) {
            return refuse("the nexthop is used by router");
        }
    }
    // Whoever has more than the limit may still take some away.
    let sql = "SELECT count(*) FROM router_routes WHERE router_id = ?1";
    let before = usize::try_from(call.tx.count(sql, &values![router.id])?).unwrap_or(0);
    if routes.len() > before {
        quotas::check_routes(call, &router.project_id, routes.len())?;
    }
    Ok(router.set_routes(call.tx, &routes)?)
}

/// Subnets that the router is connected to, and its own addresses there.
fn connected(call: Call<'_>, router: &Router) -> Result<(Vec<IpNet>, Vec<IpAddr>), ApiError> {
    let sql = "SELECT s.cidr, f.ip_address FROM router_ports rp JOIN fixed_ips f ON f.port_id = rp.port_id \
               JOIN subnets s ON s.id = f.subnet_id WHERE rp.router_id = ?1 AND rp.role <> 'ha'";
    let rows = call.tx.query(sql, &values![router.id], |row| Ok((row.parse::<IpNet>(0)?, row.parse::<IpAddr>(1)?)))?;
    Ok(rows.into_iter().unzip())
}

/// Adds (or removes) extra routes in one step, without the race of reading and replacing them all.
///
/// # Errors
///
/// When a route leads nowhere.
pub fn change_extra_routes(call: Call<'_>, id: &str, json: &Object, add: bool) -> Result<Json, ApiError> {
    let action = if add { "add_extraroutes" } else { "remove_extraroutes" };
    let shown = writable(call, &Routers, id, action)?;
    let router = Router::get(call.tx, parse_id(&Routers, id)?)?;
    let inner = json
        .get("router")
        .and_then(Json::as_object)
        .ok_or_else(|| ApiError::bad_request("Unable to find 'router' in request body"))?;
    let given = inner
        .get("routes")
        .ok_or_else(|| ApiError::bad_request("Failed to parse request. Required attribute 'routes' not specified"))?;
    let body = Body::of_put(&TABLE, &object(json!({"router": {"routes": given}})))?;
    let asked: Vec<Route> = body.need("routes")?;
    let mut routes = router.routes(call.tx)?;
    routes.retain(|route| !asked.contains(route));
    if add {
        routes.extend(asked);
    }
    set_routes(call, &router, routes)?;
    router.note(call.tx)?;
    let routes = router.routes(call.tx)?;
    Ok(json!({"router": {
        "id": router.id, "name": router.name, "tenant_id": router.project_id, "project_id": router.project_id,
        "external_gateway_info": shown.get("external_gateway_info"), "routes": routes,
    }}))
}

/// Whether some extra route's next hop is on a subnet that the router would lose.
pub(super) fn routes_need(call: Call<'_>, router: &Router, cidr: IpNet) -> Result<bool, ApiError> {
    Ok(router.routes(call.tx)?.iter().any(|route| cidr.contains(&route.nexthop)))
}

/// Reads a port of a router as policy lets the caller see it.
pub(super) fn port_of(call: Call<'_>, id: PortId) -> Result<Port, ApiError> {
    let shown = super::visible(call, &super::ports::Ports, &id.to_string())?;
    let id = shown.get("id").and_then(Json::as_str).unwrap_or_default();
    Port::get(call.tx, id.parse().map_err(|_| ApiError::PortNotFound { id: id.to_owned() })?)
}
