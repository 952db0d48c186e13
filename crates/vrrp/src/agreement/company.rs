//! The company of other hosts: who was heard when, and whether this host is cut off.
//!
//! One for a host, whatever it has of routers. Every authentic word of another host counts, whatever it
//! is about (claims, BFD, answers), so on a busy day nothing is asked. When all are silent, a few are
//! asked, others each time; if nobody answers, this host is alone. That proves that it is cut off only if there
//! were at least two others: of two hosts, each knows only that it does not hear the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Hosts asked at a time while it is doubtful whether there is anybody.
const ASKED_AT_ONCE: usize = 5;
/// How often it is asked before a host believes that it is alone.
const ASKED_TIMES: u32 = 5;
/// Without an active copy nothing depends on being alone; but a backup must know whom it used to reach.
const UPKEEP: Duration = Duration::from_secs(10);
/// Hosts asked at a time for that.
const UPKEEP_ASKED: usize = 2;
/// How long a host that was reached counts as one that an answer is expected of.
const MEMORY: Duration = Duration::from_secs(60);

/// What the caller must do, or know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Ask these hosts for a sign of life.
    Ask(BTreeSet<IpAddr>),
    /// Nobody answers any more, of several who did: this host is cut off.
    Alone,
    /// Somebody does again.
    Accompanied,
}

/// Who was heard when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Company {
    members: BTreeSet<IpAddr>,
    heard: BTreeMap<IpAddr, Instant>,
    /// Silence of everybody after which it is asked.
    quiet: Duration,
    /// How long it is asked.
    patience: Duration,
    /// Something here depends on it.
    serving: bool,
    round: Option<Round>,
    upkeep: Option<Instant>,
    alone: bool,
    /// Whom the last question went to.
    last_asked: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Round {
    next: Instant,
    left: u32,
}

impl Company {
    /// Sets the hosts that count, and the silence after which they are asked.
    pub fn configure(&mut self, members: BTreeSet<IpAddr>, quiet: Duration, patience: Duration) {
        self.heard.retain(|host, _| members.contains(host));
        (self.members, self.quiet, self.patience) = (members, quiet, patience);
    }

    /// Sets how long they are asked from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sets whether something is active here.
    pub fn set_serving(&mut self, serving: bool) {
        self.serving = serving;
        if !serving {
            self.round = None;
        }
    }

    /// A host was heard, at a time that may be past.
    pub fn heard(&mut self, host: IpAddr, at: Instant) -> Option<News> {
        if !self.members.contains(&host) {
            return None;
        }
        let known = self.heard.entry(host).or_insert(at);
        // What is older says nothing new.
        if at < *known {
            return None;
        }
        *known = at;
        self.round = None;
        std::mem::take(&mut self.alone).then_some(News::Accompanied)
    }

    /// When a host was last heard.
    pub fn last_heard(&self, host: IpAddr) -> Option<Instant> {
        self.heard.get(&host).copied()
    }

    /// Whether anybody but one host was heard since a time.
    pub fn hears_since(&self, since: Instant, but: IpAddr) -> bool {
        self.heard.iter().any(|(host, at)| *host != but && *at >= since)
    }

    /// When anybody was last heard.
    pub fn last(&self) -> Option<Instant> {
        self.heard.values().max().copied()
    }

    /// Whether anybody but `suspect` was in reach lately.
    pub fn has_others(&self, suspect: Option<IpAddr>, now: Instant) -> bool {
        self.lately(now).any(|host| Some(host) != suspect)
    }

    fn lately(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        let lately = move |at: &Instant| now.saturating_duration_since(*at) < MEMORY;
        self.heard.iter().filter(move |(_, at)| lately(at)).map(|(host, _)| *host)
    }

    /// Whether nobody answers.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<News> {
        if self.serving && !self.alone && self.round.is_none() && self.quiet_at().is_some_and(|at| at <= now) {
            self.round = Some(Round { next: now, left: ASKED_TIMES });
        }
        if let Some(round) = self.round.filter(|round| round.next <= now) {
            if round.left == 0 {
                (self.round, self.alone) = (None, true);
                return (self.lately(now).count() >= 2).then_some(News::Alone);
            }
            self.round = Some(Round { next: now + self.patience / ASKED_TIMES, left: round.left - 1 });
            return Some(News::Ask(self.choose(ASKED_AT_ONCE)));
        }
        if !self.members.is_empty() && self.upkeep.is_none_or(|at| at <= now) {
            self.upkeep = Some(now + UPKEEP);
            return Some(News::Ask(self.choose(UPKEEP_ASKED)));
        }
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        let round = self.round.map(|round| round.next);
        let quiet = if self.serving && !self.alone && round.is_none() { self.quiet_at() } else { None };
        let upkeep = self.upkeep.filter(|_| !self.members.is_empty());
        [round, quiet, upkeep].into_iter().flatten().min()
    }

    /// When the silence of everybody is long enough to ask. Whoever was never in company cannot lose it.
    fn quiet_at(&self) -> Option<Instant> {
        self.last().map(|at| at + self.quiet)
    }

    /// Chooses some of the members to ask, others each time.
    pub fn choose(&mut self, count: usize) -> BTreeSet<IpAddr> {
        let after = self.last_asked.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.members.range((after, Bound::Unbounded));
        let asked: Vec<IpAddr> = rest.chain(self.members.iter()).take(count).copied().collect();
        self.last_asked = asked.last().copied();
        asked.into_iter().collect()
    }
}
