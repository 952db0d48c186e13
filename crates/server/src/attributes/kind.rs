//! What an attribute may hold: each [`Kind`] checks a JSON value and brings it into one form.
//!
//! Texts of refusals are Neutron's, because scripts match on them. A value that leaves here is safe
//! to read with serde into the type that the handler expects.

use std::net::IpAddr;

use evergate_model::Mac;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// What an attribute may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// True or false, in any of the usual spellings.
    Bool,
    /// As [`Kind::Bool`], or null.
    BoolOrNull,
    /// An integer from zero up; digits in a text will do.
    Int,
    /// As [`Kind::Int`], or null.
    IntOrNull,
    /// A quota: an integer from -1 up, which stands for any number.
    Limit,
    /// A port of TCP and the like.
    PortNumber,
    /// Such ports from the first to the last: `80:90`, or `80` for one.
    PortRange,
    /// One of these integers.
    OneOf(&'static [i64]),
    /// Text of at most this many characters.
    Text(usize),
    /// As [`Kind::Text`], and not blank.
    NotBlank(usize),
    /// As [`Kind::Text`], or null.
    TextOrNull(usize),
    /// A text, a number or null, that the handler looks at.
    Scalar,
    /// One of these words.
    Words(&'static [&'static str]),
    /// One of these words, or null.
    WordsOrNull(&'static [&'static str]),
    /// An object's id.
    Uuid,
    /// An object's id, or null.
    UuidOrNull,
    /// An IP address, or null.
    IpOrNull,
    /// A subnet in CIDR notation; host bits are cleared.
    CidrOrNull,
    /// A unicast Ethernet address, or null for one that the server chooses.
    MacOrNull,
    /// An object with whatever keys, or null.
    Dict,
    /// A list of different texts of at most this many characters.
    Strings(usize),
    /// A list of different prefixes without host bits.
    Prefixes,
    /// A list of `{start, end}`.
    Pools,
    /// A list of addresses.
    Nameservers,
    /// A list of `{destination, nexthop}`.
    Routes,
    /// A list of `{subnet_id, ip_address}`, either of which may be missing.
    FixedIps,
    /// A list of different ids, or null for an empty one.
    Uuids,
    /// A list of `{opt_name, opt_value, ip_version}`, or null for an empty one.
    DhcpOptions,
    /// A list of `{ip_address, mac_address}`.
    AddressPairs,
    /// `{network_id, enable_snat, external_fixed_ips}`, or null or `{}` for none.
    GatewayInfo,
    /// A list of device owners that a subnet is reserved for.
    ServiceTypes,
    /// Only null: the feature behind it is not offered.
    NotOffered,
    /// Only a list without items, or null: the feature behind it is not offered.
    NoneOffered,
    /// Never given by a client.
    Computed,
}

/// Items of a list, at most: they are compared with each other, and each may be a row of its own.
const MOST_ITEMS: usize = 1000;

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The validator's reason: shown with the attribute's name.
    Reason(String),
    /// The converter's reason: shown as [`InvalidInput`](crate::error::ApiError::InvalidInput).
    Conversion(String),
}

fn reason(text: impl Into<String>) -> Refusal {
    Refusal::Reason(text.into())
}

