//! Port forwardings, below `/v2.0/floatingips/<id>/port_forwardings`.
//!
//! A floating IP with port forwardings leads to no port of its own; it is on the router that all of its
//! forwardings go through (`router_id`), and leaves it with the last one.

use std::net::{IpAddr, Ipv4Addr};

use evergate_model::{PortForwardingId, PortId, RouterId};
use serde_json::{Value as Json, json};

use super::floating_ips::{self, FloatingIps};
use super::{Call, Resource, must_see, object, parse_id, ports};
use crate::attributes::query::Condition;
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::floating_ip::FloatingIp;
use crate::objects::port::Port;
use crate::objects::port_forwarding::{self, PortForwarding, Range};
use crate::policy::{Rule, Target};
use crate::random;
use crate::store::Value;

/// The resource `port_forwardings` of one floating IP.
#[derive(Clone, Debug)]
pub struct PortForwardings {
    floating_ip: FloatingIp,
}

/// Protocols with ports that the kernel translates.
const PROTOCOLS: Kind = Kind::Words(&["tcp", "udp", "sctp", "dccp"]);

/// Its names, attributes and rules.
pub static TABLE: Table = Table {
    singular: "port_forwarding",
    plural: "port_forwardings",
    sql: "port_forwardings",
    bulk: false,
    tagged: false,
    create: Rule::Member,
    get: Rule::Reader,
    update: Rule::Member,
    delete: Rule::Member,
    scope: "EXISTS (SELECT 1 FROM floating_ips f WHERE f.id = t.floating_ip_id AND f.project_id = ?1)",
    attributes: &[
        attributes::ID,
        Attribute::new("project_id", Kind::Text(255)).post(Absent::Required).seen_by(Rule::Nobody),
        attributes::DESCRIPTION,
        Attribute::new("internal_port_id", Kind::Uuid).post(Absent::Required).put().column("t.internal_port_id"),
        Attribute::new("internal_ip_address", Kind::IpOrNull).post(Absent::Null).put().column("t.internal_ip_address"),
        Attribute::new("protocol", PROTOCOLS).post(Absent::Required).put().column("t.protocol"),
        Attribute::new("external_port", Kind::PortNumber)
            .post(Absent::Unset)
            .put()
            .sort("t.external_port_start")
            .filter(Filter::Column(
                "(CASE WHEN t.external_port_start = t.external_port_end THEN t.external_port_start END)",
            )),
        Attribute::new("internal_port", Kind::PortNumber)
            .post(Absent::Unset)
            .put()
            .sort("t.internal_port_start")
            .filter(Filter::Column(
                "(CASE WHEN t.internal_port_start = t.internal_port_end THEN t.internal_port_start END)",
            )),
        Attribute::new("external_port_range", Kind::PortRange)
            .post(Absent::Unset)
            .put()
            .sort("t.external_port_start")
            .filter(Filter::Shown),
        Attribute::new("internal_port_range", Kind::PortRange)
            .post(Absent::Unset)
            .put()
            .sort("t.internal_port_start")
            .filter(Filter::Shown),
    ],
};

impl PortForwardings {
    /// Those of a floating IP that the caller may see.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn of(call: Call<'_>, floating_ip: &str) -> Result<Self, ApiError> {
        must_see(call, &FloatingIps, floating_ip)?;
        Ok(Self { floating_ip: FloatingIp::get(call.tx, parse_id(&FloatingIps, floating_ip)?)? })
    }
}

