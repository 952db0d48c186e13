//! What stands in blocks: addresses, routes, rules, what is tracked, and commands.

use std::net::IpAddr;

use evergate_kernel::rt::RouteKind;
use ipnet::IpNet;

use super::syntax::{Problems, Statement};
use super::{Command, Hop, Route, Rule, VirtualAddress};

const TABLE_MAIN: u32 = 254;

/// RTPROT_KEEPALIVED: how other tools tell whose a route is, whoever speaks VRRP.
const PROTOCOL: u8 = 18;

/// One line of `virtual_ipaddress`.
pub(super) fn virtual_address(line: &Statement, interface: &str, problems: &mut Problems) -> Option<VirtualAddress> {
    let net = net(line, line.keyword(), problems)?;
    let mut address = VirtualAddress { net, dev: interface.to_owned(), broadcast: None, label: None, scope: 0 };
    let mut words = line.arguments().iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            // Nothing of these changes what we do.
            "no_track" | "track" | "-nodad" => continue,
            "dev" | "label" | "scope" | "brd" | "broadcast" => {}
            _ => {
                problems.error(line, format!("'{word}' is not supported here"));
                return None;
            }
        }
        let Some(value) = words.next() else {
            problems.error(line, format!("{word} needs a value"));
            return None;
        };
        match word {
            "dev" => value.clone_into(&mut address.dev),
            "label" => address.label = Some(value.to_owned()),
            "scope" => address.scope = scope(line, value, problems)?,
            _ => address.broadcast = broadcast(line, value, net, problems)?,
        }
    }
    if address.label.as_ref().is_some_and(|label| label.len() > 15) {
        problems.error(line, "has a label of more than 15 characters");
        return None;
    }
    if net.addr().is_ipv6() && (address.label.is_some() || address.broadcast.is_some()) {
        problems.error(line, "is an IPv6 address, which has neither label nor broadcast address");
        return None;
    }
    Some(address)
}

/// `+` and `-` set or clear the host part.
fn broadcast(line: &Statement, value: &str, net: IpNet, problems: &mut Problems) -> Option<Option<std::net::Ipv4Addr>> {
    let found = match (value, net) {
        ("+", IpNet::V4(net)) => Some(net.broadcast()),
        ("-", IpNet::V4(net)) => Some(net.network()),
        _ => value.parse().ok(),
    };
    if found.is_none() {
        problems.error(line, format!("brd '{value}' is not an IPv4 address"));
        return None;
    }
    Some(found)
}

fn scope(line: &Statement, value: &str, problems: &mut Problems) -> Option<u8> {
    let scope = match value {
        "global" => Some(0),
        "site" => Some(200),
        "link" => Some(253),
        "host" => Some(254),
        "nowhere" => Some(255),
        number => number.parse().ok(),
    };
    if scope.is_none() {
        problems.error(line, format!("has the unknown scope '{value}'"));
    }
    scope
}

/// An address with or without a prefix length; without it, of a single host.
fn net(line: &Statement, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let parsed = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if parsed.is_none() {
        problems.error(line, format!("'{text}' is not an address or a prefix"));
    }
    parsed
}

fn ip(line: &Statement, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        problems.error(line, format!("'{text}' is not an IP address"));
    }
    parsed
}

fn integer<T: std::str::FromStr>(line: &Statement, what: &str, text: &str, problems: &mut Problems) -> Option<T> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok().and_then(|number| number.to_string().parse().ok()),
        None => text.parse().ok(),
    };
    if parsed.is_none() {
        problems.error(line, format!("has an impossible {what} '{text}'"));
    }
    parsed
}

fn table(line: &Statement, text: &str, problems: &mut Problems) -> Option<u32> {
    match text {
        "main" => Some(TABLE_MAIN),
        "local" => Some(255),
        "default" => Some(253),
        _ => integer(line, "table (use its number)", text, problems),
    }
}

fn protocol(line: &Statement, text: &str, problems: &mut Problems) -> Option<u8> {
    match text {
        "static" => Some(4),
        "boot" => Some(3),
        "keepalived" => Some(PROTOCOL),
        _ => integer(line, "protocol (use its number)", text, problems),
    }
}

/// One line of `virtual_routes`.
pub(super) fn virtual_route(line: &Statement, problems: &mut Problems) -> Option<Route> {
    let mut words = line.words.iter().map(String::as_str).peekable();
    let kind = match words.peek() {
        Some(&"blackhole") => Some(RouteKind::Blackhole),
        Some(&"unreachable") => Some(RouteKind::Unreachable),
        Some(&"prohibit") => Some(RouteKind::Prohibit),
        Some(&"unicast") => Some(RouteKind::Unicast),
        _ => None,
    };
    if kind.is_some() {
        words.next();
    }
    if words.peek() == Some(&"to") {
        words.next();
    }
    let words: Vec<&str> = words.collect();
    let Some((&text, options)) = words.split_first() else {
        problems.error(line, "is no route");
        return None;
    };
    let destination = destination(line, text, options, problems)?;
    let mut route = Route {
        destination,
        kind: kind.unwrap_or(RouteKind::Unicast),
        hops: Vec::new(),
        source: None,
        metric: None,
        scope: None,
        table: TABLE_MAIN,
        protocol: PROTOCOL,
    };
    let mut parts = options.split(|word| *word == "nexthop");
    let single = hop(line, parts.next().unwrap_or_default(), Some(&mut route), problems)?;
    let mut hops = Vec::new();
    for part in parts {
        hops.push(hop(line, part, None, problems)?);
    }
    match (route.kind, hops.is_empty()) {
        (RouteKind::Unicast, true) if single.via.is_none() && single.dev.is_none() => {
            problems.error(line, "needs via or dev");
            return None;
        }
        (RouteKind::Unicast, true) => route.hops = vec![single],
        (RouteKind::Unicast, false) => route.hops = hops,
        _ => {}
    }
    Some(route)
}

