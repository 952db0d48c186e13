//! One standby of a router that is active here: what it must still be told, in which order, and whether it
//! has everything.
//!
//! What waits is in queues: flows that are gone, then connections in use, then attempts. Behind a standby
//! that is told slower than things happen, attempts wait longest, and end unheard.
//!
//! **Comparing.** A [`Say::Check`] says what the standby must have once it has taken all that was told
//! before. It may only be sent when all that has been confirmed: what was lost and is to be told again would
//! make it untrue. Something is on the way nearly always where connections come and go without a pause, so
//! when a check is due nothing new is told until what is on the way has been confirmed; the check goes out
//! with what has gathered meanwhile. That is one round trip in [`CHECK_PERIOD`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use evergate_model::flow::{Flow, FlowKey};

use crate::table::{Entry, hash, is_over, is_valuable};

/// A standby that must be told of more removals than this is told everything anew.
const MAX_DELETES: usize = 100_000;
/// Flows queued at once while everything is told.
const SLICE: usize = 512;
/// How often a standby that has everything may compare.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// A standby that is behind for less than this lacks nothing but what has just happened.
const FRESH: Duration = Duration::from_millis(50);
/// Room in a queue that is not given back.
const SPARE: usize = 1024;

/// What a message carried, so that it can be told again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Begin,
    Flow(FlowKey),
    Delete(FlowKey),
    Check,
}

/// What to tell next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Begin { token: u32, generation: u32 },
    Put(Flow),
    Delete(FlowKey),
    Check { count: u64, digest: u64 },
}

/// Upper bounds, in milliseconds, of the classes that [`Lags`] counts in; the last class has none.
pub const LAG_BOUNDS_MS: [u64; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000];

/// How many changes took how long until a standby had confirmed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lags(pub [u64; LAG_BOUNDS_MS.len() + 1]);

impl Lags {
    pub(crate) fn note(&mut self, lag: Duration) {
        let class = LAG_BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < lag);
        self.0[class] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be told that a stream begins.
    New,
    /// It was told so, and has not said that it heard.
    Announced,
    /// Everything up to this flow was queued.
    Bulk(Option<FlowKey>),
    /// Everything was told; the first check ends this.
    Settling,
    Live,
}

/// A flow that waits, and since when.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: FlowKey,
    since: Instant,
}

/// A standby that is told.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) slot: u32,
    pub(crate) token: u32,
    pub(crate) generation: u32,
    phase: Phase,
    /// What was told and lost.
    again: VecDeque<Waiting>,
    /// Flows that it was told of and that are gone.
    deletes: VecDeque<Waiting>,
    /// Connections in use, then the others.
    queues: [VecDeque<Waiting>; 2],
    /// What is on its way, by since when it was to be told.
    in_flight: BTreeMap<Instant, usize>,
    /// What it has, once it has taken all that was told.
    count: u64,
    digest: u64,
    /// When to compare; `None`: as soon as possible.
    check_at: Option<Instant>,
    /// How long what was confirmed last had taken.
    last_took: Duration,
}

impl Subscriber {
    pub(crate) fn new(slot: u32, token: u32, generation: u32) -> Self {
        Self {
            slot,
            token,
            generation,
            phase: Phase::New,
            again: VecDeque::new(),
            deletes: VecDeque::new(),
            queues: Default::default(),
            in_flight: BTreeMap::new(),
            count: 0,
            digest: 0,
            check_at: None,
            last_took: Duration::ZERO,
        }
    }

    fn bit(&self) -> u32 {
        1 << self.slot
    }

    /// A flow is to be told.
    pub(crate) fn queue(&mut self, key: &FlowKey, entry: &mut Entry, now: Instant) {
        let comes_anyway = match self.phase {
            Phase::New | Phase::Announced => true,
            Phase::Bulk(done) => done.is_none_or(|done| *key > done),
            Phase::Settling | Phase::Live => false,
        };
        if !comes_anyway {
            self.enqueue(key, entry, now);
        }
    }

