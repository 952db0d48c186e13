//! Routes with protocol static.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evergate_dataplane::state::{ROUTE_PROTOCOL_STATIC, Route};
use ipnet::IpNet;
use libc::{NLM_F_CREATE, NLM_F_REPLACE};

use super::family;
use crate::error::Cause;
use crate::wire::{Attrs, Message, ip, u32_at};

/// Length of `struct rtmsg`.
const BODY: usize = 12;

/// A route as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawRoute {
    pub(crate) table: u32,
    pub(crate) destination: IpNet,
    pub(crate) via: Option<IpAddr>,
    pub(crate) index: Option<u32>,
}

fn body(family: u8, prefix_len: u8, scope: u8, kind: u8) -> [u8; BODY] {
    // The table is an attribute, because this field holds numbers below 256 only.
    [family, prefix_len, 0, 0, 0, ROUTE_PROTOCOL_STATIC, scope, kind, 0, 0, 0, 0]
}

fn attributes(message: Message, route: &Route, index: Option<u32>) -> Vec<u8> {
    message
        .attr_u32(libc::RTA_TABLE, route.table)
        .when((route.destination.prefix_len() > 0).then(|| route.destination.network()), |m, ip| {
            m.attr_ip(libc::RTA_DST, ip)
        })
        .when(route.via, |m, via| m.attr_ip(libc::RTA_GATEWAY, via))
        .when(index, |m, index| m.attr_u32(libc::RTA_OIF, index))
        .finish()
}

/// Adds a route, or replaces the one to the same destination in the table.
pub(crate) fn add(route: &Route, index: Option<u32>) -> Result<Vec<u8>, Cause> {
    check(route)?;
    let scope = if route.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let family = family(route.destination.addr());
    let message = Message::request(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE).body(&body(
        family,
        route.destination.prefix_len(),
        scope,
        libc::RTN_UNICAST,
    ));
    Ok(attributes(message, route, index))
}

/// Removes a route, whatever its scope and type.
pub(crate) fn delete(route: &Route, index: Option<u32>) -> Result<Vec<u8>, Cause> {
    check(route)?;
    let family = family(route.destination.addr());
    let message = Message::request(libc::RTM_DELROUTE, 0).body(&body(
        family,
        route.destination.prefix_len(),
        libc::RT_SCOPE_NOWHERE,
        libc::RTN_UNSPEC,
    ));
    Ok(attributes(message, route, index))
}

fn check(route: &Route) -> Result<(), Cause> {
    match route.via {
        Some(via) if via.is_ipv4() != route.destination.addr().is_ipv4() => {
            Err(Cause::Invalid(format!("next hop {via} is of another address family")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Lists routes with protocol static, of one address family, in all tables.
pub(crate) fn dump(family: i32) -> Message {
    super::dump(libc::RTM_GETROUTE, &body(family as u8, 0, 0, 0))
}

/// Reads a route; `None` for one of another protocol.
pub(crate) fn read(payload: &[u8]) -> Option<RawRoute> {
    if *payload.get(5)? != ROUTE_PROTOCOL_STATIC {
        return None;
    }
    let attrs = Attrs::after(payload, BODY);
    let any: IpAddr = match i32::from(payload[0]) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let destination = attrs.get(libc::RTA_DST).and_then(ip).unwrap_or(any);
    let number = |attribute| attrs.get(attribute).and_then(|value| u32_at(value, 0));
    // A blackhole, or one with several next hops, is none of ours. It is listed by its destination alone,
    // so that it shows as drift. (An IPv6 blackhole has the loopback device as its link.)
    let is_plain = *payload.get(7)? == libc::RTN_UNICAST;
    Some(RawRoute {
        table: number(libc::RTA_TABLE).unwrap_or_else(|| u32::from(payload[4])),
        destination: IpNet::new(destination, payload[1]).ok()?,
        via: attrs.get(libc::RTA_GATEWAY).and_then(ip),
        index: number(libc::RTA_OIF).filter(|_| is_plain),
    })
}
