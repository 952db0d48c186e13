//! The claim datagram: a fixed layout, authenticated by HMAC-SHA256 over a key that the hosts share.
//!
//! ```text
//!  0  "EVGC"                      magic
//!  4  version (1)
//!  5  kind: 1 claim, 2 repeat, 3 acknowledgement
//!  6  number of entries, 16 bits
//!  8  sender's tunnel address, 128 bits (IPv4 is written as ::ffff:a.b.c.d)
//! 24  entries, 40 bytes each: router (128 bits), epoch (64), tunnel address of the active copy (128)
//!  …  HMAC-SHA256 of everything before it, 32 bytes
//! ```
//!
//! Numbers are big-endian. An unspecified tunnel address (`::`) in an acknowledgement means "not known".

use std::net::{IpAddr, Ipv6Addr};

use evergate_model::RouterId;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

const MAGIC: [u8; 4] = *b"EVGC";
const VERSION: u8 = 1;
const HEADER: usize = 24;
pub(super) const ENTRY: usize = 40;
pub(super) const TAG: usize = 32;

/// Most entries that one datagram carries: with headers it stays below 1400 bytes, which every underlay
/// that carries VXLAN also carries unfragmented.
pub const MAX_ENTRIES: usize = 33;

/// Largest datagram of this format.
pub const MAX_DATAGRAM: usize = HEADER + MAX_ENTRIES * ENTRY + TAG;

/// What a datagram says about its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The sender became active with these; answer wanted.
    Claim,
    /// The sender is still active with these; no answer wanted.
    Repeat,
    /// What the sender knows of the routers that it was told of.
    Ack,
}

/// One router's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which router.
    pub router: RouterId,
    /// In which epoch.
    pub epoch: u64,
    /// Tunnel address of its active copy's host; `None` only in an acknowledgement.
    pub vtep: Option<IpAddr>,
}

/// A datagram's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it says about them.
    pub kind: Kind,
    /// The sender's tunnel address.
    pub sender: IpAddr,
    /// At most [`MAX_ENTRIES`].
    pub entries: Vec<Entry>,
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    /// Too short, too long, or not as long as its number of entries says.
    #[error("claim_length")]
    Length,
    /// Not a claim.
    #[error("claim_format")]
    Format,
    /// Of another version than is spoken here.
    #[error("claim_version")]
    Version,
    /// Not signed with our key.
    #[error("claim_key")]
    Key,
    /// Signed, but what it says makes no sense: an unknown kind, or a claim for another host.
    #[error("claim_content")]
    Content,
    /// It says another sender than it came from.
    #[error("claim_sender")]
    Sender,
}

/// The hosts' common key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimKey(Vec<u8>);

impl std::fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClaimKey(<secret>)")
    }
}

impl ClaimKey {
    /// Takes the key's bytes. An empty key would make every datagram forgeable.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// A key for another purpose, from which this one cannot be told.
    pub fn derived(&self, purpose: &[u8]) -> [u8; 20] {
        let mut hmac = self.hmac();
        hmac.update(b"evergate ");
        hmac.update(purpose);
        let whole = hmac.finalize().into_bytes();
        std::array::from_fn(|at| whole[at])
    }

    /// Appends the signature of what was written.
    pub(super) fn sign(&self, bytes: &mut Vec<u8>) {
        let mut hmac = self.hmac();
        hmac.update(bytes);
        bytes.extend(hmac.finalize().into_bytes());
    }

    /// Returns what was signed, if it was, and is of this format. `header` is the shortest that it can be.
    pub(super) fn verify<'a>(
        &self,
        bytes: &'a [u8],
        header: usize,
        magic: [u8; 4],
        version: u8,
    ) -> Result<&'a [u8], Discard> {
        let signed = bytes.len().checked_sub(TAG).filter(|&length| length >= header).ok_or(Discard::Length)?;
        let (content, tag) = bytes.split_at(signed);
        if content[..4] != magic {
            return Err(Discard::Format);
        }
        if content[4] != version {
            return Err(Discard::Version);
        }
        // The signature comes before anything else is believed, and is compared in constant time.
        let mut hmac = self.hmac();
        hmac.update(content);
        hmac.verify_slice(tag).map_err(|_| Discard::Key)?;
        Ok(content)
    }

    fn hmac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.0).expect("HMAC takes a key of any length")
    }
}

impl Message {
    /// Writes and signs the datagram.
    pub fn emit(&self, key: &ClaimKey) -> Vec<u8> {
        debug_assert!(self.entries.len() <= MAX_ENTRIES, "the outbox cuts to MAX_ENTRIES");
        let mut bytes = Vec::with_capacity(HEADER + self.entries.len() * ENTRY + TAG);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.push(match self.kind {
            Kind::Claim => 1,
            Kind::Repeat => 2,
            Kind::Ack => 3,
        });
        bytes.extend((self.entries.len() as u16).to_be_bytes());
        bytes.extend(address_bytes(Some(self.sender)));
        emit_entries(&self.entries, &mut bytes);
        key.sign(&mut bytes);
        bytes
    }

