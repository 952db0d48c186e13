//! Subnet pools and address scopes.

use evergate_server::options::{Limits, Options};
use serde_json::{Value, json};

use crate::harness::{Answer, OTHER, PROJECT, Server, admin, id, member, pick};

const THIRD: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";

#[track_caller]
fn pool(server: &Server, extra: Value) -> Value {
    let mut body = json!({"name": "pool", "prefixes": ["10.0.0.0/16"], "default_prefixlen": 24});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.make(&admin(), "subnetpool", body)
}

fn scope(server: &Server, extra: Value) -> Value {
    let mut body = json!({"name": "scope", "ip_version": 4});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = server.post(&admin(), "/v2.0/address-scopes", json!({"address_scope": body}));
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.body["address_scope"].clone()
}

fn subnet(server: &Server, network: &Value, extra: Value) -> Answer {
    let mut body = json!({"network_id": network["id"], "ip_version": 4});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.post(&admin(), "/v2.0/subnets", json!({"subnet": body}))
}

fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!((answer.status, answer.error()), (status, error), "{answer:?}");
}

fn put(server: &Server, pool: &Value, attributes: Value) -> Answer {
    server.put(&admin(), &format!("/v2.0/subnetpools/{}", id(pool)), json!({"subnetpool": attributes}))
}

#[test]
fn a_pool_has_bounds_of_its_version_and_joined_prefixes() {
    let server = Server::new();
    let made = server.make(
        &member(PROJECT),
        "subnetpool",
        json!({"name": "v4", "prefixes": ["10.0.1.0/24", "10.0.0.0/24"], "description": "joined"}),
    );
    let mut shown = made.as_object().unwrap().clone();
    for volatile in ["id", "created_at", "updated_at", "tenant_id"] {
        assert!(shown.remove(volatile).is_some(), "{volatile}");
    }
    let expected = json!({
        "name": "v4", "description": "joined", "project_id": PROJECT, "prefixes": ["10.0.0.0/23"], "ip_version": 4,
        "min_prefixlen": "8", "max_prefixlen": "32", "default_prefixlen": "8", "default_quota": null,
        "is_default": false, "shared": false, "address_scope_id": null, "tags": [], "revision_number": 0,
    });
    assert_eq!(Value::from(shown), expected);
    let v6 = server.make(&member(PROJECT), "subnetpool", json!({"name": "v6", "prefixes": ["2001:db8::/32"]}));
    assert_eq!((&v6["min_prefixlen"], &v6["max_prefixlen"]), (&json!("64"), &json!("128")));
    assert_eq!(server.list(&member(PROJECT), "subnetpools", "?ip_version=6&default_prefixlen=64").len(), 1);
    assert!(server.list(&member(OTHER), "subnetpools", "").is_empty());
}

