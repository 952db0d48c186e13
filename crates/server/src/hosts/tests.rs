use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;

use evergate_model::host::{AgentKind, AgentReport};
use evergate_model::stream::Downstream;
use evergate_model::{HaState, HostConfig, PortId};
use serde_json::json;

use super::*;
use crate::private_file::tests::TempDir;
use crate::store::{Kind, StoreError};
use crate::testing::{Answer, Served};
use crate::values;

const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    served: Served,
    store: Arc<Store>,
    options: Arc<Options>,
    token: String,
    stop: watch::Sender<bool>,
    _dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let options = Arc::new(Options::default());
        let token_file = dir.path().join("host-token");
        let host_token = HostToken::open(&token_file).unwrap();
        let token = std::fs::read_to_string(&token_file).unwrap().trim().to_owned();
        let (stop, stopping) = watch::channel(false);
        let pace = Pace { ping: Duration::from_millis(50), ..Pace::default() };
        let hosts = Hosts::new(Arc::clone(&store), Arc::clone(&options), host_token, true, stopping).with_pace(pace);
        Self { served: Served::start(routes(Arc::new(hosts))), store, options, token, stop, _dir: dir }
    }

    fn post(&self, host: &str, report: &HostReport) -> Answer {
        let body = serde_json::to_value(report).unwrap();
        let bearer = format!("Bearer {}", self.token);
        let path = format!("/evergate/v1/hosts/{host}/report");
        self.served.call("POST", &path, &[("authorization", &bearer)], Some(&body))
    }

    fn follow(&self, host: &str) -> Lines {
        let mut socket = TcpStream::connect(self.served.0).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET /evergate/v1/hosts/{host}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        );
        std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
        Lines(BufReader::new(socket))
    }

    fn agents(&self) -> Vec<(String, String, bool)> {
        let sql = "SELECT host, agent_type, tunnel_ip IS NOT NULL FROM agents ORDER BY host, agent_type";
        let read = |tx: &crate::store::Tx<'_>| tx.query(sql, &[], |r| Ok((r.text(0)?, r.text(1)?, r.bool(2)?)));
        self.store.read::<_, StoreError>(read).unwrap()
    }

    fn revision(&self) -> u64 {
        *self.store.subscribe().borrow()
    }
}

/// What a stream says, past HTTP's own lines.
struct Lines(BufReader<TcpStream>);

impl Lines {
    /// The next line of JSON; `None` at the end of the stream.
    fn next(&mut self) -> Option<Downstream> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 || line == "0\r\n" {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    }

    fn snapshot(&mut self) -> HostConfig {
        match self.next().unwrap() {
            Downstream::Snapshot { config } => config,
            other @ (Downstream::Change(_) | Downstream::Ping { .. }) => panic!("the stream begins with {other:?}"),
        }
    }

    /// The next line that is no ping.
    fn change(&mut self) -> Downstream {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let said = self.next().unwrap();
            if !matches!(said, Downstream::Ping { .. }) {
                return said;
            }
            assert!(Instant::now() < deadline, "no change in time");
        }
    }
}

fn report(host: &str, sequence: u64) -> HostReport {
    let configurations = |value: serde_json::Value| value.as_object().cloned().unwrap();
    HostReport {
        host: host.to_owned(),
        incarnation: 7,
        sequence,
        agents: vec![
            AgentReport {
                kind: AgentKind::L3,
                availability_zone: Some("nova".into()),
                configurations: configurations(json!({"agent_mode": "legacy"})),
            },
            AgentReport {
                kind: AgentKind::LinuxBridge,
                availability_zone: None,
                configurations: configurations(json!({"tunneling_ip": "192.0.2.1"})),
            },
        ],
        ..HostReport::default()
    }
}

/// A network with a port that is bound to the host.
fn bound_port(store: &Store, network: u128, host: &str) -> PortId {
    let id = PortId::from_u128(network << 8);
    let network = evergate_model::NetworkId::from_u128(network);
    store
        .write(|tx| -> Result<(), StoreError> {
            let now = tx.now_text();
            tx.execute(
                "INSERT INTO networks (id, project_id, name, mtu, network_type, segmentation_id, created_at, updated_at) \
                 VALUES (?1, 'p', 'n', 1450, 'vxlan', ?3, ?2, ?2)",
                &values![network, now.as_str(), network.0.as_u128() as i64],
            )?;
            tx.execute(
                "INSERT INTO ports (id, project_id, network_id, mac_address, host_id, created_at, updated_at) \
                 VALUES (?1, 'p', ?2, 'fa:16:3e:00:00:01', ?3, ?4, ?4)",
                &values![id, network, host, now.as_str()],
            )?;
            tx.changed(Kind::Network, network);
            tx.changed(Kind::Port, id);
            Ok(())
        })
        .unwrap();
    id
}

