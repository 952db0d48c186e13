//! Connections that are kept between uses, and what waiting for one costs at most.

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
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    in_use: usize,
}

impl Readers {
    pub(super) fn new(most: usize, idle: usize) -> Self {
        Self { state: Mutex::default(), returned: Condvar::new(), most, idle }
    }

    /// Takes a connection on which a reading transaction was begun.
    pub(super) fn begin(&self, origin: &Origin, outages: &Outages) -> Result<Lease<'_>, StoreError> {
        let asked = Instant::now();
        let mut state = self.lock();
        while state.in_use >= self.most {
            let left = PATIENCE.checked_sub(asked.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else {
                return Err(StoreError::unavailable(Outage::Slow, "all connections are in use"));
            };
            state = self.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            outages.since(asked)?;
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
                    outages.note(&error);
                    return Err(error);
                }
            }
        }
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

/// When the database was last found unusable: whoever stands in line behind that is told so at once,
/// instead of finding out for as long again.
#[derive(Default)]
pub(super) struct Outages(Mutex<Option<(Instant, Outage)>>);

impl Outages {
    pub(super) fn note(&self, error: &StoreError) {
        if let Some(outage @ (Outage::Gone | Outage::Slow | Outage::Crowded | Outage::Refused)) = error.outage() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), outage));
        }
    }

    /// Fails if there was an outage after `asked`.
    pub(super) fn since(&self, asked: Instant) -> Result<(), StoreError> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match last.filter(|(at, _)| *at > asked) {
            Some((_, outage)) => Err(StoreError::unavailable(outage, "another request found out")),
            None => Ok(()),
        }
    }
}
