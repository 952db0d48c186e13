//! Ports, as users make them; those of routers and floating IPs are made by their own resources.

use std::collections::BTreeSet;

use evergate_model::{Mac, NetworkId, PortId};
use serde_json::{Value as Json, json};

use super::{Call, Resource, networks, object, parse_id, rbac_policies, security_groups, standard, visible};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Part, Table};
use crate::error::ApiError;
use crate::ipam::{FixedIp, FixedIpRequest};
use crate::objects::dhcp_options::{self, DhcpOption};
use crate::objects::network::Network;
use crate::objects::port::{self, NewPort, Port, owner};
use crate::objects::{Changes, floating_ip, port_forwarding, router, security_group, tags};
use crate::policy::{Rule, Target};
use crate::values;

/// The resource `ports`.
#[derive(Clone, Copy, Debug)]
pub struct Ports;

const VNIC_TYPES: Kind = Kind::Words(&[
    "normal",
    "direct",
    "macvtap",
    "baremetal",
    "direct-physical",
    "virtio-forwarder",
    "smart-nic",
    "accelerator-direct",
    "accelerator-direct-physical",
    "remote-managed",
    "vdpa",
]);

static TABLE: Table = Table {
    singular: "port",
    plural: "ports",
    sql: "ports",
    bulk: true,
    tagged: true,
    create: Rule::MemberOrService,
    get: Rule::ReaderOrNetworkOwner,
    update: Rule::MemberOrService,
    delete: Rule::Unplugs,
    scope: "t.project_id = ?1 OR EXISTS (SELECT 1 FROM networks n WHERE n.id = t.network_id AND n.project_id = ?1)",
    attributes: &[
        attributes::ID,
        attributes::NAME,
        attributes::DESCRIPTION,
        attributes::ADMIN_STATE_UP,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        Attribute { post: true, absent: Absent::EmptyList, ..attributes::TAGS },
        Attribute::new("status", Kind::Computed).column("t.status"),
        Attribute::new("network_id", Kind::Uuid).post(Absent::Required).column("t.network_id"),
        Attribute::new("mac_address", Kind::MacOrNull)
            .post(Absent::Null)
            .put()
            .set_by(Rule::NetworkOwnerOrService)
            .updated_by(Rule::NetworkManagerOrService)
            .column("t.mac_address"),
        Attribute::new("fixed_ips", Kind::FixedIps)
            .post(Absent::Unset)
            .put()
            .set_by(Rule::NetworkOwnerOrShared)
            .updated_by(Rule::NetworkOwnerOrService)
            .parts(&[
                Part::new("subnet_id", Rule::NetworkOwnerOrShared),
                Part::new("ip_address", Rule::NetworkOwnerOrService),
            ])
            .filter(Filter::FixedIps),
        Attribute::new("device_id", Kind::Text(255)).post(Absent::Text("")).put().column("t.device_id"),
        Attribute::new("device_owner", Kind::Text(255))
            .post(Absent::Text(""))
            .put()
            .set_by(Rule::NotNetworkDevice)
            .column("t.device_owner"),
        Attribute::new("allowed_address_pairs", Kind::AddressPairs)
            .post(Absent::EmptyList)
            .put()
            .set_by(Rule::NetworkOwnerOrService),
        Attribute::new("port_security_enabled", Kind::Bool)
            .post(Absent::Unset)
            .put()
            .set_by(Rule::NetworkOwnerOrService),
        Attribute::new("security_groups", Kind::Uuids).post(Absent::Unset).put().filter(Filter::Exists(
            "EXISTS (SELECT 1 FROM port_security_groups b WHERE b.port_id = t.id AND b.security_group_id IN ({}))",
        )),
        Attribute::new("extra_dhcp_opts", Kind::DhcpOptions).post(Absent::EmptyList).put(),
        Attribute::new("binding:host_id", Kind::TextOrNull(255))
            .post(Absent::Text(""))
            .put()
            .only(Rule::AdminOrService)
            .filter(Filter::Column("t.host_id")),
        Attribute::new("binding:profile", Kind::Dict)
            .post(Absent::Unset)
            .put()
            .set_by(Rule::Service)
            .seen_by(Rule::AdminOrService),
        Attribute::new("binding:vnic_type", VNIC_TYPES).post(Absent::Text("normal")).put(),
        Attribute::new("binding:vif_type", Kind::Computed).seen_by(Rule::AdminOrService),
        Attribute::new("binding:vif_details", Kind::Computed).seen_by(Rule::AdminOrService),
    ],
};

