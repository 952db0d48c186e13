//! What a value may be, and what a text in a file means as one.
//!
//! The conversions follow oslo.config's types, and for mappings and ranges Neutron's own parsers.
//! A refusal is half a sentence that fits behind the option's name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use evergate_model::Mac;
use ipnet::Ipv4Net;

/// The kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true`, `1`, `on`, `yes` and their opposites, in any case.
    Bool,
    /// A whole number within bounds.
    Int(i64, i64),
    /// Seconds, possibly with a fraction, from a smallest number on.
    Seconds(u32),
    /// Any text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A path of the file system.
    Path,
    /// A URL; a password in it is never shown.
    Url,
    /// One of several words.
    Choice(&'static [&'static str]),
    /// Words separated by commas.
    List,
    /// Words separated by commas, each one of several.
    ListOf(&'static [&'static str]),
    /// `name:value` pairs separated by commas; neither a name nor a value twice.
    Mapping,
    /// `name:bytes` pairs separated by commas.
    Mtus,
    /// An IP address.
    Ip,
    /// An IPv4 prefix without host bits.
    Ipv4Cidr,
    /// A MAC address.
    Mac,
    /// `first:last` pairs of VXLAN network identifiers, separated by commas.
    VniRanges,
}

/// A value, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of [`Kind::Seconds`].
    Seconds(Duration),
    /// Of [`Kind::Text`], [`Kind::Secret`], [`Kind::Path`], [`Kind::Url`] and [`Kind::Choice`].
    Text(String),
    /// Of [`Kind::List`] and [`Kind::ListOf`].
    List(Vec<String>),
    /// Of [`Kind::Mapping`].
    Mapping(BTreeMap<String, String>),
    /// Of [`Kind::Mtus`].
    Mtus(BTreeMap<String, u16>),
    /// Of [`Kind::Ip`].
    Ip(IpAddr),
    /// Of [`Kind::Ipv4Cidr`].
    Ipv4Cidr(Ipv4Net),
    /// Of [`Kind::Mac`].
    Mac(Mac),
    /// Of [`Kind::VniRanges`].
    VniRanges(Vec<RangeInclusive<u32>>),
}

/// The largest VXLAN network identifier: 24 bits.
const LARGEST_VNI: u32 = (1 << 24) - 1;

impl Kind {
    /// Reads `text` as a value of this kind; says why when it is none.
    ///
    /// # Errors
    ///
    /// The reason, to be read after "option x".
    pub fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Bool => bool(text).map(Value::Bool),
            Self::Int(min, max) => int(text, min, max).map(Value::Int),
            Self::Seconds(min) => seconds(text, min).map(Value::Seconds),
            Self::Text | Self::Secret | Self::Path | Self::Url => Ok(Value::Text(text.to_owned())),
            Self::Choice(words) => choice(text.trim(), words).map(Value::Text),
            Self::List => Ok(Value::List(list(text))),
            Self::ListOf(words) => {
                list(text).iter().map(|item| choice(item, words)).collect::<Result<_, _>>().map(Value::List)
            }
            Self::Mapping => mapping(text).map(Value::Mapping),
            Self::Mtus => mtus(text).map(Value::Mtus),
            Self::Ip => text.trim().parse().map(Value::Ip).map_err(|_| format!("'{text}' is not an IP address")),
            Self::Ipv4Cidr => cidr(text).map(Value::Ipv4Cidr),
            Self::Mac => {
                text.trim().parse().map(Value::Mac).map_err(|e: evergate_model::mac::ParseMacError| e.to_string())
            }
            Self::VniRanges => vni_ranges(text).map(Value::VniRanges),
        }
    }

    /// Gives `text` in a form that may be shown to anybody.
    pub fn shown(self, text: &str) -> String {
        match self {
            Self::Secret if text.is_empty() => String::new(),
            Self::Secret => "<secret>".to_owned(),
            Self::Url => without_password(text),
            Self::Bool
            | Self::Int(..)
            | Self::Seconds(_)
            | Self::Text
            | Self::Path
            | Self::Choice(_)
            | Self::List
            | Self::ListOf(_)
            | Self::Mapping
            | Self::Mtus
            | Self::Ip
            | Self::Ipv4Cidr
            | Self::Mac
            | Self::VniRanges => text.split('\n').map(str::trim).collect::<Vec<_>>().join(" "),
        }
    }
}

