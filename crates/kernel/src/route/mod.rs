//! Route netlink: our words to the kernel's messages, and back.
//!
//! Each submodule writes the requests for one kind of object and reads what the kernel lists of it.
//! Links are indexes here; names were resolved before, and are put back after.

pub(crate) mod address;
pub(crate) mod link;
pub(crate) mod neighbour;
pub(crate) mod nexthop;
pub(crate) mod routes;
pub(crate) mod rule;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use libc::{NLM_F_DUMP, NLM_F_REQUEST};

use crate::wire::Message;

/// A request to list all objects of a kind. The body is the kind's header, all zero but for filters.
fn dump(kind: u16, body: &[u8]) -> Message {
    Message::with_flags(kind, NLM_F_REQUEST | NLM_F_DUMP).body(body)
}

/// Address family of an address.
pub(crate) fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}
