//! The store: where intent lives. No truth is kept in memory beside it.
//!
//! A [`Store`] is a database, SQLite's or PostgreSQL's, with one connection for writers and a few for
//! readers. Work happens in a closure over a [`Tx`]: [`Store::write`] commits what the closure did when it
//! returns `Ok`, and nothing of it otherwise; [`Store::read`] sees one state throughout. Both block: call
//! them from `spawn_blocking`.
//!
//! Every write transaction that touched something that followers care about ([`Tx::changed`]) gets the
//! next revision of the change log, in the same commit. [`Store::subscribe`] tells the newest, also of other
//! servers' writes.
//!
//! Portable: statements are plain SQL with `?1`-style parameters given as [`Value`]s; what is one database's
//! own is in `sqlite.rs` and `postgres.rs`, and what is translated in `dialect.rs`: read that before writing
//! SQL. Invariant: rules that two servers could break by racing are constraints of the schema
//! (`migrations/`), and code only asks first in order to answer with a better message; rules that no
//! constraint can say, such as quotas, hold because writers take turns, over all servers (see `postgres.rs`).

mod connection;
mod copy;
mod dialect;
mod error;
mod follow;
mod migrations;
mod pool;
mod postgres;
mod postgres_tls;
mod sqlite;
mod tx;
mod value;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use evergate_config::settings::Database;
use tokio::sync::watch;

pub use copy::copy;
pub use dialect::Dialect;
pub use error::{Cause, Outage, StoreError, TxError};
pub use follow::Hear;
pub use tx::{Asked, Tx, timestamp_text};
pub use value::{Row, Value};

use crate::values;
use connection::{Connection, Origin, RollbackOnDrop};
use follow::{Carrier, Follower};
use pool::{Outages, Readers};

/// SQLite's idle reader connections that are kept; more may be open at once.
const IDLE_READERS: usize = 8;
/// PostgreSQL's reader connections of one server, at most: half a dozen servers fit into its usual hundred.
const POSTGRES_READERS: usize = 12;
/// A write that lost a race over a random choice (a VRID, a MAC, an address) is tried again this often.
const WRITE_ATTEMPTS: usize = 3;

/// Names the setting that holds the secret which authenticates claims between hosts, in hexadecimal.
pub const CLAIM_KEY: &str = "claim_key";

/// The kinds of object that the change log names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A network, or a subnet's change seen through it.
    Network,
    /// A subnet.
    Subnet,
    /// A port, its addresses or its binding.
    Port,
    /// A router, its gateway, interfaces, routes or copies.
    Router,
    /// A floating IP.
    FloatingIp,
    /// An agent: came, went, or has another tunnel address.
    Agent,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Network, Self::Subnet, Self::Port, Self::Router, Self::FloatingIp, Self::Agent];

    /// The word the log stores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Subnet => "subnet",
            Self::Port => "port",
            Self::Router => "router",
            Self::FloatingIp => "floatingip",
            Self::Agent => "agent",
        }
    }
}

/// One line of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedObject {
    /// The commit that changed it.
    pub revision: u64,
    /// What it is.
    pub kind: Kind,
    /// Which one; it may be gone.
    pub id: String,
}

