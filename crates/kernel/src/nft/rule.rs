//! Statements as the kernel's expressions.
//!
//! An expression loads a value into a register, compares or changes it there, or acts. The sequences are
//! those that `nft` makes of the same text, so that it prints them as that text.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use evergate_dataplane::nft::{NftFamily, NftRule, NftStatement};
use ipnet::IpNet;

use super::{ACCEPT, DROP, Links, protocol};
use crate::error::Cause;
use crate::uapi::*;
use crate::wire::Message;

/// The register that everything passes through.
const REGISTER: u32 = libc::NFT_REG_1 as u32;

/// The register after it: of a concatenation, the second part.
const SECOND_REGISTER: u32 = libc::NFT_REG32_01 as u32;

/// Where IPv4's header has the source address.
const SOURCE: u32 = 12;

/// Where IPv4's header has the destination address.
const DESTINATION: u32 = 16;

/// Where IPv6's header has the source and the destination address.
const SOURCE_V6: u32 = 8;
const DESTINATION_V6: u32 = 24;

/// Where headers of protocols with ports have the destination's.
const DESTINATION_PORT: u32 = 2;

/// VRRP over IPv4 (RFC 9568 §5.1.1, §5.2): where IPv4's header has its protocol, and where, without options, the
/// message behind it has the virtual router identifier.
const PROTOCOL: u32 = 9;
const VRID: u32 = 21;
const VRRP_PROTOCOL: u8 = 112;
const VRRP_GROUP: [u8; 4] = [224, 0, 0, 18];

/// Version 4, and five words: no options.
const PLAIN_IPV4_HEADER: u8 = 0x45;

/// Types of ICMPv6 (RFC 4861 §4.3, §4.4).
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Where ARP has its operation and, for IPv4, the address that is asked for (RFC 826).
const ARP_OPERATION: u32 = 6;
const ARP_TARGET: u32 = 24;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// Interface names are compared in full length.
const NAME_LEN: usize = libc::IFNAMSIZ;

/// What names in a rule stand for.
pub(super) struct Known<'a> {
    /// Numbers of the maps within the transaction that makes them.
    pub(super) maps: BTreeMap<&'a str, u32>,
    /// Indexes of links.
    pub(super) links: &'a Links,
}

/// Appends a rule's expressions, within its list.
pub(super) fn expressions(
    mut list: Message,
    rule: &NftRule,
    family: NftFamily,
    known: &Known<'_>,
) -> Result<Message, Cause> {
    for statement in &rule.statements {
        list = Builder { list, family }.statement(statement, known)?.list;
    }
    Ok(list)
}

struct Builder {
    list: Message,
    family: NftFamily,
}

