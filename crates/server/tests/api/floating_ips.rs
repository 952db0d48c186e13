//! Floating IPs.

use std::collections::BTreeSet;

use evergate_server::objects::floating_ip;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member};

struct World {
    server: Server,
    external: Value,
    subnet: Value,
    network: Value,
    router: Value,
    port: Value,
}

fn world() -> World {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&member(PROJECT), "router", body);
    let path = format!("/v2.0/routers/{}/add_router_interface", id(&router));
    server.put(&member(PROJECT), &path, json!({"subnet_id": subnet["id"]}));
    let port = json!({"network_id": network["id"], "name": "vm", "fixed_ips": [{"ip_address": "10.0.0.5"}]});
    let port = server.make(&member(PROJECT), "port", port);
    World { server, external, subnet, network, router, port }
}

impl World {
    fn make(&self, extra: Value) -> Value {
        let mut body = json!({"floating_network_id": self.external["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.server.make(&member(PROJECT), "floatingip", body)
    }

    fn put(&self, floating_ip: &Value, body: Value) -> crate::harness::Answer {
        let path = format!("/v2.0/floatingips/{}", id(floating_ip));
        self.server.put(&member(PROJECT), &path, json!({"floatingip": body}))
    }
}

#[test]
fn a_floating_ip_leads_to_a_port_through_the_router_between() {
    let w = world();
    let floating_ip = w.make(json!({"port_id": w.port["id"]}));
    assert_eq!(floating_ip["router_id"], w.router["id"]);
    assert_eq!(floating_ip["fixed_ip_address"], "10.0.0.5");
    assert_eq!(floating_ip["status"], "DOWN");
    assert_eq!(floating_ip["port_details"]["name"], "vm");
    assert_eq!(floating_ip["port_details"]["network_id"], w.network["id"]);
    let holder = w.server.list(&admin(), "ports", "?device_owner=network:floatingip");
    assert_eq!(holder[0]["device_id"], floating_ip["id"]);
    assert_eq!(holder[0]["status"], "N/A");
    assert_eq!(holder[0]["fixed_ips"][0]["ip_address"], floating_ip["floating_ip_address"]);
}

#[test]
fn a_floating_ip_is_up_when_the_routers_host_says_so() {
    let w = world();
    let floating_ip = w.make(json!({"port_id": w.port["id"]}));
    let host = w.server.ha_states(&w.router).into_keys().next().unwrap();
    let active = BTreeSet::from([id(&floating_ip).parse().unwrap()]);
    w.server.write(|tx| Ok(floating_ip::record_status(tx, "h9", &active)?));
    assert_eq!(w.server.shown("floatingip", id(&floating_ip))["status"], "DOWN");
    w.server.write(|tx| Ok(floating_ip::record_status(tx, &host, &active)?));
    assert_eq!(w.server.shown("floatingip", id(&floating_ip))["status"], "ACTIVE");
}

#[test]
fn a_floating_ip_moves_and_rests() {
    let w = world();
    let floating_ip = w.make(json!({}));
    assert_eq!((&floating_ip["port_id"], &floating_ip["port_details"]), (&json!(null), &json!(null)));
    let answer = w.put(&floating_ip, json!({"port_id": w.port["id"]}));
    assert_eq!(answer.body["floatingip"]["fixed_ip_address"], "10.0.0.5");
    let answer = w.put(&floating_ip, json!({"port_id": null}));
    assert_eq!(answer.body["floatingip"]["fixed_ip_address"], json!(null));
    assert_eq!(answer.body["floatingip"]["router_id"], json!(null));
    w.put(&floating_ip, json!({"port_id": w.port["id"]}));
    let answer = w.put(&floating_ip, json!({"description": "kept"}));
    assert_eq!(answer.body["floatingip"]["port_id"], w.port["id"], "an update of something else keeps the port");
}

#[test]
fn deleting_a_port_frees_its_floating_ip_and_deleting_that_frees_the_address() {
    let w = world();
    let floating_ip = w.make(json!({"port_id": w.port["id"]}));
    let port = format!("/v2.0/ports/{}", id(&w.port));
    assert_eq!(w.server.delete(&member(PROJECT), &port).status, 204);
    let shown = w.server.shown("floatingip", id(&floating_ip));
    assert_eq!((&shown["port_id"], &shown["router_id"]), (&json!(null), &json!(null)));
    let path = format!("/v2.0/floatingips/{}", id(&floating_ip));
    assert_eq!(w.server.delete(&member(PROJECT), &path).status, 204);
    assert!(w.server.list(&admin(), "ports", "?device_owner=network:floatingip").is_empty());
}

#[test]
fn what_floating_ips_need_stays() {
    let w = world();
    w.make(json!({"port_id": w.port["id"]}));
    let router = format!("/v2.0/routers/{}", id(&w.router));
    let cleared = w.server.put(&member(PROJECT), &router, json!({"router": {"external_gateway_info": null}}));
    assert_eq!((cleared.status, cleared.error()), (409, "RouterExternalGatewayInUseByFloatingIp"));
    let other = json!({"router:external": true, "provider:network_type": "flat", "provider:physical_network": "two"});
    let other = w.server.make(&admin(), "network", other);
    let info = json!({"router": {"external_gateway_info": {"network_id": other["id"]}}});
    let second = w.server.put(&member(PROJECT), &router, info);
    assert_eq!((second.status, second.error()), (409, "RouterExternalGatewayInUseByFloatingIp"));
    let remove = format!("{router}/remove_router_interface");
    let removed = w.server.put(&member(PROJECT), &remove, json!({"subnet_id": w.subnet["id"]}));
    assert_eq!((removed.status, removed.error()), (409, "RouterInterfaceInUseByFloatingIP"));
}

#[test]
fn an_association_that_cannot_work_is_refused_and_nothing_is_left_of_it() {
    let w = world();
    let used = w.make(json!({"port_id": w.port["id"]}));
    let stray = w.server.make(&member(PROJECT), "network", json!({"name": "stray"}));
    let body = json!({"network_id": stray["id"], "ip_version": 4, "cidr": "10.7.0.0/24"});
    w.server.make(&member(PROJECT), "subnet", body);
    let far = w.server.make(&member(PROJECT), "port", json!({"network_id": stray["id"]}));
    let bare = w.server.make(&member(PROJECT), "port", json!({"network_id": w.network["id"], "fixed_ips": []}));
    let two = json!([{"ip_address": "10.0.0.20"}, {"ip_address": "10.0.0.21"}]);
    let two = w.server.make(&member(PROJECT), "port", json!({"network_id": w.network["id"], "fixed_ips": two}));
    let cases = [
        (json!({"port_id": w.port["id"]}), 409, "FloatingIPPortAlreadyAssociated"),
        (json!({"port_id": far["id"]}), 404, "ExternalGatewayForFloatingIPNotFound"),
        (json!({"port_id": bare["id"]}), 400, "BadRequest"),
        (json!({"port_id": two["id"]}), 400, "BadRequest"),
        (json!({"port_id": two["id"], "fixed_ip_address": "10.0.0.99"}), 400, "BadRequest"),
        (json!({"fixed_ip_address": "10.0.0.20"}), 400, "BadRequest"),
        (json!({"port_id": "00000000-0000-0000-0000-000000000001"}), 404, "PortNotFound"),
        (json!({"floating_network_id": w.network["id"]}), 400, "BadRequest"),
    ];
    let before = w.server.dump();
    for (extra, status, error) in cases {
        let mut body = json!({"floating_network_id": w.external["id"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refused = w.server.post(&member(PROJECT), "/v2.0/floatingips", json!({"floatingip": body}));
        assert_eq!((refused.status, refused.error()), (status, error), "{extra}: {refused:?}");
        assert_eq!(w.server.dump(), before, "{extra}");
    }
    let fixed = json!({"port_id": two["id"], "fixed_ip_address": "10.0.0.21"});
    assert_eq!(w.make(fixed)["fixed_ip_address"], "10.0.0.21");
    assert_eq!(used["fixed_ip_address"], "10.0.0.5");
}

#[test]
fn only_an_admin_or_manager_picks_the_address() {
    let w = world();
    let body = json!({"floatingip": {"floating_network_id": w.external["id"], "floating_ip_address": "203.0.113.200"}});
    let refused = w.server.post(&member(PROJECT), "/v2.0/floatingips", body.clone());
    assert_eq!((refused.status, refused.error()), (403, "HTTPForbidden"));
    let made = w.server.post(&admin(), "/v2.0/floatingips", body.clone());
    assert_eq!(made.body["floatingip"]["floating_ip_address"], "203.0.113.200");
    assert_eq!(w.server.post(&admin(), "/v2.0/floatingips", body).error(), "IpAddressAlreadyAllocated");
    let foreign = w.server.make(&member(OTHER), "floatingip", json!({"floating_network_id": w.external["id"]}));
    assert_eq!(w.put(&foreign, json!({"description": "mine"})).status, 404);
}

#[test]
fn a_floating_ip_of_a_routers_own_port_does_not_keep_the_router_from_changing() {
    let server = Server::new();
    server.host_in_mode("h1", "dvr_snat");
    let (external, _) = server.make_external();
    let (_, subnet) = server.make_network(&admin(), "n", "10.0.0.0/24");
    let body = json!({"distributed": true, "ha": false, "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let path = format!("/v2.0/routers/{}", id(&router));
    let plugged = server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    assert_eq!(plugged.status, 200, "{plugged:?}");
    let snat = "?device_owner=network:router_centralized_snat";
    let port = server.list(&admin(), "ports", snat).remove(0);
    let body = json!({"floating_network_id": external["id"], "port_id": port["id"]});
    let floating = server.make(&admin(), "floatingip", body);
    let answer = server.put(&admin(), &path, json!({"router": {"distributed": false}}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(server.list(&admin(), "ports", snat).is_empty());
    assert_eq!(server.shown("floatingip", id(&floating))["port_id"], Value::Null);
}