impl Kind {
    /// Checks a value of a body and brings it into its one form.
    ///
    /// # Errors
    ///
    /// Why the value cannot be used.
    pub fn convert(self, value: &Value) -> Result<Value, Refusal> {
        if value.as_array().is_some_and(|items| items.len() > MOST_ITEMS) {
            return Err(reason(format!("The list has more than {MOST_ITEMS} items")));
        }
        match self {
            Self::BoolOrNull
            | Self::TextOrNull(_)
            | Self::UuidOrNull
            | Self::IpOrNull
            | Self::CidrOrNull
            | Self::MacOrNull
            | Self::WordsOrNull(_)
            | Self::GatewayInfo
            | Self::NotOffered
            | Self::IntOrNull
                if value.is_null() =>
            {
                Ok(Value::Null)
            }
            Self::Bool | Self::BoolOrNull => boolean(value).map(Value::Bool),
            Self::Int | Self::IntOrNull => non_negative(value).map(Value::from),
            Self::Limit => limit(value).map(Value::from),
            Self::PortNumber => port_number(value).map(Value::from),
            Self::PortRange => port_range(&shown(value)).map(|(first, last)| format!("{first}:{last}").into()),
            Self::OneOf(allowed) => one_of(value, allowed),
            Self::Text(max) | Self::TextOrNull(max) => text(value, max).map(Value::from),
            Self::NotBlank(max) => not_blank(value, max).map(Value::from),
            Self::Words(allowed) | Self::WordsOrNull(allowed) => word(value, allowed),
            Self::Scalar => scalar(value),
            Self::Uuid | Self::UuidOrNull => uuid(value).map(Value::from),
            Self::Uuids => uuids(value),
            Self::DhcpOptions => dhcp_options(value),
            Self::IpOrNull => address(value).map(|ip| json!(ip)),
            Self::CidrOrNull => cidr(value).map(|net| json!(net)),
            Self::MacOrNull => mac(value).map(|mac| json!(mac)),
            Self::Dict => dict(value),
            Self::Strings(max) => strings(value, max),
            Self::Prefixes => prefixes(value),
            Self::Pools => pools(value),
            Self::Nameservers => nameservers(value),
            Self::Routes => routes(value),
            Self::FixedIps => fixed_ips(value),
            Self::AddressPairs => address_pairs(value),
            Self::GatewayInfo => gateway_info(value),
            Self::ServiceTypes => service_types(value),
            Self::NoneOffered => none_offered(value),
            Self::NotOffered => Err(reason(format!("'{}' cannot be used: not offered here", shown(value)))),
            Self::Computed => Err(reason(format!("'{}' is not a valid input", shown(value)))),
        }
    }

    /// Brings a filter's value into the form that the store keeps.
    ///
    /// # Errors
    ///
    /// When a truth value or a number is asked for in no known spelling.
    pub fn filter_value(self, text: &str) -> Result<crate::store::Value, Refusal> {
        use crate::store::Value as Sql;
        match self {
            Self::Bool | Self::BoolOrNull => boolean(&Value::from(text)).map(Sql::from),
            Self::Int | Self::IntOrNull | Self::PortNumber | Self::Limit | Self::OneOf(_) => {
                match text.trim().parse::<i64>() {
                    Ok(n) => Ok(Sql::Int(n)),
                    Err(_) => Err(Refusal::Conversion(format!("'{text}' is not an integer"))),
                }
            }
            Self::MacOrNull => Ok(text.parse::<Mac>().map_or_else(|_| Sql::from(text), Sql::from)),
            Self::IpOrNull => Ok(text.parse::<IpAddr>().map_or_else(|_| Sql::from(text), Sql::from)),
            Self::Uuid | Self::UuidOrNull => Ok(Sql::from(text.to_ascii_lowercase())),
            Self::CidrOrNull => {
                Ok(text.parse::<IpNet>().map_or_else(|_| Sql::from(text), |n| Sql::from(n.to_string())))
            }
            Self::Text(_)
            | Self::NotBlank(_)
            | Self::TextOrNull(_)
            | Self::Scalar
            | Self::Words(_)
            | Self::WordsOrNull(_)
            | Self::PortRange
            | Self::Dict
            | Self::Strings(_)
            | Self::Prefixes
            | Self::Pools
            | Self::Nameservers
            | Self::Routes
            | Self::FixedIps
            | Self::Uuids
            | Self::DhcpOptions
            | Self::AddressPairs
            | Self::GatewayInfo
            | Self::ServiceTypes
            | Self::NotOffered
            | Self::NoneOffered
            | Self::Computed => Ok(Sql::from(text)),
        }
    }
}

/// Prints a JSON value as Neutron's messages do: as Python would.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(shown_inside).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("'{key}': {}", shown_inside(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

fn shown_inside(value: &Value) -> String {
    if let Value::String(s) = value { format!("'{s}'") } else { shown(value) }
}

fn boolean(value: &Value) -> Result<bool, Refusal> {
    let refusal = || Refusal::Conversion(format!("'{}' cannot be converted to boolean", shown(value)));
    match value {
        Value::Bool(b) => Ok(*b),
        Value::Number(n) if n.as_i64() == Some(0) => Ok(false),
        Value::Number(n) if n.as_i64() == Some(1) => Ok(true),
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "t" | "on" | "y" | "yes" => Ok(true),
            "false" | "0" | "f" | "off" | "n" | "no" => Ok(false),
            _ => Err(refusal()),
        },
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => Err(refusal()),
    }
}

fn integer(value: &Value) -> Result<i64, Refusal> {
    let parsed = match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    parsed.ok_or_else(|| Refusal::Conversion(format!("'{}' is not an integer", shown(value))))
}

