//! Many requests at once: what is unique stays unique, and nobody fails for the others' sake.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::{OTHER, PROJECT, Server, admin, member, pick};

#[test]
fn the_first_ha_routers_of_a_project_all_come_to_be_on_one_ha_network() {
    let server = Server::with_many_ha_routers();
    server.hosts();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let make = |n| {
            let server = &server;
            move || server.post(&member(PROJECT), "/v2.0/routers", json!({"router": {"name": format!("r{n}")}})).status
        };
        let threads: Vec<_> = (0..16).map(|n| scope.spawn(make(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses, [201; 16]);
    assert_eq!(server.list(&admin(), "networks", "").len(), 1);
    let ports = server.list(&admin(), "ports", "");
    assert_eq!(ports.len(), 48);
    let addresses: BTreeSet<String> = ports.iter().map(|port| port["fixed_ips"][0]["ip_address"].to_string()).collect();
    assert_eq!(addresses.len(), 48);
    let vrids = server.write(|tx| Ok(tx.query("SELECT vrid FROM ha_routers", &[], |row| row.int(0))?));
    assert_eq!(vrids.into_iter().collect::<BTreeSet<_>>().len(), 16);
}

#[test]
fn ports_that_race_for_a_subnet_get_each_address_once() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "small", "10.0.0.0/27");
    let statuses: Vec<u16> = thread::scope(|scope| {
        let make = || server.post(&admin(), "/v2.0/ports", json!({"port": {"network_id": network["id"]}})).status;
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // 32 addresses but for network, broadcast and gateway.
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 29);
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 11);
    let ports = server.list(&admin(), "ports", "");
    let addresses: BTreeSet<String> = ports.iter().map(|port| port["fixed_ips"][0]["ip_address"].to_string()).collect();
    assert_eq!(addresses.len(), 29);
    assert_eq!(pick(&ports, "mac_address").into_iter().collect::<BTreeSet<_>>().len(), 29);
}

#[test]
fn readers_go_on_while_others_write() {
    let server = Server::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..30 {
                server.make(&admin(), "network", json!({}));
            }
        });
        let mut last = 0;
        while !writer.is_finished() {
            let now = server.list(&admin(), "networks", "").len();
            assert!(now >= last, "what was once seen stays");
            last = now;
        }
    });
    assert_eq!(server.list(&admin(), "networks", "").len(), 30);
}

#[test]
fn who_has_too_many_requests_waiting_is_told_so_before_another_body_is_read() {
    let server = Server::new();
    let (slow, other) = (member(PROJECT), member(OTHER));
    // Four bodies of unknown length take all the room for them; more wait for that, 256 in all.
    let waiting: Vec<_> = (0..300).map(|_| server.send_without_end(&slow, "/v2.0/networks")).collect();
    let deadline = Instant::now() + Duration::from_secs(15);
    while waiting.iter().filter(|request| request.is_finished()).count() < 300 - 256 {
        assert!(Instant::now() < deadline, "nobody is refused");
        thread::yield_now();
    }
    let refused = server.get(&slow, "/v2.0/networks");
    assert_eq!((refused.status, refused.error()), (429, "HTTPTooManyRequests"));
    assert_eq!(server.get(&other, "/v2.0/networks").status, 200);
    assert_eq!(waiting.iter().filter(|request| !request.is_finished()).count(), 256);
    waiting.iter().for_each(JoinHandle::abort);
    while server.post(&slow, "/v2.0/networks", json!({"network": {}})).status != 201 {
        assert!(Instant::now() < deadline, "places are not given back");
    }
}
