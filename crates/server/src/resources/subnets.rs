//! Subnets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_model::{NetworkId, PortId, SubnetId};
use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::subnet_pools::{self, SubnetPools, Wish};
use super::{Call, Resource, must_see, networks, object, parse_id, standard};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::ipam::{self, FixedIpRequest, Pool};
use crate::objects::network::Network;
use crate::objects::port::{Port, owner};
use crate::objects::subnet::{Route, Subnet, json as stored};
use crate::objects::subnet_pool::SubnetPool;
use crate::objects::{Changes, Standard, query_in, router, tags};
use crate::policy::{Rule, Target};
use crate::random;
use crate::values;

/// The resource `subnets`.
#[derive(Clone, Copy, Debug)]
pub struct Subnets;

const IPV6_MODES: Kind = Kind::WordsOrNull(&["dhcpv6-stateful", "dhcpv6-stateless", "slaac"]);

static TABLE: Table = Table {
    singular: "subnet",
    plural: "subnets",
    sql: "subnets",
    bulk: true,
    tagged: true,
    create: Rule::NetworkOwner,
    get: Rule::ReaderOrShared,
    update: Rule::MemberOrNetworkOwner,
    delete: Rule::MemberOrNetworkOwner,
    scope: "t.project_id = ?1 OR EXISTS (SELECT 1 FROM networks n WHERE n.id = t.network_id \
            AND n.project_id = ?1) OR EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = t.network_id \
            AND p.target_project IN (?1, '*'))",
    attributes: &[
        attributes::ID,
        attributes::NAME,
        attributes::DESCRIPTION,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        attributes::TAGS,
        Attribute::new("network_id", Kind::Uuid).post(Absent::Required).column("t.network_id"),
        Attribute::new("ip_version", Kind::OneOf(&[4, 6])).post(Absent::Required).column("t.ip_version"),
        Attribute::new("cidr", Kind::CidrOrNull).post(Absent::Unset).column("t.cidr"),
        Attribute::new("gateway_ip", Kind::IpOrNull).post(Absent::Unset).put().column("t.gateway_ip"),
        Attribute::new("enable_dhcp", Kind::Bool).post(Absent::Bool(true)).put().column("t.enable_dhcp"),
        Attribute::new("ipv6_ra_mode", IPV6_MODES).post(Absent::Null).column("t.ipv6_ra_mode"),
        Attribute::new("ipv6_address_mode", IPV6_MODES).post(Absent::Null).column("t.ipv6_address_mode"),
        Attribute::new("allocation_pools", Kind::Pools).post(Absent::Unset).put(),
        Attribute::new("dns_nameservers", Kind::Nameservers).post(Absent::EmptyList).put(),
        Attribute::new("host_routes", Kind::Routes).post(Absent::EmptyList).put(),
        Attribute::new("service_types", Kind::ServiceTypes).post(Absent::EmptyList).put().set_by(Rule::Admin),
        Attribute::new("subnetpool_id", Kind::UuidOrNull).post(Absent::Null).column("t.subnetpool_id"),
        Attribute::new("prefixlen", Kind::Int).post(Absent::Unset).seen_by(Rule::Nobody),
        Attribute::new("use_default_subnetpool", Kind::Bool).post(Absent::Bool(false)).seen_by(Rule::Nobody),
        Attribute::new("router:external", Kind::Bool).filter(Filter::Exists(
            "EXISTS (SELECT 1 FROM networks n WHERE n.id = t.network_id AND n.external IN ({}))",
        )),
        Attribute::new("shared", Kind::Bool).seen_by(Rule::Nobody).filter(Filter::ForProject(
            "(CASE WHEN EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = t.network_id \
                 AND p.action = 'access_as_shared' AND p.target_project IN (?, '*')) THEN 1 ELSE 0 END)",
        )),
    ],
};