fn port_status(store: &Store, id: PortId) -> String {
    let sql = "SELECT status FROM ports WHERE id = ?1";
    store.read::<_, StoreError>(|tx| tx.query_opt(sql, &values![id], |r| r.text(0))).unwrap().unwrap()
}

#[test]
fn nobody_is_let_in_without_the_host_token() {
    let f = Fixture::new();
    for given in [None, Some("Bearer wrong".to_owned()), Some(f.token.clone())] {
        let headers: Vec<(&str, &str)> = given.iter().map(|g| ("authorization", g.as_str())).collect();
        for (method, what) in [("GET", "stream"), ("POST", "report")] {
            let path = format!("/evergate/v1/hosts/h1/{what}");
            assert_eq!(f.served.call(method, &path, &headers, None).status, 401, "{what} with {given:?}");
        }
    }
    assert!(f.agents().is_empty());
}

#[test]
fn a_report_makes_the_hosts_agents_visible() {
    let f = Fixture::new();
    assert_eq!(f.post("h1", &report("h1", 1)).status, 204);
    assert_eq!(f.agents(), [("h1".into(), "L3 agent".into(), false), ("h1".into(), "Linux bridge agent".into(), true)]);
}

#[test]
fn a_report_under_another_name_or_without_sense_is_refused() {
    let f = Fixture::new();
    assert_eq!(f.post("h2", &report("h1", 1)).status, 400);
    let mut twice = report("h1", 1);
    twice.agents.push(twice.agents[0].clone());
    assert_eq!(f.post("h1", &twice).status, 400);
    let bearer = format!("Bearer {}", f.token);
    let nonsense = f.served.send("POST", "/evergate/v1/hosts/h1/report", &[("authorization", &bearer)], b"{\"host\":");
    assert_eq!(nonsense.status, 400);
    assert!(f.agents().is_empty());
}

#[test]
fn a_heartbeat_writes_nothing_that_followers_would_look_at() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    f.post("h1", &report("h1", 2));
    let before = f.revision();
    for sequence in 3..10 {
        assert_eq!(f.post("h1", &report("h1", sequence)).status, 204);
    }
    assert_eq!(f.revision(), before);
}

#[test]
fn a_late_report_changes_nothing() {
    let f = Fixture::new();
    let id = bound_port(&f.store, 1, "h1");
    let up = |sequence, up: bool| {
        let ports_up = if up { [id].into() } else { Default::default() };
        HostReport { ports_up, ..report("h1", sequence) }
    };
    f.post("h1", &up(5, true));
    assert_eq!(port_status(&f.store, id), "ACTIVE");
    assert_eq!(f.post("h1", &up(4, false)).status, 204);
    assert_eq!(port_status(&f.store, id), "ACTIVE");
    f.post("h1", &up(6, false));
    assert_eq!(port_status(&f.store, id), "DOWN");
    // A new life of the host counts anew.
    f.post("h1", &HostReport { incarnation: 8, ..up(1, true) });
    assert_eq!(port_status(&f.store, id), "ACTIVE");
}

#[test]
fn an_unchanged_report_still_counts_for_what_was_bound_since() {
    let f = Fixture::new();
    let id = PortId::from_u128(1 << 8);
    let ports_up = [id].into();
    f.post("h1", &HostReport { ports_up, ..report("h1", 1) });
    assert_eq!(bound_port(&f.store, 1, "h1"), id);
    assert_eq!(port_status(&f.store, id), "DOWN");
    f.post("h1", &HostReport { ports_up: [id].into(), ..report("h1", 2) });
    assert_eq!(port_status(&f.store, id), "ACTIVE");
}

#[test]
fn a_host_that_appears_is_given_the_copies_that_routers_lack() {
    let f = Fixture::new();
    let router = f
        .store
        .write(|tx| {
            let now = tx.now_text();
            let id = evergate_model::RouterId::from_u128(9);
            let sql =
                "INSERT INTO routers (id, project_id, name, created_at, updated_at) VALUES (?1, 'p', 'r', ?2, ?2)";
            tx.execute(sql, &values![id, now])?;
            Ok::<_, StoreError>(id)
        })
        .unwrap();
    f.post("h1", &report("h1", 1));
    let config = f.store.read(|tx| crate::hostview::host_config(tx, &f.options, "h1")).unwrap();
    assert_eq!(config.routers.keys().copied().collect::<Vec<_>>(), [router]);
}

