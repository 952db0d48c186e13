//! A server of its own on loopback, and callers of it as an admin and as hosts.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use evergate_hostd::shell::http::Door;
use serde_json::{Value, json};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Looks at whether the server is up are so far apart: what start-up time is exact to.
const LOOK: Duration = Duration::from_millis(1);
/// Ports that one request makes at most.
pub(crate) const BULK: usize = 250;

/// A running server; it ends with the value.
pub(crate) struct Server {
    process: Child,
    directory: PathBuf,
    address: String,
    token: String,
    /// From the start of the process until it listened, with an empty database.
    pub(crate) started_in: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// Starts one without quotas, on a database of PostgreSQL or on SQLite.
    pub(crate) fn start(database: Option<&str>) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("evergate-api-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let quotas: String =
            ["network", "subnet", "port", "router"].map(|kind| format!("quota_{kind} = -1\n")).concat();
        let database = database.map(|url| format!("[database]\nconnection = {url}\n")).unwrap_or_default();
        // Its hosts report once.
        let conf = format!(
            "[DEFAULT]\nstate_path = {}\nbind_host = 127.0.0.1\nbind_port = 0\nagent_down_time = 86400\n[quotas]\n{quotas}{database}",
            directory.display()
        );
        std::fs::write(directory.join("server.conf"), conf)?;
        let start = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["server", "--config-file"])
            .arg(directory.join("server.conf"))
            .arg("--address-file")
            .arg(directory.join("address"))
            .stderr(std::fs::File::create(directory.join("log"))?)
            .stdout(std::fs::File::create(directory.join("out"))?)
            .spawn()
            .context("failed to start the server")?;
        let (address, token) = (String::new(), String::new());
        let mut server = Self { process, directory, address, token, started_in: Duration::ZERO };
        while server.address.is_empty() {
            let log = || std::fs::read_to_string(server.directory.join("log")).unwrap_or_default();
            let ended = server.process.try_wait()?.is_some();
            ensure!(!ended && start.elapsed() < PATIENCE, "the server did not start: {}", log());
            thread::sleep(LOOK);
            let address = std::fs::read_to_string(server.directory.join("address")).unwrap_or_default();
            server.address = address.trim().to_owned();
        }
        server.started_in = start.elapsed();
        server.token = server.log_in()?;
        Ok(server)
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> Result<Client> {
        let stream = TcpStream::connect(&self.address).context("failed to connect to the server")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (address, directory) = (self.address.clone(), self.directory.clone());
        Ok(Client { stream: BufReader::new(stream), token: self.token.clone(), address, directory })
    }

    /// Proportional set size.
    pub(crate) fn pss_mib(&self) -> Result<f64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }

    fn log_in(&self) -> Result<String> {
        let clouds = std::fs::read_to_string(self.directory.join("clouds.yaml"))?;
        let password = clouds.split("password:").nth(1).and_then(|rest| rest.lines().next()).context("no password")?;
        let domain = json!({"id": "default"});
        let user = json!({"name": "admin", "domain": domain, "password": password.trim()});
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }});
        let answer = self.client()?.exchange("POST", "/identity/v3/auth/tokens", "", &auth)?;
        answer.header("x-subject-token").map(str::to_owned).context("no token in the answer to the login")
    }
}

/// A caller with one connection, which is kept.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    token: String,
    address: String,
    directory: PathBuf,
}

struct Answer {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&String| line.split_once(':').is_some_and(|(this, _)| this.eq_ignore_ascii_case(name));
        Some(self.head.iter().find(named)?.split_once(':')?.1.trim())
    }
}

impl Client {
    /// Calls as an admin; a null body is none. What is no success is an error.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let token = format!("X-Auth-Token: {}\r\n", self.token);
        let answer = self.exchange(method, path, &token, body)?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Makes an object; answers its id.
    pub(crate) fn make(&mut self, kind: &str, attributes: &Value) -> Result<String> {
        let answer = self.call("POST", &format!("/v2.0/{kind}s"), &json!({kind: attributes}))?;
        Ok(answer[kind]["id"].as_str().context("no id")?.to_owned())
    }

    /// Makes ports p0, p1 ... on a network, many at once.
    pub(crate) fn make_ports(&mut self, network: &str, count: usize) -> Result<()> {
        for first in (0..count).step_by(BULK) {
            let names = first..count.min(first + BULK);
            let ports: Vec<_> = names.map(|n| json!({"network_id": network, "name": format!("p{n}")})).collect();
            self.call("POST", "/v2.0/ports", &json!({"ports": ports}))?;
        }
        Ok(())
    }

    /// Joins and reports as the daemon of a network host does.
    pub(crate) fn report(&mut self, host: usize) -> Result<()> {
        let bridge = json!({"tunneling_ip": format!("192.0.2.{}", host + 1), "tunnel_types": ["vxlan"]});
        let report = json!({
            "host": format!("net{host}"), "incarnation": 1, "sequence": 1, "applied_revision": null,
            "ha_states": {}, "ports_up": [], "floating_ips_active": [], "warnings": [],
            "agents": [
                {"kind": "l3", "availability_zone": null, "configurations": {"agent_mode": "legacy"}},
                {"kind": "linux_bridge", "availability_zone": null, "configurations": bridge},
            ],
        });
        let (server, name) = (format!("https://{}", self.address), format!("net{host}"));
        let token = super::members::token(&self.directory.join("server.conf"))?;
        let member = super::members::join(&server, &name, &token, &self.directory)?;
        Door::new(&server, &name, member.tls()).post("report", report.to_string().as_bytes())?;
        Ok(())
    }

    fn exchange(&mut self, method: &str, path: &str, token: &str, body: &Value) -> Result<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{token}\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "{method} {path}: the server closed the connection");
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let mut answer = Answer { head, body: Vec::new() };
        let length = answer.header("content-length").map_or(Ok(0), str::parse)?;
        answer.body.resize(length, 0);
        self.stream.read_exact(&mut answer.body)?;
        let success =
            answer.head.first().is_some_and(|line| line.split(' ').nth(1).is_some_and(|s| s.starts_with('2')));
        ensure!(success, "{method} {path}: {:?} {}", answer.head.first(), String::from_utf8_lossy(&answer.body));
        Ok(answer)
    }
}

/// Whether this is root, who can start a PostgreSQL as its own user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0)
}
