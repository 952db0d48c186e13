//! A router's interfaces on project networks: `add_router_interface` and `remove_router_interface`.

use evergate_model::{PortId, SubnetId};
use serde_json::{Value as Json, json};

use super::{Call, must_see, parse_id, ports, routers, subnets, writable};
use crate::attributes::{Kind, Object};
use crate::error::ApiError;
use crate::ha;
use crate::ipam::FixedIpRequest;
use crate::objects::network::Network;
use crate::objects::port::{NewPort, Port};
use crate::objects::router::{self, Role, Router, RouterPort};
use crate::objects::subnet::Subnet;
use crate::objects::{Changes, port_forwarding, security_group};
use crate::values;

/// What a request names: a subnet, a port, or (on removal) both.
#[derive(Clone, Copy, Debug, Default)]
struct Named {
    subnet: Option<SubnetId>,
    port: Option<PortId>,
}

impl Named {
    fn read(json: &Object) -> Result<Self, ApiError> {
        let id = |key: &str| -> Result<Option<String>, ApiError> {
            let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
            let bad =
                || ApiError::bad_router(format!("'{}' is not a valid UUID", crate::attributes::kind::shown(value)));
            let id = Kind::Uuid.convert(value).map_err(|_| bad())?;
            Ok(id.as_str().map(str::to_owned))
        };
        let named = Self {
            subnet: id("subnet_id")?.and_then(|id| id.parse().ok()),
            port: id("port_id")?.and_then(|id| id.parse().ok()),
        };
        if named.subnet.is_none() && named.port.is_none() {
            return Err(ApiError::bad_router("Either subnet_id or port_id must be specified"));
        }
        Ok(named)
    }
}

/// Gives a router an interface.
///
/// # Errors
///
/// When the subnet overlaps one that the router has, or the port is somebody else's.
pub fn add(call: Call<'_>, id: &str, json: &Object) -> Result<Json, ApiError> {
    writable(call, &routers::Routers, id, "add_router_interface")?;
    let router = Router::get(call.tx, parse_id(&routers::Routers, id)?)?;
    match Named::read(json)? {
        Named { subnet: Some(_), port: Some(_) } => {
            Err(ApiError::bad_router("Cannot specify both subnet-id and port-id"))
        }
        Named { port: Some(port), .. } => add_port(call, &router, port),
        Named { subnet, .. } => {
            add_subnet(call, &router, subnet.ok_or_else(|| ApiError::internal("neither a subnet nor a port"))?)
        }
    }
}

fn add_subnet(call: Call<'_>, router: &Router, id: SubnetId) -> Result<Json, ApiError> {
    must_see(call, &subnets::Subnets, &id.to_string())?;
    let subnet = Subnet::get(call.tx, id)?;
    let Some(gateway) = subnet.gateway_ip else {
        return Err(ApiError::bad_router("Subnet for router interface must have a gateway IP"));
    };
    if subnet.ip_version == 6 && subnet.ipv6_ra_mode.is_none() && subnet.ipv6_address_mode.is_some() {
        let reason = format!(
            "IPv6 subnet {id} configured to receive RAs from an external router cannot be added to Neutron Router."
        );
        return Err(ApiError::bad_router(reason));
    }
    // Everybody sees an external subnet, but an interface there would take the outside router's address.
    ports::refuse_plain_external(call, &Network::get(call.tx, subnet.network_id)?)?;
    refuse_overlaps(call, router, std::slice::from_ref(&subnet))?;
    let request = FixedIpRequest { subnet_id: Some(id), ip_address: Some(gateway) };
    // Neutron keeps all IPv6 prefixes of a network on one port of the router.
    if subnet.ip_version == 6
        && let Some(mut port) = ipv6_port(call, router, &subnet)?
    {
        let mut requests = requests_of(&port);
        requests.push(request);
        port.change_fixed_ips(call.tx, &requests)?;
        return finish_add(call, router, &port, &[subnet]);
    }
    let (device, host) = (router.id.to_string(), ha::interface_host(call.tx, router)?);
    let new = NewPort {
        project_id: &router.project_id,
        host_id: &host,
        fixed_ips: Some(&[request]),
        ..NewPort::device(subnet.network_id, ha::interface_owner(router), &device)
    };
    let port = Port::create(call.tx, call.options, &new)?;
    attach(call, router, &port)?;
    finish_add(call, router, &port, &[subnet])
}

