//! Messages for [`BatchSocket`] with more of the kernel's words than a cloud router needs: labels, scopes,
//! metrics, several next hops. An operator's configuration of VRRP uses them.

use std::net::{IpAddr, Ipv4Addr};

use evergate_model::Mac;
use ipnet::IpNet;
use libc::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::BatchSocket;
use crate::error::{Cause, Error};
use crate::route::{address, family, link};
use crate::uapi::{FR_ACT_TO_TBL, FRA_DST, FRA_IIFNAME, FRA_PRIORITY, FRA_PROTOCOL, FRA_SRC, FRA_TABLE};
use crate::wire::{Frames, Message};

/// `linux/rtnetlink.h`.
const RTNH_F_ONLINK: u8 = 4;

/// `linux/fib_rules.h`, beyond what `uapi` has.
const FRA_FWMARK: u16 = 10;
const FRA_OIFNAME: u16 = 17;

/// Adds or removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds, or leaves what is there already.
    Add,
    /// Removes.
    Remove,
}

/// An address, with all that `ip address add` knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedAddress {
    /// On which link.
    pub ifindex: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Name that old tools show, such as `eth0:1`.
    pub label: Option<String>,
    /// How far it is valid; 0 is everywhere.
    pub scope: u8,
}

/// A route, with what an operator writes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedRoute {
    /// Destination.
    pub destination: IpNet,
    /// Ordinary, or one that refuses.
    pub kind: RouteKind,
    /// Ways there; none for one that refuses.
    pub hops: Vec<NextHop>,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// Metric; lower is preferred.
    pub metric: Option<u32>,
    /// Scope, if not the usual one.
    pub scope: Option<u8>,
    /// Routing table.
    pub table: u32,
    /// Who put it there.
    pub protocol: u8,
}

/// What becomes of packets on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// They are forwarded.
    Unicast,
    /// They are dropped silently.
    Blackhole,
    /// The sender is told that there is no way.
    Unreachable,
    /// The sender is told that it may not.
    Prohibit,
}

/// One way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Router to send to.
    pub via: Option<IpAddr>,
    /// Outgoing link.
    pub ifindex: Option<u32>,
    /// The router is on the link whatever the addresses say.
    pub onlink: bool,
    /// Share among several, 1 to 256.
    pub weight: u16,
}

/// A policy routing rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedRule {
    /// It is for IPv6.
    pub ipv6: bool,
    /// Source.
    pub from: Option<IpNet>,
    /// Destination.
    pub to: Option<IpNet>,
    /// Incoming link.
    pub iif: Option<String>,
    /// Outgoing link.
    pub oif: Option<String>,
    /// Packet mark.
    pub fwmark: Option<u32>,
    /// Lower is asked first.
    pub priority: Option<u32>,
    /// Table to look up.
    pub table: u32,
    /// Who put it there.
    pub protocol: u8,
}

/// The message that adds or removes an address. There is no duplicate address detection: the address was the
/// active router's a moment ago.
pub fn address_message(change: Change, address: &PreparedAddress) -> Vec<u8> {
    let (kind, flags) = match change {
        Change::Add => (libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE),
        Change::Remove => (libc::RTM_DELADDR, 0),
    };
    let ip = address.net.addr();
    let address_flags = if ip.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    let [a, b, c, d] = address.ifindex.to_ne_bytes();
    Message::request(kind, flags)
        .body(&[family(ip), address.net.prefix_len(), address_flags, address.scope, a, b, c, d])
        .attr_ip(libc::IFA_LOCAL, ip)
        .attr_ip(libc::IFA_ADDRESS, ip)
        .when(address.broadcast, |m, ip| m.attr_ip(libc::IFA_BROADCAST, ip.into()))
        .when(address.label.as_ref(), |m, label| m.attr_str(libc::IFA_LABEL, label))
        .finish()
}