fn non_negative(value: &Value) -> Result<i64, Refusal> {
    let n = integer(value)?;
    if n < 0 { Err(reason(format!("'{n}' should be non-negative"))) } else { Ok(n) }
}

fn port_number(value: &Value) -> Result<u16, Refusal> {
    let text = shown(value);
    match text.trim().parse() {
        Ok(port) if port > 0 && !value.is_boolean() => Ok(port),
        _ => Err(reason(format!("Invalid port: {text}"))),
    }
}

/// Reads ports from the first to the last.
///
/// # Errors
///
/// When they are none, or in the wrong order.
pub fn port_range(text: &str) -> Result<(u16, u16), Refusal> {
    let ports: Vec<&str> = text.split(':').collect();
    if ports.len() > 2 || ports.iter().any(|port| port.is_empty()) {
        return Err(reason("Port range must be two integers separated by a colon"));
    }
    let ports = ports.iter().map(|port| port_number(&Value::from(*port))).collect::<Result<Vec<_>, _>>()?;
    let (first, last) = (ports[0], ports[ports.len() - 1]);
    if first > last {
        return Err(reason("First port in a port range must be lower than the second port"));
    }
    Ok((first, last))
}

fn limit(value: &Value) -> Result<i64, Refusal> {
    let n = integer(value)?;
    if n < -1 {
        return Err(reason(format!("'{n}' is too small - must be at least '-1'")));
    }
    if n > i64::from(i32::MAX) {
        return Err(reason(format!("'{n}' is too large - must be no larger than '{}'", i32::MAX)));
    }
    Ok(n)
}

fn one_of(value: &Value, allowed: &[i64]) -> Result<Value, Refusal> {
    let n = integer(value)?;
    if allowed.contains(&n) { Ok(n.into()) } else { Err(reason(format!("'{n}' is not in {}", shown(&json!(allowed))))) }
}

fn text(value: &Value, max: usize) -> Result<String, Refusal> {
    let Value::String(s) = value else {
        return Err(reason(format!("'{}' is not a valid string", shown(value))));
    };
    if s.chars().count() > max {
        return Err(reason(format!("'{s}' exceeds maximum length of {max}")));
    }
    if s.contains('\0') {
        return Err(reason("text must not contain a null character"));
    }
    Ok(s.clone())
}

fn word(value: &Value, allowed: &[&str]) -> Result<Value, Refusal> {
    match value.as_str() {
        Some(s) if allowed.contains(&s) => Ok(s.into()),
        _ => Err(reason(format!("'{}' is not in {}", shown(value), shown(&json!(allowed))))),
    }
}

fn uuid(value: &Value) -> Result<String, Refusal> {
    value
        .as_str()
        .and_then(|s| uuid::Uuid::parse_str(s).ok())
        .map(|id| id.to_string())
        .ok_or_else(|| reason(format!("'{}' is not a valid UUID", shown(value))))
}

fn address(value: &Value) -> Result<IpAddr, Refusal> {
    value
        .as_str()
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| reason(format!("'{}' is not a valid IP address", shown(value))))
}

fn cidr(value: &Value) -> Result<IpNet, Refusal> {
    let invalid = || reason(format!("'{}' is not a valid IP subnet", shown(value)));
    let s = value.as_str().ok_or_else(invalid)?;
    if let Ok(ip) = s.parse::<IpAddr>() {
        let recommended = IpNet::from(ip);
        return Err(reason(format!("'{s}' isn't a recognized IP subnet cidr, '{recommended}' is recommended")));
    }
    s.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| invalid())
}

fn mac(value: &Value) -> Result<Mac, Refusal> {
    let parsed = value.as_str().and_then(|s| s.parse::<Mac>().ok());
    match parsed {
        Some(mac) if mac != Mac::ZERO && !mac.is_multicast() => Ok(mac),
        _ => Err(reason(format!("'{}' is not a valid MAC address", shown(value)))),
    }
}

fn dict(value: &Value) -> Result<Value, Refusal> {
    match value {
        Value::Object(_) => Ok(value.clone()),
        Value::Null => Ok(json!({})),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(reason(format!("'{}' is not a dictionary", shown(value))))
        }
    }
}

fn list<'v>(value: &'v Value, what: &str) -> Result<&'v [Value], Refusal> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null if what != "fixed IP" => Ok(&[]),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Err(reason(format!("Invalid data format for {what}: '{}'", shown(value))))
        }
    }
}

