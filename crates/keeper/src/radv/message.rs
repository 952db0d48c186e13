//! Router advertisements and solicitations as bytes (RFC 4861 §4.1, §4.2, §4.6; RFC 8106 §5.1).

use std::net::Ipv6Addr;
use std::time::Duration;

use evergate_vrrp::icmpv6::{self, ALL_NODES};
use ipnet::Ipv6Net;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_DNS_SERVERS: u8 = 25;

/// As many as fit an option's length.
const MAX_DNS_SERVERS: usize = 127;

/// Length of a solicitation without options.
const SOLICITATION_LEN: usize = 8;

/// What instances put into their packets: the Internet's diameter as of RFC 1700's successors.
const CURRENT_HOP_LIMIT: u8 = 64;

/// An advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Advertisement {
    /// Addresses come by DHCPv6 (M).
    pub(super) managed: bool,
    /// Other settings come by DHCPv6 (O).
    pub(super) other: bool,
    /// How long it may be used as default router; zero: not any more.
    pub(super) router_lifetime: Duration,
    pub(super) prefixes: Vec<Prefix>,
    pub(super) mtu: u32,
    /// Recursive DNS servers, and how long they may be used.
    pub(super) dns_servers: (Vec<Ipv6Addr>, Duration),
}

/// A prefix that is on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) net: Ipv6Net,
    /// Instances make addresses of it by themselves (A).
    pub(super) autonomous: bool,
    pub(super) valid: Duration,
    pub(super) preferred: Duration,
}

/// Where an advertisement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum To {
    /// Everybody on the link.
    All,
    /// The one that asked.
    One { mac: [u8; 6], ip: Ipv6Addr },
}

/// Writes an advertisement as a frame from a device's Ethernet and link-local address.
pub(super) fn frame(advertisement: &Advertisement, from: ([u8; 6], Ipv6Addr), to: To) -> Vec<u8> {
    let flags = if advertisement.managed { 0x80 } else { 0 } | if advertisement.other { 0x40 } else { 0 };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, CURRENT_HOP_LIMIT, flags];
    let lifetime = advertisement.router_lifetime.as_secs().min(u16::MAX.into()) as u16;
    message.extend(lifetime.to_be_bytes());
    // Reachable and retransmission time: unspecified by this router.
    message.extend([0; 8]);
    // Lengths of options count units of eight bytes.
    message.extend([OPTION_SOURCE_LINK_LAYER, 1]);
    message.extend(from.0);
    message.extend([OPTION_MTU, 1, 0, 0]);
    message.extend(advertisement.mtu.to_be_bytes());
    for prefix in &advertisement.prefixes {
        // L is always set: the prefix is that of a subnet on this link.
        let flags = 0x80 | if prefix.autonomous { 0x40 } else { 0 };
        message.extend([OPTION_PREFIX, 4, prefix.net.prefix_len(), flags]);
        message.extend(seconds(prefix.valid));
        message.extend(seconds(prefix.preferred));
        message.extend([0; 4]);
        message.extend(prefix.net.network().octets());
    }
    let (servers, lifetime) = &advertisement.dns_servers;
    let servers = &servers[..servers.len().min(MAX_DNS_SERVERS)];
    if !servers.is_empty() {
        message.extend([OPTION_DNS_SERVERS, 1 + 2 * servers.len() as u8, 0, 0]);
        message.extend(seconds(*lifetime));
        servers.iter().for_each(|server| message.extend(server.octets()));
    }
    match to {
        To::All => icmpv6::frame(from, (None, ALL_NODES), message),
        To::One { mac, ip } => icmpv6::frame(from, (Some(mac), ip), message),
    }
}