#[test]
fn what_makes_no_pool_is_refused() {
    let server = Server::new();
    pool(&server, json!({"is_default": true}));
    let before = server.dump();
    let cases = [
        (json!({"prefixes": []}), 400, "EmptySubnetPoolPrefixList"),
        (json!({"prefixes": ["10.0.0.0/8", "2001:db8::/32"]}), 400, "PrefixVersionMismatch"),
        (json!({"prefixes": ["10.0.0.1/8"]}), 400, "HTTPBadRequest"),
        (json!({"prefixes": ["10.0.0.0/8", "10.0.0.0/8"]}), 400, "HTTPBadRequest"),
        (json!({"name": " "}), 400, "HTTPBadRequest"),
        (json!({"min_prefixlen": 25, "max_prefixlen": 24}), 400, "IllegalSubnetPoolPrefixBounds"),
        (json!({"max_prefixlen": 33}), 400, "IllegalSubnetPoolPrefixBounds"),
        (json!({"max_prefixlen": 1000}), 400, "IllegalSubnetPoolPrefixBounds"),
        (json!({"default_prefixlen": 7}), 400, "IllegalSubnetPoolPrefixBounds"),
        (json!({"max_prefixlen": 24, "default_prefixlen": 25}), 400, "IllegalSubnetPoolPrefixBounds"),
        (json!({"is_default": true}), 400, "InvalidInput"),
        (json!({"address_scope_id": "00000000-0000-4000-8000-000000000000"}), 404, "AddressScopeNotFound"),
    ];
    for (extra, status, error) in cases {
        let mut body = json!({"name": "pool", "prefixes": ["10.0.0.0/16"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = server.post(&admin(), "/v2.0/subnetpools", json!({"subnetpool": body}));
        assert_eq!((answer.status, answer.error()), (status, error), "{extra}: {answer:?}");
    }
    for name in ["shared", "is_default"] {
        let body = json!({"subnetpool": {"name": "pool", "prefixes": ["10.0.0.0/16"], name: true}});
        refused(&server.post(&member(PROJECT), "/v2.0/subnetpools", body), 403, "HTTPForbidden");
    }
    assert_eq!(server.dump(), before);
}

#[test]
fn subnets_are_cut_from_a_pool() {
    let server = Server::new();
    let pool = pool(&server, json!({"min_prefixlen": 20, "max_prefixlen": 28}));
    let network = server.make(&admin(), "network", json!({}));
    let first = subnet(&server, &network, json!({"subnetpool_id": pool["id"]})).body["subnet"].clone();
    assert_eq!((&first["cidr"], &first["subnetpool_id"]), (&json!("10.0.0.0/24"), &pool["id"]));
    assert_eq!(first["gateway_ip"], "10.0.0.1");
    let small = subnet(&server, &network, json!({"subnetpool_id": pool["id"], "prefixlen": 28}));
    assert_eq!(small.body["subnet"]["cidr"], "10.0.1.0/28");
    let exact = subnet(&server, &network, json!({"subnetpool_id": pool["id"], "cidr": "10.0.128.0/24"}));
    assert_eq!(exact.body["subnet"]["cidr"], "10.0.128.0/24");
    let with = |extra: Value| {
        let mut body = json!({"subnetpool_id": pool["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        subnet(&server, &network, body)
    };
    let before = server.dump();
    refused(&with(json!({"prefixlen": 29})), 400, "MaxPrefixSubnetAllocationError");
    refused(&with(json!({"prefixlen": 19})), 400, "MinPrefixSubnetAllocationError");
    refused(&with(json!({"cidr": "10.0.0.0/25"})), 409, "SubnetAllocationError");
    refused(&with(json!({"cidr": "192.168.0.0/24"})), 409, "SubnetAllocationError");
    refused(&with(json!({"cidr": "10.0.5.0/24", "prefixlen": 24})), 400, "BadRequest");
    refused(&with(json!({"allocation_pools": []})), 400, "BadRequest");
    refused(&with(json!({"use_default_subnetpool": true})), 400, "BadRequest");
    refused(&with(json!({"ip_version": 6})), 400, "BadRequest");
    refused(&subnet(&server, &network, json!({})), 400, "BadRequest");
    refused(&subnet(&server, &network, json!({"use_default_subnetpool": true})), 400, "BadRequest");
    refused(&subnet(&server, &network, json!({"cidr": "172.16.0.0/24"})), 400, "NetworkSubnetPoolAffinityError");
    refused(&server.delete(&admin(), &format!("/v2.0/subnetpools/{}", id(&pool))), 400, "SubnetPoolDeleteError");
    assert_eq!(server.dump(), before);
    assert_eq!(put(&server, &pool, json!({"is_default": true})).status, 200);
    let defaulted = subnet(&server, &network, json!({"use_default_subnetpool": true}));
    assert_eq!(defaulted.body["subnet"]["subnetpool_id"], pool["id"]);
    assert_eq!(server.list(&admin(), "subnets", &format!("?subnetpool_id={}", id(&pool))).len(), 4);
    for subnet in server.list(&admin(), "subnets", "") {
        server.delete(&admin(), &format!("/v2.0/subnets/{}", id(&subnet)));
    }
    assert_eq!(server.delete(&admin(), &format!("/v2.0/subnetpools/{}", id(&pool))).status, 204);
}

#[test]
fn a_pool_that_is_used_up_says_so_and_a_share_is_a_share() {
    let server = Server::new();
    let pool = pool(&server, json!({"prefixes": ["10.0.0.0/23"], "shared": true, "default_quota": 256}));
    let make = |project: &str| {
        let network = server.make(&member(project), "network", json!({}));
        let body = json!({"network_id": network["id"], "ip_version": 4, "subnetpool_id": pool["id"]});
        server.post(&member(project), "/v2.0/subnets", json!({"subnet": body}))
    };
    assert_eq!(make(PROJECT).status, 201);
    refused(&make(PROJECT), 409, "SubnetPoolQuotaExceeded");
    assert_eq!(make(OTHER).status, 201);
    refused(&make(THIRD), 409, "SubnetAllocationError");
}

#[test]
fn prefixes_grow_and_are_taken_back_when_nothing_is_cut_from_them() {
    let server = Server::new();
    let pool = pool(&server, json!({}));
    let network = server.make(&admin(), "network", json!({}));
    subnet(&server, &network, json!({"subnetpool_id": pool["id"]}));
    refused(&put(&server, &pool, json!({"prefixes": ["10.0.0.0/17"]})), 400, "IllegalSubnetPoolPrefixUpdate");
    let grown = put(&server, &pool, json!({"prefixes": ["10.0.0.0/16", "10.1.0.0/16"]}));
    assert_eq!(grown.body["subnetpool"]["prefixes"], json!(["10.0.0.0/15"]));
    let action = |verb: &str, prefixes: Value| {
        let path = format!("/v2.0/subnetpools/{}/{verb}", id(&pool));
        server.put(&admin(), &path, json!({"prefixes": prefixes}))
    };
    assert_eq!(
        action("add_prefixes", json!(["172.16.0.0/16"])).body["prefixes"],
        json!(["10.0.0.0/15", "172.16.0.0/16"])
    );
    assert_eq!(
        action("remove_prefixes", json!(["10.1.0.0/16"])).body["prefixes"],
        json!(["10.0.0.0/16", "172.16.0.0/16"])
    );
    let before = server.dump();
    refused(&action("remove_prefixes", json!(["10.0.0.0/20"])), 400, "IllegalSubnetPoolPrefixUpdate");
    refused(&action("add_prefixes", json!(["2001:db8::/32"])), 400, "PrefixVersionMismatch");
    refused(&action("add_prefixes", json!(["x"])), 400, "HTTPBadRequest");
    assert_eq!(action("remove_prefixes", json!(["192.168.0.0/24"])).status, 200, "it has none of them");
    assert_eq!(server.dump(), before);
}

#[test]
fn a_networks_subnets_are_taken_into_a_pool() {
    let server = Server::new();
    let pool = pool(&server, json!({}));
    let (network, old) = server.make_network(&admin(), "old", "192.168.7.0/24");
    let path = format!("/v2.0/subnetpools/{}/onboard_network_subnets", id(&pool));
    let answer = server.put(&admin(), &path, json!({"network_id": network["id"]}));
    assert_eq!(answer.body, json!([{"id": old["id"], "cidr": "192.168.7.0/24"}]), "{answer:?}");
    assert_eq!(server.shown("subnet", id(&old))["subnetpool_id"], pool["id"]);
    let prefixes = json!(["10.0.0.0/16", "192.168.7.0/24"]);
    assert_eq!(server.shown("subnetpool", id(&pool))["prefixes"], prefixes);
    refused(&server.put(&admin(), &path, json!({"network_id": network["id"]})), 400, "IllegalSubnetPoolUpdate");
}

#[test]
fn prefixes_of_a_scope_are_unique_and_a_network_is_in_one_scope() {
    let server = Server::new();
    let (blue, red) = (scope(&server, json!({})), scope(&server, json!({"name": "red"})));
    let six = scope(&server, json!({"ip_version": 6}));
    let one = pool(&server, json!({"address_scope_id": blue["id"]}));
    let body = |scope: &Value| {
        let pool = json!({"name": "two", "prefixes": ["10.0.7.0/24"], "address_scope_id": scope["id"]});
        json!({"subnetpool": pool})
    };
    let post = |scope: &Value| server.post(&admin(), "/v2.0/subnetpools", body(scope));
    refused(&post(&blue), 409, "AddressScopePrefixConflict");
    refused(&post(&six), 400, "IllegalSubnetPoolIpVersionAssociationToAddressScope");
    let two = post(&red).body["subnetpool"].clone();
    refused(&put(&server, &two, json!({"address_scope_id": blue["id"]})), 409, "AddressScopePrefixConflict");
    let network = server.make(&admin(), "network", json!({}));
    assert_eq!(subnet(&server, &network, json!({"subnetpool_id": one["id"]})).status, 201);
    let shown = server.shown("network", id(&network));
    assert_eq!((&shown["ipv4_address_scope"], &shown["ipv6_address_scope"]), (&blue["id"], &Value::Null));
    let mixed = subnet(&server, &network, json!({"subnetpool_id": two["id"], "prefixlen": 28}));
    refused(&mixed, 400, "NetworkAddressScopeAffinityError");
    let path = format!("/v2.0/address-scopes/{}", id(&blue));
    refused(&server.delete(&admin(), &path), 409, "AddressScopeInUse");
    assert_eq!(put(&server, &one, json!({"address_scope_id": null})).status, 200);
    assert_eq!(server.shown("network", id(&network))["ipv4_address_scope"], Value::Null);
    assert_eq!(server.delete(&admin(), &path).status, 204);
}

#[test]
fn scopes_are_shared_and_stay_so() {
    let server = Server::new();
    let blue = scope(&server, json!({"project_id": OTHER}));
    let path = format!("/v2.0/address-scopes/{}", id(&blue));
    refused(&server.get(&member(PROJECT), &path), 404, "AddressScopeNotFound");
    refused(&server.put(&member(OTHER), &path, json!({"address_scope": {"shared": true}})), 403, "HTTPForbidden");
    let shared = server.put(&admin(), &path, json!({"address_scope": {"shared": true, "name": "all"}}));
    assert_eq!(shared.body["address_scope"]["shared"], true, "{shared:?}");
    assert_eq!(pick(&server.list(&member(PROJECT), "address-scopes", "?shared=true"), "name"), ["all"]);
    let unshared = server.put(&admin(), &path, json!({"address_scope": {"shared": false}}));
    refused(&unshared, 400, "AddressScopeUpdateError");
    let body = json!({"name": "mine", "prefixes": ["10.0.0.0/8"], "address_scope_id": blue["id"]});
    let mine = server.make(&member(PROJECT), "subnetpool", body);
    let changed = server.put(
        &member(PROJECT),
        &format!("/v2.0/subnetpools/{}", id(&mine)),
        json!({"subnetpool": {"name": "renamed"}}),
    );
    refused(&changed, 400, "IllegalSubnetPoolUpdate");
}

#[test]
fn pools_and_scopes_are_shared_with_one_project_by_policy() {
    let server = Server::new();
    let body = json!({"name": "mine", "prefixes": ["10.0.0.0/16"], "default_prefixlen": 24});
    let pool = server.make(&member(PROJECT), "subnetpool", body);
    let policy = json!({
        "object_type": "subnetpool", "object_id": pool["id"], "action": "access_as_shared", "target_tenant": OTHER,
    });
    let policy = server.post(&member(PROJECT), "/v2.0/rbac-policies", json!({"rbac_policy": policy}));
    assert_eq!(policy.status, 201, "{policy:?}");
    assert_eq!(server.list(&member(OTHER), "subnetpools", "")[0]["shared"], true);
    assert!(server.list(&member(THIRD), "subnetpools", "").is_empty());
    let renamed = server.put(
        &member(OTHER),
        &format!("/v2.0/subnetpools/{}", id(&pool)),
        json!({"subnetpool": {"name": "theirs"}}),
    );
    refused(&renamed, 403, "HTTPForbidden");
    let network = server.make(&member(OTHER), "network", json!({}));
    let body = json!({"network_id": network["id"], "ip_version": 4, "subnetpool_id": pool["id"]});
    let cut = server.make(&member(OTHER), "subnet", body);
    let path = format!("/v2.0/rbac-policies/{}", id(&policy.body["rbac_policy"]));
    refused(&server.delete(&member(PROJECT), &path), 409, "RbacPolicyInUse");
    server.delete(&member(OTHER), &format!("/v2.0/subnets/{}", id(&cut)));
    assert_eq!(server.delete(&member(PROJECT), &path).status, 204);
    let external = json!({
        "object_type": "subnetpool", "object_id": pool["id"], "action": "access_as_external", "target_tenant": OTHER,
    });
    let external = server.post(&admin(), "/v2.0/rbac-policies", json!({"rbac_policy": external}));
    refused(&external, 400, "InvalidActionForType");
}

#[test]
fn a_router_is_told_the_scopes_on_both_sides() {
    let server = Server::new();
    server.hosts();
    let blue = scope(&server, json!({}));
    let outer = pool(&server, json!({"prefixes": ["203.0.113.0/24"], "address_scope_id": blue["id"]}));
    let inner = pool(&server, json!({"address_scope_id": blue["id"]}));
    let external = json!({
        "router:external": true, "provider:network_type": "flat", "provider:physical_network": "physnet1",
    });
    let external = server.make(&admin(), "network", external);
    subnet(&server, &external, json!({"subnetpool_id": outer["id"]}));
    let network = server.make(&admin(), "network", json!({}));
    let inside = subnet(&server, &network, json!({"subnetpool_id": inner["id"]})).body["subnet"].clone();
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(server.put(&admin(), &path, json!({"subnet_id": inside["id"]})).status, 200);
    let scope_of = |config: evergate_model::HostConfig| {
        let router = config.routers.values().next().unwrap().clone();
        let inside = router.interfaces.values().next().unwrap().address_scopes;
        (router.gateway.unwrap().address_scopes.v4, inside.v4, inside.v6)
    };
    let told = Some(id(&blue).parse().unwrap());
    assert_eq!(scope_of(server.told("h1")), (told, told, None));
    let before = server.told("h1").revision;
    assert_eq!(put(&server, &inner, json!({"address_scope_id": null})).status, 200);
    assert_eq!(scope_of(server.told("h1")), (told, None, None));
    assert!(server.told("h1").revision > before, "hosts hear of it");
}

#[test]
fn pools_are_counted() {
    let limits = Limits { subnetpool: 1, ..Limits::default() };
    let server = Server::with(Options { limits, ..Options::default() });
    let body = json!({"subnetpool": {"name": "p", "prefixes": ["10.0.0.0/8"]}});
    assert_eq!(server.post(&member(PROJECT), "/v2.0/subnetpools", body.clone()).status, 201);
    refused(&server.post(&member(PROJECT), "/v2.0/subnetpools", body), 409, "OverQuota");
}
