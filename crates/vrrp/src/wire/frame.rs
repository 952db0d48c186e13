//! Ethernet and IP around a VRRP message. A packet socket delivers and takes whole frames.
//!
//! What a frame carries after its IP packet is padding (Ethernet's minimum is 60 bytes) and is cut off
//! by the length in the IP header. VLAN tags do not appear: the kernel strips them before a packet
//! socket sees the frame.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Advertisement, Carrier, Discard, Expectation, HOP_LIMIT, Ipv4Checksum, PROTOCOL, Packet, Received, Sum, Unsendable,
    check_carrier, group, parse_message, parse_unicast_message,
};
use crate::router::{Version, Vrid};

pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// Internetwork control (DSCP CS6): what keepalived puts into ToS, so that switches with queues treat
/// our advertisements as they treated its.
const TRAFFIC_CLASS: u8 = 0xc0;

/// A VRRP packet that was seen, whoever it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Sender.
    pub source: IpAddr,
    /// Version.
    pub version: Version,
    /// Virtual router it talks about.
    pub vrid: Vrid,
    /// 0 resigns.
    pub priority: u8,
}

/// Parses a whole Ethernet frame for one virtual router.
pub fn parse_frame(frame: &[u8], expect: &Expectation<'_>) -> Result<Received, Discard> {
    let (carrier, message) = unwrap_ip(frame)?;
    parse_message(carrier, message, expect)
}

/// Parses a whole Ethernet frame that one of `peers` sent to us alone.
pub fn parse_unicast_frame(
    frame: &[u8],
    expect: &Expectation<'_>,
    peers: &BTreeSet<IpAddr>,
) -> Result<Received, Discard> {
    let (carrier, message) = unwrap_ip(frame)?;
    parse_unicast_message(carrier, message, expect, peers)
}

/// Tells which virtual router a frame is about, without believing what it says about it: neither its
/// password nor its checksum is looked at.
///
/// For noticing foreign VRRP routers on an HA network.
pub fn peek(frame: &[u8]) -> Result<Sighting, Discard> {
    let (carrier, message) = unwrap_ip(frame)?;
    check_carrier(&carrier)?;
    let packet = Packet(message);
    let version = match packet.byte(0) >> 4 {
        2 => Version::V2,
        3 => Version::V3,
        _ => return Err(Discard::Version),
    };
    packet.check_start(version)?;
    Ok(Sighting {
        source: carrier.source,
        version,
        vrid: Vrid::new(packet.vrid()).ok_or(Discard::UnknownVrid)?,
        priority: packet.priority(),
    })
}

/// Finds the VRRP message in a frame.
fn unwrap_ip(frame: &[u8]) -> Result<(Carrier, &[u8]), Discard> {
    let (header, payload) = frame.split_first_chunk::<ETHERNET_LEN>().ok_or(Discard::Truncated)?;
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_IPV4 => unwrap_ipv4(payload),
        ETHERTYPE_IPV6 => unwrap_ipv6(payload),
        _ => Err(Discard::NotVrrp),
    }
}

/// IPv4: options are skipped, fragments are not.
fn unwrap_ipv4(packet: &[u8]) -> Result<(Carrier, &[u8]), Discard> {
    let fixed = packet.first_chunk::<IPV4_LEN>().ok_or(Discard::Truncated)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if fixed[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Discard::Truncated);
    }
    if fixed[9] != PROTOCOL {
        return Err(Discard::NotVrrp);
    }
    let header = packet.get(..header_len).ok_or(Discard::Truncated)?;
    let message = packet.get(header_len..total_len).ok_or(Discard::Truncated)?;
    if !Sum::default().add(header).is_valid() {
        return Err(Discard::HeaderChecksum);
    }
    // More fragments follow, or this is not the first.
    if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
        return Err(Discard::Fragment);
    }
    let carrier = Carrier {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        hop_limit: fixed[8],
    };
    Ok((carrier, message))
}

/// IPv6: VRRP follows the fixed header directly; no implementation puts extension headers between.
fn unwrap_ipv6(packet: &[u8]) -> Result<(Carrier, &[u8]), Discard> {
    let (header, rest) = packet.split_first_chunk::<IPV6_LEN>().ok_or(Discard::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Discard::Truncated);
    }
    if header[6] != PROTOCOL {
        return Err(Discard::NotVrrp);
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = rest.get(..length).ok_or(Discard::Truncated)?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let carrier = Carrier { source: address(8), destination: address(24), hop_limit: header[7] };
    Ok((carrier, message))
}

/// Writes the whole frame that announces `adv`: to the group of the address family, with TTL 255.
pub fn ethernet_frame(
    adv: &Advertisement,
    src_mac: [u8; 6],
    source: IpAddr,
    checksum: Ipv4Checksum,
) -> Result<Vec<u8>, Unsendable> {
    let message = adv.message(source, checksum)?;
    // 255 addresses make at most 4088 bytes, so the length always fits.
    let length = message.len() as u16;
    let mut frame = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + message.len());
    match (source, group(source)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ethernet_header(multicast_mac_v4(to), src_mac, ETHERTYPE_IPV4));
            frame.extend(ipv4_header(from, to, length));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(ethernet_header(multicast_mac_v6(to), src_mac, ETHERTYPE_IPV6));
            frame.extend(ipv6_header(from, to, TRAFFIC_CLASS, PROTOCOL, length));
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("`group` keeps the family")
        }
    }
    frame.extend(message);
    Ok(frame)
}

pub(crate) fn ethernet_header(to: [u8; 6], from: [u8; 6], ethertype: u16) -> [u8; ETHERNET_LEN] {
    let mut header = [0; ETHERNET_LEN];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

/// The group MAC of an IPv4 group (RFC 1112 §6.4).
fn multicast_mac_v4(group: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

/// The group MAC of an IPv6 group (RFC 2464 §7).
pub(crate) fn multicast_mac_v6(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, payload_len: u16) -> [u8; IPV4_LEN] {
    let mut header = [0; IPV4_LEN];
    header[0] = 0x45;
    header[1] = TRAFFIC_CLASS;
    header[2..4].copy_from_slice(&(IPV4_LEN as u16 + payload_len).to_be_bytes());
    header[8] = HOP_LIMIT;
    header[9] = PROTOCOL;
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    let sum = Sum::default().add(&header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

pub(crate) fn ipv6_header(
    from: Ipv6Addr,
    to: Ipv6Addr,
    traffic_class: u8,
    next_header: u8,
    payload_len: u16,
) -> [u8; IPV6_LEN] {
    let mut header = [0; IPV6_LEN];
    header[0] = 0x60 | traffic_class >> 4;
    header[1] = traffic_class << 4;
    header[4..6].copy_from_slice(&payload_len.to_be_bytes());
    header[6] = next_header;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());
    header
}
