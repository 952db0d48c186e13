//! Quotas: what is full stays full, whoever asks and however many at once.

use std::thread;

use evergate_server::context::Context;
use evergate_server::options::{Limits, Options};
use evergate_server::resources::{self, Call};
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, reader};

fn limited(limits: Limits) -> Server {
    Server::with(Options { limits, ..Options::default() })
}

#[track_caller]
fn refused(server: &Server, collection: &str, body: Value, kind: &str) {
    let before = server.dump();
    let answer = server.post(&member(PROJECT), &format!("/v2.0/{collection}"), body);
    assert_eq!((answer.status, answer.error()), (409, "OverQuota"));
    assert_eq!(answer.message(), format!("Quota exceeded for resources: ['{kind}']."));
    assert_eq!(server.dump(), before);
}

#[test]
fn each_kind_has_its_limit() {
    let limits = Limits { network: 1, subnet: 1, port: 1, router: 1, floatingip: 1, ..Limits::default() };
    let server = limited(limits);
    let (external, _) = server.make_external();
    let who = member(OTHER);
    server.make_network(&who, "theirs", "10.9.0.0/24");
    let who = member(PROJECT);
    // The external network is the admin's, who has the same project.
    refused(&server, "networks", json!({"network": {}}), "network");
    server.put(&admin(), &format!("/v2.0/quotas/{PROJECT}"), json!({"quota": {"network": 2, "subnet": 2}}));
    let (network, _) = server.make_network(&who, "mine", "10.0.0.0/24");
    let subnet = json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24"});
    refused(&server, "subnets", json!({"subnet": subnet}), "subnet");
    server.make(&who, "port", json!({"network_id": network["id"]}));
    refused(&server, "ports", json!({"port": {"network_id": network["id"]}}), "port");
    server.make(&who, "router", json!({}));
    refused(&server, "routers", json!({"router": {}}), "router");
    let floating = server.make(&who, "floatingip", json!({"floating_network_id": external["id"]}));
    let more = json!({"floatingip": {"floating_network_id": external["id"]}});
    refused(&server, "floatingips", more.clone(), "floatingip");
    // What is given back can be had again.
    server.delete(&who, &format!("/v2.0/floatingips/{}", id(&floating)));
    assert_eq!(server.post(&who, "/v2.0/floatingips", more).status, 201);
}

#[test]
fn several_at_once_are_all_or_nothing() {
    let server = limited(Limits { network: 2, ..Limits::default() });
    refused(&server, "networks", json!({"networks": [{}, {}, {}]}), "network");
    assert_eq!(server.post(&member(PROJECT), "/v2.0/networks", json!({"networks": [{}, {}]})).status, 201);
}

#[test]
fn requests_that_race_for_the_last_places_do_not_exceed_them() {
    let server = limited(Limits { router: 5, ..Limits::default() });
    let statuses: Vec<u16> = thread::scope(|scope| {
        let make = || server.post(&member(PROJECT), "/v2.0/routers", json!({"router": {}})).status;
        let threads: Vec<_> = (0..24).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 5);
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 19);
    assert_eq!(server.list(&admin(), "routers", "").len(), 5);
}

#[test]
fn a_negative_limit_is_none_and_hidden_objects_do_not_count() {
    let server = Server::with(Options {
        l3_ha: true,
        limits: Limits { network: -1, port: 0, ..Limits::default() },
        ..Options::default()
    });
    server.hosts();
    // Three ports on an HA network: of no project.
    let router = server.make(&member(PROJECT), "router", json!({}));
    assert_eq!(server.ha_states(&router).len(), 3);
    let details = server.get(&member(PROJECT), &format!("/v2.0/quotas/{PROJECT}/details.json"));
    assert_eq!(details.body["quota"]["port"], json!({"limit": 0, "used": 0, "reserved": 0}));
    assert_eq!(details.body["quota"]["router"], json!({"limit": 10, "used": 1, "reserved": 0}));
    assert_eq!(details.body["quota"]["network"]["limit"], -1);
}

