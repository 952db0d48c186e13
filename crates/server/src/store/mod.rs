//! The store: where intent lives. No truth is kept in memory beside it.
//!
//! A [`Store`] has one writer connection and a few readers. Work happens in a closure over a [`Tx`]:
//! [`Store::write`] commits what the closure did when it returns `Ok`, and nothing of it otherwise;
//! [`Store::read`] sees one state throughout. Both block: call them from `spawn_blocking`.
//!
//! Every write transaction that touched something that followers care about ([`Tx::changed`]) gets the
//! next revision of the change log, in the same commit. [`Store::subscribe`] tells the newest.
//!
//! Portable: statements are plain SQL with `?1`-style parameters given as [`Value`]s; what is SQLite's
//! own is in `sqlite.rs`. Invariant: rules that two servers could break by racing are constraints of
//! the schema (`migrations/`), and code only asks first in order to answer with a better message.

mod migrations;
mod sqlite;
mod value;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::watch;

pub use value::{Row, Value};

use crate::values;

/// Idle reader connections that are kept; more may be open at once.
const IDLE_READERS: usize = 8;
/// Revisions that the change log reaches back. A follower that is further behind takes a snapshot.
const CHANGES_KEPT: i64 = 10_000;
/// A write that lost a race over a random choice (a VRID, a MAC, an address) is tried again this often.
const WRITE_ATTEMPTS: usize = 3;

/// Names the setting that holds the secret which authenticates claims between hosts, in hexadecimal.
pub const CLAIM_KEY: &str = "claim_key";

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement or the file behind it failed.
    #[error("database operation failed")]
    Database(#[source] rusqlite::Error),
    /// A rule of the schema forbids the write.
    #[error("the database refused the write: {rule}")]
    Constraint {
        /// The rule, in the database's words.
        rule: String,
    },
    /// A stored value cannot be read back.
    #[error("unreadable value '{text}' in column {column} of an answer")]
    Corrupt {
        /// Position in the SELECT.
        column: usize,
        /// What was found.
        text: String,
    },
    /// The file was written by a later version of this program.
    #[error("database has schema version {found}, but this program knows only up to {known}: upgrade it")]
    NewerSchema {
        /// Version in the file.
        found: usize,
        /// Newest version known here.
        known: usize,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        sqlite::translate(error)
    }
}

/// An error of a transaction's closure that may stand for a lost race.
pub trait TxError: From<StoreError> {
    /// Tells whether the schema refused a write, so that trying again may go well.
    fn is_constraint(&self) -> bool;
}

impl TxError for StoreError {
    fn is_constraint(&self) -> bool {
        matches!(self, Self::Constraint { .. })
    }
}

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
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    newest: watch::Sender<u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database file, makes it if it is missing, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or migrated, or was written by a later version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut writer = sqlite::open_writer(path)?;
        migrations::migrate(&mut writer)?;
        // A database always has its deployment's secret, so that reading a host's view never writes.
        let sql = "INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        writer.execute(sql, [CLAIM_KEY, crate::random::secret_hex().as_str()])?;
        let revision: i64 = writer.query_row("SELECT revision FROM revision", [], |row| row.get(0))?;
        let (newest, _) = watch::channel(revision as u64);
        Ok(Self { path: path.to_owned(), writer: Mutex::new(writer), readers: Mutex::new(Vec::new()), newest })
    }

    /// Follows the newest committed revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Runs `work` in a transaction that is committed when it returns `Ok`, durable on return.
    ///
    /// When a constraint refuses the write, `work` runs again a few times: its random choices may have
    /// collided with somebody else's.
    ///
    /// # Errors
    ///
    /// What `work` returned, or why the commit failed; nothing was changed then.
    pub fn write<T, E: TxError>(&self, mut work: impl FnMut(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let conn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attempt = 1;
        loop {
            match self.write_once(&conn, &mut work) {
                Err(error) if error.is_constraint() && attempt < WRITE_ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn write_once<T, E: TxError>(
        &self,
        conn: &Connection,
        work: &mut impl FnMut(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        conn.execute_batch(sqlite::BEGIN_WRITE).map_err(StoreError::from)?;
        let rollback = RollbackOnDrop(conn);
        let tx = Tx::new(conn);
        let value = work(&tx)?;
        let revision = tx.append_changes()?;
        conn.execute_batch("COMMIT").map_err(StoreError::from)?;
        drop(rollback);
        if let Some(revision) = revision {
            self.newest.send_replace(revision);
        }
        Ok(value)
    }

    /// Runs `work` on one unchanging state of the database.
    ///
    /// # Errors
    ///
    /// What `work` returned, or why the database could not be read.
    pub fn read<T, E: From<StoreError>>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => sqlite::open_reader(&self.path)?,
        };
        conn.execute_batch(sqlite::BEGIN_READ).map_err(StoreError::from)?;
        let rollback = RollbackOnDrop(&conn);
        let result = work(&Tx::new(&conn));
        drop(rollback);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < IDLE_READERS {
            readers.push(conn);
        }
        result
    }
}

/// Ends a transaction that was not committed, also when the closure panics.
struct RollbackOnDrop<'a>(&'a Connection);

impl Drop for RollbackOnDrop<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit()
            && let Err(error) = self.0.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "failed to roll a transaction back");
        }
    }
}

