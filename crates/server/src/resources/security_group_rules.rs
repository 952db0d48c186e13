//! Rules of security groups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::{Call, Resource, must_see, object, security_groups, standard, visible};
use crate::attributes::kind::shown as text_of;
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::security_group::{Rule as GroupRule, SecurityGroup};
use crate::objects::{Changes, bump, query_in};
use crate::policy::{Rule, Target};
use crate::values;

/// The resource `security-group-rules`.
#[derive(Clone, Copy, Debug)]
pub struct SecurityGroupRules;

const IN_DEFAULT: &str = "(SELECT g.is_default FROM security_groups g WHERE g.id = t.security_group_id)";

static TABLE: Table = Table {
    singular: "security_group_rule",
    plural: "security_group_rules",
    sql: "security_group_rules",
    bulk: true,
    tagged: false,
    create: Rule::Member,
    get: Rule::Reader,
    update: Rule::Member,
    delete: Rule::Member,
    // Whoever sees a group sees its rules.
    scope: "t.project_id = ?1 OR EXISTS (SELECT 1 FROM security_groups g WHERE g.id = t.security_group_id \
            AND g.project_id = ?1) OR EXISTS (SELECT 1 FROM rbac_policies p WHERE p.object_id = t.security_group_id \
            AND p.target_project IN (?1, '*'))",
    attributes: &[
        attributes::ID,
        attributes::DESCRIPTION,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        Attribute::new("security_group_id", Kind::Text(36)).post(Absent::Required).column("t.security_group_id"),
        Attribute::new("direction", Kind::Words(&["ingress", "egress"])).post(Absent::Required).column("t.direction"),
        Attribute::new("ethertype", Kind::Scalar).post(Absent::Text("IPv4")).column("t.ethertype"),
        Attribute::new("protocol", Kind::Scalar).post(Absent::Null).column("t.protocol"),
        Attribute::new("port_range_min", Kind::Scalar)
            .post(Absent::Null)
            .sort("t.port_range_min")
            .filter(Filter::Shown),
        Attribute::new("port_range_max", Kind::Scalar)
            .post(Absent::Null)
            .sort("t.port_range_max")
            .filter(Filter::Shown),
        Attribute::new("remote_ip_prefix", Kind::Scalar).post(Absent::Null).column("t.remote_ip_prefix"),
        Attribute::new("normalized_cidr", Kind::CidrOrNull).column("t.normalized_cidr"),
        Attribute::new("remote_group_id", Kind::TextOrNull(36)).post(Absent::Null).column("t.remote_group_id"),
        Attribute::new("belongs_to_default_sg", Kind::BoolOrNull).filter(Filter::Column(IN_DEFAULT)),
    ],
};

impl Resource for SecurityGroupRules {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::SecurityGroupRuleNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        shown(call, &GroupRule::many(call.tx, ids)?)
    }

    fn parent(&self) -> Option<&'static str> {
        Some("security_group_id")
    }

    fn target(&self, call: Call<'_>, body: &Body) -> Result<Target, ApiError> {
        let group = visible(call, &security_groups::SecurityGroups, &body.need::<String>("security_group_id")?)?;
        Ok(Target::of_project(group.get("project_id").and_then(Json::as_str).unwrap_or_default()))
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let made = self.create_all(call, std::slice::from_ref(body))?.pop();
        made.ok_or_else(|| ApiError::internal("a rule was not made"))
    }

    fn create_all(&self, call: Call<'_>, bodies: &[Body]) -> Result<Vec<String>, ApiError> {
        let same = |name: &str| bodies.windows(2).all(|pair| pair[0].json(name) == pair[1].json(name));
        if !same("security_group_id") {
            return Err(ApiError::SecurityGroupNotSingleGroupRules {});
        }
        if !same("project_id") {
            return Err(ApiError::SecurityGroupRulesNotSingleProject {});
        }
        let Some(first) = bodies.first() else { return Ok(Vec::new()) };
        let group = SecurityGroup::get(call.tx, &first.need::<String>("security_group_id")?)?;
        let mut remote = BTreeSet::new();
        let new = bodies.iter().map(|body| new_rule(call, &group, &mut remote, body));
        let new = new.collect::<Result<Vec<GroupRule>, _>>()?;
        if new.iter().map(Passing::of).collect::<BTreeSet<_>>().len() < new.len() {
            return Err(ApiError::DuplicateSecurityGroupRuleInPost {});
        }
        let there = GroupRule::of_groups(call.tx, std::slice::from_ref(&group.id))?;
        let there: BTreeMap<_, _> = there.iter().map(|rule| (Passing::of(rule), &rule.id)).collect();
        if let Some(id) = new.iter().find_map(|rule| there.get(&Passing::of(rule))) {
            return Err(ApiError::SecurityGroupRuleExists { id: (*id).clone() });
        }
        new.iter().try_for_each(|rule| rule.insert(call.tx))?;
        bump(call.tx, "security_groups", &group.id)?;
        Ok(new.into_iter().map(|rule| rule.id).collect())
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let mut changes = Changes::default();
        changes.set("description", body.get::<String>("description")?);
        changes.write(call.tx, "security_group_rules", id)?;
        bump_group(call, id)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        bump_group(call, id)?;
        call.tx.execute("DELETE FROM security_group_rules WHERE id = ?1", &values![id])?;
        Ok(())
    }
}

