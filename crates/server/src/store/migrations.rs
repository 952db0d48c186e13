//! Brings a database to the current schema, one numbered file after another.
//!
//! A file is plain SQL for both databases; [`super::dialect`] says what is translated, and how a file says
//! something to one of them alone.

use super::connection::{Connection, RollbackOnDrop};
use super::dialect::{Dialect, migration};
use super::{StoreError, Tx};
use crate::values;

/// Each file once, in order; the position plus one is the schema version it leads to.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_initial.sql"),
    include_str!("migrations/0002_quotas.sql"),
    include_str!("migrations/0003_rbac.sql"),
    include_str!("migrations/0004_port_forwardings.sql"),
    include_str!("migrations/0005_subnet_pools.sql"),
    include_str!("migrations/0006_distributed.sql"),
    include_str!("migrations/0007_security_groups.sql"),
    include_str!("migrations/0008_heirs.sql"),
    include_str!("migrations/0009_preferred_host.sql"),
    include_str!("migrations/0010_membership.sql"),
];

/// Begins a transaction in which nobody else migrates. On PostgreSQL there may be no table yet to lock; the
/// number means nothing but "the schema of Evergate".
const fn begin(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "BEGIN IMMEDIATE",
        Dialect::Postgres => "BEGIN; SET LOCAL lock_timeout = '8s'; SELECT pg_advisory_xact_lock(5083747131)",
    }
}

/// Applies what is missing. Each file and its number commit together, so a kill between two of them
/// leaves a usable state, and servers that start at the same time do not get in each other's way.
pub(super) fn migrate(connection: &Connection, dialect: Dialect) -> Result<(), StoreError> {
    while step(connection, dialect)? {}
    Ok(())
}

/// Applies the next file; answers whether there was one.
fn step(connection: &Connection, dialect: Dialect) -> Result<bool, StoreError> {
    connection.execute_batch(begin(dialect))?;
    let _rollback = RollbackOnDrop(connection);
    let tx = Tx::new(connection);
    connection.execute_batch("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")?;
    let found = usize::try_from(tx.count("SELECT max(version) FROM schema_version", &[])?).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(StoreError::NewerSchema { found, known: MIGRATIONS.len() });
    }
    let Some(file) = MIGRATIONS.get(found) else {
        connection.commit()?;
        return Ok(false);
    };
    connection.execute_batch(&migration(file, dialect))?;
    tx.execute("DELETE FROM schema_version", &[])?;
    tx.execute("INSERT INTO schema_version (version) VALUES (?1)", &values![found as i64 + 1])?;
    connection.commit()?;
    Ok(true)
}