fn bool(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

fn int(text: &str, min: i64, max: i64) -> Result<i64, String> {
    let number: i64 = text.trim().parse().map_err(|_| format!("'{text}' is not a whole number"))?;
    if number < min {
        return Err(format!("{number} is too small: at least {min} is needed"));
    }
    if number > max {
        return Err(format!("{number} is too large: at most {max} is possible"));
    }
    Ok(number)
}

fn seconds(text: &str, min: u32) -> Result<Duration, String> {
    let number: f64 = text.trim().parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    if number.is_nan() || number < f64::from(min) {
        return Err(format!("{text} seconds is too short: at least {min} is needed"));
    }
    Duration::try_from_secs_f64(number).map_err(|_| format!("{text} seconds is too long"))
}

fn choice(text: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("'{text}' is not one of {}", words.join(", ")))
}

fn list(text: &str) -> Vec<String> {
    let text = text.trim().trim_end_matches(',');
    if text.is_empty() { Vec::new() } else { text.split(',').map(|item| item.trim().to_owned()).collect() }
}

fn mapping(text: &str) -> Result<BTreeMap<String, String>, String> {
    let map = pairs(text)?;
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, value) in &map {
        if let Some(other) = taken.insert(value, name) {
            return Err(format!("'{value}' is used twice, for '{other}' and for '{name}'"));
        }
    }
    Ok(map)
}

fn mtus(text: &str) -> Result<BTreeMap<String, u16>, String> {
    let mtu = |(name, text): (String, String)| match text.parse() {
        // 68 is the least that IPv4 allows for (RFC 791).
        Ok(mtu @ 68..) => Ok((name, mtu)),
        _ => Err(format!("'{text}' cannot be the MTU of '{name}': a number from 68 to 65535 is needed")),
    };
    pairs(text)?.into_iter().map(mtu).collect()
}

fn pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut map = BTreeMap::new();
    for pair in list(text).iter().filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once(':').ok_or_else(|| format!("'{pair}' is not 'name:value'"))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || value.is_empty() {
            return Err(format!("'{pair}' is not 'name:value': one side is empty"));
        }
        if map.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("'{name}' is mapped twice"));
        }
    }
    Ok(map)
}

fn cidr(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net =
        text.trim().parse().map_err(|_| format!("'{text}' is not an IPv4 network such as 169.254.192.0/18"))?;
    if net.trunc() != net {
        return Err(format!("'{text}' has host bits set: the network is {}", net.trunc()));
    }
    Ok(net)
}

fn vni_ranges(text: &str) -> Result<Vec<RangeInclusive<u32>>, String> {
    let range = |item: &String| {
        let err = || format!("'{item}' is not a range 'first:last' of numbers from 1 to {LARGEST_VNI}");
        let (first, last) = item.split_once(':').ok_or_else(err)?;
        let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| (1..=LARGEST_VNI).contains(n)).ok_or_else(err);
        let (first, last) = (number(first)?, number(last)?);
        if first > last { Err(format!("the range '{item}' ends before it begins")) } else { Ok(first..=last) }
    };
    list(text).iter().map(range).collect()
}

/// Replaces the password of a URL (`scheme://user:password@host`), and of every further address in
/// it: oslo.messaging's URLs list several.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = match rest.find(['/', '?']) {
        // A '/' inside a password is against the rules but happens: look for the last '@' instead.
        Some(_) if rest.contains('@') => {
            let end = rest.rfind('@').unwrap_or(0);
            let tail = rest[end..].find(['/', '?']).map_or(rest.len(), |n| end + n);
            rest.split_at(tail)
        }
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let mask = |address: &str| match address.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:<secret>@{host}"),
            None => format!("{user}@{host}"),
        },
        None => address.to_owned(),
    };
    // A comma is a separator only where every part is an address of its own, not part of a password.
    let addresses: Vec<&str> = authority.split(',').collect();
    let masked = if addresses.iter().all(|a| a.contains('@')) {
        addresses.into_iter().map(mask).collect::<Vec<_>>().join(",")
    } else {
        mask(authority)
    };
    format!("{scheme}://{masked}{}", without_password_parameter(path))
}

