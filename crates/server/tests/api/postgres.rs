//! PostgreSQL: the same API on it, several servers beside it, and what becomes of it.
//!
//! Tests that need other processes run this program once more as a child.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use evergate_config::Database;
use evergate_server::dvr;
use evergate_server::options::{Limits, Options};
use evergate_server::resources::{self, Call};
use evergate_server::store::{Kind, Store, StoreError};
use evergate_server::values;
use serde_json::{Value, json};

use crate::harness::{POSTGRES, PROJECT, Server, admin, id, member, pick};
use crate::support::{Cluster, Port};

/// Tells a child which database to race for.
const RACE: &str = "EVERGATE_TEST_RACE";
/// Networks that the racing project may have.
const NETWORK_LIMIT: i64 = 12;
/// Rounds of each of a racer's threads.
const ROUNDS: usize = 6;
const THREADS: usize = 3;

#[test]
fn everything_behaves_the_same_on_postgresql() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let cluster = Cluster::start();
    let url = cluster.url("");
    let output = Command::new(std::env::current_exe().unwrap())
        // Not this one again; nor what is about SQLite's file, or takes long (it can be run by hand).
        .args([
            "--skip",
            "postgres::",
            "--skip",
            "durability::",
            "--skip",
            "speed::",
            "--skip",
            "fuzz::",
            "--skip",
            "outages::",
        ])
        .env(POSTGRES, url.trim_end_matches('/'))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn race_options() -> Options {
    let limits = Limits { network: NETWORK_LIMIT, router: -1, floatingip: -1, port: -1, ..Limits::default() };
    Options { l3_ha: true, limits, ..Options::default() }
}

/// What a racer is to fight for, as JSON.
fn race_for(database: &str) -> ! {
    let server = Server::on(&Database::Postgres(database.to_owned()), race_options());
    let mut line = String::new();
    println!("racer ready");
    std::io::stdin().read_line(&mut line).unwrap();
    let prizes: Value = serde_json::from_str(&line).unwrap();
    let ours = member(PROJECT);
    let round = |n: usize, at: usize| {
        let fresh = member(&format!("fresh-{at}"));
        let tries = [
            ("port", server.post(&admin(), "/v2.0/ports", json!({"port": {"network_id": prizes["small"]}}))),
            ("router", server.post(&ours, "/v2.0/routers", json!({"router": {"name": format!("r{n}")}}))),
            ("network", server.post(&ours, "/v2.0/networks", json!({"network": {"name": format!("n{n}")}}))),
            ("interface", {
                let path = format!("/v2.0/routers/{}/add_router_interface", prizes["router"].as_str().unwrap());
                server.put(&admin(), &path, json!({"subnet_id": prizes["subnet"]}))
            }),
            ("floatingip", {
                let body = json!({"floatingip": {"floating_network_id": prizes["external"]}});
                server.post(&ours, "/v2.0/floatingips", body)
            }),
            ("forwarding", {
                let path = format!("/v2.0/floatingips/{}/port_forwardings", prizes["floating"].as_str().unwrap());
                let mut body = prizes["forwarding"].clone();
                (body["external_port"], body["internal_port"]) = (json!(8000 + at), json!(80 + at));
                server.post(&admin(), &path, json!({"port_forwarding": body}))
            }),
            ("group", server.get(&fresh, "/v2.0/security-groups")),
            ("cut", {
                let body = json!({"network_id": prizes["cut"], "ip_version": 4, "subnetpool_id": prizes["pool"],
                                  "prefixlen": 28});
                server.post(&admin(), "/v2.0/subnets", json!({"subnet": body}))
            }),
            ("prefix", {
                // Both pools are of one scope, in which a prefix is once.
                let pool = prizes["scoped"][(n + at) % 2].as_str().unwrap();
                let body = json!({"prefixes": [format!("10.{}.0.0/16", 100 + 2 * at)]});
                server.put(&admin(), &format!("/v2.0/subnetpools/{pool}/add_prefixes"), body)
            }),
        ];
        for (what, answer) in tries {
            println!("racer {what} {} {}", answer.status, answer.message());
        }
    };
    thread::scope(|scope| {
        (0..THREADS).for_each(|n| drop(scope.spawn(move || (0..ROUNDS).for_each(|at| round(n, at)))));
    });
    println!("racer done");
    // What the harness would say now nobody reads.
    std::process::exit(0);
}

