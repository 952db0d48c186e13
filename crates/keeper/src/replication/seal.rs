//! Datagrams between two hosts' replication, sealed: nobody without the cluster's key reads, forges or
//! repeats one.
//!
//! ```text
//!  0  "EVGR"                      magic
//!  4  version (1)
//!  5  kind: 1 greeting that wants an answer, 2 data, 3 answer to a greeting
//!  6  zero (16 bits)
//!  8  the sender's life           128 bits, drawn when its process starts
//! 24  the receiver's life         as far as the sender knows it; zero: not at all
//! 40  counter, 64 bits            never used twice by the sender towards the receiver
//! 48  ChaCha20-Poly1305 of the content; the header is authenticated with it
//! ```
//!
//! The key is HKDF-SHA256 of the cluster's claim key, with both lives as salt and both addresses as info. A
//! datagram that names the receiver's life was therefore made in this life of the receiver: what an earlier
//! one was told cannot be repeated to it. Only such a datagram tells who the peer is now.

use std::net::{IpAddr, Ipv6Addr};

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;

const MAGIC: [u8; 4] = *b"EVGR";
const VERSION: u8 = 1;
const HEADER: usize = 48;
const PURPOSE: &[u8] = b"evergate connection replication 1";

/// Largest datagram.
pub(super) const MAX_DATAGRAM: usize = HEADER + evergate_ctsync::message::MAX_LEN + 16;

/// One acquaintance of a replication process with a peer.
///
/// It ends with the process, and with the last router that both have: whoever meets the peer again counts datagrams from the
/// beginning, which under the keys of the life before would be repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Life(pub(super) u128);

impl Life {
    /// Another life of the same process.
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tells of the sender's life; wants to be told of the receiver's.
    Greeting,
    /// For the engine.
    Data,
    /// Tells of the sender's life.
    Answer,
}

/// What the outside of a datagram says; not yet to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) from: Life,
    pub(super) to: Option<Life>,
    pub(super) counter: u64,
}

/// Why a datagram was refused; the text is the counter's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Discard {
    /// It is no datagram of ours.
    #[error("replication_format")]
    Format,
    /// It is of another version than is spoken here.
    #[error("replication_version")]
    Version,
    /// It comes from an address where no other copy of any router is.
    #[error("replication_stranger")]
    Stranger,
    /// It was not sealed with the cluster's key, or was changed.
    #[error("replication_key")]
    Key,
    /// It was seen before, or is too old to tell.
    #[error("replication_replay")]
    Replay,
    /// It was meant for an earlier life of this process, or comes from one that its sender has left.
    #[error("replication_old_life")]
    OldLife,
    /// What is inside makes no sense, or is of another version.
    #[error("replication_content")]
    Content,
}

impl Header {
    /// Reads the outside.
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, Discard> {
        let header: &[u8; HEADER] = datagram.first_chunk().ok_or(Discard::Format)?;
        let life = |at: usize| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&header[at..at + 16]);
            u128::from_be_bytes(bytes)
        };
        if header[..4] != MAGIC {
            return Err(Discard::Format);
        }
        if header[4] != VERSION {
            return Err(Discard::Version);
        }
        if header[6..8] != [0, 0] {
            return Err(Discard::Format);
        }
        let kind = match header[5] {
            1 => Kind::Greeting,
            2 => Kind::Data,
            3 => Kind::Answer,
            _ => return Err(Discard::Format),
        };
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[40..]);
        let to = life(24);
        let to = (to != 0).then_some(Life(to));
        Ok(Self { kind, from: Life(life(8)), to, counter: u64::from_be_bytes(counter) })
    }

    fn emit(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Greeting => 1,
            Kind::Data => 2,
            Kind::Answer => 3,
        };
        bytes[8..24].copy_from_slice(&self.from.0.to_be_bytes());
        bytes[24..40].copy_from_slice(&self.to.map_or(0, |life| life.0).to_be_bytes());
        bytes[40..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// The cluster's key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ClusterKey(Vec<u8>);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(<secret>)")
    }
}