impl Builder {
    fn statement(self, statement: &NftStatement, known: &Known<'_>) -> Result<Self, Cause> {
        Ok(match statement {
            NftStatement::InLink { name, negated } => self.link(libc::NFT_META_IIFNAME, name, *negated)?,
            NftStatement::OutLink { name, negated } => self.link(libc::NFT_META_OIFNAME, name, *negated)?,
            NftStatement::Source { net, negated } => self.prefix((SOURCE, SOURCE_V6), *net, *negated)?,
            NftStatement::Destination { net, negated } => self.prefix((DESTINATION, DESTINATION_V6), *net, *negated)?,
            NftStatement::Protocol { number } => self.load_meta(libc::NFT_META_L4PROTO).compare(&[*number], false),
            NftStatement::DestinationPorts { first, last } => {
                let loaded = self.load_port(REGISTER);
                if first == last {
                    loaded.compare(&first.to_be_bytes(), false)
                } else {
                    loaded
                        .compare_by(libc::NFT_CMP_GTE, &first.to_be_bytes())
                        .compare_by(libc::NFT_CMP_LTE, &last.to_be_bytes())
                }
            }
            NftStatement::NeighbourDiscovery => self
                .load_meta(libc::NFT_META_L4PROTO)
                .compare(&[libc::IPPROTO_ICMPV6 as u8], false)
                .load(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REGISTER)
                .compare_by(libc::NFT_CMP_GTE, &[NEIGHBOUR_SOLICITATION])
                .compare_by(libc::NFT_CMP_LTE, &[NEIGHBOUR_ADVERTISEMENT]),
            NftStatement::CtReply => self.load_ct(libc::NFT_CT_DIRECTION).compare(&[IP_CT_DIR_REPLY], false),
            NftStatement::CtDnat { negated } => self
                .load_ct(libc::NFT_CT_STATUS)
                .bitwise(IPS_DST_NAT.to_ne_bytes(), [0; 4])
                // "Is set" is "differs from nothing".
                .compare(&[0; 4], !*negated),
            NftStatement::Mark { mask, value, negated } => {
                self.load_meta(libc::NFT_META_MARK).masked(*mask).compare(&value.to_ne_bytes(), *negated)
            }
            NftStatement::SetMark { mask, value } => self
                .load_meta(libc::NFT_META_MARK)
                .bitwise((!(mask | value)).to_ne_bytes(), value.to_ne_bytes())
                .store_mark(),
            NftStatement::DnatByMap { map } => self
                .ipv4("a map of addresses")?
                .load_address(DESTINATION)
                .look_up(map, known)?
                .nat(libc::NFT_NAT_DNAT, None, 0),
            NftStatement::DnatByServiceMap { map } => self
                .ipv4("a map of services")?
                .load_address(DESTINATION)
                .load_port(SECOND_REGISTER)
                .look_up(map, known)?
                .nat(libc::NFT_NAT_DNAT, Some(SECOND_REGISTER), 0),
            NftStatement::Dnat { to } => self.ipv4("an IPv4 address")?.address(*to).nat(libc::NFT_NAT_DNAT, None, 0),
            NftStatement::SnatByMap { map } => self
                .ipv4("a map of addresses")?
                .load_address(SOURCE)
                .look_up(map, known)?
                .nat(libc::NFT_NAT_SNAT, None, 0),
            NftStatement::Snat { to, fully_random } => self.snat(*to, *fully_random)?,
            NftStatement::ArpReply { to } => {
                self.load(libc::NFT_PAYLOAD_LL_HEADER, 0, 6, REGISTER).compare(&to.0, false).arp(ARP_REPLY)
            }
            NftStatement::ArpRequest { target } => {
                self.arp(ARP_REQUEST).load_address(ARP_TARGET).compare(&target.octets(), false)
            }
            NftStatement::BroadcastFrame => self.immediate(&[0xff; 6]).store_station(),
            NftStatement::Station { mac } => self.ethernet().immediate(&mac.0).store_station(),
            NftStatement::VrrpAdvertisement => self
                .load_meta(libc::NFT_META_PROTOCOL)
                .compare(&(libc::ETH_P_IP as u16).to_be_bytes(), false)
                .load(libc::NFT_PAYLOAD_NETWORK_HEADER, 0, 1, REGISTER)
                .compare(&[PLAIN_IPV4_HEADER], false)
                .load_address(DESTINATION)
                .compare(&VRRP_GROUP, false)
                .load(libc::NFT_PAYLOAD_NETWORK_HEADER, PROTOCOL, 1, REGISTER)
                .compare(&[VRRP_PROTOCOL], false),
            NftStatement::StationByVrid { map } => self
                .ethernet()
                .load(libc::NFT_PAYLOAD_NETWORK_HEADER, VRID, 1, REGISTER)
                .look_up(map, known)?
                .store_station(),
            NftStatement::Forward { link } => self.forward(link, known)?,
            NftStatement::Counter => self.expression("counter", |data| {
                data.attr_u64_be(NFTA_COUNTER_BYTES, 0).attr_u64_be(NFTA_COUNTER_PACKETS, 0)
            }),
            NftStatement::Accept => self.verdict(ACCEPT),
            NftStatement::Drop => self.verdict(DROP),
            NftStatement::Observed { tag } => {
                return Err(Cause::Invalid(format!("an observed rule ('{tag}') cannot be written")));
            }
        })
    }

    fn snat(self, to: Ipv4Addr, fully_random: bool) -> Result<Self, Cause> {
        let flags = if fully_random { NF_NAT_RANGE_PROTO_RANDOM_FULLY } else { 0 };
        Ok(self.ipv4("an IPv4 address")?.address(to).nat(libc::NFT_NAT_SNAT, None, flags))
    }

    fn address(self, ip: Ipv4Addr) -> Self {
        self.immediate(&ip.octets())
    }

