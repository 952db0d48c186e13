//! When which claim is sent to whom.
//!
//! A new claim is sent at once, then after 20 ms, doubling up to half a second, until its receiver has
//! acknowledged it or 2 s have passed. From then on the receiver counts as away: every half second it gets one
//! datagram, with as many of its claims as fit, in turns; and as soon as it acknowledges any, all the others at once.
//! So a host that returns learns within a second where thousands of routers are, however long it was away, and costs
//! little until then.
//!
//! The slow repeat of everything that is active is for what was acknowledged and got lost all the same. A host that is
//! heard again by BFD gets its part of it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use super::wire::{Entry, Kind, MAX_ENTRIES, Message};

/// First re-sending: well above an underlay's round trip, well below what a probe would call an outage.
const FIRST_RESEND: Duration = Duration::from_millis(20);
/// Longest time between two re-sendings, and between two datagrams to a receiver that is away: half of the second
/// within which one that returns is to know everything.
const MAX_RESEND: Duration = Duration::from_millis(500);
/// When a receiver counts as away.
const GIVE_UP: Duration = Duration::from_secs(2);
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
    /// Claims for receivers that are away.
    away: BTreeMap<IpAddr, Away>,
    /// When each of these gets its next datagram; `None`: nobody is away.
    next_knock: Option<Instant>,
    /// What this host is active with, and who is to know. Whoever is waited for is one of these.
    active: BTreeMap<RouterId, (u64, BTreeSet<IpAddr>)>,
    next_repeat: Option<Instant>,
    /// Who is told all that is theirs to know with the next sending.
    returned: BTreeSet<IpAddr>,
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

impl Waiting {
    fn from(epoch: u64, now: Instant) -> Self {
        Self { epoch, next: now, pause: FIRST_RESEND, give_up: now + GIVE_UP }
    }
}

/// Claims that a receiver has not acknowledged for long. One that waits is none of these.
#[derive(Debug, Default)]
struct Away {
    claims: BTreeMap<RouterId, u64>,
    /// The last that was sent: the next datagram begins behind it.
    last: Option<RouterId>,
}

impl Away {
    /// The next in turn, as many as a datagram carries.
    fn turn(&mut self) -> BTreeMap<RouterId, u64> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.claims.range((behind, Bound::Unbounded)).chain(&self.claims);
        let turn: Vec<_> = rest.take(MAX_ENTRIES.min(self.claims.len())).map(|(&id, &epoch)| (id, epoch)).collect();
        self.last = turn.last().map(|(router, _)| *router);
        turn.into_iter().collect()
    }
}

/// What is to be sent: to whom, of which kind, with which routers and epochs.
pub type Due = (IpAddr, Kind, Vec<(RouterId, u64)>);