    fn enqueue(&mut self, key: &FlowKey, entry: &mut Entry, now: Instant) {
        let bit = self.bit();
        if is_over(&entry.flow) && entry.told & bit == 0 {
            // It ended before it was told of: nothing is missed.
            return;
        }
        let which = if is_valuable(&entry.flow) { 0 } else { 1 };
        // What waits in the first queue is not also put into the second; the other way round it moves ahead.
        if entry.queued[0] & bit == 0 && entry.queued[which] & bit == 0 {
            entry.queued[which] |= bit;
            self.queues[which].push_back(Waiting { key: *key, since: now });
        }
    }

    /// A flow is gone. Tells whether it was to be told and never was.
    pub(crate) fn remove(&mut self, key: &FlowKey, entry: &Entry, now: Instant) -> bool {
        let bit = self.bit();
        if entry.told & bit != 0 {
            self.deletes.push_back(Waiting { key: *key, since: now });
            return false;
        }
        (entry.queued[0] | entry.queued[1]) & bit != 0 && self.phase == Phase::Live
    }

    /// Lets go of what queues hold in vain, where that is more than what there is.
    pub(crate) fn tidy(&mut self, flows: &mut BTreeMap<FlowKey, Entry>) {
        let (bit, most) = (self.bit(), 2 * flows.len() + SPARE);
        for (which, queue) in self.queues.iter_mut().enumerate().filter(|(_, queue)| queue.len() > most) {
            // A bit that is taken at the first meeting leaves one place for each flow.
            queue.retain(|waiting| match flows.get_mut(&waiting.key).filter(|entry| entry.queued[which] & bit != 0) {
                Some(entry) => {
                    entry.queued[which] &= !bit;
                    true
                }
                None => false,
            });
            for waiting in queue.iter() {
                if let Some(entry) = flows.get_mut(&waiting.key) {
                    entry.queued[which] |= bit;
                }
            }
            queue.shrink_to(SPARE);
        }
    }

    /// Takes the next thing to tell, and since when it was to be told.
    pub(crate) fn take(&mut self, flows: &mut BTreeMap<FlowKey, Entry>, now: Instant) -> Option<(Item, Instant, Say)> {
        let (item, since, say) = self.next_item(flows, now)?;
        *self.in_flight.entry(since).or_default() += 1;
        Some((item, since, say))
    }

    fn next_item(&mut self, flows: &mut BTreeMap<FlowKey, Entry>, now: Instant) -> Option<(Item, Instant, Say)> {
        match self.phase {
            Phase::New => {
                self.phase = Phase::Announced;
                return Some((Item::Begin, now, Say::Begin { token: self.token, generation: self.generation }));
            }
            Phase::Announced => return None,
            Phase::Bulk(_) | Phase::Settling | Phase::Live => {}
        }
        if let Some(Waiting { key, since }) = self.again.pop_front() {
            // Another flow of this name that was not told waits its turn, which comes after the removal of the
            // one that was.
            return Some(match flows.get_mut(&key).filter(|entry| entry.told & self.bit() != 0) {
                Some(entry) => (Item::Flow(key), since, self.put(&key, entry)),
                None => (Item::Delete(key), since, Say::Delete(key)),
            });
        }
        while self.is_idle() && matches!(self.phase, Phase::Bulk(_)) {
            self.fill(flows, now);
        }
        if self.is_check_due(now) {
            return self.check(now);
        }
        if let Some(Waiting { key, since }) = self.deletes.pop_front() {
            self.count -= 1;
            self.digest = self.digest.wrapping_sub(hash(&key));
            return Some((Item::Delete(key), since, Say::Delete(key)));
        }
        let bit = self.bit();
        for which in 0..2 {
            while let Some(Waiting { key, since }) = self.queues[which].pop_front() {
                if let Some(entry) = flows.get_mut(&key).filter(|entry| entry.queued[which] & bit != 0) {
                    entry.queued.iter_mut().for_each(|bits| *bits &= !bit);
                    return Some((Item::Flow(key), since, self.put(&key, entry)));
                }
            }
            // What a burst needed is given back.
            self.queues[which].shrink_to(SPARE);
        }
        None
    }