#[test]
fn quotas_are_shown_set_and_given_up() {
    let server = Server::new();
    let path = format!("/v2.0/quotas/{PROJECT}");
    let configured = json!({"quota": {
        "network": 100, "subnet": 100, "subnetpool": -1, "port": 500, "router": 10, "floatingip": 50, "rbac_policy": 10,
        "router_route": 30, "security_group": 10, "security_group_rule": 100,
    }});
    assert_eq!(server.get(&reader(PROJECT), &path).body, configured);
    assert_eq!(server.delete(&admin(), &path).error(), "TenantQuotaNotFound");
    assert_eq!(server.get(&admin(), "/v2.0/quotas").body, json!({"quotas": []}));

    let set = server.put(&admin(), &path, json!({"quota": {"network": 7, "router": -1}}));
    assert_eq!((set.status, &set.body["quota"]["network"], &set.body["quota"]["router"]), (200, &json!(7), &json!(-1)));
    let set = server.put(&admin(), &path, json!({"quota": {"network": "8", "force": true}}));
    assert_eq!((&set.body["quota"]["network"], &set.body["quota"]["router"]), (&json!(8), &json!(-1)));
    assert_eq!(server.get(&member(PROJECT), &format!("{path}/default")).body, configured);
    let listed = server.get(&admin(), "/v2.0/quotas").body;
    assert_eq!((&listed["quotas"][0]["tenant_id"], &listed["quotas"][0]["network"]), (&json!(PROJECT), &json!(8)));
    let own = server.get(&member(OTHER), "/v2.0/quotas/tenant.json").body;
    assert_eq!(own, json!({"tenant": {"tenant_id": OTHER}}));

    assert_eq!(server.delete(&admin(), &path).status, 204);
    assert_eq!(server.get(&admin(), &path).body, configured);
}

#[test]
fn check_limit_refuses_less_than_is_used() {
    let server = Server::new();
    server.make(&member(PROJECT), "network", json!({}));
    server.make(&member(PROJECT), "network", json!({}));
    let path = format!("/v2.0/quotas/{PROJECT}");
    let before = server.dump();
    let answer = server.put(&admin(), &path, json!({"quota": {"floatingip": 9, "network": 1, "check_limit": true}}));
    assert_eq!((answer.status, answer.error()), (400, "HTTPBadRequest"));
    assert_eq!(answer.message(), "Quota limit 1 for network must be greater than or equal to already used 2");
    assert_eq!(server.dump(), before);
    assert_eq!(server.put(&admin(), &path, json!({"quota": {"network": 1}})).status, 200);
}

#[test]
fn routes_are_limited_for_each_router_by_itself() {
    let server = Server::new();
    let (_, subnet) = server.make_network(&member(PROJECT), "net", "10.0.0.0/24");
    let quota = |limit: i64| {
        let path = format!("/v2.0/quotas/{PROJECT}");
        assert_eq!(server.put(&admin(), &path, json!({"quota": {"router_route": limit}})).status, 200);
    };
    let router = server.make(&member(PROJECT), "router", json!({}));
    let path = format!("/v2.0/routers/{}", id(&router));
    let added = server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    assert_eq!(added.status, 200);
    let routes = |n: usize| -> Vec<Value> {
        (0..n).map(|n| json!({"destination": format!("192.0.{n}.0/24"), "nexthop": "10.0.0.9"})).collect()
    };
    let set = |n: usize| server.put(&member(PROJECT), &path, json!({"router": {"routes": routes(n)}}));
    let change = |verb: &str, routes: &[Value]| {
        server.put(&member(PROJECT), &format!("{path}/{verb}"), json!({"router": {"routes": routes}}))
    };
    quota(3);
    let refused = set(4);
    assert_eq!((refused.status, refused.error()), (409, "OverQuota"));
    assert_eq!(refused.message(), "Quota exceeded for resources: ['router_route'].");
    assert_eq!(set(3).status, 200);
    assert_eq!(change("add_extraroutes", &routes(4)[3..]).error(), "OverQuota");
    // A wrong route is told of first, as in Neutron.
    let stray = json!({"destination": "192.0.9.0/24", "nexthop": "10.9.9.9"});
    assert_eq!(change("add_extraroutes", &[stray]).error(), "InvalidRoutes");
    // Who has too many gives some back, step by step.
    quota(1);
    assert_eq!(change("remove_extraroutes", &routes(1)).status, 200);
    assert_eq!(change("add_extraroutes", &routes(1)).error(), "OverQuota");
    quota(-1);
    assert_eq!(set(200).status, 200);
    let details = server.get(&member(PROJECT), &format!("/v2.0/quotas/{PROJECT}/details"));
    assert_eq!(details.body["quota"]["router_route"], json!({"limit": -1, "used": 0, "reserved": 0}));
}

