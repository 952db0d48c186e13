//! Ports and their addresses.

use std::collections::BTreeSet;

use evergate_server::context::Context;
use evergate_server::objects::port;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member};

fn with_network() -> (Server, Value, Value) {
    let server = Server::new();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    (server, network, subnet)
}

#[test]
fn a_port_gets_an_address_of_the_pool_and_a_mac_of_neutrons() {
    let (server, network, subnet) = with_network();
    let port = server.make(&member(PROJECT), "port", json!({"network_id": network["id"]}));
    let ip: std::net::Ipv4Addr = port["fixed_ips"][0]["ip_address"].as_str().unwrap().parse().unwrap();
    assert!((2..=254).contains(&ip.octets()[3]));
    assert_eq!(port["fixed_ips"][0]["subnet_id"], subnet["id"]);
    assert!(port["mac_address"].as_str().unwrap().starts_with("fa:16:3e:"));
    assert_eq!(port["status"], "DOWN");
    assert_eq!(port["admin_state_up"], true);
    assert_eq!(port["port_security_enabled"], true);
}

#[test]
fn an_address_is_asked_for_by_subnet_by_itself_or_by_both() {
    let (server, network, subnet) = with_network();
    let make = |fixed_ips: Value| {
        server.make(&admin(), "port", json!({"network_id": network["id"], "fixed_ips": fixed_ips}))["fixed_ips"].clone()
    };
    assert_eq!(
        make(json!([{"ip_address": "10.0.0.5"}])),
        json!([{"subnet_id": subnet["id"], "ip_address": "10.0.0.5"}])
    );
    let both = json!([{"subnet_id": subnet["id"], "ip_address": "10.0.0.6"}]);
    assert_eq!(make(both.clone()), both);
    // Last: the server chooses any free address, which those above must still be.
    assert_eq!(make(json!([{"subnet_id": subnet["id"]}]))[0]["subnet_id"], subnet["id"]);
    assert_eq!(make(json!([])), json!([]));
}

#[test]
fn every_address_of_a_small_subnet_is_given_once_and_then_there_are_none() {
    let server = Server::new();
    let (network, _) = server.make_network(&admin(), "tiny", "10.0.0.0/28");
    let mut seen = BTreeSet::new();
    for _ in 0..13 {
        let port = server.make(&admin(), "port", json!({"network_id": network["id"]}));
        assert!(seen.insert(port["fixed_ips"][0]["ip_address"].to_string()));
    }
    let before = server.dump();
    let refused = server.post(&admin(), "/v2.0/ports", json!({"port": {"network_id": network["id"]}}));
    assert_eq!((refused.status, refused.error()), (409, "IpAddressGenerationFailure"));
    assert_eq!(refused.message(), format!("No more IP addresses available on network {}.", id(&network)));
    assert_eq!(server.dump(), before);
}

#[test]
fn changing_addresses_keeps_those_that_still_suit() {
    let (server, network, subnet) = with_network();
    let body =
        json!({"network_id": network["id"], "fixed_ips": [{"ip_address": "10.0.0.5"}, {"ip_address": "10.0.0.6"}]});
    let port = server.make(&admin(), "port", body);
    let path = format!("/v2.0/ports/{}", id(&port));
    let body = json!({"port": {"fixed_ips": [{"subnet_id": subnet["id"]}, {"ip_address": "10.0.0.6"}]}});
    let answer = server.put(&admin(), &path, body);
    let ips: Vec<_> = answer.body["port"]["fixed_ips"].as_array().unwrap().iter().map(|ip| &ip["ip_address"]).collect();
    assert_eq!(ips, ["10.0.0.6", "10.0.0.5"]);
    let refused = server.put(&admin(), &path, json!({"port": {"fixed_ips": [{"ip_address": "10.9.0.6"}]}}));
    assert_eq!((refused.status, refused.error()), (400, "InvalidIpForNetwork"));
}