fn racer(test: &str, database: &str) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(RACE, database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.filter_map(|line| line.strip_prefix("racer ").map(str::to_owned));
    assert_eq!(lines.next().as_deref(), Some("ready"));
    (child, lines.take_while(|line| line != "done"))
}

#[test]
fn two_servers_that_race_break_nothing() {
    if let Ok(database) = std::env::var(RACE) {
        race_for(&database);
    }
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let cluster = Cluster::start();
    let url = cluster.make_database();
    let server = Server::on(&Database::Postgres(url.clone()), race_options());
    server.hosts();
    let (small, _) = server.make_network(&admin(), "small", "10.0.0.0/27");
    let (external, _) = server.make_external();
    // Somebody else's, so that the racers' project has no HA network yet.
    let other = member("other");
    let router = server.make(&other, "router", json!({"name": "first"}));
    let (_, subnet) = server.make_network(&other, "inside", "10.1.0.0/24");
    let prizes = json!({
        "small": small["id"], "external": external["id"], "router": router["id"], "subnet": subnet["id"],
    });
    let prizes = with_more_prizes(&server, prizes);
    let test = "postgres::two_servers_that_race_break_nothing";
    let mut racers = [racer(test, &url), racer(test, &url)];
    for (child, _) in &mut racers {
        writeln!(child.stdin.as_mut().unwrap(), "{prizes}").unwrap();
    }
    let mut lines = Vec::new();
    for (mut child, said) in racers {
        lines.extend(said);
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(lines.len(), 2 * THREADS * ROUNDS * 9, "every request was answered");
    let with = |prefix: &str| lines.iter().filter(|line| line.starts_with(prefix)).count();
    assert!(
        lines.iter().all(|line| ["200", "201", "400", "409"].iter().any(|s| line.split(' ').nth(1) == Some(s))),
        "{lines:?}"
    );

    // 32 addresses but for network, broadcast and gateway.
    let ports = server.list(&admin(), "ports", &format!("?network_id={}", id(&small)));
    let addresses: BTreeSet<String> = ports.iter().map(|port| port["fixed_ips"][0]["ip_address"].to_string()).collect();
    assert_eq!((ports.len(), addresses.len(), with("port 201")), (29, 29, 29));
    // The first routers of a project, all at once: one HA network, and each VRID once.
    let routers = server.list(&member(PROJECT), "routers", "");
    assert_eq!((routers.len(), with("router 201")), (2 * THREADS * ROUNDS, 2 * THREADS * ROUNDS));
    let vrids = "SELECT h.vrid FROM ha_routers h JOIN routers r ON r.id = h.router_id WHERE r.project_id = ?1";
    let vrids = server.write(|tx| Ok(tx.query(vrids, &evergate_server::values![PROJECT], |row| row.int(0))?));
    assert_eq!((vrids.len(), vrids.into_iter().collect::<BTreeSet<_>>().len()), (routers.len(), routers.len()));
    let ha_networks = "SELECT count(*) FROM ha_networks WHERE project_id = ?1";
    assert_eq!(server.write(|tx| Ok(tx.count(ha_networks, &evergate_server::values![PROJECT])?)), 1);
    // The limit, and not one more.
    let networks = server.list(&member(PROJECT), "networks", &format!("?project_id={PROJECT}")).len();
    assert_eq!(
        (networks as i64, with("network 201") as i64),
        (NETWORK_LIMIT, NETWORK_LIMIT - 2),
        "two were there before"
    );
    assert_eq!(with("interface 200"), 1);
    let floating = server.list(&member(PROJECT), "floatingips", "");
    assert_eq!(floating.len(), with("floatingip 201"));
    assert_eq!(pick(&floating, "floating_ip_address").into_iter().collect::<BTreeSet<_>>().len(), floating.len());
    check_more_prizes(&server, &prizes, &with);
    // Every revision is in the log once, in the order in which it became visible.
    let count = "SELECT count(DISTINCT revision) FROM changes";
    let (logged, newest) = server.write(|tx| Ok((tx.count(count, &[])?, tx.revision()?)));
    assert_eq!(logged as u64, newest);
}

/// A floating IP and where its ports are to lead, a pool that has room for four subnets, and two pools of one scope.
fn with_more_prizes(server: &Server, mut prizes: Value) -> Value {
    let other = member("other");
    let gateway = json!({"external_gateway_info": {"network_id": prizes["external"]}});
    let router = server.make(&other, "router", gateway);
    let (network, subnet) = server.make_network(&other, "forwarded", "10.2.0.0/24");
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(server.put(&other, &path, json!({"subnet_id": subnet["id"]})).status, 200);
    let port = server.make(&other, "port", json!({"network_id": network["id"]}));
    let address = &port["fixed_ips"][0]["ip_address"];
    let floating = server.make(&other, "floatingip", json!({"floating_network_id": prizes["external"]}));
    prizes["floating"] = floating["id"].clone();
    prizes["forwarding"] = json!({
        "internal_port_id": port["id"], "internal_ip_address": address, "protocol": "tcp",
    });
    let pool = json!({"name": "small", "prefixes": ["10.64.0.0/26"], "min_prefixlen": 26});
    prizes["pool"] = server.make(&other, "subnetpool", pool)["id"].clone();
    prizes["cut"] = server.make(&other, "network", json!({"name": "cut"}))["id"].clone();
    let scope = server.post(&other, "/v2.0/address-scopes", json!({"address_scope": {"ip_version": 4}}));
    let scoped = ["10.65.0.0/16", "10.67.0.0/16"].map(|prefix| {
        let body =
            json!({"name": "scoped", "prefixes": [prefix], "address_scope_id": scope.body["address_scope"]["id"]});
        server.make(&other, "subnetpool", body)["id"].clone()
    });
    prizes["scoped"] = json!(scoped);
    prizes
}

fn check_more_prizes(server: &Server, prizes: &Value, with: &dyn Fn(&str) -> usize) {
    let path = format!("/v2.0/floatingips/{}/port_forwardings", prizes["floating"].as_str().unwrap());
    let forwardings = server.get(&admin(), &path).body["port_forwardings"].as_array().unwrap().clone();
    let ports: BTreeSet<String> = pick(&forwardings, "external_port").into_iter().collect();
    assert_eq!((forwardings.len(), ports.len(), with("forwarding 201")), (ROUNDS, ROUNDS, ROUNDS));
    let defaults = "SELECT count(*) FROM security_groups WHERE is_default = 1 AND project_id LIKE 'fresh-%'";
    assert_eq!(server.write(|tx| Ok(tx.count(defaults, &[])?)), ROUNDS as i64, "each project's is made once");
    let cut = server.list(&admin(), "subnets", &format!("?subnetpool_id={}", prizes["pool"].as_str().unwrap()));
    let cidrs: BTreeSet<String> = pick(&cut, "cidr").into_iter().collect();
    assert_eq!((cut.len(), cidrs.len(), with("cut 201")), (4, 4, 4));
    let prefixes = prizes["scoped"].as_array().unwrap().iter().flat_map(|pool| {
        let pool = server.shown("subnetpool", pool.as_str().unwrap());
        pool["prefixes"].as_array().unwrap().clone()
    });
    let prefixes: Vec<String> = prefixes.map(|prefix| prefix.to_string()).collect();
    let distinct: BTreeSet<&String> = prefixes.iter().collect();
    assert_eq!((prefixes.len(), distinct.len()), (ROUNDS + 2, ROUNDS + 2));
    assert!(with("prefix 200") >= ROUNDS, "who adds what a pool has is content, too");
}

fn store(url: &str) -> Store {
    Store::connect(&Database::Postgres(url.to_owned())).unwrap()
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come in time");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_hears_of_another_servers_writes_also_after_the_database_was_away() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start();
    let url = cluster.make_database();
    let (here, there) = (store(&url), store(&url));
    let heard = there.subscribe();
    let write = || {
        here.write(|tx| {
            tx.changed(evergate_server::store::Kind::Agent, "a");
            tx.revision()
        })
    };
    for _ in 0..3 {
        let revision = write().unwrap() + 1;
        wait_for("the news", || (*heard.borrow() == revision).then_some(()));
    }
    cluster.stop();
    let error = write().unwrap_err();
    assert!(error.outage().is_some(), "{error}");
    cluster.start_again();
    let revision = write().unwrap() + 1;
    wait_for("the news after the outage", || (*heard.borrow() == revision).then_some(()));
}

#[test]
fn a_deployment_moves_from_sqlite_to_an_empty_database_and_to_no_other() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let old = Server::with(Options { l3_ha: true, ..Options::default() });
    old.hosts();
    let (external, _) = old.make_external();
    let (_, subnet) = old.make_network(&member(PROJECT), "inside", "10.1.0.0/24");
    let gateway = json!({"name": "r", "external_gateway_info": {"network_id": external["id"]}});
    let router = old.make(&member(PROJECT), "router", gateway);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(old.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]})).status, 200);
    old.make(&member(PROJECT), "floatingip", json!({"floating_network_id": external["id"]}));
    let everything = |server: &Server| {
        let collections = ["networks", "subnets", "ports", "routers", "floatingips", "agents", "security-groups"];
        let lists = collections.map(|collection| server.list(&admin(), collection, "?sort_key=id&sort_dir=asc"));
        (lists, server.told("h1"))
    };

    // A look makes the default security group, so before the copy.
    let before = everything(&old);
    let cluster = Cluster::start();
    let url = Database::Postgres(cluster.make_database());
    let file = Database::Sqlite(old.file());
    assert!(evergate_server::store::copy(&file, &url).unwrap() > 30);
    let new = Server::on(&url, Options { l3_ha: true, ..Options::default() });
    assert!(everything(&new) == before, "{:?}\n{before:?}", everything(&new));
    // It goes on where the old one was.
    assert_eq!(new.post(&member(PROJECT), "/v2.0/routers", json!({"router": {"name": "s"}})).status, 201);
    let again = evergate_server::store::copy(&file, &url).unwrap_err().to_string();
    assert!(again.contains("not empty") && again.contains("routers"), "{again}");
    let back = evergate_server::store::copy(&url, &file).unwrap_err().to_string();
    assert!(back.contains("from SQLite to PostgreSQL only"), "{back}");
}

