//! Connections that are kept between uses, and what waiting for one costs at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::{Connection, Origin};
use super::{Outage, StoreError};

/// How long a reader waits for a connection while all are in use.
const PATIENCE: Duration = Duration::from_secs(10);

/// The readers' connections.
pub(super) struct Readers {
    state: Mutex<State>,
    returned: Condvar,
    /// So many may be open at once.
    most: usize,
    /// So many are kept.
    idle: usize,
    outages: Outages,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    in_use: usize,
}

impl Readers {
    pub(super) fn new(most: usize, idle: usize) -> Self {
        Self { state: Mutex::default(), returned: Condvar::new(), most, idle, outages: Outages::new("read") }
    }

    /// Takes a connection on which a reading transaction was begun.
    pub(super) fn begin(&self, origin: &Origin) -> Result<Lease<'_>, StoreError> {
        let asked = Instant::now();
        let mut state = self.lock();
        while state.in_use >= self.most {
            let left = PATIENCE.checked_sub(asked.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else {
                return Err(StoreError::unavailable(Outage::Slow, "all connections are in use"));
            };
            state = self.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            self.outages.since(asked)?;
        }
        state.in_use += 1;
        drop(state);
        let mut lease = Lease { readers: self, connection: None };
        loop {
            let kept = self.lock().idle.pop();
            let is_new = kept.is_none();
            let begun = kept.map_or_else(|| origin.open_reader(), Ok).and_then(|connection| {
                connection.begin_read()?;
                Ok(connection)
            });
            match begun {
                Ok(connection) => {
                    lease.connection = Some(connection);
                    return Ok(lease);
                }
                // It was kept over the database's restart, perhaps: what counts is whether a new one works.
                Err(_) if !is_new => {}
                Err(error) => {
                    self.outages.note(Some(&error));
                    return Err(error);
                }
            }
        }
    }

    /// Takes note of what came of a transaction.
    pub(super) fn note(&self, error: Option<&StoreError>) {
        self.outages.note(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use; it is given back with the value.
pub(super) struct Lease<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Lease<'_> {
    pub(super) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("a lease is handed out with a connection")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(Connection::is_usable);
        let mut state = self.readers.lock();
        state.in_use -= 1;
        if state.idle.len() < self.readers.idle {
            state.idle.extend(connection);
        }
        drop(state);
        self.readers.returned.notify_one();
    }
}

/// What is known of the database's health, as readers or writers find it: tells the log when it is lost and
/// when it is back, once each.
pub(super) struct Outages {
    /// What cannot be done then, for the log.
    what: &'static str,
    /// When it was last found unusable.
    last: Mutex<Option<(Instant, Outage)>>,
    ongoing: AtomicBool,
}

impl Outages {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, last: Mutex::default(), ongoing: AtomicBool::new(false) }
    }

    /// Takes note of what came of a use.
    pub(super) fn note(&self, error: Option<&StoreError>) {
        let Some(error) = error else {
            if self.ongoing.load(Ordering::Relaxed) && self.ongoing.swap(false, Ordering::Relaxed) {
                tracing::info!("the database can be {} again", self.what);
            }
            return;
        };
        let Some(outage) = error.outage() else { return };
        if !self.ongoing.swap(true, Ordering::Relaxed) {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(reason = %outage, cause, "the database cannot be {}", self.what);
        }
        if matches!(
            outage,
            Outage::Gone | Outage::Slow | Outage::Crowded | Outage::Refused | Outage::Untrusted | Outage::Locked
        ) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), outage));
        }
    }

    /// Fails if there was an outage after `asked` that takes long to find out about: whoever stands in line
    /// behind that is told so at once, instead of finding out for as long again.
    pub(super) fn since(&self, asked: Instant) -> Result<(), StoreError> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.filter(|(at, _)| *at > asked) {
            Some((_, outage)) => Err(StoreError::unavailable(outage, "another request found out")),
            None => Ok(()),
        }
    }
}