fn add_port(call: Call<'_>, router: &Router, id: PortId) -> Result<Json, ApiError> {
    let port = routers::port_of(call, id)?;
    if !port.device_id.is_empty() || router::of_port(call.tx, id)?.is_some() {
        let (id, network) = (id.to_string(), port.network_id.to_string());
        return Err(ApiError::PortInUse { id, network, device: port.device_id });
    }
    if port.fixed_ips.is_empty() {
        return Err(ApiError::bad_router("Router port must have at least one fixed IP"));
    }
    let ids: Vec<String> = port.fixed_ips.iter().map(|fixed| fixed.subnet_id.to_string()).collect();
    let subnets = Subnet::many(call.tx, &ids)?;
    if subnets.iter().filter(|subnet| subnet.ip_version == 4).count() > 1 {
        return Err(ApiError::bad_router("Cannot have multiple IPv4 subnets on router port"));
    }
    if let Some(v6) = subnets.iter().find(|subnet| subnet.ip_version == 6)
        && let Some(existing) = ipv6_port(call, router, v6)?
    {
        let (existing, network) = (existing.id, port.network_id);
        return Err(ApiError::bad_router(format!(
            "Cannot have multiple router ports with the same network id if both contain IPv6 subnets. Existing port \
             {existing} has IPv6 subnet(s) and network id {network}"
        )));
    }
    refuse_overlaps(call, router, &subnets)?;
    attach(call, router, &port)?;
    let mut changes = Changes::default();
    changes.set("device_id", Some(router.id));
    changes.set("device_owner", Some(ha::interface_owner(router)));
    changes.set("port_security_enabled", Some(false));
    changes.set("host_id", Some(ha::interface_host(call.tx, router)?));
    changes.write(call.tx, "ports", port.id)?;
    security_group::set_of_port(call.tx, port.id, &[])?;
    finish_add(call, router, &port, &subnets)
}

fn attach(call: Call<'_>, router: &Router, port: &Port) -> Result<(), ApiError> {
    let (port_id, network_id) = (port.id, port.network_id);
    router::attach(call.tx, &RouterPort { router_id: router.id, port_id, network_id, role: Role::Interface })?;
    Ok(())
}

fn finish_add(call: Call<'_>, router: &Router, port: &Port, subnets: &[Subnet]) -> Result<Json, ApiError> {
    for subnet in subnets {
        let sql = "INSERT INTO router_subnets (router_id, subnet_id, port_id) VALUES (?1, ?2, ?3)";
        call.tx.execute(sql, &values![router.id, subnet.id, port.id])?;
    }
    port.note(call.tx)?;
    router.note(call.tx)?;
    Ok(answer(router, port, subnets))
}

fn answer(router: &Router, port: &Port, subnets: &[Subnet]) -> Json {
    let ids: Vec<SubnetId> = subnets.iter().map(|subnet| subnet.id).collect();
    json!({
        "id": router.id,
        "tenant_id": port.project_id,
        "project_id": port.project_id,
        "port_id": port.id,
        "network_id": port.network_id,
        "subnet_id": ids.last(),
        "subnet_ids": ids,
    })
}

/// Takes an interface from a router.
///
/// # Errors
///
/// When there is none, or floating IPs or routes need it.
pub fn remove(call: Call<'_>, id: &str, json: &Object) -> Result<Json, ApiError> {
    writable(call, &routers::Routers, id, "remove_router_interface")?;
    let router = Router::get(call.tx, parse_id(&routers::Routers, id)?)?;
    let named = Named::read(json)?;
    let (mut port, subnets) = match named {
        Named { port: Some(port), subnet } => by_port(call, &router, port, subnet)?,
        Named { subnet, .. } => {
            by_subnet(call, &router, subnet.ok_or_else(|| ApiError::internal("neither a subnet nor a port"))?)?
        }
    };
    for subnet in &subnets {
        refuse_if_needed(call, &router, subnet)?;
        let sql = "DELETE FROM router_subnets WHERE router_id = ?1 AND subnet_id = ?2";
        call.tx.execute(sql, &values![router.id, subnet.id])?;
    }
    let left: Vec<FixedIpRequest> =
        requests_of(&port).into_iter().filter(|r| !subnets.iter().any(|s| r.subnet_id == Some(s.id))).collect();
    if left.is_empty() {
        port.delete(call.tx)?;
    } else {
        port.change_fixed_ips(call.tx, &left)?;
    }
    router.note(call.tx)?;
    Ok(answer(&router, &port, &subnets))
}