#[test]
fn what_one_server_carries_another_hears() {
    let cluster = Cluster::start();
    let url = cluster.make_database();
    let (one, other) = (store(&url), store(&url));
    let (told, heard) = std::sync::mpsc::channel();
    other.on_carried(Box::new(move |text| drop(told.send(text.to_owned()))));
    let longest = "x".repeat(5000);
    for text in ["it's a 'quoted' one", &longest] {
        // What is said before both have their connection is lost.
        let text_heard = wait_for("it is heard", || {
            one.carry(text.to_owned());
            heard.recv_timeout(Duration::from_millis(100)).ok().filter(|heard| heard == text)
        });
        assert_eq!(text_heard, text);
    }
    // One that PostgreSQL does not take is lost, and the connection goes on: what comes right after it is heard.
    one.carry("x".repeat(9000));
    one.carry("after it".to_owned());
    wait_for("what came after it is heard", || heard.try_iter().find(|heard| heard == "after it"));
}

#[test]
fn a_server_of_a_later_version_is_not_overrun() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let cluster = Cluster::start();
    let url = cluster.make_database();
    drop(store(&url));
    crate::support::psql(&url, "UPDATE schema_version SET version = 9999");
    let error = Store::connect(&Database::Postgres(url)).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 9999, .. }), "{error}");
}

