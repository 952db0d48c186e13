//! Speed and memory of the API: how long requests take, one after the other and by eight clients at once, beside
//! Neutron's figures; what ports cost the server; how soon it is there.
//!
//! The server is the real one on loopback, on SQLite and, where Debian's PostgreSQL is installed and this runs as
//! root, on PostgreSQL too. The callers are one process: this one. `EVERGATE_BENCH_CALLS` (500) is how many objects
//! of a kind are made in each way, `EVERGATE_BENCH_ROUTERS` (1000) and `EVERGATE_BENCH_LISTED_PORTS` (10000) how
//! long the lists are, `EVERGATE_BENCH_PORTS` (100000) with how many ports memory is measured; 0 leaves that out.

#[expect(clippy::unwrap_used, reason = "without a cluster there is nothing to measure")]
#[path = "../crates/server/tests/support/postgres.rs"]
mod postgres;

#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/members.rs"]
mod members;
#[path = "support/percentile.rs"]
mod percentile;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use api_server::{BULK, Client, Server};
use percentile::percentile;
use serde_json::{Value, json};

const CLIENTS: usize = 8;
/// Projects that routers are spread over: a project's HA routers share 254 VRIDs.
const PROJECTS: usize = 16;

/// What is measured, with Neutron 25.2.3's figures where there are any: a two-core machine of the same kind, its
/// server with MariaDB and RabbitMQ; the least loaded median of the wall-clock time, and the processor time of all
/// three per request. One client is compared with a core's worth of the latter, eight with two cores'.
const NEUTRON: &[(&str, Option<f64>, f64)] = &[
    ("network create", Some(146.0), 125.0),
    ("subnet create", Some(95.0), 128.0),
    ("port create", Some(173.0), 264.0),
    ("HA router create", Some(1565.0), 1695.0),
    ("add interface", None, 970.0),
    ("router show", Some(26.0), 30.0),
    // Of 1,000.
    ("list 100 ports", None, 294.0),
];

/// The same for whole lists, which take as long as they are long.
const NEUTRON_LISTS: &str = "Neutron: 1,000 routers 1900 ms, 831 ms CPU; 1,000 ports 5000 ms, 2286 ms CPU";

fn main() -> Result<()> {
    let sizes = Sizes::asked_for();
    println!("SQLite");
    measure(&sizes, None)?;
    if !std::path::Path::new("/usr/lib/postgresql").exists() || !api_server::is_root() {
        println!("PostgreSQL is left out: it takes Debian's package, and root to start a cluster of its own");
        return Ok(());
    }
    // As one in earnest does it: every commit is synced.
    let cluster = postgres::Cluster::start_with(true);
    println!("PostgreSQL");
    measure(&sizes, Some(&cluster.make_database()))
}

struct Sizes {
    calls: usize,
    routers: usize,
    listed: usize,
    ports: usize,
}

impl Sizes {
    fn asked_for() -> Self {
        let number = |name: &str, default| {
            std::env::var(format!("EVERGATE_BENCH_{name}")).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
        };
        Self {
            calls: number("CALLS", 500),
            routers: number("ROUTERS", 1000),
            listed: number("LISTED_PORTS", 10_000),
            ports: number("PORTS", 100_000),
        }
    }
}

fn measure(sizes: &Sizes, database: Option<&str>) -> Result<()> {
    let server = Server::start(database)?;
    println!("  start-up until it listens      {:8.0} ms", server.started_in.as_secs_f64() * 1000.0);
    println!("  memory at rest                 {:8.1} MiB PSS", server.pss_mib()?);
    let mut client = server.client()?;
    for host in 0..3 {
        client.report(host)?;
    }
    println!("  {:24}        p50 ms   p99 ms  per second  Neutron: p50 ms  CPU ms  times faster", "");
    let made = writes(&server, sizes)?;
    reads(&server, sizes, &made)?;
    if sizes.ports > 0 {
        memory(&server, sizes.ports)?;
    }
    Ok(())
}

/// What the writes have left for the reads.
struct Made {
    router: String,
    network: String,
}

fn writes(server: &Server, sizes: &Sizes) -> Result<Made> {
    let (calls, all) = (sizes.calls, 2 * sizes.calls);
    let networks = both(server, "network create", calls, |client, n| {
        client.make("network", &json!({"name": format!("n{n}"), "project_id": project(n)}))
    })?;
    let subnets = both(server, "subnet create", calls, |client, n| {
        let (a, b) = (n / 256 % 256, n % 256);
        let subnet = json!({"network_id": networks[n], "ip_version": 4, "cidr": format!("10.{a}.{b}.0/24")});
        client.make("subnet", &subnet)
    })?;
    both(server, "port create", calls, |client, n| {
        client.make("port", &json!({"network_id": networks[n], "project_id": project(n)}))
    })?;
    let routers = both(server, "HA router create", calls, |client, n| {
        client.make("router", &json!({"name": format!("r{n}"), "ha": true, "project_id": project(n)}))
    })?;
    both(server, "add interface", calls, |client, n| {
        let path = format!("/v2.0/routers/{}/add_router_interface", routers[n]);
        client.call("PUT", &path, &json!({"subnet_id": subnets[n]})).map(|_| String::new())
    })?;
    // The lists are as long as was asked for.
    let mut client = server.client()?;
    for n in all..sizes.routers.max(all) {
        client.make("router", &json!({"name": format!("r{n}"), "ha": true, "project_id": project(n)}))?;
    }
    let network = client.make("network", &json!({"name": "large"}))?;
    client.make("subnet", &json!({"network_id": network, "ip_version": 4, "cidr": "172.16.0.0/12"}))?;
    client.make_ports(&network, sizes.listed)?;
    let router = routers.into_iter().next().context("a router")?;
    Ok(Made { router, network })
}