/// Counts a change of the group that a rule is in.
fn bump_group(call: Call<'_>, rule: &str) -> Result<(), ApiError> {
    for rule in GroupRule::many(call.tx, &[rule.to_owned()])? {
        bump(call.tx, "security_groups", rule.security_group_id)?;
    }
    Ok(())
}

/// Shows rules, as lists and their groups do.
pub(super) fn shown(call: Call<'_>, rules: &[GroupRule]) -> Result<Vec<Object>, ApiError> {
    let groups: BTreeSet<&str> = rules.iter().map(|rule| rule.security_group_id.as_str()).collect();
    let sql = "SELECT id FROM security_groups WHERE is_default = 1 AND id IN ({})";
    let defaults = query_in(call.tx, sql, &Vec::from_iter(groups), |row| row.text(0))?;
    let rules = rules.iter().map(|rule| {
        let mut shown = object(json!({
            "id": rule.id,
            "project_id": rule.project_id,
            "tenant_id": rule.project_id,
            "security_group_id": rule.security_group_id,
            "direction": rule.direction,
            "ethertype": rule.ethertype,
            "protocol": rule.protocol,
            "port_range_min": rule.port_range_min,
            "port_range_max": rule.port_range_max,
            "remote_ip_prefix": rule.remote_ip_prefix,
            "normalized_cidr": rule.normalized_cidr,
            "remote_group_id": rule.remote_group_id,
            "description": rule.description,
            "belongs_to_default_sg": defaults.contains(&rule.security_group_id),
        }));
        standard(&mut shown, &rule.standard, None);
        shown.remove("tags");
        shown
    });
    Ok(rules.collect())
}

/// Reads a rule; `remote` has the groups of rules before it that the caller may see.
fn new_rule(
    call: Call<'_>,
    group: &SecurityGroup,
    remote: &mut BTreeSet<String>,
    body: &Body,
) -> Result<GroupRule, ApiError> {
    let ethertype = ethertype(body)?;
    let protocol = protocol(body)?.map(|protocol| canonical(protocol, &ethertype));
    let (min, max) = (port(body, "port_range_min")?, port(body, "port_range_max")?);
    // In Neutron's order, so that a rule with several faults is refused for the same one.
    check_ports(protocol.as_deref(), min, max)?;
    let remote_ip_prefix = scalar(body, "remote_ip_prefix");
    let remote_group_id = body.need::<Option<String>>("remote_group_id")?;
    let by_group_and_prefix = remote_ip_prefix.is_some() && remote_group_id.is_some();
    let (remote_ip_prefix, normalized_cidr) = match &remote_ip_prefix {
        Some(text) => prefix(text, &ethertype).map(|(shown, net)| (Some(shown), Some(net)))?,
        None => (None, None),
    };
    check_ethertype(&ethertype, protocol.as_deref())?;
    if by_group_and_prefix {
        return Err(ApiError::SecurityGroupRemoteGroupAndRemoteIpPrefix {});
    }
    if let Some(id) = remote_group_id.as_ref().filter(|id| !remote.contains(*id)) {
        must_see(call, &security_groups::SecurityGroups, id)?;
        remote.insert(id.clone());
    }
    Ok(GroupRule {
        // As the caller's body says, so that an admin can make rules for others.
        project_id: body.need("project_id")?,
        protocol,
        port_range_min: min,
        port_range_max: max,
        remote_ip_prefix,
        normalized_cidr,
        remote_group_id,
        description: body.need("description")?,
        ..GroupRule::any(group, &body.need::<String>("direction")?, &ethertype)
    })
}

