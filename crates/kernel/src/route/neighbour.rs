//! Neighbour entries, and forwarding entries, which are neighbours of the bridge family.

use std::net::IpAddr;

use evergate_dataplane::state::FdbTable;
use evergate_model::Mac;
use libc::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};

use super::family;
use crate::uapi::{NDA_NH_ID, NTF_STICKY};
use crate::wire::{Attrs, Message, ip, u16_at, u32_at};

/// Length of `struct ndmsg`.
const BODY: usize = 12;

const BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// A permanent neighbour entry as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawNeighbour {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: Mac,
}

/// A static forwarding entry as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawFdb {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) table: FdbTable,
}

fn body(family: u8, index: u32, state: u16, flags: u8) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[0] = family;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..10].copy_from_slice(&state.to_ne_bytes());
    body[10] = flags;
    body
}

/// Sets a permanent neighbour entry.
pub(crate) fn set(index: u32, ip: IpAddr, mac: Mac) -> Vec<u8> {
    Message::request(libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&body(family(ip), index, libc::NUD_PERMANENT, 0))
        .attr_ip(libc::NDA_DST, ip)
        .attr(libc::NDA_LLADDR, &mac.0)
        .finish()
}

/// Removes a neighbour entry.
pub(crate) fn delete(index: u32, ip: IpAddr) -> Vec<u8> {
    Message::request(libc::RTM_DELNEIGH, 0).body(&body(family(ip), index, 0, 0)).attr_ip(libc::NDA_DST, ip).finish()
}

/// Lists the neighbour entries of IPv4 and IPv6.
pub(crate) fn dump() -> Message {
    super::dump(libc::RTM_GETNEIGH, &body(libc::AF_UNSPEC as u8, 0, 0, 0))
}

/// Reads a neighbour entry; `None` for one that is not permanent.
pub(crate) fn read(payload: &[u8]) -> Option<RawNeighbour> {
    if u16_at(payload, 8)? & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let attrs = Attrs::after(payload, BODY);
    Some(RawNeighbour {
        index: u32_at(payload, 4)?,
        ip: attrs.get(libc::NDA_DST).and_then(ip)?,
        mac: attrs.get(libc::NDA_LLADDR).and_then(|value| value.try_into().ok()).map(Mac)?,
    })
}

/// A forwarding request. The bridge calls a static entry one that needs no ARP, a VXLAN device a permanent one.
fn fdb(kind: u16, flags: i32, index: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    let (state, whose, dst, group) = match table {
        FdbTable::Bridge => (libc::NUD_NOARP, libc::NTF_MASTER, None, None),
        FdbTable::BridgeSticky => (libc::NUD_NOARP, libc::NTF_MASTER | NTF_STICKY, None, None),
        FdbTable::Vxlan { dst } => (libc::NUD_PERMANENT, libc::NTF_SELF, Some(*dst), None),
        FdbTable::Nexthop { group } => (libc::NUD_PERMANENT, libc::NTF_SELF, None, Some(*group)),
    };
    Message::request(kind, flags)
        .body(&body(BRIDGE, index, state, whose))
        .attr(libc::NDA_LLADDR, &mac.0)
        .when(dst, |m, dst| m.attr_ip(libc::NDA_DST, dst))
        .when(group, |m, group| m.attr_u32(NDA_NH_ID, group))
        .finish()
}

/// Sets a static forwarding entry: appended to the flood list for [`Mac::ZERO`], else in place of the one there is.
pub(crate) fn set_fdb(index: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    let how = if mac == Mac::ZERO { NLM_F_APPEND } else { NLM_F_REPLACE };
    fdb(libc::RTM_NEWNEIGH, NLM_F_CREATE | how, index, mac, table)
}

/// Removes a static forwarding entry.
pub(crate) fn delete_fdb(index: u32, mac: Mac, table: &FdbTable) -> Vec<u8> {
    fdb(libc::RTM_DELNEIGH, 0, index, mac, table)
}

/// Lists all forwarding entries.
pub(crate) fn dump_fdb() -> Message {
    super::dump(libc::RTM_GETNEIGH, &body(BRIDGE, 0, 0, 0))
}

/// Reads a forwarding entry; `None` for a learned one, a port's own address, or a multicast subscription.
pub(crate) fn read_fdb(payload: &[u8]) -> Option<RawFdb> {
    let attrs = Attrs::after(payload, BODY);
    let state = u16_at(payload, 8)?;
    let dst = attrs.get(libc::NDA_DST).and_then(ip);
    let group = attrs.get(NDA_NH_ID).and_then(|value| u32_at(value, 0));
    let is_sticky = *payload.get(10)? & NTF_STICKY != 0;
    // Only a bridge lists its entries with the bridge they belong to.
    let table = match (attrs.get(libc::NDA_MASTER), dst, group) {
        (Some(_), ..) if state & libc::NUD_NOARP != 0 && is_sticky => FdbTable::BridgeSticky,
        (Some(_), ..) if state & libc::NUD_NOARP != 0 => FdbTable::Bridge,
        (None, Some(dst), None) if state & libc::NUD_PERMANENT != 0 => FdbTable::Vxlan { dst },
        (None, None, Some(group)) if state & libc::NUD_PERMANENT != 0 => FdbTable::Nexthop { group },
        (Some(_) | None, ..) => return None,
    };
    let mac = attrs.get(libc::NDA_LLADDR).and_then(|value| value.try_into().ok()).map(Mac)?;
    Some(RawFdb { index: u32_at(payload, 4)?, mac, table })
}
