//! When which claim is sent to whom.
//!
//! A new claim is sent at once, then after 20 ms, doubling up to a second, until its receiver has
//! acknowledged it or 15 s have passed. From then on the slow repeat of everything that is active
//! carries it: so a host that was down, or did not know the router yet, learns within seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use super::wire::{Entry, Kind, MAX_ENTRIES, Message};

/// First re-sending: well above an underlay's round trip, well below what a probe would call an outage.
const FIRST_RESEND: Duration = Duration::from_millis(20);
/// Longest time between two re-sendings.
const MAX_RESEND: Duration = Duration::from_secs(1);
/// When to leave a receiver to the slow repeat.
const GIVE_UP: Duration = Duration::from_secs(15);
/// Time between two slow repeats, before jitter of a fifth either way.
const REPEAT: Duration = Duration::from_secs(5);

/// Claims that wait for an acknowledgement, and the slow repeat.
#[derive(Debug)]
pub struct Outbox {
    waiting: BTreeMap<(IpAddr, RouterId), Waiting>,
    /// The same, by when each is sent next: after a host's death thousands wait, and every input asks what is due.
    ///
    /// Invariant: one for each that waits.
    due: BTreeSet<(Instant, IpAddr, RouterId)>,
    /// What this host is active with, and who is to know. Whoever is waited for is one of these.
    active: BTreeMap<RouterId, (u64, BTreeSet<IpAddr>)>,
    next_repeat: Option<Instant>,
    random: u64,
    /// Claims that were looked at, for tests: what is not due costs nothing.
    #[cfg(test)]
    looked_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    epoch: u64,
    next: Instant,
    pause: Duration,
    give_up: Instant,
}

/// What is to be sent: to whom, of which kind, with which routers and epochs.
pub type Due = (IpAddr, Kind, Vec<(RouterId, u64)>);

