//! Networks.

use evergate_model::NetworkId;
use serde_json::{Value as Json, json};

use super::{Call, Resource, must_see, object, parse_id, rbac_policies, standard, subnets};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::network::{self, Network, NewNetwork, Segment, allocate_segment, max_mtu};
use crate::objects::port::{Port, owner};
use crate::objects::subnet::Subnet;
use crate::objects::{Changes, ask_in, floating_ip, subnet_pool, tags};
use crate::policy::{self, Rule};
use crate::store::Kind as Changed;
use crate::values;

/// The resource `networks`.
#[derive(Clone, Copy, Debug)]
pub struct Networks;

static TABLE: Table = Table {
    singular: "network",
    plural: "networks",
    sql: "networks",
    bulk: true,
    tagged: true,
    create: Rule::Member,
    get: Rule::ReaderOrShared,
    update: Rule::Member,
    delete: Rule::Member,
    // Everybody plugs into a shared network, and leads a router out through an external one.
    scope: rbac_policies::SCOPE,
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
        Attribute::new("status", Kind::Computed).column("(CASE WHEN t.id = '' THEN 'DOWN' ELSE 'ACTIVE' END)"),
        Attribute::new("subnets", Kind::Computed)
            .filter(Filter::Exists("EXISTS (SELECT 1 FROM subnets s WHERE s.network_id = t.id AND s.id IN ({}))")),
        Attribute::new("mtu", Kind::Int).post(Absent::Unset).put().column("t.mtu"),
        Attribute::new("shared", Kind::Bool)
            .post(Absent::Bool(false))
            .put()
            .set_by(Rule::Admin)
            .filter(Filter::ForProject(rbac_policies::IS_SHARED)),
        Attribute::new("router:external", Kind::Bool)
            .post(Absent::Bool(false))
            .put()
            .set_by(Rule::Admin)
            .filter(Filter::Column("t.external")),
        Attribute::new("is_default", Kind::Bool)
            .post(Absent::Bool(false))
            .put()
            .set_by(Rule::Admin)
            // Only external networks show it.
            .filter(Filter::Column("(CASE WHEN t.external = 1 THEN t.is_default END)")),
        Attribute::new("port_security_enabled", Kind::Bool).post(Absent::Bool(true)).put(),
        Attribute::new("provider:network_type", Kind::TextOrNull(32))
            .post(Absent::Unset)
            .put()
            .only(Rule::Admin)
            .filter(Filter::Column("t.network_type")),
        Attribute::new("provider:physical_network", Kind::TextOrNull(64))
            .post(Absent::Unset)
            .put()
            .only(Rule::Admin)
            .filter(Filter::Column("t.physical_network")),
        Attribute::new("provider:segmentation_id", Kind::IntOrNull)
            .post(Absent::Unset)
            .put()
            .only(Rule::Admin)
            .filter(Filter::Column("t.segmentation_id")),
        // None has any.
        Attribute::new("availability_zone_hints", Kind::Strings(255))
            .post(Absent::EmptyList)
            .sort("(CASE WHEN t.id = '' THEN 1 ELSE 0 END)"),
        Attribute::new("availability_zones", Kind::Computed),
        Attribute::new("ipv4_address_scope", Kind::Computed),
        Attribute::new("ipv6_address_scope", Kind::Computed),
    ],
};

