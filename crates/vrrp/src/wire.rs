//! VRRP packets: parsed once, at the edge; whatever can be constructed can be emitted.
//!
//! Read RFC 9568 §5 and §7.1 (version 3), RFC 3768 §5 and §7.1 (version 2) and RFC 2338 §5.3.6.1 and
//! §5.3.10 (version 2's simple password, which RFC 3768 dropped and keepalived kept) beside this file.
//! Ethernet and IP headers are in [`frame`](self::parse_frame).
//!
//! Invariant: a packet that was handed out as [`Received`] passed every check of the version's §7.1;
//! the state machine checks nothing again. A packet that was refused has exactly one [`Discard`]
//! reason, and its name is the name of a counter.

mod checksum;
mod frame;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::router::{Version, Vrid};

pub(crate) use checksum::{Sum, pseudo_header};
pub(crate) use frame::{ETHERTYPE_IPV6, ethernet_header, ipv6_header, multicast_mac_v6};
pub use frame::{Sighting, ethernet_frame, parse_frame, parse_unicast_frame, peek};

/// IP protocol number of VRRP (RFC 9568 §5.1.1.4).
pub const PROTOCOL: u8 = 112;

/// Where IPv4 advertisements go (RFC 9568 §5.1.1.2).
pub const IPV4_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// Where IPv6 advertisements go (RFC 9568 §5.1.2.2).
pub const IPV6_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// TTL or hop limit of every advertisement: one that crossed a router has less (RFC 9568 §5.1.1.3).
pub const HOP_LIMIT: u8 = 255;

/// The only type there is (RFC 9568 §5.2.2).
const TYPE_ADVERTISEMENT: u8 = 1;

/// Bytes before the addresses, in both versions.
const FIXED_LEN: usize = 8;

/// Bytes of authentication data that end every version 2 message, whatever its authentication type
/// (RFC 2338 §5.3.10; zero without authentication, RFC 3768 §5.3.10).
const AUTH_LEN: usize = 8;

/// Version 2: no authentication (RFC 3768 §5.3.6).
const AUTH_NONE: u8 = 0;

/// Version 2: simple text password (RFC 2338 §5.3.6.1).
const AUTH_PASSWORD: u8 = 1;

/// The twelve bits of Max Advertise Interval (RFC 9568 §5.2.7); the four above it are reserved.
const INTERVAL_MASK: u16 = 0x0fff;

/// A valid advertisement (RFC 9568 §5.2, RFC 3768 §5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// Version it is written in.
    pub version: Version,
    /// Virtual router.
    pub vrid: Vrid,
    /// 0 resigns.
    pub priority: u8,
    /// Centiseconds; whole seconds for version 2.
    pub advertise_interval_cs: u16,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Version 2's simple password.
    pub password: Option<[u8; 8]>,
}

/// Shows everything but the password: advertisements end up in logs, secrets must not.
impl fmt::Debug for Advertisement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Advertisement")
            .field("version", &self.version)
            .field("vrid", &self.vrid)
            .field("priority", &self.priority)
            .field("advertise_interval_cs", &self.advertise_interval_cs)
            .field("addresses", &self.addresses)
            .field("password", &Redacted::of(self.password))
            .finish()
    }
}

/// Stands for a password in `Debug` output, which tells only whether there is one.
pub(crate) struct Redacted(bool);

impl Redacted {
    pub(crate) fn of(password: Option<[u8; 8]>) -> Self {
        Self(password.is_some())
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<hidden>" } else { "none" })
    }
}

