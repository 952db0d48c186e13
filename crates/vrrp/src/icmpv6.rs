//! ICMPv6 messages between neighbours, as whole Ethernet frames (RFC 4861 asks for hop limit 255, which no
//! router lets through: the sender is on the link).

use std::net::Ipv6Addr;

use crate::wire::{ETHERTYPE_IPV6, HOP_LIMIT, ethernet_header, ipv6_header, multicast_mac_v6, pseudo_header};

/// ICMPv6's next header value.
const ICMPV6: u8 = 58;

/// Every node on the link (RFC 4291 §2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
const CHECKSUM: std::ops::Range<usize> = 2..4;

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Sender.
    pub source: Ipv6Addr,
    /// The frame's sender.
    pub mac: [u8; 6],
    /// From the ICMPv6 type on.
    pub message: &'a [u8],
}

/// Wraps a message, whose checksum field is zero, for one neighbour or for a group (`None`).
pub fn frame(from: ([u8; 6], Ipv6Addr), to: (Option<[u8; 6]>, Ipv6Addr), mut message: Vec<u8>) -> Vec<u8> {
    let ((mac, source), (to_mac, destination)) = (from, to);
    let sum = pseudo_header(source.into(), destination.into(), ICMPV6, message.len()).add(&message).finish();
    message[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    let to_mac = to_mac.unwrap_or_else(|| multicast_mac_v6(destination));
    let mut frame = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + message.len());
    frame.extend(ethernet_header(to_mac, mac, ETHERTYPE_IPV6));
    // A neighbour's message fits the smallest MTU.
    frame.extend(ipv6_header(source, destination, 0, ICMPV6, message.len() as u16));
    frame.extend(message);
    frame
}

/// Takes a frame apart. `None` for what is no whole ICMPv6 message of a neighbour with a right checksum.
pub fn parse(frame: &[u8]) -> Option<Received<'_>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let header = packet.first_chunk::<IPV6_LEN>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = packet.get(IPV6_LEN..IPV6_LEN + length)?;
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap_or_default());
    let (source, destination) = (address(8), address(24));
    let is_ours = ethernet[12..] == ETHERTYPE_IPV6.to_be_bytes() && header[0] >> 4 == 6;
    let is_neighbours = header[6] == ICMPV6 && header[7] == HOP_LIMIT;
    let sum = pseudo_header(source.into(), destination.into(), ICMPV6, length).add(message);
    let mac = [ethernet[6], ethernet[7], ethernet[8], ethernet[9], ethernet[10], ethernet[11]];
    (is_ours && is_neighbours && length >= 4 && sum.is_valid()).then_some(Received { source, mac, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_is_taken_apart_and_what_is_damaged_is_not() {
        let from = ([2, 0, 0, 0, 0, 1], "fe80::1".parse().unwrap());
        let whole = frame(from, (None, ALL_NODES), vec![134, 0, 0, 0, 1, 2, 3]);
        assert_eq!(whole[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let received = parse(&whole).unwrap();
        assert_eq!((received.source, received.mac), (from.1, from.0));
        assert_eq!((received.message[0], &received.message[4..]), (134, [1, 2, 3].as_slice()));
        for at in 0..whole.len() {
            assert!(at == 0 || parse(&whole[..at]).is_none());
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            // Ethernet's addresses are in no checksum, nor are the traffic class and the flow label.
            let unprotected = at < 12 || (14..18).contains(&at);
            assert_eq!(parse(&damaged).is_some(), unprotected, "byte {at}");
        }
        // Padding to Ethernet's minimum is none of it.
        assert_eq!(parse(&[whole.as_slice(), &[0; 9]].concat()), parse(&whole));
    }
}