impl Resource for Networks {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::NetworkNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (networks, tags) = (Network::ask_many(call.tx, ids)?, tags::of_many(call.tx, ids)?);
        let sql = "SELECT network_id, id FROM subnets WHERE network_id IN ({}) ORDER BY network_id, created_at, id";
        let subnets = ask_in(call.tx, sql, ids, |row| Ok((row.parse::<NetworkId>(0)?, row.text(1)?)))?.by_key();
        let (shared, scopes) = (rbac_policies::shared_with_caller(call, ids)?, subnet_pool::scopes_of(call.tx, ids)?);
        let (mut tags, mut subnets) = (tags.read()?, subnets.read()?);
        let (shared, scopes) = (shared.read()?, scopes.read()?);
        let networks = networks.read()?.into_iter().map(|network| {
            let mut shown = show(
                &network,
                shared.contains(&network.id.to_string()),
                subnets.remove(&network.id).unwrap_or_default(),
            );
            for (version, key) in [(4, "ipv4_address_scope"), (6, "ipv6_address_scope")] {
                shown.insert(key.into(), json!(scopes.get(&(network.id, version))));
            }
            standard(&mut shown, &network.standard, tags.remove(&network.id.to_string()));
            shown
        });
        Ok(networks.collect())
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        // Zones of a network are those of its DHCP agents, and there are none.
        if let Some(zone) = body.need::<Vec<String>>("availability_zone_hints")?.pop() {
            return Err(ApiError::AvailabilityZoneNotFound { zone });
        }
        let segment = segment(call, body)?;
        let mtu = mtu(call, body, &segment)?;
        let (external, is_default) = (body.need("router:external")?, body.need("is_default")?);
        check_default(call, is_default, external, None)?;
        let new = NewNetwork {
            project_id: body.need("project_id")?,
            name: body.need("name")?,
            description: body.need("description")?,
            admin_state_up: body.need("admin_state_up")?,
            shared: body.need("shared")?,
            external,
            is_default,
            port_security_enabled: body.need("port_security_enabled")?,
            mtu: mtu.unwrap_or_else(|| max_mtu(call.options, &segment)),
            segment,
        };
        let id = Network::insert(call.tx, &new)?;
        if new.shared {
            rbac_policies::share(call, "network", &id.to_string(), &new.project_id)?;
        }
        if new.external {
            rbac_policies::make_external(call, id, &new.project_id)?;
        }
        Ok(id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let network = Network::get(call.tx, parse_id(self, id)?)?;
        refuse_provider_changes(&network, body)?;
        let shared: Option<bool> = body.get("shared")?;
        if network.shared && shared == Some(false) {
            rbac_policies::unshare(call, &network)?;
        }
        if !network.shared && shared == Some(true) {
            rbac_policies::share(call, "network", id, &network.project_id)?;
        }
        let external: Option<bool> = body.get("router:external")?;
        if network.external && external == Some(false) {
            refuse_making_internal(call, &network)?;
            rbac_policies::make_internal(call, network.id)?;
        }
        if !network.external && external == Some(true) {
            rbac_policies::make_external(call, network.id, &network.project_id)?;
        }
        let is_default = body.get("is_default")?;
        let stays_default = is_default.unwrap_or(network.is_default);
        check_default(call, stays_default, external.unwrap_or(network.external), Some(network.id))?;
        let mut changes = Changes::default();
        changes.set("name", body.get::<String>("name")?);
        changes.set("description", body.get::<String>("description")?);
        changes.set("admin_state_up", body.get::<bool>("admin_state_up")?);
        changes.set("port_security_enabled", body.get::<bool>("port_security_enabled")?);
        changes.set("shared", shared);
        changes.set("external", external);
        changes.set("is_default", is_default);
        let mtu = mtu(call, body, &network.segment)?;
        if let Some(mtu) = mtu {
            for subnet in Subnet::of_network(call.tx, network.id)? {
                subnets::check_mtu(network.id, mtu, subnet.ip_version)?;
            }
        }
        changes.set("mtu", mtu);
        changes.write(call.tx, "networks", network.id)?;
        call.tx.changed(Changed::Network, network.id);
        Ok(())
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let network: NetworkId = parse_id(self, id)?;
        remove_spare_ports(call, network)?;
        let sql = "SELECT id FROM ports WHERE network_id = ?1 ORDER BY id";
        let ports = call.tx.query(sql, &values![network], |row| row.text(0))?;
        if !ports.is_empty() {
            let reason = format!(
                "There are one or more ports still in use on the network, id for these ports is: {}",
                ports.join(",")
            );
            return Err(ApiError::NetworkInUse { id: id.to_owned(), reason });
        }
        Ok(Network::delete(call.tx, network)?)
    }
}

