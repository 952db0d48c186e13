//! Networks shared with, and external for, single projects: who sees them, and what holds a policy.

use serde_json::{Value, json};

use crate::harness::{Answer, OTHER, PROJECT, Server, admin, id, member, pick, reader};

const THIRD: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";

fn post(
    server: &Server,
    who: &evergate_server::context::Context,
    network: &Value,
    action: &str,
    target: &str,
) -> Answer {
    let body = json!({"object_type": "network", "object_id": network["id"], "action": action, "target_tenant": target});
    server.post(who, "/v2.0/rbac-policies", json!({"rbac_policy": body}))
}

#[track_caller]
fn share(server: &Server, network: &Value, target: &str) -> Value {
    let answer = post(server, &member(PROJECT), network, "access_as_shared", target);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.body["rbac_policy"].clone()
}

fn path(policy: &Value) -> String {
    format!("/v2.0/rbac-policies/{}", id(policy))
}

#[test]
fn a_network_shared_with_one_project_is_there_for_it_and_for_nobody_else() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "mine", "10.0.0.0/24");
    let policy = share(&server, &network, OTHER);
    assert_eq!((&policy["tenant_id"], &policy["project_id"]), (&json!(PROJECT), &json!(PROJECT)));
    let url = format!("/v2.0/networks/{}", id(&network));
    let seen = server.get(&member(OTHER), &url).body["network"].clone();
    assert_eq!(seen["shared"], true, "for this caller it is");
    assert_eq!(server.get(&member(PROJECT), &url).body["network"]["shared"], false);
    assert_eq!(server.get(&admin(), &url).body["network"]["shared"], false);
    assert_eq!(server.get(&member(THIRD), &url).error(), "NetworkNotFound");
    assert_eq!(pick(&server.list(&member(OTHER), "networks", "?shared=true"), "name"), ["mine"]);
    assert!(server.list(&member(OTHER), "networks", "?shared=false").is_empty());
    assert!(server.list(&member(PROJECT), "networks", "?shared=true").is_empty());
    assert_eq!(pick(&server.list(&member(OTHER), "subnets", "?shared=true"), "id"), [id(&subnet)]);
    assert!(server.list(&member(THIRD), "subnets", "").is_empty());

    // It is used like an own one, but not changed.
    server.make(&member(OTHER), "port", json!({"network_id": network["id"]}));
    let third = server.post(&member(THIRD), "/v2.0/ports", json!({"port": {"network_id": network["id"]}}));
    assert_eq!(third.error(), "NetworkNotFound");
    assert_eq!(server.put(&member(OTHER), &url, json!({"network": {"name": "x"}})).status, 403);
    assert_eq!(server.delete(&member(OTHER), &url).status, 403);
}

#[test]
fn a_policy_that_ports_depend_on_stays() {
    let server = Server::new();
    let (network, _) = server.make_network(&member(PROJECT), "mine", "10.0.0.0/24");
    let policy = share(&server, &network, OTHER);
    let port = server.make(&member(OTHER), "port", json!({"network_id": network["id"]}));
    let before = server.dump();
    let refused = server.delete(&member(PROJECT), &path(&policy));
    assert_eq!((refused.status, refused.error()), (409, "RbacPolicyInUse"));
    assert!(refused.message().starts_with(&format!("RBAC policy on object {} cannot be removed", id(&network))));
    let body = json!({"rbac_policy": {"target_tenant": THIRD}});
    assert_eq!(server.put(&member(PROJECT), &path(&policy), body.clone()).error(), "RbacPolicyInUse");
    assert_eq!(server.dump(), before);

    // Shared with all, the policy for one is not needed any more; and the other way round.
    let all = post(&server, &admin(), &network, "access_as_shared", "*").body["rbac_policy"].clone();
    assert_eq!(server.shown("network", id(&network))["shared"], true);
    assert_eq!(server.put(&member(PROJECT), &path(&policy), body).status, 200);
    assert_eq!(server.delete(&admin(), &path(&all)).error(), "RbacPolicyInUse");
    assert_eq!(server.delete(&member(OTHER), &format!("/v2.0/ports/{}", id(&port))).status, 204);
    assert_eq!(server.delete(&admin(), &path(&all)).status, 204);
    assert_eq!(server.shown("network", id(&network))["shared"], false);
    assert_eq!(server.delete(&member(PROJECT), &path(&policy)).status, 204);
    assert!(server.list(&admin(), "rbac-policies", "").is_empty());
}