/// Why a packet was refused. Each has a counter of its [`name`](Discard::name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discard {
    /// Not VRRP at all: another ethertype or IP protocol.
    NotVrrp,
    /// The frame ends before its IP packet does, or the IP header contradicts itself.
    Truncated,
    /// The IPv4 header checksum is wrong.
    HeaderChecksum,
    /// A fragment. An advertisement always fits one packet.
    Fragment,
    /// Not sent to the VRRP group of its address family (RFC 9568 §5.1.1.2, §5.1.2.2).
    Destination,
    /// From an address that cannot be a router's: unspecified, multicast, broadcast, loopback, or
    /// for IPv6 not link-local (RFC 9568 §5.1.2.1).
    Source,
    /// From our own address: our packet came back, or another router uses our address.
    OwnAddress,
    /// It crossed a router (RFC 9568 §5.1.1.3, §5.1.2.3).
    TtlNot255,
    /// Carried by the other address family than this virtual router's.
    Family,
    /// Another version than the one this virtual router speaks (RFC 9568 §7.1).
    Version,
    /// Not an advertisement (RFC 9568 §5.2.2).
    Type,
    /// Shorter or longer than its address count says (RFC 9568 §7.1).
    Length,
    /// The VRRP checksum is wrong (RFC 9568 §5.2.8).
    Checksum,
    /// A VRID that is not configured here (RFC 9568 §7.1).
    UnknownVrid,
    /// It lists no address (RFC 9568 §5.2.5, erratum 8299).
    CountZero,
    /// An interval of 0 (RFC 9568 erratum 8301). Accepting it would make the Active_Down_Timer
    /// expire at once, again and again.
    IntervalZero,
    /// Version 2: another interval than ours (RFC 3768 §7.1).
    Interval,
    /// Version 2: another authentication type than configured (RFC 3768 §7.1).
    AuthType,
    /// Version 2: another password than configured (RFC 2338 §7.1).
    Password,
    /// Another list of virtual addresses than ours (RFC 3768 §7.1).
    AddressList,
    /// IPv6: the first virtual address is not link-local (RFC 9568 §5.2.9, erratum 8300).
    FirstNotLinkLocal,
}

impl Discard {
    /// Every reason, in the order in which they are checked.
    pub const ALL: [Self; 21] = [
        Self::NotVrrp,
        Self::Truncated,
        Self::HeaderChecksum,
        Self::Fragment,
        Self::Destination,
        Self::Source,
        Self::OwnAddress,
        Self::TtlNot255,
        Self::Family,
        Self::Version,
        Self::Type,
        Self::Length,
        Self::Checksum,
        Self::UnknownVrid,
        Self::CountZero,
        Self::IntervalZero,
        Self::Interval,
        Self::AuthType,
        Self::Password,
        Self::AddressList,
        Self::FirstNotLinkLocal,
    ];

    /// The name of its counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotVrrp => "not_vrrp",
            Self::Truncated => "truncated",
            Self::HeaderChecksum => "header_checksum",
            Self::Fragment => "fragment",
            Self::Destination => "destination",
            Self::Source => "source",
            Self::OwnAddress => "own_address",
            Self::TtlNot255 => "ttl_not_255",
            Self::Family => "family",
            Self::Version => "version",
            Self::Type => "type",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::UnknownVrid => "unknown_vrid",
            Self::CountZero => "count_zero",
            Self::IntervalZero => "interval_zero",
            Self::Interval => "interval",
            Self::AuthType => "auth_type",
            Self::Password => "password",
            Self::AddressList => "address_list",
            Self::FirstNotLinkLocal => "first_not_link_local",
        }
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is worth telling about a packet that was accepted all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Remarks {
    /// Version 3, IPv4: the checksum covers a pseudo-header, as RFC 5798 was read by most before
    /// RFC 9568 §5.2.8 settled that it does not.
    pub old_checksum: bool,
    /// Version 3: another interval than ours (RFC 9568 §7.1).
    pub interval_differs: bool,
    /// Another list of virtual addresses than ours (RFC 9568 §7.1).
    pub addresses_differ: bool,
    /// We own the addresses, yet somebody else advertises them (RFC 9568 §7.1, erratum 8298).
    pub local_owner: bool,
}

impl Remarks {
    /// The names of the counters of what is set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.old_checksum, "old_checksum"),
            (self.interval_differs, "interval_differs"),
            (self.addresses_differ, "addresses_differ"),
            (self.local_owner, "local_owner"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
    }
}