fn seconds(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Reads a solicitation; says whom to answer. `None` for what is none, or must be discarded.
pub(super) fn parse_solicitation(frame: &[u8]) -> Option<To> {
    let received = icmpv6::parse(frame)?;
    let message = received.message;
    // RFC 4861 §6.1.1: code 0, at least eight bytes.
    if message[0] != SOLICITATION || message[1] != 0 || message.len() < SOLICITATION_LEN {
        return None;
    }
    let mut source_mac = None;
    let mut options = &message[SOLICITATION_LEN..];
    while let [kind, units, ..] = options {
        // RFC 4861 §6.1.1: an option of length zero makes the whole message invalid.
        let option = options.get(..usize::from(*units) * 8).filter(|option| !option.is_empty())?;
        if *kind == OPTION_SOURCE_LINK_LAYER {
            source_mac = option.get(2..8);
        }
        options = &options[option.len()..];
    }
    if received.source.is_unspecified() {
        // RFC 4861 §6.1.1: whoever has no address has no link-layer address to tell of.
        return source_mac.is_none().then_some(To::All);
    }
    // The frame's own sender is where the answer is wanted, whatever the option says: nobody is answered in
    // somebody else's place.
    (!received.source.is_multicast()).then_some(To::One { mac: received.mac, ip: received.source })
}

#[cfg(test)]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::mutate::Dice;
    use super::*;

    const ETHERNET_AND_IPV6: usize = 54;
    const ROUTER: ([u8; 6], &str) = ([0xfa, 0x16, 0x3e, 0, 0, 1], "fe80::f816:3eff:fe00:1");

    fn router() -> ([u8; 6], Ipv6Addr) {
        (ROUTER.0, ROUTER.1.parse().unwrap())
    }

    fn solicitation(source: &str, options: &[u8]) -> Vec<u8> {
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(options);
        let all_routers = "ff02::2".parse().unwrap();
        icmpv6::frame(([2, 0, 0, 0, 0, 9], source.parse().unwrap()), (None, all_routers), message)
    }

    #[test]
    fn an_advertisement_is_written_as_the_standards_say() {
        let prefix = |net: &str, autonomous| Prefix {
            net: net.parse().unwrap(),
            autonomous,
            valid: Duration::from_secs(86400),
            preferred: Duration::from_secs(14400),
        };
        let advertisement = Advertisement {
            managed: true,
            other: true,
            router_lifetime: Duration::from_secs(300),
            prefixes: vec![prefix("2001:db8:1::/64", true), prefix("2001:db8:2::/64", false)],
            mtu: 1450,
            dns_servers: (vec!["2001:db8::53".parse().unwrap()], Duration::from_secs(300)),
        };
        let frame = frame(&advertisement, router(), To::All);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let message = icmpv6::parse(&frame).unwrap().message;
        let head = [134, 0, message[2], message[3], 64, 0xc0, 0x01, 0x2c, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(message[..16], head);
        assert_eq!(message[16..24], [1, 1, 0xfa, 0x16, 0x3e, 0, 0, 1]);
        assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 0x05, 0xaa]);
        let net = |third: u8| [0x20, 0x01, 0x0d, 0xb8, 0, third, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let lifetimes = [0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0];
        let expected = |third, flags| [[3, 4, 64, flags].as_slice(), &lifetimes, &net(third)].concat();
        assert_eq!(message[32..64], expected(1, 0xc0));
        assert_eq!(message[64..96], expected(2, 0x80));
        assert_eq!(message[96..104], [25, 3, 0, 0, 0, 0, 0x01, 0x2c]);
        assert_eq!(message[104..120], "2001:db8::53".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(message.len(), 120);
    }

    #[test]
    fn who_asked_is_answered_at_the_place_it_asked_from() {
        let one = To::One { mac: [2, 0, 0, 0, 0, 9], ip: "fe80::9".parse().unwrap() };
        assert_eq!(parse_solicitation(&solicitation("fe80::9", &[])), Some(one));
        assert_eq!(parse_solicitation(&solicitation("fe80::9", &[1, 1, 6, 6, 6, 6, 6, 6])), Some(one));
        assert_eq!(parse_solicitation(&solicitation("::", &[])), Some(To::All));
        let frame = frame(&Advertisement::default(), router(), one);
        assert_eq!((&frame[..6], icmpv6::parse(&frame).is_some()), ([2, 0, 0, 0, 0, 9].as_slice(), true));
    }

    #[test]
    fn invalid_solicitations_are_discarded() {
        assert_eq!(parse_solicitation(&solicitation("::", &[1, 1, 2, 0, 0, 0, 0, 9])), None);
        assert_eq!(parse_solicitation(&solicitation("fe80::9", &[1, 0, 2, 0, 0, 0, 0, 9])), None);
        assert_eq!(parse_solicitation(&solicitation("fe80::9", &[1, 2, 2, 0, 0, 0, 0, 9])), None);
        let whole = solicitation("fe80::9", &[1, 1, 2, 0, 0, 0, 0, 9]);
        (0..whole.len()).for_each(|length| assert_eq!(parse_solicitation(&whole[..length]), None));
        // An advertisement is no solicitation.
        assert_eq!(parse_solicitation(&frame(&Advertisement::default(), router(), To::All)), None);
    }

    #[test]
    fn whatever_arrives_is_discarded_or_answered_where_it_came_from() {
        let examples = [
            solicitation("fe80::9", &[1, 1, 2, 0, 0, 0, 0, 9]),
            solicitation("fe80::9", &[14, 1, 1, 2, 3, 4, 5, 6, 1, 1, 2, 0, 0, 0, 0, 9]),
            solicitation("::", &[]),
            frame(&Advertisement::default(), router(), To::All),
        ];
        let (mut dice, mut answered) = (Dice::new(1), 0);
        for round in 0..20_000 {
            let mut whole = examples[round % examples.len()].clone();
            dice.mutate(&mut whole, &examples);
            // Without this nearly all would be discarded for their checksums.
            if let Some((head, message)) = whole.split_at_checked(ETHERNET_AND_IPV6).filter(|(_, m)| m.len() >= 4) {
                let at = |from: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&head[from..from + 16]).unwrap());
                let message = [&message[..2], &[0, 0], &message[4..]].concat();
                whole = icmpv6::frame(([2, 0, 0, 0, 0, 9], at(22)), (None, at(38)), message);
            }
            match parse_solicitation(&whole) {
                None => continue,
                Some(To::All) => assert_eq!(whole[22..38], [0; 16]),
                Some(To::One { mac, ip }) => {
                    assert_eq!((&mac, ip.octets().as_slice()), (whole[6..].first_chunk().unwrap(), &whole[22..38]));
                    assert!(!ip.is_unspecified() && !ip.is_multicast());
                }
            }
            answered += 1;
        }
        assert!((1000..19_000).contains(&answered), "{answered}");
    }
}