/// The message that adds (replacing one of the same destination, table and metric) or removes a route.
pub fn route_message(change: Change, route: &PreparedRoute) -> Vec<u8> {
    let (kind, flags) = match change {
        Change::Add => (libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE),
        Change::Remove => (libc::RTM_DELROUTE, 0),
    };
    let route_kind = match route.kind {
        RouteKind::Unicast => libc::RTN_UNICAST,
        RouteKind::Blackhole => libc::RTN_BLACKHOLE,
        RouteKind::Unreachable => libc::RTN_UNREACHABLE,
        RouteKind::Prohibit => libc::RTN_PROHIBIT,
    };
    let on_link = !route.hops.is_empty() && route.hops.iter().all(|hop| hop.via.is_none());
    let usual = if on_link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    let scope = match change {
        Change::Add => route.scope.unwrap_or(usual),
        Change::Remove => route.scope.unwrap_or(libc::RT_SCOPE_NOWHERE),
    };
    let single = if let [hop] = route.hops.as_slice() { Some(hop) } else { None };
    let net = route.destination;
    let [f0, f1, f2, f3] = u32::from(single.map_or(0, hop_flags)).to_ne_bytes();
    let body = [family(net.addr()), net.prefix_len(), 0, 0, 0, route.protocol, scope, route_kind, f0, f1, f2, f3];
    Message::request(kind, flags)
        .body(&body)
        .attr_u32(libc::RTA_TABLE, route.table)
        .when((net.prefix_len() > 0).then(|| net.network()), |m, ip| m.attr_ip(libc::RTA_DST, ip))
        .when(route.source, |m, ip| m.attr_ip(libc::RTA_PREFSRC, ip))
        .when(route.metric, |m, metric| m.attr_u32(libc::RTA_PRIORITY, metric))
        .when(single.and_then(|hop| hop.via), |m, ip| m.attr_ip(libc::RTA_GATEWAY, ip))
        .when(single.and_then(|hop| hop.ifindex), |m, index| m.attr_u32(libc::RTA_OIF, index))
        .when((route.hops.len() > 1).then_some(&route.hops), |m, hops| m.attr(libc::RTA_MULTIPATH, &next_hops(hops)))
        .finish()
}

/// `struct rtnexthop` with its gateway, one after the other.
fn next_hops(hops: &[NextHop]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for hop in hops {
        let gateway = Message::fragment().when(hop.via, |m, ip| m.attr_ip(libc::RTA_GATEWAY, ip)).into_bytes();
        bytes.extend_from_slice(&(8 + gateway.len() as u16).to_ne_bytes());
        // The kernel counts a weight from 0.
        bytes.extend_from_slice(&[hop_flags(hop), hop.weight.saturating_sub(1).min(255) as u8]);
        bytes.extend_from_slice(&hop.ifindex.unwrap_or(0).to_ne_bytes());
        bytes.extend_from_slice(&gateway);
    }
    bytes
}

fn hop_flags(hop: &NextHop) -> u8 {
    if hop.onlink { RTNH_F_ONLINK } else { 0 }
}

/// The message that adds or removes a rule. (Without `EXCL` the kernel would add it once more each time.)
pub fn rule_message(change: Change, rule: &PreparedRule) -> Vec<u8> {
    let (kind, flags) = match change {
        Change::Add => (libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL),
        Change::Remove => (libc::RTM_DELRULE, 0),
    };
    let family = if rule.ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let prefix_len = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
    let body = [family, prefix_len(rule.to), prefix_len(rule.from), 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    Message::request(kind, flags)
        .body(&body)
        .when(rule.to, |m, net| m.attr_ip(FRA_DST, net.network()))
        .when(rule.from, |m, net| m.attr_ip(FRA_SRC, net.network()))
        .when(rule.iif.as_ref(), |m, link| m.attr_str(FRA_IIFNAME, link))
        .when(rule.oif.as_ref(), |m, link| m.attr_str(FRA_OIFNAME, link))
        .when(rule.fwmark, |m, mark| m.attr_u32(FRA_FWMARK, mark))
        .when(rule.priority, |m, priority| m.attr_u32(FRA_PRIORITY, priority))
        .attr_u32(FRA_TABLE, rule.table)
        .attr_u8(FRA_PROTOCOL, rule.protocol)
        .finish()
}

/// The addresses of a link, in the kernel's order: the primary one first.
pub fn link_addresses(socket: &mut BatchSocket, ifindex: u32) -> Result<Vec<IpNet>, Error> {
    let found = socket.0.dump(address::dump(ifindex));
    let found = found.map_err(|cause| Error::new(format!("list the addresses of link {ifindex}"), cause))?;
    let read = Frames(&found).filter_map(|frame| address::read(frame.payload));
    Ok(read.filter(|address| address.index == ifindex).map(|address| address.net).collect())
}

/// The Ethernet address of a link of this name, and its index.
pub fn link_mac(socket: &mut BatchSocket, name: &str) -> Result<Option<(u32, Mac)>, Error> {
    let answer = match socket.0.get(link::get(name)) {
        Ok(answer) => answer,
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENODEV => None,
        Err(cause) => return Err(Error::new(format!("look up link {name}"), cause)),
    };
    let link = answer.as_deref().and_then(link::read);
    Ok(link.map(|link| (link.index, link.mac.unwrap_or(Mac::ZERO))))
}
