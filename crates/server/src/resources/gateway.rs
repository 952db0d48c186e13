//! A router's external gateway: the port that leads it out.

use evergate_model::NetworkId;
use serde::Deserialize;

use super::{Call, interfaces, must_see, networks};
use crate::attributes::Body;
use crate::error::ApiError;
use crate::ha;
use crate::ipam::FixedIpRequest;
use crate::objects::network::Network;
use crate::objects::port::{NewPort, Port, owner};
use crate::objects::router::{self, Role, Router, RouterPort};
use crate::objects::subnet::Subnet;
use crate::values;

/// `external_gateway_info`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GatewayInfo {
    /// The external network.
    pub network_id: NetworkId,
    /// Source NAT for instances without a floating IP.
    pub enable_snat: Option<bool>,
    /// Addresses there.
    pub external_fixed_ips: Option<Vec<FixedIpRequest>>,
}

impl GatewayInfo {
    /// Reads it from a body: `None` where it is not mentioned, `Some(None)` where there shall be none.
    ///
    /// # Errors
    ///
    /// Never but for our own mistakes.
    pub fn read(body: &Body) -> Result<Option<Option<Self>>, ApiError> {
        body.get("external_gateway_info")
    }
}

/// Sets, changes or (`None`) clears a router's gateway.
///
/// # Errors
///
/// When floating IPs need the old one, or the new one cannot be.
pub fn set(call: Call<'_>, router: &Router, info: Option<&GatewayInfo>) -> Result<(), ApiError> {
    let current = router.gateway(call.tx)?;
    if let Some(info) = info {
        check(call, info)?;
    }
    match (current, info) {
        (Some(port), Some(info)) if port.network_id == info.network_id => change_addresses(call, router, &port, info)?,
        (current, info) => {
            if let Some(port) = current {
                remove(call, router, &port)?;
            }
            if let Some(info) = info {
                add(call, router, info)?;
            }
        }
    }
    // Without a gateway the setting falls back, so that a later gateway starts as any other.
    let snat = info.and_then(|info| info.enable_snat).unwrap_or(call.options.enable_snat_by_default);
    call.tx.execute("UPDATE routers SET enable_snat = ?2 WHERE id = ?1", &values![router.id, snat])?;
    if current.is_some() || info.is_some() {
        call.tx.changed(crate::store::Kind::Router, router.id);
    }
    Ok(())
}

fn check(call: Call<'_>, info: &GatewayInfo) -> Result<(), ApiError> {
    must_see(call, &networks::Networks, &info.network_id.to_string())?;
    let network = Network::get(call.tx, info.network_id)?;
    if !network.external {
        return Err(ApiError::bad_router(format!("Network {} is not an external network", network.id)));
    }
    let wanted: Vec<_> = info.external_fixed_ips.iter().flatten().filter_map(|fixed| fixed.ip_address).collect();
    for subnet in Subnet::of_network(call.tx, network.id)? {
        if let Some(ip) = subnet.gateway_ip.filter(|gateway| wanted.contains(gateway)) {
            return Err(ApiError::bad_router(format!("External IP {ip} is the same as the gateway IP")));
        }
    }
    Ok(())
}

fn add(call: Call<'_>, router: &Router, info: &GatewayInfo) -> Result<(), ApiError> {
    let subnets = Subnet::of_network(call.tx, info.network_id)?;
    interfaces::refuse_overlaps(call, router, &subnets)?;
    let (device, host) = (router.id.to_string(), ha::current_host(call.tx, router)?);
    let new = NewPort {
        host_id: &host,
        fixed_ips: info.external_fixed_ips.as_deref().filter(|ips| !ips.is_empty()),
        // The port belongs to no project: users see the router's gateway, not its port.
        ..NewPort::device(info.network_id, owner::GATEWAY, &device)
    };
    let port = Port::create(call.tx, call.options, &new)?;
    let (port_id, network_id) = (port.id, port.network_id);
    router::attach(call.tx, &RouterPort { router_id: router.id, port_id, network_id, role: Role::Gateway })?;
    Ok(())
}

fn change_addresses(call: Call<'_>, router: &Router, current: &RouterPort, info: &GatewayInfo) -> Result<(), ApiError> {
    let Some(requests) = info.external_fixed_ips.as_deref().filter(|ips| !ips.is_empty()) else { return Ok(()) };
    let mut port = Port::get(call.tx, current.port_id)?;
    let before = port.fixed_ips.clone();
    port.change_fixed_ips(call.tx, requests)?;
    for gone in before.iter().filter(|fixed| !port.fixed_ips.contains(fixed)) {
        let subnet = Subnet::get(call.tx, gone.subnet_id)?;
        let still_there = port.fixed_ips.iter().any(|fixed| fixed.subnet_id == subnet.id);
        if !still_there && super::routers::routes_need(call, router, subnet.cidr)? {
            let (id, subnet) = (router.id.to_string(), subnet.id.to_string());
            return Err(ApiError::RouterInterfaceInUseByRoute { id, subnet });
        }
    }
    Ok(())
}

fn remove(call: Call<'_>, router: &Router, current: &RouterPort) -> Result<(), ApiError> {
    let sql = "SELECT count(*) FROM floating_ips WHERE router_id = ?1";
    if call.tx.count(sql, &values![router.id])? > 0 {
        let (id, network) = (router.id.to_string(), current.network_id.to_string());
        return Err(ApiError::RouterExternalGatewayInUseByFloatingIp { id, network });
    }
    let port = Port::get(call.tx, current.port_id)?;
    drop_routes_through(call, router, &port)?;
    port.delete(call.tx)
}

/// Extra routes by way of the external network end with the gateway: they lead nowhere without it.
fn drop_routes_through(call: Call<'_>, router: &Router, port: &Port) -> Result<(), ApiError> {
    let mut routes = router.routes(call.tx)?;
    let count = routes.len();
    for fixed in &port.fixed_ips {
        let subnet = Subnet::get(call.tx, fixed.subnet_id)?;
        routes.retain(|route| !subnet.cidr.contains(&route.nexthop));
    }
    if routes.len() != count {
        router.set_routes(call.tx, &routes)?;
    }
    Ok(())
}