/// Reads an attribute that is a text or a number, as text.
fn scalar(body: &Body, name: &str) -> Option<String> {
    body.json(name).filter(|value| !value.is_null()).map(text_of)
}

fn ethertype(body: &Body) -> Result<String, ApiError> {
    let given = scalar(body, "ethertype").unwrap_or_default();
    let known = ["IPv4", "IPv6"].into_iter().find(|known| known.eq_ignore_ascii_case(&given));
    known.map(str::to_owned).ok_or_else(|| ApiError::SecurityGroupRuleInvalidEtherType {
        ethertype: given,
        values: "['IPv4', 'IPv6']".into(),
    })
}

/// Reads a remote prefix: as it is shown, with a length and maybe with host bits, and without those.
fn prefix(text: &str, ethertype: &str) -> Result<(String, String), ApiError> {
    let invalid = || ApiError::InvalidCIDR { input: text.to_owned() };
    let net = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => text.parse::<IpNet>().map_err(|_| invalid())?,
    };
    if net.addr().is_ipv4() != (ethertype == "IPv4") {
        let (ethertype, cidr) = (ethertype.to_owned(), net.to_string());
        return Err(ApiError::SecurityGroupRuleParameterConflict { ethertype, cidr });
    }
    Ok((net.to_string(), net.trunc().to_string()))
}

/// Protocols that have a name, with their numbers (IANA).
const PROTOCOLS: [(&str, u8); 25] = [
    ("ah", 51),
    ("dccp", 33),
    ("egp", 8),
    ("esp", 50),
    ("gre", 47),
    ("hopopt", 0),
    ("icmp", 1),
    ("icmpv6", 58),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6-encap", 41),
    ("ipv6-frag", 44),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ipv6-route", 43),
    ("ospf", 89),
    ("pgm", 113),
    ("rsvp", 46),
    ("sctp", 132),
    ("tcp", 6),
    ("udp", 17),
    ("udplite", 136),
    ("vrrp", 112),
    ("ip", 0),
];

fn protocol(body: &Body) -> Result<Option<String>, ApiError> {
    let Some(given) = scalar(body, "protocol").map(|text| text.trim().to_ascii_lowercase()) else { return Ok(None) };
    // As Neutron: any protocol is no protocol.
    if given.is_empty() || given == "any" {
        return Ok(None);
    }
    let known = given.parse::<u8>().is_ok() || PROTOCOLS.iter().any(|(name, _)| *name == given);
    if known {
        return Ok(Some(given));
    }
    let names: Vec<String> = PROTOCOLS.iter().map(|(name, _)| format!("'{name}'")).collect();
    Err(ApiError::SecurityGroupRuleInvalidProtocol { protocol: given, values: format!("[{}]", names.join(", ")) })
}

/// ICMP on IPv6 goes by one name and one number.
fn canonical(protocol: String, ethertype: &str) -> String {
    match protocol.as_str() {
        "icmp" | "icmpv6" if ethertype == "IPv6" => "ipv6-icmp".to_owned(),
        "1" if ethertype == "IPv6" => "58".to_owned(),
        _ => protocol,
    }
}