impl Resource for Ports {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::PortNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (ports, l2_hosts) = (Port::ask_many(call.tx, ids)?, port::l2_hosts(call.tx)?);
        let (tags, groups) = (tags::of_many(call.tx, ids)?, security_group::of_ports(call.tx, ids)?);
        let mut dhcp_options = dhcp_options::of_ports(call.tx, ids)?.read()?;
        let (mut tags, mut groups, l2_hosts) = (tags.read()?, groups.read()?, l2_hosts.read()?);
        let ports = ports.read()?.into_iter().map(|port| {
            let mut shown = show(&port, &l2_hosts);
            shown.insert("security_groups".into(), json!(groups.remove(&port.id).unwrap_or_default()));
            shown.insert("extra_dhcp_opts".into(), json!(dhcp_options.remove(&port.id).unwrap_or_default()));
            standard(&mut shown, &port.standard, tags.remove(&port.id.to_string()));
            shown
        });
        Ok(ports.collect())
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
        let project_id: String = body.need("project_id")?;
        let default_group = security_group::ask_default_of(call.tx, &project_id)?;
        let network = Network::get(call.tx, body.need::<NetworkId>("network_id")?)?;
        let default_group = default_group.read()?;
        refuse_plain_external(call, &network)?;
        let fixed_ips = requested_ips(call, body)?;
        let device_owner: String = body.need("device_owner")?;
        let (pairs, secured) = security(call, body, network.port_security_enabled, &json!([]))?;
        let secured = secured && !is_trusted(&device_owner);
        let groups = groups_of_new(call, body, secured, default_group)?;
        let host_id = body.get::<Option<String>>("binding:host_id")?.flatten().unwrap_or_default();
        let (name, description): (String, String) = (body.need("name")?, body.need("description")?);
        let device_id: String = body.need("device_id")?;
        let new = NewPort {
            project_id: &project_id,
            network_id: network.id,
            name: &name,
            description: &description,
            mac_address: body.get::<Option<Mac>>("mac_address")?.flatten(),
            admin_state_up: body.need("admin_state_up")?,
            status: "DOWN",
            device_id: &device_id,
            device_owner: &device_owner,
            port_security_enabled: secured,
            host_id: &host_id,
            vnic_type: &body.need::<String>("binding:vnic_type")?,
            binding_profile: body.json("binding:profile").unwrap_or(&json!({})).to_string(),
            allowed_address_pairs: pairs.to_string(),
            fixed_ips: fixed_ips.as_deref(),
        };
        let port = Port::create(call.tx, call.options, &new)?;
        for tag in body.need::<Vec<String>>("tags")? {
            tags::add(call.tx, &port.id.to_string(), &tag)?;
        }
        security_group::put_port_in(call.tx, port.id, &groups)?;
        dhcp_options::change(call.tx, port.id, &body.need::<Vec<DhcpOption>>("extra_dhcp_opts")?)?;
        Ok(port.id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let mut port = Port::get(call.tx, parse_id(self, id)?)?;
        refuse_changes_of_router_port(call, &port, body)?;
        let mut changes = Changes::default();
        let mut requests = requested_ips(call, body)?;
        if let Some(mac) = new_mac(call, &port, body)? {
            changes.set("mac_address", Some(mac));
            let made = port.change_mac(call.tx, mac)?;
            if !made.is_empty() && requests.is_none() {
                let exact =
                    |ip: &FixedIp| FixedIpRequest { subnet_id: Some(ip.subnet_id), ip_address: Some(ip.ip_address) };
                let any = |subnet| FixedIpRequest { subnet_id: Some(subnet), ip_address: None };
                requests = Some(port.fixed_ips.iter().map(exact).chain(made.into_iter().map(any)).collect());
            }
        }
        changes.set("name", body.get::<String>("name")?);
        changes.set("description", body.get::<String>("description")?);
        changes.set("admin_state_up", body.get::<bool>("admin_state_up")?);
        changes.set("device_id", body.get::<String>("device_id")?);
        changes.set("device_owner", body.get::<String>("device_owner")?);
        let (pairs, secured) = security(call, body, port.port_security_enabled, &port.allowed_address_pairs)?;
        change_groups(call, &port, body, secured)?;
        if let Some(options) = body.get::<Vec<DhcpOption>>("extra_dhcp_opts")? {
            dhcp_options::change(call.tx, port.id, &options)?;
        }
        changes.set("allowed_address_pairs", Some(pairs.to_string()));
        changes.set("port_security_enabled", Some(secured));
        changes.set("vnic_type", body.get::<String>("binding:vnic_type")?);
        changes.set("binding_profile", body.json("binding:profile").map(Json::to_string));
        if let Some(host) = body.get::<Option<String>>("binding:host_id")? {
            let host = host.unwrap_or_default();
            // Nobody has said yet that the port is up over there.
            changes.set("status", (host != port.host_id && port.status == "ACTIVE").then_some("DOWN"));
            changes.set("host_id", Some(host));
        }
        changes.write(call.tx, "ports", port.id)?;
        if let Some(requests) = requests {
            port.change_fixed_ips(call.tx, &requests)?;
            floating_ip::disassociate(call.tx, port.id, |ip| !port.has_ip(ip.into()))?;
            port_forwarding::end(call.tx, port.id, |ip| !port.has_ip(ip.into()))?;
        }
        Ok(port.note(call.tx)?)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let port = Port::get(call.tx, parse_id(self, id)?)?;
        refuse_service_port(call, &port)?;
        port.delete(call.tx)
    }
}

