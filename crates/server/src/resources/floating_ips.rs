//! Floating IPs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use evergate_model::{FloatingIpId, NetworkId, PortId, RouterId, SubnetId};
use serde_json::{Value as Json, json};

use super::{Call, Resource, must_see, networks, object, parse_id, port_forwardings, ports, standard};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::ipam::{FixedIp, FixedIpRequest};
use crate::objects::floating_ip::FloatingIp;
use crate::objects::network::Network;
use crate::objects::port::{NewPort, Port, owner};
use crate::objects::port_forwarding::PortForwarding;
use crate::objects::subnet::Subnet;
use crate::objects::{Changes, Standard, tags};
use crate::policy::Rule;
use crate::random;
use crate::values;

/// The resource `floatingips`.
#[derive(Clone, Copy, Debug)]
pub struct FloatingIps;

static TABLE: Table = Table {
    singular: "floatingip",
    plural: "floatingips",
    sql: "floating_ips",
    bulk: false,
    tagged: true,
    create: Rule::Member,
    get: Rule::Reader,
    update: Rule::Member,
    delete: Rule::Member,
    scope: "t.project_id = ?1",
    attributes: &[
        attributes::ID,
        attributes::DESCRIPTION,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        attributes::TAGS,
        Attribute::new("status", Kind::Computed).column("t.status"),
        Attribute::new("floating_network_id", Kind::Uuid).post(Absent::Required).column("t.floating_network_id"),
        Attribute::new("floating_ip_address", Kind::IpOrNull)
            .post(Absent::Null)
            .set_by(Rule::Manager)
            .column("t.floating_ip_address"),
        Attribute::new("subnet_id", Kind::UuidOrNull).post(Absent::Null).seen_by(Rule::Nobody),
        Attribute::new("port_id", Kind::UuidOrNull).post(Absent::Null).put().filter(Filter::Column("t.port_id")),
        Attribute::new("fixed_ip_address", Kind::IpOrNull).post(Absent::Null).put().column("t.fixed_ip_address"),
        Attribute::new("router_id", Kind::UuidOrNull).column("t.router_id"),
        Attribute::new("port_details", Kind::Computed),
        Attribute::new("port_forwardings", Kind::Computed),
    ],
};

impl Resource for FloatingIps {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::FloatingIPNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let tags = tags::of_many(call.tx, ids)?;
        let floating_ips = FloatingIp::many(call.tx, ids)?;
        let mut tags = tags.read()?;
        let ports: Vec<String> = floating_ips.iter().filter_map(|f| f.port_id).map(|id| id.to_string()).collect();
        let ports: BTreeMap<PortId, Port> = Port::many(call.tx, &ports)?.into_iter().map(|p| (p.id, p)).collect();
        let forwardings = PortForwarding::of_floating_ips(call.tx, ids)?;
        let shown = floating_ips.into_iter().map(|floating_ip| {
            let port = floating_ip.port_id.and_then(|id| ports.get(&id));
            let mut shown = show(&floating_ip, port);
            let own = forwardings.iter().filter(|forwarding| forwarding.floating_ip_id == floating_ip.id);
            shown.insert("port_forwardings".into(), own.map(port_forwardings::brief).map(Json::from).collect());
            standard(&mut shown, &floating_ip.standard, tags.remove(&floating_ip.id.to_string()));
            shown
        });
        Ok(shown.collect())
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let network = external_network(call, body)?;
        let id = FloatingIpId(random::id());
        let project_id: String = body.need("project_id")?;
        let (port, address) = address_port(call, body, &network, id)?;
        let wanted = Association::read(body, None)?;
        let leads_to = match wanted.port {
            Some(port) => Some(find_way(call, network.id, &project_id, port, wanted.fixed_ip)?),
            None => None,
        };
        let floating_ip = FloatingIp {
            id,
            project_id,
            description: body.need("description")?,
            floating_network_id: network.id,
            floating_ip_address: address,
            floating_port_id: port,
            router_id: leads_to.map(|way| way.router),
            port_id: leads_to.map(|way| way.port),
            fixed_ip_address: leads_to.map(|way| way.fixed_ip),
            status: "DOWN".into(),
            standard: Standard::default(),
        };
        refuse_second(call, &floating_ip)?;
        floating_ip.insert(call.tx)?;
        Ok(id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let mut floating_ip = FloatingIp::get(call.tx, parse_id(self, id)?)?;
        let mut changes = Changes::default();
        changes.set("description", body.get::<String>("description")?);
        changes.write(call.tx, "floating_ips", floating_ip.id)?;
        if !body.has("port_id") && !body.has("fixed_ip_address") {
            return Ok(());
        }
        let wanted = Association::read(body, floating_ip.port_id)?;
        if floating_ip.port_id.is_none() && floating_ip.router_id.is_some() {
            // It is on a router for its port forwardings: to lead nowhere else changes nothing.
            return if wanted.port.is_some() { refuse_forwarding(call, &floating_ip) } else { Ok(()) };
        }
        let before = (floating_ip.router_id, floating_ip.port_id, floating_ip.fixed_ip_address);
        let leads_to = match wanted.port {
            Some(port) => {
                let (network, project) = (floating_ip.floating_network_id, floating_ip.project_id.clone());
                Some(find_way(call, network, &project, port, wanted.fixed_ip)?)
            }
            None => None,
        };
        floating_ip.router_id = leads_to.map(|way| way.router);
        floating_ip.port_id = leads_to.map(|way| way.port);
        floating_ip.fixed_ip_address = leads_to.map(|way| way.fixed_ip);
        if before == (floating_ip.router_id, floating_ip.port_id, floating_ip.fixed_ip_address) {
            return Ok(());
        }
        refuse_second(call, &floating_ip)?;
        Ok(floating_ip.update_association(call.tx, before.0)?)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let floating_ip = FloatingIp::get(call.tx, parse_id(self, id)?)?;
        refuse_forwarding(call, &floating_ip)?;
        floating_ip.delete(call.tx)?;
        Port::get(call.tx, floating_ip.floating_port_id)?.delete(call.tx)
    }
}

