//! Everything that is SQLite's own: opening, pragmas, error codes.

use std::path::Path;
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::OpenFlags;

use super::value::{Row, Value};
use super::{Outage, StoreError};

/// How long a statement waits for another process's write, such as an operator's `sqlite3` shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Distinct statements of the server, with room: each is prepared once per connection.
const STATEMENT_CACHE: usize = 512;

/// A connection to a file.
pub(super) struct Connection(rusqlite::Connection);

impl Connection {
    pub(super) fn open_writer(path: &Path) -> Result<Self, StoreError> {
        let conn = rusqlite::Connection::open(path)?;
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        configure(&conn)?;
        Ok(Self(conn))
    }

    pub(super) fn open_reader(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = rusqlite::Connection::open_with_flags(path, flags)?;
        configure(&conn)?;
        conn.execute_batch("PRAGMA query_only = ON")?;
        Ok(Self(conn))
    }

    /// Starts a transaction that is sure to be allowed to write.
    pub(super) fn begin_write(&self) -> Result<(), StoreError> {
        Ok(self.0.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Starts a transaction that sees one state throughout.
    pub(super) fn begin_read(&self) -> Result<(), StoreError> {
        Ok(self.0.execute_batch("BEGIN DEFERRED")?)
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        Ok(self.0.execute_batch("COMMIT")?)
    }

    /// Ends a transaction that was not committed, unless SQLite did so itself.
    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        if self.0.is_autocommit() { Ok(()) } else { Ok(self.0.execute_batch("ROLLBACK")?) }
    }

    pub(super) fn execute_batch(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.0.execute_batch(sql)?)
    }

    pub(super) fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        let mut statement = self.0.prepare_cached(sql)?;
        Ok(statement.execute(rusqlite::params_from_iter(params))?)
    }

    pub(super) fn query(
        &self,
        sql: &str,
        params: &[Value],
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.0.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        while let Some(row) = rows.next()? {
            if !read(&Row::Sqlite(row))? {
                break;
            }
        }
        Ok(())
    }
}

fn configure(conn: &rusqlite::Connection) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    // FULL: the log is synced at every commit, so what was acknowledged survives a power cut.
    conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY")?;
    Ok(())
}

impl From<rusqlite::Error> for StoreError {
    /// Tells apart what callers act on: a broken constraint, and a file that cannot be used for now.
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(code, message) = &error else { return Self::Database(error.into()) };
        #[expect(clippy::wildcard_enum_match_arm, reason = "every other code means that we or the file are wrong")]
        let outage = match code.code {
            ErrorCode::ConstraintViolation => {
                return Self::Constraint { rule: message.clone().unwrap_or_else(|| code.to_string()) };
            }
            ErrorCode::DiskFull => Outage::Full,
            ErrorCode::ReadOnly => Outage::ReadOnly,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Outage::Slow,
            ErrorCode::SystemIoFailure => Outage::BrokenDisk,
            ErrorCode::CannotOpen => Outage::Gone,
            ErrorCode::PermissionDenied => Outage::Refused,
            _ => return Self::Database(error.into()),
        };
        Self::unavailable(outage, error)
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