/// Replaces the value of `password=` in a URL's query, which is another place for it.
fn without_password_parameter(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let mask = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if name.ends_with("password") => format!("{name}=<secret>"),
        _ => pair.to_owned(),
    };
    format!("{path}?{}", query.split('&').map(mask).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_would_do() {
        let refused = |kind: Kind, text| kind.parse(text).unwrap_err();
        assert_eq!(refused(Kind::Bool, "maybe"), "'maybe' is neither true nor false");
        assert_eq!(refused(Kind::Int(1, 255), "0"), "0 is too small: at least 1 is needed");
        assert_eq!(refused(Kind::Int(1, 255), "256"), "256 is too large: at most 255 is possible");
        assert_eq!(refused(Kind::Int(1, 255), "2.5"), "'2.5' is not a whole number");
        assert_eq!(refused(Kind::Choice(&["legacy", "dvr"]), "DVR"), "'DVR' is not one of legacy, dvr");
        assert_eq!(refused(Kind::Ip, "TUNNEL_IP"), "'TUNNEL_IP' is not an IP address");
        assert!(refused(Kind::Ipv4Cidr, "169.254.192.1/18").contains("the network is 169.254.192.0/18"));
        assert!(refused(Kind::Mapping, "physnet1").contains("is not 'name:value'"));
        assert!(refused(Kind::Mapping, "a:br-ex,b:br-ex").contains("used twice"));
        assert!(refused(Kind::Mapping, "a:br-ex,a:br-in").contains("mapped twice"));
        assert!(refused(Kind::Mtus, "a:1500,b:9").contains("MTU of 'b'"));
        assert!(refused(Kind::VniRanges, "20:10").contains("ends before it begins"));
        assert!(refused(Kind::VniRanges, "1:16777216").contains("16777215"));
        assert!(refused(Kind::Seconds(1), "nan").contains("at least 1"));
    }

    #[test]
    fn lists_and_mappings_tolerate_blanks_continuation_lines_and_a_last_comma() {
        assert_eq!(
            Kind::List.parse("flat,\nvxlan, local,").unwrap(),
            Value::List(vec!["flat".into(), "vxlan".into(), "local".into()])
        );
        assert_eq!(Kind::List.parse("").unwrap(), Value::List(vec![]));
        let map = BTreeMap::from([("physnet1".to_owned(), "br-ex".to_owned())]);
        assert_eq!(Kind::Mapping.parse(" physnet1 : br-ex ,").unwrap(), Value::Mapping(map));
    }

    #[test]
    fn passwords_do_not_show() {
        assert_eq!(Kind::Secret.shown("hunter2"), "<secret>");
        assert_eq!(
            Kind::Url.shown("mysql+pymysql://neutron:pa/ss@word@db:3306/neutron?charset=utf8"),
            "mysql+pymysql://neutron:<secret>@db:3306/neutron?charset=utf8"
        );
        assert_eq!(
            Kind::Url.shown("postgresql://db/neutron?user=u&password=hunter2&connect_timeout=3"),
            "postgresql://db/neutron?user=u&password=<secret>&connect_timeout=3"
        );
        assert_eq!(
            Kind::Url.shown("rabbit://a:one@r1:5672,b:two@r2:5672/vhost"),
            "rabbit://a:<secret>@r1:5672,b:<secret>@r2:5672/vhost"
        );
        assert_eq!(Kind::Url.shown("rabbit://a:one,two@r1:5672/"), "rabbit://a:<secret>@r1:5672/");
        assert_eq!(Kind::Url.shown("sqlite:////var/lib/evergate/a@b"), "sqlite:////var/lib/evergate/a@b");
        assert_eq!(Kind::Url.shown("http://controller:9696"), "http://controller:9696");
    }
}