/// `default` is of the next hop's family.
fn destination(line: &Statement, text: &str, options: &[&str], problems: &mut Problems) -> Option<IpNet> {
    if text != "default" {
        return net(line, text, problems).map(|net| net.trunc());
    }
    let ipv6 = options.iter().any(|word| word.parse::<std::net::Ipv6Addr>().is_ok());
    let any = if ipv6 { "::/0" } else { "0.0.0.0/0" };
    Some(any.parse().expect("both are prefixes"))
}

/// Words of one way, and, where `route` is given, of the whole route.
fn hop(line: &Statement, words: &[&str], mut route: Option<&mut Route>, problems: &mut Problems) -> Option<Hop> {
    let mut hop = Hop { weight: 1, ..Hop::default() };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "no_track" | "track" | "inet" | "inet6" => continue,
            "onlink" => {
                hop.onlink = true;
                continue;
            }
            _ => {}
        }
        // `src 192.0.2.1 192.0.2.0/24`, an old order, would be read wrongly: it is refused below.
        let Some(value) = words.next() else {
            problems.error(line, format!("'{word}' is not supported here, or lacks its value"));
            return None;
        };
        match (word, route.as_deref_mut()) {
            ("via" | "gw", _) => hop.via = Some(ip(line, value, problems)?),
            ("dev" | "oif", _) => hop.dev = Some(value.to_owned()),
            ("weight", None) => hop.weight = integer(line, "weight", value, problems)?,
            ("src", Some(route)) => route.source = Some(ip(line, value, problems)?),
            ("metric" | "priority" | "preference", Some(route)) => {
                route.metric = Some(integer(line, "metric", value, problems)?);
            }
            ("table", Some(route)) => route.table = table(line, value, problems)?,
            ("scope", Some(route)) => route.scope = Some(scope(line, value, problems)?),
            ("proto" | "protocol", Some(route)) => route.protocol = protocol(line, value, problems)?,
            _ => {
                problems.error(line, format!("'{word}' is not supported in a route"));
                return None;
            }
        }
    }
    Some(hop)
}

/// One line of `virtual_rules`.
pub(super) fn virtual_rule(line: &Statement, problems: &mut Problems) -> Option<Rule> {
    let mut rule = Rule {
        ipv6: false,
        from: None,
        to: None,
        iif: None,
        oif: None,
        fwmark: None,
        priority: None,
        table: 0,
        protocol: PROTOCOL,
    };
    let mut words = line.words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "no_track" | "track" | "inet" => continue,
            "inet6" => {
                rule.ipv6 = true;
                continue;
            }
            _ => {}
        }
        let Some(value) = words.next() else {
            problems.error(line, format!("'{word}' is not supported here, or lacks its value"));
            return None;
        };
        match word {
            "from" if value == "all" => {}
            "to" if value == "all" => {}
            "from" => rule.from = Some(net(line, value, problems)?.trunc()),
            "to" => rule.to = Some(net(line, value, problems)?.trunc()),
            "iif" | "dev" => rule.iif = Some(value.to_owned()),
            "oif" => rule.oif = Some(value.to_owned()),
            "fwmark" => rule.fwmark = Some(integer(line, "fwmark", value, problems)?),
            "priority" | "preference" | "pref" | "order" => {
                rule.priority = Some(integer(line, "priority", value, problems)?);
            }
            "table" | "lookup" => rule.table = table(line, value, problems)?,
            "proto" | "protocol" => rule.protocol = protocol(line, value, problems)?,
            _ => {
                problems.error(line, format!("'{word}' is not supported in a rule"));
                return None;
            }
        }
    }
    let nets = [rule.from, rule.to];
    if nets.iter().flatten().any(|net| net.addr().is_ipv6()) {
        rule.ipv6 = true;
        if nets.iter().flatten().any(|net| net.addr().is_ipv4()) {
            problems.error(line, "has prefixes of two address families");
            return None;
        }
    }
    if rule.table == 0 {
        problems.error(line, "is a rule without a table, which is not supported");
        return None;
    }
    Some(rule)
}

/// `<keyword> <command> [user [group]]`; a command with arguments stands in quotes.
pub(super) fn command(
    statement: &Statement,
    user: Option<&(String, Option<String>)>,
    problems: &mut Problems,
) -> Option<Command> {
    let (text, own) = match statement.arguments() {
        [text] => (text, None),
        [text, user] => (text, Some((user.clone(), None))),
        [text, user, group] => (text, Some((user.clone(), Some(group.clone())))),
        _ => {
            problems.error(statement, "takes a command (in quotes if it has arguments), and perhaps user and group");
            return None;
        }
    };
    let words = split_command(text);
    if words.first().is_none_or(|program| !program.starts_with('/')) {
        problems.error(statement, "must name a program by its whole path");
        return None;
    }
    let (user, group) = match own.as_ref().or(user) {
        Some((user, group)) => (Some(user.clone()), group.clone()),
        None => (None, None),
    };
    Some(Command { words, user, group })
}

/// Splits at white space, outside quotes. There is no shell.
fn split_command(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', Some('"') | None) => word.get_or_insert_default().extend(characters.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