    /// Verifies and reads a datagram that came from `from`.
    pub fn parse(bytes: &[u8], from: IpAddr, key: &ClaimKey) -> Result<Self, Discard> {
        let content = key.verify(bytes, HEADER, MAGIC, VERSION)?;
        let count = usize::from(u16::from_be_bytes([content[6], content[7]]));
        if count > MAX_ENTRIES || content.len() != HEADER + count * ENTRY {
            return Err(Discard::Length);
        }
        let kind = match content[5] {
            1 => Kind::Claim,
            2 => Kind::Repeat,
            3 => Kind::Ack,
            _ => return Err(Discard::Content),
        };
        let sender = address(&content[8..24]).ok_or(Discard::Content)?;
        if sender != from.to_canonical() {
            return Err(Discard::Sender);
        }
        let entries: Vec<Entry> = content[HEADER..].chunks_exact(ENTRY).map(read_entry).collect();
        // A host speaks for itself; only an acknowledgement repeats what others said.
        if kind != Kind::Ack && entries.iter().any(|entry| entry.vtep != Some(sender)) {
            return Err(Discard::Content);
        }
        Ok(Self { kind, sender, entries })
    }
}

pub(super) fn emit_entries(entries: &[Entry], bytes: &mut Vec<u8>) {
    for entry in entries {
        bytes.extend(entry.router.0.as_bytes());
        bytes.extend(entry.epoch.to_be_bytes());
        bytes.extend(address_bytes(entry.vtep));
    }
}

pub(super) fn read_entry(bytes: &[u8]) -> Entry {
    Entry {
        router: RouterId::from_u128(u128::from_be_bytes(array(&bytes[..16]))),
        epoch: u64::from_be_bytes(array(&bytes[16..24])),
        vtep: address(&bytes[24..40]),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cut exactly this many bytes")
}

pub(super) fn address_bytes(address: Option<IpAddr>) -> [u8; 16] {
    match address {
        None => Ipv6Addr::UNSPECIFIED.octets(),
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(v6)) => v6.octets(),
    }
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v6 = Ipv6Addr::from(array::<16>(bytes));
    (!v6.is_unspecified()).then(|| IpAddr::V6(v6).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn key(text: &str) -> ClaimKey {
        ClaimKey::new(text.as_bytes().to_vec()).unwrap()
    }

    fn claim(entries: usize) -> Message {
        let entry = |n| Entry { router: RouterId::from_u128(n), epoch: 7 + n as u64, vtep: Some(A) };
        Message { kind: Kind::Claim, sender: A, entries: (0..entries as u128).map(entry).collect() }
    }

    #[test]
    fn a_claim_survives_the_wire() {
        for entries in [0, 1, MAX_ENTRIES] {
            let bytes = claim(entries).emit(&key("k"));
            assert!(bytes.len() <= MAX_DATAGRAM);
            assert_eq!(Message::parse(&bytes, A, &key("k")), Ok(claim(entries)));
        }
    }

    #[test]
    fn an_acknowledgement_may_name_another_host_or_none() {
        let entries = vec![
            Entry { router: RouterId::from_u128(1), epoch: 9, vtep: Some(B) },
            Entry { router: RouterId::from_u128(2), epoch: 0, vtep: None },
        ];
        let ack = Message { kind: Kind::Ack, sender: A, entries };
        assert_eq!(Message::parse(&ack.emit(&key("k")), A, &key("k")), Ok(ack));
    }

    #[test]
    fn ipv6_tunnel_addresses_work() {
        let sender: IpAddr = "2001:db8::1".parse().unwrap();
        let entry = Entry { router: RouterId::from_u128(1), epoch: 1, vtep: Some(sender) };
        let message = Message { kind: Kind::Repeat, sender, entries: vec![entry] };
        assert_eq!(Message::parse(&message.emit(&key("k")), sender, &key("k")), Ok(message));
    }

    #[test]
    fn a_claim_under_another_key_is_refused() {
        let bytes = claim(1).emit(&key("theirs"));
        assert_eq!(Message::parse(&bytes, A, &key("ours")), Err(Discard::Key));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let good = claim(1).emit(&key("k"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::parse(&bad, A, &key("k")).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_shortened_or_lengthened_datagram_is_refused() {
        let good = claim(2).emit(&key("k"));
        for length in 0..good.len() {
            assert!(Message::parse(&good[..length], A, &key("k")).is_err(), "{length} bytes");
        }
        assert!(Message::parse(&[good, vec![0]].concat(), A, &key("k")).is_err());
    }

    #[test]
    fn a_host_speaks_only_for_itself() {
        let mut message = claim(1);
        assert_eq!(Message::parse(&message.emit(&key("k")), B, &key("k")), Err(Discard::Sender));
        message.entries[0].vtep = Some(B);
        assert_eq!(Message::parse(&message.emit(&key("k")), A, &key("k")), Err(Discard::Content));
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert_eq!(ClaimKey::new(Vec::new()), None);
        assert!(!format!("{:?}", key("hush")).contains("hush"));
    }
}
