//! What a PostgreSQL can suffer, for real: stopped, killed under load, frozen, read-only, a standby, without
//! room for connections or on its disk. The API says what it is, what was acknowledged stays, what was refused is
//! not there, and the servers go on by themselves when it is over.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use evergate_config::Database;
use evergate_server::options::{Limits, Options};
use serde_json::json;

use crate::harness::{Answer, POSTGRES, Server, admin, pick};
use crate::postgres::wait_for;
use crate::support::{Cluster, psql};

/// Writes that are acknowledged between two disasters.
const WRITES_BETWEEN: usize = 60;

fn options() -> Options {
    Options { limits: Limits { network: -1, ..Limits::default() }, ..Options::default() }
}

fn write(server: &Server, name: &str) -> Answer {
    server.post(&admin(), "/v2.0/networks", json!({"network": {"name": name, "description": "a".repeat(200)}}))
}

fn read(server: &Server) -> Answer {
    server.get(&admin(), "/v2.0/networks")
}

fn names(server: &Server) -> BTreeSet<String> {
    pick(&server.list(&admin(), "networks", ""), "name").into_iter().collect()
}

#[track_caller]
fn refused(answer: Answer, why: &str) {
    assert_eq!((answer.status, answer.error()), (503, "HTTPServiceUnavailable"), "{answer:?}");
    assert!(answer.message().contains(why), "{answer:?}");
}

#[track_caller]
fn works_again(server: &Server, name: &str) {
    wait_for("reading", || (read(server).status == 200).then_some(()));
    wait_for("writing", || (write(server, name).status == 201).then_some(()));
}

#[test]
fn what_ails_the_database_is_told_and_ends_by_itself() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start();
    let url = cluster.make_database();
    let server = Server::on(&Database::Postgres(url), Options::default());
    let (write, read) = (|name: &str| write(&server, name), || read(&server));
    let works_again = |name: &str| works_again(&server, name);
    assert_eq!((write("before").status, read().status), (201, 200));

    cluster.stop();
    refused(write("while-gone"), "does not answer");
    refused(read(), "does not answer");
    cluster.start_again();
    works_again("after-gone");

    let set = |mode: &str| {
        cluster.sql("postgres", &format!("ALTER SYSTEM SET default_transaction_read_only = {mode}"));
        cluster.sql("postgres", "SELECT pg_reload_conf()");
    };
    set("on");
    // The setting takes effect a moment later: what is written until then is written.
    wait_for("the refusal", || (write("until-read-only").status == 503).then_some(()));
    refused(write("while-read-only"), "is read-only");
    assert_eq!(read().status, 200);
    set("off");
    works_again("after-read-only");

    cluster.freeze(true);
    refused(write("while-frozen"), "takes too long");
    refused(read(), "takes too long");
    cluster.freeze(false);
    works_again("after-frozen");

    let names = names(&server);
    for acknowledged in ["before", "after-gone", "after-read-only", "after-frozen"] {
        assert!(names.contains(acknowledged), "{names:?}");
    }
    assert!(!names.contains("while-gone") && !names.contains("while-read-only"), "{names:?}");
}