#[test]
fn a_stream_begins_with_a_snapshot_and_tells_changes_and_silence() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    let mut lines = f.follow("h1");
    let mut config = lines.snapshot();
    assert!(config.networks.is_empty());
    assert!(matches!(lines.next(), Some(Downstream::Ping { .. })));

    let id = bound_port(&f.store, 1, "h1");
    match lines.change() {
        Downstream::Change(change) => change.apply(&mut config).unwrap(),
        other @ (Downstream::Snapshot { .. } | Downstream::Ping { .. }) => panic!("expected a change, not {other:?}"),
    }
    assert!(config.networks.values().any(|n| n.ports.contains_key(&id)));
    assert_eq!(config, f.store.read(|tx| crate::hostview::host_config(tx, &f.options, "h1")).unwrap());

    // What concerns another host alone is not told, and pings go on.
    bound_port(&f.store, 2, "h2");
    assert!(matches!(lines.next(), Some(Downstream::Ping { .. })));
    assert!(matches!(lines.next(), Some(Downstream::Ping { .. })));
}

#[test]
fn a_burst_of_changes_ends_in_the_state_of_the_store() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    let mut lines = f.follow("h1");
    let mut config = lines.snapshot();
    for network in 1..=50 {
        bound_port(&f.store, network, "h1");
    }
    let deadline = Instant::now() + DEADLINE;
    let mut told = 0;
    while config.networks.len() < 50 {
        assert!(Instant::now() < deadline);
        if let Downstream::Change(change) = lines.change() {
            change.apply(&mut config).unwrap();
            told += 1;
        }
    }
    assert!(told <= 50);
    assert_eq!(config, f.store.read(|tx| crate::hostview::host_config(tx, &f.options, "h1")).unwrap());
}

#[test]
fn streams_end_when_the_server_stops() {
    let f = Fixture::new();
    let mut lines = f.follow("h1");
    lines.snapshot();
    f.stop.send_replace(true);
    let deadline = Instant::now() + DEADLINE;
    while lines.next().is_some() {
        assert!(Instant::now() < deadline, "the stream goes on");
    }
}

#[test]
fn ha_states_reach_the_store_with_the_report() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    let router = evergate_model::RouterId::from_u128(9);
    f.store
        .write(|tx| {
            let now = tx.now_text();
            let sql = "INSERT INTO routers (id, project_id, name, ha, created_at, updated_at) \
                       VALUES (?1, 'p', 'r', 1, ?2, ?2)";
            tx.execute(sql, &values![router, now])?;
            let router = crate::objects::router::Router::get(tx, router)?;
            crate::ha::enable(tx, &f.options, &router)
        })
        .unwrap();
    let state = evergate_model::host::HaStateReport { state: HaState::Active, epoch: 3 };
    f.post("h1", &HostReport { ha_states: [(router, state)].into(), ..report("h1", 2) });
    let bindings = f.store.read(|tx| crate::objects::router::bindings_on(tx, "h1")).unwrap();
    assert_eq!((bindings[0].active, bindings[0].epoch), (Some(true), 3));
}

#[test]
fn what_concerns_a_host_is_told_and_what_does_not_is_not_even_looked_at() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    let own = bound_port(&f.store, 1, "h1");
    bound_port(&f.store, 2, "h2");
    let network = |n: u128| evergate_model::NetworkId::from_u128(n);
    let router = evergate_model::RouterId::from_u128(9);
    let sent = f.store.read(|tx| crate::hostview::host_config(tx, &f.options, "h1")).unwrap();
    let concerned = |change: &dyn Fn(&crate::store::Tx<'_>) -> Result<(), StoreError>| {
        let since = f.revision();
        f.store.write(|tx| change(tx)).unwrap();
        f.store.read(|tx| relevance::concerns(tx, "h1", &sent, since)).unwrap()
    };
    let touch = |kind, id: String| {
        concerned(&move |tx| {
            tx.changed(kind, &id);
            Ok(())
        })
    };
    assert!(touch(Kind::Network, network(1).to_string()), "its own network");
    assert!(!touch(Kind::Network, network(2).to_string()), "another host's network");
    assert!(!touch(Kind::Port, own.to_string()), "a port's status");
    assert!(!touch(Kind::Router, router.to_string()), "a router elsewhere");
    assert!(touch(Kind::Agent, "x".into()), "any host's tunnel address");
    assert!(concerned(&|tx| {
        tx.execute("UPDATE ports SET host_id = 'h1' WHERE network_id = ?1", &values![network(2)])?;
        tx.changed(Kind::Network, network(2));
        Ok(())
    }));
    // A router that becomes active matters wherever it has a port, before anybody was told of it.
    f.store
        .write(|tx| -> Result<(), StoreError> {
            let now = tx.now_text();
            let sql = "INSERT INTO routers (id, project_id, name, ha, created_at, updated_at) \
                       VALUES (?1, 'p', 'r', 1, ?2, ?2)";
            tx.execute(sql, &values![router, now])?;
            let sql =
                "INSERT INTO router_ports (port_id, router_id, network_id, role) VALUES (?1, ?2, ?3, 'interface')";
            tx.execute(sql, &values![own, router, network(1)])?;
            Ok(())
        })
        .unwrap();
    assert!(touch(Kind::Router, router.to_string()));
}