impl Outbox {
    /// Makes an empty one. The seed spreads the slow repeats of hosts that start at once.
    pub fn new(seed: u64) -> Self {
        Self {
            waiting: BTreeMap::new(),
            due: BTreeSet::new(),
            away: BTreeMap::new(),
            next_knock: None,
            active: BTreeMap::new(),
            next_repeat: None,
            returned: BTreeSet::new(),
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
            self.wait(receiver, router, Waiting::from(epoch, now));
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
        if let Some(away) = self.away.get_mut(&receiver) {
            away.claims.remove(&router);
            if away.claims.is_empty() {
                self.away.remove(&receiver);
            }
        }
        if self.away.is_empty() {
            self.next_knock = None;
        }
    }

    /// Takes an acknowledgement. Whoever was away is back, and told the rest.
    pub fn acknowledged(&mut self, by: IpAddr, router: RouterId, epoch: u64, now: Instant) {
        if self.waiting.get(&(by, router)).is_some_and(|waiting| epoch >= waiting.epoch) {
            self.forget(by, router);
        }
        let Some(away) = self.away.remove(&by) else { return };
        for (other, claimed) in away.claims {
            if other != router || epoch < claimed {
                self.wait(by, other, Waiting::from(claimed, now));
            }
        }
        if self.away.is_empty() {
            self.next_knock = None;
        }
    }

    /// Tells a host that is heard again, with the next sending, of everything that it is to know: it may have missed any.
    pub fn tell_again(&mut self, receiver: IpAddr) {
        self.returned.insert(receiver);
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
            } else {
                self.away.entry(receiver).or_default().claims.insert(router, waiting.epoch);
                self.next_knock.get_or_insert(now + MAX_RESEND);
            }
        }
        let mut due = in_datagrams(Kind::Claim, claims);
        if self.next_knock.is_some_and(|next| next <= now) {
            let turns = self.away.iter_mut().map(|(&receiver, away)| (receiver, away.turn())).collect();
            due.extend(in_datagrams(Kind::Claim, turns));
            self.next_knock = Some(now + MAX_RESEND);
        }
        if self.next_repeat.is_some_and(|next| next <= now) {
            self.returned.clear();
            due.extend(self.repeats(|_| true));
            self.next_repeat = Some(now + self.jittered_repeat());
        }
        let returned = std::mem::take(&mut self.returned);
        if !returned.is_empty() {
            due.extend(self.repeats(|receiver| returned.contains(receiver)));
        }
        due
    }

    fn repeats(&self, to: impl Fn(&IpAddr) -> bool) -> Vec<Due> {
        let mut by_receiver: BTreeMap<IpAddr, BTreeMap<RouterId, u64>> = BTreeMap::new();
        for (&router, (epoch, receivers)) in &self.active {
            for &receiver in receivers.iter().filter(|receiver| to(receiver)) {
                by_receiver.entry(receiver).or_default().insert(router, *epoch);
            }
        }
        in_datagrams(Kind::Repeat, by_receiver)
    }

    /// Tells when `take_due` has something.
    pub fn next_due(&self) -> Option<Instant> {
        let claim = self.due.first().map(|(at, ..)| *at);
        claim.into_iter().chain(self.next_knock).chain(self.next_repeat).min()
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
    fn a_claim_without_answer_is_sent_less_and_less_often_until_its_receiver_is_back() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 1, &hosts(&[2]), start);
        let sent = run(&mut outbox, start, 60);
        let claims = claims(&sent);
        assert_eq!(claims[..9], [0, 20, 60, 140, 300, 620, 1120, 1620, 2120]);
        assert!(claims[9..].windows(2).all(|pair| pair[1] - pair[0] == 500), "{claims:?}");
        assert!(*claims.last().unwrap() > 59_000, "{claims:?}");
        let repeats = sent.iter().filter(|(.., kind)| *kind == Kind::Repeat).count();
        assert!((9..=15).contains(&repeats), "{repeats} repeats in a minute");
    }

    #[test]
    fn an_acknowledged_claim_is_not_sent_again() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 4, &hosts(&[2, 3]), start);
        assert_eq!(outbox.take_due(start).len(), 2);
        outbox.acknowledged(host(2), R, 3, start); // of an older epoch: not an answer to this
        outbox.acknowledged(host(3), R, 4, start);
        let sent = run(&mut outbox, start, 3);
        assert!(!sent.is_empty() && sent.iter().all(|(_, to, _)| *to == host(2)), "{sent:?}");
        outbox.acknowledged(host(2), R, 9, start);
        assert_eq!(claims(&run(&mut outbox, start + Duration::from_secs(3), 3)), []);
    }

    #[test]
    fn a_host_that_is_heard_again_is_told_at_once_and_nobody_else_is() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 4, &hosts(&[2, 3]), start);
        outbox.take_due(start);
        for n in [2, 3] {
            outbox.acknowledged(host(n), R, 4, start);
        }
        for n in [3, 4] {
            outbox.tell_again(host(n));
        }
        assert_eq!(outbox.take_due(start), [(host(3), Kind::Repeat, vec![(R, 4)])]);
        assert_eq!(outbox.take_due(start), []);
    }

    #[test]
    fn a_receiver_that_comes_later_is_told_and_the_others_are_not_bothered() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 4, &hosts(&[2]), start);
        outbox.take_due(start);
        outbox.acknowledged(host(2), R, 4, start);
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
            outbox.acknowledged(host(2), RouterId::from_u128(n), 1, start);
        }
        assert_eq!(outbox.looked_at, 1500);
        outbox.take_due(start + FIRST_RESEND);
        assert_eq!(outbox.looked_at, 1500 + 1000, "nobody is told again who has answered");
    }

    #[test]
    fn who_is_away_costs_a_datagram_at_a_time_and_is_told_everything_when_it_is_back() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        (0..100).for_each(|n| outbox.claim(RouterId::from_u128(n), 1, &hosts(&[2, 3]), start));
        for n in 0..100 {
            outbox.acknowledged(host(3), RouterId::from_u128(n), 1, start);
        }
        run(&mut outbox, start, 3600);
        assert_eq!((outbox.waiting.len(), outbox.due.len()), (0, 0));
        let mut now = start + Duration::from_secs(3600);
        let mut told = BTreeSet::new();
        for _ in 0..4 {
            now += MAX_RESEND;
            let mut due = outbox.take_due(now);
            due.retain(|(_, kind, _)| *kind == Kind::Claim);
            let [(to, _, claims)] = &due[..] else { panic!("one datagram: {due:?}") };
            assert_eq!((*to, claims.len()), (host(2), MAX_ENTRIES));
            told.extend(claims.iter().map(|(router, _)| *router));
        }
        assert_eq!(told.len(), 100, "all in turn");

        outbox.acknowledged(host(2), R, 1, now);
        let due = outbox.take_due(now);
        assert_eq!(due.iter().map(|(.., claims)| claims.len()).collect::<Vec<_>>(), [33, 33, 33]);
        for n in 0..100 {
            outbox.acknowledged(host(2), RouterId::from_u128(n), 1, now);
        }
        assert_eq!(claims(&run(&mut outbox, now, 60)), []);
    }

    #[test]
    fn a_withdrawn_claim_is_silent() {
        let (mut outbox, start) = (Outbox::new(7), Instant::now());
        outbox.claim(R, 1, &hosts(&[2]), start);
        outbox.withdraw(R);
        assert_eq!((outbox.take_due(start), outbox.next_due()), (Vec::new(), None));
        assert_eq!((outbox.waiting.len(), outbox.due.len()), (0, 0));

        // Also to who is away.
        outbox.claim(R, 1, &hosts(&[2]), start);
        run(&mut outbox, start, 10);
        assert_eq!(outbox.away.len(), 1);
        outbox.withdraw(R);
        assert_eq!((outbox.away.len(), outbox.next_due()), (0, None));
    }
}
