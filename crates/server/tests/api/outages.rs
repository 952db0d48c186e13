//! What a SQLite file can suffer, for real: its disk is full, another program locks it, it is damaged, moved
//! away, replaced, or on a read-only file system. The API says what it is, reads go on where they can, what was
//! acknowledged stays, what was refused is not there, and when the trouble is over, so is the outage.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use evergate_config::Database;
use evergate_server::options::{Limits, Options};
use evergate_server::store::{Outage, Store};
use serde_json::json;

use crate::harness::{Answer, PROJECT, Server, admin, member, pick};

/// Tells a child of a test that it is one, and where its file system is to be.
const STAGE: &str = "EVERGATE_TEST_STAGE";

/// Runs a test once more as a child with a mount namespace of its own and a small file system in it, which
/// ends with it. Answers the directory in the child, and nothing in the parent, when all is done.
fn on_a_small_disk(test: &str) -> Option<PathBuf> {
    if let Ok(stage) = std::env::var(STAGE) {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "evergate-test", &stage]).status();
        assert!(mounted.unwrap().success());
        return Some(stage.into());
    }
    let stage = std::env::temp_dir().join(format!("evergate-outage-{}-{}", test.replace(':', "-"), std::process::id()));
    std::fs::create_dir_all(&stage).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(STAGE, &stage)
        .output()
        .unwrap();
    std::fs::remove_dir(stage).unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    None
}

/// A directory that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evergate-outage-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server beside a file, and what became of the networks that it was asked for.
struct Witness {
    server: Server,
    file: PathBuf,
    acknowledged: Mutex<BTreeSet<String>>,
    refused: Mutex<BTreeSet<String>>,
}

impl Witness {
    fn new(directory: &Path) -> Self {
        let file = directory.join("evergate.sqlite");
        let limits = Limits { network: -1, ..Limits::default() };
        let server = Server::on(&Database::Sqlite(file.clone()), Options { limits, ..Options::default() });
        Self { server, file, acknowledged: Mutex::default(), refused: Mutex::default() }
    }

    fn write(&self, name: &str) -> Answer {
        let body = json!({"network": {"name": name, "description": "a".repeat(200)}});
        let answer = self.server.post(&admin(), "/v2.0/networks", body);
        let to = if answer.status == 201 { &self.acknowledged } else { &self.refused };
        to.lock().unwrap().insert(name.to_owned());
        answer
    }

    /// Writes until it is refused; answers how.
    fn write_until_refused(&self, name: &str) -> Answer {
        let answers = (0..5000).map(|n| self.write(&format!("{name}-{n}")));
        answers.into_iter().find(|answer| answer.status != 201).expect("the trouble shows")
    }

    fn names(&self) -> BTreeSet<String> {
        pick(&self.server.list(&admin(), "networks", ""), "name").into_iter().collect()
    }

    /// Everything that was acknowledged is there, and nothing that was refused.
    fn check(&self) {
        assert_eq!(self.names(), *self.acknowledged.lock().unwrap());
        assert!(!self.refused.lock().unwrap().is_empty());
        let direct = rusqlite::Connection::open(&self.file).unwrap();
        let found: String = direct.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(found, "ok");
    }
}

#[track_caller]
fn refused(answer: &Answer, why: &str) {
    assert_eq!((answer.status, answer.error()), (503, "HTTPServiceUnavailable"), "{answer:?}");
    assert_eq!(answer.message(), format!("The database cannot be used: {why}. Try again soon."));
}

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    let Some(disk) = on_a_small_disk("outages::a_full_disk_stops_writes_and_nothing_else") else { return };
    let witness = Witness::new(&disk);
    witness.server.hosts();
    assert_eq!(witness.write("before").status, 201);

    let filler = disk.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 1024]).is_ok() {}
    // What the log has room for is still written.
    refused(&witness.write_until_refused("early"), "its disk is full");
    refused(&witness.write("later"), "its disk is full");
    thread::scope(|scope| {
        for writer in 0..4 {
            let witness = &witness;
            scope.spawn(move || {
                for n in 0..10 {
                    let answer = witness.write(&format!("crowd-{writer}-{n}"));
                    assert!([201, 503].contains(&answer.status), "{answer:?}");
                }
            });
        }
        // More than there are connections that were opened while there was room.
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert!(witness.names().contains("before"));
                    assert!(witness.server.told("h1").revision > 0);
                }
            });
        }
    });
    // A project that was never here has no default security group yet, and a list all the same.
    let groups = witness.server.get(&member("newcomer"), "/v2.0/security-groups");
    assert_eq!(groups.status, 200, "{groups:?}");

    drop(file);
    std::fs::remove_file(filler).unwrap();
    assert_eq!(witness.write("after").status, 201);
    witness.check();
}

