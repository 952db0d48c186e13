//! A connection to whichever database it is, and how another one is opened.

use std::sync::Arc;

use evergate_config::settings::Database;

use super::dialect::Dialect;
use super::value::{Row, Value};
use super::{StoreError, postgres, sqlite};

/// Where connections lead to.
pub(super) enum Origin {
    Sqlite(Arc<sqlite::File>),
    Postgres(Box<postgres::Config>),
}

impl Origin {
    pub(super) fn new(database: &Database) -> Result<Self, StoreError> {
        Ok(match database {
            Database::Sqlite(path) => Self::Sqlite(Arc::new(sqlite::File::new(path))),
            Database::Postgres(url) => Self::Postgres(Box::new(postgres::parse_url(url)?)),
        })
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    pub(super) fn open_writer(&self) -> Result<Connection, StoreError> {
        Ok(match self {
            Self::Sqlite(file) => Connection::Sqlite(sqlite::Connection::open_writer(file)?),
            Self::Postgres(config) => Connection::Postgres(Box::new(postgres::Connection::open(config)?)),
        })
    }

    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        Ok(match self {
            Self::Sqlite(file) => Connection::Sqlite(sqlite::Connection::open_reader(file)?),
            Self::Postgres(config) => Connection::Postgres(Box::new(postgres::Connection::open(config)?)),
        })
    }
}

/// An open connection.
pub(super) enum Connection {
    Sqlite(sqlite::Connection),
    Postgres(Box<postgres::Connection>),
}

/// Rows that were asked for and not read yet.
pub(super) enum Question {
    /// Waiting costs nothing here: it is asked when it is read.
    Sqlite(String, Vec<Value>),
    Postgres(postgres::Question),
}

/// Passes a call on to the database's own connection.
macro_rules! either {
    ($self:ident, $connection:ident => $call:expr) => {
        match $self {
            Self::Sqlite($connection) => $call,
            Self::Postgres($connection) => $call,
        }
    };
}

impl Connection {
    pub(super) fn begin_write(&self) -> Result<(), StoreError> {
        either!(self, c => c.begin_write())
    }

    pub(super) fn begin_read(&self) -> Result<(), StoreError> {
        either!(self, c => c.begin_read())
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        either!(self, c => c.commit())
    }

    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        either!(self, c => c.roll_back())
    }

    pub(super) fn execute_batch(&self, sql: &str) -> Result<(), StoreError> {
        either!(self, c => c.execute_batch(sql))
    }

    pub(super) fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        either!(self, c => c.execute(sql, params))
    }

    /// As [`Connection::execute`], where nobody asks how many rows it changed.
    pub(super) fn run(&self, sql: &str, params: &[Value]) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(connection) => connection.execute(sql, params).map(drop),
            Self::Postgres(connection) => connection.run(sql, params),
        }
    }

    /// Asks for rows that are read later.
    pub(super) fn ask(&self, sql: &str, params: &[Value]) -> Result<Question, StoreError> {
        Ok(match self {
            Self::Sqlite(_) => Question::Sqlite(sql.to_owned(), params.to_vec()),
            Self::Postgres(connection) => Question::Postgres(connection.ask(sql, params)?),
        })
    }

    /// Reads rows that were asked for until `read` wants no more.
    pub(super) fn answer(
        &self,
        question: Question,
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        match (self, question) {
            (Self::Sqlite(connection), Question::Sqlite(sql, params)) => connection.query(&sql, &params, read),
            (Self::Postgres(connection), Question::Postgres(question)) => connection.answer(question, read),
            _ => Err(StoreError::Database("another connection was asked".into())),
        }
    }

    /// The newest revision, in a transaction that has the turn to write.
    pub(super) fn revision_of_turn(&self) -> Result<i64, StoreError> {
        match self {
            Self::Postgres(connection) => connection.revision_of_turn(),
            Self::Sqlite(connection) => {
                let mut revision = None;
                connection.query("SELECT revision FROM revision", &[], &mut |row| {
                    revision = Some(row.int(0)?);
                    Ok(false)
                })?;
                revision.ok_or_else(|| StoreError::Unsuitable("it has no revision".to_owned()))
            }
        }
    }

    /// How often the transaction waited for a database in another process.
    pub(super) fn exchanges(&self) -> usize {
        match self {
            Self::Sqlite(_) => 0,
            Self::Postgres(connection) => connection.exchanges(),
        }
    }

    /// Reads rows until `read` wants no more.
    pub(super) fn query(
        &self,
        sql: &str,
        params: &[Value],
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        either!(self, c => c.query(sql, params, read))
    }

    /// Tells whether it may be used for another transaction.
    pub(super) fn is_usable(&self) -> bool {
        either!(self, c => c.is_usable())
    }
}

/// Ends a transaction that was not committed, also when the work in it panics.
pub(super) struct RollbackOnDrop<'a>(pub(super) &'a Connection);

impl Drop for RollbackOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.roll_back() {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to roll a transaction back");
        }
    }
}
