//! Questions between keepers, and their answers: "are you active with these routers?"
//!
//! ```text
//!  0  "EVGQ"                      magic
//!  4  version (1)
//!  5  kind: 1 question, 2 answer, 3 handover, 4 lonely answer
//!  6  number of entries, 16 bits
//!  8  sender's tunnel address, 128 bits (IPv4 is written as ::ffff:a.b.c.d)
//! 24  tunnel address of the host that asks
//! 40  tunnel address of the host whose word is wanted
//! 56  number of the question, 64 bits: an answer repeats it, and so does a handover that was asked about
//! 64  entries, as in a claim
//!  …  HMAC-SHA256 of everything before it, 32 bytes
//! ```
//!
//! Whoever is asked answers for itself. If it is another one's word that is wanted, it passes the question
//! on to that one, and the answer back: once, so nothing goes round. A number is good for a moment only
//! ([`Numbers`]), so a recorded answer does not keep a dead host alive.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::wire::{ClaimKey, Discard, ENTRY, Entry, TAG, address, address_bytes, emit_entries, read_entry};

const MAGIC: [u8; 4] = *b"EVGQ";
const VERSION: u8 = 1;
const HEADER: usize = 64;

/// Most entries that one datagram carries, so that it is not longer than a claim may be.
pub const MAX_ENTRIES: usize = 32;

/// How long an answer to a question is believed.
pub const IS_OVER: Duration = Duration::from_secs(2);
/// How exactly it is known when a number was drawn.
const SAMPLE: Duration = Duration::from_millis(10);

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A word about the routers that are listed; without any: a sign of life.
    Question,
    /// What the host whose word was wanted, or the one that was asked for it, has to say.
    Answer,
    /// The active copies' host asks the receiver to take over. It is to ask back; with the number of that question,
    /// this says that it is still wanted.
    Handover,
    /// An answer, by way of the server alone, of a host that hears no other than the one that asks, as far as it
    /// knows at the moment.
    LonelyAnswer,
}

/// A question, an answer or a handover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is.
    pub kind: Kind,
    /// Who sent this datagram.
    pub sender: IpAddr,
    /// Who asks.
    pub origin: IpAddr,
    /// Question: whose word is wanted. Answer: who speaks.
    pub subject: IpAddr,
    /// Tells the answers to one question from others.
    pub number: u64,
    /// Question: routers, and the highest epochs that are known of them. Answer: what is known, with the
    /// speaker's own tunnel address where its copy is active.
    pub entries: Vec<Entry>,
}

impl Question {
    /// Tells whether a datagram is of this format.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Writes and signs the datagram.
    pub fn emit(&self, key: &ClaimKey) -> Vec<u8> {
        debug_assert!(self.entries.len() <= MAX_ENTRIES, "the sender cuts to MAX_ENTRIES");
        let mut bytes = Vec::with_capacity(HEADER + self.entries.len() * ENTRY + TAG);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.push(match self.kind {
            Kind::Question => 1,
            Kind::Answer => 2,
            Kind::Handover => 3,
            Kind::LonelyAnswer => 4,
        });
        bytes.extend((self.entries.len() as u16).to_be_bytes());
        for host in [self.sender, self.origin, self.subject] {
            bytes.extend(address_bytes(Some(host)));
        }
        bytes.extend(self.number.to_be_bytes());
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
            1 => Kind::Question,
            2 => Kind::Answer,
            3 => Kind::Handover,
            4 => Kind::LonelyAnswer,
            _ => return Err(Discard::Content),
        };
        let host = |at: usize| address(&content[at..at + 16]).ok_or(Discard::Content);
        let (sender, origin, subject) = (host(8)?, host(24)?, host(40)?);
        if sender != from.to_canonical() {
            return Err(Discard::Sender);
        }
        // A question comes from whoever asks, or was passed on to whoever is asked; an answer comes from
        // whoever speaks, or was passed on to whoever asked. Only the receiver can tell the second.
        if kind == Kind::Handover && origin != sender {
            return Err(Discard::Content);
        }
        let number = content[56..64].try_into().map(u64::from_be_bytes).map_err(|_| Discard::Length)?;
        let entries = content[HEADER..].chunks_exact(ENTRY).map(read_entry).collect();
        Ok(Self { kind, sender, origin, subject, number, entries })
    }
}