impl Resource for Subnets {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::SubnetNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (subnets, tags) = (Subnet::ask_many(call.tx, ids)?, tags::of_many(call.tx, ids)?);
        let sql = "SELECT s.id FROM subnets s JOIN networks n ON n.id = s.network_id \
                   WHERE n.external = 1 AND s.id IN ({})";
        let external: BTreeSet<SubnetId> = query_in(call.tx, sql, ids, |row| row.parse(0))?.into_iter().collect();
        let mut tags = tags.read()?;
        let subnets = subnets.read()?.into_iter().map(|subnet| {
            let mut shown = show(&subnet, external.contains(&subnet.id));
            standard(&mut shown, &subnet.standard, tags.remove(&subnet.id.to_string()));
            shown
        });
        Ok(subnets.collect())
    }

    fn parent(&self) -> Option<&'static str> {
        Some("network_id")
    }

    fn target(&self, call: Call<'_>, body: &Body) -> Result<Target, ApiError> {
        let project_id = body.need("project_id")?;
        let (network_project, network_shared) = networks::seen_owner_of(call, &body.need::<String>("network_id")?)?;
        Ok(Target { project_id, network_project_id: Some(network_project), network_shared })
    }

    fn target_of(&self, call: Call<'_>, object: &Object) -> Result<Target, ApiError> {
        let project_id = object.get("project_id").and_then(Json::as_str).unwrap_or_default().to_owned();
        let (network_project, network_shared) = networks::owner_of(call, &object["network_id"])?;
        Ok(Target { project_id, network_project_id: Some(network_project), network_shared })
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let subnet = new_subnet(call, body)?;
        subnet.insert(call.tx)?;
        if subnet.is_auto_address() {
            add_automatic_addresses(call, &subnet)?;
        }
        Ok(subnet.id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let subnet = Subnet::get(call.tx, parse_id(self, id)?)?;
        let mut changes = Changes::default();
        let gateway = body.get::<Option<IpAddr>>("gateway_ip")?;
        let pools = body.get::<Vec<Pool>>("allocation_pools")?;
        if let Some(gateway) = gateway {
            check_gateway(&subnet, gateway)?;
            if gateway != subnet.gateway_ip {
                refuse_gateway_in_use(call, &subnet)?;
            }
        }
        if gateway.is_some() || pools.is_some() {
            let (pools, gateway) =
                (pools.as_ref().unwrap_or(&subnet.allocation_pools), gateway.unwrap_or(subnet.gateway_ip));
            ipam::check_pools(pools, subnet.cidr, gateway)?;
        }
        let enable_dhcp = body.get::<bool>("enable_dhcp")?;
        match enable_dhcp {
            Some(true) if !subnet.enable_dhcp => check_dhcp(subnet.cidr)?,
            Some(false) if subnet.ipv6_ra_mode.is_some() || subnet.ipv6_address_mode.is_some() => {
                return Err(ApiError::invalid("Cannot disable enable_dhcp with ipv6 attributes set"));
            }
            _ => {}
        }
        changes.set("gateway_ip", gateway);
        changes.set("allocation_pools", pools.map(|pools| stored(&pools)));
        changes.set("enable_dhcp", enable_dhcp);
        changes.set("name", body.get::<String>("name")?);
        changes.set("description", body.get::<String>("description")?);
        changes.set("dns_nameservers", nameservers(call, body, id)?.map(|list| stored(&list)));
        changes.set("host_routes", host_routes(call, body, id, subnet.ip_version)?.map(|list| stored(&list)));
        changes.set("service_types", body.get::<Vec<String>>("service_types")?.map(|list| stored(&list)));
        changes.write(call.tx, "subnets", subnet.id)?;
        note_routers(call, &subnet)?;
        Ok(subnet.note(call.tx)?)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let subnet = Subnet::get(call.tx, parse_id(self, id)?)?;
        release_spare_addresses(call, &subnet)?;
        let sql = "SELECT count(*) FROM fixed_ips WHERE subnet_id = ?1";
        if call.tx.count(sql, &values![subnet.id])? > 0 {
            let reason = "One or more ports have an IP allocation from this subnet".to_owned();
            return Err(ApiError::SubnetInUse { id: id.to_owned(), reason });
        }
        Ok(subnet.delete(call.tx)?)
    }
}