fn show(floating_ip: &FloatingIp, port: Option<&Port>) -> Object {
    object(json!({
        "id": floating_ip.id,
        "project_id": floating_ip.project_id,
        "description": floating_ip.description,
        "floating_network_id": floating_ip.floating_network_id,
        "floating_ip_address": floating_ip.floating_ip_address,
        "router_id": floating_ip.router_id,
        "port_id": floating_ip.port_id,
        "fixed_ip_address": floating_ip.fixed_ip_address,
        "status": floating_ip.status,
        "port_details": port.map(|port| json!({
            "name": port.name,
            "network_id": port.network_id,
            "mac_address": port.mac_address,
            "admin_state_up": port.admin_state_up,
            "status": port.status,
            "device_id": port.device_id,
            "device_owner": port.device_owner,
        })),
    }))
}

/// Finds the external network that the address shall be from.
fn external_network(call: Call<'_>, body: &Body) -> Result<Network, ApiError> {
    let id: NetworkId = body.need("floating_network_id")?;
    must_see(call, &networks::Networks, &id.to_string())?;
    let network = Network::get(call.tx, id)?;
    if !network.external {
        return Err(ApiError::bad_floating_ip(format!("Network {id} is not a valid external network")));
    }
    if !Subnet::of_network(call.tx, id)?.iter().any(|subnet| subnet.ip_version == 4) {
        return Err(ApiError::bad_floating_ip(format!("Network {id} does not contain any IPv4 subnet")));
    }
    Ok(network)
}

/// Makes the port that holds the address. It belongs to no project: users see the floating IP instead.
fn address_port(
    call: Call<'_>,
    body: &Body,
    network: &Network,
    id: FloatingIpId,
) -> Result<(PortId, Ipv4Addr), ApiError> {
    let ip_address = body.get::<Option<IpAddr>>("floating_ip_address")?.flatten();
    let subnet_id = body.get::<Option<SubnetId>>("subnet_id")?.flatten();
    let request = FixedIpRequest { subnet_id, ip_address };
    let asked = (request != FixedIpRequest::default()).then_some([request]);
    // Without wishes any IPv4 subnet with a free address will do.
    let requests = match asked {
        Some(requests) => vec![requests],
        None => Subnet::of_network(call.tx, network.id)?
            .into_iter()
            .filter(|subnet| subnet.ip_version == 4)
            .map(|subnet| [FixedIpRequest { subnet_id: Some(subnet.id), ip_address: None }])
            .collect(),
    };
    let device = id.to_string();
    let mut outcome = Err(ApiError::ExternalIpAddressExhausted { network: network.id.to_string() });
    for request in &requests {
        let new = NewPort {
            status: "N/A",
            fixed_ips: Some(request),
            ..NewPort::device(network.id, owner::FLOATING_IP, &device)
        };
        outcome = Port::create(call.tx, call.options, &new);
        if !matches!(outcome, Err(ApiError::IpAddressGenerationFailure { .. })) {
            break;
        }
    }
    let port = outcome?;
    let address = port.fixed_ips.iter().find_map(|fixed| ipv4(fixed.ip_address));
    let address = address.ok_or_else(|| ApiError::ExternalIpAddressExhausted { network: network.id.to_string() })?;
    Ok((port.id, address))
}

fn ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

/// What a body wants the floating IP to lead to.
#[derive(Clone, Copy, Debug)]
struct Association {
    port: Option<PortId>,
    fixed_ip: Option<IpAddr>,
}

impl Association {
    /// On PUT, a port that is not mentioned stays (`current`).
    fn read(body: &Body, current: Option<PortId>) -> Result<Self, ApiError> {
        let port = body.get::<Option<PortId>>("port_id")?.unwrap_or(current);
        let fixed_ip = body.get::<Option<IpAddr>>("fixed_ip_address")?.flatten();
        if fixed_ip.is_some() && port.is_none() {
            return Err(ApiError::bad_floating_ip("fixed_ip_address cannot be specified without a port_id"));
        }
        Ok(Self { port, fixed_ip })
    }
}