#[test]
fn shared_and_external_are_policies_for_all() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({"shared": true, "router:external": true}));
    let policies = server.list(&admin(), "rbac-policies", "");
    assert_eq!(pick(&policies, "action"), ["access_as_external", "access_as_shared"]);
    assert_eq!(pick(&policies, "target_tenant"), ["*", "*"]);
    let url = format!("/v2.0/networks/{}", id(&network));
    assert_eq!(server.put(&admin(), &url, json!({"network": {"shared": false}})).status, 200);
    assert_eq!(pick(&server.list(&admin(), "rbac-policies", ""), "action"), ["access_as_external"]);
    assert_eq!(server.get(&member(OTHER), &url).status, 200);
    assert_eq!(server.put(&admin(), &url, json!({"network": {"router:external": false}})).status, 200);
    assert!(server.list(&admin(), "rbac-policies", "").is_empty());
    assert_eq!(server.get(&member(OTHER), &url).status, 404);
    let body = json!({"network": {"shared": true, "router:external": true}});
    assert_eq!(server.put(&admin(), &url, body).body["network"]["shared"], true);
    assert_eq!(server.list(&admin(), "rbac-policies", "").len(), 2);
    assert_eq!(server.delete(&admin(), &url).status, 204);
    assert!(server.list(&admin(), "rbac-policies", "").is_empty(), "policies go with their network");
}

#[test]
fn a_network_external_for_one_project_leads_only_that_one_out() {
    let server = Server::new();
    server.hosts();
    let (network, _) = server.make_network(&admin(), "way-out", "203.0.113.0/24");
    let policy = post(&server, &admin(), &network, "access_as_external", OTHER).body["rbac_policy"].clone();
    assert_eq!(server.shown("network", id(&network))["router:external"], true);
    let gateway = json!({"router": {"external_gateway_info": {"network_id": network["id"]}}});
    let before = server.dump();
    assert_eq!(server.post(&member(THIRD), "/v2.0/routers", gateway.clone()).error(), "NetworkNotFound");
    assert_eq!(server.dump(), before);
    let router = server.post(&member(OTHER), "/v2.0/routers", gateway).body["router"].clone();
    let floating = server.make(&member(OTHER), "floatingip", json!({"floating_network_id": network["id"]}));
    let before = server.dump();
    assert_eq!(server.delete(&admin(), &path(&policy)).error(), "RbacPolicyInUse");
    assert_eq!(server.dump(), before);
    server.delete(&member(OTHER), &format!("/v2.0/routers/{}", id(&router)));
    assert_eq!(server.delete(&admin(), &path(&policy)).error(), "RbacPolicyInUse", "of the floating IP");
    server.delete(&member(OTHER), &format!("/v2.0/floatingips/{}", id(&floating)));
    assert_eq!(server.delete(&admin(), &path(&policy)).status, 204);
    assert_eq!(server.get(&member(OTHER), &format!("/v2.0/networks/{}", id(&network))).status, 404);
}

