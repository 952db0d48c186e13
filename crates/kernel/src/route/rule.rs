//! Policy routing rules.

use std::net::{IpAddr, Ipv4Addr};

use evergate_dataplane::state::{ROUTE_PROTOCOL_STATIC, Rule};
use ipnet::IpNet;
use libc::{NLM_F_CREATE, NLM_F_EXCL};

use super::family;
use crate::error::Cause;
use crate::uapi::{FR_ACT_TO_TBL, FRA_DST, FRA_IIFNAME, FRA_PRIORITY, FRA_PROTOCOL, FRA_SRC, FRA_TABLE, RTPROT_KERNEL};
use crate::wire::{Attrs, Message, ip, text, u32_at};

/// Length of `struct fib_rule_hdr`.
const BODY: usize = 12;

fn request(kind: u16, flags: i32, rule: &Rule) -> Result<Vec<u8>, Cause> {
    let families = [rule.from, rule.to].map(|net| net.map(|net| family(net.addr())));
    let family = match families {
        [Some(from), Some(to)] if from != to => {
            return Err(Cause::Invalid("a rule's prefixes are of different address families".to_owned()));
        }
        [from, to] => from.or(to).unwrap_or_else(|| family(Ipv4Addr::UNSPECIFIED.into())),
    };
    let prefix_len = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
    let body = [family, prefix_len(rule.to), prefix_len(rule.from), 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    Ok(Message::request(kind, flags)
        .body(&body)
        .when(rule.to, |m, net| m.attr_ip(FRA_DST, net.network()))
        .when(rule.from, |m, net| m.attr_ip(FRA_SRC, net.network()))
        .when(rule.iif.as_ref(), |m, iif| m.attr_str(FRA_IIFNAME, iif))
        .attr_u32(FRA_PRIORITY, rule.priority)
        .attr_u32(FRA_TABLE, rule.table)
        .attr_u8(FRA_PROTOCOL, ROUTE_PROTOCOL_STATIC)
        .finish())
}

/// Adds a rule. (Without `EXCL` the kernel would add it once more each time.)
pub(crate) fn add(rule: &Rule) -> Result<Vec<u8>, Cause> {
    request(libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule)
}

/// Removes a rule.
pub(crate) fn delete(rule: &Rule) -> Result<Vec<u8>, Cause> {
    request(libc::RTM_DELRULE, 0, rule)
}

/// Lists the rules of one address family.
pub(crate) fn dump(family: i32) -> Message {
    let mut body = [0; BODY];
    body[0] = family as u8;
    super::dump(libc::RTM_GETRULE, &body)
}

/// Reads a rule; `None` for the kernel's own, and for one that our words cannot express.
pub(crate) fn read(payload: &[u8]) -> Option<Rule> {
    let attrs = Attrs::after(payload, BODY);
    let number = |attribute| attrs.get(attribute).and_then(|value| u32_at(value, 0));
    let protocol = attrs.get(FRA_PROTOCOL).and_then(|value| value.first().copied());
    if protocol == Some(RTPROT_KERNEL) || *payload.get(7)? != FR_ACT_TO_TBL {
        return None;
    }
    let prefix = |attribute, prefix_len| {
        attrs.get(attribute).and_then(ip).and_then(|ip: IpAddr| IpNet::new(ip, prefix_len).ok())
    };
    let rule = Rule {
        priority: number(FRA_PRIORITY).unwrap_or(0),
        from: prefix(FRA_SRC, payload[2]),
        to: prefix(FRA_DST, payload[1]),
        iif: attrs.get(FRA_IIFNAME).map(text),
        table: number(FRA_TABLE).unwrap_or_else(|| u32::from(payload[4])),
    };
    // A rule without prefixes is IPv4's in our words.
    let says_its_family = rule.from.is_some() || rule.to.is_some() || i32::from(payload[0]) == libc::AF_INET;
    says_its_family.then_some(rule)
}