fn show(port: &Port, l2_hosts: &BTreeSet<String>) -> Object {
    let vif_type = match port.host_id.as_str() {
        _ if port.device_owner == owner::DISTRIBUTED => "distributed",
        "" => "unbound",
        host if l2_hosts.contains(host) => "bridge",
        // No L2 agent has reported from there, so nothing would plug the port in.
        _ => "binding_failed",
    };
    // Nothing filters by port yet, and no hypervisor shall think so.
    let vif_details = match vif_type {
        "bridge" => json!({"connectivity": "l2", "port_filter": false, "bound_drivers": {"0": "linuxbridge"}}),
        _ => json!({}),
    };
    object(json!({
        "id": port.id,
        "project_id": port.project_id,
        "network_id": port.network_id,
        "name": port.name,
        "description": port.description,
        "mac_address": port.mac_address,
        "admin_state_up": port.admin_state_up,
        "status": port.status,
        "device_id": port.device_id,
        "device_owner": port.device_owner,
        "fixed_ips": port.fixed_ips,
        "allowed_address_pairs": shown_pairs(port),
        "port_security_enabled": port.port_security_enabled,
        "binding:host_id": port.host_id,
        "binding:profile": port.binding_profile,
        "binding:vnic_type": port.vnic_type,
        "binding:vif_type": vif_type,
        "binding:vif_details": vif_details,
    }))
}

/// Members use an external network through routers and floating IPs, not with ports of their own.
pub(super) fn refuse_plain_external(call: Call<'_>, network: &Network) -> Result<(), ApiError> {
    let owns = call.ctx.project_id.as_deref() == Some(network.project_id.as_str());
    if !network.external || call.ctx.is_admin || owns {
        return Ok(());
    }
    if rbac_policies::shared_with_caller(call, &[network.id.to_string()])?.read()?.is_empty() {
        let message = "It is not allowed to create ports on external network".to_owned();
        return Err(ApiError::HTTPForbidden { message });
    }
    Ok(())
}