/// An advertisement for this virtual router, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The sender's address, which breaks ties.
    pub source: IpAddr,
    /// What it says.
    pub advertisement: Advertisement,
    /// What should be logged about it, once per kind and sender.
    pub remarks: Remarks,
}

/// What the IP header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// What a virtual router accepts; [`crate::router::Config::expectation`] makes it.
#[derive(Clone, Copy)]
pub struct Expectation<'a> {
    /// The version it speaks.
    pub version: Version,
    /// Its identifier.
    pub vrid: Vrid,
    /// Its own interval.
    pub advertise_interval_cs: u16,
    /// Its password.
    pub password: Option<[u8; 8]>,
    /// Its virtual addresses.
    pub addresses: &'a [IpAddr],
    /// Its own address, which also says which address family it speaks.
    pub own_address: IpAddr,
    /// Whether it owns the addresses (priority 255).
    pub owner: bool,
    /// Whether another list of addresses is accepted (and remarked) or discarded.
    pub accept_other_addresses: bool,
}

/// Shows everything but the password.
impl fmt::Debug for Expectation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expectation")
            .field("version", &self.version)
            .field("vrid", &self.vrid)
            .field("advertise_interval_cs", &self.advertise_interval_cs)
            .field("password", &Redacted::of(self.password))
            .field("addresses", &self.addresses)
            .field("own_address", &self.own_address)
            .field("owner", &self.owner)
            .field("accept_other_addresses", &self.accept_other_addresses)
            .finish()
    }
}

/// What the checksum of a version 3 message over IPv4 covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ipv4Checksum {
    /// The VRRP message alone (RFC 9568 §5.2.8).
    #[default]
    MessageOnly,
    /// A pseudo-header as well, as keepalived and others send for RFC 5798. For groups whose other
    /// members accept nothing else.
    PseudoHeader,
}

/// Why an [`Advertisement`] cannot be put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// It lists nothing (RFC 9568 §5.2.5).
    #[error("an advertisement needs at least one virtual address")]
    NoAddress,
    /// The count field has eight bits.
    #[error("an advertisement holds at most 255 virtual addresses, not {0}")]
    TooManyAddresses(usize),
    /// Addresses and carrier are of one family (RFC 9568 §5.2.9); version 2 knows IPv4 alone.
    #[error("virtual addresses and source address must be of one family, and IPv4 for version 2")]
    MixedFamilies,
    /// RFC 9568 §5.2.9, erratum 8300.
    #[error("the first virtual IPv6 address must be link-local")]
    FirstNotLinkLocal,
    /// Version 3: 1 to 4095 centiseconds (RFC 9568 §6.1, erratum 8301); version 2: 1 to 255 seconds.
    #[error("an advertisement interval of {0} centiseconds cannot be written in this version")]
    Interval(u16),
}

/// Parses the payload of an IP packet, and checks everything that RFC 9568 §7.1 (version 2: RFC 3768
/// §7.1) demands.
pub fn parse_message(carrier: Carrier, message: &[u8], expect: &Expectation<'_>) -> Result<Received, Discard> {
    check_carrier(&carrier)?;
    parse_body(carrier, message, expect)
}

/// As [`parse_message`], for what one of `peers` sent to us alone.
///
/// Deviation: RFC 9568 knows multicast only. Peers may be routers apart, as with keepalived, so any hop limit
/// is accepted; in exchange, nobody is believed but who was named.
pub fn parse_unicast_message(
    carrier: Carrier,
    message: &[u8],
    expect: &Expectation<'_>,
    peers: &BTreeSet<IpAddr>,
) -> Result<Received, Discard> {
    if carrier.destination != expect.own_address {
        return Err(Discard::Destination);
    }
    if !peers.contains(&carrier.source) && carrier.source != expect.own_address {
        return Err(Discard::Source);
    }
    parse_body(carrier, message, expect)
}