/// The numbers of this host's questions. They are consecutive, so one every now and then tells when all of them were
/// drawn, however many routers ask at once.
#[derive(Debug)]
pub struct Numbers {
    last: u64,
    /// The first number of each moment in which any was drawn, the oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl Numbers {
    /// Begins behind a number that is not the same in each life of the process.
    pub fn after(last: u64) -> Self {
        Self { last, samples: VecDeque::new() }
    }

    /// Draws the number of a question that is asked now.
    pub fn draw(&mut self, now: Instant) -> u64 {
        self.last = self.last.wrapping_add(1);
        let age = |at: Instant| now.saturating_duration_since(at);
        while self.samples.front().is_some_and(|(at, _)| age(*at) >= IS_OVER) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|(at, _)| age(*at) >= SAMPLE) {
            self.samples.push_back((now, self.last));
        }
        self.last
    }

    /// Whether a number was drawn within a time, of [`IS_OVER`] at most.
    pub fn is_drawn(&self, number: u64, within: Duration, now: Instant) -> bool {
        let lately = |(at, _): &&(Instant, u64)| now.saturating_duration_since(*at) < within;
        let first = self.samples.iter().find(lately).map(|(_, first)| *first);
        first.is_some_and(|first| number.wrapping_sub(first) <= self.last.wrapping_sub(first))
    }
}

#[cfg(test)]
mod tests {
    use evergate_model::RouterId;

    use super::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn key(text: &str) -> ClaimKey {
        ClaimKey::new(text.as_bytes().to_vec()).unwrap()
    }

    fn question(entries: u128) -> Question {
        let entry = |n| Entry { router: RouterId::from_u128(n), epoch: n as u64, vtep: Some(host(3)) };
        Question {
            kind: Kind::Answer,
            sender: host(1),
            origin: host(2),
            subject: host(3),
            number: 7,
            entries: (0..entries).map(entry).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_fits() {
        for count in [0, 1, MAX_ENTRIES as u128] {
            let question = question(count);
            let bytes = question.emit(&key("k"));
            assert!(bytes.len() <= super::super::wire::MAX_DATAGRAM && Question::is_one(&bytes));
            assert_eq!(Question::parse(&bytes, host(1), &key("k")), Ok(question));
        }
    }

    #[test]
    fn nothing_that_was_changed_cut_or_forged_is_believed() {
        let bytes = question(2).emit(&key("k"));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Question::parse(&changed, host(1), &key("k")).is_err(), "byte {at}");
            assert!(Question::parse(&bytes[..at], host(1), &key("k")).is_err(), "cut at {at}");
        }
        assert_eq!(Question::parse(&bytes, host(1), &key("other")), Err(Discard::Key));
        assert_eq!(Question::parse(&bytes, host(9), &key("k")), Err(Discard::Sender));
        let handover = Question { kind: Kind::Handover, ..question(1) }.emit(&key("k"));
        assert_eq!(Question::parse(&handover, host(1), &key("k")), Err(Discard::Content));
    }

    #[test]
    fn a_number_is_good_for_a_moment_however_many_are_drawn_in_it() {
        let (mut numbers, start) = (Numbers::after(u64::MAX - 5_000), Instant::now());
        let ms = Duration::from_millis;
        assert!(!numbers.is_drawn(u64::MAX - 5_000, IS_OVER, start), "none of them is ours yet");
        let drawn: Vec<u64> = (0..20_000).map(|n| numbers.draw(start + ms(n / 10))).collect();
        let now = start + ms(1999);
        assert!(drawn.iter().all(|number| numbers.is_drawn(*number, IS_OVER, now)), "before and behind zero");
        assert!(!numbers.is_drawn(drawn[0].wrapping_sub(1), IS_OVER, now), "of an earlier life");
        assert!(!numbers.is_drawn(numbers.last.wrapping_add(1), IS_OVER, now), "still to be drawn");
        // By the moment, to ten milliseconds.
        let within = |number: usize, age: u64| numbers.is_drawn(drawn[number], ms(age), now);
        assert!(within(19_000, 100) && !within(18_800, 100) && !within(0, 100));
        assert!(!numbers.is_drawn(drawn[0], IS_OVER, start + IS_OVER));
        numbers.draw(start + 3 * IS_OVER);
        assert_eq!(numbers.samples.len(), 1, "what is over is forgotten");
    }
}