#[test]
fn a_port_bound_to_a_host_with_an_l2_agent_is_up_when_the_host_says_so() {
    let (server, network, _) = with_network();
    server.host("h1");
    let bound = |host: &str| json!({"network_id": network["id"], "binding:host_id": host});
    let port = server.make(&admin(), "port", bound("h1"));
    assert_eq!((&port["binding:vif_type"], &port["status"]), (&json!("bridge"), &json!("DOWN")));
    let lost = server.make(&admin(), "port", bound("h9"));
    assert_eq!(lost["binding:vif_type"], "binding_failed");
    assert_eq!(server.make(&admin(), "port", bound(""))["binding:vif_type"], "unbound");
    let up = BTreeSet::from([id(&port).parse().unwrap()]);
    server.write(|tx| Ok(port::record_status(tx, "h1", &up)?));
    assert_eq!(server.shown("port", id(&port))["status"], "ACTIVE");
    server.write(|tx| Ok(port::record_status(tx, "h1", &BTreeSet::new())?));
    assert_eq!(server.shown("port", id(&port))["status"], "DOWN");
}

#[test]
fn a_member_sees_its_ports_without_their_binding_and_those_on_its_network() {
    let server = Server::new();
    let network = server.make(&member(PROJECT), "network", json!({}));
    let foreign = json!({"network_id": network["id"], "project_id": OTHER, "name": "guest"});
    server.make(&admin(), "port", foreign);
    let seen = server.list(&member(PROJECT), "ports", "");
    assert_eq!(seen.len(), 1);
    assert!(seen[0].get("binding:host_id").is_none());
    assert!(seen[0].get("binding:vif_type").is_none());
    assert_eq!(seen[0]["binding:vnic_type"], "normal");
    assert_eq!(server.list(&member(OTHER), "ports", "").len(), 1);
    assert_eq!(server.list(&member("eeee"), "ports", "").len(), 0);
}

#[test]
fn a_mac_is_used_once_on_a_network() {
    let (server, network, _) = with_network();
    let body = json!({"port": {"network_id": network["id"], "mac_address": "FA:16:3E:00:00:07"}});
    let port = server.post(&admin(), "/v2.0/ports", body.clone());
    assert_eq!(port.body["port"]["mac_address"], "fa:16:3e:00:00:07");
    let refused = server.post(&admin(), "/v2.0/ports", body);
    assert_eq!((refused.status, refused.error()), (409, "MacAddressInUse"));
    let found = server.list(&admin(), "ports", "?mac_address=FA:16:3E:00:00:07");
    assert_eq!(found.len(), 1);
}

#[test]
fn a_port_is_given_another_mac_and_the_addresses_made_of_it() {
    let (server, network, _) = with_network();
    let six = json!({
        "network_id": network["id"], "ip_version": 6, "cidr": "fd00::/64", "ipv6_address_mode": "slaac",
        "ipv6_ra_mode": "slaac",
    });
    let six = server.make(&admin(), "subnet", six);
    let port = server.make(&admin(), "port", json!({"network_id": network["id"], "mac_address": "fa:16:3e:00:00:07"}));
    let path = format!("/v2.0/ports/{}", id(&port));
    let set = |who: &Context, mac: Value| server.put(who, &path, json!({"port": {"mac_address": mac}}));
    let address = |port: &Value, subnet: &Value| {
        let ips = port["fixed_ips"].as_array().unwrap();
        ips.iter().find(|ip| ip["subnet_id"] == *subnet).map(|ip| ip["ip_address"].clone())
    };
    assert_eq!(address(&port, &six["id"]), Some(json!("fd00::f816:3eff:fe00:7")));
    let other = set(&admin(), json!("fa:16:3e:00:00:08")).body["port"].clone();
    assert_eq!(other["mac_address"], "fa:16:3e:00:00:08");
    assert_eq!(address(&other, &six["id"]), Some(json!("fd00::f816:3eff:fe00:8")));
    let four = port["fixed_ips"].as_array().unwrap().iter().find(|ip| ip["subnet_id"] != six["id"]).unwrap();
    assert_eq!(address(&other, &four["subnet_id"]).as_ref(), Some(&four["ip_address"]), "it stays");
    // Null is for one of the server's choice.
    let chosen = set(&admin(), json!(null)).body["port"].clone();
    let mac = chosen["mac_address"].as_str().unwrap();
    assert!(mac.starts_with("fa:16:3e:") && mac != "fa:16:3e:00:00:08", "{mac}");
    assert_ne!(address(&chosen, &six["id"]), address(&other, &six["id"]));
    assert_eq!(chosen["fixed_ips"].as_array().unwrap().len(), 2);

    server.make(&admin(), "port", json!({"network_id": network["id"], "mac_address": "fa:16:3e:00:00:09"}));
    assert_eq!(set(&admin(), json!("fa:16:3e:00:00:09")).error(), "MacAddressInUse");
    assert_eq!(set(&member(PROJECT), json!(null)).status, 403);
    server.put(&admin(), &path, json!({"port": {"binding:host_id": "h1"}}));
    let before = server.dump();
    assert_eq!(set(&admin(), json!(null)).error(), "PortBound");
    assert_eq!(server.dump(), before);
}

