use std::path::PathBuf;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("evergate-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn db(&self) -> PathBuf {
        self.0.join("evergate.sqlite")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let scratch = Scratch::new("reopen");
    Store::open(&scratch.db()).unwrap().write(|tx| tx.set_setting("a", "1")).unwrap();
    let store = Store::open(&scratch.db()).unwrap();
    assert_eq!(store.read(|tx| tx.setting("a")).unwrap().as_deref(), Some("1"));
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let scratch = Scratch::new("rollback");
    let store = Store::open(&scratch.db()).unwrap();
    let result: Result<(), StoreError> = store.write(|tx| {
        tx.set_setting("a", "1")?;
        tx.changed(Kind::Port, "p");
        Err(StoreError::Corrupt { column: 0, text: String::new() })
    });
    assert!(result.is_err());
    assert_eq!(store.read(|tx| tx.setting("a")).unwrap(), None);
    assert_eq!(*store.subscribe().borrow(), 0);
}

#[test]
fn each_write_that_changed_objects_gets_one_revision_that_followers_see() {
    let scratch = Scratch::new("changes");
    let store = Store::open(&scratch.db()).unwrap();
    let newest = store.subscribe();
    for id in ["r1", "r2"] {
        store
            .write(|tx| {
                tx.changed(Kind::Router, id);
                tx.changed(Kind::Router, id);
                tx.changed(Kind::Agent, "a");
                Ok::<_, StoreError>(())
            })
            .unwrap();
    }
    assert_eq!(*newest.borrow(), 2);
    let changes = store.read(|tx| tx.changes_since(1)).unwrap().unwrap();
    let seen: Vec<_> = changes.iter().map(|c| (c.revision, c.kind, c.id.as_str())).collect();
    assert_eq!(seen, [(2, Kind::Agent, "a"), (2, Kind::Router, "r2")]);
    assert_eq!(store.read(|tx| tx.changes_since(9)).unwrap(), None, "a follower from another database");
}

#[test]
fn a_write_that_a_constraint_refused_is_tried_again() {
    let scratch = Scratch::new("retry");
    let store = Store::open(&scratch.db()).unwrap();
    store.write(|tx| tx.set_setting("taken", "")).unwrap();
    let mut choices = ["taken", "free"].into_iter();
    let inserted: Result<_, StoreError> = store.write(|tx| {
        let name = choices.next().unwrap();
        tx.execute("INSERT INTO settings (name, value) VALUES (?1, '')", &values![name])?;
        Ok(name)
    });
    assert_eq!(inserted.unwrap(), "free");
}

#[test]
fn a_database_of_a_later_version_is_refused() {
    let scratch = Scratch::new("newer");
    drop(Store::open(&scratch.db()).unwrap());
    let conn = rusqlite::Connection::open(scratch.db()).unwrap();
    conn.execute("UPDATE schema_version SET version = 99", []).unwrap();
    let error = Store::open(&scratch.db()).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
}