fn show(subnet: &Subnet, external: bool) -> Object {
    object(json!({
        "id": subnet.id,
        "project_id": subnet.project_id,
        "network_id": subnet.network_id,
        "name": subnet.name,
        "description": subnet.description,
        "ip_version": subnet.ip_version,
        "cidr": subnet.cidr,
        "gateway_ip": subnet.gateway_ip,
        "enable_dhcp": subnet.enable_dhcp,
        "ipv6_ra_mode": subnet.ipv6_ra_mode,
        "ipv6_address_mode": subnet.ipv6_address_mode,
        "allocation_pools": subnet.allocation_pools,
        "dns_nameservers": subnet.dns_nameservers,
        "host_routes": subnet.host_routes,
        "service_types": subnet.service_types,
        "subnetpool_id": subnet.subnetpool_id,
        "router:external": external,
    }))
}

/// Refuses subnets on a network whose packets are too short for them.
///
/// # Errors
///
/// 409 where they are.
pub(super) fn check_mtu(network: NetworkId, mtu: u16, ip_version: u8) -> Result<(), ApiError> {
    // RFC 791 §3.2: every host forwards 68 bytes without fragmentation. RFC 8200 §5: 1280 of IPv6.
    let least = if ip_version == 6 { 1280 } else { 68 };
    if mtu < least {
        return Err(ApiError::NetworkMTUSubnetConflict { network: network.to_string(), mtu: least.to_string() });
    }
    Ok(())
}

fn new_subnet(call: Call<'_>, body: &Body) -> Result<Subnet, ApiError> {
    let network: NetworkId = body.need("network_id")?;
    let others = Subnet::ask_of_network(call.tx, network)?;
    let (network, others) = (Network::get(call.tx, network)?, others.read()?);
    let ip_version: u8 = body.need("ip_version")?;
    check_mtu(network.id, network.mtu, ip_version)?;
    let pool = pool(call, body, ip_version)?;
    let cidr = prefix(call, body, ip_version, pool.as_ref())?;
    check_cidr(&others, network.id, cidr)?;
    check_affinity(call, &others, ip_version, pool.as_ref())?;
    let gateway = match body.get::<Option<IpAddr>>("gateway_ip")? {
        Some(gateway) => gateway,
        None => ipam::default_gateway(cidr),
    };
    let id = SubnetId(random::id());
    let pools = body.get::<Vec<Pool>>("allocation_pools")?;
    let subnet = Subnet {
        id,
        project_id: body.need("project_id")?,
        network_id: network.id,
        name: body.need("name")?,
        description: body.need("description")?,
        ip_version,
        cidr,
        gateway_ip: gateway,
        enable_dhcp: body.need("enable_dhcp")?,
        ipv6_ra_mode: body.need("ipv6_ra_mode")?,
        ipv6_address_mode: body.need("ipv6_address_mode")?,
        allocation_pools: pools.clone().unwrap_or_else(|| ipam::default_pools(cidr, gateway)),
        dns_nameservers: nameservers(call, body, "new subnet")?.unwrap_or_default(),
        host_routes: host_routes(call, body, "new subnet", ip_version)?.unwrap_or_default(),
        service_types: body.need("service_types")?,
        subnetpool_id: pool.map(|pool| pool.id),
        standard: Standard::default(),
    };
    check_gateway(&subnet, gateway)?;
    check_ipv6_modes(&subnet)?;
    if subnet.enable_dhcp {
        check_dhcp(cidr)?;
    }
    if let Some(pools) = &pools {
        ipam::check_pools(pools, cidr, gateway)?;
    }
    Ok(subnet)
}

/// A 400 in the words that Neutron has for subnets.
fn refused(reason: impl Into<String>) -> ApiError {
    ApiError::BadRequest { resource: "subnets".into(), reason: reason.into() }
}

