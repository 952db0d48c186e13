//! Everything that is SQLite's own: opening, pragmas, error codes, and what a file can do to us.
//!
//! Two habits of SQLite's would let a write be acknowledged that is nowhere. An error may end the transaction,
//! and what is executed after it would be written at once, piece by piece: so nothing is executed in a
//! transaction that is over. And an open file stays what it is when its name leads elsewhere (it was moved
//! away, or a backup was put in its place): so every transaction begins with a look at the name.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::OpenFlags;

use super::value::{Row, Value};
use super::{Outage, StoreError};

/// How long a statement waits for another process's write, such as an operator's `sqlite3` shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Distinct statements of the server, with room: each is prepared once per connection.
const STATEMENT_CACHE: usize = 512;

/// The file that connections lead to.
pub(super) struct File {
    path: PathBuf,
    /// Device and inode of the file that was opened first, whose schema is known.
    first: OnceLock<(u64, u64)>,
}

impl File {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), first: OnceLock::new() }
    }

    /// Makes sure that the name leads to the file that it led to at first.
    fn check(&self) -> Result<(), StoreError> {
        match std::fs::metadata(&self.path) {
            Ok(now) if *self.first.get_or_init(|| (now.dev(), now.ino())) == (now.dev(), now.ino()) => Ok(()),
            Ok(_) => Err(StoreError::unavailable(Outage::Replaced, self.path.display().to_string())),
            Err(error) => Err(StoreError::unavailable(Outage::Missing, error)),
        }
    }

    fn open(&self) -> Result<rusqlite::Connection, StoreError> {
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if self.first.get().is_none() {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        }
        let conn = rusqlite::Connection::open_with_flags(&self.path, flags)?;
        self.check()?;
        // SQLite would be content with reading.
        if conn.is_readonly(rusqlite::MAIN_DB)? {
            return Err(StoreError::unavailable(Outage::ReadOnly, "it can be opened for reading alone"));
        }
        Ok(conn)
    }
}

/// A connection to a file.
pub(super) struct Connection {
    inner: rusqlite::Connection,
    file: Arc<File>,
    in_transaction: Cell<bool>,
    /// What ended the transaction before its time.
    ended: Cell<Option<Outage>>,
    /// What it knows of the file may be wrong.
    broken: Cell<bool>,
}

impl Connection {
    pub(super) fn open_writer(file: &Arc<File>) -> Result<Self, StoreError> {
        let inner = file.open()?;
        inner.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        Self::of(inner, file)
    }

    pub(super) fn open_reader(file: &Arc<File>) -> Result<Self, StoreError> {
        let connection = Self::of(file.open()?, file)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        Ok(connection)
    }

    fn of(inner: rusqlite::Connection, file: &Arc<File>) -> Result<Self, StoreError> {
        inner.busy_timeout(BUSY_TIMEOUT)?;
        inner.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        // FULL: the log is synced at every commit, so what was acknowledged survives a power cut.
        inner.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY")?;
        let (file, in_transaction) = (Arc::clone(file), Cell::new(false));
        Ok(Self { inner, file, in_transaction, ended: Cell::new(None), broken: Cell::new(false) })
    }

    /// Tells whether it may be used again.
    pub(super) fn is_usable(&self) -> bool {
        !self.broken.get()
    }

    /// Starts a transaction that is sure to be allowed to write.
    pub(super) fn begin_write(&self) -> Result<(), StoreError> {
        self.begin("BEGIN IMMEDIATE")
    }

    /// Starts a transaction that sees one state throughout.
    pub(super) fn begin_read(&self) -> Result<(), StoreError> {
        self.begin("BEGIN DEFERRED")
    }

    fn begin(&self, sql: &str) -> Result<(), StoreError> {
        self.file.check().inspect_err(|_| self.broken.set(true))?;
        self.execute_batch(sql)?;
        self.in_transaction.set(true);
        Ok(())
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        self.execute_batch("COMMIT").map_err(|error| match error.outage() {
            // It may have been written, and only the word of the disk that it is there to stay be missing.
            Some(Outage::BrokenDisk) => StoreError::unavailable(Outage::Uncertain, error),
            _ => error,
        })
    }

    /// Ends a transaction that was not committed, unless SQLite did so itself.
    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        self.in_transaction.set(false);
        self.ended.set(None);
        if self.inner.is_autocommit() { Ok(()) } else { self.judged(self.inner.execute_batch("ROLLBACK")) }
    }

    pub(super) fn execute_batch(&self, sql: &str) -> Result<(), StoreError> {
        self.check_transaction()?;
        self.judged(self.inner.execute_batch(sql))
    }

    pub(super) fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        self.check_transaction()?;
        let run = || self.inner.prepare_cached(sql)?.execute(rusqlite::params_from_iter(params));
        self.judged(run())
    }

    pub(super) fn query(
        &self,
        sql: &str,
        params: &[Value],
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        self.check_transaction()?;
        let mut statement = self.judged(self.inner.prepare_cached(sql))?;
        let mut rows = self.judged(statement.query(rusqlite::params_from_iter(params)))?;
        while let Some(row) = self.judged(rows.next())? {
            if !read(&Row::Sqlite(row))? {
                break;
            }
        }
        Ok(())
    }

    /// Refuses to go on in a transaction that is over.
    fn check_transaction(&self) -> Result<(), StoreError> {
        if self.in_transaction.get() && self.inner.is_autocommit() {
            let outage = self.ended.get().unwrap_or(Outage::BrokenDisk);
            return Err(StoreError::unavailable(outage, "an earlier failure ended the transaction"));
        }
        Ok(())
    }

    /// Looks at what an error means for the connection and its transaction.
    fn judged<T>(&self, result: rusqlite::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| {
            let error = StoreError::from(error);
            let outage = error.outage();
            if matches!(outage, Some(Outage::BrokenDisk | Outage::Damaged | Outage::Missing)) {
                self.broken.set(true);
            }
            if self.ended.get().is_none() {
                self.ended.set(outage);
            }
            error
        })
    }
}

impl From<rusqlite::Error> for StoreError {
    /// Tells apart what callers act on: a broken constraint, and a file that cannot be used for now.
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(code, message) = &error else { return Self::Database(error.into()) };
        #[expect(clippy::wildcard_enum_match_arm, reason = "every other code means that we are wrong")]
        let outage = match code.code {
            ErrorCode::ConstraintViolation => {
                return Self::Constraint { rule: message.clone().unwrap_or_else(|| code.to_string()) };
            }
            ErrorCode::DiskFull => Outage::Full,
            // What readers and writer share about the log could not grow.
            ErrorCode::SystemIoFailure if code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => Outage::Full,
            ErrorCode::ReadOnly => Outage::ReadOnly,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => {
                Outage::Locked
            }
            ErrorCode::SystemIoFailure => Outage::BrokenDisk,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Outage::Damaged,
            ErrorCode::CannotOpen => Outage::Missing,
            ErrorCode::PermissionDenied => Outage::Refused,
            ErrorCode::OutOfMemory => Outage::Exhausted,
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