#[test]
fn only_admins_look_at_others_and_set_anything() {
    let server = Server::new();
    let (own, other) = (format!("/v2.0/quotas/{PROJECT}"), format!("/v2.0/quotas/{OTHER}"));
    let before = server.dump();
    let who = member(PROJECT);
    let answers = [
        server.get(&who, "/v2.0/quotas"),
        server.get(&who, &other),
        server.get(&who, &format!("{other}/default")),
        server.get(&who, &format!("{other}/details.json")),
        server.put(&who, &own, json!({"quota": {"network": 1000}})),
        server.delete(&who, &own),
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.error()), (403, "HTTPForbidden"), "{answer:?}");
    }
    assert_eq!(server.dump(), before);
}

#[test]
fn what_is_no_quota_is_refused() {
    let server = Server::new();
    let path = format!("/v2.0/quotas/{PROJECT}");
    let before = server.dump();
    for (value, status) in [
        (json!({"network": -2}), 400),
        (json!({"network": 2_147_483_648_i64}), 400),
        (json!({"network": "many"}), 400),
        (json!({"network": null}), 400),
        (json!({"trunk": 5}), 400),
    ] {
        assert_eq!(server.put(&admin(), &path, json!({"quota": value})).status, status, "{value}");
    }
    assert_eq!(server.put(&admin(), &path, json!({"network": 5})).status, 400);
    assert_eq!(server.post(&admin(), "/v2.0/quotas", json!({"quota": {}})).status, 405);
    assert_eq!(server.delete(&admin(), "/v2.0/quotas").status, 405);
    assert_eq!(server.get(&admin(), &format!("{path}/nothing")).status, 404);
    assert_eq!(server.dump(), before);
}

/// A request for so many objects.
fn several(plural: &str, count: usize, body: impl Fn(usize) -> Value) -> Value {
    json!({plural: (0..count).map(body).collect::<Vec<_>>()})
}

/// Makes objects past HTTP; answers what came of it and how many statements that took.
fn counted(server: &Server, who: &Context, collection: &str, body: &Value) -> (String, usize) {
    let resource = resources::find(collection).unwrap();
    let posted = resources::read_post(who, resource, body.as_object().unwrap()).unwrap();
    server.write(|tx| {
        let call = Call { tx, ctx: who, options: &server.options };
        let outcome = resources::create(call, resource, &posted);
        Ok((outcome.map_or_else(|error| error.type_name().to_owned(), |_| "made".to_owned()), tx.statements()))
    })
}

