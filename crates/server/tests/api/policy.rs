//! Who may do what, and what is hidden from whom.

use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, reader};

#[test]
fn only_admins_choose_ha_and_distributed() {
    let server = Server::new();
    for (attribute, value) in [("ha", true), ("ha", false), ("distributed", false)] {
        let refused = server.post(&member(PROJECT), "/v2.0/routers", json!({"router": {attribute: value}}));
        assert_eq!((refused.status, refused.error()), (403, "HTTPForbidden"));
        let text = format!("(rule:create_router and rule:create_router:{attribute}) is disallowed by policy");
        assert_eq!(refused.message(), text);
    }
    let router = server.make(&member(PROJECT), "router", json!({}));
    assert!(router.get("ha").is_none() && router.get("distributed").is_none());
    let refused =
        server.put(&member(PROJECT), &format!("/v2.0/routers/{}", id(&router)), json!({"router": {"ha": true}}));
    assert_eq!(refused.status, 403);
    assert!(server.list(&admin(), "networks", "").is_empty(), "nothing came of it");
}

#[test]
fn a_reader_sees_and_does_not_touch() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let router = server.make(&member(PROJECT), "router", json!({}));
    let port = server.make(&member(PROJECT), "port", json!({"network_id": network["id"]}));
    let who = reader(PROJECT);
    let before = server.dump();
    let create =
        |singular: &str, body: Value| server.post(&who, &format!("/v2.0/{singular}s"), json!({singular: body}));
    assert_eq!(create("network", json!({})).message(), "rule:create_network is disallowed by policy");
    let body = json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24"});
    assert_eq!(create("subnet", body).status, 403);
    assert_eq!(create("port", json!({"network_id": network["id"]})).status, 403);
    assert_eq!(create("router", json!({})).status, 403);
    for (singular, object) in [("network", &network), ("subnet", &subnet), ("router", &router), ("port", &port)] {
        let path = format!("/v2.0/{singular}s/{}", id(object));
        assert_eq!(server.get(&who, &path).status, 200);
        assert_eq!(server.put(&who, &path, json!({singular: {"name": "x"}})).status, 403);
        assert_eq!(server.delete(&who, &path).status, 403);
        assert_eq!(server.put(&who, &format!("{path}/tags/x"), json!({})).status, 403);
    }
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    assert_eq!(server.put(&who, &path, json!({"subnet_id": subnet["id"]})).status, 403);
    assert_eq!(server.dump(), before);
}

#[test]
fn objects_of_other_projects_are_not_there() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let router = server.make(&member(PROJECT), "router", json!({}));
    let port = server.make(&member(PROJECT), "port", json!({"network_id": network["id"]}));
    let who = member(OTHER);
    let mine = server.make(&who, "router", json!({}));
    for (singular, object, error) in [
        ("network", &network, "NetworkNotFound"),
        ("subnet", &subnet, "SubnetNotFound"),
        ("router", &router, "RouterNotFound"),
        ("port", &port, "PortNotFound"),
    ] {
        let path = format!("/v2.0/{singular}s/{}", id(object));
        let answers = [
            server.get(&who, &path),
            server.put(&who, &path, json!({singular: {"name": "x"}})),
            server.delete(&who, &path),
        ];
        for answer in answers {
            assert_eq!((answer.status, answer.error()), (404, error));
        }
    }
    let body = json!({"port": {"network_id": network["id"]}});
    assert_eq!(server.post(&who, "/v2.0/ports", body).error(), "NetworkNotFound");
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&mine));
    assert_eq!(server.put(&who, &path, json!({"subnet_id": subnet["id"]})).error(), "SubnetNotFound");
    assert_eq!(server.put(&who, &path, json!({"port_id": port["id"]})).error(), "PortNotFound");
}

#[test]
fn agents_are_the_admins_business() {
    let server = Server::new();
    server.hosts();
    let agent = server.list(&admin(), "agents", "")[0].clone();
    let router = server.make(&member(PROJECT), "router", json!({}));
    let who = member(PROJECT);
    assert!(server.list(&who, "agents", "").is_empty());
    assert_eq!(server.get(&who, &format!("/v2.0/agents/{}", id(&agent))).status, 404);
    assert_eq!(server.delete(&who, &format!("/v2.0/agents/{}", id(&agent))).status, 404);
    assert_eq!(server.get(&who, &format!("/v2.0/routers/{}/l3-agents", id(&router))).status, 403);
    assert_eq!(server.get(&who, &format!("/v2.0/agents/{}/l3-routers", id(&agent))).status, 403);
}

