//! Frames that tell neighbours which MAC an address has now (RFC 9568 §6.4.2: gratuitous ARP and
//! unsolicited Neighbor Advertisement).
//!
//! They are sent on the interface that carries the address, which for most addresses of a router is
//! not the one VRRP runs on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::icmpv6;
use crate::wire::ethernet_header;

const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];

const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const NA_FLAG_ROUTER: u8 = 0x80;
const NA_FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_LINK_LAYER: u8 = 2;

/// The announcement of one address, whatever its family.
pub fn frame(mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(mac, address),
        IpAddr::V6(address) => unsolicited_advertisement(mac, address, true),
    }
}

/// Writes a gratuitous ARP as keepalived sends it: a broadcast *request* whose sender and target
/// protocol address are both `address`.
///
/// RFC 5227 §3 recommends the request form: some hosts update their cache from it only. The target
/// hardware address is the broadcast address, which nobody reads but which keepalived writes.
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(ethernet_header(BROADCAST, mac, ETHERTYPE_ARP));
    // Ethernet, IPv4, their lengths, request.
    frame.extend([0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(BROADCAST);
    frame.extend(address.octets());
    frame
}

/// Writes an unsolicited Neighbor Advertisement to all nodes (RFC 9568 §6.4.2: R as given, S = 0,
/// O = 1, with the target link-layer address).
pub fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr, router: bool) -> Vec<u8> {
    let flags = NA_FLAG_OVERRIDE | if router { NA_FLAG_ROUTER } else { 0 };
    let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(address.octets());
    // Its length counts units of eight bytes (RFC 4861 §4.6.1).
    message.extend([OPTION_TARGET_LINK_LAYER, 1]);
    message.extend(mac);
    icmpv6::frame((mac, address), (None, icmpv6::ALL_NODES), message)
}
