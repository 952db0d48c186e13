//! Meticulous Keyed SHA1 authentication (RFC 5880 §6.7.4).
//!
//! Why this one: it is the strongest that the RFC knows, so others can speak it, and *meticulous* means
//! that every packet has a sequence number of its own, so a recorded packet is worth nothing while the
//! session lives. SHA1 here is not asked to resist collisions found at leisure: a forger has to find,
//! within one detection time, a packet for a secret of 20 bytes that is nowhere on the wire. Give it a
//! secret of its own, derived from a better-protected one (as the keeper does), never the original.
//!
//! What remains: after twice the Detection Time without a valid packet, any sequence number is accepted
//! again (RFC 5880 §6.8.1), as a restarted peer begins with a new one. Somebody who replays a recorded
//! conversation *then* can at worst hold the session of a dead host up, which costs speed and never
//! correctness: VRRP still notices. A fresh discriminator for every process keeps even that to
//! recordings of the same process.

use std::time::{Duration, Instant};

use sha1::{Digest as _, Sha1};

use super::wire::{Control, Discard, METICULOUS_KEYED_SHA1, Packet, SHA1_SECTION_LEN, Section};

const DIGEST_LEN: usize = 20;
/// Auth Key ID, reserved, sequence number.
const BEFORE_DIGEST: usize = 6;

/// A shared key with its number. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    id: u8,
    secret: [u8; DIGEST_LEN],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}, <secret>)", self.id)
    }
}

impl Key {
    /// Makes a key. A secret of fewer than 20 bytes is to be padded with zeros (RFC 5880 §4.4).
    pub fn new(id: u8, secret: [u8; DIGEST_LEN]) -> Self {
        Self { id, secret }
    }

    /// The digest of a packet, in whose digest field the secret takes its place meanwhile.
    fn digest(&self, packet: &[u8]) -> [u8; DIGEST_LEN] {
        let mut hash = Sha1::new();
        hash.update(&packet[..Section::data_offset() + BEFORE_DIGEST]);
        hash.update(self.secret);
        hash.finalize().into()
    }
}

/// What one session knows of sequence numbers (bfd.XmitAuthSeq, bfd.RcvAuthSeq, bfd.AuthSeqKnown).
#[derive(Clone, Debug)]
pub(super) struct Sequences {
    sent: u32,
    received: Option<u32>,
}

impl Sequences {
    /// Starts at a random number (RFC 5880 §6.8.1).
    pub(super) fn new(first: u32) -> Self {
        Self { sent: first, received: None }
    }

    /// Writes and signs a packet with the next sequence number.
    pub(super) fn emit(&mut self, control: &Control, key: &Key) -> Vec<u8> {
        // RFC 5880 §6.7.4: meticulous, so incremented for every packet, in a circle.
        self.sent = self.sent.wrapping_add(1);
        let mut section = [0; SHA1_SECTION_LEN];
        (section[0], section[1], section[2]) = (METICULOUS_KEYED_SHA1, SHA1_SECTION_LEN as u8, key.id);
        section[4..8].copy_from_slice(&self.sent.to_be_bytes());
        let mut packet = control.emit_with_section(&section);
        let digest = key.digest(&packet);
        let at = packet.len() - DIGEST_LEN;
        packet[at..].copy_from_slice(&digest);
        packet
    }

    /// Judges a packet by the keys that are in use; none: it must carry no authentication.
    pub(super) fn verify(&mut self, packet: &Packet<'_>, keys: &[Key]) -> Result<(), Discard> {
        let section = match (packet.authentication, keys.is_empty()) {
            (None, true) => return Ok(()),
            (Some(_), true) => return Err(Discard::AuthUnexpected),
            (None, false) => return Err(Discard::AuthMissing),
            (Some(section), false) => section,
        };
        if section.kind != METICULOUS_KEYED_SHA1 || section.data.len() != SHA1_SECTION_LEN - 2 {
            return Err(Discard::AuthType);
        }
        let key = keys.iter().find(|key| key.id == section.data[0]).ok_or(Discard::AuthKeyId)?;
        let sequence = u32::from_be_bytes([section.data[2], section.data[3], section.data[4], section.data[5]]);
        // RFC 5880 §6.7.4: RcvAuthSeq + 1 to RcvAuthSeq + 3 * Detect Mult, in a circle.
        let window = 3 * u32::from(packet.control.detect_mult.get());
        if self.received.is_some_and(|last| !(1..=window).contains(&sequence.wrapping_sub(last))) {
            return Err(Discard::AuthSequence);
        }
        let digest = key.digest(section.packet);
        // Without a way out in between, so that time tells nothing of where they differ.
        let differs = digest.iter().zip(&section.data[BEFORE_DIGEST..]).fold(0, |all, (a, b)| all | (a ^ b));
        if differs != 0 {
            return Err(Discard::AuthDigest);
        }
        // Deviation: RFC 5880 §6.7.4 notes a first sequence number before it looks at the digest, so
        // that one forged packet would shut the real peer out.
        self.received = Some(sequence);
        Ok(())
    }

    /// Accepts any sequence number from now on if the peer was silent for long enough.
    pub(super) fn forget_if_silent(&mut self, silent: Option<Duration>, detection: Duration) {
        // RFC 5880 §6.8.1: bfd.AuthSeqKnown is cleared after twice the Detection Time.
        if silent.is_none_or(|silent| silent >= 2 * detection) {
            self.received = None;
        }
    }
}

/// How long ago, for [`Sequences::forget_if_silent`].
pub(super) fn silence(last: Option<Instant>, now: Instant) -> Option<Duration> {
    last.map(|last| now.saturating_duration_since(last))
}