#[test]
fn another_programs_lock_stops_writes_and_nothing_else() {
    let scratch = Scratch::new("locked");
    let witness = Witness::new(&scratch.0);
    assert_eq!(witness.write("before").status, 201);
    let other = rusqlite::Connection::open(&witness.file).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    thread::scope(|scope| {
        // All wait for the lock together, not one after the other.
        let writers: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn({
                    let witness = &witness;
                    move || witness.write(&format!("locked-{n}"))
                })
            })
            .collect();
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            assert_eq!(witness.names(), BTreeSet::from(["before".to_owned()]));
        }
        for writer in writers {
            refused(&writer.join().unwrap(), "another program keeps it locked");
        }
    });
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(witness.write("after").status, 201);
    witness.check();
}

#[test]
fn a_damaged_file_is_told_of_and_can_be_mended_while_the_server_runs() {
    let scratch = Scratch::new("damaged");
    let witness = Witness::new(&scratch.0);
    (0..40).for_each(|n| assert_eq!(witness.write(&format!("before-{n}")).status, 201));
    let other = rusqlite::Connection::open(&witness.file).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(other);
    let good = std::fs::read(&witness.file).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&witness.file).unwrap();
    file.write_all_at(&vec![0xff; good.len()], 0).unwrap();

    // Pages in memory are still good.
    refused(&witness.write_until_refused("early"), "it is damaged");
    let list = witness.server.get(&admin(), "/v2.0/networks");
    refused(&list, "it is damaged");
    file.write_all_at(&good, 0).unwrap();
    assert_eq!(witness.write("after").status, 201);
    witness.check();
}

#[test]
fn a_file_that_is_moved_away_or_replaced_is_not_written_to() {
    let scratch = Scratch::new("moved");
    let witness = Witness::new(&scratch.0);
    assert_eq!(witness.write("before").status, 201);
    let away = scratch.0.join("away");
    std::fs::rename(&witness.file, &away).unwrap();
    for answer in [witness.write("gone"), witness.server.get(&admin(), "/v2.0/networks")] {
        refused(&answer, "its file cannot be opened");
    }
    assert!(!witness.file.exists(), "none is made in its place");
    std::fs::copy(&away, &witness.file).unwrap();
    for answer in [witness.write("replaced"), witness.server.get(&admin(), "/v2.0/networks")] {
        refused(&answer, "its file was replaced by another one; the server must be started again");
    }
    std::fs::rename(&away, &witness.file).unwrap();
    assert_eq!(witness.write("after").status, 201);
    witness.check();
}

#[test]
fn a_file_on_a_read_only_file_system_is_told_of() {
    let Some(disk) = on_a_small_disk("outages::a_file_on_a_read_only_file_system_is_told_of") else { return };
    let file = disk.join("evergate.sqlite");
    drop(Store::open(&file).unwrap());
    let remount = |mode: &str| {
        let mounted = Command::new("mount").args(["-o", &format!("remount,{mode}")]).arg(&disk).status();
        assert!(mounted.unwrap().success());
    };
    remount("ro");
    assert_eq!(Store::open(&file).unwrap_err().outage(), Some(Outage::ReadOnly));
    remount("rw");
    let witness = Witness::new(&disk);
    let path = format!("/v2.0/networks?project_id={PROJECT}");
    assert_eq!((witness.write("after").status, witness.server.get(&admin(), &path).status), (201, 200));
}
