//! Which hosts have a distributed router, and what they are told of it.

use super::*;

#[test]
fn source_nat_goes_to_dvr_snat_hosts_alone() {
    let w = world(true);
    assert_eq!(w.server.ha_states(&w.router).into_keys().collect::<Vec<_>>(), ["h1", "h2"]);
    let single = world(false);
    let states = single.server.ha_states(&single.router);
    assert_eq!(states.len(), 1);
    assert_eq!(states.values().collect::<Vec<_>>(), ["null"]);
    let host = states.into_keys().next().unwrap();
    let config = single.server.told(&host);
    let told = part(&config, &single.router).unwrap();
    assert_eq!((told.routes_here, told.translates_here, told.snat_ports.len()), (false, true, 2));
    assert!(config.routers[&router_id(&single.router)].ha.is_none());
    assert_eq!(pick(&single.snat_ports(), "binding:host_id"), [host.clone(), host]);
    // Central routers: not to compute hosts.
    let central = single.server.make(&admin(), "router", json!({"ha": true}));
    assert_eq!(single.server.ha_states(&central).into_keys().collect::<Vec<_>>(), ["h1", "h2"]);
}

#[test]
fn a_router_is_where_its_ports_are() {
    let w = world(false);
    assert_eq!(w.routing(&w.router), [] as [&str; 0]);
    let first = w.instance(0, "h3");
    assert_eq!(w.routing(&w.router), ["h3"]);
    let second = w.instance(1, "");
    assert_eq!(w.routing(&w.router), ["h3"]);
    w.bind(&second, "h4");
    assert_eq!(w.routing(&w.router), ["h3", "h4"]);
    w.bind(&second, "h5");
    assert_eq!(w.routing(&w.router), ["h3", "h5"]);
    assert_eq!(w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&first))).status, 204);
    assert_eq!(w.routing(&w.router), ["h5"]);
    w.unplug(&w.router, &w.subnets[1]);
    assert_eq!(w.routing(&w.router), [] as [&str; 0]);
}

#[test]
fn a_compute_host_is_told_what_it_routes_with() {
    let w = world(true);
    let instance = w.instance(0, "h3");
    w.server.report_state("h2", &w.router, HaState::Active, 3);
    let config = w.server.told("h3");
    let router = &config.routers[&router_id(&w.router)];
    let told = part(&config, &w.router).unwrap();
    assert!(told.routes_here && !told.translates_here && router.ha.is_none());
    assert_eq!((router.interfaces.len(), told.snat_ports.len()), (2, 2));
    let gateway = told.agent_gateway.as_ref().unwrap();
    assert_eq!(pick(&w.agent_gateways(), "id"), [gateway.port_id.to_string()]);
    assert_eq!(gateway.addresses[0].prefix_len(), 24);
    // Both networks though only one has a port here, and the external one, but not the HA network.
    assert_eq!(config.networks.len(), 3);
    let network = network_of(&config, &w.networks[1]).unwrap();
    let of = |location: &Location| network.ports.values().filter(|port| port.location == *location).count();
    let router = router_id(&w.router);
    assert_eq!(
        (of(&Location::Everywhere { router }), of(&Location::Active { router }), network.ports.len()),
        (1, 1, 2)
    );
    assert_eq!(Vec::from_iter(network.peers.clone()), [vtep(1), vtep(2)]);
    assert_eq!(config.active_copies[&router].vtep, vtep(2));
    assert_eq!(config.active_copies[&router].epoch, 3);
    let network = network_of(&config, &w.networks[0]).unwrap();
    assert_eq!(network.ports[&port_id(&instance)].location, Location::Local);
    // And the gateway hosts flood to it.
    let config = w.server.told("h1");
    assert_eq!(config.networks.len(), 4, "two networks, the external and the HA network");
    let told = part(&config, &w.router).unwrap();
    assert!(!told.routes_here && told.translates_here && told.agent_gateway.is_none());
    assert!(config.routers[&router].ha.is_some());
    assert_eq!(Vec::from_iter(network_of(&config, &w.networks[1]).unwrap().peers.clone()), [vtep(2), vtep(3)]);
    let bystander = w.server.told("h5");
    assert!(bystander.routers.is_empty() && bystander.networks.is_empty());
}

#[test]
fn the_way_out_of_a_router_that_is_not_ha_is_on_its_host() {
    let w = world(false);
    w.instance(0, "h3");
    let gateway = w.server.ha_states(&w.router).into_keys().next().unwrap();
    let n: u8 = gateway.trim_start_matches('h').parse().unwrap();
    for (host, location) in [("h3", Location::Remote { vtep: vtep(n) }), (&gateway, Location::Local)] {
        let config = w.server.told(host);
        let snat = part(&config, &w.router).unwrap().snat_ports.clone();
        for (port, interface) in snat {
            assert_eq!(config.networks[&interface.network_id].ports[&port].location, location);
        }
    }
}