/// Refuses a dictionary with other keys than those, or without one that is required.
fn keys<'v>(value: &'v Value, required: &[&str], optional: &[&str]) -> Result<&'v Map<String, Value>, Refusal> {
    let Value::Object(map) = value else {
        let expected = shown(&json!(required));
        return Err(reason(format!("Invalid input. '{}' must be a dictionary with keys: {expected}", shown(value))));
    };
    if let Some(missing) = required.iter().find(|key| !map.contains_key(**key)) {
        return Err(reason(format!("Validation of dictionary's keys failed. Required key '{missing}' is missing")));
    }
    let unexpected: Vec<_> =
        map.keys().map(String::as_str).filter(|key| !required.contains(key) && !optional.contains(key)).collect();
    if unexpected.is_empty() {
        Ok(map)
    } else {
        Err(reason(format!("Unexpected keys supplied: {}", unexpected.join(", "))))
    }
}

/// Refuses a list that holds the same item twice.
fn distinct(items: Vec<Value>, what: &str) -> Result<Value, Refusal> {
    for (index, item) in items.iter().enumerate() {
        if items[..index].contains(item) {
            return Err(reason(format!("Duplicate {what} '{}'", shown(item))));
        }
    }
    Ok(Value::Array(items))
}

fn strings(value: &Value, max: usize) -> Result<Value, Refusal> {
    let Value::Array(items) = value else {
        return Err(reason(format!("'{}' is not a list", shown(value))));
    };
    let items = items.iter().map(|item| text(item, max).map(Value::from)).collect::<Result<Vec<_>, _>>()?;
    for (index, item) in items.iter().enumerate() {
        if items[..index].contains(item) {
            return Err(reason(format!("Duplicate items in the list: '{}'", shown(item))));
        }
    }
    Ok(Value::Array(items))
}

fn not_blank(value: &Value, max: usize) -> Result<String, Refusal> {
    let text = text(value, max)?;
    if text.trim().is_empty() { Err(reason(format!("'{text}' Blank strings are not permitted"))) } else { Ok(text) }
}

fn prefixes(value: &Value) -> Result<Value, Refusal> {
    let Value::Array(items) = value else {
        return Err(reason(format!("'{}' is not a list", shown(value))));
    };
    let items = items.iter().map(|item| {
        let net = cidr(item)?;
        let given = item.as_str().and_then(|text| text.parse::<IpNet>().ok());
        if given != Some(net) {
            let text = shown(item);
            return Err(reason(format!("'{text}' isn't a recognized IP subnet cidr, '{net}' is recommended")));
        }
        Ok(json!(net))
    });
    distinct(items.collect::<Result<_, _>>()?, "prefix")
}

fn pools(value: &Value) -> Result<Value, Refusal> {
    let items = list(value, "IP pool")?;
    let pools = items.iter().map(|item| {
        let map = keys(item, &["start", "end"], &[])?;
        Ok(json!({"start": address(&map["start"])?, "end": address(&map["end"])?}))
    });
    pools.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn nameservers(value: &Value) -> Result<Value, Refusal> {
    let items = list(value, "nameserver")?.iter().map(|item| {
        address(item).map(|ip| json!(ip)).map_err(|_| {
            let host = shown(item);
            reason(format!("'{host}' is not a valid nameserver. '{host}' is not a valid IP address"))
        })
    });
    distinct(items.collect::<Result<_, _>>()?, "nameserver")
}

fn routes(value: &Value) -> Result<Value, Refusal> {
    let items = list(value, "hostroute")?.iter().map(|item| {
        let map = keys(item, &["destination", "nexthop"], &[])?;
        Ok(json!({"destination": cidr(&map["destination"])?, "nexthop": address(&map["nexthop"])?}))
    });
    distinct(items.collect::<Result<_, _>>()?, "hostroute")
}

fn fixed_ips(value: &Value) -> Result<Value, Refusal> {
    let mut seen = Vec::new();
    let mut converted = Vec::new();
    for item in list(value, "fixed IP")? {
        let Value::Object(map) = item else {
            return Err(reason(format!("Invalid data format for fixed IP: '{}'", shown(item))));
        };
        let map = keys(item, &[], &["subnet_id", "ip_address"]).map(|_| map)?;
        let mut fixed = Map::new();
        if let Some(ip) = map.get("ip_address").filter(|ip| !ip.is_null()) {
            let ip = address(ip)?;
            if seen.contains(&ip) {
                return Err(reason(format!("Duplicate IP address '{ip}'")));
            }
            seen.push(ip);
            fixed.insert("ip_address".into(), json!(ip));
        }
        if let Some(subnet) = map.get("subnet_id").filter(|subnet| !subnet.is_null()) {
            fixed.insert("subnet_id".into(), uuid(subnet)?.into());
        }
        converted.push(Value::Object(fixed));
    }
    Ok(Value::Array(converted))
}

fn address_pairs(value: &Value) -> Result<Value, Refusal> {
    let items = list(value, "allowed address pair")?.iter().map(|item| {
        let map = keys(item, &["ip_address"], &["mac_address"])?;
        let ip = match address(&map["ip_address"]) {
            Ok(ip) => ip.to_string(),
            Err(_) => cidr(&map["ip_address"])?.to_string(),
        };
        let mut pair = json!({"ip_address": ip});
        if let Some(given) = map.get("mac_address").filter(|given| !given.is_null()) {
            pair["mac_address"] = json!(mac(given)?);
        }
        Ok(pair)
    });
    distinct(items.collect::<Result<_, _>>()?, "address pair")
}

fn scalar(value: &Value) -> Result<Value, Refusal> {
    match value {
        Value::Null | Value::Number(_) => Ok(value.clone()),
        Value::String(_) => text(value, 255).map(Value::from),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(reason(format!("'{}' is not a valid string", shown(value))))
        }
    }
}

