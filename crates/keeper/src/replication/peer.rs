//! The other host: which life of it we talk to, and with which keys.
//!
//! Two hosts greet each other until each has proof of the other's present life: a datagram sealed for its
//! own. A greeting to a life that is not known could be a repeated one; it is answered, and proves nothing.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::seal::{Cipher, ClusterKey, Discard, Header, Kind, Life, Window};

/// How often a host is greeted that has not answered.
const GREET: Duration = Duration::from_millis(300);
/// Answers are given at most so often, so that repeated greetings cannot keep us busy.
const ANSWER: Duration = Duration::from_millis(20);
/// Lives that are remembered as over.
const RETIRED: usize = 256;

/// This host, towards one peer.
#[derive(Clone, Debug)]
pub(super) struct Us {
    pub(super) key: ClusterKey,
    pub(super) address: IpAddr,
    pub(super) life: Life,
}

/// What came of a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// The peer is another process than before: the engine is to begin anew with it.
    pub(super) is_new_life: bool,
    /// For the engine.
    pub(super) content: Option<Vec<u8>>,
    /// To be sent back.
    pub(super) answer: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Known {
    life: Life,
    seal: Cipher,
    open: Cipher,
    window: Window,
}

/// One other host.
#[derive(Debug)]
pub(super) struct Peer {
    us: Us,
    address: IpAddr,
    counter: u64,
    known: Option<Known>,
    retired: VecDeque<Life>,
    pub(super) greet_at: Instant,
    answered_at: Option<Instant>,
}

impl Peer {
    pub(super) fn new(us: Us, address: IpAddr, now: Instant) -> Self {
        Self { us, address, counter: 0, known: None, retired: VecDeque::new(), greet_at: now, answered_at: None }
    }

    /// Whether the present life of `other` is known.
    #[cfg(test)]
    pub(super) fn knows(&self, other: &Self) -> bool {
        self.known.as_ref().is_some_and(|known| known.life == other.us.life)
    }

