//! The executable beside PostgreSQL: what the server's own tests, which start no process, cannot see. It waits
//! for a database that is not there yet, and a log that cannot be written stops nothing.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

#[path = "../crates/server/tests/support/postgres.rs"]
mod postgres;

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use support::{Dir, Server};

/// A server and its files; both go away with the value.
struct Running {
    server: Server,
    dir: Dir,
}

impl Running {
    fn start(name: &str, database: &str, log: Option<File>) -> Self {
        let dir = Dir::new(name);
        let conf = format!("state_path = {}\n[database]\nconnection = {database}\n", dir.0.display());
        let log = log.unwrap_or_else(|| File::create(dir.0.join("server.log")).unwrap());
        Self { server: Server::start_logging_to(log, &dir.0, "server", &conf), dir }
    }

    /// Asks without a token; answers the status line.
    fn ask(&mut self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.server.address()).unwrap();
        write!(connection, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

#[test]
fn the_server_waits_for_postgresql_and_starts() {
    let mut cluster = postgres::Cluster::start();
    let database = cluster.make_database();
    cluster.stop();
    let mut running = Running::start("waits-for-postgresql", &database, None);
    let log = running.dir.0.join("server.log");
    running.server.wait_for("the reason why it waits", || {
        let told = std::fs::read_to_string(&log).ok()?;
        (told.contains("waiting for the database") && told.contains("it does not answer")).then_some(())
    });
    assert!(!running.dir.0.join("server.address").exists());
    cluster.start_again();
    assert_eq!(running.ask("GET /"), "HTTP/1.1 200 OK");
    let password = database.split([':', '@']).nth(2).unwrap();
    assert!(!running.server.log().contains(password), "no secret in the log");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let cluster = postgres::Cluster::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut running = Running::start("full-log", &cluster.make_database(), Some(full));
    for _ in 0..3 {
        // Hosts speak TLS, and who does not is refused.
        assert_eq!(running.ask("POST /evergate/v1/hosts/h1/report"), "HTTP/1.1 426 Upgrade Required");
        assert_eq!(running.ask("GET /v2.0/networks"), "HTTP/1.1 401 Unauthorized");
        assert_eq!(running.ask("GET /"), "HTTP/1.1 200 OK");
    }
    assert!(running.server.process.0.try_wait().unwrap().is_none());
}
