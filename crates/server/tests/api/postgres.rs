//! The same API on PostgreSQL: every test of this program once more, beside a cluster of its own.

use std::process::Command;

use crate::harness::POSTGRES;
use crate::support::Cluster;

#[test]
fn everything_behaves_the_same_on_postgresql() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let cluster = Cluster::start();
    let url = cluster.url("");
    let output = Command::new(std::env::current_exe().unwrap())
        // Not this one again; nor what is about SQLite's file, or takes long (it can be run by hand).
        .args(["--skip", "postgres::", "--skip", "durability::", "--skip", "speed::", "--skip", "fuzz::"])
        .env(POSTGRES, url.trim_end_matches('/'))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
