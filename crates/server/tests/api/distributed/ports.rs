//! The ports of distributed routers: what they are called, and when they come and go.

use super::*;

#[test]
fn a_distributed_router_is_made_as_clients_ask_for_it() {
    let server = Server::new();
    hosts(&server);
    let router = server.make(&admin(), "router", json!({"name": "r1", "distributed": true, "ha": true}));
    assert_eq!(
        (&router["distributed"], &router["ha"], &router["status"]),
        (&json!(true), &json!(true), &json!("ACTIVE"))
    );
    // The old client's spelling.
    let old = json!({"name": "r2", "admin_state_up": true, "distributed": "True", "ha": "True"});
    let router = server.make(&admin(), "router", old);
    assert_eq!((&router["distributed"], &router["ha"]), (&json!(true), &json!(true)));
    let router = server.make(&admin(), "router", json!({"distributed": null}));
    assert_eq!((&router["distributed"], &router["ha"]), (&json!(false), &json!(false)));
    let answer = server.post(&member(PROJECT), "/v2.0/routers", json!({"router": {"distributed": true}}));
    assert_eq!(answer.status, 403);
    assert_eq!(server.get(&admin(), "/v2.0/extensions/dvr").body["extension"]["name"], "Distributed Virtual Router");
}

#[test]
fn the_default_is_the_operators_and_hidden_from_members() {
    let server = Server::with(Options { router_distributed: true, l3_ha: true, ..Options::default() });
    hosts(&server);
    let router = server.make(&member(PROJECT), "router", json!({}));
    assert!(router.get("distributed").is_none());
    assert_eq!(server.shown("router", id(&router))["distributed"], true);
    assert_eq!(server.make(&admin(), "router", json!({"distributed": false}))["distributed"], false);
}

#[test]
fn without_dvr_there_is_no_such_attribute() {
    let server = Server::with(Options { enable_dvr: false, router_distributed: true, ..Options::default() });
    server.hosts();
    assert_eq!(server.get(&admin(), "/v2.0/extensions/dvr").status, 404);
    let router = server.make(&admin(), "router", json!({}));
    assert!(router.get("distributed").is_none());
    let refused = server.post(&admin(), "/v2.0/routers", json!({"router": {"distributed": true}}));
    assert_eq!((refused.status, refused.message()), (400, "Unrecognized attribute(s) 'distributed'"));
    let path = format!("/v2.0/routers/{}", id(&router));
    assert_eq!(server.put(&admin(), &path, json!({"router": {"distributed": true}})).status, 400);
}

#[test]
fn ports_are_called_as_neutron_calls_them() {
    let w = world(true);
    let owners = pick(&w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router))), "device_owner");
    assert_eq!(
        owners,
        [
            "network:router_centralized_snat",
            "network:router_centralized_snat",
            "network:router_gateway",
            "network:router_ha_interface",
            "network:router_ha_interface",
            "network:router_interface_distributed",
            "network:router_interface_distributed",
        ]
    );
    for port in w.ports("network:router_interface_distributed") {
        assert_eq!((&port["binding:vif_type"], &port["binding:host_id"]), (&json!("distributed"), &json!("")));
        assert_eq!(port["project_id"], PROJECT);
        assert_eq!(port["fixed_ips"][0]["ip_address"].as_str().unwrap().rsplit('.').next(), Some("1"));
    }
    for port in w.snat_ports() {
        assert_eq!((&port["project_id"], &port["device_id"]), (&json!(""), &w.router["id"]));
        let refused = w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&port)));
        assert_eq!((refused.status, refused.error()), (409, "ServicePortInUse"));
    }
}

#[test]
fn snat_ports_come_and_go_with_gateway_and_interfaces() {
    let w = world(false);
    let subnets = |w: &World| -> BTreeSet<String> {
        let ports = w.snat_ports();
        ports.iter().map(|port| port["fixed_ips"][0]["subnet_id"].as_str().unwrap().to_owned()).collect()
    };
    let all: BTreeSet<String> = w.subnets.iter().map(|subnet| id(subnet).to_owned()).collect();
    assert_eq!(subnets(&w), all);
    let before = pick(&w.snat_ports(), "id");
    w.change(json!({"name": "other"}));
    assert_eq!(pick(&w.snat_ports(), "id"), before, "they stay as they are");
    w.change(json!({"external_gateway_info": null}));
    assert!(w.snat_ports().is_empty());
    w.change(json!({"external_gateway_info": {"network_id": w.external["id"]}}));
    assert_eq!(subnets(&w), all);
    w.unplug(&w.router, &w.subnets[0]);
    assert_eq!(subnets(&w), BTreeSet::from([id(&w.subnets[1]).to_owned()]));
    w.unplug(&w.router, &w.subnets[1]);
    assert_eq!(w.server.delete(&admin(), &format!("/v2.0/routers/{}", id(&w.router))).status, 204);
    assert_eq!(w.server.delete(&admin(), &format!("/v2.0/networks/{}", id(&w.networks[0]))).status, 204);
}

#[test]
fn ipv6_prefixes_of_a_network_share_one_snat_port() {
    let w = world(false);
    let prefix = |cidr: &str| {
        let subnet = json!({
            "network_id": w.networks[0]["id"], "ip_version": 6, "cidr": cidr,
            "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac",
        });
        let subnet = w.server.make(&admin(), "subnet", subnet);
        w.plug(&w.router, &subnet);
        subnet
    };
    let (first, second) = (prefix("2001:db8:1::/64"), prefix("2001:db8:2::/64"));
    let v6 = |w: &World| -> Vec<Value> {
        let is_v6 = |port: &Value| port["fixed_ips"][0]["ip_address"].as_str().unwrap().contains(':');
        w.snat_ports().into_iter().filter(is_v6).collect()
    };
    let ports = v6(&w);
    assert_eq!((ports.len(), ports[0]["fixed_ips"].as_array().unwrap().len()), (1, 2));
    w.instance(0, "h3");
    let config = w.server.told("h3");
    let advertises = |interface: &evergate_model::host::Interface| interface.advertisement.is_some();
    assert_eq!(config.routers[&router_id(&w.router)].interfaces.values().filter(|i| advertises(i)).count(), 1);
    assert!(!part(&config, &w.router).unwrap().snat_ports.values().any(advertises));
    w.unplug(&w.router, &first);
    let left = v6(&w);
    assert_eq!((left.len(), id(&left[0])), (1, id(&ports[0])), "the same port without the prefix");
    assert_eq!(left[0]["fixed_ips"][0]["subnet_id"], second["id"]);
    w.unplug(&w.router, &second);
    assert!(v6(&w).is_empty());
    assert_eq!(w.snat_ports().len(), 2);
}