    fn immediate(self, value: &[u8]) -> Self {
        self.expression("immediate", |data| {
            data.attr_u32_be(NFTA_IMMEDIATE_DREG, REGISTER)
                .nest(NFTA_IMMEDIATE_DATA, |data| data.attr(NFTA_DATA_VALUE, value))
        })
    }

    /// The frame is ARP, with this operation.
    fn arp(self, operation: u16) -> Self {
        self.load_meta(libc::NFT_META_PROTOCOL)
            .compare(&(libc::ETH_P_ARP as u16).to_be_bytes(), false)
            .load(libc::NFT_PAYLOAD_NETWORK_HEADER, ARP_OPERATION, 2, REGISTER)
            .compare(&operation.to_be_bytes(), false)
    }

    fn link(self, key: libc::c_int, name: &str, negated: bool) -> Result<Self, Cause> {
        let mut padded = [0; NAME_LEN];
        if name.is_empty() || name.len() >= NAME_LEN {
            return Err(Cause::Invalid(format!("'{name}' cannot be the name of a link")));
        }
        padded[..name.len()].copy_from_slice(name.as_bytes());
        Ok(self.load_meta(key).compare(&padded, negated))
    }

    /// Compares the address at the first offset for IPv4, at the second for IPv6.
    fn prefix(self, (v4, v6): (u32, u32), net: IpNet, negated: bool) -> Result<Self, Cause> {
        let fits = (self.family == NftFamily::Ip) == matches!(net, IpNet::V4(_));
        if !fits {
            return Err(Cause::Invalid(format!("prefix {net} in a table of family {}", self.family)));
        }
        let whole = net.prefix_len() == net.max_prefix_len();
        let builder = match net {
            IpNet::V4(net) => {
                let builder = self.load_address(v4);
                let builder = if whole { builder } else { builder.bitwise(net.netmask().octets(), [0; 4]) };
                builder.compare(&net.network().octets(), negated)
            }
            IpNet::V6(net) => {
                let builder = self.load(libc::NFT_PAYLOAD_NETWORK_HEADER, v6, 16, REGISTER);
                let builder = if whole { builder } else { builder.bitwise(net.netmask().octets(), [0; 16]) };
                builder.compare(&net.network().octets(), negated)
            }
        };
        Ok(builder)
    }

    fn ipv4(self, what: &str) -> Result<Self, Cause> {
        match self.family {
            NftFamily::Ip => Ok(self),
            NftFamily::Ip6 | NftFamily::Bridge | NftFamily::Netdev => {
                Err(Cause::Invalid(format!("{what} in a table of family {}", self.family)))
            }
        }
    }

    fn load_meta(self, key: libc::c_int) -> Self {
        self.expression("meta", |data| {
            data.attr_u32_be(NFTA_META_DREG, REGISTER).attr_u32_be(NFTA_META_KEY, key as u32)
        })
    }

    fn store_mark(self) -> Self {
        self.expression("meta", |data| {
            data.attr_u32_be(NFTA_META_SREG, REGISTER).attr_u32_be(NFTA_META_KEY, libc::NFT_META_MARK as u32)
        })
    }

    /// The frame came in by Ethernet: a device may be of any kind, where a bridge's port is not.
    fn ethernet(self) -> Self {
        self.load_meta(libc::NFT_META_IIFTYPE).compare(&libc::ARPHRD_ETHER.to_ne_bytes(), false)
    }

    /// Writes the register to the frame's destination.
    fn store_station(self) -> Self {
        self.expression("payload", |data| {
            data.attr_u32_be(NFTA_PAYLOAD_SREG, REGISTER)
                .attr_u32_be(NFTA_PAYLOAD_BASE, libc::NFT_PAYLOAD_LL_HEADER as u32)
                .attr_u32_be(NFTA_PAYLOAD_OFFSET, 0)
                .attr_u32_be(NFTA_PAYLOAD_LEN, 6)
        })
    }

    fn load_ct(self, key: libc::c_int) -> Self {
        self.expression("ct", |data| data.attr_u32_be(NFTA_CT_DREG, REGISTER).attr_u32_be(NFTA_CT_KEY, key as u32))
    }

    fn load_address(self, offset: u32) -> Self {
        self.load(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, 4, REGISTER)
    }