/// A port's address, and the router that leads from the external network to it.
#[derive(Clone, Copy, Debug)]
struct Way {
    router: RouterId,
    port: PortId,
    fixed_ip: Ipv4Addr,
}

fn find_way(
    call: Call<'_>,
    external: NetworkId,
    project: &str,
    port: PortId,
    fixed_ip: Option<IpAddr>,
) -> Result<Way, ApiError> {
    must_see(call, &ports::Ports, &port.to_string())?;
    let port = Port::get(call.tx, port)?;
    if !PortForwarding::to_port(call.tx, port.id)?.is_empty() {
        return Err(ApiError::PortHasPortForwarding { port: port.id.to_string() });
    }
    if port.project_id != project && !call.ctx.is_admin {
        return Err(ApiError::bad_floating_ip(format!(
            "Cannot process floating IP association with Port {}, since that port is owned by a different project",
            port.id
        )));
    }
    let (fixed, ip) = internal_address(&port, fixed_ip)?;
    let router = router_between(call, external, fixed)?;
    let router = router.ok_or_else(|| ApiError::ExternalGatewayForFloatingIPNotFound {
        network: external.to_string(),
        subnet: fixed.subnet_id.to_string(),
        port: port.id.to_string(),
    })?;
    Ok(Way { router, port: port.id, fixed_ip: ip })
}

/// Picks which of the port's addresses is meant.
fn internal_address(port: &Port, wanted: Option<IpAddr>) -> Result<(FixedIp, Ipv4Addr), ApiError> {
    let id = port.id;
    let of_v4 = |fixed: &FixedIp| ipv4(fixed.ip_address).map(|ip| (*fixed, ip));
    if let Some(wanted) = wanted {
        let Some(wanted) = ipv4(wanted) else {
            let reason =
                format!("Cannot process floating IP association with {wanted}, since that is not an IPv4 address");
            return Err(ApiError::bad_floating_ip(reason));
        };
        let found = port.fixed_ips.iter().filter_map(of_v4).find(|(_, ip)| *ip == wanted);
        return found.ok_or_else(|| ApiError::bad_floating_ip(format!("Port {id} does not have fixed ip {wanted}")));
    }
    let mut addresses = port.fixed_ips.iter().filter_map(of_v4);
    match (addresses.next(), addresses.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(ApiError::bad_floating_ip(format!(
            "Cannot add floating IP to port {id} that has no fixed IPv4 addresses"
        ))),
        (Some(_), Some(_)) => Err(ApiError::bad_floating_ip(format!(
            "Port {id} has multiple fixed IPv4 addresses.  Must provide a specific IPv4 address when assigning a \
             floating IP"
        ))),
    }
}

/// Finds a router with an interface on the address's subnet and its gateway on the external network;
/// of several, the one that is the subnet's own gateway.
pub(super) fn router_between(
    call: Call<'_>,
    external: NetworkId,
    fixed: FixedIp,
) -> Result<Option<RouterId>, ApiError> {
    let sql = "SELECT rs.router_id FROM router_subnets rs \
               JOIN router_ports gw ON gw.router_id = rs.router_id AND gw.role = 'gateway' AND gw.network_id = ?2 \
               JOIN fixed_ips f ON f.port_id = rs.port_id AND f.subnet_id = rs.subnet_id \
               JOIN subnets s ON s.id = rs.subnet_id \
               WHERE rs.subnet_id = ?1 \
               ORDER BY CASE WHEN f.ip_address = s.gateway_ip THEN 0 ELSE 1 END, rs.router_id";
    Ok(call.tx.query_opt(sql, &values![fixed.subnet_id, external], |row| row.parse(0))?)
}

/// What forwards ports is needed.
fn refuse_forwarding(call: Call<'_>, floating_ip: &FloatingIp) -> Result<(), ApiError> {
    let id = floating_ip.id.to_string();
    if PortForwarding::of_floating_ips(call.tx, std::slice::from_ref(&id))?.is_empty() {
        return Ok(());
    }
    Err(ApiError::FipInUseByPortForwarding { id })
}

/// A fixed address has one floating IP per external network.
fn refuse_second(call: Call<'_>, floating_ip: &FloatingIp) -> Result<(), ApiError> {
    let (Some(port), Some(fixed_ip)) = (floating_ip.port_id, floating_ip.fixed_ip_address) else { return Ok(()) };
    let network = floating_ip.floating_network_id;
    let other = FloatingIp::of_port(call.tx, port)?.into_iter().any(|other| {
        other.id != floating_ip.id && other.floating_network_id == network && other.fixed_ip_address == Some(fixed_ip)
    });
    if !other {
        return Ok(());
    }
    Err(ApiError::FloatingIPPortAlreadyAssociated {
        address: floating_ip.floating_ip_address.to_string(),
        id: floating_ip.id.to_string(),
        port: port.to_string(),
        fixed_ip: fixed_ip.to_string(),
        network: network.to_string(),
    })
}