/// An open transaction.
pub struct Tx<'c> {
    conn: &'c Connection,
    changed: RefCell<BTreeSet<(Kind, String)>>,
    now: Timestamp,
}

impl<'c> Tx<'c> {
    fn new(conn: &'c Connection) -> Self {
        Self { conn, changed: RefCell::default(), now: Timestamp::now() }
    }

    /// The time of this transaction, the same for all it writes.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// [`Tx::now`] as it is stored and shown: UTC, whole seconds, `2026-11-22T00:00:00Z`.
    pub fn now_text(&self) -> String {
        timestamp_text(self.now)
    }

    /// Runs a statement that changes rows; answers how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Constraint`] when a rule of the schema forbids it.
    pub fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        Ok(statement.execute(rusqlite::params_from_iter(params))?)
    }

    /// Reads all rows of a query.
    ///
    /// # Errors
    ///
    /// When the query fails or `read` cannot make sense of a row.
    pub fn query<T>(
        &self,
        sql: &str,
        params: &[Value],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(&Row(row))?);
        }
        Ok(found)
    }

    /// Reads the first row of a query, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn query_opt<T>(
        &self,
        sql: &str,
        params: &[Value],
        read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        rows.next()?.map(|row| read(&Row(row))).transpose()
    }

    /// Reads one number, as of `SELECT count(*)`; 0 where there is no row or only NULL.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn count(&self, sql: &str, params: &[Value]) -> Result<i64, StoreError> {
        Ok(self.query_opt(sql, params, |row| row.opt_int(0))?.flatten().unwrap_or(0))
    }

    /// Reads a value that the deployment keeps under a name.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.query_opt("SELECT value FROM settings WHERE name = ?1", &values![name], |row| row.text(0))
    }

    /// Keeps a value under a name.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn set_setting(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.execute("DELETE FROM settings WHERE name = ?1", &values![name])?;
        self.execute("INSERT INTO settings (name, value) VALUES (?1, ?2)", &values![name, value])?;
        Ok(())
    }

    /// Notes that an object changed, came or went: followers of the change log will look at it.
    pub fn changed(&self, kind: Kind, id: impl std::fmt::Display) {
        self.changed.borrow_mut().insert((kind, id.to_string()));
    }

    /// Objects of a kind that this transaction has changed so far.
    pub fn changed_so_far(&self, kind: Kind) -> Vec<String> {
        self.changed.borrow().iter().filter(|(changed, _)| *changed == kind).map(|(_, id)| id.clone()).collect()
    }

    /// The newest revision that this transaction sees.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.count("SELECT revision FROM revision", &[])? as u64)
    }

    /// What changed after a revision, oldest first, or `None` when the log no longer reaches back.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn changes_since(&self, revision: u64) -> Result<Option<Vec<ChangedObject>>, StoreError> {
        let (since, newest) = (revision as i64, self.revision()? as i64);
        if since > newest || since < newest - CHANGES_KEPT {
            return Ok(None);
        }
        let sql =
            "SELECT revision, kind, object_id FROM changes WHERE revision > ?1 ORDER BY revision, kind, object_id";
        self.query(sql, &values![since], |row| {
            let word = row.text(1)?;
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == word)
                .ok_or(StoreError::Corrupt { column: 1, text: word })?;
            Ok(ChangedObject { revision: row.num(0)?, kind, id: row.text(2)? })
        })
        .map(Some)
    }

    fn append_changes(&self) -> Result<Option<u64>, StoreError> {
        let changed = self.changed.take();
        if changed.is_empty() {
            return Ok(None);
        }
        let revision = self.revision()? as i64 + 1;
        self.execute("UPDATE revision SET revision = ?1", &values![revision])?;
        for (kind, id) in changed {
            let sql = "INSERT INTO changes (revision, kind, object_id) VALUES (?1, ?2, ?3)";
            self.execute(sql, &values![revision, kind.as_str(), id])?;
        }
        self.execute("DELETE FROM changes WHERE revision <= ?1", &values![revision - CHANGES_KEPT])?;
        Ok(Some(revision as u64))
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
        Ok(match self {
            Self::Null => ToSqlOutput::Owned(Owned::Null),
            Self::Int(n) => ToSqlOutput::Owned(Owned::Integer(*n)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

/// Prints a time as the store keeps it and the API shows it: UTC, whole seconds.
pub fn timestamp_text(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests;