#[test]
fn no_acknowledged_write_is_lost_when_the_database_dies_under_load() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start();
    let database = Database::Postgres(cluster.make_database());
    let servers = [Server::on(&database, options()), Server::on(&database, options())];
    let (acknowledged, refused, uncertain) = (Mutex::default(), Mutex::default(), Mutex::default());
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let keep_writing = |server: &Server, writer: usize| {
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("{writer}-{n}");
            let answer = write(server, &name);
            let to: &Mutex<BTreeSet<String>> = match answer.status {
                201 => {
                    count.fetch_add(1, Ordering::Relaxed);
                    &acknowledged
                }
                503 if answer.message().contains("is not known") => &uncertain,
                503 => &refused,
                _ => panic!("{answer:?}"),
            };
            to.lock().unwrap().insert(name);
            if answer.status == 503 {
                // Many refusals prove no more than a few.
                thread::sleep(Duration::from_millis(5));
            }
        }
    };
    thread::scope(|scope| {
        for writer in 0..4 {
            let (server, keep_writing) = (&servers[writer % 2], &keep_writing);
            scope.spawn(move || keep_writing(server, writer));
        }
        for _ in 0..3 {
            let enough = count.load(Ordering::Relaxed) + WRITES_BETWEEN;
            wait_for("writes", || (count.load(Ordering::Relaxed) >= enough).then_some(()));
            cluster.stop();
            cluster.start_again();
        }
        let enough = count.load(Ordering::Relaxed) + WRITES_BETWEEN;
        wait_for("writes after it all", || (count.load(Ordering::Relaxed) >= enough).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    let (acknowledged, refused, uncertain) =
        (acknowledged.into_inner().unwrap(), refused.into_inner().unwrap(), uncertain.into_inner().unwrap());
    let there = names(&servers[0]);
    assert_eq!(acknowledged.difference(&there).count(), 0, "acknowledged and lost");
    assert_eq!(there.intersection(&refused).count(), 0, "refused and there");
    assert!(there.iter().all(|name| acknowledged.contains(name) || uncertain.contains(name)), "from nowhere");
    assert!(!refused.is_empty() || !uncertain.is_empty(), "the disasters were noticed");
}

#[test]
fn a_standby_is_read_and_takes_writes_when_it_is_promoted() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start();
    let url = cluster.make_database();
    let server = Server::on(&Database::Postgres(url.clone()), options());
    assert_eq!(write(&server, "before").status, 201);
    cluster.stop();
    cluster.demote();
    cluster.start_again();
    wait_for("reading", || (read(&server).status == 200).then_some(()));
    assert_eq!(names(&server), BTreeSet::from(["before".to_owned()]));
    refused(write(&server, "standby"), "is read-only");
    psql(&url, "SELECT pg_promote()");
    works_again(&server, "after");
    assert!(!names(&server).contains("standby"));
}

#[test]
fn too_many_connections_are_told_of() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let cluster = Cluster::start();
    let all = cluster.make_database();
    // The administrator's own login is never refused.
    let limited = all.replacen("//evergate:", "//limited:", 1);
    let password = all.split([':', '@']).nth(2).unwrap();
    psql(&all, &format!("CREATE ROLE limited LOGIN PASSWORD '{password}'; GRANT ALL ON SCHEMA public TO limited"));
    let server = Server::on(&Database::Postgres(limited), options());
    assert_eq!((write(&server, "before").status, read(&server).status), (201, 200));
    let limit = |n: i32| {
        psql(&all, &format!("ALTER ROLE limited CONNECTION LIMIT {n}"));
        psql(&all, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'limited'");
    };
    limit(0);
    refused(write(&server, "crowded"), "too many connections");
    refused(read(&server), "too many connections");
    limit(-1);
    works_again(&server, "after");
    assert!(!names(&server).contains("crowded"));
}

#[test]
fn a_full_disk_of_the_database_is_told_of_and_loses_nothing() {
    if std::env::var(POSTGRES).is_ok() {
        return;
    }
    let mut cluster = Cluster::start_on_small_disk("96m");
    let server = Server::on(&Database::Postgres(cluster.make_database()), options());
    assert_eq!(write(&server, "before").status, 201);
    let filler = cluster.data().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let (mut acknowledged, mut last) = (BTreeSet::from(["before".to_owned()]), None);
    // There is room in what the database took beforehand.
    for n in 0..20_000 {
        let name = format!("full-{n}");
        let answer = write(&server, &name);
        if answer.status != 201 {
            last = Some(answer);
            break;
        }
        acknowledged.insert(name);
    }
    let answer = last.expect("the disk is full");
    assert_eq!((answer.status, answer.error()), (503, "HTTPServiceUnavailable"), "{answer:?}");
    std::fs::remove_file(filler).unwrap();
    // A database that finds no room for its log stops, and is started again by whoever looks after it.
    if !cluster.is_up() {
        cluster.start_again();
    }
    works_again(&server, "after");
    acknowledged.insert("after".to_owned());
    let (there, unknown) = (names(&server), answer.message().contains("is not known"));
    assert_eq!(acknowledged.difference(&there).count(), 0, "acknowledged and lost");
    assert!(unknown || there.len() == acknowledged.len(), "refused and there");
}
