//! Posts reports: a thread that always has the newest one, and tries until it is through.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_model::HostReport;

use super::Event;
use super::http::{self, Access, Failure, Way};
use crate::backoff::{Backoff, jitter};
use crate::timestamp;

/// The mailbox of the thread. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Poster(Arc<(Mutex<Mailbox>, Condvar)>);

#[derive(Debug, Default)]
struct Mailbox {
    /// Waits to be posted. A newer one replaces it: reports are whole states.
    waiting: Option<Box<HostReport>>,
    /// Was posted, or replaced by one that was.
    last: Option<Box<HostReport>>,
    /// Whether the server has a report of this host.
    reported: bool,
    busy: bool,
}

impl Poster {
    /// Makes the mailbox and starts the thread.
    pub fn start(access: Access, events: Sender<Event>, seed: u64) -> anyhow::Result<Self> {
        let poster = Self::default();
        let handle = poster.clone();
        super::spawn("report", &events, move || handle.run(&access, seed))?;
        Ok(poster)
    }

    /// Hands over a report; returns at once.
    pub fn post(&self, report: Box<HostReport>) {
        self.lock().waiting = Some(report);
        self.0.1.notify_all();
    }

    /// Posts the last report again: the server may have started anew and know nothing.
    pub fn repeat(&self) {
        let mut mailbox = self.lock();
        mailbox.reported = false;
        if mailbox.waiting.is_none() {
            mailbox.waiting = mailbox.last.clone();
        }
        self.0.1.notify_all();
    }

    /// Waits until the server has a report of this host, or the time is over.
    pub fn wait_until_reported(&self, patience: Duration) {
        self.wait_for(patience, |mailbox| mailbox.reported);
    }

    /// Waits until nothing waits to be posted, or the time is over.
    pub fn wait_until_idle(&self, patience: Duration) {
        self.wait_for(patience, |mailbox| mailbox.waiting.is_none() && !mailbox.busy);
    }

    fn wait_for(&self, patience: Duration, done: impl Fn(&Mailbox) -> bool) {
        let deadline = Instant::now() + patience;
        let mut mailbox = self.lock();
        while !done(&mailbox) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            mailbox = self.0.1.wait_timeout(mailbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Box<HostReport> {
        let mut mailbox = self.lock();
        loop {
            if let Some(report) = mailbox.waiting.take() {
                mailbox.busy = true;
                return report;
            }
            mailbox = self.0.1.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a report back that did not get through, unless there is a newer one.
    fn settle(&self, report: Box<HostReport>, through: bool) {
        let mut mailbox = self.lock();
        mailbox.busy = false;
        mailbox.reported |= through;
        if through {
            mailbox.last = Some(report);
        } else if mailbox.waiting.is_none() {
            mailbox.waiting = Some(report);
        }
        self.0.1.notify_all();
    }

    fn run(&self, access: &Access, mut seed: u64) {
        let mut way = Way::new(http::ANSWER);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let mut report = self.take();
            // What has waited for the server is as new as it can be, and so is the time.
            report.clock_ms = Some(timestamp::now_ms());
            let sequence = report.sequence;
            let server = access.server();
            let body = serde_json::to_vec(&report).context("failed to write the report");
            let result = body.and_then(|body| {
                let member = access.member(server)?;
                way.post(access, (server, member), ("report", &body))
            });
            self.settle(report, result.is_ok());
            match result {
                Ok(()) => {
                    backoff.reset();
                    access.renew_if_due(server);
                }
                Err(error) => {
                    if error.downcast_ref::<Failure>().is_some_and(|failure| failure.is_of_identity) {
                        access.refused();
                    }
                    access.give_up(server);
                    // The stream's thread says to the operator that the server is away.
                    tracing::debug!(sequence, "failed to post a report: {error:#}");
                    seed = seed.wrapping_add(1);
                    thread::sleep(jitter(backoff.next_wait(), seed));
                }
            }
        }
    }
}
