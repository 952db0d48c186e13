//! A thousand hosts on one server: how soon a write reaches those it concerns, and what it costs the API when
//! all of them come back at once.
//!
//! This program plays the hosts: each joins and reports as a host does and follows its stream, over a connection of
//! its own, with TLS. The server is the real one, on SQLite. `EVERGATE_BENCH_HOSTS` changes the number.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use evergate_hostd::membership::Member;
use evergate_hostd::shell::http::Door;
use percentile::percentile;
use serde_json::{Value, json};
use ureq::tls::TlsConfig;

#[path = "support/members.rs"]
mod members;
#[path = "support/percentile.rs"]
mod percentile;

/// Writes of each kind.
const WRITES: usize = 100;
/// Hosts that take routers.
const ROUTER_HOSTS: usize = 3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let hosts: usize = std::env::var("EVERGATE_BENCH_HOSTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let server = Server::start()?;
    let start = Instant::now();
    let join_token = members::token(&server.directory.join("server.conf"))?;
    for host in 0..hosts {
        let name = format!("host{host}");
        let member = members::join(&server.url(), &name, &join_token, &server.directory)?;
        server.members.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.insert(host, member);
    }
    println!("{hosts} hosts joined in {:.1} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    for host in 0..hosts {
        server.report(host)?;
    }
    println!("{hosts} hosts reported for the first time in {:.1} s", start.elapsed().as_secs_f64());
    // A network of every host, as a large project has it, and one of each host's own.
    let shared = server.make("network", json!({"name": "shared"}))?;
    server.make("subnet", json!({"network_id": shared, "ip_version": 4, "cidr": "10.0.0.0/16"}))?;
    let own = server.make("network", json!({"name": "own"}))?;
    server.make("subnet", json!({"network_id": own, "ip_version": 4, "cidr": "10.1.0.0/16"}))?;
    let (said, hear) = channel();
    let mut streams = follow_all(&server, hosts, &said)?;
    gather(&hear, hosts, "snapshot")?;
    println!("memory of the server with {hosts} hosts: {} MiB", server.memory()? / 1024);

    let mut one = Vec::new();
    for n in 0..WRITES {
        let start = Instant::now();
        server.make("port", json!({"network_id": own, "binding:host_id": "host7", "name": format!("one{n}")}))?;
        gather(&hear, 1, "change")?;
        one.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    println!("a write that concerns one of {hosts} hosts is there after (ms) {}", figures(&mut one));

    let mut three = Vec::new();
    for n in 0..WRITES {
        let start = Instant::now();
        server.make("router", json!({"ha": true, "name": format!("r{n}")}))?;
        gather(&hear, ROUTER_HOSTS, "change")?;
        three.push(start.elapsed().as_secs_f64() * 1000.0);
        // Whatever else comes of it, until nothing does.
        while hear.recv_timeout(Duration::from_millis(100)).is_ok() {}
    }
    println!("an HA router is known to its {ROUTER_HOSTS} of {hosts} hosts after (ms) {}", figures(&mut three));

    for host in 0..hosts {
        server.make("port", json!({"network_id": shared, "binding:host_id": format!("host{host}")}))?;
    }
    thread::sleep(Duration::from_secs(5));
    while hear.try_recv().is_ok() {}
    let mut all = Vec::new();
    for n in 0..WRITES {
        let start = Instant::now();
        server.make("port", json!({"network_id": shared, "binding:host_id": "host7", "name": format!("all{n}")}))?;
        gather(&hear, hosts, "change")?;
        all.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    println!("a write that concerns all {hosts} hosts is everywhere after (ms) {}", figures(&mut all));

    let (mut before, mut during) = (server.probe_for(Duration::from_secs(2))?, Vec::new());
    println!("GET of a network, all quiet (ms) {}", figures(&mut before));
    for stream in streams.drain(..) {
        stream.shutdown();
    }
    thread::sleep(Duration::from_millis(500));
    while hear.try_recv().is_ok() {}
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let took = thread::scope(|scope| -> Result<f64> {
        let probe = scope.spawn(|| -> Result<Vec<f64>> {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                times.push(server.probe()?);
            }
            Ok(times)
        });
        streams = follow_all(&server, hosts, &said)?;
        gather(&hear, hosts, "snapshot")?;
        let took = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        during = probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))??;
        Ok(took)
    })?;
    println!("all {hosts} hosts have a snapshot again {took:.1} s after they came back at once");
    println!("GET of a network meanwhile (ms) {}", figures(&mut during));
    println!("memory of the server: {} MiB", server.memory()? / 1024);
    Ok(())
}

/// Waits until so many hosts were told something of a kind.
fn gather(hear: &Receiver<(usize, &'static str)>, count: usize, kind: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = std::collections::BTreeSet::new();
    while told.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let (host, what) =
            hear.recv_timeout(left).with_context(|| format!("{} of {count} hosts got a {kind}", told.len()))?;
        if what == kind {
            told.insert(host);
        }
    }
    Ok(())
}