fn reads(server: &Server, sizes: &Sizes, made: &Made) -> Result<()> {
    let few = (sizes.calls / 10).max(2);
    let get = |what: &str, calls: usize, path: &str, at_least: usize| -> Result<()> {
        let ask = |client: &mut Client, _| {
            let answer = client.call("GET", path, &Value::Null)?;
            let rows = answer.as_object().and_then(|answer| answer.values().find_map(Value::as_array)).map(Vec::len);
            ensure!(rows.is_none_or(|rows| rows >= at_least), "{path} answered {rows:?} objects");
            Ok(String::new())
        };
        both(server, what, calls, ask).map(drop)
    };
    get("router show", sizes.calls, &format!("/v2.0/routers/{}", made.router), 0)?;
    println!("  the lists below are of {} routers, or of {} ports of one network", sizes.routers, sizes.listed);
    println!("  {NEUTRON_LISTS}");
    let routers = format!("/v2.0/routers?limit={}", sizes.routers);
    get("list routers", few, &routers, sizes.routers.min(2 * sizes.calls))?;
    let ports = format!("/v2.0/ports?network_id={}", made.network);
    get("list ports", few, &ports, sizes.listed)?;
    get("list 100 ports", few, &format!("{ports}&limit=100"), sizes.listed.min(100))?;
    get("list ports by name", few, &format!("{ports}&name=p7"), 1)?;
    get("list ports, three fields", few, &format!("{ports}&fields=id&fields=name&fields=fixed_ips"), sizes.listed)?;
    get("list a router's ports", few, &format!("/v2.0/ports?device_id={}", made.router), 1)
}

/// Memory with many ports, on networks of their own.
fn memory(server: &Server, ports: usize) -> Result<()> {
    let mut client = server.client()?;
    let before = server.pss_mib()?;
    let start = Instant::now();
    let network = client.make("network", &json!({"name": "larger"}))?;
    client.make("subnet", &json!({"network_id": network, "ip_version": 4, "cidr": "11.0.0.0/8"}))?;
    client.make_ports(&network, ports)?;
    let each = start.elapsed().as_secs_f64() * 1000.0 / ports as f64;
    println!("  memory before, and with {ports} more ports  {before:.1}, {:.1} MiB PSS", server.pss_mib()?);
    println!("  each of them, made {BULK} a request           {each:.2} ms");
    Ok(())
}

fn project(n: usize) -> String {
    format!("{:032x}", 1 + n % PROJECTS)
}

/// Makes calls one after the other, then as many by several clients; answers what came of them, in order.
fn both(
    server: &Server,
    what: &str,
    calls: usize,
    call: impl Fn(&mut Client, usize) -> Result<String> + Sync,
) -> Result<Vec<String>> {
    let mut made = run(server, what, 1, 0..calls, &call)?;
    made.extend(run(server, what, CLIENTS, calls..2 * calls, &call)?);
    Ok(made)
}

fn run(
    server: &Server,
    what: &str,
    clients: usize,
    range: std::ops::Range<usize>,
    call: &(impl Fn(&mut Client, usize) -> Result<String> + Sync),
) -> Result<Vec<String>> {
    let next = AtomicUsize::new(range.start);
    let mut connections = (0..clients).map(|_| server.client()).collect::<Result<Vec<_>>>()?;
    let work = &|client: &mut Client| -> Result<Vec<(usize, f64, String)>> {
        let mut done = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= range.end {
                return Ok(done);
            }
            let start = Instant::now();
            let answer = call(client, n)?;
            done.push((n, start.elapsed().as_secs_f64() * 1000.0, answer));
        }
    };
    let start = Instant::now();
    let parts = thread::scope(|scope| {
        let threads: Vec<_> = connections.iter_mut().map(|client| scope.spawn(move || work(client))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })
    .with_context(|| what.to_owned())?;
    let took = start.elapsed().as_secs_f64();
    let mut done: Vec<_> = parts.into_iter().flatten().collect();
    done.sort_by_key(|(n, ..)| *n);
    print_row(what, clients, &done.iter().map(|(_, took, _)| *took).collect::<Vec<_>>(), took);
    Ok(done.into_iter().map(|(.., answer)| answer).collect())
}

/// One row; the last column compares throughput with what Neutron's processor time lets two cores do.
fn print_row(what: &str, clients: usize, times: &[f64], took: f64) {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| percentile(&times, share);
    let rate = times.len() as f64 / took;
    let neutron = NEUTRON.iter().find(|(name, ..)| *name == what);
    let beside = neutron.map_or_else(String::new, |(_, p50, cpu)| {
        let p50 = p50.map_or_else(|| "-".to_owned(), |p50| format!("{p50:.0}"));
        let cores = if clients == 1 { 1.0 } else { 2.0 };
        format!("{p50:>15} {cpu:7.0} {:13.0}", rate * cpu / (1000.0 * cores))
    });
    let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
    println!("  {what:24} {who:9} {:5.1} {:8.1} {rate:11.0}  {beside}", at(0.5), at(0.99));
}
