//! Networks, subnets, ports, routers, floating IPs and agents as the store holds them.
//!
//! Each file has one type, how it is read (one by id, many at once) and the writes that others need.
//! Rules of the API are in [`resources`](crate::resources), those of HA routers in [`ha`](crate::ha).
//! Invariant: whoever changes an object here also calls [`Tx::changed`] for it, so that hosts hear.

pub mod agent;
pub mod dhcp_options;
pub mod fleet;
pub mod floating_ip;
pub mod network;
pub mod port;
pub mod port_forwarding;
pub mod router;
pub mod security_group;
pub mod subnet;
pub mod subnet_pool;
pub mod tags;

use std::collections::BTreeMap;

use crate::store::{Row, StoreError, Tx, Value};
use crate::values;

/// Ids in one `IN (...)`: below every database's limit of parameters.
const CHUNK: usize = 500;

/// What every object has for showing: when it was made, last changed, and how often. A new one has none of it
/// before it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standard {
    /// Creation time.
    pub created_at: String,
    /// Last change.
    pub updated_at: String,
    /// Grows with each change.
    pub revision_number: i64,
}

impl Standard {
    fn read(row: &Row<'_>, first: usize) -> Result<Self, StoreError> {
        Ok(Self {
            created_at: row.text(first)?,
            updated_at: row.text(first + 1)?,
            revision_number: row.int(first + 2)?,
        })
    }
}

/// Runs a query whose text has `{}` where the list of ids belongs, for any number of ids. An id that is named several
/// times counts once.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn query_in<T, I: AsRef<str>>(
    tx: &Tx<'_>,
    sql: &str,
    ids: &[I],
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    for (sql, params) in in_chunks(sql, ids) {
        found.extend(tx.query(&sql, &params, &mut read)?);
    }
    Ok(found)
}

/// The query for as many ids as one may have, and again for the others. In one list the database minds no
/// repetition; from two, a row would come twice.
fn in_chunks(sql: &str, ids: &[impl AsRef<str>]) -> Vec<(String, Vec<Value>)> {
    let mut ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
    if ids.len() > CHUNK {
        ids.sort_unstable();
        ids.dedup();
    }
    ids.chunks(CHUNK).map(|chunk| in_chunk(sql, chunk)).collect()
}

fn in_chunk(sql: &str, chunk: &[&str]) -> (String, Vec<Value>) {
    // The last is named several times, so that there are few lengths, and few statements to prepare.
    let length = chunk.len().next_power_of_two().min(CHUNK);
    let places: Vec<_> = (1..=length).map(|n| format!("?{n}")).collect();
    let last = std::iter::repeat(chunk.last()).flatten();
    let params = chunk.iter().chain(last).take(length).map(|id| Value::from(*id));
    (sql.replace("{}", &places.join(", ")), params.collect())
}

/// What the database was asked for together with other questions.
#[must_use]
pub struct Later<'t, T>(Box<dyn FnOnce() -> Result<T, StoreError> + 't>);

impl<'t, T: 't> Later<'t, T> {
    /// What need not be asked.
    pub fn known(value: T) -> Self {
        Self(Box::new(move || Ok(value)))
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn read(self) -> Result<T, StoreError> {
        self.0()
    }

    /// Reads it together with something else.
    pub fn and<U: 't>(self, other: Later<'t, U>) -> Later<'t, (T, U)> {
        Later(Box::new(move || Ok((self.read()?, other.read()?))))
    }

    /// Makes something of it when it is read.
    pub fn map<U>(self, make: impl FnOnce(T) -> U + 't) -> Later<'t, U> {
        Later(Box::new(move || self.read().map(make)))
    }
}

impl<'t, K: Ord + 't, V: 't> Later<'t, Vec<(K, V)>> {
    /// Gathers what has the same key.
    pub fn by_key(self) -> Later<'t, BTreeMap<K, Vec<V>>> {
        self.map(|rows| {
            let mut by_key = BTreeMap::<K, Vec<V>>::new();
            rows.into_iter().for_each(|(key, value)| by_key.entry(key).or_default().push(value));
            by_key
        })
    }
}

/// Asks for the rows of a query, for reading later.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn ask<'t, T: 't>(
    tx: &'t Tx<'_>,
    sql: &str,
    params: &[Value],
    read: impl FnMut(&Row<'_>) -> Result<T, StoreError> + 't,
) -> Result<Later<'t, Vec<T>>, StoreError> {
    let asked = tx.ask(sql, params)?;
    Ok(Later(Box::new(move || asked.rows(read))))
}

/// Asks what [`query_in`] would, for reading later.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn ask_in<'t, T: 't>(
    tx: &'t Tx<'_>,
    sql: &str,
    ids: &[impl AsRef<str>],
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError> + 't,
) -> Result<Later<'t, Vec<T>>, StoreError> {
    let chunks = in_chunks(sql, ids).into_iter().map(|(sql, params)| tx.ask(&sql, &params));
    let asked: Vec<_> = chunks.collect::<Result<_, _>>()?;
    Ok(Later(Box::new(move || {
        let mut found = Vec::new();
        for chunk in asked {
            found.extend(chunk.rows(&mut read)?);
        }
        Ok(found)
    })))
}

/// Writes a new row of a table whose columns end with the standard ones: these are the transaction's, and the
/// revision number that is given.
///
/// # Errors
///
/// As [`Tx::execute`].
fn insert(
    tx: &Tx<'_>,
    table: &'static str,
    columns: &str,
    values: impl IntoIterator<Item = Value>,
    revision: i64,
) -> Result<(), StoreError> {
    let mut values: Vec<Value> = values.into_iter().collect();
    let own: Vec<String> = (1..=values.len()).map(|n| format!("?{n}")).collect();
    values.push(tx.now_text().into());
    let (own, now) = (own.join(", "), values.len());
    tx.execute(&format!("INSERT INTO {table} ({columns}) VALUES ({own}, ?{now}, ?{now}, {revision})"), &values)?;
    Ok(())
}

/// Counts a change of an object: its revision number and time.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn bump(tx: &Tx<'_>, table: &'static str, id: impl std::fmt::Display) -> Result<(), StoreError> {
    let sql = format!("UPDATE {table} SET revision_number = revision_number + 1, updated_at = ?2 WHERE id = ?1");
    tx.execute(&sql, &values![id.to_string(), tx.now_text()])?;
    Ok(())
}

/// Collects the columns that a PUT changes and writes them in one statement.
#[derive(Debug, Default)]
pub struct Changes {
    columns: Vec<&'static str>,
    values: Vec<Value>,
}

impl Changes {
    /// Sets a column, if there is something to set it to.
    pub fn set(&mut self, column: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.columns.push(column);
            self.values.push(value.into());
        }
    }

    /// Writes the columns and counts the change.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn write(mut self, tx: &Tx<'_>, table: &'static str, id: impl std::fmt::Display) -> Result<(), StoreError> {
        if !self.columns.is_empty() {
            let sets: Vec<_> =
                self.columns.iter().enumerate().map(|(n, column)| format!("{column} = ?{}", n + 2)).collect();
            self.values.insert(0, Value::from(id.to_string()));
            tx.execute(&format!("UPDATE {table} SET {} WHERE id = ?1", sets.join(", ")), &self.values)?;
        }
        bump(tx, table, id)
    }
}
