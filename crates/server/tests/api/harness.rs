//! A server without a socket, callers of several kinds, and short ways to say what tests do often.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context as TaskContext, Poll};

use axum::body::Body;
use axum::http::Request;
use evergate_config::Database;
use evergate_model::host::{AgentKind, AgentReport, HaState, HaStateReport};
use evergate_model::{HostConfig, RouterId};
use evergate_server::api::{ApiState, api_router};
use evergate_server::context::Context;
use evergate_server::error::ApiError;
use evergate_server::objects::agent;
use evergate_server::options::{Limits, Options};
use evergate_server::policy::Watched;
use evergate_server::store::{Dialect, Store};
use evergate_server::{dvr, ha, hostview};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use crate::support::psql;

/// Names the variable with the URL, but for the database, of a PostgreSQL that is used instead of SQLite.
pub(crate) const POSTGRES: &str = "EVERGATE_TEST_POSTGRES";
/// The project of most tests.
pub(crate) const PROJECT: &str = "cccccccccccccccccccccccccccccccc";
/// Somebody else's.
pub(crate) const OTHER: &str = "dddddddddddddddddddddddddddddddd";

/// A server over a database of its own, removed with it.
pub(crate) struct Server {
    pub(crate) store: Arc<Store>,
    pub(crate) options: Arc<Options>,
    router: axum::Router,
    runtime: tokio::runtime::Runtime,
    dir: PathBuf,
}

/// An answer: its status and body (null where there is none).
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// The error's type, or nothing.
    pub(crate) fn error(&self) -> &str {
        self.body["NeutronError"]["type"].as_str().unwrap_or_default()
    }

    /// The error's text, or nothing.
    pub(crate) fn message(&self) -> &str {
        self.body["NeutronError"]["message"].as_str().unwrap_or_default()
    }
}

/// Somebody with a role on a project, and the roles that it implies.
pub(crate) fn caller(project: &str, role: &str) -> Context {
    let ladder = ["admin", "manager", "member", "reader"];
    let from = ladder.iter().position(|r| *r == role).unwrap_or(ladder.len());
    Context {
        user_id: format!("{role}-of-{project}"),
        user_name: role.to_owned(),
        project_id: Some(project.to_owned()),
        roles: ladder[from..].iter().copied().chain([role]).map(str::to_owned).collect::<BTreeSet<_>>(),
        request_id: "req-test".to_owned(),
        ..Context::default()
    }
}

/// An admin of the usual project.
pub(crate) fn admin() -> Context {
    caller(PROJECT, "admin")
}

/// A member of a project.
pub(crate) fn member(project: &str) -> Context {
    caller(project, "member")
}

/// A reader of a project.
pub(crate) fn reader(project: &str) -> Context {
    caller(project, "reader")
}

impl Server {
    /// Starts one with default settings.
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    /// Starts one with settings.
    pub(crate) fn with(options: Options) -> Self {
        Self::under(options, Arc::default())
    }

    /// Starts one with settings and a policy.
    pub(crate) fn under(options: Options, policy: Arc<Watched>) -> Self {
        let (n, dir) = Self::directory();
        let database = match std::env::var(POSTGRES) {
            Ok(cluster) => {
                let name = format!("api_{}_{n}", std::process::id());
                psql(&format!("{cluster}/postgres"), &format!("CREATE DATABASE {name}"));
                Database::Postgres(format!("{cluster}/{name}"))
            }
            Err(_) => Database::Sqlite(dir.join("evergate.sqlite")),
        };
        Self::over(&database, options, policy, dir)
    }

    /// Starts one beside a database that others may use, too.
    pub(crate) fn on(database: &Database, options: Options) -> Self {
        Self::over(database, options, Arc::default(), Self::directory().1)
    }