/// What is checked whoever it was sent to.
fn parse_body(carrier: Carrier, message: &[u8], expect: &Expectation<'_>) -> Result<Received, Discard> {
    if carrier.source == expect.own_address {
        return Err(Discard::OwnAddress);
    }
    if carrier.source.is_ipv4() != expect.own_address.is_ipv4() {
        return Err(Discard::Family);
    }
    let packet = Packet(message);
    packet.check_start(expect.version)?;
    packet.check_length(expect.version, carrier.source)?;
    let old_checksum = packet.check_sum(expect.version, &carrier)?;
    // RFC 9568 §7.1: the VRID must be configured on the interface.
    if packet.vrid() != expect.vrid.get() {
        return Err(Discard::UnknownVrid);
    }
    let mut remarks = Remarks { old_checksum, local_owner: expect.owner, ..Remarks::default() };
    let advertisement = Advertisement {
        version: expect.version,
        vrid: expect.vrid,
        priority: packet.priority(),
        advertise_interval_cs: packet.interval(expect, &mut remarks)?,
        password: packet.authenticate(expect)?,
        addresses: packet.addresses(carrier.source),
    };
    check_addresses(&advertisement, expect, &mut remarks)?;
    Ok(Received { source: carrier.source, advertisement, remarks })
}

/// What the IP header must say, whoever the packet is for.
fn check_carrier(carrier: &Carrier) -> Result<(), Discard> {
    let (group, possible) = match carrier.source {
        IpAddr::V4(source) => (
            IpAddr::V4(IPV4_GROUP),
            !(source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback()),
        ),
        // RFC 9568 §5.1.2.1: the link-local address of the sending interface.
        IpAddr::V6(source) => (IpAddr::V6(IPV6_GROUP), source.is_unicast_link_local()),
    };
    if carrier.destination != group {
        Err(Discard::Destination)
    } else if carrier.hop_limit != HOP_LIMIT {
        // RFC 9568 §5.1.1.3, §5.1.2.3: anything else has crossed a router and is discarded.
        Err(Discard::TtlNot255)
    } else if !possible {
        Err(Discard::Source)
    } else {
        Ok(())
    }
}

/// Compares the listed addresses with ours.
fn check_addresses(adv: &Advertisement, expect: &Expectation<'_>, remarks: &mut Remarks) -> Result<(), Discard> {
    // RFC 9568 §5.2.9, erratum 8300.
    if let Some(IpAddr::V6(first)) = adv.addresses.first()
        && !first.is_unicast_link_local()
    {
        return Err(Discard::FirstNotLinkLocal);
    }
    let same =
        adv.addresses.len() == expect.addresses.len() && adv.addresses.iter().all(|a| expect.addresses.contains(a));
    remarks.addresses_differ = !same;
    // RFC 3768 §7.1: with another list, only the address owner is believed. RFC 9568 §7.1 logs.
    let owner_of_v2 = adv.version == Version::V2 && adv.priority == u8::MAX;
    if same || expect.accept_other_addresses || owner_of_v2 { Ok(()) } else { Err(Discard::AddressList) }
}

/// Reads the fields of a message; total over any bytes once `check_start` and `check_length` passed.
#[derive(Clone, Copy)]
struct Packet<'a>(&'a [u8]);

impl<'a> Packet<'a> {
    fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    fn vrid(self) -> u8 {
        self.byte(1)
    }

    fn priority(self) -> u8 {
        self.byte(2)
    }

    fn count(self) -> usize {
        usize::from(self.byte(3))
    }

    /// Version and type, which say how to read the rest.
    fn check_start(self, version: Version) -> Result<(), Discard> {
        if self.0.len() < FIXED_LEN {
            return Err(Discard::Length);
        }
        if self.byte(0) >> 4 != version.number() {
            return Err(Discard::Version);
        }
        // RFC 9568 §5.2.2: an unknown type must be discarded.
        if self.byte(0) & 0x0f != TYPE_ADVERTISEMENT {
            return Err(Discard::Type);
        }
        Ok(())
    }