/// Finds the pool that the subnet shall be cut from, if any.
fn pool(call: Call<'_>, body: &Body, ip_version: u8) -> Result<Option<SubnetPool>, ApiError> {
    let default: bool = body.need("use_default_subnetpool")?;
    let pool = match (body.need::<Option<String>>("subnetpool_id")?, default) {
        (None, false) => return Ok(None),
        (Some(_), true) => {
            return Err(refused("subnetpool_id and use_default_subnetpool cannot both be specified"));
        }
        (Some(id), false) => {
            must_see(call, &SubnetPools, &id)?;
            SubnetPool::get(call.tx, &id)?
        }
        (None, true) => SubnetPool::default_of(call.tx, ip_version)?
            .ok_or_else(|| refused(format!("No default subnetpool found for IPv{ip_version}")))?,
    };
    if pool.ip_version != ip_version {
        let reason = format!("Cannot allocate IPv{ip_version} subnet from IPv{} subnet pool", pool.ip_version);
        return Err(refused(reason));
    }
    Ok(Some(pool))
}

/// Reads the subnet's prefix, or cuts one from the pool.
fn prefix(call: Call<'_>, body: &Body, ip_version: u8, pool: Option<&SubnetPool>) -> Result<IpNet, ApiError> {
    let cidr = body.get::<Option<IpNet>>("cidr")?.flatten();
    let length = body.get::<i64>("prefixlen")?.map(|length| u8::try_from(length).unwrap_or(u8::MAX));
    if let Some(cidr) = &cidr {
        check_version("cidr", cidr, cidr.addr(), ip_version)?;
    }
    let project: String = body.need("project_id")?;
    match (cidr, length, pool) {
        (Some(_), Some(_), _) => Err(refused("cidr and prefixlen must not be supplied together")),
        (Some(cidr), None, None) => Ok(cidr),
        (Some(cidr), None, Some(pool)) => subnet_pools::cut(call, pool, &project, Wish::Exactly(cidr)),
        (None, _, None) => Err(refused("a subnetpool must be specified in the absence of a cidr")),
        (None, _, Some(_)) if body.has("allocation_pools") => {
            Err(refused("allocation_pools allowed only for specific subnet requests."))
        }
        (None, length, Some(pool)) => subnet_pools::cut(call, pool, &project, Wish::Any(length)),
    }
}

/// Subnets of one version on a network are of one pool, or at least of one address scope.
fn check_affinity(
    call: Call<'_>,
    others: &[Subnet],
    ip_version: u8,
    pool: Option<&SubnetPool>,
) -> Result<(), ApiError> {
    let others: Vec<&Subnet> = others.iter().filter(|other| other.ip_version == ip_version).collect();
    let pools: BTreeSet<&String> = others.iter().filter_map(|other| other.subnetpool_id.as_ref()).collect();
    let sql = "SELECT id, address_scope_id FROM subnet_pools WHERE id IN ({})";
    let scopes = query_in(call.tx, sql, &Vec::from_iter(pools), |row| Ok((row.text(0)?, row.opt_text(1)?)))?;
    let scopes: BTreeMap<String, Option<String>> = scopes.into_iter().collect();
    let scope = pool.and_then(|pool| pool.address_scope_id).map(|scope| scope.to_string());
    for other in others {
        let other_scope = other.subnetpool_id.as_ref().and_then(|pool| scopes.get(pool)?.as_ref());
        if other_scope != scope.as_ref() {
            return Err(ApiError::NetworkAddressScopeAffinityError {});
        }
        if scope.is_none() && other.subnetpool_id.as_ref() != pool.map(|pool| &pool.id) {
            return Err(ApiError::NetworkSubnetPoolAffinityError {});
        }
    }
    Ok(())
}

fn check_version(name: &str, shown: &impl std::fmt::Display, ip: IpAddr, version: u8) -> Result<(), ApiError> {
    if ip.is_ipv4() == (version == 4) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{name} '{shown}' does not match the ip_version '{version}'")))
}

