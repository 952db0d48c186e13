//! Everything that is SQLite's own: opening, pragmas, error codes.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// How long a statement waits for another process's write, such as an operator's `sqlite3` shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Distinct statements of the server, with room: each is prepared once per connection.
const STATEMENT_CACHE: usize = 512;

/// Starts a transaction that is sure to be allowed to write.
pub(super) const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";
/// Starts a transaction that sees one state throughout.
pub(super) const BEGIN_READ: &str = "BEGIN DEFERRED";

pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let conn = Connection::open(path)?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    configure(&conn)?;
    Ok(conn)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    configure(&conn)?;
    conn.execute_batch("PRAGMA query_only = ON")?;
    Ok(conn)
}

fn configure(conn: &Connection) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    // FULL: the log is synced at every commit, so what was acknowledged survives a power cut.
    conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY")?;
    Ok(())
}

/// Translates SQLite's error: a broken constraint is told apart, because callers act on it.
pub(super) fn translate(error: rusqlite::Error) -> StoreError {
    if let rusqlite::Error::SqliteFailure(code, message) = &error
        && code.code == rusqlite::ErrorCode::ConstraintViolation
    {
        let rule = message.clone().unwrap_or_else(|| code.to_string());
        return StoreError::Constraint { rule };
    }
    StoreError::Database(error)
}
