//! Lists that are made of other resources.

use serde_json::json;

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick, reader};

#[test]
fn an_admin_sees_how_full_networks_are() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let six = json!({"network_id": network["id"], "ip_version": 6, "cidr": "2001:db8::/120"});
    server.make(&member(PROJECT), "subnet", six);
    server.make(&member(OTHER), "network", json!({"name": "empty"}));
    server.make(&member(PROJECT), "port", json!({"network_id": network["id"]}));
    let path = format!("/v2.0/network-ip-availabilities/{}", id(&network));
    let shown = server.get(&admin(), &path).body["network_ip_availability"].clone();
    assert_eq!((&shown["total_ips"], &shown["used_ips"]), (&json!(90 + 254), &json!(2)), "{shown}");
    assert_eq!(shown["project_id"], PROJECT);
    let of_subnet = shown["subnet_ip_availability"].as_array().unwrap();
    let four = of_subnet.iter().find(|one| one["subnet_id"] == subnet["id"]).unwrap();
    let expected = json!({
        "subnet_id": subnet["id"], "subnet_name": "net1", "cidr": "10.0.0.0/24", "ip_version": 4,
        "total_ips": 90, "used_ips": 1,
    });
    assert_eq!(*four, expected);
    let list = |query: &str| server.list(&admin(), "network-ip-availabilities", query);
    assert_eq!(list("?ip_version=4&network_name=net1")[0]["total_ips"], 90);
    assert_eq!(pick(&list("?network_name=empty"), "total_ips"), ["0"]);
    assert_eq!(list(&format!("?project_id={OTHER}")).len(), 1);
    assert_eq!(list("?network_id=nothing&fields=network_id").len(), 0);
    assert_eq!(server.get(&member(PROJECT), &path).status, 403);
    assert_eq!(server.get(&admin(), "/v2.0/network-ip-availabilities/nothing").error(), "NetworkNotFound");
}

#[test]
fn floating_ips_come_from_external_subnets() {
    let server = Server::new();
    let (external, subnet) = server.make_external();
    server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    let pools = server.list(&reader(OTHER), "floatingip_pools", "");
    let expected = json!([{
        "network_id": external["id"], "subnet_id": subnet["id"], "subnet_name": "ext", "cidr": "203.0.113.0/24",
        "project_id": PROJECT, "tenant_id": PROJECT,
    }]);
    assert_eq!(json!(pools), expected);
}

#[test]
fn ports_are_found_by_a_part_of_their_address() {
    let server = Server::new();
    let (network, _) = server.make_network(&member(PROJECT), "net1", "10.0.0.0/24");
    for ip in ["10.0.0.7", "10.0.0.70", "10.0.0.8"] {
        let body = json!({"network_id": network["id"], "fixed_ips": [{"ip_address": ip}]});
        server.make(&member(PROJECT), "port", body);
    }
    let found =
        |text: &str| server.list(&member(PROJECT), "ports", &format!("?fixed_ips=ip_address_substr={text}")).len();
    assert_eq!((found(".0.7"), found("10.0."), found("%25"), found("_0_")), (2, 3, 0, 0));
}
