//! Networks and subnets.

use evergate_server::options::Options;
use serde_json::json;

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick};

#[test]
fn a_project_network_gets_a_vni_and_the_mtu_that_vxlan_leaves() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({"name": "net1"}));
    assert_eq!(network["provider:network_type"], "vxlan");
    let vni = network["provider:segmentation_id"].as_u64().unwrap();
    assert!((1..=100_000).contains(&vni));
    assert_eq!(network["mtu"], 1450);
    assert_eq!(network["status"], "ACTIVE");
    assert_eq!(network["project_id"], PROJECT);
    assert_eq!(network["tenant_id"], PROJECT);
    assert_eq!(network["revision_number"], 1);
}

#[test]
fn a_flat_network_has_the_physical_networks_mtu() {
    let server = Server::new();
    let (network, _) = server.make_external();
    assert_eq!(network["mtu"], 1500);
    assert_eq!(network["is_default"], false);
    assert_eq!(network["provider:segmentation_id"], json!(null));
}

#[test]
fn vnis_are_used_once_and_run_out() {
    let server = Server::with(Options { vni_ranges: vec![(5, 6), (9, 9)], ..Options::default() });
    let mut vnis: Vec<u64> = (0..3)
        .map(|_| server.make(&admin(), "network", json!({}))["provider:segmentation_id"].as_u64().unwrap())
        .collect();
    vnis.sort_unstable();
    assert_eq!(vnis, [5, 6, 9]);
    let refused = server.post(&admin(), "/v2.0/networks", json!({"network": {}}));
    assert_eq!((refused.status, refused.error()), (503, "NoNetworkAvailable"));
    let taken = json!({"network": {"provider:network_type": "vxlan", "provider:segmentation_id": 6}});
    let refused = server.post(&admin(), "/v2.0/networks", taken);
    assert_eq!((refused.status, refused.error()), (409, "TunnelIdInUse"));
}

#[test]
fn a_subnet_fills_in_what_was_not_said_and_its_network_lists_it() {
    let server = Server::new();
    let (network, subnet) = server.make_network(&member(PROJECT), "net1", "10.0.0.77/24");
    assert_eq!(subnet["cidr"], "10.0.0.0/24");
    assert_eq!(subnet["gateway_ip"], "10.0.0.1");
    assert_eq!(subnet["allocation_pools"], json!([{"start": "10.0.0.2", "end": "10.0.0.254"}]));
    assert_eq!(subnet["enable_dhcp"], true);
    let network = server.shown("network", id(&network));
    assert_eq!(network["subnets"], json!([subnet["id"]]));
    assert_eq!(network["revision_number"], 2);
}

#[test]
fn a_gateway_of_null_leaves_the_first_address_to_hosts() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({}));
    let body = json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.0.0.0/24", "gateway_ip": null});
    let subnet = server.make(&admin(), "subnet", body);
    assert_eq!(subnet["gateway_ip"], json!(null));
    assert_eq!(subnet["allocation_pools"], json!([{"start": "10.0.0.1", "end": "10.0.0.254"}]));
}

#[test]
fn an_ipv6_subnet_with_slaac_gives_ports_the_address_that_they_make_themselves() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({}));
    let early = server.make(&admin(), "port", json!({"network_id": network["id"], "mac_address": "fa:16:3e:00:00:01"}));
    assert_eq!(early["fixed_ips"], json!([]));
    let body = json!({
        "network_id": network["id"], "ip_version": 6, "cidr": "2001:db8::/64",
        "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac",
    });
    let subnet = server.make(&admin(), "subnet", body);
    let late = server.make(&admin(), "port", json!({"network_id": network["id"], "mac_address": "fa:16:3e:00:00:02"}));
    assert_eq!(late["fixed_ips"], json!([{"subnet_id": subnet["id"], "ip_address": "2001:db8::f816:3eff:fe00:2"}]));
    let early = server.shown("port", id(&early));
    assert_eq!(early["fixed_ips"][0]["ip_address"], "2001:db8::f816:3eff:fe00:1");
    let again = json!({"port": {"fixed_ips": [{"subnet_id": subnet["id"]}, {"subnet_id": subnet["id"]}]}});
    let refused = server.put(&admin(), &format!("/v2.0/ports/{}", id(&late)), again);
    assert_eq!((refused.status, refused.error()), (409, "IpAddressAlreadyAllocated"));
    // Whoever asks for an IPv4 address has the automatic one too, but not who asks for none.
    let four = json!({"network_id": network["id"], "ip_version": 4, "cidr": "10.0.0.0/24"});
    server.make(&admin(), "subnet", four);
    let body = json!({"network_id": network["id"], "fixed_ips": [{"ip_address": "10.0.0.9"}]});
    let both = server.make(&admin(), "port", body);
    assert_eq!(both["fixed_ips"].as_array().unwrap().len(), 2, "{both}");
    let path = format!("/v2.0/ports/{}", id(&both));
    let moved = server.put(&admin(), &path, json!({"port": {"fixed_ips": [{"ip_address": "10.0.0.10"}]}}));
    assert_eq!(moved.body["port"]["fixed_ips"].as_array().unwrap().len(), 2, "{moved:?}");
    let none = server.put(&admin(), &path, json!({"port": {"fixed_ips": []}}));
    assert_eq!(none.body["port"]["fixed_ips"], json!([]));
    // Such addresses do not keep their subnet.
    assert_eq!(server.delete(&admin(), &format!("/v2.0/subnets/{}", id(&subnet))).status, 204);
}