fn check_cidr(others: &[Subnet], network: NetworkId, cidr: IpNet) -> Result<(), ApiError> {
    if cidr.prefix_len() == 0 {
        return Err(ApiError::invalid("0 is not allowed as CIDR prefix length"));
    }
    let overlaps = |other: &Subnet| other.cidr.contains(&cidr.network()) || cidr.contains(&other.cidr.network());
    if others.iter().any(overlaps) {
        let reason = format!("Requested subnet with cidr: {cidr} for network: {network} overlaps with another subnet");
        return Err(ApiError::invalid(reason));
    }
    Ok(())
}

fn check_gateway(subnet: &Subnet, gateway: Option<IpAddr>) -> Result<(), ApiError> {
    let Some(gateway) = gateway else { return Ok(()) };
    check_version("gateway_ip", &gateway, gateway, subnet.ip_version)?;
    // A gateway outside the subnet is reached on-link; inside, it must be an address that a host can have.
    if subnet.cidr.contains(&gateway) && subnet.ip_version == 4 && !ipam::is_usable(subnet.cidr, gateway) {
        return Err(ApiError::invalid("Gateway is not valid on subnet"));
    }
    if gateway.is_multicast() || gateway.is_unspecified() || gateway.is_loopback() {
        return Err(ApiError::invalid("Gateway is not valid on subnet"));
    }
    Ok(())
}

fn check_dhcp(cidr: IpNet) -> Result<(), ApiError> {
    let longest = if cidr.addr().is_ipv4() { 30 } else { 126 };
    if cidr.prefix_len() > longest {
        return Err(ApiError::invalid("Subnet has a prefix length that is incompatible with DHCP service enabled"));
    }
    if cidr.addr().is_multicast() {
        return Err(ApiError::invalid("Multicast IP subnet is not supported if enable_dhcp is True"));
    }
    if cidr.addr().is_loopback() {
        return Err(ApiError::invalid("Loopback IP subnet is not supported if enable_dhcp is True"));
    }
    if cidr.network() == IpAddr::from([0, 0, 0, 0]) {
        return Err(ApiError::invalid("First IP '0.0.0.0' of network is not supported if enable_dhcp is True."));
    }
    Ok(())
}

fn check_ipv6_modes(subnet: &Subnet) -> Result<(), ApiError> {
    let (ra, address) = (&subnet.ipv6_ra_mode, &subnet.ipv6_address_mode);
    if ra.is_none() && address.is_none() {
        return Ok(());
    }
    if subnet.ip_version == 4 {
        return Err(ApiError::invalid("ipv6_ra_mode is not valid when ip_version is 4"));
    }
    if !subnet.enable_dhcp {
        return Err(ApiError::invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False",
        ));
    }
    if let (Some(ra), Some(address)) = (ra, address)
        && ra != address
    {
        return Err(ApiError::invalid(format!(
            "ipv6_ra_mode set to '{ra}' with ipv6_address_mode set to '{address}' is not valid. If both attributes are \
             set, they must be the same value"
        )));
    }
    // RFC 4862 §5.5.3: an interface identifier and a prefix make 128 bits.
    if subnet.is_auto_address() && subnet.cidr.prefix_len() != 64 {
        return Err(ApiError::invalid(format!(
            "Invalid CIDR {} for IPv6 address mode. OpenStack uses the EUI-64 address format, which requires the prefix \
             to be /64",
            subnet.cidr
        )));
    }
    Ok(())
}

fn nameservers(call: Call<'_>, body: &Body, subnet: &str) -> Result<Option<Vec<IpAddr>>, ApiError> {
    let servers = body.get::<Vec<IpAddr>>("dns_nameservers")?;
    let quota = call.options.max_dns_nameservers;
    if servers.as_ref().is_some_and(|list| list.len() > quota) {
        return Err(ApiError::DNSNameServersExhausted { subnet: subnet.to_owned(), quota: quota.to_string() });
    }
    Ok(servers)
}

