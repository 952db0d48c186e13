//! Gives letters to the server: a thread of its own, because a report may take seconds when the server is busy, and a
//! letter is of no use then. Where there are routers with other copies, its connection is kept open: a handshake takes
//! as long as a letter may.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_model::stream::Letter;

use super::Event;
use super::http::{self, Access, Way};

/// Letters that wait: what all questions of a moment may need on a host of many routers.
const MOST_WAITING: usize = 256;
/// A letter that has waited for longer is not sent any more.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How often something is said, so that the connection stays open: clients close one that is idle for 15 s.
const KEEP_OPEN: Duration = Duration::from_secs(10);

/// The mailbox of the thread. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Letters(Arc<(Mutex<Mailbox>, Condvar)>);

#[derive(Debug, Default)]
struct Mailbox {
    /// Letters, and since when each waits.
    waiting: VecDeque<(Instant, Letter)>,
    keep_open: bool,
}

impl Letters {
    /// Makes the mailbox and starts the thread.
    pub fn start(access: Access, events: &Sender<Event>) -> anyhow::Result<Self> {
        let letters = Self::default();
        let handle = letters.clone();
        super::spawn("letters", events, move || handle.run(&access))?;
        Ok(letters)
    }

    /// Sets whether letters are to be expected.
    pub fn keep_open(&self, keep_open: bool) {
        let mut mailbox = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut mailbox.keep_open, keep_open) != keep_open {
            self.0.1.notify_all();
        }
    }

    /// Hands over a letter; returns at once. When too many wait, the oldest goes.
    pub fn post(&self, letter: Letter) {
        let waiting = &mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner).waiting;
        if waiting.len() >= MOST_WAITING {
            waiting.pop_front();
        }
        waiting.push_back((Instant::now(), letter));
        self.0.1.notify_all();
    }

    /// The letters to send; none if it is only time to say something.
    fn take(&self) -> Vec<Letter> {
        let mut mailbox = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        loop {
            let Mailbox { waiting, keep_open } = &mut *mailbox;
            waiting.retain(|(at, _)| at.elapsed() < GOOD_FOR);
            if !waiting.is_empty() || (*keep_open && since.elapsed() >= KEEP_OPEN) {
                let count = waiting.len().min(Letter::MOST);
                return waiting.drain(..count).map(|(_, letter)| letter).collect();
            }
            mailbox = self.0.1.wait_timeout(mailbox, KEEP_OPEN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run(&self, access: &Access) {
        let mut way = Way::new(http::LETTER);
        loop {
            let letters = self.take();
            let body = serde_json::to_vec(&letters).context("failed to write letters");
            let sent = body.and_then(|body| {
                // Not one that this thread would have to join for: a letter is of no use by then.
                let member = access.present()?;
                way.post(access, (access.server(), member), ("letters", &body))
            });
            // Nothing is tried again: whoever asked asks again, if it still matters.
            if let Err(error) = sent {
                tracing::debug!("failed to give letters to the server: {error:#}");
            }
        }
    }
}