impl Resource for PortForwardings {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::PortForwardingNotFound { id: id.to_owned() }
    }

    fn within(&self) -> Option<Condition> {
        Some(Condition { sql: "t.floating_ip_id = ?".into(), values: vec![Value::from(self.floating_ip.id)] })
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        Ok(PortForwarding::many(call.tx, ids)?.iter().map(show).collect())
    }

    fn target(&self, _call: Call<'_>, _body: &Body) -> Result<Target, ApiError> {
        Ok(Target::of_project(&self.floating_ip.project_id))
    }

    fn target_of(&self, _call: Call<'_>, _object: &Object) -> Result<Target, ApiError> {
        Ok(Target::of_project(&self.floating_ip.project_id))
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let external_ports = range(body, "external")?.ok_or_else(|| missing("external_port"))?;
        let internal_ports = range(body, "internal")?.ok_or_else(|| missing("internal_port"))?;
        let internal_port: PortId = body.need("internal_port_id")?;
        let (way, internal_ip_address) = self.find_way(call, internal_port, internal_ip(body)?)?;
        let forwarding = PortForwarding {
            id: PortForwardingId(random::id()),
            floating_ip_id: self.floating_ip.id,
            internal_port_id: internal_port,
            internal_ip_address,
            protocol: body.need("protocol")?,
            external_ports,
            internal_ports,
            description: body.need("description")?,
        };
        self.write(call, &forwarding, way)?;
        Ok(forwarding.id.to_string())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let mut forwarding = PortForwarding::get(call.tx, id)?;
        let internal_port = body.get("internal_port_id")?.unwrap_or(forwarding.internal_port_id);
        // An address that is not mentioned stays, but for another port's.
        let same_port = internal_port == forwarding.internal_port_id;
        let address = internal_ip(body)?.or(same_port.then_some(IpAddr::V4(forwarding.internal_ip_address)));
        let (way, internal_ip_address) = self.find_way(call, internal_port, address)?;
        forwarding.internal_port_id = internal_port;
        forwarding.internal_ip_address = internal_ip_address;
        forwarding.protocol = body.get("protocol")?.unwrap_or(forwarding.protocol);
        forwarding.external_ports = range(body, "external")?.unwrap_or(forwarding.external_ports);
        forwarding.internal_ports = range(body, "internal")?.unwrap_or(forwarding.internal_ports);
        forwarding.description = body.get("description")?.unwrap_or(forwarding.description);
        self.write(call, &forwarding, way)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        PortForwarding::get(call.tx, id)?.delete(call.tx)
    }
}

fn show(forwarding: &PortForwarding) -> Object {
    let mut shown = brief(forwarding);
    shown.insert("description".into(), forwarding.description.clone().into());
    shown
}

/// A port forwarding as its floating IP shows it.
pub(super) fn brief(forwarding: &PortForwarding) -> Object {
    let mut shown = object(json!({
        "id": forwarding.id,
        "internal_port_id": forwarding.internal_port_id,
        "internal_ip_address": forwarding.internal_ip_address,
        "protocol": forwarding.protocol,
    }));
    for (side, (first, last)) in [("external", forwarding.external_ports), ("internal", forwarding.internal_ports)] {
        // As Neutron: a single port is shown both ways, a range only as one.
        if first == last {
            shown.insert(format!("{side}_port"), first.into());
        }
        shown.insert(format!("{side}_port_range"), range_text((first, last)).into());
    }
    shown
}

fn range_text((first, last): Range) -> String {
    format!("{first}:{last}")
}

fn refused(reason: impl Into<String>) -> ApiError {
    ApiError::BadRequest { resource: "port_forwarding".into(), reason: reason.into() }
}

fn missing(name: &str) -> ApiError {
    ApiError::bad_request(format!("Failed to parse request. Required attribute '{name}' not specified"))
}

/// Reads ports that are given as one or as a range.
fn range(body: &Body, side: &str) -> Result<Option<Range>, ApiError> {
    let single: Option<u16> = body.get(&format!("{side}_port"))?;
    let range: Option<Range> = match body.json(&format!("{side}_port_range")).and_then(Json::as_str) {
        Some(text) => attributes::kind::port_range(text).ok(),
        None => None,
    };
    match (single, range) {
        (Some(port), Some(range)) if range != (port, port) => {
            Err(refused(format!("{side}_port and {side}_port_range do not say the same")))
        }
        (single, range) => Ok(range.or(single.map(|port| (port, port)))),
    }
}

fn internal_ip(body: &Body) -> Result<Option<IpAddr>, ApiError> {
    Ok(body.get::<Option<IpAddr>>("internal_ip_address")?.flatten())
}

