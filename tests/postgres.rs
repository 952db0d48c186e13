//! The executable on PostgreSQL: what the server's own tests, which start no process, cannot see.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

#[path = "../crates/server/tests/support/postgres.rs"]
mod postgres;

use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn the_server_starts_on_postgresql() {
    let cluster = postgres::Cluster::start();
    let directory = std::env::temp_dir().join(format!("evergate-starts-on-postgresql-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let conf = format!(
        "[DEFAULT]\nstate_path = {}\nbind_host = 127.0.0.1\nbind_port = 0\n[database]\nconnection = {}\n",
        directory.display(),
        cluster.make_database()
    );
    let (file, address, log) = (directory.join("server.conf"), directory.join("address"), directory.join("log"));
    std::fs::write(&file, conf).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["server", "--config-file"])
        .arg(file)
        .arg("--address-file")
        .arg(&address)
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !address.exists() && server.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let listens = address.exists();
    let _ = server.kill();
    let _ = server.wait();
    let said = std::fs::read_to_string(log).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    assert!(listens, "the server did not start: {said}");
}