    /// When to greet; never, once the peer is known.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.known.is_none().then_some(self.greet_at)
    }

    /// The greeting that is due.
    pub(super) fn greet(&mut self, now: Instant) -> Vec<u8> {
        self.greet_at = now + GREET;
        self.sealed(Kind::Greeting, None)
    }

    /// A message of the engine, if there is somebody to tell.
    pub(super) fn seal(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        let known = self.known.as_ref()?;
        self.counter += 1;
        let header = Header { kind: Kind::Data, from: self.us.life, to: Some(known.life), counter: self.counter };
        Some(known.seal.seal(&header, content))
    }

    fn sealed(&mut self, kind: Kind, to: Option<Life>) -> Vec<u8> {
        self.counter += 1;
        let header = Header { kind, from: self.us.life, to, counter: self.counter };
        self.us.key.cipher((self.us.address, self.us.life), (self.address, to)).seal(&header, &[])
    }

    /// Takes a datagram that came from the peer's address.
    pub(super) fn receive(&mut self, datagram: &[u8], now: Instant) -> Result<Received, Discard> {
        let header = Header::parse(datagram)?;
        if header.to == Some(self.us.life) {
            return self.receive_fresh(&header, datagram, now);
        }
        // Meant for no life or an earlier one. It proves nothing, but its sender should hear of this one.
        let cipher = self.us.key.cipher((self.address, header.from), (self.us.address, header.to));
        cipher.open(&header, datagram)?;
        let answer = self.answer(header.from, now);
        match (header.to, answer) {
            (Some(_), None) => Err(Discard::OldLife),
            (_, answer) => Ok(Received { answer, ..Received::default() }),
        }
    }

    fn receive_fresh(&mut self, header: &Header, datagram: &[u8], now: Instant) -> Result<Received, Discard> {
        let is_known = self.known.as_ref().is_some_and(|known| known.life == header.from);
        if !is_known && self.retired.contains(&header.from) {
            return Err(Discard::OldLife);
        }
        let content = match self.known.as_mut().filter(|known| known.life == header.from) {
            Some(known) => {
                if !known.window.is_new(header.counter) {
                    return Err(Discard::Replay);
                }
                let content = known.open.open(header, datagram)?;
                known.window.note(header.counter);
                content
            }
            None => self.adopt(header, datagram)?,
        };
        let mut received = Received { is_new_life: !is_known, ..Received::default() };
        if header.kind == Kind::Data {
            received.content = Some(content);
        } else if header.kind == Kind::Greeting {
            received.answer = self.answer(header.from, now);
        }
        Ok(received)
    }

    /// The peer's life has changed, if the datagram proves it.
    fn adopt(&mut self, header: &Header, datagram: &[u8]) -> Result<Vec<u8>, Discard> {
        let (us, them) = (self.us.address, self.address);
        let open = self.us.key.cipher((them, header.from), (us, Some(self.us.life)));
        let content = open.open(header, datagram)?;
        let seal = self.us.key.cipher((us, self.us.life), (them, Some(header.from)));
        let mut window = Window::default();
        window.note(header.counter);
        if let Some(old) = self.known.replace(Known { life: header.from, seal, open, window }) {
            if self.retired.len() == RETIRED {
                self.retired.pop_front();
            }
            self.retired.push_back(old.life);
        }
        Ok(content)
    }

    fn answer(&mut self, to: Life, now: Instant) -> Option<Vec<u8>> {
        if self.answered_at.is_some_and(|at| now < at + ANSWER) {
            return None;
        }
        self.answered_at = Some(now);
        let is_known = self.known.as_ref().is_some_and(|known| known.life == to);
        Some(self.sealed(if is_known { Kind::Answer } else { Kind::Greeting }, Some(to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn peer(us: IpAddr, life: u128, them: IpAddr, now: Instant) -> Peer {
        let key = ClusterKey::new(b"cluster".to_vec()).unwrap();
        Peer::new(Us { key, address: us, life: Life(life) }, them, now)
    }

    /// Greets from `a` until nobody has anything to say; tells who met a new life.
    fn meet(a: &mut Peer, b: &mut Peer, now: Instant) -> (u32, u32) {
        let (mut new_at_a, mut new_at_b) = (0, 0);
        let mut to_b = Some(a.greet(now));
        for step in 0..10_u32 {
            let now = now + Duration::from_millis(30) * step;
            let Some(datagram) = to_b.take() else { break };
            let received = b.receive(&datagram, now).unwrap();
            new_at_b += u32::from(received.is_new_life);
            let Some(answer) = received.answer else { break };
            let received = a.receive(&answer, now).unwrap();
            new_at_a += u32::from(received.is_new_life);
            to_b = received.answer;
        }
        (new_at_a, new_at_b)
    }

    #[test]
    fn two_hosts_meet_talk_and_meet_again_after_one_has_started_anew() {
        let now = Instant::now();
        let (mut a, mut b) = (peer(A, 1, B, now), peer(B, 2, A, now));
        assert_eq!(a.seal(b"x"), None);
        assert_eq!(meet(&mut a, &mut b, now), (1, 1));
        let first = a.seal(b"first").unwrap();
        assert_eq!(b.receive(&first, now).unwrap().content.unwrap(), b"first");
        assert_eq!(b.receive(&first, now), Err(Discard::Replay));
        let mut anew = peer(B, 3, A, now);
        // What was said to its earlier life says nothing to this one, but makes it answer.
        let answer = anew.receive(&a.seal(b"second").unwrap(), now).unwrap();
        assert_eq!((answer.content, answer.is_new_life), (None, false));
        assert!(a.receive(&answer.answer.unwrap(), now).unwrap().is_new_life);
        let third = a.seal(b"third").unwrap();
        let received = anew.receive(&third, now).unwrap();
        assert!(received.is_new_life && received.content.is_some());
        // The earlier life is over.
        let late = b.seal(b"late").unwrap();
        assert_eq!(a.receive(&late, now), Err(Discard::OldLife));
    }

    #[test]
    fn what_is_repeated_or_forged_changes_nothing() {
        let now = Instant::now();
        let (mut a, mut b) = (peer(A, 1, B, now), peer(B, 2, A, now));
        let old_greeting = a.greet(now);
        meet(&mut a, &mut b, now);
        let mut a = peer(A, 5, B, now);
        assert_eq!(meet(&mut a, &mut b, now + GREET), (1, 1));
        let received = b.receive(&old_greeting, now + 3 * GREET).unwrap();
        assert!(!received.is_new_life && received.content.is_none());
        let content = a.seal(b"still").unwrap();
        assert!(b.receive(&content, now).unwrap().content.is_some());
        let mut forged = a.seal(b"forged").unwrap();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(b.receive(&forged, now), Err(Discard::Key));
        assert_eq!(b.receive(&[0; 100], now), Err(Discard::Format));
        assert_eq!(b.receive(&[], now), Err(Discard::Format));
    }
}
