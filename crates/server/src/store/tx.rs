//! A transaction, as all work on the store sees it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use jiff::Timestamp;

use super::connection::{Connection, Question};
use super::value::{Row, Value};
use super::{ChangedObject, Kind, StoreError};
use crate::values;

/// Revisions that the change log reaches back. A follower that is further behind takes a snapshot.
const CHANGES_KEPT: i64 = 10_000;
/// Lines of the log in one statement.
const CHANGES_AT_ONCE: usize = 50;
/// Old lines of the log are removed when so many revisions were added.
const CLEANING_PERIOD: i64 = 100;

/// Rows that were asked for. Invariant: nothing is written before they are read.
pub struct Asked<'t> {
    conn: &'t Connection,
    question: Question,
    /// The transaction's counts of rows that were read, and of statements that wrote.
    counts: (&'t Cell<usize>, &'t Cell<usize>),
    /// The latter when it was asked.
    written: usize,
}

impl Asked<'_> {
    /// Reads all rows.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn rows<T>(self, mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
        let (rows, written) = self.counts;
        debug_assert_eq!(written.get(), self.written, "something was written between a question and its answer");
        let mut found = Vec::new();
        self.conn.answer(self.question, &mut |row| {
            found.push(read(row)?);
            Ok(true)
        })?;
        rows.set(rows.get() + found.len());
        Ok(found)
    }
}

/// An open transaction.
pub struct Tx<'c> {
    conn: &'c Connection,
    changed: RefCell<BTreeSet<(Kind, String)>>,
    statements: Cell<usize>,
    written: Cell<usize>,
    rows: Cell<usize>,
    now: Timestamp,
}

impl<'c> Tx<'c> {
    pub(super) fn new(conn: &'c Connection) -> Self {
        let (changed, none) = (RefCell::default(), || Cell::new(0));
        Self { conn, changed, statements: none(), written: none(), rows: none(), now: Timestamp::now() }
    }

    /// The time of this transaction, the same for all it writes.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// [`Tx::now`] as it is stored and shown: UTC, whole seconds, `2026-11-22T00:00:00Z`.
    pub fn now_text(&self) -> String {
        timestamp_text(self.now)
    }

    /// Runs a statement that changes rows, of which nobody asks how many. The database may get it together with the
    /// next statement, and what is wrong with it may be told then, at the latest by the commit.
    ///
    /// # Errors
    ///
    /// [`StoreError::Constraint`] when a rule of the schema forbids it.
    pub fn execute(&self, sql: &str, params: &[Value]) -> Result<(), StoreError> {
        self.count_statement();
        self.written.set(self.written.get() + 1);
        self.conn.run(sql, params)
    }

    /// Runs a statement that changes rows; answers how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Constraint`] when a rule of the schema forbids it.
    pub fn execute_counted(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        self.count_statement();
        self.written.set(self.written.get() + 1);
        self.conn.execute(sql, params)
    }

    /// Asks for rows that are read later, so that several questions cost one exchange with the database.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask(&self, sql: &str, params: &[Value]) -> Result<Asked<'_>, StoreError> {
        self.count_statement();
        Ok(Asked {
            conn: self.conn,
            question: self.conn.ask(sql, params)?,
            counts: (&self.rows, &self.written),
            written: self.written.get(),
        })
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
        self.count_statement();
        let mut found = Vec::new();
        self.conn.query(sql, params, &mut |row| {
            found.push(read(row)?);
            Ok(true)
        })?;
        self.rows.set(self.rows.get() + found.len());
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
        self.count_statement();
        let (mut read, mut found) = (Some(read), None);
        self.conn.query(sql, params, &mut |row| {
            found = read.take().map(|read| read(row)).transpose()?;
            Ok(false)
        })?;
        Ok(found)
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

    /// Counts the statements that this transaction ran: of reading many objects at once, a fixed number.
    pub fn statements(&self) -> usize {
        self.statements.get()
    }

    /// Counts how often this transaction waited for a database in another process.
    pub fn exchanges(&self) -> usize {
        self.conn.exchanges()
    }

    /// Counts the rows that queries answered.
    pub fn rows(&self) -> usize {
        self.rows.get()
    }

    fn count_statement(&self) {
        self.statements.set(self.statements.get() + 1);
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

    pub(super) fn append_changes(&self) -> Result<Option<u64>, StoreError> {
        let changed = self.changed.take();
        if changed.is_empty() {
            return Ok(None);
        }
        let revision = self.conn.revision_of_turn()? + 1;
        self.execute("UPDATE revision SET revision = ?1", &values![revision])?;
        let changed = Vec::from_iter(changed);
        for lines in changed.chunks(CHANGES_AT_ONCE) {
            self.append_lines(revision, lines)?;
        }
        if revision % CLEANING_PERIOD == 0 {
            self.execute("DELETE FROM changes WHERE revision <= ?1", &values![revision - CHANGES_KEPT])?;
        }
        Ok(Some(revision as u64))
    }

    fn append_lines(&self, revision: i64, lines: &[(Kind, String)]) -> Result<(), StoreError> {
        let places: Vec<String> = (1..=lines.len()).map(|n| format!("(?1, ?{}, ?{})", 2 * n, 2 * n + 1)).collect();
        let sql = format!("INSERT INTO changes (revision, kind, object_id) VALUES {}", places.join(", "));
        let mut params = vec![Value::from(revision)];
        params.extend(lines.iter().flat_map(|(kind, id)| values![kind.as_str(), id]));
        self.execute(&sql, &params)?;
        Ok(())
    }
}

/// Prints a time as the store keeps it and the API shows it: UTC, whole seconds.
pub fn timestamp_text(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