fn show(network: &Network, shared: bool, subnets: Vec<String>) -> Object {
    let mut shown = object(json!({
        "id": network.id,
        "project_id": network.project_id,
        "name": network.name,
        "description": network.description,
        "admin_state_up": network.admin_state_up,
        "status": "ACTIVE",
        "shared": shared,
        "router:external": network.external,
        "mtu": network.mtu,
        "port_security_enabled": network.port_security_enabled,
        "subnets": subnets,
        "availability_zone_hints": [],
        "availability_zones": [],
        "provider:network_type": network.segment.network_type(),
        "provider:physical_network": network.segment.physical_network(),
        "provider:segmentation_id": network.segment.segmentation_id(),
    }));
    // As Neutron: only an external network can be the default one, so only there it is shown.
    if network.external {
        shown.insert("is_default".into(), network.is_default.into());
    }
    shown
}

/// Reads the segment that an admin asks for, or finds one.
fn segment(call: Call<'_>, body: &Body) -> Result<Segment, ApiError> {
    let network_type = body.get::<Option<String>>("provider:network_type")?.flatten();
    let physical_network = body.get::<Option<String>>("provider:physical_network")?.flatten();
    let segmentation_id = body.get::<Option<i64>>("provider:segmentation_id")?.flatten();
    let Some(network_type) = network_type else {
        if physical_network.is_some() || segmentation_id.is_some() {
            return Err(ApiError::invalid("provider:network_type required"));
        }
        return allocate_segment(call.tx, call.options, &call.options.tenant_network_types);
    };
    if !call.options.type_drivers.contains(&network_type) {
        return Err(ApiError::invalid(format!("network_type value '{network_type}' not supported")));
    }
    match (network_type.as_str(), physical_network, segmentation_id) {
        ("flat", None, _) => Err(ApiError::invalid("physical_network required for flat provider network")),
        ("flat", Some(_), Some(_)) => Err(ApiError::invalid("segmentation_id prohibited for flat provider network")),
        ("flat", Some(name), None) => flat(call, name),
        ("vxlan", Some(_), _) => Err(ApiError::invalid("provider:physical_network specified for vxlan network")),
        ("vxlan", None, Some(vni)) => vxlan(call, vni),
        ("vxlan", None, None) => allocate_segment(call.tx, call.options, &["vxlan".to_owned()]),
        ("local", None, None) => Ok(Segment::Local),
        ("local", ..) => {
            Err(ApiError::invalid("physical_network and segmentation_id prohibited for local provider network"))
        }
        (other, ..) => Err(ApiError::invalid(format!("network_type value '{other}' not supported"))),
    }
}

fn flat(call: Call<'_>, name: String) -> Result<Segment, ApiError> {
    let allowed = call.options.flat_networks.iter().any(|flat| flat == "*" || *flat == name);
    if !allowed {
        return Err(ApiError::invalid(format!("physical_network '{name}' unknown for flat provider network")));
    }
    if network::flat_is_taken(call.tx, &name)? {
        return Err(ApiError::FlatNetworkInUse { physical_network: name });
    }
    Ok(Segment::Flat(name))
}

fn vxlan(call: Call<'_>, vni: i64) -> Result<Segment, ApiError> {
    // An admin may choose a VNI outside the ranges that projects are given. RFC 7348 §5: 24 bits.
    let Some(vni) = u32::try_from(vni).ok().filter(|vni| (1..=0x00ff_ffff).contains(vni)) else {
        return Err(ApiError::invalid(format!("segmentation_id out of range (1 through {})", 0x00ff_ffff)));
    };
    if network::vni_is_taken(call.tx, vni)? {
        return Err(ApiError::TunnelIdInUse { vni: vni.to_string() });
    }
    Ok(Segment::Vxlan(vni))
}

fn mtu(call: Call<'_>, body: &Body, segment: &Segment) -> Result<Option<u16>, ApiError> {
    let max = max_mtu(call.options, segment);
    match body.get::<i64>("mtu")? {
        // 0 asks for the largest.
        Some(0) => Ok(Some(max)),
        Some(mtu) if mtu > i64::from(max) => {
            Err(ApiError::invalid(format!("Requested MTU is too big, maximum is {max}")))
        }
        mtu => Ok(mtu.map(|mtu| mtu as u16)),
    }
}