impl PortForwardings {
    /// Finds the router that leads from the floating IP to an address of the port.
    fn find_way(&self, call: Call<'_>, id: PortId, wanted: Option<IpAddr>) -> Result<(RouterId, Ipv4Addr), ApiError> {
        must_see(call, &ports::Ports, &id.to_string())?;
        let port = Port::get(call.tx, id)?;
        let mut addresses = port.fixed_ips.iter().filter(|fixed| fixed.ip_address.is_ipv4()).peekable();
        if addresses.peek().is_none() {
            return Err(refused(format!("Requested internal port {id} must allocate an IPv4 address at least.")));
        }
        let fixed = addresses.find(|fixed| wanted.is_none_or(|ip| ip == fixed.ip_address));
        let (Some(fixed), Some(IpAddr::V4(ip))) = (fixed, fixed.map(|fixed| fixed.ip_address)) else {
            let (wanted, have) = (wanted.map(|ip| ip.to_string()).unwrap_or_default(), json!(port.fixed_ips));
            return Err(refused(format!(
                "Requested internal IP address {wanted} is not suitable for internal neutron port {id}, as its \
                 fixed_ips are {}",
                attributes::kind::shown(&have)
            )));
        };
        let external = self.floating_ip.floating_network_id;
        let router = floating_ips::router_between(call, external, *fixed)?;
        let router = router.ok_or_else(|| {
            refused(format!(
                "External network {external} is not reachable from subnet {}. Cannot set Port forwarding for port {id} \
                 with Floating IP {}",
                fixed.subnet_id, self.floating_ip.id
            ))
        })?;
        Ok((router, ip))
    }

    /// Writes a new or changed port forwarding, if nothing else is in its way.
    fn write(&self, call: Call<'_>, forwarding: &PortForwarding, router: RouterId) -> Result<(), ApiError> {
        let mut floating_ip = self.floating_ip.clone();
        if floating_ip.port_id.is_some() {
            return Err(ApiError::FloatingIPPortAlreadyAssociated {
                address: floating_ip.floating_ip_address.to_string(),
                id: floating_ip.id.to_string(),
                port: forwarding.internal_port_id.to_string(),
                fixed_ip: forwarding.internal_ip_address.to_string(),
                network: floating_ip.floating_network_id.to_string(),
            });
        }
        // First, so that the row is this transaction's before anything is compared.
        match floating_ip.router_id {
            None => {
                floating_ip.router_id = Some(router);
                floating_ip.update_association(call.tx, None)?;
            }
            Some(other) if other == router => port_forwarding::note(call.tx, &floating_ip)?,
            Some(other) => {
                return Err(refused(format!(
                    "The Floating IP {} had been set on router {other}, the internal Neutron port {} can not reach it",
                    floating_ip.id, forwarding.internal_port_id
                )));
            }
        }
        refuse_translated(call, forwarding)?;
        refuse_collisions(call, forwarding)?;
        Ok(forwarding.write(call.tx)?)
    }
}

/// A port that a floating IP leads to is reached by that one.
fn refuse_translated(call: Call<'_>, forwarding: &PortForwarding) -> Result<(), ApiError> {
    match FloatingIp::of_port(call.tx, forwarding.internal_port_id)?.first() {
        Some(other) => Err(ApiError::PortHasBindingFloatingIP {
            address: other.floating_ip_address.to_string(),
            id: other.id.to_string(),
            port: forwarding.internal_port_id.to_string(),
            fixed_ip: forwarding.internal_ip_address.to_string(),
        }),
        None => Ok(()),
    }
}

fn refuse_collisions(call: Call<'_>, new: &PortForwarding) -> Result<(), ApiError> {
    let count = |(first, last): Range| last - first;
    if count(new.internal_ports) > 0 && count(new.internal_ports) != count(new.external_ports) {
        return Err(refused(
            "Invalid ranges of internal and/or external ports. The relation between internal and external ports must \
             be N-N or 1-N",
        ));
    }
    let others = |found: Vec<PortForwarding>| {
        found.into_iter().filter(|other| other.id != new.id && other.protocol == new.protocol).collect::<Vec<_>>()
    };
    let inside = others(PortForwarding::to_port(call.tx, new.internal_port_id)?);
    let inside = inside.iter().filter(|other| other.internal_ip_address == new.internal_ip_address);
    let outside = others(PortForwarding::of_floating_ips(call.tx, &[new.floating_ip_id.to_string()])?);
    let pairs = inside
        .map(|other| ("internal_port_range", other.internal_ports, new.internal_ports))
        .chain(outside.iter().map(|other| ("external_port_range", other.external_ports, new.external_ports)));
    for (side, old, new) in pairs {
        if old.0.max(new.0) <= old.1.min(new.1) {
            let (old, new) = (range_text(old), range_text(new));
            return Err(refused(format!(
                "There is a port collision with the {side}. The following ranges collides: {old} and {new}"
            )));
        }
    }
    Ok(())
}
