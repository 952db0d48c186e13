//! Frames that ask whether an address is there: ARP requests (RFC 826) and Neighbor Solicitations (RFC 4861).
//!
//! An answer proves what a router needs of its gateway: frames reach it and come back, and it claims the
//! address. It is given by gateways that drop pings, too, and by nobody who is merely on the way. It does not
//! prove that the gateway forwards; nor would a ping to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{ETHERTYPE_IPV6, ethernet_header, ipv6_header, multicast_mac_v6, pseudo_header};

const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_REPLY: [u8; 8] = [0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x02];
const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
const ICMPV6: u8 = 58;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
/// RFC 4861 §7.1.2: what crossed a router is not believed.
const HOP_LIMIT: u8 = 255;

/// Who asks, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Ethernet address of the asking interface.
    pub mac: [u8; 6],
    /// Its address, of the target's family.
    pub source: IpAddr,
    /// The address that is asked for.
    pub target: IpAddr,
}

/// Writes a question: to everybody, or to the one that answered before. `None` if the families differ.
pub fn question(question: &Question, to: Option<[u8; 6]>) -> Option<Vec<u8>> {
    match (question.source, question.target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => Some(arp_request(question.mac, source, target, to)),
        (IpAddr::V6(source), IpAddr::V6(target)) => Some(solicitation(question.mac, source, target, to)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Reads an answer: which address is there, and its Ethernet address. `None`: the frame is no answer.
pub fn answer(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    match frame.get(12..14)? {
        [0x08, 0x06] => arp_reply(frame.get(ETHERNET_LEN..)?),
        [0x86, 0xdd] => advertisement(frame),
        _ => None,
    }
}

fn arp_request(mac: [u8; 6], source: Ipv4Addr, target: Ipv4Addr, to: Option<[u8; 6]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(ethernet_header(to.unwrap_or(BROADCAST), mac, ETHERTYPE_ARP));
    // Ethernet, IPv4, their lengths, request.
    frame.extend([0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01]);
    frame.extend(mac);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn arp_reply(message: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let message: &[u8; 28] = message.first_chunk()?;
    if message[..8] != ARP_REPLY {
        return None;
    }
    let ip = Ipv4Addr::new(message[14], message[15], message[16], message[17]);
    Some((ip.into(), message[8..14].try_into().ok()?))
}

fn solicitation(mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr, to: Option<[u8; 6]>) -> Vec<u8> {
    let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    // Its length counts units of eight bytes (RFC 4861 §4.6.1).
    message.extend([OPTION_SOURCE_LINK_LAYER, 1]);
    message.extend(mac);
    let group = solicited_node(target);
    // RFC 4861 §7.3.3: a neighbour that is known is asked directly.
    let (ip, to) = to.map_or((group, multicast_mac_v6(group)), |to| (target, to));
    let sum = pseudo_header(source.into(), ip.into(), ICMPV6, message.len()).add(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::with_capacity(86);
    frame.extend(ethernet_header(to, mac, ETHERTYPE_IPV6));
    // Always 32 bytes.
    frame.extend(ipv6_header(source, ip, 0, ICMPV6, message.len() as u16));
    frame.extend(message);
    frame
}

/// RFC 4291 §2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn advertisement(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let header: &[u8; IPV6_LEN] = frame.get(ETHERNET_LEN..)?.first_chunk()?;
    if header[6] != ICMPV6 || header[7] != HOP_LIMIT {
        return None;
    }
    let length = u16::from_be_bytes([header[4], header[5]]).into();
    let message = frame.get(ETHERNET_LEN + IPV6_LEN..)?.get(..length)?;
    let fixed: &[u8; 24] = message.first_chunk()?;
    // RFC 4861 §7.1.2: code 0, and the sum must be right.
    let address = |at: usize| <[u8; 16]>::try_from(header.get(at..at + 16)?).ok().map(|ip| IpAddr::V6(ip.into()));
    let sum = pseudo_header(address(8)?, address(24)?, ICMPV6, message.len()).add(message);
    if fixed[0] != NEIGHBOR_ADVERTISEMENT || fixed[1] != 0 || !sum.is_valid() {
        return None;
    }
    let target = <[u8; 16]>::try_from(&fixed[8..]).ok()?;
    // Without the option, the answer to a direct question comes from where the frame does (RFC 4861 §4.4).
    let mac = link_layer_option(&message[24..]).or_else(|| frame.get(6..12)?.try_into().ok())?;
    Some((IpAddr::V6(target.into()), mac))
}

fn link_layer_option(mut options: &[u8]) -> Option<[u8; 6]> {
    while let [kind, units, rest @ ..] = options {
        // RFC 4861 §4.6: a length of 0 is an error.
        let body = rest.get(..(usize::from(*units) * 8).checked_sub(2)?)?;
        if *kind == OPTION_TARGET_LINK_LAYER {
            return body.try_into().ok();
        }
        options = &rest[body.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce;
    use proptest::prelude::*;

    const US: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 1];
    const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

    fn v4() -> Question {
        Question { mac: US, source: [203, 0, 113, 9].into(), target: [203, 0, 113, 254].into() }
    }

    fn v6() -> Question {
        Question { mac: US, source: "2001:db8::9".parse().unwrap(), target: "2001:db8::1:fe".parse().unwrap() }
    }

    /// As a Linux gateway answers; `arping` and `tcpdump -xx` show the same bytes.
    fn reply() -> Vec<u8> {
        let mut frame = ethernet_header(US, GATEWAY, ETHERTYPE_ARP).to_vec();
        frame.extend(ARP_REPLY);
        frame.extend(GATEWAY);
        frame.extend([203, 0, 113, 254]);
        frame.extend(US);
        frame.extend([203, 0, 113, 9]);
        frame
    }

    #[test]
    fn an_arp_request_asks_everybody_or_the_one_that_is_known() {
        let all = question(&v4(), None).unwrap();
        assert_eq!((&all[..6], &all[6..14]), (&BROADCAST[..], &[0xfa, 0x16, 0x3e, 0, 0, 1, 0x08, 0x06][..]));
        assert_eq!(all[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!((&all[28..32], &all[38..]), (&[203, 0, 113, 9][..], &[203, 0, 113, 254][..]));
        let one = question(&v4(), Some(GATEWAY)).unwrap();
        assert_eq!((&one[..6], &one[6..]), (&GATEWAY[..], &all[6..]));
    }

    #[test]
    fn a_solicitation_goes_to_the_solicited_node_group_or_to_the_one_that_is_known() {
        let all = question(&v6(), None).unwrap();
        assert_eq!(all[..6], [0x33, 0x33, 0xff, 0x01, 0x00, 0xfe]);
        let group: Ipv6Addr = "ff02::1:ff01:fe".parse().unwrap();
        assert_eq!(all[38..54], group.octets());
        assert_eq!((all[20], all[21], all[54]), (ICMPV6, 255, NEIGHBOR_SOLICITATION));
        let one = question(&v6(), Some(GATEWAY)).unwrap();
        let IpAddr::V6(target) = v6().target else { unreachable!("it is IPv6") };
        assert_eq!((&one[..6], &one[38..54]), (&GATEWAY[..], &target.octets()[..]));
    }

    #[test]
    fn families_are_not_mixed() {
        assert_eq!(question(&Question { source: v6().source, ..v4() }, None), None);
    }

    #[test]
    fn replies_and_advertisements_are_answers_and_requests_are_not() {
        assert_eq!(answer(&reply()), Some((v4().target, GATEWAY)));
        let IpAddr::V6(target) = v6().target else { unreachable!("it is IPv6") };
        let advertisement = announce::unsolicited_advertisement(GATEWAY, target, true);
        assert_eq!(answer(&advertisement), Some((v6().target, GATEWAY)));
        for frame in [question(&v4(), None), question(&v6(), None)].into_iter().flatten() {
            assert_eq!(answer(&frame), None);
        }
    }

    #[test]
    fn an_advertisement_that_crossed_a_router_or_whose_sum_is_wrong_is_no_answer() {
        let IpAddr::V6(target) = v6().target else { unreachable!("it is IPv6") };
        for (at, bit) in [(21, 1), (56, 1), (70, 1), (55, 1)] {
            let mut frame = announce::unsolicited_advertisement(GATEWAY, target, true);
            frame[at] ^= bit;
            assert_eq!(answer(&frame), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(mut frame in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x06] });
            }
            let _ = answer(&frame);
        }

        #[test]
        fn cut_answers_are_none(length in 0_usize..86) {
            let IpAddr::V6(target) = v6().target else { unreachable!("it is IPv6") };
            let advertisement = announce::unsolicited_advertisement(GATEWAY, target, true);
            prop_assert_eq!(answer(&advertisement[..length]), None);
            prop_assert_eq!(answer(&reply()[..length.min(41)]), None);
        }
    }
}