    fn put(&mut self, key: &FlowKey, entry: &mut Entry) -> Say {
        if entry.told & self.bit() == 0 {
            entry.told |= self.bit();
            self.count += 1;
            self.digest = self.digest.wrapping_add(hash(key));
        }
        Say::Put(entry.flow)
    }

    /// Queues the next slice of everything.
    fn fill(&mut self, flows: &mut BTreeMap<FlowKey, Entry>, now: Instant) {
        let Phase::Bulk(done) = self.phase else { return };
        let from = done.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, entry) in flows.range_mut((from, Bound::Unbounded)).take(SLICE) {
            last = Some(*key);
            if entry.told & self.bit() == 0 {
                self.enqueue(key, entry, now);
            }
        }
        self.phase = last.map_or(Phase::Settling, |last| Phase::Bulk(Some(last)));
    }

    fn is_check_due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Settling | Phase::Live) && self.check_at.is_none_or(|at| at <= now)
    }

    fn check(&mut self, now: Instant) -> Option<(Item, Instant, Say)> {
        if !self.in_flight.is_empty() {
            return None;
        }
        self.check_at = Some(now + CHECK_PERIOD);
        Some((Item::Check, now, Say::Check { count: self.count, digest: self.digest }))
    }

    /// Nothing waits to be told.
    fn is_idle(&self) -> bool {
        self.again.is_empty() && self.deletes.is_empty() && self.queues.iter().all(VecDeque::is_empty)
    }

    /// Whether `take` might have something.
    pub(crate) fn has_something(&self, now: Instant) -> bool {
        match self.phase {
            Phase::New | Phase::Bulk(_) => true,
            Phase::Announced => false,
            Phase::Settling | Phase::Live if self.is_check_due(now) => {
                !self.again.is_empty() || self.in_flight.is_empty()
            }
            Phase::Settling | Phase::Live => !self.is_idle(),
        }
    }

    /// When it is to compare, where nothing else must come first.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.check_at.filter(|_| self.in_flight.is_empty() && matches!(self.phase, Phase::Settling | Phase::Live))
    }

    fn landed(&mut self, since: Instant) {
        if let Some(count) = self.in_flight.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&since);
            }
        }
    }

    /// What a message carried has arrived.
    pub(crate) fn acknowledged(&mut self, item: Item, since: Instant, now: Instant) {
        self.landed(since);
        match item {
            Item::Begin => self.phase = Phase::Bulk(None),
            Item::Check if self.phase == Phase::Settling => self.phase = Phase::Live,
            Item::Check => {}
            Item::Flow(_) | Item::Delete(_) => self.last_took = now.saturating_duration_since(since),
        }
    }

    /// What a message carried was lost: it is told again, as it is then.
    pub(crate) fn lost(&mut self, item: Item, since: Instant) {
        self.landed(since);
        match item {
            Item::Begin => self.phase = Phase::New,
            Item::Check => self.check_at = None,
            Item::Flow(key) | Item::Delete(key) => self.again.push_back(Waiting { key, since }),
        }
    }

    /// Places in the queues.
    pub(crate) fn waiting(&self) -> usize {
        let queues = [&self.again, &self.deletes, &self.queues[0], &self.queues[1]];
        queues.into_iter().map(VecDeque::len).sum()
    }

    pub(crate) fn is_hopeless(&self) -> bool {
        self.deletes.len() > MAX_DELETES
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(crate) fn is_complete(&self, now: Instant) -> bool {
        self.is_live() && self.behind(now).is_none_or(|behind| behind < FRESH)
    }

    /// How long the oldest change has been waiting that was not confirmed; `None`: there is none.
    pub(crate) fn behind(&self, now: Instant) -> Option<Duration> {
        let queues = [&self.again, &self.deletes, &self.queues[0], &self.queues[1]];
        let waiting = queues.into_iter().filter_map(|queue| queue.front()).map(|waiting| waiting.since);
        let oldest = waiting.chain(self.in_flight.keys().next().copied()).min();
        oldest.map(|since| now.saturating_duration_since(since))
    }

    /// How long what was confirmed last had taken.
    pub(crate) fn last_took(&self) -> Duration {
        self.last_took
    }
}
