//! The executable beside PostgreSQL: what the server's own tests, which start no process, cannot see. It waits
//! for a database that is not there yet, and a log that cannot be written stops nothing.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

#[path = "../crates/server/tests/support/postgres.rs"]
mod postgres;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A server and its files; both go away with the value.
struct Running {
    directory: PathBuf,
    server: Child,
}

impl Running {
    fn start(name: &str, database: &str, log: Option<File>) -> Self {
        let directory = std::env::temp_dir().join(format!("evergate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let conf = format!(
            "[DEFAULT]\nstate_path = {}\nbind_host = 127.0.0.1\nbind_port = 0\n[database]\nconnection = {database}\n",
            directory.display(),
        );
        let file = directory.join("server.conf");
        std::fs::write(&file, conf).unwrap();
        let log = log.unwrap_or_else(|| File::create(directory.join("log")).unwrap());
        let server = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["server", "--config-file"])
            .arg(file)
            .arg("--address-file")
            .arg(directory.join("address"))
            .stderr(log)
            .spawn()
            .unwrap();
        Self { directory, server }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Waits for something, as long as the server lives.
    fn wait_for(&mut self, what: &str, mut look: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !look(self) {
            assert!(self.server.try_wait().unwrap().is_none(), "the server ended: {}", self.log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_until_it_listens(&mut self) {
        self.wait_for("the address", |running| running.directory.join("address").exists());
    }

    /// Asks without a token; answers the status line.
    fn ask(&self, request: &str) -> String {
        let address = std::fs::read_to_string(self.directory.join("address")).unwrap();
        let mut connection = TcpStream::connect(address.trim()).unwrap();
        write!(connection, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn the_server_waits_for_postgresql_and_starts() {
    let mut cluster = postgres::Cluster::start();
    let database = cluster.make_database();
    cluster.stop();
    let mut running = Running::start("waits-for-postgresql", &database, None);
    running.wait_for("the reason why it waits", |running| {
        running.log().contains("waiting for the database") && running.log().contains("it does not answer")
    });
    assert!(!running.directory.join("address").exists());
    cluster.start_again();
    running.wait_until_it_listens();
    assert_eq!(running.ask("GET /"), "HTTP/1.1 200 OK");
    let password = database.split([':', '@']).nth(2).unwrap();
    assert!(!running.log().contains(password), "no secret in the log");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let cluster = postgres::Cluster::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut running = Running::start("full-log", &cluster.make_database(), Some(full));
    running.wait_until_it_listens();
    for _ in 0..3 {
        // Hosts speak TLS, and who does not is refused.
        assert_eq!(running.ask("POST /evergate/v1/hosts/h1/report"), "HTTP/1.1 426 Upgrade Required");
        assert_eq!(running.ask("GET /v2.0/networks"), "HTTP/1.1 401 Unauthorized");
        assert_eq!(running.ask("GET /"), "HTTP/1.1 200 OK");
    }
    assert!(running.server.try_wait().unwrap().is_none());
}
