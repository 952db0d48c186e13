//! Takes a deployment from one SQLite file to an empty PostgreSQL, whole or not at all.
//!
//! Both are brought to the current schema first, so that every table and column has its counterpart. Tables
//! are copied in the order of their foreign keys, in one transaction of the target; the source is only read
//! from. The revision and the change log come along, so hosts go on where they were.

use std::collections::{BTreeMap, BTreeSet};

use evergate_config::Database;

use super::connection::{Connection, Origin, RollbackOnDrop};
use super::value::Value;
use super::{Dialect, StoreError, Tx, migrations};
use crate::values;

/// Values in one INSERT: below PostgreSQL's limit of 65,535 parameters.
const VALUES_AT_ONCE: usize = 10_000;

/// Copies everything; answers how many rows there were. No server may use either of the two meanwhile.
///
/// # Errors
///
/// When one of them is not of the kind that is expected, the target is not empty, or a row does not fit.
/// Nothing was copied then.
pub fn copy(from: &Database, to: &Database) -> Result<u64, StoreError> {
    let unsuitable = |why: &str| Err(StoreError::Unsuitable(why.to_owned()));
    let (source, target) = (Origin::new(from)?, Origin::new(to)?);
    if source.dialect() != Dialect::Sqlite || target.dialect() != Dialect::Postgres {
        return unsuitable("a store is moved from SQLite to PostgreSQL only");
    }
    let (source, target) = (source.open_writer()?, target.open_writer()?);
    migrations::migrate(&source, Dialect::Sqlite)?;
    migrations::migrate(&target, Dialect::Postgres)?;
    source.begin_read()?;
    let _rollback = RollbackOnDrop(&source);
    target.begin_write()?;
    let _rollback_target = RollbackOnDrop(&target);
    let (from, to) = (Tx::new(&source), Tx::new(&target));
    let tables = in_order(&from)?;
    refuse_unless_empty(&to, &tables)?;
    let mut rows = 0;
    for table in &tables {
        rows += copy_table(&source, &from, &to, table)?;
    }
    target.commit()?;
    Ok(rows)
}

/// The tables, each behind those that its foreign keys name.
fn in_order(tx: &Tx<'_>) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
               AND name <> 'schema_version' ORDER BY name";
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for table in tx.query(sql, &[], |row| row.text(0))? {
        let sql = "SELECT \"table\" FROM pragma_foreign_key_list(?1) WHERE \"table\" <> ?1";
        let needed = tx.query(sql, &values![&table], |row| row.text(0))?;
        left.insert(table, needed.into_iter().collect());
    }
    let mut ordered: Vec<String> = Vec::new();
    while !left.is_empty() {
        let ready: Vec<String> = left
            .iter()
            .filter(|(_, needed)| !needed.iter().any(|n| left.contains_key(n)))
            .map(|(t, _)| t.clone())
            .collect();
        if ready.is_empty() {
            return Err(StoreError::Unsuitable("the tables' foreign keys go round in a circle".to_owned()));
        }
        ready.iter().for_each(|table| drop(left.remove(table)));
        ordered.extend(ready);
    }
    Ok(ordered)
}

fn refuse_unless_empty(to: &Tx<'_>, tables: &[String]) -> Result<(), StoreError> {
    let mut used = Vec::new();
    for table in tables {
        let condition = if table == "revision" { " WHERE revision > 0" } else { "" };
        if to.count(&format!("SELECT count(*) FROM {table}{condition}"), &[])? > 0 {
            used.push(table.as_str());
        }
    }
    if used.is_empty() {
        return Ok(());
    }
    let why = format!("the target is not empty: it has rows in {}. Give a new database", used.join(", "));
    Err(StoreError::Unsuitable(why))
}

fn copy_table(source: &Connection, from: &Tx<'_>, to: &Tx<'_>, table: &str) -> Result<u64, StoreError> {
    let columns = from.query("SELECT name FROM pragma_table_info(?1)", &values![table], |row| row.text(0))?;
    // The one row that the schema itself makes.
    if table == "revision" {
        to.execute("DELETE FROM revision", &[])?;
    }
    let (mut rows, mut waiting) = (0, Vec::new());
    let select = format!("SELECT {} FROM {table}", columns.join(", "));
    source.query(&select, &[], &mut |row| {
        for column in 0..columns.len() {
            waiting.push(row.value(column)?);
        }
        rows += 1;
        if waiting.len() + columns.len() > VALUES_AT_ONCE {
            insert(to, table, &columns, &std::mem::take(&mut waiting))?;
        }
        Ok(true)
    })?;
    insert(to, table, &columns, &waiting)?;
    let found = to.count(&format!("SELECT count(*) FROM {table}"), &[])?;
    if found != rows {
        let why = format!("of the {rows} rows of table {table}, {found} arrived");
        return Err(StoreError::Unsuitable(why));
    }
    Ok(rows.unsigned_abs())
}

fn insert(to: &Tx<'_>, table: &str, columns: &[String], values: &[Value]) -> Result<(), StoreError> {
    if values.is_empty() {
        return Ok(());
    }
    let row = |first: usize| {
        let places: Vec<String> = (0..columns.len()).map(|n| format!("?{}", first * columns.len() + n + 1)).collect();
        format!("({})", places.join(", "))
    };
    let rows: Vec<String> = (0..values.len() / columns.len()).map(row).collect();
    let sql = format!("INSERT INTO {table} ({}) VALUES {}", columns.join(", "), rows.join(", "));
    to.execute(&sql, values)?;
    Ok(())
}