/// Reads `fixed_ips`.
fn requested_ips(call: Call<'_>, body: &Body) -> Result<Option<Vec<FixedIpRequest>>, ApiError> {
    let Some(requests) = body.get::<Vec<FixedIpRequest>>("fixed_ips")? else { return Ok(None) };
    let max = call.options.max_fixed_ips_per_port;
    if requests.len() > max {
        return Err(ApiError::invalid(format!("Exceeded maximum amount of fixed ips per port: {max}")));
    }
    Ok(Some(requests))
}

/// Reads address pairs and port security together: pairs mean nothing on a port without security.
fn security(call: Call<'_>, body: &Body, secured: bool, pairs: &Json) -> Result<(Json, bool), ApiError> {
    let secured = body.get::<bool>("port_security_enabled")?.unwrap_or(secured);
    let pairs = body.json("allowed_address_pairs").unwrap_or(pairs).clone();
    let count = pairs.as_array().map_or(0, Vec::len);
    if count > call.options.max_allowed_address_pair {
        let quota = call.options.max_allowed_address_pair.to_string();
        return Err(ApiError::AllowedAddressPairExhausted { quota });
    }
    if count > 0 && !secured {
        return Err(ApiError::AddressPairAndPortSecurityRequired {});
    }
    Ok((pairs, secured))
}

/// Ports of the network's own devices are never filtered.
fn is_trusted(device_owner: &str) -> bool {
    device_owner.starts_with("network:")
}

/// Which groups a new port is in: those that were asked for, or else its project's default one.
fn groups_of_new(call: Call<'_>, body: &Body, secured: bool, default: Option<String>) -> Result<Vec<String>, ApiError> {
    let project: String = body.need("project_id")?;
    match (body.get::<Vec<String>>("security_groups")?, default) {
        (Some(groups), _) if !secured && !groups.is_empty() => {
            Err(ApiError::PortSecurityAndIPRequiredForSecurityGroups {})
        }
        (Some(groups), _) => check_groups(call, groups),
        (None, _) if !secured || project.is_empty() => Ok(Vec::new()),
        (None, Some(default)) => Ok(vec![default]),
        (None, None) => Ok(vec![security_group::make_default(call.tx, &project)?]),
    }
}

fn check_groups(call: Call<'_>, groups: Vec<String>) -> Result<Vec<String>, ApiError> {
    let mut stateful = BTreeSet::new();
    for group in &groups {
        let group = visible(call, &security_groups::SecurityGroups, group)?;
        stateful.extend(group.get("stateful").and_then(Json::as_bool));
    }
    if stateful.len() > 1 {
        let reason = "Cannot apply both stateful and stateless security groups on the same port at the same time";
        return Err(ApiError::SecurityGroupConflict { reason: reason.to_owned() });
    }
    Ok(groups)
}

fn change_groups(call: Call<'_>, port: &Port, body: &Body, secured: bool) -> Result<(), ApiError> {
    let given = body.get::<Vec<String>>("security_groups")?;
    if !secured {
        let has = security_group::of_ports(call.tx, &[port.id.to_string()])?.read()?.remove(&port.id);
        return match (given, has) {
            (Some(groups), _) if !groups.is_empty() => Err(ApiError::PortSecurityAndIPRequiredForSecurityGroups {}),
            (None, Some(_)) => Err(ApiError::PortSecurityPortHasSecurityGroup {}),
            (Some(_), _) => Ok(security_group::set_of_port(call.tx, port.id, &[])?),
            (None, _) => Ok(()),
        };
    }
    match given {
        Some(groups) => Ok(security_group::set_of_port(call.tx, port.id, &check_groups(call, groups)?)?),
        None => Ok(()),
    }
}

