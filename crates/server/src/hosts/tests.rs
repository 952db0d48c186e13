use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;

use axum::extract::{ConnectInfo, Request};
use axum::middleware::{Next, from_fn};
use evergate_model::host::{AgentKind, AgentReport};
use evergate_model::join::{JoinRequest, JoinToken};
use evergate_model::stream::Downstream;
use evergate_model::{HaState, HostConfig, PortId};
use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::listener::Peer;
use crate::membership;
use crate::private_file::tests::TempDir;
use crate::store::{Kind, StoreError};
use crate::testing::{Answer, Served};
use crate::tls::{Fault, Shown};
use crate::values;

const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    served: Served,
    store: Arc<Store>,
    options: Arc<Options>,
    hosts: Arc<Hosts>,
    /// Fingerprint of each host's certificate.
    certificates: Mutex<HashMap<String, String>>,
    stop: watch::Sender<bool>,
    _dir: TempDir,
}

/// Says what a connection would say: which certificate was shown, by its fingerprint, and what is wrong with it.
const SHOWN: &str = "x-test-certificate";

async fn pretend(mut request: Request, next: Next) -> Response {
    let shown = request.headers().get(SHOWN).and_then(|shown| shown.to_str().ok()).unwrap_or_default().to_owned();
    let (fingerprint, fault) = match shown.split_once(' ') {
        Some((fingerprint, "expired")) => (fingerprint, Some(Fault::Expired)),
        Some((fingerprint, "early")) => (fingerprint, Some(Fault::NotYet)),
        Some((fingerprint, _)) => (fingerprint, Some(Fault::Foreign)),
        None => (shown.as_str(), None),
    };
    let shown_one = !matches!(fingerprint, "" | "none");
    let peer = Peer {
        address: ([192, 0, 2, 9], 9).into(),
        is_secure: !fingerprint.is_empty(),
        is_host: true,
        shown: shown_one.then(|| Shown { fingerprint: fingerprint.to_owned(), fault }),
    };
    request.extensions_mut().insert(ConnectInfo(peer));
    next.run(request).await
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let options = Arc::new(Options::default());
        let members = Arc::new(Members::open(Arc::clone(&store)).unwrap());
        let (stop, stopping) = watch::channel(false);
        let pace = Pace { ping: Duration::from_millis(50), turn: Duration::from_millis(50), ..Pace::default() };
        let hosts = Hosts::new(Arc::clone(&store), Arc::clone(&options), members, true, stopping).with_pace(pace);
        let hosts = Arc::new(hosts);
        let served = Served::start(routes(Arc::clone(&hosts)).layer(from_fn(pretend)));
        Self { served, store, options, hosts, certificates: Mutex::default(), stop, _dir: dir }
    }

    /// A token for any host.
    fn token(&self) -> JoinToken {
        let authority = self.hosts.members.authority();
        let lasts = jiff::SignedDuration::from_mins(1);
        self.store.write(|tx| membership::make_token(tx, authority, None, lasts)).unwrap().token
    }

    /// The certificate of a host, which joins if it has none.
    fn certificate(&self, host: &str) -> String {
        let mut all = self.certificates.lock().unwrap();
        if let Some(known) = all.get(host) {
            return known.clone();
        }
        let token = self.token();
        let asked = JoinRequest { token: token.id, secret: token.secret, public_key: "04".repeat(65) };
        let admission = self.store.write(|tx| membership::admit(tx, self.hosts.members.authority(), host, &asked));
        let fingerprint = admission.unwrap().issued.fingerprint;
        self.hosts.members.refresh().unwrap();
        all.insert(host.to_owned(), fingerprint.clone());
        fingerprint
    }

    fn post(&self, host: &str, report: &HostReport) -> Answer {
        let body = serde_json::to_value(report).unwrap();
        let path = format!("/evergate/v1/hosts/{host}/report");
        self.served.call("POST", &path, &[(SHOWN, &self.certificate(host))], Some(&body))
    }

    fn follow(&self, host: &str) -> Lines {
        self.follow_with(host, "")
    }

    fn follow_with(&self, host: &str, query: &str) -> Lines {
        let mut socket = TcpStream::connect(self.served.0).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET /evergate/v1/hosts/{host}/stream{query} HTTP/1.1\r\nHost: x\r\n{SHOWN}: {}\r\n\r\n",
            self.certificate(host)
        );
        std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
        Lines(BufReader::new(socket))
    }

    fn agents(&self) -> Vec<(String, String, bool)> {
        let sql = "SELECT host, agent_type, tunnel_ip IS NOT NULL FROM agents ORDER BY host, agent_type";
        let read = |tx: &crate::store::Tx<'_>| tx.query(sql, &[], |r| Ok((r.text(0)?, r.text(1)?, r.bool(2)?)));
        self.store.read::<_, StoreError>(read).unwrap()
    }

    fn discards(&self, name: &str) -> u64 {
        self.hosts.discards.count(name)
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
            other @ (Downstream::Change(_) | Downstream::Letter(_) | Downstream::Ping { .. }) => {
                panic!("the stream begins with {other:?}")
            }
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
fn nobody_is_let_in_without_a_certificate_that_counts() {
    let f = Fixture::new();
    let (own, other) = (f.certificate("h1"), f.certificate("h2"));
    let cases = [
        (String::new(), 426, "needs this version of evergate", "plain"),
        ("none".to_owned(), 401, "no host's certificate was shown", "no_certificate"),
        (format!("{own} expired"), 401, "has expired", "expired_certificate"),
        (format!("{own} early"), 401, "compare the server's clock", "certificate_not_yet_valid"),
        (format!("{own} foreign"), 401, "of another cluster", "foreign_certificate"),
        ("ab".repeat(32), 401, "is not known here", "foreign_certificate"),
        (other, 403, "the certificate of host 'h2', and 'h1' is another", "other_host"),
    ];
    for (shown, status, words, counter) in cases {
        for (method, what) in [("GET", "stream"), ("POST", "report"), ("POST", "renew"), ("POST", "letters")] {
            let before = f.discards(counter);
            let path = format!("/evergate/v1/hosts/h1/{what}");
            let (answered, text) = f.served.text(method, &path, &[(SHOWN, &shown)]);
            assert_eq!(answered, status, "{what} with '{shown}': {text}");
            assert!(text.contains(words), "{what} with '{shown}': {text}");
            assert_eq!(f.discards(counter), before + 1, "{counter}");
        }
    }
    assert!(f.agents().is_empty());
}

#[test]
fn a_revoked_hosts_stream_ends_and_its_certificate_counts_no_more() {
    let f = Fixture::new();
    f.post("h1", &report("h1", 1));
    let mut lines = f.follow("h1");
    lines.snapshot();
    // As 'evergate cluster host revoke' does, and as another server notices.
    let sql = "UPDATE host_certificates SET revoked = 'revoked' WHERE host = 'h1'";
    f.store
        .write::<_, StoreError>(|tx| {
            tx.execute(sql, &[])?;
            tx.set_setting("cluster.certificates_version", "other")
        })
        .unwrap();
    f.hosts.members.refresh().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while lines.next().is_some() {
        assert!(Instant::now() < deadline, "the stream goes on");
    }
    assert_eq!(f.post("h1", &report("h1", 2)).status, 401);
    assert_eq!(f.discards("revoked_certificate"), 1);
}

#[test]
fn a_host_joins_with_a_token_over_tls_alone_and_renews() {
    let f = Fixture::new();
    let token = f.token();
    let body = serde_json::to_value(JoinRequest {
        token: token.id,
        secret: token.secret.clone(),
        public_key: "04".repeat(65),
    })
    .unwrap();
    let join = |shown: &str, body: &serde_json::Value| {
        f.served.call("POST", "/evergate/v1/hosts/h1/join", &[(SHOWN, shown)], Some(body))
    };
    assert_eq!(join("", &body).status, 426);
    assert_eq!(join("none", &json!({"token": "x"})).status, 400);
    let joined = join("none", &body);
    assert_eq!(joined.status, 200);
    let certificate = fingerprint_of(&joined);
    let renewed = f.served.call(
        "POST",
        "/evergate/v1/hosts/h1/renew",
        &[(SHOWN, &certificate)],
        Some(&json!({"public_key": "04".repeat(65)})),
    );
    assert_eq!(renewed.status, 200);
    // Both count until the newer one is renewed.
    for shown in [certificate, fingerprint_of(&renewed)] {
        let body = serde_json::to_value(report("h1", 1)).unwrap();
        let reported = f.served.call("POST", "/evergate/v1/hosts/h1/report", &[(SHOWN, &shown)], Some(&body));
        assert_eq!(reported.status, 204);
    }
    let (status, authorities) = f.served.text("GET", "/evergate/v1/ca", &[]);
    assert_eq!((status, authorities.as_str()), (200, f.hosts.members.authority().pem()));
    assert!(!authorities.contains("PRIVATE"));
    let wrong = json!({"token": "0".repeat(16), "secret": token.secret, "public_key": "04".repeat(65)});
    assert_eq!(join("none", &wrong).status, 403);
    assert_eq!(f.discards("join_token"), 1);
}

#[test]
fn a_host_that_was_revoked_or_replaced_does_not_renew_itself_back_in_before_the_server_notices() {
    let f = Fixture::new();
    let renew = |host: &str| {
        let path = format!("/evergate/v1/hosts/{host}/renew");
        let body = json!({"public_key": "04".repeat(65)});
        f.served.call("POST", &path, &[(SHOWN, &f.certificate(host))], Some(&body))
    };
    let counting = |host: &str| {
        let sql = "SELECT public_key FROM host_certificates WHERE host = ?1 AND revoked IS NULL";
        f.store.read::<_, StoreError>(|tx| tx.query(sql, &values![host], |row| row.text(0))).unwrap()
    };
    let (first, second) = (f.certificate("h1"), f.certificate("h2"));
    f.store
        .write::<_, StoreError>(|tx| {
            tx.execute("UPDATE host_certificates SET revoked = 'revoked' WHERE host = 'h1'", &[])
        })
        .unwrap();
    // Another server lets a new machine in by the name of the second.
    let newer = format!("04{}", "05".repeat(64));
    f.store
        .write(|tx| {
            let authority = f.hosts.members.authority();
            let token = membership::make_token(tx, authority, Some("h2"), jiff::SignedDuration::from_mins(1))?.token;
            let asked = JoinRequest { token: token.id, secret: token.secret, public_key: newer.clone() };
            membership::admit(tx, authority, "h2", &asked)
        })
        .unwrap();
    for known in [&first, &second] {
        assert!(matches!(f.hosts.members.standing(known), membership::Standing::Member(_)), "the server has noticed");
    }
    let refused = renew("h1");
    assert_eq!(refused.status, 401);
    assert!(refused.text.contains("was revoked by an operator"), "{}", refused.text);
    let refused = renew("h2");
    assert_eq!(refused.status, 401);
    assert!(refused.text.contains("has taken the place"), "{}", refused.text);
    assert_eq!(f.discards("revoked_certificate"), 2);
    assert!(counting("h1").is_empty());
    assert_eq!(counting("h2"), [newer]);
}

#[test]
fn strangers_with_tokens_of_their_own_making_take_neither_threads_nor_the_database() {
    let f = Fixture::new();
    let join = |token: &str, secret: &str| {
        let body = json!({"token": token, "secret": secret, "public_key": "04".repeat(65)});
        f.served.call("POST", "/evergate/v1/hosts/h1/join", &[(SHOWN, "none")], Some(&body)).status
    };
    let JoinToken { id, secret, .. } = f.token();
    let turns: Vec<_> = (0..JOINS_AT_ONCE).map(|_| Arc::clone(&f.hosts.joins).try_acquire_owned().unwrap()).collect();
    // What cannot be a token is not looked up.
    assert_eq!(join("x", &secret), 403);
    assert_eq!(join(&id, &"?".repeat(64)), 403);
    assert_eq!(f.discards("join_token"), 2);
    // Of the others there are only so many at once.
    assert_eq!(join(&id, &secret), 503);
    drop(turns);
    assert_eq!(join(&id, &secret), 200);
    assert_eq!(f.hosts.joins.available_permits(), JOINS_AT_ONCE);
}

/// Of the certificate in an answer to joining.
fn fingerprint_of(answer: &Answer) -> String {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let pem = answer.body["certificate"].as_str().unwrap();
    membership::authority::fingerprint(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
}

#[test]
fn a_report_makes_the_hosts_agents_visible() {
    let f = Fixture::new();
    assert_eq!(f.post("h1", &report("h1", 1)).status, 204);
    assert_eq!(f.agents(), [("h1".into(), "L3 agent".into(), false), ("h1".into(), "Linux bridge agent".into(), true)]);
}

/// A host with another tunnel address than the rest.
fn report_from(host: &str, tunnel: &str) -> HostReport {
    let mut report = report(host, 1);
    report.agents[1].configurations.insert("tunneling_ip".to_owned(), json!(tunnel));
    report
}

#[test]
fn letters_go_into_the_addressee_s_stream_with_the_sender_s_address_or_are_lost() {
    let f = Fixture::new();
    let post = |host: &str, body: &serde_json::Value| {
        let path = format!("/evergate/v1/hosts/{host}/letters");
        f.served.call("POST", &path, &[(SHOWN, &f.certificate(host))], Some(body)).status
    };
    let to = |peer: &str, datagram: &str| json!([{"peer": peer, "datagram": datagram}]);
    assert_eq!(post("h1", &to("192.0.2.12", "00")), 409, "nobody knows where it is from");
    f.post("h1", &report_from("h1", "192.0.2.11"));
    f.post("h2", &report_from("h2", "192.0.2.12"));
    f.post("h3", &report_from("h3", "192.0.2.13"));
    assert_eq!(post("h1", &to("192.0.2.12", "00")), 204, "it is not kept");
    let mut second = f.follow_with("h2", "?letters=true");
    let mut third = f.follow("h3");
    second.snapshot();
    third.snapshot();
    assert_eq!(post("h1", &to("192.0.2.12", "0a")), 204);
    assert_eq!(post("h1", &to("192.0.2.13", "0b")), 204, "it did not ask for letters");
    assert_eq!(post("h1", &to("192.0.2.99", "0c")), 204);
    let letter = evergate_model::stream::Letter { peer: "192.0.2.11".parse().unwrap(), datagram: "0a".to_owned() };
    assert_eq!(second.change(), Downstream::Letter(letter));
    let said = std::iter::from_fn(|| third.next()).take(3).collect::<Vec<_>>();
    assert!(said.iter().all(|line| matches!(line, Downstream::Ping { .. })), "{said:?}");

    // A host that connects again is told on its new stream.
    let mut again = f.follow_with("h2", "?letters=true");
    again.snapshot();
    assert_eq!(post("h3", &to("192.0.2.12", "0d")), 204);
    assert!(matches!(again.change(), Downstream::Letter(letter) if letter.datagram == "0d"));

    // Too long, too many, no letters; and one that nobody reads is lost without delay.
    assert_eq!(post("h1", &to("192.0.2.12", &"0".repeat(5000))), 400);
    assert_eq!(post("h1", &json!(vec![json!({"peer": "192.0.2.12", "datagram": "00"}); 65])), 400);
    // What is no hexadecimal grows when it is carried.
    for foul in ["0", "0g", "\u{1}\u{1}", "é"] {
        assert_eq!(post("h1", &to("192.0.2.12", foul)), 400, "{foul}");
    }
    assert_eq!(post("h1", &json!({"peer": 7})), 400);
    for _ in 0..10 {
        assert_eq!(post("h1", &json!(vec![json!({"peer": "192.0.2.12", "datagram": "0".repeat(4000)}); 64])), 204);
    }
}

#[test]
fn a_report_under_another_name_or_without_sense_is_refused() {
    let f = Fixture::new();
    assert_eq!(f.post("h2", &report("h1", 1)).status, 400);
    let mut twice = report("h1", 1);
    twice.agents.push(twice.agents[0].clone());
    assert_eq!(f.post("h1", &twice).status, 400);
    let shown = f.certificate("h1");
    let nonsense = f.served.send("POST", "/evergate/v1/hosts/h1/report", &[(SHOWN, &shown)], b"{\"host\":");
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
        other @ (Downstream::Snapshot { .. } | Downstream::Letter(_) | Downstream::Ping { .. }) => {
            panic!("expected a change, not {other:?}")
        }
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
    while config.networks.len() < 50 {
        assert!(Instant::now() < deadline);
        if let Downstream::Change(change) = lines.change() {
            change.apply(&mut config).unwrap();
        }
    }
    assert_eq!(config, f.store.read(|tx| crate::hostview::host_config(tx, &f.options, "h1")).unwrap());
}

/// The clock stands while anything is done, and is put forward when all wait for it.
#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_is_looked_at_once() {
    let dir = TempDir::new();
    let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
    let publisher = Publisher::start(Arc::clone(&store), Arc::new(Options::default()), Duration::from_secs(1));
    let mut followed = publisher.follow("h1").await.unwrap();
    for network in 1..=50 {
        let store = Arc::clone(&store);
        tokio::task::spawn_blocking(move || bound_port(&store, network, "h1")).await.unwrap();
    }
    assert!(!followed.views.has_changed().unwrap(), "a change was told while more came");
    followed.views.changed().await.unwrap();
    assert_eq!(followed.views.borrow_and_update().size(), 50);
    tokio::time::sleep(DEADLINE).await;
    assert!(!followed.views.has_changed().unwrap(), "the burst was looked at more than once");
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
fn a_clock_that_is_an_hour_off_is_told_with_the_hosts_name_and_harms_nobody() {
    let f = Fixture::new();
    let clock = |ahead_ms: i64| u64::try_from(Timestamp::now().as_millisecond() + ahead_ms).ok();
    let warnings = |host: &str| {
        let sql = "SELECT warnings FROM hosts WHERE name = ?1";
        f.store.read::<_, StoreError>(|tx| tx.query_opt(sql, &values![host], |row| row.text(0))).unwrap().unwrap()
    };
    for (host, ahead_ms, expected) in
        [("h1", 3_600_000, "60 min ahead"), ("h2", -3_600_000, "60 min behind"), ("h3", 2_000, "[]")]
    {
        f.post(host, &HostReport { clock_ms: clock(ahead_ms), ..report(host, 1) });
        assert!(warnings(host).contains(expected), "{}", warnings(host));
        // It is set right, and nothing more is said.
        f.post(host, &HostReport { clock_ms: clock(0), ..report(host, 2) });
        assert_eq!(warnings(host), "[]");
    }
}