#[test]
fn tls_to_the_database_is_spoken_as_the_url_says() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start();
    let url = cluster.make_database();
    let directory = std::env::temp_dir().join(format!("evergate-database-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let file = directory.join(name);
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        (rcgen::Issuer::new(params, key), file.display().to_string())
    };
    let ((issuer, root), (_, other)) = (authority("root"), authority("other"));
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let open = |url: &str| Store::connect(&Database::from_url(url).unwrap()).map_err(|error| error.to_string());

    let refused = open(&format!("{url}?sslmode=require")).map(drop).unwrap_err();
    assert!(!refused.contains("a-password-of-the-tests"), "{refused}");
    cluster.speak_tls(&certificate, &key.serialize_pem());
    let is_encrypted = |url: &str| -> Result<bool, String> {
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let store = open(url)?;
        // A write as well: writer, readers and follower are connections of their own.
        store.write::<_, StoreError>(|tx| tx.set_setting("x", "y")).unwrap();
        Ok(store.read::<_, StoreError>(|tx| tx.query_opt(sql, &[], |row| row.bool(0))).unwrap().unwrap())
    };
    assert_eq!(is_encrypted(&url), Ok(false));
    for mode in ["prefer", "require"] {
        assert_eq!(is_encrypted(&format!("{url}?sslmode={mode}")), Ok(true), "{mode}");
    }
    let by_name = url.replace("127.0.0.1", "localhost");
    for (url, mode, root, good) in [
        (&url, "verify-full", &root, true),
        (&url, "verify-ca", &root, true),
        (&url, "require", &root, true),
        (&by_name, "verify-ca", &root, true),
        (&by_name, "verify-full", &root, false),
        (&url, "verify-full", &other, false),
        (&url, "require", &other, false),
    ] {
        let found = is_encrypted(&format!("{url}?sslmode={mode}&sslrootcert={root}"));
        match found {
            Ok(encrypted) => assert!(good && encrypted, "{mode} {root}"),
            Err(why) => assert!(!good && why.contains("its certificate is not one"), "{mode} {root}: {why}"),
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_clusters_port_is_nobody_elses_while_it_is_stopped() {
    let (one, other) = (Port::reserve(), Port::reserve());
    assert_ne!(one.number, other.number);
    let given = (0..100).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let ends: Vec<u16> = range.split_whitespace().map(|end| end.parse().unwrap()).collect();
    for port in [&one, &other] {
        assert!(!(ends[0]..=ends[1]).contains(&port.number), "{range}");
        assert!(given.iter().all(|listener| listener.local_addr().unwrap().port() != port.number));
    }
}

#[test]
fn what_a_statement_did_wrong_that_nobody_asked_about_is_told_instead_of_success() {
    let cluster = Cluster::start();
    let store = Store::connect(&Database::Postgres(cluster.make_database())).unwrap();
    let insert = "INSERT INTO settings (name, value) VALUES (?1, ?2)";
    store.write(|tx| tx.execute(insert, &values!["a", "1"])).unwrap();
    let is_constraint = |result: Result<(), StoreError>| matches!(result, Err(StoreError::Constraint { .. }));
    // With the COMMIT, and with a question after it.
    assert!(is_constraint(store.write(|tx| {
        tx.execute(insert, &values!["b", "1"])?;
        tx.execute(insert, &values!["a", "2"])?;
        tx.execute(insert, &values!["c", "1"])
    })));
    let mut asked = 0;
    assert!(is_constraint(store.write(|tx| {
        tx.execute(insert, &values!["a", "2"])?;
        let before = tx.ask("SELECT value FROM settings WHERE name = 'a'", &[])?;
        asked += 1;
        before.rows(|row| row.text(0)).map(drop)
    })));
    assert_eq!(asked, 3, "a lost race is tried again");
    assert!(is_constraint(store.write(|tx| {
        tx.execute(insert, &values!["a", "2"])?;
        tx.changed(Kind::Router, "r");
        Ok(())
    })));
    let kept = store.read(|tx| tx.query("SELECT name FROM settings WHERE length(name) = 1", &[], |row| row.text(0)));
    assert_eq!(kept.unwrap(), ["a"]);
    assert_eq!(*store.subscribe().borrow(), 0);
    // Answers come to their questions, each as of when it was asked.
    let read = store.write(|tx| {
        let count = |name: &str| tx.ask("SELECT count(*) FROM settings WHERE name = ?1", &values![name]);
        let (a, none) = (count("a")?, count("z")?);
        let (none, a) = (none.rows(|row| row.int(0))?, a.rows(|row| row.int(0))?);
        tx.execute(insert, &values!["z", "1"])?;
        Ok::<_, StoreError>((a, none, count("z")?.rows(|row| row.int(0))?, tx.exchanges()))
    });
    assert_eq!(read.unwrap(), (vec![1], vec![0], vec![1], 2));
}

#[test]
fn a_write_waits_for_the_database_a_few_times() {
    let cluster = Cluster::start();
    let server = Server::on(&Database::Postgres(cluster.make_database()), race_options());
    server.hosts();
    let who = admin();
    let (network, _) = server.make_network(&who, "net", "10.0.0.0/24");
    let subnet = json!({"subnet": {"network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24"}});
    // The COMMIT is one more.
    for (collection, body, most) in [
        ("networks", json!({"network": {}}), 4),
        ("subnets", subnet, 4),
        ("ports", json!({"port": {"network_id": network["id"]}}), 6),
        ("routers", json!({"router": {}}), 16),
    ] {
        let resource = resources::find(collection).unwrap();
        let posted = resources::read_post(&who, resource, body.as_object().unwrap()).unwrap();
        let exchanges = server.write(|tx| {
            resources::create(Call { tx, ctx: &who, options: &server.options }, resource, &posted)?;
            dvr::settle(tx, &server.options)?;
            Ok(tx.exchanges())
        });
        assert!(exchanges <= most, "{collection}: {exchanges}");
    }
}