/// A pair without an address of its own on the link has the port's.
fn shown_pairs(port: &Port) -> Json {
    let mut pairs = port.allowed_address_pairs.clone();
    for pair in pairs.as_array_mut().into_iter().flatten() {
        if pair.get("mac_address").is_none() {
            pair["mac_address"] = json!(port.mac_address);
        }
    }
    pairs
}

fn new_mac(call: Call<'_>, port: &Port, body: &Body) -> Result<Option<Mac>, ApiError> {
    let mac = match body.get::<Option<Mac>>("mac_address")? {
        None => return Ok(None),
        // Another one of the server's choice.
        Some(None) => port::free_mac(call.tx, call.options, port.network_id)?,
        Some(Some(mac)) => mac,
    };
    if mac == port.mac_address {
        return Ok(None);
    }
    if !port.host_id.is_empty() {
        let (old_mac, new_mac) = (port.mac_address.to_string(), mac.to_string());
        return Err(ApiError::PortBound { id: port.id.to_string(), vif_type: "bridge".into(), old_mac, new_mac });
    }
    if port::mac_is_taken(call.tx, port.network_id, mac)? {
        return Err(ApiError::MacAddressInUse { network: port.network_id.to_string(), mac: mac.to_string() });
    }
    Ok(Some(mac))
}

/// What a router's port is and where it is follows from the router.
fn refuse_changes_of_router_port(call: Call<'_>, port: &Port, body: &Body) -> Result<(), ApiError> {
    let fixed = ["fixed_ips", "device_id", "device_owner", "binding:host_id", "mac_address"];
    let kept = body.get::<Vec<FixedIpRequest>>("fixed_ips")?.is_some_and(|requests| has_these(port, &requests));
    let changed = |name: &&str| body.has(name) && !(kept && *name == "fixed_ips");
    let Some(name) = fixed.into_iter().find(changed) else { return Ok(()) };
    if is_owned(call, port.id)? {
        let reason =
            format!("{name} of port {} follows from the router, floating IP or host that it belongs to", port.id);
        return Err(ApiError::BadRequest { resource: "port".into(), reason });
    }
    Ok(())
}

/// Tells whether the port's addresses are just those that are asked for; of a subnet, one is as good as another.
fn has_these(port: &Port, requests: &[FixedIpRequest]) -> bool {
    let mut left = port.fixed_ips.clone();
    // Those with an address come first, so that a request for a subnet alone does not take it away from them.
    let (exact, any): (Vec<&FixedIpRequest>, Vec<&FixedIpRequest>) =
        requests.iter().partition(|request| request.ip_address.is_some());
    let found = exact.into_iter().chain(any).all(|request| {
        let fits = |ip: &FixedIp| {
            request.subnet_id.is_none_or(|subnet| subnet == ip.subnet_id)
                && request.ip_address.is_none_or(|address| address == ip.ip_address)
        };
        left.iter().position(fits).map(|at| left.remove(at)).is_some()
    });
    found && left.is_empty()
}

fn refuse_service_port(call: Call<'_>, port: &Port) -> Result<(), ApiError> {
    if is_owned(call, port.id)? {
        let reason = format!("has device owner {}", port.device_owner);
        return Err(ApiError::ServicePortInUse { id: port.id.to_string(), reason });
    }
    Ok(())
}

/// Tells whether a router, a floating IP or a host owns the port.
fn is_owned(call: Call<'_>, port: PortId) -> Result<bool, ApiError> {
    let floating_ip = "SELECT count(*) FROM floating_ips WHERE floating_port_id = ?1";
    let agent_gateway = "SELECT count(*) FROM agent_gateway_ports WHERE port_id = ?1";
    let is = |sql: &str| Ok::<_, ApiError>(call.tx.count(sql, &values![port])? > 0);
    Ok(router::of_port(call.tx, port)?.is_some() || is(floating_ip)? || is(agent_gateway)?)
}