#[test]
fn address_pairs_need_port_security() {
    let (server, network, _) = with_network();
    let pairs = json!([{"ip_address": "10.0.0.100"}]);
    let body = json!({"network_id": network["id"], "allowed_address_pairs": pairs});
    let port = server.make(&admin(), "port", body);
    let shown = json!([{"ip_address": "10.0.0.100", "mac_address": port["mac_address"]}]);
    assert_eq!(port["allowed_address_pairs"], shown, "it is for the port's own address on the link");
    let path = format!("/v2.0/ports/{}", id(&port));
    let refused = server.put(&admin(), &path, json!({"port": {"port_security_enabled": false}}));
    assert_eq!((refused.status, refused.error()), (409, "AddressPairAndPortSecurityRequired"));
    let body = json!({"port": {"port_security_enabled": false, "allowed_address_pairs": [], "security_groups": []}});
    assert_eq!(server.put(&admin(), &path, body).status, 200);
}

#[test]
fn dhcp_options_are_kept_changed_one_by_one_and_removed() {
    let (server, network, _) = with_network();
    let options = json!([
        {"opt_name": "mtu", "opt_value": "1400"}, {"opt_name": "bootfile-name", "opt_value": "x", "ip_version": 6},
    ]);
    let port = server.make(&admin(), "port", json!({"network_id": network["id"], "extra_dhcp_opts": options}));
    let shown = json!([
        {"opt_name": "bootfile-name", "opt_value": "x", "ip_version": 6},
        {"opt_name": "mtu", "opt_value": "1400", "ip_version": 4},
    ]);
    assert_eq!(port["extra_dhcp_opts"], shown);
    let path = format!("/v2.0/ports/{}", id(&port));
    let changes = json!([
        {"opt_name": "mtu", "opt_value": "9000"}, {"opt_name": "bootfile-name", "opt_value": null, "ip_version": 6},
    ]);
    let changed = server.put(&admin(), &path, json!({"port": {"extra_dhcp_opts": changes}}));
    let left = json!([{"opt_name": "mtu", "opt_value": "9000", "ip_version": 4}]);
    assert_eq!(changed.body["port"]["extra_dhcp_opts"], left);
    let bad = json!({"port": {"extra_dhcp_opts": [{"opt_name": "mtu", "opt_value": "1", "ip_version": 5}]}});
    assert_eq!(server.put(&admin(), &path, bad).status, 400);
}

#[test]
fn a_subnet_reserved_for_a_kind_of_device_serves_no_other() {
    let (server, network, _) = with_network();
    let body = json!({
        "network_id": network["id"], "ip_version": 4, "cidr": "10.1.0.0/24",
        "service_types": ["compute:special"],
    });
    let special = server.make(&admin(), "subnet", body);
    let subnet_of = |owner: &str| {
        let port = server.make(&admin(), "port", json!({"network_id": network["id"], "device_owner": owner}));
        port["fixed_ips"][0]["subnet_id"].clone()
    };
    assert_eq!(subnet_of("compute:special"), special["id"]);
    assert_ne!(subnet_of("compute:nova"), special["id"]);
}
