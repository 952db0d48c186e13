//! Two servers beside one PostgreSQL, as processes, with hosts that know both and writers that use both: one is
//! killed in the middle of it. And what hosts hear while the database is away: that the server lives, and nothing
//! else.
//!
//! The hosts here are threads that speak the real protocol and hold to its rules: a state that is older than what is
//! known, or a change that does not fit, fails the test.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

#[path = "../benches/support/members.rs"]
mod members;
#[path = "../crates/server/tests/support/postgres.rs"]
mod postgres;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use evergate_hostd::membership::Member;
use evergate_hostd::shell::http::Door;
use evergate_model::stream::Downstream;
use evergate_model::{HostConfig, PortId};
use serde_json::{Value, json};
use support::{Dir, PATIENCE, Server, wait_for};

const HOSTS: usize = 8;
/// Ports that are made before a server is killed, and after it.
const PORTS: usize = 20;

/// What all servers share, and the servers.
struct Deployment {
    servers: Vec<(Server, String)>,
    dir: Dir,
}

impl Deployment {
    fn start(name: &str, database: &str, servers: usize) -> Self {
        let dir = Dir::new(name);
        // They know the same users.
        let conf = format!(
            "state_path = {}\n[quotas]\nquota_port = -1\n[database]\nconnection = {database}\n",
            dir.0.display(),
        );
        let start = |n| {
            let mut server = Server::start(&dir.0, &format!("server{n}"), &conf);
            let address = server.address();
            (server, address)
        };
        Self { servers: (0..servers).map(start).collect(), dir }
    }

    fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|(_, address)| address.clone()).collect()
    }

    fn kill(&mut self, n: usize) {
        let process = &mut self.servers[n].0.process.0;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn admin(&self) -> Api {
        let clouds = std::fs::read_to_string(self.dir.0.join("clouds.yaml")).unwrap();
        let password = clouds.split("password:").nth(1).unwrap().lines().next().unwrap().trim();
        let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }});
        let (address, path) = (&self.servers[0].1, "/identity/v3/auth/tokens");
        let (head, _) = exchange(address, "POST", path, "", &auth.to_string()).unwrap();
        let line = head.lines().find_map(|line| line.strip_prefix("x-subject-token: ")).unwrap();
        Api { addresses: self.addresses(), current: 0, token: format!("X-Auth-Token: {line}\r\n") }
    }
}

/// One request on a connection of its own; answers head and body.
fn exchange(address: &str, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<(String, String)> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.to_owned(), body.to_owned()))
}

/// A client that goes to the next server when it loses one.
#[derive(Clone)]
struct Api {
    addresses: Vec<String>,
    current: usize,
    token: String,
}

impl Api {
    /// Answers what was said, or nothing where nobody knows what became of the request.
    fn call(&mut self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let address = &self.addresses[self.current % self.addresses.len()];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let Ok((head, body)) = exchange(address, method, path, &self.token, &body) else {
            self.current += 1;
            return None;
        };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, serde_json::from_str(&body).unwrap_or_default()))
    }

    #[track_caller]
    fn make(&mut self, kind: &str, attributes: Value) -> Value {
        let (status, body) = self.call("POST", &format!("/v2.0/{kind}s"), &json!({kind: attributes})).unwrap();
        assert_eq!(status, 201, "{body}");
        body[kind].clone()
    }
}

/// A host that knows all servers, uses one, and goes to the next when it loses it.
struct Host {
    name: String,
    number: usize,
    addresses: Vec<String>,
    member: Member,
    /// What it knows.
    config: Mutex<HostConfig>,
    /// State and epoch of its copy of a router, for its reports.
    copy: Mutex<Option<(String, Value)>>,
    /// The server that it follows.
    follows: Mutex<String>,
    reports: AtomicU64,
    pings: AtomicU64,
    changes: AtomicU64,
    /// Streams that it lost.
    lost: AtomicU64,
    stop: AtomicBool,
}

