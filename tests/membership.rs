//! Becoming one of a cluster, and what an operator reads when it fails: real servers, `evergate cluster`, `evergate
//! join`, and requests as a host's daemon makes them. Then the API over TLS, with the stock client.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use evergate_hostd::membership::{self, Member};
use evergate_hostd::shell::http::Door;
use evergate_model::join::SERVER_NAME;
use serde_json::{Value, json};
use support::{Dir, Server, wait_for};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// A running server of a cluster of its own, and the files of hosts; all go away with the value.
struct Cluster {
    server: Server,
    address: String,
    dir: Dir,
}

impl Cluster {
    fn start(more: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let dir = Dir::new(&format!("membership{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let state = dir.0.join("server");
        let mut server = Server::start(&dir.0, "neutron", &format!("state_path = {}\n{more}", state.display()));
        Self { address: server.address(), server, dir }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn log(&self) -> String {
        self.server.log()
    }

    fn cluster(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_evergate"))
            .arg("cluster")
            .args(line.split(' '))
            .arg("--config-file")
            .arg(self.server.conf())
            .output()
            .unwrap()
    }

    fn token(&self, options: &str) -> String {
        let made = self.cluster(&format!("token create{options}"));
        assert!(made.status.success(), "{}", told(&made));
        String::from_utf8(made.stdout).unwrap()
    }

    fn state_of(&self, host: &str) -> PathBuf {
        self.dir.0.join(host)
    }

    /// Runs `evergate join` as a host of that name; answers what it said.
    fn join(&self, host: &str, server: &str, token: &str) -> Result<String, String> {
        let conf = self.dir.0.join(format!("{host}.conf"));
        let text = format!(
            "[DEFAULT]\nhost = {host}\nstate_path = {}\n[evergate]\nserver_url = {server}\n",
            self.state_of(host).display()
        );
        fs::write(&conf, text).unwrap();
        let mut join = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["join", "--token-file", "-", "--config-file"])
            .arg(conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        join.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        let output = join.wait_with_output().unwrap();
        if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(told(&output)) }
    }

    /// A host's way to the server, with its certificate.
    fn door(&self, host: &str) -> Door {
        let member = Member::load(&self.state_of(host)).unwrap().unwrap();
        Door::new(&self.url(), host, member.tls())
    }
}

/// Leads to the server whatever it is called.
#[derive(Debug)]
struct Towards(String);

impl Resolver for Towards {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(&self.0.parse().unwrap(), config, timeout)
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(door: &Door, host: &str, sequence: u64) -> Result<String, String> {
    let report = json!({
        "host": host, "incarnation": 1, "sequence": sequence, "applied_revision": null, "ha_states": {},
        "ports_up": [], "floating_ips_active": [], "warnings": [],
        "agents": [{"kind": "l3", "availability_zone": "nova", "configurations": {"agent_mode": "legacy"}}],
    });
    door.post("report", report.to_string().as_bytes()).map_err(|failure| failure.to_string())
}

#[test]
fn hosts_join_renew_are_revoked_and_replaced() {
    let cluster = Cluster::start("");
    let url = cluster.url();
    let token = cluster.token("");
    let joined = cluster.join("h1", &url, &token).unwrap();
    assert!(joined.contains("host 'h1' joined"), "{joined}");
    cluster.join("h2", &url, &token).unwrap();
    let mode = fs::metadata(cluster.state_of("h1").join(membership::FILE_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Its own, and nothing else.
    report(&cluster.door("h1"), "h1", 1).unwrap();
    assert_eq!(cluster.door("h1").get("stream").unwrap().status().as_u16(), 200);
    let posing = Door::new(&url, "h2", Member::load(&cluster.state_of("h1")).unwrap().unwrap().tls());
    let refused = report(&posing, "h2", 1).unwrap_err();
    assert!(refused.contains("403") && refused.contains("certificate of host 'h1'"), "{refused}");
    assert_eq!(posing.get("stream").unwrap().status().as_u16(), 403);
    assert!(cluster.log().contains("other_host"));
    // By the name that hosts call it, the server is for hosts alone.
    let agent = ureq::Agent::config_builder()
        .tls_config(Member::load(&cluster.state_of("h1")).unwrap().unwrap().tls())
        .http_status_as_error(false)
        .build();
    let agent = ureq::Agent::with_parts(agent, DefaultConnector::default(), Towards(url.clone()));
    let versions = agent.get(format!("https://{SERVER_NAME}/")).call().unwrap();
    assert_eq!(versions.status().as_u16(), 421);

    // The next certificate, while the one before still counts.
    let before = cluster.door("h1");
    membership::renew(&before, "h1", &cluster.state_of("h1")).unwrap();
    report(&before, "h1", 2).unwrap();
    report(&cluster.door("h1"), "h1", 3).unwrap();

    // Another machine by the name of a member needs a token of that name, and shuts the first one out.
    let taken = cluster.join("h1", &url, &token).unwrap_err();
    assert!(taken.contains("token create --host h1"), "{taken}");
    let old = cluster.door("h1");
    cluster.join("h1", &url, &cluster.token(" --host h1")).unwrap();
    let refused = report(&old, "h1", 4).unwrap_err();
    assert!(refused.contains("has taken the place"), "{refused}");
    report(&cluster.door("h1"), "h1", 5).unwrap();

    // A host that is shut out, and let in again.
    let listed = String::from_utf8(cluster.cluster("host list").stdout).unwrap();
    assert!(listed.contains("h2\tmember"), "{listed}");
    let mut stream = cluster.door("h2").get("stream").unwrap().into_body().into_reader();
    assert!(cluster.cluster("host revoke h2").status.success());
    let door = cluster.door("h2");
    let refused = wait_for("the end of h2", || report(&door, "h2", 1).err());
    assert!(refused.contains("401") && refused.contains("was revoked by an operator"), "{refused}");
    // It ends, well or not.
    let _ = stream.read_to_end(&mut Vec::new());
    let refused = cluster.join("h2", &url, &token).unwrap_err();
    assert!(refused.contains("409") && refused.contains("token create --host h2"), "{refused}");
    cluster.join("h2", &url, &cluster.token(" --host h2")).unwrap();
    report(&cluster.door("h2"), "h2", 2).unwrap();

    let log = cluster.log();
    let secret = token.trim().split('.').nth(2).unwrap();
    assert!(!log.contains(secret) && !log.contains("PRIVATE KEY"), "a secret is in the log");
    assert!(log.contains("host joined"));
}

#[test]
fn whoever_may_not_join_is_told_why_and_what_to_do() {
    let (cluster, other) = (Cluster::start(""), Cluster::start(""));
    let url = cluster.url();
    let refused = |host: &str, server: &str, token: &str| cluster.join(host, server, token).unwrap_err();
    let token = cluster.token("");

    let why = refused("h1", &url, "");
    assert!(why.contains("holds no join token: it is empty"), "{why}");
    let why = refused("h1", &url, "letmein");
    assert!(why.contains("evergate cluster token create"), "{why}");
    let why = refused("h1", &url, &token[..token.len() - 9]);
    assert!(why.contains("copy the whole line again"), "{why}");
    let parts: Vec<&str> = token.trim().split('.').collect();
    let why = refused("h1", &url, &[parts[0], parts[1], &"0".repeat(64), parts[3]].join("."));
    assert!(why.contains("403") && why.contains("not known here"), "{why}");
    // Of another cluster: the secret is not even sent.
    let why = refused("h1", &url, &other.token(""));
    assert!(why.contains("is not of the cluster that the join token is of"), "{why}");
    let why = refused("h1", &url, &cluster.token(" --host h7"));
    assert!(why.contains("for host 'h7'") && why.contains("called 'h1'"), "{why}");
    let brief = cluster.token(" --lasts 1s");
    // Each a host that never joined before: only the token's end can refuse it.
    let mut hosts = (0..).map(|n| format!("brief{n}"));
    let why = wait_for("the token's end", || cluster.join(&hosts.next()?, &url, &brief).err());
    assert!(why.contains("expired at 20") && why.contains("by the server's clock"), "{why}");

    // Something else listens there, or nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let why = refused("h1", &plain, &token);
    assert!(why.contains("does not speak TLS"), "{why}");
    let why = refused("h1", "https://127.0.0.1:1", &token);
    assert!(why.contains("failed to reach the server https://127.0.0.1:1"), "{why}");

    // A member of one cluster at a server of the other.
    cluster.join("h1", &url, &token).unwrap();
    let member = Member::load(&cluster.state_of("h1")).unwrap().unwrap();
    let why = report(&Door::new(&other.url(), "h1", member.tls()), "h1", 1).unwrap_err();
    assert!(why.contains("is not of the cluster that this host joined"), "{why}");
    // The same, if it believed that server.
    let file = cluster.state_of("h1").join(membership::FILE_NAME);
    let own = fs::read_to_string(&file).unwrap();
    let authority = fs::read_to_string(cluster.dir.0.join("server/ca.pem")).unwrap();
    let theirs = fs::read_to_string(other.dir.0.join("server/ca.pem")).unwrap();
    fs::write(&file, own.replace(authority.trim(), theirs.trim())).unwrap();
    let member = Member::load(&cluster.state_of("h1")).unwrap().unwrap();
    let why = report(&Door::new(&other.url(), "h1", member.tls()), "h1", 1).unwrap_err();
    assert!(why.contains("401") && why.contains("of another cluster"), "{why}");
}

#[test]
fn the_stock_client_speaks_tls_with_what_the_server_gives_it() {
    let cluster = Cluster::start("use_ssl = True\n");
    let clouds = cluster.dir.0.join("server/clouds.yaml");
    let client = |clouds: &Path, line: &str| -> Result<Value, String> {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/openstack"))
            .args(line.split(' '))
            .args(["-f", "json"])
            .env("OS_CLIENT_CONFIG_FILE", clouds)
            .env("OS_CLOUD", "evergate-admin")
            .output()
            .expect("the stock client is in .venv: make deps");
        if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(told(&output)) }
    };
    let text = fs::read_to_string(&clouds).unwrap();
    assert!(text.contains("cacert: ") && text.contains("auth_url: https://127.0.0.1:"), "{text}");
    client(&clouds, "network create net1").unwrap();
    let endpoints = client(&clouds, "endpoint list").unwrap();
    let urls: Vec<&str> = endpoints.as_array().unwrap().iter().filter_map(|row| row["URL"].as_str()).collect();
    assert!(!urls.is_empty() && urls.iter().all(|url| url.starts_with("https://")), "{urls:?}");

    // Without the authority, and without TLS.
    let without = cluster.dir.0.join("without.yaml");
    let lines: String = text.lines().filter(|line| !line.contains("cacert")).map(|line| format!("{line}\n")).collect();
    fs::write(&without, lines).unwrap();
    let refused = client(&without, "network list").unwrap_err();
    assert!(refused.to_lowercase().contains("certificate"), "{refused}");
    wait_for("a word about it in the log", || {
        cluster.log().contains("does not trust this server's certificate").then_some(())
    });
    let plain = cluster.dir.0.join("plain.yaml");
    fs::write(&plain, text.replace("https://", "http://")).unwrap();
    let refused = client(&plain, "network list").unwrap_err();
    assert!(refused.contains("400") || refused.contains("https://"), "{refused}");
    // The operator's own verbs read the same file.
    let output = Command::new(env!("CARGO_BIN_EXE_evergate"))
        .args(["drain", "nowhere", "--clouds"])
        .arg(&clouds)
        .output()
        .unwrap();
    assert!(told(&output).contains("nowhere"), "{}", told(&output));
    assert!(!told(&output).contains("failed to reach"), "{}", told(&output));
}