impl ClusterKey {
    /// Takes the key's bytes; none if it is empty.
    pub(super) fn new(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// The key of one direction between two lives.
    pub(super) fn cipher(&self, (from, from_life): (IpAddr, Life), (to, to_life): (IpAddr, Option<Life>)) -> Cipher {
        let mut salt = [0; 32];
        salt[..16].copy_from_slice(&from_life.0.to_be_bytes());
        salt[16..].copy_from_slice(&to_life.map_or(0, |life| life.0).to_be_bytes());
        let mut info = PURPOSE.to_vec();
        info.extend(octets(from));
        info.extend(octets(to));
        let mut key = Key::default();
        Hkdf::<Sha256>::new(Some(&salt), &self.0).expand(&info, &mut key).expect("32 bytes are not too many");
        Cipher(ChaCha20Poly1305::new(&key))
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address),
    }
}

/// Seals or opens datagrams of one direction.
#[derive(Clone)]
pub(super) struct Cipher(ChaCha20Poly1305);

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(<secret>)")
    }
}

impl Cipher {
    pub(super) fn seal(&self, header: &Header, content: &[u8]) -> Vec<u8> {
        let outside = header.emit();
        let payload = Payload { msg: content, aad: &outside };
        let sealed = self.0.encrypt(&nonce(header.counter), payload).expect("contents are short");
        [&outside[..], &sealed].concat()
    }

    pub(super) fn open(&self, header: &Header, datagram: &[u8]) -> Result<Vec<u8>, Discard> {
        let (outside, sealed) = datagram.split_at_checked(HEADER).ok_or(Discard::Format)?;
        let payload = Payload { msg: sealed, aad: outside };
        self.0.decrypt(&nonce(header.counter), payload).map_err(|_| Discard::Key)
    }
}

/// A key belongs to one direction between two lives, in which no counter comes twice.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// Which counters were seen. Those more than 127 behind the newest count as seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    highest: u64,
    seen: u128,
}

impl Window {
    /// Whether the counter is new.
    pub(super) fn is_new(&self, counter: u64) -> bool {
        match self.highest.checked_sub(counter) {
            None => true,
            Some(age) => age < 128 && self.seen >> age & 1 == 0,
        }
    }

    /// Notes one that was authenticated.
    pub(super) fn note(&mut self, counter: u64) {
        match counter.checked_sub(self.highest) {
            Some(step) if step > 0 => {
                self.seen = if step < 128 { self.seen << step } else { 0 } | 1;
                self.highest = counter;
            }
            Some(_) => self.seen |= 1,
            None => {
                let age = self.highest - counter;
                if age < 128 {
                    self.seen |= 1 << age;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_each_counter_once_in_any_order() {
        let mut window = Window::default();
        for counter in [1, 3, 2, 200, 73, 199] {
            assert!(window.is_new(counter), "{counter}");
            window.note(counter);
            assert!(!window.is_new(counter), "{counter}");
        }
        assert!(!window.is_new(72), "too old to tell");
        assert!(window.is_new(201) && window.is_new(198));
    }

    #[test]
    fn no_changed_bit_and_no_other_direction_opens() {
        let key = ClusterKey::new(vec![7; 32]).unwrap();
        let (a, b) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let cipher = key.cipher((a, Life(1)), (b, Some(Life(2))));
        let header = Header { kind: Kind::Data, from: Life(1), to: Some(Life(2)), counter: 9 };
        let sealed = cipher.seal(&header, b"content");
        assert_eq!(Header::parse(&sealed), Ok(header));
        assert_eq!(cipher.open(&header, &sealed).unwrap(), b"content");
        assert!(!sealed.windows(7).any(|window| window == b"content"));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let opened = Header::parse(&changed).and_then(|header| cipher.open(&header, &changed));
            assert!(opened.is_err(), "byte {at}");
            assert!(cipher.open(&header, &sealed[..at]).is_err());
        }
        let back = key.cipher((b, Life(2)), (a, Some(Life(1))));
        assert_eq!(back.open(&header, &sealed), Err(Discard::Key));
        let later = key.cipher((a, Life(1)), (b, Some(Life(3))));
        assert_eq!(later.open(&header, &sealed), Err(Discard::Key));
        let mut other_release = sealed.clone();
        other_release[4] += 1;
        assert_eq!(Header::parse(&other_release), Err(Discard::Version));
    }
}