fn follow_all(server: &Server, hosts: usize, said: &Sender<(usize, &'static str)>) -> Result<Vec<Door>> {
    let streams = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let connectors: Vec<_> = (0..8)
            .map(|first| {
                let (streams, said) = (&streams, said.clone());
                scope.spawn(move || -> Result<()> {
                    for host in (first..hosts).step_by(8) {
                        let stream = server.follow(host, said.clone())?;
                        streams.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.push(stream);
                    }
                    Ok(())
                })
            })
            .collect();
        for connector in connectors {
            connector.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    streams.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

/// Middle, last percent and worst.
fn figures(times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    let [middle, most, worst] = [0.5, 0.99, 1.0].map(|share| percentile(times, share));
    format!("p50 {middle:.1}, p99 {most:.1}, worst {worst:.1}")
}

/// A server of its own, and a client of it.
struct Server {
    process: Child,
    directory: PathBuf,
    address: String,
    token: String,
    members: Mutex<BTreeMap<usize, Member>>,
    connection: Mutex<Option<BufReader<TcpStream>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    fn start() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("evergate-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let state = directory.display();
        let database = std::env::var("EVERGATE_BENCH_DATABASE").map(|url| format!("[database]\nconnection = {url}\n"));
        let conf = format!(
            "[DEFAULT]\nstate_path = {state}\nbind_host = 127.0.0.1\nbind_port = 0\nagent_down_time = 86400\n[quotas]\nquota_port = -1\nquota_router = -1\n{}",
            database.unwrap_or_default()
        );
        std::fs::write(directory.join("server.conf"), conf)?;
        let process = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["server", "--config-file"])
            .arg(directory.join("server.conf"))
            .arg("--address-file")
            .arg(directory.join("address"))
            .stderr(std::fs::File::create(directory.join("log"))?)
            .spawn()?;
        let mut server = Self {
            process,
            address: String::new(),
            token: String::new(),
            members: Mutex::default(),
            connection: Mutex::default(),
            directory,
        };
        let deadline = Instant::now() + PATIENCE;
        while server.address.is_empty() {
            ensure!(Instant::now() < deadline, "the server did not start");
            thread::sleep(Duration::from_millis(20));
            server.address = std::fs::read_to_string(server.directory.join("address")).unwrap_or_default();
            server.address = server.address.trim().to_owned();
        }
        server.token = server.log_in()?;
        Ok(server)
    }

    fn log_in(&self) -> Result<String> {
        let clouds = std::fs::read_to_string(self.directory.join("clouds.yaml"))?;
        let password = clouds.split("password:").nth(1).and_then(|rest| rest.lines().next()).context("a password")?;
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "admin", "domain": {"name": "Default"}, "password": password.trim(),
            }}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }});
        let (_, head, _) = self.call("POST", "/identity/v3/auth/tokens", &[], &auth.to_string())?;
        let line = head.iter().find(|line| line.to_ascii_lowercase().starts_with("x-subject-token:"));
        Ok(line.context("no token")?.split_once(':').context("no token")?.1.trim().to_owned())
    }

    /// One request on the kept connection.
    fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(u16, Vec<String>, Vec<u8>)> {
        let mut kept = self.connection.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let mut reader = match kept.take() {
            Some(reader) => reader,
            None => {
                let stream = TcpStream::connect(&self.address)?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        request.push_str("\r\n");
        request.push_str(body);
        reader.get_mut().write_all(request.as_bytes())?;
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "the server closed the connection");
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let status = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status")?;
        let length =
            head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut answer = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut answer)?;
        *kept = Some(reader);
        Ok((status, head, answer))
    }

    fn make(&self, kind: &str, body: Value) -> Result<String> {
        let headers = [("X-Auth-Token", self.token.as_str())];
        let (status, _, answer) =
            self.call("POST", &format!("/v2.0/{kind}s"), &headers, &json!({kind: body}).to_string())?;
        ensure!(status == 201, "{status}: {}", String::from_utf8_lossy(&answer));
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer[kind]["id"].as_str().context("no id")?.to_owned())
    }

    fn probe(&self) -> Result<f64> {
        let start = Instant::now();
        let headers = [("X-Auth-Token", self.token.as_str())];
        let (status, _, _) = self.call("GET", "/v2.0/networks?name=own", &headers, "")?;
        ensure!(status == 200, "{status}");
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }

    fn probe_for(&self, period: Duration) -> Result<Vec<f64>> {
        let end = Instant::now() + period;
        let mut times = Vec::new();
        while Instant::now() < end {
            times.push(self.probe()?);
        }
        Ok(times)
    }

    fn report(&self, host: usize) -> Result<()> {
        let mut report = json!({
            "host": format!("host{host}"), "incarnation": 1, "sequence": 1, "applied_revision": null,
            "ha_states": {}, "ports_up": [], "floating_ips_active": [], "warnings": [],
            "agents": [{"kind": "linux_bridge", "availability_zone": null, "configurations": {
                "tunneling_ip": format!("10.200.{}.{}", host / 250, host % 250 + 1), "tunnel_types": ["vxlan"],
            }}],
        });
        if host < ROUTER_HOSTS {
            let l3 = json!({"kind": "l3", "availability_zone": null, "configurations": {"agent_mode": "legacy"}});
            report["agents"].as_array_mut().context("agents")?.push(l3);
        }
        self.door(host, Door::new)?.post("report", report.to_string().as_bytes())?;
        Ok(())
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn door(&self, host: usize, make: impl FnOnce(&str, &str, TlsConfig) -> Door) -> Result<Door> {
        let members = self.members.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let member = members.get(&host).context("the host has joined")?;
        Ok(make(&self.url(), &format!("host{host}"), member.tls()))
    }

    /// Opens a host's stream; a thread says what comes.
    fn follow(&self, host: usize, said: Sender<(usize, &'static str)>) -> Result<Door> {
        let door = self.door(host, Door::for_stream)?;
        let lines = BufReader::new(door.get("stream")?.into_body().into_reader()).lines();
        thread::Builder::new().stack_size(256 << 10).spawn(move || {
            for line in lines.map_while(Result::ok) {
                let kind = match line.get(..18) {
                    Some(start) if start.starts_with("{\"type\":\"snapshot\"") => "snapshot",
                    Some(start) if start.starts_with("{\"type\":\"change\"") => "change",
                    _ => continue,
                };
                if said.send((host, kind)).is_err() {
                    return;
                }
            }
        })?;
        Ok(door)
    }

    /// Resident memory, in KiB.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")) else { bail!("no memory") };
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}
