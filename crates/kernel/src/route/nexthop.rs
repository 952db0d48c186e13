//! Nexthop objects that VXLAN forwarding entries point at.
//!
//! A *leaf* names a tunnel address; a *group* of one leaf is what an entry can point at (the kernel takes no
//! leaf for that). Replacing the leaf moves every entry of the group at once.

use std::net::IpAddr;

use libc::{NLM_F_CREATE, NLM_F_REPLACE};

use super::family;
use crate::uapi::{
    NEXTHOP_PROTOCOL, NHA_FDB, NHA_GATEWAY, NHA_GROUP, NHA_ID, RTM_DELNEXTHOP, RTM_GETNEXTHOP, RTM_NEWNEXTHOP,
};
use crate::wire::{Attrs, Message, ip, u32_at};

/// Length of `struct nhmsg`.
const BODY: usize = 8;

/// A nexthop object as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawNexthop {
    pub(crate) id: u32,
    pub(crate) what: Kind,
}

/// What a nexthop object is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One of ours: leads to a tunnel address.
    Leaf(IpAddr),
    /// One of ours: a group of this leaf alone.
    Group(u32),
    /// Somebody else's, or nothing that we would make.
    Foreign,
}

fn body(family: u8, protocol: u8) -> [u8; BODY] {
    [family, 0, protocol, 0, 0, 0, 0, 0]
}

/// Makes a leaf, or lets it lead elsewhere.
pub(crate) fn set_leaf(id: u32, to: IpAddr) -> Vec<u8> {
    Message::request(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&body(family(to), NEXTHOP_PROTOCOL))
        .attr_u32(NHA_ID, id)
        .attr_ip(NHA_GATEWAY, to)
        .attr(NHA_FDB, &[])
        .finish()
}

/// Makes a group of one leaf.
pub(crate) fn set_group(id: u32, leaf: u32) -> Vec<u8> {
    // struct nexthop_grp: id, weight less one, two reserved bytes and a half.
    let [a, b, c, d] = leaf.to_ne_bytes();
    Message::request(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE)
        .body(&body(libc::AF_UNSPEC as u8, NEXTHOP_PROTOCOL))
        .attr_u32(NHA_ID, id)
        .attr(NHA_GROUP, &[a, b, c, d, 0, 0, 0, 0])
        .attr(NHA_FDB, &[])
        .finish()
}

/// Removes either. With a group go the entries that point at it.
pub(crate) fn delete(id: u32) -> Vec<u8> {
    Message::request(RTM_DELNEXTHOP, 0).body(&body(libc::AF_UNSPEC as u8, 0)).attr_u32(NHA_ID, id).finish()
}

/// Lists all.
pub(crate) fn dump() -> Message {
    super::dump(RTM_GETNEXTHOP, &body(libc::AF_UNSPEC as u8, 0))
}

/// Reads a nexthop object.
pub(crate) fn read(payload: &[u8]) -> Option<RawNexthop> {
    let attrs = Attrs::after(payload, BODY);
    let id = attrs.get(NHA_ID).and_then(|value| u32_at(value, 0))?;
    let ours = *payload.get(2)? == NEXTHOP_PROTOCOL && attrs.get(NHA_FDB).is_some();
    let what = match (attrs.get(NHA_GATEWAY).and_then(ip), attrs.get(NHA_GROUP)) {
        (Some(to), None) if ours => Kind::Leaf(to),
        (None, Some(members)) if ours && members.len() == 8 => Kind::Group(u32_at(members, 0)?),
        (_, _) => Kind::Foreign,
    };
    Some(RawNexthop { id, what })
}