fn uuids(value: &Value) -> Result<Value, Refusal> {
    let items = match value {
        Value::Null => &[][..],
        Value::Array(items) => items,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            return Err(reason(format!("'{}' is not a list", shown(value))));
        }
    };
    let ids = items.iter().map(|item| uuid(item).map(Value::from)).collect::<Result<Vec<_>, _>>()?;
    for (index, id) in ids.iter().enumerate() {
        if ids[..index].contains(id) {
            return Err(reason(format!("Duplicate items in the list: '{}'", shown(id))));
        }
    }
    Ok(Value::Array(ids))
}

fn dhcp_options(value: &Value) -> Result<Value, Refusal> {
    let options = list(value, "extra DHCP option")?.iter().map(|item| {
        let map = keys(item, &["opt_name", "opt_value"], &["ip_version"])?;
        let name = not_blank(&map["opt_name"], 64)?;
        let value = Some(&map["opt_value"]).filter(|value| !value.is_null()).map(|value| not_blank(value, 255));
        let version = map.get("ip_version").filter(|version| !version.is_null()).map(|v| one_of(v, &[4, 6]));
        Ok(json!({"opt_name": name, "opt_value": value.transpose()?, "ip_version": version.transpose()?.unwrap_or(json!(4))}))
    });
    options.collect::<Result<_, _>>().map(Value::Array)
}

fn gateway_info(value: &Value) -> Result<Value, Refusal> {
    let Value::Object(given) = value else {
        return Err(reason(format!("'{}' is not a dictionary", shown(value))));
    };
    if given.is_empty() {
        return Ok(Value::Null);
    }
    let map = keys(value, &["network_id"], &["enable_snat", "external_fixed_ips"])?;
    // A network of null means no gateway, whatever else is said about it.
    if map["network_id"].is_null() {
        return Ok(Value::Null);
    }
    let mut info = Map::from_iter([("network_id".to_owned(), Value::from(uuid(&map["network_id"])?))]);
    if let Some(snat) = map.get("enable_snat").filter(|snat| !snat.is_null()) {
        info.insert("enable_snat".into(), boolean(snat)?.into());
    }
    if let Some(ips) = map.get("external_fixed_ips").filter(|ips| !ips.is_null()) {
        info.insert("external_fixed_ips".into(), fixed_ips(ips)?);
    }
    Ok(Value::Object(info))
}

fn service_types(value: &Value) -> Result<Value, Refusal> {
    let items = list(value, "service type")?;
    for item in items {
        let owner = text(item, 255)?;
        if !owner.starts_with("network:") && !owner.starts_with("compute:") {
            return Err(reason(format!("Subnet service type '{owner}' does not correspond to a valid device owner.")));
        }
    }
    distinct(items.to_vec(), "service type")
}

fn none_offered(value: &Value) -> Result<Value, Refusal> {
    match value {
        Value::Null => Ok(json!([])),
        Value::Array(items) if items.is_empty() => Ok(json!([])),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            Err(reason(format!("'{}' cannot be used: not offered here", shown(value))))
        }
    }
}
