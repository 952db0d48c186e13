//! When rounds run, and what came of the last: reasons gather, one round runs at a time, failures are
//! tried again with growing pauses, and quick rounds are followed by one that observes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use super::PERIOD;
use crate::backoff::Backoff;
use crate::round::{Outcome, Why};

/// Pause after a quick round that gives the next change the way; then the kernel is observed.
const VERIFY_PAUSE: Duration = Duration::from_millis(300);

/// Longest time that changes without pause put that off.
const VERIFY_PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the last round, for `show`.
#[derive(Clone, Debug, Default)]
pub struct LastRound {
    /// What came of it.
    pub outcome: Outcome,
    /// Why it ran.
    pub why: String,
    /// Set when not even the kernel's state could be read.
    pub error: Option<String>,
}

/// When the next round runs, and what came of the last.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) number: u64,
    pub(super) running: Option<BTreeSet<Why>>,
    pub(super) why: BTreeSet<Why>,
    pub(super) period_at: Instant,
    pub(super) retry_at: Option<Instant>,
    /// Until when no round begins.
    pub(super) held_until: Option<Instant>,
    /// Set after a quick round: when to observe, and when at the latest.
    pub(super) verify_at: Option<(Instant, Instant)>,
    backoff: Backoff,
    pub(super) last: Option<LastRound>,
    pub(super) applied_revision: Option<u64>,
    /// Last state of the links that changed while the round runs; `None` for one that went.
    pub(super) links_meanwhile: BTreeMap<String, Option<bool>>,
    /// Problems that were logged already.
    said: BTreeSet<String>,
    pub(super) confs: BTreeMap<RouterId, String>,
}

impl Rounds {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            number: 0,
            running: None,
            why: BTreeSet::new(),
            period_at: now + PERIOD,
            retry_at: None,
            held_until: None,
            verify_at: None,
            backoff: Backoff::new(Duration::from_millis(200), PERIOD),
            last: None,
            applied_revision: None,
            links_meanwhile: BTreeMap::new(),
            said: BTreeSet::new(),
            confs: BTreeMap::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.why.is_empty() && self.retry_at.is_none() && self.applied_revision.is_some()
    }

    pub(super) fn begin(&mut self) -> Option<(u64, BTreeSet<Why>)> {
        if self.running.is_some() || self.held_until.is_some() || self.why.is_empty() {
            return None;
        }
        self.number += 1;
        let why = std::mem::take(&mut self.why);
        self.running = Some(why.clone());
        Some((self.number, why))
    }

    pub(super) fn settle(&mut self, outcome: &Outcome, now: Instant) {
        if !outcome.failures.is_empty() {
            self.retry(now);
            return;
        }
        self.backoff.reset();
        self.retry_at = None;
        if outcome.unfinished {
            self.why.insert(Why::Unfinished);
        } else if outcome.withheld.is_empty() {
            self.applied_revision = Some(outcome.revision);
        }
        self.verify_at = (!outcome.verified).then(|| {
            let latest = self.verify_at.map_or(now + VERIFY_PATIENCE, |(_, latest)| latest);
            (latest.min(now + VERIFY_PAUSE), latest)
        });
    }

    /// A round may be quick if the last went well, and nothing is new that only the kernel could tell.
    pub(super) fn may_be_quick(&self, why: &BTreeSet<Why>) -> bool {
        let went_well = |last: &LastRound| last.error.is_none() && last.outcome.failures.is_empty();
        self.last.as_ref().is_some_and(went_well) && why.iter().all(Why::allows_quick)
    }

    pub(super) fn retry(&mut self, now: Instant) {
        self.retry_at = Some(now + self.backoff.next_wait());
    }

    pub(super) fn log(&mut self, outcome: &Outcome, why: &str) {
        let took_ms = outcome.took.as_millis();
        if outcome.ops > 0 {
            tracing::info!(revision = outcome.revision, why, ops = outcome.ops, took_ms, "reconciled");
        } else {
            tracing::debug!(revision = outcome.revision, why, took_ms, "nothing to do");
        }
        let now: BTreeSet<String> = outcome.problems.iter().chain(&outcome.failures).cloned().collect();
        for text in now.difference(&self.said) {
            tracing::warn!("{text}");
        }
        for text in self.said.difference(&now) {
            tracing::info!("no longer: {text}");
        }
        self.said = now;
    }
}
