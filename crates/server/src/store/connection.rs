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