    /// The message is exactly as long as its count says. Longer is refused, too: what follows could
    /// only be something we do not understand, such as a foreign authentication trailer.
    fn check_length(self, version: Version, source: IpAddr) -> Result<(), Discard> {
        if version == Version::V2 && source.is_ipv6() {
            return Err(Discard::Family);
        }
        // RFC 9568 §5.2.5, erratum 8299: a count of 0 is ignored.
        if self.count() == 0 {
            return Err(Discard::CountZero);
        }
        if self.0.len() != message_len(version, source, self.count()) {
            return Err(Discard::Length);
        }
        Ok(())
    }

    /// Returns whether version 3's old IPv4 form was used; a sum that is right in no form is always
    /// an error.
    fn check_sum(self, version: Version, carrier: &Carrier) -> Result<bool, Discard> {
        let plain = Sum::default().add(self.0).is_valid();
        let with_header =
            pseudo_header(carrier.source, carrier.destination, PROTOCOL, self.0.len()).add(self.0).is_valid();
        match (version, carrier.source) {
            // RFC 3768 §5.3.8: from the version field to the end, authentication data included.
            (Version::V2, _) | (Version::V3, IpAddr::V4(_)) if plain => Ok(false),
            // RFC 9568 §5.2.8: IPv6 sums a pseudo-header with next header 112.
            (Version::V3, IpAddr::V6(_)) if with_header => Ok(false),
            (Version::V3, IpAddr::V4(_)) if with_header => Ok(true),
            (Version::V2 | Version::V3, _) => Err(Discard::Checksum),
        }
    }

    fn interval(self, expect: &Expectation<'_>, remarks: &mut Remarks) -> Result<u16, Discard> {
        let interval_cs = match expect.version {
            Version::V2 => u16::from(self.byte(5)) * 100,
            // RFC 9568 §5.2.6: the reserved bits are ignored.
            Version::V3 => u16::from_be_bytes([self.byte(4), self.byte(5)]) & INTERVAL_MASK,
        };
        let same = interval_cs == expect.advertise_interval_cs;
        remarks.interval_differs = !same;
        match expect.version {
            // RFC 9568 erratum 8301, and for version 2 our own prudence.
            _ if interval_cs == 0 => Err(Discard::IntervalZero),
            // RFC 3768 §7.1: another interval than the configured one is discarded.
            Version::V2 if !same => Err(Discard::Interval),
            Version::V2 | Version::V3 => Ok(interval_cs),
        }
    }

    fn authenticate(self, expect: &Expectation<'_>) -> Result<Option<[u8; 8]>, Discard> {
        match (expect.version, expect.password) {
            (Version::V3, _) => Ok(None),
            // RFC 3768 §7.1: the type must be the configured one; the data of type 0 is ignored.
            (Version::V2, None) if self.byte(4) == AUTH_NONE => Ok(None),
            (Version::V2, Some(password)) if self.byte(4) == AUTH_PASSWORD => {
                // RFC 2338 §7.1: the data must be the configured password.
                if self.0.last_chunk::<AUTH_LEN>() == Some(&password) {
                    Ok(Some(password))
                } else {
                    Err(Discard::Password)
                }
            }
            (Version::V2, None | Some(_)) => Err(Discard::AuthType),
        }
    }

    fn addresses(self, source: IpAddr) -> Vec<IpAddr> {
        let list = &self.0[FIXED_LEN.min(self.0.len())..];
        match source {
            IpAddr::V4(_) => {
                list.as_chunks::<4>().0.iter().take(self.count()).map(|bytes| IpAddr::from(*bytes)).collect()
            }
            IpAddr::V6(_) => {
                list.as_chunks::<16>().0.iter().take(self.count()).map(|bytes| IpAddr::from(*bytes)).collect()
            }
        }
    }
}

/// Length of a message with `count` addresses of the family of `source`.
fn message_len(version: Version, source: IpAddr, count: usize) -> usize {
    let each = if source.is_ipv4() { 4 } else { 16 };
    let auth = match version {
        Version::V2 => AUTH_LEN,
        Version::V3 => 0,
    };
    FIXED_LEN + count * each + auth
}