#[test]
fn what_a_request_over_its_quota_costs_does_not_grow_with_it() {
    let server = Server::new();
    let who = member(PROJECT);
    let (network, _) = server.make_network(&who, "net", "10.0.0.0/8");
    let group = server.post(&who, "/v2.0/security-groups", json!({"security_group": {"name": "web"}}));
    let group = group.body["security_group"]["id"].clone();
    let rule = |n: usize| {
        let prefix = format!("10.{}.{}.0/24", n / 256, n % 256);
        json!({"security_group_id": group, "direction": "ingress", "remote_ip_prefix": prefix})
    };
    let port = |n: usize| json!({"network_id": network["id"], "name": format!("p{n}")});
    let subnet = |n: usize| {
        let cidr = format!("172.{}.{}.0/24", n / 256, n % 256);
        json!({"network_id": network["id"], "ip_version": 4, "cidr": cidr})
    };
    for (collection, few, many) in [
        ("networks", several("networks", 101, |_| json!({})), several("networks", 9000, |_| json!({}))),
        ("subnets", several("subnets", 101, subnet), several("subnets", 9000, subnet)),
        ("ports", several("ports", 501, port), several("ports", 9000, port)),
        (
            "security-group-rules",
            several("security_group_rules", 101, rule),
            several("security_group_rules", 9000, rule),
        ),
    ] {
        let (few, many) = (counted(&server, &who, collection, &few), counted(&server, &who, collection, &many));
        assert_eq!((few.0.as_str(), many.0.as_str()), ("OverQuota", "OverQuota"), "{collection}");
        assert_eq!(few.1, many.1, "{collection}");
        assert!(many.1 < 10, "{collection}: {}", many.1);
    }
    // Of what is made, each rule costs its own row.
    let few = counted(&server, &who, "security-group-rules", &several("security_group_rules", 10, rule));
    let more = several("security_group_rules", 80, |n| rule(n + 10));
    let more = counted(&server, &who, "security-group-rules", &more);
    assert_eq!((few.0.as_str(), more.0.as_str()), ("made", "made"));
    assert_eq!(more.1 - few.1, 70);
    let many = server.post(&who, "/v2.0/networks", several("networks", 10_001, |_| json!({})));
    assert_eq!((many.status, many.message()), (400, "At most 10000 objects are made by one request"));
}

#[test]
fn a_parent_is_missed_before_a_place_and_a_place_before_permission() {
    let limits = Limits { subnet: 1, port: 1, security_group_rule: 1, ..Limits::default() };
    let server = limited(limits);
    let (network, _) = server.make_network(&member(PROJECT), "net", "10.0.0.0/24");
    server.make(&member(PROJECT), "port", json!({"network_id": network["id"]}));
    let (theirs, _) = server.make_network(&member(OTHER), "theirs", "10.0.0.0/24");
    let port = |network: &Value| json!({"network_id": network["id"]});
    let subnet = |network: &Value| json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24"});
    let rule = json!({"security_group_id": "cccccccc-0000-4000-8000-000000000000", "direction": "ingress"});
    let cases = [
        ("ports", json!({"port": port(&theirs)}), "NetworkNotFound"),
        ("ports", json!({"port": port(&network)}), "OverQuota"),
        ("ports", json!({"ports": [port(&network), port(&theirs)]}), "NetworkNotFound"),
        ("subnets", json!({"subnet": subnet(&theirs)}), "NetworkNotFound"),
        ("subnets", json!({"subnet": subnet(&network)}), "OverQuota"),
        ("subnets", json!({"subnets": [subnet(&network), subnet(&theirs)]}), "NetworkNotFound"),
        ("security-group-rules", json!({"security_group_rule": rule}), "SecurityGroupNotFound"),
    ];
    for (collection, body, error) in cases {
        let answer = server.post(&member(PROJECT), &format!("/v2.0/{collection}"), body.clone());
        assert_eq!(answer.error(), error, "{body}");
    }
    let path = "/v2.0/subnets";
    assert_eq!(server.post(&reader(PROJECT), path, json!({"subnet": subnet(&network)})).error(), "OverQuota");
    server.put(&admin(), &format!("/v2.0/quotas/{PROJECT}"), json!({"quota": {"subnet": 2}}));
    assert_eq!(server.post(&reader(PROJECT), path, json!({"subnet": subnet(&network)})).error(), "HTTPForbidden");
}
