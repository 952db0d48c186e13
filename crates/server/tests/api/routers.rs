//! Routers, their gateway, interfaces and routes.

use evergate_server::options::Options;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick};

fn path(router: &Value) -> String {
    format!("/v2.0/routers/{}", id(router))
}

fn add_interface(server: &Server, router: &Value, subnet: &Value) -> crate::harness::Answer {
    let path = format!("{}/add_router_interface", path(router));
    server.put(&admin(), &path, json!({"subnet_id": subnet["id"]}))
}

#[test]
fn a_router_with_a_gateway_shows_where_it_leads() {
    let server = Server::new();
    server.hosts();
    let (external, subnet) = server.make_external();
    let body = json!({"name": "r1", "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&member(OTHER), "router", body);
    let info = &router["external_gateway_info"];
    assert_eq!(info["network_id"], external["id"]);
    assert_eq!(info["enable_snat"], true);
    assert_eq!(info["external_fixed_ips"][0]["subnet_id"], subnet["id"]);
    assert_eq!(router["status"], "ACTIVE");
    assert_eq!(router["availability_zones"], json!(["nova"]));
    let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
    assert_eq!(pick(&ports, "device_owner"), ["network:router_gateway"]);
    assert_eq!(ports[0]["project_id"], "");
    assert_eq!(server.list(&member(OTHER), "ports", "").len(), 0, "a member does not see the gateway port");
}

#[test]
fn an_admin_chooses_the_gateways_address_and_switches_translation_off() {
    let server = Server::new();
    let (external, _) = server.make_external();
    let router = server.make(&admin(), "router", json!({}));
    let info = json!({
        "network_id": external["id"], "enable_snat": false,
        "external_fixed_ips": [{"ip_address": "203.0.113.99"}],
    });
    let answer = server.put(&admin(), &path(&router), json!({"router": {"external_gateway_info": info}}));
    let shown = &answer.body["router"]["external_gateway_info"];
    assert_eq!(shown["enable_snat"], false);
    assert_eq!(shown["external_fixed_ips"][0]["ip_address"], "203.0.113.99");
    let moved = json!({"network_id": external["id"], "external_fixed_ips": [{"ip_address": "203.0.113.98"}]});
    let answer = server.put(&admin(), &path(&router), json!({"router": {"external_gateway_info": moved}}));
    let shown = &answer.body["router"]["external_gateway_info"];
    assert_eq!(shown["external_fixed_ips"][0]["ip_address"], "203.0.113.98");
    assert_eq!(shown["enable_snat"], true);
    let answer = server.put(&admin(), &path(&router), json!({"router": {"external_gateway_info": {}}}));
    assert_eq!(answer.body["router"]["external_gateway_info"], json!(null));
    assert_eq!(server.list(&admin(), "ports", "").len(), 0);
}

#[test]
fn a_second_gateway_takes_the_place_of_the_first() {
    let server = Server::new();
    let (external, _) = server.make_external();
    let other = json!({"router:external": true, "provider:network_type": "flat", "provider:physical_network": "two"});
    let other = server.make(&admin(), "network", other);
    let subnet = json!({"network_id": other["id"], "ip_version": 4, "cidr": "198.51.100.0/24"});
    server.make(&admin(), "subnet", subnet);
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let second = json!({"router": {"external_gateway_info": {"network_id": other["id"]}}});
    let answer = server.put(&admin(), &path(&router), second);
    assert_eq!(answer.body["router"]["external_gateway_info"]["network_id"], other["id"]);
    assert_eq!(server.list(&admin(), "ports", "").len(), 1);
}

#[test]
fn an_interface_has_the_subnets_gateway_address_and_answers_as_neutron() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let router = server.make(&admin(), "router", json!({"name": "r1"}));
    let answer = add_interface(&server, &router, &subnet);
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = &answer.body;
    assert_eq!((&body["id"], &body["tenant_id"]), (&router["id"], &json!(PROJECT)));
    assert_eq!((&body["network_id"], &body["subnet_id"]), (&network["id"], &subnet["id"]));
    assert_eq!(body["subnet_ids"], json!([subnet["id"]]));
    let port = server.shown("port", body["port_id"].as_str().unwrap());
    assert_eq!(port["device_owner"], "network:router_interface");
    assert_eq!(port["device_id"], router["id"]);
    assert_eq!(port["fixed_ips"][0]["ip_address"], "10.0.0.1");
    assert_eq!(port["port_security_enabled"], false);
    // What the port has already is no change of it; Tempest asks for that.
    let path_of_port = format!("/v2.0/ports/{}", id(&port));
    let change = |fixed_ips| server.put(&admin(), &path_of_port, json!({"port": {"fixed_ips": fixed_ips}}));
    let same = change(json!([{"subnet_id": subnet["id"]}]));
    assert_eq!((same.status, &same.body["port"]["fixed_ips"]), (200, &port["fixed_ips"]));
    assert_eq!(change(json!([{"ip_address": "10.0.0.7"}])).status, 400);
    assert_eq!(change(json!([])).status, 400);
    let gone =
        server.put(&admin(), &format!("{}/remove_router_interface", path(&router)), json!({"subnet_id": subnet["id"]}));
    assert_eq!(gone.status, 200);
    assert_eq!(gone.body["port_id"], port["id"]);
    assert_eq!(server.list(&admin(), "ports", "").len(), 0);
}

#[test]
fn a_port_of_ones_own_becomes_an_interface() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let router = server.make(&member(PROJECT), "router", json!({}));
    let fixed = json!([{"subnet_id": subnet["id"], "ip_address": "10.0.0.99"}]);
    let port = server.make(&member(PROJECT), "port", json!({"network_id": network["id"], "fixed_ips": fixed}));
    let add = format!("{}/add_router_interface", path(&router));
    let answer = server.put(&member(PROJECT), &add, json!({"port_id": port["id"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let port = server.shown("port", id(&port));
    assert_eq!((&port["device_id"], &port["device_owner"]), (&router["id"], &json!("network:router_interface")));
    let again = server.put(&member(PROJECT), &add, json!({"port_id": port["id"]}));
    assert_eq!((again.status, again.error()), (409, "PortInUse"));
    let remove = format!("{}/remove_router_interface", path(&router));
    assert_eq!(server.put(&member(PROJECT), &remove, json!({"port_id": port["id"]})).status, 200);
}

#[test]
fn ipv6_prefixes_of_a_network_share_one_port() {
    let server = Server::new();
    let (network, v4) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let router = server.make(&admin(), "router", json!({}));
    add_interface(&server, &router, &v4);
    let mut ports = Vec::new();
    for cidr in ["2001:db8:1::/64", "2001:db8:2::/64"] {
        let subnet = json!({"network_id": network["id"], "ip_version": 6, "cidr": cidr});
        let subnet = server.make(&admin(), "subnet", subnet);
        let answer = add_interface(&server, &router, &subnet);
        assert_eq!(answer.status, 200, "{answer:?}");
        ports.push((answer.body["port_id"].clone(), subnet));
    }
    assert_eq!(ports[0].0, ports[1].0);
    let remove = format!("{}/remove_router_interface", path(&router));
    let answer = server.put(&admin(), &remove, json!({"subnet_id": ports[0].1["id"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let port = server.shown("port", ports[1].0.as_str().unwrap());
    assert_eq!(port["fixed_ips"], json!([{"subnet_id": ports[1].1["id"], "ip_address": "2001:db8:2::1"}]));
}

#[test]
fn extra_routes_lead_through_connected_subnets() {
    let server = Server::new();
    let (_, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let router = server.make(&admin(), "router", json!({}));
    add_interface(&server, &router, &subnet);
    let route = |to: &str, via: &str| json!({"destination": to, "nexthop": via});
    let set = |routes: Value| server.put(&admin(), &path(&router), json!({"router": {"routes": routes}}));
    let answer = set(json!([route("192.0.2.0/24", "10.0.0.9")]));
    assert_eq!(answer.body["router"]["routes"], json!([route("192.0.2.0/24", "10.0.0.9")]));
    let stray = set(json!([route("192.0.2.0/24", "10.9.0.9")]));
    assert_eq!((stray.status, stray.error()), (400, "InvalidRoutes"));
    assert_eq!(set(json!([route("192.0.2.0/24", "10.0.0.1")])).error(), "InvalidRoutes");
    let many: Vec<Value> = (0..31).map(|n| route(&format!("192.0.{n}.0/24"), "10.0.0.9")).collect();
    assert_eq!(set(json!(many)).error(), "OverQuota");
    let body = json!({"router": {"routes": [route("198.51.100.0/24", "10.0.0.8")]}});
    let answer = server.put(&admin(), &format!("{}/add_extraroutes", path(&router)), body);
    assert_eq!(answer.body["router"]["routes"].as_array().unwrap().len(), 2);
    let needed =
        server.put(&admin(), &format!("{}/remove_router_interface", path(&router)), json!({"subnet_id": subnet["id"]}));
    assert_eq!((needed.status, needed.error()), (409, "RouterInterfaceInUseByRoute"));
    let body = json!({"router": {"routes": [route("192.0.2.0/24", "10.0.0.9")]}});
    let answer = server.put(&admin(), &format!("{}/remove_extraroutes", path(&router)), body);
    assert_eq!(answer.body["router"]["routes"], json!([route("198.51.100.0/24", "10.0.0.8")]));
}

#[test]
fn a_legacy_router_is_on_one_host_and_its_ports_with_it() {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let (_, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    add_interface(&server, &router, &subnet);
    let states = server.ha_states(&router);
    assert_eq!(states.len(), 1);
    let (host, state) = states.first_key_value().unwrap();
    assert_eq!(state, "null");
    let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
    assert_eq!(pick(&ports, "binding:host_id"), [host.clone(), host.clone()]);
}

#[test]
fn a_router_is_moved_between_agents_by_hand() {
    let server = Server::new();
    server.hosts();
    let (_, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let router = server.make(&admin(), "router", json!({}));
    add_interface(&server, &router, &subnet);
    let agents = server.list(&admin(), "agents", "?agent_type=L3%20agent");
    let agent = |host: &str| id(agents.iter().find(|agent| agent["host"] == host).unwrap()).to_owned();
    assert_eq!(server.ha_states(&router).into_keys().collect::<Vec<_>>(), ["h1"]);
    let onto = format!("/v2.0/agents/{}/l3-routers", agent("h2"));
    let refused = server.post(&admin(), &onto, json!({"router_id": router["id"]}));
    assert_eq!((refused.status, refused.error()), (409, "RouterHostedByL3Agent"));
    let from = format!("/v2.0/agents/{}/l3-routers", agent("h1"));
    assert_eq!(server.delete(&admin(), &format!("{from}/{}", id(&router))).status, 204);
    let again = server.delete(&admin(), &format!("{from}/{}", id(&router)));
    assert_eq!((again.status, again.error()), (409, "RouterNotHostedByL3Agent"));
    assert_eq!(server.post(&admin(), &onto, json!({"router_id": router["id"]})).status, 201);
    let listed = server.get(&admin(), &onto);
    assert_eq!(pick(listed.body["routers"].as_array().unwrap(), "id"), [id(&router)]);
    let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
    assert_eq!(pick(&ports, "binding:host_id"), ["h2"]);
}

#[test]
fn hints_keep_a_router_in_zones_that_exist() {
    let server = Server::new();
    server.hosts();
    let router = server.make(&admin(), "router", json!({"availability_zone_hints": ["nova"]}));
    assert_eq!(router["availability_zone_hints"], json!(["nova"]));
    let body = json!({"router": {"availability_zone_hints": ["mars"]}});
    let refused = server.post(&admin(), "/v2.0/routers", body);
    assert_eq!((refused.status, refused.error()), (404, "AvailabilityZoneNotFound"));
    let zones = server.list(&admin(), "availability_zones", "");
    assert_eq!(zones, [json!({"name": "nova", "resource": "router", "state": "available"})]);
}

#[test]
fn an_unscheduled_router_gets_its_agent_when_one_appears() {
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    let router = server.make(&member(PROJECT), "router", json!({}));
    assert!(server.ha_states(&router).is_empty());
    server.hosts();
    assert_eq!(server.ha_states(&router).len(), 3);
}