#[test]
fn a_network_is_external_as_long_as_a_policy_says_so() {
    let server = Server::new();
    server.hosts();
    let (network, _) = server.make_network(&admin(), "way-out", "203.0.113.0/24");
    let is_external = || server.shown("network", id(&network))["router:external"] == true;
    let one = post(&server, &admin(), &network, "access_as_external", OTHER).body["rbac_policy"].clone();
    let all = post(&server, &admin(), &network, "access_as_external", "*").body["rbac_policy"].clone();
    assert_eq!(server.delete(&admin(), &path(&one)).status, 204);
    assert!(is_external());
    let set = |is_default: bool| {
        let body = json!({"network": {"is_default": is_default}});
        assert_eq!(server.put(&admin(), &format!("/v2.0/networks/{}", id(&network)), body).status, 200);
    };
    set(true);
    let refused = server.delete(&admin(), &path(&all));
    assert_eq!((refused.status, refused.error()), (409, "RbacPolicyInUse"));
    assert!(refused.message().contains("Default external networks must be shared to everyone."), "{refused:?}");
    set(false);
    // The owner's own router needs the network to be external, too.
    let gateway = json!({"external_gateway_info": {"network_id": network["id"]}});
    let router = server.make(&admin(), "router", gateway);
    assert_eq!(server.delete(&admin(), &path(&all)).error(), "RbacPolicyInUse");
    server.delete(&admin(), &format!("/v2.0/routers/{}", id(&router)));
    assert_eq!(server.delete(&admin(), &path(&all)).status, 204);
    assert!(!is_external());
}

#[test]
fn what_makes_no_policy_is_refused() {
    let server = Server::new();
    let mine = server.make(&member(PROJECT), "network", json!({"name": "mine"}));
    let public = server.make(&admin(), "network", json!({"name": "public", "shared": true, "project_id": THIRD}));
    let theirs = server.make(&member(OTHER), "network", json!({}));
    share(&server, &mine, OTHER);
    let before = server.dump();
    let who = member(PROJECT);
    let check = |answer: Answer, status: u16, error: &str| {
        assert_eq!((answer.status, answer.error()), (status, error), "{answer:?}");
    };
    check(post(&server, &who, &mine, "access_as_shared", OTHER), 409, "DuplicateRbacPolicy");
    check(post(&server, &who, &mine, "access_as_shared", "*"), 403, "HTTPForbidden");
    check(post(&server, &who, &mine, "access_as_external", OTHER), 403, "HTTPForbidden");
    check(post(&server, &who, &mine, "access_as_friend", OTHER), 400, "InvalidActionForType");
    check(post(&server, &who, &mine, "access_as_shared", " "), 400, "HTTPBadRequest");
    check(post(&server, &who, &theirs, "access_as_shared", OTHER), 404, "NetworkNotFound");
    check(post(&server, &who, &public, "access_as_shared", OTHER), 400, "InvalidInput");
    check(post(&server, &reader(PROJECT), &mine, "access_as_shared", THIRD), 403, "HTTPForbidden");
    let body = json!({"object_type": "qos_policy", "object_id": mine["id"], "action": "access_as_shared", "target_tenant": OTHER});
    check(server.post(&who, "/v2.0/rbac-policies", json!({"rbac_policy": body})), 400, "InvalidInput");
    let body = json!({"object_type": "network", "object_id": mine["id"], "action": "access_as_shared"});
    check(server.post(&who, "/v2.0/rbac-policies", json!({"rbac_policy": body})), 400, "HTTPBadRequest");
    assert_eq!(server.dump(), before);
}

#[test]
fn policies_of_others_are_not_there() {
    let server = Server::new();
    let network = server.make(&member(PROJECT), "network", json!({}));
    let policy = share(&server, &network, OTHER);
    let before = server.dump();
    for who in [member(OTHER), member(THIRD)] {
        assert!(server.list(&who, "rbac-policies", "").is_empty());
        assert_eq!(server.get(&who, &path(&policy)).error(), "RbacPolicyNotFound");
        assert_eq!(server.delete(&who, &path(&policy)).status, 404);
    }
    assert_eq!(server.delete(&reader(PROJECT), &path(&policy)).status, 403);
    let everybody = json!({"rbac_policy": {"target_tenant": "*"}});
    assert_eq!(server.put(&member(PROJECT), &path(&policy), everybody).status, 403);
    let other = json!({"rbac_policy": {"action": "access_as_external"}});
    assert_eq!(server.put(&member(PROJECT), &path(&policy), other).status, 400);
    assert_eq!(server.dump(), before);
    assert_eq!(server.list(&reader(PROJECT), "rbac-policies", "?action=access_as_shared").len(), 1);
}