    /// The SQLite file.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("evergate.sqlite")
    }

    /// Makes a directory of the server's own; answers also its number.
    fn directory() -> (u32, PathBuf) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("evergate-api-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        (n, dir)
    }

    fn over(database: &Database, options: Options, policy: Arc<Watched>, dir: PathBuf) -> Self {
        let store = Arc::new(Store::connect(database).unwrap());
        let options = Arc::new(options);
        let state = ApiState::new(Arc::clone(&store), Arc::clone(&options)).under(policy);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        Self { store, options, router: api_router(state), runtime, dir }
    }

    /// Starts one where routers are highly available unless told otherwise, and as many as one likes.
    pub(crate) fn with_many_ha_routers() -> Self {
        let limits = Limits {
            network: -1,
            subnet: -1,
            port: -1,
            router: -1,
            floatingip: -1,
            rbac_policy: -1,
            ..Limits::default()
        };
        Self::with(Options { l3_ha: true, limits, ..Options::default() })
    }

    /// Sends a request with a raw body and headers.
    pub(crate) fn send(&self, who: &Context, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", "api.example:9696");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        request.extensions_mut().insert(who.clone());
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
        })
    }

    /// Starts a request whose body never comes; it goes on until the answer, or until it is aborted.
    pub(crate) fn send_without_end(&self, who: &Context, path: &str) -> JoinHandle<u16> {
        let request = Request::builder().method("POST").uri(path).header("host", "api.example:9696");
        let mut request = request.body(Body::new(Endless)).unwrap();
        request.extensions_mut().insert(who.clone());
        let router = self.router.clone();
        self.runtime.spawn(async move { router.oneshot(request).await.unwrap().status().as_u16() })
    }

    pub(crate) fn get(&self, who: &Context, path: &str) -> Answer {
        self.send(who, "GET", path, &[], "")
    }

    pub(crate) fn post(&self, who: &Context, path: &str, body: Value) -> Answer {
        self.send(who, "POST", path, &[], &body.to_string())
    }

    pub(crate) fn put(&self, who: &Context, path: &str, body: Value) -> Answer {
        self.send(who, "PUT", path, &[], &body.to_string())
    }

    pub(crate) fn delete(&self, who: &Context, path: &str) -> Answer {
        self.send(who, "DELETE", path, &[], "")
    }

    /// Makes an object that must come to be, and answers it unwrapped.
    #[track_caller]
    pub(crate) fn make(&self, who: &Context, singular: &str, attributes: Value) -> Value {
        let answer = self.post(who, &format!("/v2.0/{singular}s"), json!({singular: attributes}));
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body[singular].clone()
    }

    /// Reads an object as an admin sees it.
    #[track_caller]
    pub(crate) fn shown(&self, singular: &str, id: &str) -> Value {
        let answer = self.get(&admin(), &format!("/v2.0/{singular}s/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body[singular].clone()
    }

    /// Lists objects as somebody sees them.
    #[track_caller]
    pub(crate) fn list(&self, who: &Context, collection: &str, query: &str) -> Vec<Value> {
        let answer = self.get(who, &format!("/v2.0/{collection}{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body[collection.replace('-', "_")].as_array().unwrap().clone()
    }

    /// Makes a network with one IPv4 subnet; answers both.
    #[track_caller]
    pub(crate) fn make_network(&self, who: &Context, name: &str, cidr: &str) -> (Value, Value) {
        let network = self.make(who, "network", json!({"name": name}));
        let mut subnet = json!({"name": name, "network_id": network["id"], "ip_version": 4, "cidr": cidr});
        // The server picks at random: what tests pick themselves, it must not have picked before.
        if let Some(start) = cidr.strip_suffix(".0/24") {
            let pool = json!({"start": format!("{start}.110"), "end": format!("{start}.199")});
            subnet["allocation_pools"] = json!([pool]);
        }
        let subnet = self.make(who, "subnet", subnet);
        (network, subnet)
    }

    /// Makes the external network of the recorded deployment.
    #[track_caller]
    pub(crate) fn make_external(&self) -> (Value, Value) {
        let network = json!({
            "name": "ext", "router:external": true,
            "provider:network_type": "flat", "provider:physical_network": "physnet1",
        });
        let network = self.make(&admin(), "network", network);
        let subnet = json!({
            "name": "ext", "network_id": network["id"], "ip_version": 4, "cidr": "203.0.113.0/24",
            "gateway_ip": "203.0.113.254", "enable_dhcp": false,
            "allocation_pools": [{"start": "203.0.113.110", "end": "203.0.113.199"}],
        });
        let subnet = self.make(&admin(), "subnet", subnet);
        (network, subnet)
    }

    /// Lets a host report both of its roles.
    pub(crate) fn host(&self, name: &str) {
        self.host_in_mode(name, "legacy");
    }

    /// Lets a host report both of its roles, with that `agent_mode`.
    pub(crate) fn host_in_mode(&self, name: &str, mode: &str) {
        self.host_with(name, mode, &json!({"physnet1": "br-ex"}));
    }

    /// Lets a host report both of its roles, with that `agent_mode` and those bridges.
    pub(crate) fn host_with(&self, name: &str, mode: &str, bridge_mappings: &Value) {
        let number: u32 = name.trim_start_matches('h').parse().unwrap();
        let tunneling_ip = format!("10.60.0.{}", 10 + number);
        let l2 = json!({"tunneling_ip": tunneling_ip, "tunnel_types": ["vxlan"], "bridge_mappings": bridge_mappings});
        let l3 = json!({"agent_mode": mode, "interface_driver": "linuxbridge"});
        let report = |kind, configurations: &Value, zone: Option<&str>| AgentReport {
            kind,
            availability_zone: zone.map(str::to_owned),
            configurations: configurations.as_object().unwrap().clone(),
        };
        self.write(|tx| {
            agent::upsert(tx, &self.options, name, &report(AgentKind::LinuxBridge, &l2, None), false)?;
            let l3 = agent::upsert(tx, &self.options, name, &report(AgentKind::L3, &l3, Some("nova")), false)?;
            if l3.has_new_mode {
                ha::vacate_unfit(tx, &self.options, l3.id)?;
            }
            if l3.is_new {
                ha::schedule_missing(tx, &self.options)?;
            }
            dvr::settle(tx, &self.options)
        });
    }

    /// Three network hosts.
    pub(crate) fn hosts(&self) {
        ["h1", "h2", "h3"].into_iter().for_each(|name| self.host(name));
    }

    /// Lets a host say what one of its copies is.
    pub(crate) fn report_state(&self, host: &str, router: &Value, state: HaState, epoch: u64) {
        let router: RouterId = router["id"].as_str().unwrap().parse().unwrap();
        let states = BTreeMap::from([(router, HaStateReport { state, epoch })]);
        self.write(|tx| ha::record_states(tx, host, &states));
    }

    /// Makes a host's agents look as if they had been silent for long.
    pub(crate) fn silence(&self, host: &str) {
        self.write(|tx| {
            let sql = "UPDATE agents SET heartbeat_at = '2020-01-01T00:00:00Z' WHERE host = ?1";
            tx.execute(sql, &evergate_server::values![host])?;
            Ok(())
        });
    }

    /// Writes past the API.
    #[track_caller]
    pub(crate) fn write<T>(&self, work: impl Fn(&evergate_server::store::Tx<'_>) -> Result<T, ApiError>) -> T {
        self.store.write(work).unwrap()
    }

    /// What a host is told.
    pub(crate) fn told(&self, host: &str) -> HostConfig {
        self.store.read(|tx| hostview::host_config(tx, &self.options, host)).unwrap()
    }

    /// `ha_state` of every copy, by host.
    #[track_caller]
    pub(crate) fn ha_states(&self, router: &Value) -> BTreeMap<String, String> {
        let path = format!("/v2.0/routers/{}/l3-agents", router["id"].as_str().unwrap());
        let answer = self.get(&admin(), &path);
        assert_eq!(answer.status, 200, "{answer:?}");
        let word = |agent: &Value, key: &str| agent[key].as_str().unwrap_or("null").to_owned();
        answer.body["agents"].as_array().unwrap().iter().map(|a| (word(a, "host"), word(a, "ha_state"))).collect()
    }

    /// Everything the database holds but its own history: for "nothing was changed".
    pub(crate) fn dump(&self) -> String {
        let sqlite = self.store.dialect() == Dialect::Sqlite;
        let tables = if sqlite {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        } else {
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        };
        let dump = |tx: &evergate_server::store::Tx<'_>| -> Result<String, ApiError> {
            let mut text = String::new();
            for table in tx.query(tables, &[], |row| row.text(0))? {
                let rows = if sqlite {
                    let columns = format!("SELECT group_concat(name, ', ') FROM pragma_table_info('{table}')");
                    let columns = tx.query(&columns, &[], |row| row.text(0))?.concat();
                    format!("SELECT json_array({columns}) FROM {table} ORDER BY 1")
                } else {
                    format!("SELECT row_to_json(t)::text FROM {table} t ORDER BY 1")
                };
                text.push_str(&format!("== {table}\n{}\n", tx.query(&rows, &[], |row| row.text(0))?.join("\n")));
            }
            Ok(text)
        };
        self.store.read(dump).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A body that is announced, and does not come.
struct Endless;

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Pending
    }
}

/// An object's id.
#[track_caller]
pub(crate) fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

/// Values of one attribute, sorted.
pub(crate) fn pick(objects: &[Value], key: &str) -> Vec<String> {
    let mut values: Vec<String> = objects
        .iter()
        .map(|object| object[key].as_str().map_or_else(|| object[key].to_string(), str::to_owned))
        .collect();
    values.sort();
    values
}

/// A generator whose whole state is its seed (Marsaglia, "Xorshift RNGs", 2003).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % sides as u64) as usize
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }
}
