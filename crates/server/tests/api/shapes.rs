//! What answers look like beside those recorded from a running Neutron 25.2.3: the same keys.

use evergate_model::host::HaState;
use evergate_server::options::Options;
use serde_json::{Value, json};

use crate::harness::{PROJECT, Server, admin, id};

/// Keys of a network that is not external; an external one has `is_default` too.
const NETWORK: &str = "id name tenant_id admin_state_up mtu status subnets shared availability_zone_hints \
                       availability_zones ipv4_address_scope ipv6_address_scope router:external description \
                       port_security_enabled tags created_at updated_at revision_number project_id \
                       provider:network_type provider:physical_network provider:segmentation_id";
const SUBNET: &str = "id name tenant_id network_id ip_version subnetpool_id enable_dhcp ipv6_ra_mode ipv6_address_mode \
                      gateway_ip cidr allocation_pools host_routes dns_nameservers description router:external \
                      service_types tags created_at updated_at revision_number project_id";
const PORT: &str = "id name network_id tenant_id mac_address admin_state_up status device_id device_owner fixed_ips \
                    allowed_address_pairs extra_dhcp_opts security_groups description binding:vnic_type \
                    binding:profile binding:host_id binding:vif_type binding:vif_details port_security_enabled tags \
                    created_at updated_at revision_number project_id";
const ROUTER: &str = "id name tenant_id admin_state_up status external_gateway_info description availability_zones \
                      distributed ha availability_zone_hints routes flavor_id tags created_at updated_at \
                      revision_number project_id";
const AGENT: &str = "id agent_type binary topic host admin_state_up created_at started_at heartbeat_timestamp \
                     description resources_synced availability_zone alive configurations";

#[track_caller]
fn same_keys(object: &Value, recorded: &str) {
    let shown: std::collections::BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(shown, recorded.split_whitespace().collect());
}

#[test]
fn answers_have_the_keys_that_neutrons_have() {
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    server.hosts();
    let (external, _) = server.make_external();
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.0.0/24");
    let body = json!({"name": "r1", "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let path = format!("/v2.0/routers/{}", id(&router));
    server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    server.report_state("h2", &router, HaState::Active, 1);
    same_keys(&network, NETWORK);
    same_keys(&external, &format!("{NETWORK} is_default"));
    same_keys(&subnet, SUBNET);
    let ports = server.list(&admin(), "ports", "");
    assert_eq!(ports.len(), 5);
    for port in &ports {
        same_keys(port, PORT);
        assert_eq!(port["binding:vif_details"]["bound_drivers"], json!({"0": "linuxbridge"}));
    }
    let router = server.shown("router", id(&router));
    same_keys(&router, ROUTER);
    same_keys(&router["external_gateway_info"], "network_id external_fixed_ips enable_snat");
    same_keys(&router["external_gateway_info"]["external_fixed_ips"][0], "subnet_id ip_address");
    same_keys(&server.list(&admin(), "agents", "")[0], AGENT);
    let hosting = server.get(&admin(), &format!("{path}/l3-agents"));
    same_keys(&hosting.body["agents"][0], &format!("{AGENT} resource_versions ha_state"));
}

#[test]
fn an_ha_port_looks_as_neutrons_does() {
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    server.host("h1");
    let router = server.make(&admin(), "router", json!({"name": "r1"}));
    let ports = server.list(&admin(), "ports", &format!("?device_id={}", id(&router)));
    let port = &ports[0];
    for (key, value) in [
        ("name", json!(format!("HA port tenant {PROJECT}"))),
        ("tenant_id", json!("")),
        ("device_owner", json!("network:router_ha_interface")),
        ("allowed_address_pairs", json!([])),
        ("security_groups", json!([])),
        ("description", json!("")),
        ("binding:vnic_type", json!("normal")),
        ("binding:profile", json!({})),
        ("binding:host_id", json!("h1")),
        ("binding:vif_type", json!("bridge")),
        ("port_security_enabled", json!(false)),
    ] {
        assert_eq!(port[key], value, "{key}");
    }
    assert!(port["fixed_ips"][0]["ip_address"].as_str().unwrap().starts_with("169.254."));
}

#[test]
fn times_are_utc_and_in_whole_seconds() {
    let server = Server::new();
    let network = server.make(&admin(), "network", json!({}));
    for key in ["created_at", "updated_at"] {
        let time = network[key].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
}