/// What a rule lets pass, the same for rules that let the same pass: texts about them make no difference, nor whether
/// a protocol goes by its name or number, or everything or nothing is said of where from.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Passing<'r> {
    direction: &'r str,
    ethertype: &'r str,
    protocol: Option<Result<u8, &'r str>>,
    ports: (Option<i64>, Option<i64>),
    from: Option<&'r str>,
    from_group: Option<&'r str>,
}

impl<'r> Passing<'r> {
    fn of(rule: &'r GroupRule) -> Self {
        let everywhere = |cidr: &str| cidr == "0.0.0.0/0" || cidr == "::/0";
        Self {
            direction: &rule.direction,
            ethertype: &rule.ethertype,
            protocol: rule.protocol.as_deref().map(|name| number_of(name).ok_or(name)),
            ports: (rule.port_range_min, rule.port_range_max),
            from: rule.normalized_cidr.as_deref().filter(|cidr| !everywhere(cidr)),
            from_group: rule.remote_group_id.as_deref(),
        }
    }
}

fn number_of(protocol: &str) -> Option<u8> {
    let named = || PROTOCOLS.iter().find(|(name, _)| *name == protocol).map(|(_, number)| *number);
    protocol.parse().ok().or_else(named)
}

fn port(body: &Body, name: &str) -> Result<Option<i64>, ApiError> {
    let Some(text) = scalar(body, name) else { return Ok(None) };
    match text.trim().parse::<u16>() {
        Ok(port) => Ok(Some(i64::from(port))),
        Err(_) => Err(ApiError::SecurityGroupInvalidPortValue { port: text }),
    }
}

/// Numbers of protocols that are IPv6's own (IANA): encapsulation, routing, fragment, ICMP, no next, options.
const OF_IPV6: [&str; 6] = ["41", "43", "44", "58", "59", "60"];

/// Protocols that are IPv6's own do not go with IPv4.
fn check_ethertype(ethertype: &str, protocol: Option<&str>) -> Result<(), ApiError> {
    let Some(protocol) = protocol else { return Ok(()) };
    let of_v6 = protocol.starts_with("ipv6-") || protocol == "icmpv6" || OF_IPV6.contains(&protocol);
    if of_v6 && ethertype == "IPv4" {
        let (ethertype, protocol) = (ethertype.to_owned(), protocol.to_owned());
        return Err(ApiError::SecurityGroupEthertypeConflictWithProtocol { ethertype, protocol });
    }
    Ok(())
}

fn check_ports(protocol: Option<&str>, min: Option<i64>, max: Option<i64>) -> Result<(), ApiError> {
    if min.is_none() && max.is_none() {
        return Ok(());
    }
    let Some(protocol) = protocol else { return Err(ApiError::SecurityGroupProtocolRequiredWithPorts {}) };
    match number_of(protocol) {
        // Type and code: RFC 792 and RFC 4443 have 8 bits for each.
        Some(1 | 58) => {
            for (attr, field, value) in [("port_range_min", "type", min), ("port_range_max", "code", max)] {
                if let Some(value) = value.filter(|value| *value > 255) {
                    let (attr, field, value) = (attr.to_owned(), field.to_owned(), value.to_string());
                    return Err(ApiError::SecurityGroupInvalidIcmpValue { field, attr, value });
                }
            }
            match (min, max) {
                (None, Some(code)) => Err(ApiError::SecurityGroupMissingIcmpType { value: code.to_string() }),
                _ => Ok(()),
            }
        }
        // DCCP, SCTP, TCP, UDP, UDP-Lite.
        Some(33 | 132 | 6 | 17 | 136) => match (min, max) {
            (Some(0), _) | (_, Some(0)) => Err(ApiError::SecurityGroupInvalidPortValue { port: "0".into() }),
            (Some(min), Some(max)) if min <= max => Ok(()),
            _ => Err(ApiError::SecurityGroupInvalidPortRange {}),
        },
        _ => Err(ApiError::SecurityGroupInvalidProtocolForPort {
            protocol: protocol.to_owned(),
            valid: "dccp, sctp, tcp, udp, udplite".into(),
        }),
    }
}
