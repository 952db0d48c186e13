//! Where floating IPs are translated, by which way they leave, and whose word their status is.

use super::*;

#[test]
fn a_host_has_one_gateway_port_per_external_network_while_it_needs_it() {
    let w = world(false);
    assert!(w.agent_gateways().is_empty());
    let first = w.instance(0, "h3");
    w.instance(1, "h3");
    w.instance(1, "h4");
    let body = json!({"distributed": true, "external_gateway_info": {"network_id": w.external["id"]}});
    let other = w.server.make(&admin(), "router", body);
    let (network, subnet) = w.server.make_network(&member(OTHER), "net1", "10.0.1.0/24");
    w.plug(&other, &subnet);
    let port = json!({"network_id": network["id"], "binding:host_id": "h3"});
    let third = w.server.make(&admin(), "port", port);
    let ports = w.agent_gateways();
    assert_eq!(pick(&ports, "binding:host_id"), ["h3", "h4"]);
    assert_eq!(pick(&ports, "project_id"), ["", ""]);
    let agents = w.server.list(&admin(), "agents", "?binary=neutron-l3-agent");
    for port in &ports {
        let agent = agents.iter().find(|agent| agent["host"] == port["binding:host_id"]).unwrap();
        assert_eq!(port["device_id"], agent["id"]);
        let refused = w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(port)));
        assert_eq!((refused.status, refused.error()), (409, "ServicePortInUse"));
    }
    assert_eq!(w.server.told("h3").routers.len(), 2, "the same addresses, two projects");
    w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&first)));
    w.change(json!({"external_gateway_info": null}));
    assert_eq!(pick(&w.agent_gateways(), "binding:host_id"), ["h3"], "the other router still needs it");
    w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&third)));
    assert!(w.agent_gateways().is_empty());
}

#[test]
fn no_external_address_is_spent_per_host_where_the_operator_does_not_want_it() {
    let w = world_with(Options { external_address_per_host: false, ..Options::default() }, false);
    w.instance(0, "h3");
    let ports = w.agent_gateways();
    assert_eq!((ports.len(), &ports[0]["fixed_ips"]), (1, &json!([])));
    let gateway = part(&w.server.told("h3"), &w.router).unwrap().agent_gateway.clone().unwrap();
    assert_eq!((gateway.port_id, gateway.addresses.len()), (port_id(&ports[0]), 0));
}

/// Where hosts are told to translate a floating IP, and whether by their own way out.
fn translated(w: &World, router: &Value, floating_ip: &Value) -> Vec<(&'static str, bool)> {
    let at = |name: &'static str| {
        let config = w.server.told(name);
        let told = config.routers.get(&router_id(router))?.floating_ips.get(&id(floating_ip).parse().unwrap()).copied();
        told.map(|told| (name, told.distributed))
    };
    ["h1", "h2", "h3", "h4", "h5"].into_iter().filter_map(at).collect()
}

#[test]
fn a_floating_ip_is_translated_where_its_port_is_and_otherwise_at_the_gateway() {
    let w = world(true);
    let instance = w.instance(0, "");
    let body = json!({"floating_network_id": w.external["id"], "port_id": instance["id"]});
    let floating_ip = w.server.make(&admin(), "floatingip", body);
    let at_the_gateway = [("h1", false), ("h2", false)];
    assert_eq!(translated(&w, &w.router, &floating_ip), at_the_gateway, "an unbound port's");
    w.bind(&instance, "h3");
    assert_eq!(translated(&w, &w.router, &floating_ip), [("h3", true)]);
    w.bind(&instance, "h4");
    assert_eq!(translated(&w, &w.router, &floating_ip), [("h4", true)]);
    w.server.host_in_mode("h4", "dvr_no_external");
    assert_eq!(translated(&w, &w.router, &floating_ip), at_the_gateway);
    assert!(w.agent_gateways().is_empty(), "nobody has a way out of its own");
    assert!(part(&w.server.told("h4"), &w.router).unwrap().agent_gateway.is_none());
    assert_eq!(w.server.told("h4").networks.len(), 2, "it is not on the external network");
    w.server.host_with("h4", "dvr", &json!({"physnet2": "br-other"}));
    assert_eq!(translated(&w, &w.router, &floating_ip), at_the_gateway, "there is no link there");
    w.server.host_in_mode("h4", "dvr");
    assert_eq!(translated(&w, &w.router, &floating_ip), [("h4", true)]);
    // A gateway host with instances translates for its own.
    w.bind(&instance, "h2");
    assert_eq!(translated(&w, &w.router, &floating_ip), [("h2", true)]);
    let told = part(&w.server.told("h2"), &w.router).unwrap().clone();
    assert!(told.routes_here && told.translates_here && told.agent_gateway.is_some());
}

#[test]
fn a_floating_ips_status_is_the_word_of_the_host_that_translates_it() {
    let w = world(true);
    let instance = w.instance(0, "h3");
    let body = json!({"floating_network_id": w.external["id"], "port_id": instance["id"]});
    let floating_ip = w.server.make(&admin(), "floatingip", body);
    w.server.report_state("h1", &w.router, HaState::Active, 1);
    let say = |host: &str, active: bool| {
        let ids = if active { BTreeSet::from([id(&floating_ip).parse().unwrap()]) } else { BTreeSet::new() };
        w.server.write(|tx| Ok(evergate_server::objects::floating_ip::record_status(tx, host, &ids)?));
        w.server.shown("floatingip", id(&floating_ip))["status"].clone()
    };
    assert_eq!(say("h1", true), "DOWN", "the gateway has no say");
    assert_eq!(say("h3", true), "ACTIVE");
    assert_eq!(say("h1", false), "ACTIVE");
    w.bind(&instance, "");
    assert_eq!(say("h3", false), "ACTIVE");
    assert_eq!(say("h1", false), "DOWN");
    assert_eq!(say("h2", true), "DOWN", "a standby has none either");
    assert_eq!(say("h1", true), "ACTIVE");
}

#[test]
fn an_interface_is_up_while_it_is_on_any_host() {
    let w = world(false);
    let (first, second) = (w.instance(0, "h3"), w.instance(0, "h4"));
    let interfaces = w.ports("network:router_interface_distributed");
    let all: BTreeSet<PortId> = interfaces.iter().map(port_id).collect();
    let say = |host: &str, up: &BTreeSet<PortId>| {
        w.server.write(|tx| Ok(evergate_server::objects::port::record_status(tx, host, up)?));
        pick(&w.ports("network:router_interface_distributed"), "status")
    };
    assert_eq!(say("h5", &all), ["DOWN", "DOWN"], "who does not have the router has no say");
    assert_eq!(say("h3", &all), ["ACTIVE", "ACTIVE"]);
    assert_eq!(say("h4", &all), ["ACTIVE", "ACTIVE"]);
    assert_eq!(say("h3", &BTreeSet::new()), ["ACTIVE", "ACTIVE"]);
    assert_eq!(say("h3", &all), ["ACTIVE", "ACTIVE"]);
    w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&second)));
    assert_eq!(say("h3", &BTreeSet::from([port_id(&interfaces[0])])), ["ACTIVE", "DOWN"], "h4's word is gone with it");
    w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&first)));
    assert_eq!(pick(&w.ports("network:router_interface_distributed"), "status"), ["DOWN", "DOWN"]);
}
