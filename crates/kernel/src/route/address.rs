//! Addresses on links.

use std::net::IpAddr;

use evergate_dataplane::state::Address;
use ipnet::IpNet;
use libc::{NLM_F_CREATE, NLM_F_REPLACE};

use super::family;
use crate::wire::{Attrs, Message, ip, u32_at};

/// Length of `struct ifaddrmsg`.
const BODY: usize = 8;

/// An address as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawAddress {
    pub(crate) index: u32,
    pub(crate) net: IpNet,
    /// Not one that goes by itself (from a router advertisement, or temporary).
    pub(crate) is_permanent: bool,
}

fn body(family: u8, prefix_len: u8, flags: u8, scope: u8, index: u32) -> [u8; BODY] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix_len, flags, scope, a, b, c, d]
}

fn request(kind: u16, flags: i32, index: u32, scope: u8, net: IpNet) -> Vec<u8> {
    let ip = net.addr();
    // The address was the active copy's a moment ago: duplicate detection would keep it unusable for a
    // second and might find its former owner. (For IPv4 the flag means nothing.)
    let address_flags = if ip.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    Message::request(kind, flags)
        .body(&body(family(ip), net.prefix_len(), address_flags, scope, index))
        .attr_ip(libc::IFA_LOCAL, ip)
        .attr_ip(libc::IFA_ADDRESS, ip)
        .finish()
}

/// Adds an address, or leaves the same one as it is.
pub(crate) fn add(index: u32, address: &Address) -> Vec<u8> {
    let scope = if address.is_of_link() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    request(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, scope, address.net)
}

/// Removes an address.
pub(crate) fn delete(index: u32, net: IpNet) -> Vec<u8> {
    request(libc::RTM_DELADDR, 0, index, libc::RT_SCOPE_UNIVERSE, net)
}

/// Lists addresses, of one link or (0) of all.
pub(crate) fn dump(index: u32) -> Message {
    super::dump(libc::RTM_GETADDR, &body(0, 0, 0, 0, index))
}

/// Reads an address.
pub(crate) fn read(payload: &[u8]) -> Option<RawAddress> {
    let prefix_len = *payload.get(1)?;
    let attrs = Attrs::after(payload, BODY);
    // On a point-to-point link, IFA_ADDRESS is the other side's; IPv6 has only that otherwise.
    let address = attrs.get(libc::IFA_LOCAL).or_else(|| attrs.get(libc::IFA_ADDRESS)).and_then(ip)?;
    let flags = attrs.get(libc::IFA_FLAGS).and_then(|v| u32_at(v, 0)).unwrap_or_else(|| u32::from(payload[2]));
    Some(RawAddress {
        index: u32_at(payload, 4)?,
        net: IpNet::new(address, prefix_len).ok()?,
        is_permanent: flags & libc::IFA_F_PERMANENT != 0,
    })
}

/// Tells whether the address is one that the kernel makes by itself on every link.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