impl Host {
    fn is_alive(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn door(&self, address: &str, make: impl FnOnce(&str, &str, ureq::tls::TlsConfig) -> Door) -> Door {
        make(&format!("https://{address}"), &self.name, self.member.tls())
    }

    fn report(&self, address: &str) -> bool {
        let states: BTreeMap<String, Value> = self.copy.lock().unwrap().clone().into_iter().collect();
        let bridge = json!({"tunneling_ip": format!("192.0.2.{}", self.number + 1), "tunnel_types": ["vxlan"]});
        let bridge = json!({"kind": "linux_bridge", "availability_zone": null, "configurations": bridge});
        let l3 = json!({"kind": "l3", "availability_zone": "nova", "configurations": {"agent_mode": "legacy"}});
        let agents = if self.number < 3 { json!([bridge, l3]) } else { json!([bridge]) };
        let report = json!({
            "host": self.name, "incarnation": 1, "sequence": self.reports.fetch_add(1, Ordering::Relaxed),
            "applied_revision": null, "ha_states": states, "ports_up": [], "floating_ips_active": [], "warnings": [],
            "agents": agents,
        });
        self.door(address, Door::new).post("report", report.to_string().as_bytes()).is_ok()
    }

    /// Follows whichever server there is.
    fn follow(&self) {
        let mut current = self.number;
        while self.is_alive() {
            let address = &self.addresses[current % self.addresses.len()];
            if self.report(address)
                && let Ok(answer) = self.door(address, Door::for_stream).get("stream")
            {
                let mut lines = BufReader::new(answer.into_body().into_reader());
                let mut line = Vec::new();
                while self.is_alive() && lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                    self.hear(serde_json::from_slice(&line).unwrap(), address);
                    line.clear();
                }
                self.lost.fetch_add(u64::from(self.is_alive()), Ordering::Relaxed);
            }
            current += 1;
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Reports what its copy is whenever that is another.
    fn keep_reporting(&self) {
        let mut reported = None;
        while self.is_alive() {
            let (now, address) = (self.copy.lock().unwrap().clone(), self.follows.lock().unwrap().clone());
            if now != reported && self.report(&address) {
                reported = now;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn hear(&self, said: Downstream, address: &str) {
        let mut known = self.config.lock().unwrap();
        match said {
            Downstream::Snapshot { config } => {
                assert!(config.revision >= known.revision, "{} is told of the past", self.name);
                *known = config;
                *self.follows.lock().unwrap() = address.to_owned();
            }
            Downstream::Change(change) => {
                change.apply(&mut known).unwrap();
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
            Downstream::Ping { revision } => {
                assert!(revision >= known.revision, "{}: a ping of the past", self.name);
                self.pings.fetch_add(1, Ordering::Relaxed);
            }
            Downstream::Letter(letter) => panic!("{} did not ask for letters: {letter:?}", self.name),
        }
    }
}

/// Hosts that live until the value goes.
struct Hosts {
    hosts: Vec<Arc<Host>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Hosts {
    fn start(deployment: &Deployment, count: usize) -> Self {
        let token = members::token(&deployment.servers[0].0.conf()).unwrap();
        let addresses = deployment.addresses();
        let mut hosts = Self { hosts: Vec::new(), threads: Vec::new() };
        for number in 0..count {
            let name = format!("h{number}");
            let url = format!("https://{}", addresses[number % addresses.len()]);
            let member = members::join(&url, &name, &token, &deployment.dir.0).unwrap();
            let host = Arc::new(Host {
                name,
                number,
                addresses: addresses.clone(),
                member,
                config: Mutex::default(),
                copy: Mutex::default(),
                follows: Mutex::default(),
                reports: AtomicU64::new(1),
                pings: AtomicU64::new(0),
                changes: AtomicU64::new(0),
                lost: AtomicU64::new(0),
                stop: AtomicBool::new(false),
            });
            let (follower, reporter) = (Arc::clone(&host), Arc::clone(&host));
            hosts.threads.push(thread::spawn(move || follower.follow()));
            wait_for("a snapshot", || (!host.follows.lock().unwrap().is_empty()).then_some(()));
            hosts.threads.push(thread::spawn(move || reporter.keep_reporting()));
            hosts.hosts.push(host);
        }
        hosts
    }

    fn stop(&self) {
        self.hosts.iter().for_each(|host| host.stop.store(true, Ordering::Relaxed));
    }

    /// Ends them; one of them that was told nonsense fails the test.
    fn end(mut self) {
        self.stop();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn a_server_that_is_killed_is_missed_by_nobody() {
    let cluster = postgres::Cluster::start();
    let mut deployment = Deployment::start("several-servers", &cluster.make_database(), 2);
    let hosts = Hosts::start(&deployment, HOSTS);
    let mut api = deployment.admin();
    let network = api.make("network", json!({"name": "n"}));
    let subnet = api.make("subnet", json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.0.0.0/16"}));
    let router = api.make("router", json!({"name": "r", "ha": true}));
    let path = format!("/v2.0/routers/{}", router["id"].as_str().unwrap());
    let plugged = api.call("PUT", &format!("{path}/add_router_interface"), &json!({"subnet_id": subnet["id"]}));
    assert_eq!(plugged.unwrap().0, 200);
    let is = |host: usize, state: &str, epoch: u64| {
        let report = json!({"state": state, "epoch": epoch});
        *hosts.hosts[host].copy.lock().unwrap() = Some((router["id"].as_str().unwrap().to_owned(), report));
    };
    let active = |api: &mut Api| -> Option<Vec<String>> {
        let (status, agents) = api.call("GET", &format!("{path}/l3-agents"), &Value::Null)?;
        assert_eq!(status, 200, "{agents}");
        let agents = agents["agents"].as_array().unwrap().clone();
        let active = agents.iter().filter(|agent| agent["ha_state"] == "active");
        Some(active.map(|agent| agent["host"].as_str().unwrap().to_owned()).collect())
    };
    [1, 2].into_iter().for_each(|host| is(host, "standby", 1));
    is(0, "active", 1);
    wait_for("the active copy", || (active(&mut api)? == ["h0"]).then_some(()));

    let (acknowledged, writing) = (Mutex::new(Vec::<String>::new()), AtomicBool::new(true));
    let made = || acknowledged.lock().unwrap().len();
    thread::scope(|scope| {
        for writer in 0..2 {
            let mut api = Api { current: writer, ..api.clone() };
            let (acknowledged, writing, network) = (&acknowledged, &writing, &network);
            scope.spawn(move || {
                for n in 0.. {
                    if !writing.load(Ordering::Relaxed) {
                        return;
                    }
                    let host = format!("h{}", n % HOSTS);
                    let port = json!({"port": {"network_id": network["id"], "binding:host_id": host}});
                    if let Some((status, body)) = api.call("POST", "/v2.0/ports", &port) {
                        assert_eq!(status, 201, "{body}");
                        acknowledged.lock().unwrap().push(body["port"]["id"].as_str().unwrap().to_owned());
                    }
                }
            });
        }
        wait_for("writes", || (made() >= PORTS).then_some(()));
        deployment.kill(0);
        // Meanwhile the role goes to another host, which may have lost its server just now.
        is(0, "standby", 2);
        is(1, "active", 2);
        let before = made();
        wait_for("writes by the other server", || (made() >= before + PORTS).then_some(()));
        writing.store(false, Ordering::Relaxed);
    });

    let mut api = Api { current: 1, ..api };
    wait_for("the new active copy", || (active(&mut api)? == ["h1"]).then_some(()));
    let (status, listed) = api.call("GET", "/v2.0/ports?fields=id", &Value::Null).unwrap();
    assert_eq!(status, 200);
    let listed: BTreeSet<&str> =
        listed["ports"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.iter().all(|id| listed.contains(id.as_str())), "an acknowledged port is gone");
    let survivor = &deployment.addresses()[1];
    let (network, router) = (network["id"].as_str().unwrap().parse().unwrap(), router["id"].as_str().unwrap());
    for host in &hosts.hosts {
        wait_for("all ports, and the active copy, at every host", || {
            let known = host.config.lock().unwrap();
            let ports = &known.networks.get(&network)?.ports;
            let all = acknowledged.iter().all(|id| ports.contains_key(&id.parse::<PortId>().unwrap()));
            let active = known.active_copies.get(&router.parse().unwrap())?;
            (all && active.epoch == 2 && active.vtep.to_string() == "192.0.2.2").then_some(())
        });
        assert_eq!(*host.follows.lock().unwrap(), *survivor);
    }
    assert!(hosts.hosts.iter().any(|host| host.lost.load(Ordering::Relaxed) > 0), "nobody followed the killed server");
    hosts.end();
}

#[test]
fn while_the_database_is_away_hosts_hear_that_the_server_lives_and_nothing_else() {
    let mut cluster = postgres::Cluster::start();
    let deployment = Deployment::start("streams-and-outages", &cluster.make_database(), 1);
    let hosts = Hosts::start(&deployment, 2);
    let mut api = deployment.admin();
    let network = api.make("network", json!({"name": "n"}));
    api.make("subnet", json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.0.0.0/16"}));
    let mut port = |n: usize| {
        let body = json!({"port": {"network_id": network["id"], "binding:host_id": format!("h{n}")}});
        wait_for("a write", || api.call("POST", "/v2.0/ports", &body).filter(|(status, _)| *status == 201))
    };
    let count = |counter: fn(&Host) -> &AtomicU64| -> Vec<u64> {
        hosts.hosts.iter().map(|host| counter(host).load(Ordering::Relaxed)).collect()
    };
    let told = |what: &str, than: &[u64]| {
        wait_for(what, || count(|host| &host.changes).iter().zip(than).all(|(now, then)| now > then).then_some(()));
    };
    let before = count(|host| &host.changes);
    (0..2).for_each(|n| drop(port(n)));
    told("the first ports", &before);
    wait_for("both ports at both hosts", || {
        let known =
            |host: &Arc<Host>| host.config.lock().unwrap().networks.values().map(|n| n.ports.len()).sum::<usize>();
        hosts.hosts.iter().all(|host| known(host) == 2).then_some(())
    });

    let mut ail = |begin: &mut dyn FnMut(), end: &mut dyn FnMut()| {
        let (changes, pings) = (count(|host| &host.changes), count(|host| &host.pings));
        begin();
        wait_for("two pings", || {
            count(|host| &host.pings).iter().zip(&pings).all(|(now, then)| *now >= then + 2).then_some(())
        });
        assert_eq!(count(|host| &host.changes), changes, "something was told");
        end();
        port(0);
        told("the port that was made after it", &changes);
    };
    let cluster = std::cell::RefCell::new(&mut cluster);
    ail(&mut || cluster.borrow_mut().stop(), &mut || cluster.borrow_mut().start_again());
    ail(&mut || cluster.borrow().freeze(true), &mut || cluster.borrow().freeze(false));
    assert_eq!(count(|host| &host.lost), [0, 0], "a stream ended");
    hosts.end();
}