/// The database, shared by all requests.
pub struct Store {
    origin: Origin,
    /// `None` after it broke.
    writer: Mutex<Option<Connection>>,
    readers: Readers,
    outages: Outages,
    newest: Arc<watch::Sender<u64>>,
    carrier: Carrier,
    _follower: Option<Follower>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dialect", &self.dialect()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the SQLite file, makes it if it is missing, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::connect(&Database::Sqlite(path.to_owned()))
    }

    /// Opens the database and brings its schema up to date. Blocks, as reading and writing do.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or migrated, or was written by a later version.
    pub fn connect(database: &Database) -> Result<Self, StoreError> {
        let origin = Origin::new(database)?;
        let writer = origin.open_writer()?;
        migrations::migrate(&writer, origin.dialect())?;
        // A database always has its deployment's secret, so that reading a host's view never writes.
        let sql = "INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        writer.execute(sql, &values![CLAIM_KEY, crate::random::secret_hex()])?;
        let newest = Arc::new(watch::channel(Tx::new(&writer).revision()?).0);
        let (readers, follower, carrier) = match &origin {
            Origin::Sqlite(_) => (Readers::new(usize::MAX, IDLE_READERS), None, Carrier::default()),
            Origin::Postgres(config) => {
                let (follower, carrier) = Follower::start(config.as_ref().clone(), Arc::clone(&newest))?;
                (Readers::new(POSTGRES_READERS, POSTGRES_READERS), Some(follower), carrier)
            }
        };
        let (writer, outages) = (Mutex::new(Some(writer)), Outages::new("written"));
        Ok(Self { origin, writer, readers, outages, newest, carrier, _follower: follower })
    }

    /// Says something to the other servers beside this database, at once or not at all; a few kilobytes at most.
    pub fn carry(&self, text: String) {
        self.carrier.carry(text);
    }

    /// Sets who takes what the other servers, and this one, say by [`carry`](Self::carry). Only the first is kept.
    pub fn on_carried(&self, hear: Hear) {
        self.carrier.on_heard(hear);
    }

    /// Whose SQL the database speaks.
    pub fn dialect(&self) -> Dialect {
        self.origin.dialect()
    }

    /// Follows the newest committed revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Runs `work` in a transaction that is committed when it returns `Ok`, durable on return.
    ///
    /// When a constraint refuses the write, `work` runs again a few times: its random choices may have
    /// collided with somebody else's. So it does when the connection turns out to be lost before the commit.
    ///
    /// # Errors
    ///
    /// What `work` returned, or why the commit failed; nothing was changed then, unless
    /// [`Outage::Uncertain`] says that this is not known.
    pub fn write<T, E: TxError>(&self, mut work: impl FnMut(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let asked = Instant::now();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.outages.since(asked)?;
        for attempt in 1.. {
            let kept = writer.take();
            let was_kept = kept.is_some();
            let error = match self.write_once(kept, &mut writer, &mut work) {
                Ok(value) => {
                    self.outages.note(None);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let again = attempt < WRITE_ATTEMPTS
                && match error.store_error() {
                    Some(StoreError::Constraint { .. } | StoreError::Contended(_)) => true,
                    // It was kept over the database's restart, perhaps.
                    Some(StoreError::Unavailable { outage: Outage::Gone, .. }) => was_kept,
                    _ => false,
                };
            if !again {
                error.store_error().into_iter().for_each(|error| self.outages.note(Some(error)));
                return Err(error);
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Tries to write on a kept or a new connection, and keeps that for the next.
    fn write_once<T, E: TxError>(
        &self,
        kept: Option<Connection>,
        keep: &mut Option<Connection>,
        work: &mut impl FnMut(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = kept.map_or_else(|| self.origin.open_writer(), Ok)?;
        let result = self.transact(&connection, work);
        if connection.is_usable() {
            *keep = Some(connection);
        }
        result
    }

    fn transact<T, E: TxError>(
        &self,
        connection: &Connection,
        work: &mut impl FnMut(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        connection.begin_write()?;
        let rollback = RollbackOnDrop(connection);
        let tx = Tx::new(connection);
        let value = work(&tx)?;
        let revision = tx.append_changes()?;
        connection.commit()?;
        tracing::debug!(statements = tx.statements(), exchanges = tx.exchanges(), revision, "a write was committed");
        drop(rollback);
        if let Some(revision) = revision {
            follow::raise(&self.newest, revision);
        }
        Ok(value)
    }

    /// Runs `work` on one unchanging state of the database.
    ///
    /// # Errors
    ///
    /// What `work` returned, or why the database could not be read.
    pub fn read<T, E: TxError>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let lease = self.readers.begin(&self.origin)?;
        let connection = lease.connection();
        let rollback = RollbackOnDrop(connection);
        let result = work(&Tx::new(connection));
        drop(rollback);
        self.readers.note(result.as_ref().err().and_then(TxError::store_error));
        result
    }
}

#[cfg(test)]
mod tests;
