//! Tags: short texts on any object.

use std::collections::BTreeMap;

use super::{Later, ask_in};
use crate::store::{StoreError, Tx};
use crate::values;

/// Reads the tags of many objects at once, in order.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of_many<'t>(tx: &'t Tx<'_>, ids: &[String]) -> Result<Later<'t, BTreeMap<String, Vec<String>>>, StoreError> {
    let sql = "SELECT object_id, tag FROM tags WHERE object_id IN ({}) ORDER BY object_id, tag";
    Ok(ask_in(tx, sql, ids, |row| Ok((row.text(0)?, row.text(1)?)))?.by_key())
}

/// Reads the tags of one object, in order.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of(tx: &Tx<'_>, id: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT tag FROM tags WHERE object_id = ?1 ORDER BY tag", &values![id], |row| row.text(0))
}

/// Makes these the object's tags.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn replace(tx: &Tx<'_>, id: &str, tags: &[String]) -> Result<(), StoreError> {
    tx.execute("DELETE FROM tags WHERE object_id = ?1", &values![id])?;
    for tag in tags {
        add(tx, id, tag)?;
    }
    Ok(())
}

/// Adds a tag; adding it twice changes nothing.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn add(tx: &Tx<'_>, id: &str, tag: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO tags (object_id, tag) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    tx.execute(sql, &values![id, tag])?;
    Ok(())
}

/// Removes a tag; answers whether it was there.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn remove(tx: &Tx<'_>, id: &str, tag: &str) -> Result<bool, StoreError> {
    let removed = tx.execute_counted("DELETE FROM tags WHERE object_id = ?1 AND tag = ?2", &values![id, tag])?;
    Ok(removed > 0)
}