fn host_routes(call: Call<'_>, body: &Body, subnet: &str, version: u8) -> Result<Option<Vec<Route>>, ApiError> {
    let routes = body.get::<Vec<Route>>("host_routes")?;
    let quota = call.options.max_subnet_host_routes;
    if routes.as_ref().is_some_and(|list| list.len() > quota) {
        return Err(ApiError::HostRoutesExhausted { subnet: subnet.to_owned(), quota: quota.to_string() });
    }
    for route in routes.iter().flatten() {
        check_version("host_routes", &route.destination, route.destination.addr(), version)?;
        check_version("host_routes", &route.nexthop, route.nexthop, version)?;
    }
    Ok(routes)
}

/// A router interface that has the gateway's address would be left with the wrong one.
fn refuse_gateway_in_use(call: Call<'_>, subnet: &Subnet) -> Result<(), ApiError> {
    let Some(gateway) = subnet.gateway_ip else { return Ok(()) };
    let sql = "SELECT f.port_id FROM fixed_ips f JOIN router_ports rp ON rp.port_id = f.port_id \
               WHERE f.subnet_id = ?1 AND f.ip_address = ?2";
    match call.tx.query_opt(sql, &values![subnet.id, gateway], |row| row.text(0))? {
        Some(port) => Err(ApiError::GatewayIpInUse { ip: gateway.to_string(), port }),
        None => Ok(()),
    }
}

/// Routers with a port on the subnet learn of a new gateway or CIDR.
fn note_routers(call: Call<'_>, subnet: &Subnet) -> Result<(), ApiError> {
    let sql = "SELECT DISTINCT rp.router_id FROM router_ports rp WHERE rp.network_id = ?1 AND rp.role = 'gateway'";
    for router in call.tx.query(sql, &values![subnet.network_id], |row| row.parse(0))? {
        router::note(call.tx, router)?;
    }
    Ok(())
}

/// Ports that are there already get their address of a new SLAAC subnet, as their hosts will make it.
fn add_automatic_addresses(call: Call<'_>, subnet: &Subnet) -> Result<(), ApiError> {
    let sql = "SELECT id FROM ports WHERE network_id = ?1 AND device_owner NOT LIKE 'network:%'";
    let ids = call.tx.query(sql, &values![subnet.network_id], |row| row.text(0))?;
    for mut port in Port::many(call.tx, &ids)? {
        let requests: Vec<FixedIpRequest> = port
            .fixed_ips
            .iter()
            .map(|fixed| FixedIpRequest { subnet_id: Some(fixed.subnet_id), ip_address: Some(fixed.ip_address) })
            .chain([FixedIpRequest { subnet_id: Some(subnet.id), ip_address: None }])
            .collect();
        port.change_fixed_ips(call.tx, &requests)?;
    }
    Ok(())
}

/// What goes with its subnet: ports of DHCP servers, and addresses that hosts made themselves.
fn release_spare_addresses(call: Call<'_>, subnet: &Subnet) -> Result<(), ApiError> {
    let sql = "SELECT p.id, p.device_owner, rp.router_id FROM fixed_ips f JOIN ports p ON p.id = f.port_id \
               LEFT JOIN router_ports rp ON rp.port_id = p.id WHERE f.subnet_id = ?1";
    let users = call.tx.query(sql, &values![subnet.id], |row| {
        Ok((row.parse::<PortId>(0)?, row.text(1)?, row.opt_text(2)?.is_some()))
    })?;
    for (id, device_owner, is_routers) in users {
        let port = Port::get(call.tx, id)?;
        let only_here = port.fixed_ips.iter().all(|fixed| fixed.subnet_id == subnet.id);
        if device_owner == owner::DHCP && only_here {
            port.delete(call.tx)?;
        } else if subnet.is_auto_address() && !is_routers {
            let mut port = port;
            port.leave_subnet(call.tx, subnet.id)?;
        }
    }
    Ok(())
}