fn by_port(
    call: Call<'_>,
    router: &Router,
    id: PortId,
    subnet: Option<SubnetId>,
) -> Result<(Port, Vec<Subnet>), ApiError> {
    let attached = router.ports(call.tx, Role::Interface)?.iter().any(|port| port.port_id == id);
    if !attached {
        return Err(ApiError::RouterInterfaceNotFound { id: router.id.to_string(), port: id.to_string() });
    }
    let port = Port::get(call.tx, id)?;
    if let Some(subnet) = subnet
        && !port.fixed_ips.iter().any(|fixed| fixed.subnet_id == subnet)
    {
        return Err(ApiError::SubnetMismatchForPort { port: id.to_string(), subnet: subnet.to_string() });
    }
    let ids: Vec<String> = port.fixed_ips.iter().map(|fixed| fixed.subnet_id.to_string()).collect();
    let subnets = Subnet::many(call.tx, &ids)?;
    Ok((port, subnets))
}

fn by_subnet(call: Call<'_>, router: &Router, id: SubnetId) -> Result<(Port, Vec<Subnet>), ApiError> {
    must_see(call, &subnets::Subnets, &id.to_string())?;
    let port = router.subnets(call.tx)?.into_iter().find(|(subnet, _)| *subnet == id).map(|(_, port)| port);
    let port = port.ok_or_else(|| ApiError::RouterInterfaceNotFoundForSubnet {
        id: router.id.to_string(),
        subnet: id.to_string(),
    })?;
    Ok((Port::get(call.tx, port)?, vec![Subnet::get(call.tx, id)?]))
}

fn refuse_if_needed(call: Call<'_>, router: &Router, subnet: &Subnet) -> Result<(), ApiError> {
    let (id, subnet_id) = (router.id.to_string(), subnet.id.to_string());
    let sql = "SELECT fixed_ip_address FROM floating_ips WHERE router_id = ?1 AND fixed_ip_address IS NOT NULL";
    let translated: Vec<std::net::IpAddr> = call.tx.query(sql, &values![router.id], |row| row.parse(0))?;
    let forwarded = port_forwarding::addresses_behind(call.tx, router.id)?.into_iter().map(Into::into);
    if translated.into_iter().chain(forwarded).any(|ip| subnet.cidr.contains(&ip)) {
        return Err(ApiError::RouterInterfaceInUseByFloatingIP { id, subnet: subnet_id });
    }
    if routers::routes_need(call, router, subnet.cidr)? {
        return Err(ApiError::RouterInterfaceInUseByRoute { id, subnet: subnet_id });
    }
    Ok(())
}

/// Refuses subnets that the router has already, or that overlap one that it has.
pub(super) fn refuse_overlaps(call: Call<'_>, router: &Router, new: &[Subnet]) -> Result<(), ApiError> {
    for old in connected(call, router)? {
        for subnet in new {
            if subnet.id == old.id {
                return Err(ApiError::bad_router(format!("Router already has a port on subnet {}", subnet.id)));
            }
            if subnet.cidr.contains(&old.cidr.network()) || old.cidr.contains(&subnet.cidr.network()) {
                return Err(ApiError::bad_router(format!(
                    "Cidr {} of subnet {} overlaps with cidr {} of subnet {}",
                    subnet.cidr, subnet.id, old.cidr, old.id
                )));
            }
        }
    }
    Ok(())
}

/// The subnets of the router's interfaces, and all of its external network's.
fn connected(call: Call<'_>, router: &Router) -> Result<Vec<Subnet>, ApiError> {
    Ok(Subnet::of_router(call.tx, router.id)?)
}

/// The router's port on the subnet's network that has IPv6 addresses already.
fn ipv6_port(call: Call<'_>, router: &Router, subnet: &Subnet) -> Result<Option<Port>, ApiError> {
    let ports = router.ports(call.tx, Role::Interface)?;
    let ids: Vec<String> =
        ports.iter().filter(|port| port.network_id == subnet.network_id).map(|port| port.port_id.to_string()).collect();
    let has_v6 = |port: &Port| port.fixed_ips.iter().any(|fixed| fixed.ip_address.is_ipv6());
    Ok(Port::many(call.tx, &ids)?.into_iter().find(has_v6))
}

fn requests_of(port: &Port) -> Vec<FixedIpRequest> {
    let request = |fixed: &crate::ipam::FixedIp| FixedIpRequest {
        subnet_id: Some(fixed.subnet_id),
        ip_address: Some(fixed.ip_address),
    };
    port.fixed_ips.iter().map(request).collect()
}
