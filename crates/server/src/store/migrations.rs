//! Brings a database to the current schema, one numbered file after another.

use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// Each file once, in order; the position plus one is the schema version it leads to.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_initial.sql"),
    include_str!("migrations/0002_quotas.sql"),
    include_str!("migrations/0003_rbac.sql"),
    include_str!("migrations/0004_port_forwardings.sql"),
    include_str!("migrations/0005_subnet_pools.sql"),
    include_str!("migrations/0006_distributed.sql"),
    include_str!("migrations/0007_security_groups.sql"),
];

/// Applies what is missing. Each file and its number commit together, so a kill between two of them
/// leaves a usable state.
pub(super) fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    conn.execute_batch("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")?;
    let found: Option<i64> =
        conn.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0)).optional()?.flatten();
    let current = usize::try_from(found.unwrap_or(0)).unwrap_or(usize::MAX);
    if current > MIGRATIONS.len() {
        return Err(StoreError::NewerSchema { found: current, known: MIGRATIONS.len() });
    }
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(current) {
        let tx = conn.transaction()?;
        tx.execute_batch(sql)?;
        tx.execute("DELETE FROM schema_version", [])?;
        tx.execute("INSERT INTO schema_version (version) VALUES (?1)", [index as i64 + 1])?;
        tx.commit()?;
    }
    Ok(())
}
