//! A router with too few hosts says so.

use evergate_server::options::Options;
use serde_json::{Value, json};

use crate::harness::{PROJECT, Server, admin, id, member, pick};

fn by_default() -> Server {
    Server::with(Options { l3_ha: true, ..Options::default() })
}

#[track_caller]
fn warnings(server: &Server, router: &Value) -> Vec<String> {
    let shown = server.shown("router", id(router));
    let warnings = shown.get("evergate:warnings").and_then(Value::as_array).cloned().unwrap_or_default();
    warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_router_that_no_host_has_is_allocating_until_one_appears() {
    let server = by_default();
    let router = server.make(&member(PROJECT), "router", json!({"name": "r1"}));
    assert_eq!(router["status"], "ALLOCATING");
    assert!(router.get("evergate:warnings").is_none(), "hosts are no business of members");
    assert!(warnings(&server, &router)[0].starts_with("0 of 3 copies: "));
    assert_eq!(pick(&server.list(&admin(), "routers", "?status=ALLOCATING"), "name"), ["r1"]);
    assert!(server.list(&admin(), "routers", "?status=ACTIVE").is_empty());
    server.host("h1");
    assert_eq!(server.shown("router", id(&router))["status"], "ACTIVE");
    assert_eq!(pick(&server.list(&admin(), "routers", "?status=ACTIVE"), "name"), ["r1"]);
    assert!(warnings(&server, &router)[0].starts_with("1 of 3 copies: "));
    server.host("h2");
    server.host("h3");
    assert_eq!(warnings(&server, &router), [] as [String; 0]);
    assert!(server.shown("router", id(&router)).get("evergate:warnings").is_none());
}

#[test]
fn a_legacy_router_needs_one_host() {
    let server = Server::new();
    let router = server.make(&admin(), "router", json!({}));
    assert_eq!(router["status"], "ALLOCATING");
    assert!(warnings(&server, &router)[0].starts_with("0 of 1 copies: "));
    server.host("h1");
    assert_eq!(server.shown("router", id(&router))["status"], "ACTIVE");
    assert_eq!(warnings(&server, &router), [] as [String; 0]);
}

#[test]
fn copies_on_hosts_that_are_away_are_told() {
    let server = by_default();
    server.hosts();
    let router = server.make(&admin(), "router", json!({}));
    server.silence("h2");
    assert_eq!(warnings(&server, &router), ["1 of 3 copies are on hosts that are disabled or not heard of"]);
    let agents = server.list(&admin(), "agents", "?host=h1&binary=neutron-l3-agent");
    let path = format!("/v2.0/agents/{}", id(&agents[0]));
    assert_eq!(server.put(&admin(), &path, json!({"agent": {"admin_state_up": false}})).status, 200);
    assert_eq!(warnings(&server, &router), ["2 of 3 copies are on hosts that are disabled or not heard of"]);
    let only = server.get(&admin(), &format!("/v2.0/routers/{}?fields=status", id(&router)));
    assert_eq!(only.body["router"], json!({"status": "ACTIVE"}));
}

#[test]
fn a_copy_taken_away_by_hand_is_missed() {
    let server = by_default();
    server.hosts();
    let router = server.make(&admin(), "router", json!({}));
    let agents = server.list(&admin(), "agents", "?host=h1&binary=neutron-l3-agent");
    let path = format!("/v2.0/agents/{}/l3-routers/{}", id(&agents[0]), id(&router));
    assert_eq!(server.delete(&admin(), &path).status, 204);
    assert!(warnings(&server, &router)[0].starts_with("2 of 3 copies: "));
}

#[test]
fn the_warnings_cannot_be_written() {
    let server = by_default();
    let router = server.make(&admin(), "router", json!({}));
    let before = server.dump();
    let body = json!({"router": {"evergate:warnings": []}});
    assert_eq!(server.post(&admin(), "/v2.0/routers", body.clone()).status, 400);
    assert_eq!(server.put(&admin(), &format!("/v2.0/routers/{}", id(&router)), body).status, 400);
    assert_eq!(server.dump(), before);
}