impl Outbox {
    /// Makes an empty one. The seed spreads the slow repeats of hosts that start at once.
    pub fn new(seed: u64) -> Self {
        Self {
            waiting: BTreeMap::new(),
            due: BTreeSet::new(),
            active: BTreeMap::new(),
            next_repeat: None,
            random: seed | 1,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    /// Sets what this host says of a router: a new epoch is sent at once, a changed circle of receivers
    /// is told what it does not know.
    pub fn claim(&mut self, router: RouterId, epoch: u64, to: &BTreeSet<IpAddr>, now: Instant) {
        let before = self.active.insert(router, (epoch, to.clone()));
        let told = match before {
            Some((before, told)) => {
                told.difference(to).for_each(|gone| self.forget(*gone, router));
                if before == epoch { told } else { BTreeSet::new() }
            }
            None => BTreeSet::new(),
        };
        for &receiver in to.difference(&told) {
            let waiting = Waiting { epoch, next: now, pause: FIRST_RESEND, give_up: now + GIVE_UP };
            self.wait(receiver, router, waiting);
        }
        if self.next_repeat.is_none() {
            self.next_repeat = Some(now + self.jittered_repeat());
        }
    }

    /// Stops saying anything of a router.
    pub fn withdraw(&mut self, router: RouterId) {
        if let Some((_, receivers)) = self.active.remove(&router) {
            receivers.into_iter().for_each(|receiver| self.forget(receiver, router));
        }
        if self.active.is_empty() {
            self.next_repeat = None;
        }
    }

    fn wait(&mut self, receiver: IpAddr, router: RouterId, waiting: Waiting) {
        self.forget(receiver, router);
        self.due.insert((waiting.next, receiver, router));
        self.waiting.insert((receiver, router), waiting);
    }

    fn forget(&mut self, receiver: IpAddr, router: RouterId) {
        if let Some(waiting) = self.waiting.remove(&(receiver, router)) {
            self.due.remove(&(waiting.next, receiver, router));
        }
    }

    /// Takes an acknowledgement.
    pub fn acknowledged(&mut self, by: IpAddr, router: RouterId, epoch: u64) {
        if self.waiting.get(&(by, router)).is_some_and(|waiting| epoch >= waiting.epoch) {
            self.forget(by, router);
        }
    }

    /// Takes what is due, at most [`MAX_ENTRIES`] routers in each.
    pub fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut claims: BTreeMap<IpAddr, BTreeMap<RouterId, u64>> = BTreeMap::new();
        while let Some((_, receiver, router)) = self.due.first().copied().filter(|(at, ..)| *at <= now) {
            self.due.pop_first();
            let Some(mut waiting) = self.waiting.remove(&(receiver, router)) else { continue };
            #[cfg(test)]
            {
                self.looked_at += 1;
            }
            claims.entry(receiver).or_default().insert(router, waiting.epoch);
            (waiting.next, waiting.pause) = (now + waiting.pause, (waiting.pause * 2).min(MAX_RESEND));
            if now < waiting.give_up {
                self.wait(receiver, router, waiting);
            }
        }
        let mut due = in_datagrams(Kind::Claim, claims);
        if self.next_repeat.is_some_and(|next| next <= now) {
            due.extend(self.repeats());
            self.next_repeat = Some(now + self.jittered_repeat());
        }
        due
    }

    fn repeats(&self) -> Vec<Due> {
        let mut by_receiver: BTreeMap<IpAddr, BTreeMap<RouterId, u64>> = BTreeMap::new();
        for (&router, (epoch, receivers)) in &self.active {
            for &receiver in receivers {
                by_receiver.entry(receiver).or_default().insert(router, *epoch);
            }
        }
        in_datagrams(Kind::Repeat, by_receiver)
    }

    /// Tells when `take_due` has something.
    pub fn next_due(&self) -> Option<Instant> {
        let claim = self.due.first().map(|(at, ..)| *at);
        claim.into_iter().chain(self.next_repeat).min()
    }

    fn jittered_repeat(&mut self) -> Duration {
        // xorshift64: enough to keep hosts from repeating in step, which is all that is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        REPEAT * 4 / 5 + REPEAT * 2 / 5 * (self.random % 1024) as u32 / 1024
    }
}

fn in_datagrams(kind: Kind, claims: BTreeMap<IpAddr, BTreeMap<RouterId, u64>>) -> Vec<Due> {
    let chunks = |(receiver, claims): (IpAddr, BTreeMap<RouterId, u64>)| {
        let claims: Vec<(RouterId, u64)> = claims.into_iter().collect();
        claims.chunks(MAX_ENTRIES).map(|chunk| (receiver, kind, chunk.to_vec())).collect::<Vec<Due>>()
    };
    claims.into_iter().flat_map(chunks).collect()
}

/// Writes what is due as a message of this host.
pub fn message(kind: Kind, vtep: IpAddr, claims: &[(RouterId, u64)]) -> Message {
    let entry = |&(router, epoch): &(RouterId, u64)| Entry { router, epoch, vtep: Some(vtep) };
    Message { kind, sender: vtep, entries: claims.iter().map(entry).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: RouterId = RouterId::from_u128(1);

    fn host(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn hosts(numbers: &[u8]) -> BTreeSet<IpAddr> {
        numbers.iter().map(|&n| host(n)).collect()
    }

    /// Every sending from `start` on for `seconds`, as (milliseconds since start, receiver, kind).
    fn run(outbox: &mut Outbox, start: Instant, seconds: u64) -> Vec<(u128, IpAddr, Kind)> {
        let mut sent = Vec::new();
        let mut now = start;
        while now <= start + Duration::from_secs(seconds) {
            let due = outbox.take_due(now);
            sent.extend(due.into_iter().map(|(to, kind, _)| ((now - start).as_millis(), to, kind)));
            let Some(next) = outbox.next_due() else { break };
            now = next.max(now + Duration::from_micros(1));
        }
        sent
    }

    fn claims(sent: &[(u128, IpAddr, Kind)]) -> Vec<u128> {
        sent.iter().filter(|(.., kind)| *kind == Kind::Claim).map(|(at, ..)| *at).collect()
    }

    #[test]
    fn a_claim_without_answer_is_sent_less_and_less_often_and_in_the_end_only_repeated() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 1, &hosts(&[2]), start);
        let sent = run(&mut outbox, start, 60);
        let claims = claims(&sent);
        assert_eq!(claims[..7], [0, 20, 60, 140, 300, 620, 1260]);
        assert!(*claims.last().unwrap() <= 16_000 && claims.len() < 25, "{claims:?}");
        let repeats = sent.iter().filter(|(.., kind)| *kind == Kind::Repeat).count();
        assert!((9..=15).contains(&repeats), "{repeats} repeats in a minute");
    }

    #[test]
    fn an_acknowledged_claim_is_not_sent_again() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 4, &hosts(&[2, 3]), start);
        assert_eq!(outbox.take_due(start).len(), 2);
        outbox.acknowledged(host(2), R, 3); // of an older epoch: not an answer to this
        outbox.acknowledged(host(3), R, 4);
        let sent = run(&mut outbox, start, 3);
        assert!(!sent.is_empty() && sent.iter().all(|(_, to, _)| *to == host(2)), "{sent:?}");
        outbox.acknowledged(host(2), R, 9);
        assert_eq!(claims(&run(&mut outbox, start + Duration::from_secs(3), 3)), []);
    }

    #[test]
    fn a_receiver_that_comes_later_is_told_and_the_others_are_not_bothered() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 4, &hosts(&[2]), start);
        outbox.take_due(start);
        outbox.acknowledged(host(2), R, 4);
        outbox.claim(R, 4, &hosts(&[2, 3]), start);
        assert_eq!(outbox.take_due(start), [(host(3), Kind::Claim, vec![(R, 4)])]);
        outbox.claim(R, 4, &hosts(&[2]), start);
        assert_eq!(outbox.waiting.len(), 0, "a receiver that is gone is not waited for");
    }

    #[test]
    fn many_routers_that_move_at_once_share_datagrams() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        for n in 0..100 {
            outbox.claim(RouterId::from_u128(n), 1, &hosts(&[2]), start);
        }
        let due = outbox.take_due(start);
        assert_eq!(due.iter().map(|(.., claims)| claims.len()).collect::<Vec<_>>(), [33, 33, 33, 1]);
    }

    #[test]
    fn what_is_not_due_costs_nothing_however_much_waits() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        let receivers = hosts(&[2, 3, 4]);
        for n in 0..500 {
            outbox.claim(RouterId::from_u128(n), 1, &receivers, start);
            // Each is an input of its own, after which is looked what is due.
            assert_eq!(outbox.take_due(start).len(), 3);
        }
        assert_eq!(outbox.looked_at, 1500, "each is looked at when it is sent");
        for n in 0..500 {
            assert!(outbox.next_due().is_some_and(|at| at > start));
            assert_eq!(outbox.take_due(start), []);
            outbox.acknowledged(host(2), RouterId::from_u128(n), 1);
        }
        assert_eq!(outbox.looked_at, 1500);
        outbox.take_due(start + FIRST_RESEND);
        assert_eq!(outbox.looked_at, 1500 + 1000, "nobody is told again who has answered");
    }

    #[test]
    fn a_withdrawn_claim_is_silent() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 1, &hosts(&[2]), start);
        outbox.withdraw(R);
        assert_eq!((outbox.take_due(start), outbox.next_due()), (Vec::new(), None));
        assert_eq!((outbox.waiting.len(), outbox.due.len()), (0, 0));
    }
}