#[test]
fn a_subnet_changes_its_pools_gateway_and_servers() {
    let server = Server::new();
    let (_, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let path = format!("/v2.0/subnets/{}", id(&subnet));
    let body = json!({"subnet": {
        "allocation_pools": [{"start": "10.0.0.50", "end": "10.0.0.60"}],
        "gateway_ip": "10.0.0.254", "dns_nameservers": ["192.0.2.53"], "enable_dhcp": false,
        "host_routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}],
    }});
    let answer = server.put(&admin(), &path, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let subnet = &answer.body["subnet"];
    assert_eq!(subnet["allocation_pools"], json!([{"start": "10.0.0.50", "end": "10.0.0.60"}]));
    assert_eq!(subnet["gateway_ip"], "10.0.0.254");
    assert_eq!(subnet["dns_nameservers"], json!(["192.0.2.53"]));
    assert_eq!(subnet["host_routes"], json!([{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]));
    let refused = server.put(&admin(), &path, json!({"subnet": {"gateway_ip": "10.0.0.55"}}));
    assert_eq!((refused.status, refused.error()), (409, "GatewayConflictWithAllocationPools"));
}

#[test]
fn bulk_creation_is_all_or_nothing() {
    let server = Server::new();
    let both = json!({"networks": [{"name": "a"}, {"name": "b"}]});
    let answer = server.post(&admin(), "/v2.0/networks", both);
    assert_eq!(answer.status, 201);
    assert_eq!(pick(answer.body["networks"].as_array().unwrap(), "name"), ["a", "b"]);
    let before = server.dump();
    let flat = json!({"provider:network_type": "flat", "provider:physical_network": "p"});
    let refused = server.post(&admin(), "/v2.0/networks", json!({"networks": [flat, flat]}));
    assert_eq!((refused.status, refused.error()), (409, "FlatNetworkInUse"));
    assert_eq!(server.dump(), before);
}

#[test]
fn a_shared_network_is_used_by_all_and_unshared_only_when_nobody_does() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({"name": "shared", "shared": true}));
    assert_eq!(pick(&server.list(&member(OTHER), "networks", ""), "name"), ["shared"]);
    let port = server.make(&member(OTHER), "port", json!({"network_id": network["id"]}));
    let path = format!("/v2.0/networks/{}", id(&network));
    let refused = server.put(&admin(), &path, json!({"network": {"shared": false}}));
    assert_eq!((refused.status, refused.error()), (409, "InvalidSharedSetting"));
    assert_eq!(server.delete(&member(OTHER), &format!("/v2.0/ports/{}", id(&port))).status, 204);
    assert_eq!(server.put(&admin(), &path, json!({"network": {"shared": false}})).status, 200);
    assert_eq!(server.list(&member(OTHER), "networks", "").len(), 0);
}

#[test]
fn deleting_a_network_takes_its_subnets_and_spare_floating_ips_along() {
    let server = Server::new();
    let (network, _) = server.make_external();
    server.make(&member(PROJECT), "floatingip", json!({"floating_network_id": network["id"]}));
    assert_eq!(server.delete(&admin(), &format!("/v2.0/networks/{}", id(&network))).status, 204);
    for collection in ["networks", "subnets", "ports", "floatingips"] {
        assert_eq!(server.list(&admin(), collection, ""), Vec::<serde_json::Value>::new());
    }
}

#[test]
fn subnets_need_an_mtu_that_their_protocol_can_live_with() {
    let server = Server::new();
    for (short, enough, version, cidr) in [(67, 68, 4, "10.0.0.0/24"), (1279, 1280, 6, "fd00::/64")] {
        let network = server.make(&member(PROJECT), "network", json!({"mtu": short}));
        let path = format!("/v2.0/networks/{}", id(&network));
        let subnet = json!({"subnet": {"network_id": network["id"], "ip_version": version, "cidr": cidr}});
        let refused = server.post(&member(PROJECT), "/v2.0/subnets", subnet.clone());
        assert_eq!((refused.status, refused.error()), (409, "NetworkMTUSubnetConflict"));
        let set = |mtu: u16| server.put(&member(PROJECT), &path, json!({"network": {"mtu": mtu}}));
        assert_eq!(set(enough).status, 200);
        assert_eq!(server.post(&member(PROJECT), "/v2.0/subnets", subnet).status, 201);
        let refused = set(short);
        let why = format!("MTU of {} is not valid, subnet requires a minimum of {enough}", id(&network));
        assert_eq!((refused.error(), refused.message()), ("NetworkMTUSubnetConflict", why.as_str()));
    }
}

#[test]
fn a_segment_does_not_change_but_the_mtu_may() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({}));
    let path = format!("/v2.0/networks/{}", id(&network));
    let refused = server.put(&admin(), &path, json!({"network": {"provider:segmentation_id": 77}}));
    assert_eq!((refused.status, refused.error()), (400, "InvalidInput"));
    let answer = server.put(&admin(), &path, json!({"network": {"mtu": 1300}}));
    assert_eq!(answer.body["network"]["mtu"], 1300);
    let refused = server.put(&admin(), &path, json!({"network": {"mtu": 1451}}));
    assert_eq!(refused.message(), "Invalid input for operation: Requested MTU is too big, maximum is 1450.");
    let answer = server.put(&admin(), &path, json!({"network": {"mtu": 0}}));
    assert_eq!(answer.body["network"]["mtu"], 1450);
}