fn check_default(call: Call<'_>, is_default: bool, external: bool, own: Option<NetworkId>) -> Result<(), ApiError> {
    if !is_default {
        return Ok(());
    }
    if !external {
        return Err(ApiError::invalid("is_default can only be set on external networks"));
    }
    let other = call.tx.query_opt("SELECT id FROM networks WHERE is_default = 1", &[], |row| row.parse(0))?;
    match other {
        Some(id) if own != Some(id) => Err(ApiError::DefaultExternalNetworkExists { id: id.to_string() }),
        _ => Ok(()),
    }
}

fn refuse_provider_changes(network: &Network, body: &Body) -> Result<(), ApiError> {
    let segment = &network.segment;
    let now = [
        ("provider:network_type", json!(segment.network_type())),
        ("provider:physical_network", json!(segment.physical_network())),
        ("provider:segmentation_id", json!(segment.segmentation_id())),
    ];
    if now.iter().any(|(name, value)| body.json(name).is_some_and(|asked| asked != value)) {
        return Err(ApiError::invalid("Plugin does not support updating provider attributes"));
    }
    Ok(())
}

fn refuse_making_internal(call: Call<'_>, network: &Network) -> Result<(), ApiError> {
    let sql = "SELECT (SELECT count(*) FROM router_ports WHERE network_id = ?1 AND role = 'gateway') \
               + (SELECT count(*) FROM floating_ips WHERE floating_network_id = ?1)";
    if call.tx.count(sql, &values![network.id])? > 0 {
        return Err(ApiError::ExternalNetworkInUse { id: network.id.to_string() });
    }
    Ok(())
}

/// Removes what goes with its network: ports of DHCP servers, and floating IPs that lead nowhere.
fn remove_spare_ports(call: Call<'_>, network: NetworkId) -> Result<(), ApiError> {
    let sql = "SELECT id FROM floating_ips WHERE floating_network_id = ?1 AND router_id IS NULL";
    let spare = call.tx.query(sql, &values![network], |row| row.text(0))?;
    for floating_ip in floating_ip::FloatingIp::many(call.tx, &spare)? {
        floating_ip.delete(call.tx)?;
        Port::get(call.tx, floating_ip.floating_port_id)?.delete(call.tx)?;
    }
    let sql = "SELECT id FROM ports WHERE network_id = ?1 AND device_owner = ?2";
    let dhcp = call.tx.query(sql, &values![network, owner::DHCP], |row| row.text(0))?;
    for port in Port::many(call.tx, &dhcp)? {
        port.delete(call.tx)?;
    }
    Ok(())
}

/// Whose a network is that the caller may see and whether it is shared with the caller, as policy for what is to be on
/// it needs it.
///
/// # Errors
///
/// 404 where there is none.
pub(super) fn seen_owner_of(call: Call<'_>, id: &str) -> Result<(String, bool), ApiError> {
    let sight = policy::sight(&TABLE, call.ctx);
    if sight.nothing || sight.each {
        must_see(call, &Networks, id)?;
        return owner_of(call, &Json::from(id));
    }
    let scope = if sight.everything { "1 = 1" } else { TABLE.scope };
    let shared = rbac_policies::IS_SHARED.replace('?', "?1");
    let sql = format!("SELECT t.project_id, {shared} FROM networks t WHERE t.id = ?2 AND ({scope})");
    let own = call.ctx.project_id.as_deref().filter(|project| !project.is_empty());
    let found =
        call.tx.query_opt(&sql, &values![own, id.to_ascii_lowercase()], |row| Ok((row.text(0)?, row.bool(1)?)))?;
    found.ok_or_else(|| Networks.not_found(id))
}

/// Whose a network is and whether it is shared with the caller, as policy for what is on it needs it.
pub(super) fn owner_of(call: Call<'_>, network: &Json) -> Result<(String, bool), ApiError> {
    let id = network.as_str().unwrap_or_default();
    let sql = "SELECT project_id FROM networks WHERE id = ?1";
    let project = call.tx.query_opt(sql, &values![id], |row| row.text(0))?;
    let project = project.ok_or_else(|| ApiError::NetworkNotFound { id: id.to_owned() })?;
    Ok((project, !rbac_policies::shared_with_caller(call, &[id.to_owned()])?.read()?.is_empty()))
}
