//! A server that is killed in the middle of writes keeps everything that it acknowledged.
//!
//! The test runs itself once more as a child that writes and says so line by line, and kills it without
//! warning in the middle of that.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use evergate_server::objects::network::{Network, NewNetwork, Segment};
use evergate_server::store::{Store, StoreError};

/// Tells the child where the database is.
const DATABASE: &str = "EVERGATE_TEST_DURABILITY_DATABASE";
/// Acknowledged writes after which the child is killed.
const WRITES: usize = 40;

fn network(name: &str) -> NewNetwork {
    NewNetwork {
        project_id: "p".into(),
        name: name.into(),
        description: String::new(),
        admin_state_up: true,
        shared: false,
        external: false,
        is_default: false,
        port_security_enabled: true,
        segment: Segment::Local,
        mtu: 1500,
    }
}

fn write_for_ever(database: &str) {
    let store = Store::open(&PathBuf::from(database)).unwrap();
    for n in 0.. {
        let (first, second) = (format!("{n}-first"), format!("{n}-second"));
        let id = store.write(|tx| {
            let id = Network::insert(tx, &network(&first))?;
            Network::insert(tx, &network(&second))?;
            Ok::<_, StoreError>(id)
        });
        // Acknowledged: the parent holds the store to it.
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {}", id.unwrap()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_server_keeps_what_it_acknowledged_and_nothing_by_halves() {
    if let Ok(database) = std::env::var(DATABASE) {
        write_for_ever(&database);
    }
    let dir = std::env::temp_dir().join(format!("evergate-durability-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let database = dir.join("evergate.sqlite");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "durability::a_killed_server_keeps_what_it_acknowledged_and_nothing_by_halves",
            "--nocapture",
        ])
        .env(DATABASE, &database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let acknowledged = lines.filter_map(|line| line.strip_prefix("acknowledged ").map(str::to_owned));
    let acknowledged: Vec<String> = acknowledged.take(WRITES).collect();
    // SIGKILL: nothing is flushed, closed or finished.
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(acknowledged.len(), WRITES);
    let store = Store::open(&database).unwrap();
    let found = store.read(|tx| Network::many(tx, &acknowledged)).unwrap();
    assert_eq!(found.len(), WRITES);
    let odd = "SELECT count(*) % 2 FROM networks";
    assert_eq!(store.read(|tx| tx.count(odd, &[])).unwrap(), 0, "both networks of a write, or neither");
    drop(store);
    std::fs::remove_dir_all(&dir).unwrap();
}