#[test]
fn a_host_has_the_routers_that_are_connected_with_those_it_needs() {
    let w = world(false);
    w.change(json!({"external_gateway_info": null}));
    // A chain: net2 joins the router with a second one, net3 that one with a third.
    let (net3, subnet3) = w.server.make_network(&admin(), "net3", "10.0.3.0/24");
    let (_, subnet4) = w.server.make_network(&admin(), "net4", "10.0.4.0/24");
    let join = |router: &Value, network: &Value, ip: &str| {
        let port = json!({"network_id": network["id"], "fixed_ips": [{"ip_address": ip}]});
        let port = w.server.make(&admin(), "port", port);
        let path = format!("/v2.0/routers/{}/add_router_interface", id(router));
        assert_eq!(w.server.put(&admin(), &path, json!({"port_id": port["id"]})).status, 200);
    };
    let second = w.server.make(&admin(), "router", json!({"distributed": true}));
    join(&second, &w.networks[1], "10.0.2.9");
    w.plug(&second, &subnet3);
    let third = w.server.make(&admin(), "router", json!({"distributed": true}));
    join(&third, &net3, "10.0.3.9");
    w.plug(&third, &subnet4);
    w.instance(0, "h3");
    for router in [&w.router, &second, &third] {
        assert_eq!(w.routing(router), ["h3"]);
    }
    assert_eq!(w.server.told("h3").networks.len(), 4);
    w.unplug(&third, &subnet3);
    assert!(w.routing(&third).is_empty(), "the chain is cut");
    // Where a source NAT sends what came in for a network behind the next router, that one is needed.
    w.change(json!({"external_gateway_info": {"network_id": w.external["id"]}}));
    let source_nat = w.server.ha_states(&w.router).into_keys().next().unwrap();
    assert_eq!(w.routing(&second), [source_nat.as_str(), "h3"]);
    w.change(json!({"external_gateway_info": null}));
    assert_eq!(w.routing(&second), ["h3"]);
    // A central router on the same subnet reaches the distributed one at home.
    let central = w.server.make(&admin(), "router", json!({"ha": true}));
    join(&central, &w.networks[0], "10.0.1.9");
    assert_eq!(w.routing(&w.router), ["h1", "h2", "h3"]);
}

#[test]
fn a_host_that_changes_its_mode_gives_up_what_it_can_no_longer_do() {
    let w = world(true);
    w.instance(0, "h3");
    let legacy = w.server.make(&admin(), "router", json!({"ha": true}));
    w.server.host_in_mode("h3", "legacy");
    assert!(w.routing(&w.router).is_empty() && w.agent_gateways().is_empty());
    assert_eq!(w.server.told("h3").routers.into_keys().collect::<Vec<_>>(), [router_id(&legacy)]);
    w.server.host_in_mode("h3", "dvr_snat");
    assert_eq!(w.routing(&w.router), ["h3"]);
    w.server.host_in_mode("h1", "legacy");
    assert_eq!(w.server.ha_states(&w.router).into_keys().collect::<Vec<_>>(), ["h2", "h3"]);
    assert_eq!(w.server.ha_states(&legacy).into_keys().collect::<Vec<_>>(), ["h1", "h2", "h3"]);
    w.server.host_in_mode("h1", "dvr");
    assert_eq!(w.server.ha_states(&legacy).into_keys().collect::<Vec<_>>(), ["h2", "h3"]);
}

#[test]
fn a_disabled_agent_routes_no_more() {
    let w = world(false);
    w.instance(0, "h3");
    let agent = w.server.list(&admin(), "agents", "?host=h3&binary=neutron-l3-agent")[0].clone();
    let path = format!("/v2.0/agents/{}", id(&agent));
    w.server.put(&admin(), &path, json!({"agent": {"admin_state_up": false}}));
    assert!(w.server.told("h3").routers.is_empty() && w.agent_gateways().is_empty());
    w.server.put(&admin(), &path, json!({"agent": {"admin_state_up": true}}));
    assert_eq!((w.routing(&w.router).len(), w.agent_gateways().len()), (1, 1));
    assert_eq!(w.server.delete(&admin(), &path).status, 204);
    assert!(w.server.told("h3").routers.is_empty() && w.agent_gateways().is_empty());
}

#[test]
fn an_external_network_without_addresses_left_keeps_no_instance_from_starting() {
    let w = world(false);
    let subnet = w.server.list(&admin(), "subnets", "?name=ext")[0].clone();
    let gateway = w.server.list(&admin(), "ports", "?device_owner=network:router_gateway")[0].clone();
    let only = gateway["fixed_ips"][0]["ip_address"].clone();
    let body = json!({"subnet": {"allocation_pools": [{"start": only, "end": only}]}});
    assert_eq!(w.server.put(&admin(), &format!("/v2.0/subnets/{}", id(&subnet)), body).status, 200);
    w.instance(0, "h3");
    assert_eq!(w.agent_gateways()[0]["fixed_ips"], json!([]));
    let shown = w.server.shown("router", id(&w.router));
    let warnings = shown["evergate:warnings"].as_array().unwrap();
    assert!(warnings[0].as_str().unwrap().ends_with("which has none left: h3"), "{warnings:?}");
    // As soon as there is one again, the host gets it with the next change of such a router.
    let body = json!({"subnet": {"allocation_pools": [{"start": "203.0.113.10", "end": "203.0.113.99"}]}});
    assert_eq!(w.server.put(&admin(), &format!("/v2.0/subnets/{}", id(&subnet)), body).status, 200);
    w.instance(0, "h4");
    assert_eq!(w.agent_gateways().iter().filter(|port| port["fixed_ips"] != json!([])).count(), 2);
}

#[test]
fn address_pairs_are_told_with_the_mac_that_answers_for_them() {
    let w = world(false);
    let port = json!({
        "network_id": w.networks[0]["id"], "binding:host_id": "h3",
        "allowed_address_pairs": [
            {"ip_address": "10.0.1.200"},
            {"ip_address": "10.0.9.0/24", "mac_address": "00:00:5e:00:01:07"},
        ],
    });
    let port = w.server.make(&admin(), "port", port);
    let config = w.server.told("h3");
    let told = &network_of(&config, &w.networks[0]).unwrap().ports[&port_id(&port)];
    let pairs: Vec<String> = told.allowed_addresses.iter().map(|pair| format!("{} {}", pair.ip, pair.mac)).collect();
    let own = port["mac_address"].as_str().unwrap();
    assert_eq!(pairs, [format!("10.0.1.200/32 {own}"), "10.0.9.0/24 00:00:5e:00:01:07".to_owned()]);
}