#[test]
fn only_admins_share_lead_outside_and_see_what_carries_a_network() {
    let server = Server::new();
    for body in [
        json!({"shared": true}),
        json!({"router:external": true}),
        json!({"provider:network_type": "vxlan"}),
        json!({"provider:segmentation_id": 5}),
    ] {
        let refused = server.post(&member(PROJECT), "/v2.0/networks", json!({"network": body}));
        assert_eq!((refused.status, refused.error()), (403, "HTTPForbidden"), "{body}");
    }
    // What is so by default may be said.
    let network = server.make(&member(PROJECT), "network", json!({"shared": false, "router:external": false}));
    assert!(network.get("provider:network_type").is_none());
    assert!(network.get("provider:segmentation_id").is_none());
}

#[test]
fn a_member_uses_an_external_network_and_changes_nothing_about_it() {
    let server = Server::new();
    let (external, subnet) = server.make_external();
    let who = member(OTHER);
    assert_eq!(server.list(&who, "networks", "?router:external=True").len(), 1);
    assert_eq!(server.get(&who, &format!("/v2.0/subnets/{}", id(&subnet))).status, 200);
    let path = format!("/v2.0/networks/{}", id(&external));
    assert_eq!(server.put(&who, &path, json!({"network": {"name": "x"}})).status, 403);
    assert_eq!(server.delete(&who, &path).status, 403);
    let refused = server.post(&who, "/v2.0/ports", json!({"port": {"network_id": external["id"]}}));
    assert_eq!(refused.status, 403);
    let info = json!({"network_id": external["id"]});
    server.make(&who, "router", json!({"external_gateway_info": info}));
    for extra in [json!({"enable_snat": false}), json!({"external_fixed_ips": [{"ip_address": "203.0.113.9"}]})] {
        let mut info = info.clone();
        info.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refused = server.post(&who, "/v2.0/routers", json!({"router": {"external_gateway_info": info}}));
        assert_eq!((refused.status, refused.error()), (403, "HTTPForbidden"), "{extra}");
    }
}

#[test]
fn guests_on_a_shared_network_do_not_pretend_to_be_devices_or_pick_addresses() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({"shared": true}));
    let body = json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.0.0.0/24"});
    let subnet = server.make(&admin(), "subnet", body);
    let who = member(OTHER);
    let port = |extra: Value| {
        let mut body = json!({"network_id": network["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post(&who, "/v2.0/ports", json!({"port": body})).status
    };
    assert_eq!(port(json!({"device_owner": "network:router_interface"})), 403);
    assert_eq!(port(json!({"mac_address": "fa:16:3e:00:00:09"})), 403);
    assert_eq!(port(json!({"binding:host_id": "h1"})), 403);
    assert_eq!(port(json!({"port_security_enabled": false})), 403);
    assert_eq!(port(json!({"fixed_ips": [{"ip_address": "10.0.0.9"}]})), 403);
    assert_eq!(port(json!({"fixed_ips": [{"subnet_id": subnet["id"]}]})), 201);
    assert_eq!(port(json!({"device_owner": "compute:nova"})), 201);
    let body = json!({"subnet": {"network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24"}});
    assert_eq!(server.post(&who, "/v2.0/subnets", body).status, 403);
}

#[test]
fn only_an_admin_makes_objects_for_other_projects() {
    let server = Server::new();
    let refused = server.post(&member(PROJECT), "/v2.0/networks", json!({"network": {"tenant_id": OTHER}}));
    assert_eq!((refused.status, refused.error()), (400, "HTTPBadRequest"));
    let network = server.make(&admin(), "network", json!({"tenant_id": OTHER}));
    assert_eq!(network["project_id"], OTHER);
    let both = json!({"network": {"tenant_id": OTHER, "project_id": PROJECT}});
    assert_eq!(server.post(&admin(), "/v2.0/networks", both).status, 400);
}

#[test]
fn what_is_hidden_cannot_be_found_out_by_asking() {
    let server = Server::new();
    server.hosts();
    server.make(&admin(), "router", json!({"ha": true, "project_id": OTHER}));
    let who = member(OTHER);
    for query in ["?ha=True", "?ha=False", "?nonsense=1"] {
        let answer = server.get(&who, &format!("/v2.0/routers{query}"));
        assert_eq!((answer.status, answer.error()), (400, "HTTPBadRequest"), "as if there were no such thing: {query}");
    }
    assert_eq!(server.get(&who, "/v2.0/routers?sort_key=ha&sort_dir=asc").status, 400);
    assert_eq!(server.list(&admin(), "routers", "?ha=False").len(), 0);
}

#[test]
fn a_strangers_router_does_not_take_the_outside_gateways_address() {
    let server = Server::new();
    let (_, subnet) = server.make_external();
    let router = server.make(&member(OTHER), "router", json!({}));
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    let refused = server.put(&member(OTHER), &path, json!({"subnet_id": subnet["id"]}));
    assert_eq!((refused.status, refused.error()), (403, "HTTPForbidden"));
}
