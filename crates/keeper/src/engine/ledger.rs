//! What the active copy has put into the kernel, so that exactly that is taken out again.
//!
//! Messages are sent in the order in which control listed the items, and undone in reverse. What the
//! kernel refuses is tried again a few times, because the cause may be on its way out (a link that
//! control is just replacing), and then reported by the item's key.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use evergate_model::RouterId;

use super::effect::{Action, Batch, Purpose};
use super::spec::Prepared;

/// Pause before the first retry; it doubles, so that five retries take a second and a half.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Retries of what failed before it is reported.
const MAX_RETRIES: u32 = 5;

/// Whose items, and which change of what is wanted of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) router: RouterId,
    pub(super) generation: u64,
}

/// The items that were done, and those that could not be done or undone.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In order of doing.
    done: Vec<Prepared>,
    failed: Vec<Failure>,
    retries: u32,
    retry_at: Option<Instant>,
    generation: u64,
}

#[derive(Debug)]
struct Failure {
    item: Prepared,
    action: Action,
    error: String,
}

impl Ledger {
    /// Does everything. Also repairs: what is there already stays as it is.
    pub(super) fn activate(&mut self, of: Wanted, items: &[Prepared]) -> Vec<Batch> {
        self.begin(of);
        self.done = items.to_vec();
        batches(of, items.iter().map(|item| (item, Action::Add)))
    }

    /// Undoes everything that was done, and what might be left from an earlier life of the process.
    pub(super) fn deactivate(&mut self, of: Wanted, items: &[Prepared]) -> Vec<Batch> {
        self.begin(of);
        let done = std::mem::take(&mut self.done);
        let listed: BTreeSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        let gone = done.iter().filter(|item| !listed.contains(item.key.as_str()));
        let undo: Vec<_> = items.iter().chain(gone).map(|item| (item, Action::Del)).collect();
        batches(of, undo.into_iter().rev())
    }

    /// While active: undoes what is no longer listed or has changed, then does all that is listed.
    pub(super) fn update(&mut self, of: Wanted, items: &[Prepared]) -> Vec<Batch> {
        self.begin(of);
        let stays = |old: &Prepared| {
            items.iter().find(|new| new.key == old.key).is_some_and(|new| {
                // A replacing message takes the place of what is there: nothing is missing in between.
                new == old || (new.replaces() && new.place == old.place)
            })
        };
        let gone: Vec<Prepared> = self.done.iter().filter(|old| !stays(old)).cloned().collect();
        self.done = items.to_vec();
        let undo = gone.iter().rev().map(|item| (item, Action::Del));
        batches(of, undo.chain(items.iter().map(|item| (item, Action::Add))))
    }

    /// Takes what came of a batch, unless something else is wanted by now.
    pub(super) fn handle_results(&mut self, batch: &Batch, results: Vec<Result<(), String>>, now: Instant) {
        if batch.generation != self.generation {
            return;
        }
        let steps = batch.steps.iter().zip(&batch.messages).zip(results);
        for (((key, action), message), result) in steps {
            let Err(error) = result else { continue };
            let item = match action {
                Action::Add => Prepared { add: message.clone(), ..Prepared::bare(key, batch.place) },
                Action::Del => Prepared { del: message.clone(), ..Prepared::bare(key, batch.place) },
            };
            self.failed.push(Failure { item, action: *action, error });
        }
        if !self.failed.is_empty() && self.retry_at.is_none() {
            self.retry_at = Some(now + FIRST_RETRY * (1 << self.retries.min(MAX_RETRIES)));
        }
    }

    /// When to call `retry`.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what failed; or gives up and returns what to tell.
    pub(super) fn retry(&mut self, router: RouterId) -> Result<Vec<Batch>, Vec<String>> {
        self.retry_at = None;
        let failed = std::mem::take(&mut self.failed);
        if self.retries == MAX_RETRIES {
            self.retries = 0;
            return Err(failed.into_iter().map(|failure| failure.to_string()).collect());
        }
        self.retries += 1;
        let of = Wanted { router, generation: self.generation };
        Ok(batches(of, failed.iter().map(|failure| (&failure.item, failure.action))))
    }

    fn begin(&mut self, of: Wanted) {
        self.generation = of.generation;
        self.failed.clear();
        self.retries = 0;
        self.retry_at = None;
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failed to {} {}: {}", self.action.verb(), self.item.key, self.error)
    }
}

impl Prepared {
    fn bare(key: &str, place: crate::protocol::Place) -> Self {
        Self { key: key.to_owned(), place, add: Vec::new(), del: Vec::new() }
    }
}

/// Neighbours in the order that go to the same place share a batch; the order is kept.
fn batches<'a>(of: Wanted, steps: impl Iterator<Item = (&'a Prepared, Action)>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for (item, action) in steps {
        let message = match action {
            Action::Add => &item.add,
            Action::Del if item.del.is_empty() => continue,
            Action::Del => &item.del,
        };
        if batches.last().is_none_or(|batch| batch.place != item.place) {
            batches.push(Batch {
                router: of.router,
                place: item.place,
                purpose: Purpose::Items,
                generation: of.generation,
                steps: Vec::new(),
                messages: Vec::new(),
            });
        }
        let batch = batches.last_mut().expect("one was pushed if there was none");
        batch.steps.push((item.key.clone(), action));
        batch.messages.push(message.clone());
    }
    batches
}