impl Advertisement {
    /// Writes the VRRP message that `source` sends to the group of its family.
    pub fn message(&self, source: IpAddr, checksum: Ipv4Checksum) -> Result<Vec<u8>, Unsendable> {
        self.message_to(source, group(source), checksum)
    }

    /// Writes the VRRP message that `source` sends to `destination`, a peer of the same family or the group.
    pub fn message_to(
        &self,
        source: IpAddr,
        destination: IpAddr,
        checksum: Ipv4Checksum,
    ) -> Result<Vec<u8>, Unsendable> {
        let count = self.check_sendable(source)?;
        let mut message = Vec::with_capacity(message_len(self.version, source, count.into()));
        message.extend([self.version.number() << 4 | TYPE_ADVERTISEMENT, self.vrid.get(), self.priority, count]);
        message.extend(self.interval_bytes()?);
        message.extend([0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
        }
        if self.version == Version::V2 {
            // RFC 2338 §5.3.10: after the addresses, and zero when there is none.
            message.extend(self.password.unwrap_or_default());
        }
        let start = match (self.version, source, checksum) {
            (Version::V3, IpAddr::V6(_), _) | (Version::V3, IpAddr::V4(_), Ipv4Checksum::PseudoHeader) => {
                pseudo_header(source, destination, PROTOCOL, message.len())
            }
            (Version::V2, _, _) | (Version::V3, IpAddr::V4(_), Ipv4Checksum::MessageOnly) => Sum::default(),
        };
        let sum = start.add(&message).finish().to_be_bytes();
        message[6..8].copy_from_slice(&sum);
        Ok(message)
    }

    fn check_sendable(&self, source: IpAddr) -> Result<u8, Unsendable> {
        let count = self.addresses.len();
        let family_differs = |a: &IpAddr| a.is_ipv4() != source.is_ipv4();
        match self.addresses.first() {
            None => return Err(Unsendable::NoAddress),
            Some(IpAddr::V6(first)) if !first.is_unicast_link_local() => {
                return Err(Unsendable::FirstNotLinkLocal);
            }
            Some(_) => {}
        }
        if self.addresses.iter().any(family_differs) || (self.version == Version::V2 && source.is_ipv6()) {
            return Err(Unsendable::MixedFamilies);
        }
        u8::try_from(count).map_err(|_| Unsendable::TooManyAddresses(count))
    }

    /// Bytes 4 and 5: authentication type and seconds, or reserved bits and centiseconds.
    fn interval_bytes(&self) -> Result<[u8; 2], Unsendable> {
        let interval = self.advertise_interval_cs;
        let refused = Unsendable::Interval(interval);
        match self.version {
            Version::V2 => match u8::try_from(interval / 100) {
                Ok(seconds @ 1..) if interval.is_multiple_of(100) => {
                    let auth = self.password.map_or(AUTH_NONE, |_| AUTH_PASSWORD);
                    Ok([auth, seconds])
                }
                Ok(_) | Err(_) => Err(refused),
            },
            // RFC 9568 §5.2.6: the reserved bits are sent as 0.
            Version::V3 if (1..=INTERVAL_MASK).contains(&interval) => Ok(interval.to_be_bytes()),
            Version::V3 => Err(refused),
        }
    }
}

/// The group of the address family of `source`.
pub(crate) fn group(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => IpAddr::V4(IPV4_GROUP),
        IpAddr::V6(_) => IpAddr::V6(IPV6_GROUP),
    }
}

/// Pads a password with zeros to the eight bytes of the wire (RFC 2338 §5.3.10). A longer one is cut
/// at eight bytes, as keepalived does with what Neutron writes into its configuration.
pub fn password(text: &str) -> [u8; 8] {
    let mut padded = [0; 8];
    for (to, from) in padded.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    padded
}

#[cfg(test)]
mod tests;