    fn load_port(self, register: u32) -> Self {
        self.load(libc::NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2, register)
    }

    fn load(self, base: libc::c_int, offset: u32, length: u32, register: u32) -> Self {
        self.expression("payload", |data| {
            data.attr_u32_be(NFTA_PAYLOAD_DREG, register)
                .attr_u32_be(NFTA_PAYLOAD_BASE, base as u32)
                .attr_u32_be(NFTA_PAYLOAD_OFFSET, offset)
                .attr_u32_be(NFTA_PAYLOAD_LEN, length)
        })
    }

    fn masked(self, mask: u32) -> Self {
        if mask == u32::MAX { self } else { self.bitwise(mask.to_ne_bytes(), [0; 4]) }
    }

    /// Register = (register & mask) ^ xor, in the byte order of what was loaded.
    fn bitwise<const N: usize>(self, mask: [u8; N], xor: [u8; N]) -> Self {
        self.expression("bitwise", |data| {
            data.attr_u32_be(NFTA_BITWISE_SREG, REGISTER)
                .attr_u32_be(NFTA_BITWISE_DREG, REGISTER)
                .attr_u32_be(NFTA_BITWISE_LEN, N as u32)
                .nest(NFTA_BITWISE_MASK, |data| data.attr(NFTA_DATA_VALUE, &mask))
                .nest(NFTA_BITWISE_XOR, |data| data.attr(NFTA_DATA_VALUE, &xor))
        })
    }

    fn compare(self, value: &[u8], negated: bool) -> Self {
        self.compare_by(if negated { libc::NFT_CMP_NEQ } else { libc::NFT_CMP_EQ }, value)
    }

    fn compare_by(self, operation: libc::c_int, value: &[u8]) -> Self {
        self.expression("cmp", |data| {
            data.attr_u32_be(NFTA_CMP_SREG, REGISTER)
                .attr_u32_be(NFTA_CMP_OP, operation as u32)
                .nest(NFTA_CMP_DATA, |data| data.attr(NFTA_DATA_VALUE, value))
        })
    }

    /// Register = map[register]; the rule ends where the map has no element.
    fn look_up(self, map: &str, known: &Known<'_>) -> Result<Self, Cause> {
        let id = *known.maps.get(map).ok_or_else(|| Cause::Invalid(format!("the table has no map '{map}'")))?;
        Ok(self.expression("lookup", |data| {
            data.attr_str(NFTA_LOOKUP_SET, map)
                .attr_u32_be(NFTA_LOOKUP_SREG, REGISTER)
                .attr_u32_be(NFTA_LOOKUP_DREG, REGISTER)
                .attr_u32_be(NFTA_LOOKUP_SET_ID, id)
        }))
    }

    /// Translates to the address in the register, and to the port in another one if there is to be one.
    fn nat(self, kind: libc::c_int, port: Option<u32>, flags: u32) -> Self {
        let family = u32::from(protocol(self.family));
        self.expression("nat", |data| {
            data.attr_u32_be(NFTA_NAT_TYPE, kind as u32)
                .attr_u32_be(NFTA_NAT_FAMILY, family)
                .attr_u32_be(NFTA_NAT_REG_ADDR_MIN, REGISTER)
                .when(port, |data, register| data.attr_u32_be(NFTA_NAT_REG_PROTO_MIN, register))
                .when((flags != 0).then_some(flags), |data, flags| data.attr_u32_be(NFTA_NAT_FLAGS, flags))
        })
    }

    fn forward(self, link: &str, known: &Known<'_>) -> Result<Self, Cause> {
        let index = *known.links.get(link).ok_or_else(|| Cause::NoLink(link.to_owned()))?;
        let loaded = self.immediate(&index.to_ne_bytes());
        Ok(loaded.expression("fwd", |data| data.attr_u32_be(NFTA_FWD_SREG_DEV, REGISTER)))
    }

    fn verdict(self, code: u32) -> Self {
        self.expression("immediate", |data| {
            data.attr_u32_be(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32).nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |data| data.attr_u32_be(NFTA_VERDICT_CODE, code))
            })
        })
    }

    fn expression(self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        let list =
            self.list.nest(NFTA_LIST_ELEM, |element| element.attr_str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data));
        Self { list, family: self.family }
    }
}
