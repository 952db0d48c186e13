//! Distributed routers: their ports, where they are, what hosts are told of them, and conversions.

use std::collections::BTreeSet;
use std::net::IpAddr;

use evergate_model::host::{Distributed, HaCopy, HaState, Location};
use evergate_model::{HostConfig, PortId, RouterId};
use evergate_server::options::Options;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, id, member, pick};

/// Two network hosts (h1, h2), three compute hosts (h3, h4, h5).
fn hosts(server: &Server) {
    ["h1", "h2"].into_iter().for_each(|name| server.host_in_mode(name, "dvr_snat"));
    ["h3", "h4", "h5"].into_iter().for_each(|name| server.host_in_mode(name, "dvr"));
}

struct World {
    server: Server,
    external: Value,
    networks: Vec<Value>,
    subnets: Vec<Value>,
    router: Value,
}

/// A distributed router with a gateway and two networks; nothing is bound anywhere.
fn world(ha: bool) -> World {
    world_with(Options::default(), ha)
}

fn world_with(options: Options, ha: bool) -> World {
    let server = Server::with(options);
    hosts(&server);
    let (external, _) = server.make_external();
    let (net1, subnet1) = server.make_network(&admin(), "net1", "10.0.1.0/24");
    let (net2, subnet2) = server.make_network(&admin(), "net2", "10.0.2.0/24");
    let body = json!({
        "distributed": true, "ha": ha, "external_gateway_info": {"network_id": external["id"]},
    });
    let router = server.make(&admin(), "router", body);
    let world = World { server, external, networks: vec![net1, net2], subnets: vec![subnet1, subnet2], router };
    world.subnets.iter().for_each(|subnet| world.plug(&world.router, subnet));
    world
}

impl World {
    #[track_caller]
    fn plug(&self, router: &Value, subnet: &Value) {
        let path = format!("/v2.0/routers/{}/add_router_interface", id(router));
        let answer = self.server.put(&admin(), &path, json!({"subnet_id": subnet["id"]}));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    #[track_caller]
    fn unplug(&self, router: &Value, subnet: &Value) {
        let path = format!("/v2.0/routers/{}/remove_router_interface", id(router));
        let answer = self.server.put(&admin(), &path, json!({"subnet_id": subnet["id"]}));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// An instance on one of the networks, on a host (or on none).
    #[track_caller]
    fn instance(&self, network: usize, host: &str) -> Value {
        let port = json!({
            "network_id": self.networks[network]["id"], "device_owner": "compute:nova", "binding:host_id": host,
        });
        self.server.make(&admin(), "port", port)
    }

    #[track_caller]
    fn bind(&self, port: &Value, host: &str) {
        let body = json!({"port": {"binding:host_id": host}});
        assert_eq!(self.server.put(&admin(), &format!("/v2.0/ports/{}", id(port)), body).status, 200);
    }

    fn ports(&self, owner: &str) -> Vec<Value> {
        self.server.list(&admin(), "ports", &format!("?device_owner={owner}"))
    }

    fn snat_ports(&self) -> Vec<Value> {
        self.ports("network:router_centralized_snat")
    }

    fn agent_gateways(&self) -> Vec<Value> {
        self.ports("network:floatingip_agent_gateway")
    }

    /// Hosts that are told to route for a router.
    fn routing(&self, router: &Value) -> Vec<String> {
        let routes = |name: &&str| part(&self.server.told(name), router).is_some_and(|part| part.routes_here);
        ["h1", "h2", "h3", "h4", "h5"].into_iter().filter(routes).map(str::to_owned).collect()
    }

    #[track_caller]
    fn change(&self, body: Value) -> Value {
        let answer = self.server.put(&admin(), &format!("/v2.0/routers/{}", id(&self.router)), json!({"router": body}));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["router"].clone()
    }
}

fn router_id(router: &Value) -> RouterId {
    id(router).parse().unwrap()
}

fn port_id(port: &Value) -> PortId {
    id(port).parse().unwrap()
}

fn part<'c>(config: &'c HostConfig, router: &Value) -> Option<&'c Distributed> {
    config.routers.get(&router_id(router))?.distributed.as_ref()
}

fn network_of<'c>(config: &'c HostConfig, network: &Value) -> Option<&'c evergate_model::host::Network> {
    config.networks.get(&id(network).parse().unwrap())
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([10, 60, 0, 10 + n])
}

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
fn routers_go_to_agents_by_hand_as_their_modes_allow() {
    let w = world(false);
    w.server.host_in_mode("h5", "legacy");
    let agent = |host: &str| {
        let agents = w.server.list(&admin(), "agents", &format!("?host={host}&binary=neutron-l3-agent"));
        format!("/v2.0/agents/{}/l3-routers", id(&agents[0]))
    };
    let add = |host: &str| w.server.post(&admin(), &agent(host), json!({"router_id": w.router["id"]}));
    let before = w.server.dump();
    let refused = add("h3");
    assert_eq!((refused.status, refused.error()), (409, "DVRL3CannotAssignToDvrAgent"));
    let refused = add("h5");
    assert_eq!((refused.status, refused.error()), (409, "RouterL3AgentMismatch"));
    let other = if w.server.ha_states(&w.router).contains_key("h1") { "h2" } else { "h1" };
    assert_eq!(add(other).error(), "RouterHostedByL3Agent");
    let remove = |host: &str| w.server.delete(&admin(), &format!("{}/{}", agent(host), id(&w.router)));
    let refused = remove("h4");
    assert_eq!((refused.status, refused.error()), (409, "DVRL3CannotRemoveFromDvrAgent"));
    assert_eq!(w.server.dump(), before);
    let here = if other == "h1" { "h2" } else { "h1" };
    assert_eq!(remove(here).status, 204);
    assert_eq!(add(other).status, 201);
    assert_eq!(pick(&w.snat_ports(), "binding:host_id"), [other, other]);
}

#[test]
fn the_hosts_of_a_router_are_listed_in_full_for_admins() {
    let w = world(true);
    w.instance(0, "h3");
    w.server.report_state("h1", &w.router, HaState::Active, 1);
    let path = format!("/v2.0/routers/{}/evergate:hosts", id(&w.router));
    assert_eq!(w.server.get(&member(PROJECT), &path).status, 403);
    let answer = w.server.get(&admin(), &path);
    let said: Vec<_> = answer.body["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| {
            json!([
                host["host"],
                host["agent_mode"],
                host["alive"],
                host["routes"],
                host["translates"],
                host["ha_state"]
            ])
        })
        .collect();
    assert_eq!(
        said,
        [
            json!(["h1", "dvr_snat", true, false, true, "active"]),
            json!(["h2", "dvr_snat", true, false, true, "standby"]),
            json!(["h3", "dvr", true, true, false, null]),
        ]
    );
    let agents = w.server.list(&admin(), "agents", "?host=h3&binary=neutron-l3-agent");
    let routers = w.server.get(&admin(), &format!("/v2.0/agents/{}/l3-routers", id(&agents[0])));
    assert_eq!(pick(routers.body["routers"].as_array().unwrap(), "id"), [id(&w.router)]);
    assert_eq!(w.server.ha_states(&w.router).len(), 2, "l3-agents are those of the source NAT, as in Neutron");
}

#[test]
fn what_a_distributed_router_lacks_is_told() {
    let warnings = |server: &Server, router: &Value| -> Vec<String> {
        let shown = server.shown("router", id(router));
        let warnings = shown.get("evergate:warnings").and_then(Value::as_array).cloned().unwrap_or_default();
        warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let server = Server::new();
    server.host_in_mode("h3", "dvr");
    let inside = server.make(&admin(), "router", json!({"distributed": true}));
    assert_eq!(inside["status"], "ACTIVE", "there is nothing to translate");
    assert!(warnings(&server, &inside).is_empty());
    let (external, _) = server.make_external();
    let body = json!({"distributed": true, "external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    assert_eq!(router["status"], "ALLOCATING");
    assert!(warnings(&server, &router)[0].starts_with("0 of 1 copies of its source NAT: "));
    assert_eq!(pick(&server.list(&admin(), "routers", "?status=ALLOCATING"), "id"), [id(&router)]);
    drop(server);

    let w = world(true);
    assert!(warnings(&w.server, &w.router)[0].starts_with("2 of 3 copies of its source NAT: "));
    w.instance(0, "h3");
    w.instance(0, "h4");
    w.instance(0, "h5");
    w.server.host_in_mode("h3", "legacy");
    w.server.host_with("h4", "dvr", &json!({}));
    w.server.silence("h5");
    assert_eq!(
        warnings(&w.server, &w.router)[1..],
        [
            "hosts with ports on its subnets that do not route for it: h3 (agent_mode legacy)",
            "hosts that route for it and are not heard of: h5",
            "hosts without a device for its external network, whose floating IPs go by its source NAT: h4",
        ]
    );
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

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// What must survive a conversion: of every port that both kinds have, its id, MAC and addresses.
fn lasting(w: &World) -> Vec<Value> {
    let ports = w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router)));
    let lasting = |port: &Value| {
        let owner = port["device_owner"].as_str().unwrap();
        owner.contains("gateway")
            || owner.ends_with("interface") && !owner.contains("ha_interface")
            || owner.ends_with("distributed")
    };
    let ports = ports.iter().filter(|port| lasting(port));
    ports.map(|port| json!([port["id"], port["mac_address"], port["fixed_ips"], port["project_id"]])).collect()
}

#[test]
fn a_router_becomes_any_other_kind_as_it_stands() {
    for (distributed, ha) in KINDS {
        let w = world(true);
        w.instance(0, "h3");
        w.change(json!({"distributed": distributed, "ha": ha}));
        for (to_distributed, to_ha) in KINDS {
            let before = lasting(&w);
            assert_eq!(before.len(), 3, "{before:?}");
            let shown = w.change(json!({"distributed": to_distributed, "ha": to_ha}));
            assert_eq!((&shown["distributed"], &shown["ha"]), (&json!(to_distributed), &json!(to_ha)));
            assert_eq!((&shown["status"], &shown["admin_state_up"]), (&json!("ACTIVE"), &json!(true)));
            assert_eq!(lasting(&w), before);
            check_kind(&w, to_distributed, to_ha);
            w.change(json!({"distributed": distributed, "ha": ha}));
            check_kind(&w, distributed, ha);
        }
    }
}

/// Everything about the router is as its kind has it.
#[track_caller]
fn check_kind(w: &World, distributed: bool, ha: bool) {
    let mut owners = pick(&w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router))), "device_owner");
    owners.dedup();
    let mut expected = vec!["network:router_gateway"];
    expected.push(match (distributed, ha) {
        (true, _) => "network:router_interface_distributed",
        (false, true) => "network:ha_router_replicated_interface",
        (false, false) => "network:router_interface",
    });
    expected.extend(distributed.then_some("network:router_centralized_snat"));
    expected.extend(ha.then_some("network:router_ha_interface"));
    expected.sort_unstable();
    assert_eq!(owners, expected);
    let copies = w.server.ha_states(&w.router);
    assert_eq!(copies.len(), if ha { 2 } else { 1 });
    assert_eq!(w.routing(&w.router), if distributed { vec!["h3"] } else { vec![] });
    assert_eq!(w.agent_gateways().len(), usize::from(distributed));
    for host in copies.keys() {
        let told = w.server.told(host).routers[&router_id(&w.router)].clone();
        assert_eq!((told.ha.is_some(), told.distributed.is_some()), (ha, distributed));
        assert_eq!(told.interfaces.len(), 2);
    }
    let interfaces = w.server.list(&admin(), "ports", &format!("?device_id={}", id(&w.router)));
    let hosts = interfaces.iter().filter(|port| port["device_owner"].as_str().unwrap().contains("router_interface"));
    let expected = if distributed || ha { String::new() } else { copies.keys().next().unwrap().clone() };
    hosts.for_each(|port| assert_eq!(port["binding:host_id"], expected));
}

#[test]
fn a_conversion_keeps_the_active_copy_where_it_is_and_its_epoch() {
    let w = world(true);
    w.server.report_state("h2", &w.router, HaState::Active, 7);
    let ha = |w: &World| w.server.told("h2").routers[&router_id(&w.router)].ha.clone().unwrap();
    let before = ha(&w);
    w.change(json!({"distributed": false}));
    assert_eq!((ha(&w).inherits, before.inherits), (Some(7), None), "it goes on unless somebody was active since");
    assert_eq!(HaCopy { inherits: None, ..ha(&w) }, before, "VRID, HA port and epoch are the same");
    let other = w.server.ha_states(&w.router).into_keys().find(|host| host != "h2").unwrap();
    assert_eq!(w.server.told(&other).routers[&router_id(&w.router)].ha.as_ref().unwrap().inherits, None);
    assert_eq!(w.server.ha_states(&w.router)["h2"], "active");
    w.change(json!({"ha": false}));
    assert_eq!(w.server.ha_states(&w.router).into_keys().collect::<Vec<_>>(), ["h2"]);
    w.change(json!({"ha": true, "distributed": true}));
    // Hosts that remember the last epoch follow the next, and what a copy claimed while the router stopped
    // being HA, unheard by the server, is no reason for the heir to wait.
    assert_eq!((ha(&w).inherits, ha(&w).epoch), (Some(23), 23));
    assert!(w.server.ha_states(&w.router).len() == 2);
}

#[test]
fn clients_that_set_a_router_down_first_are_served_too() {
    let w = world(false);
    w.change(json!({"admin_state_up": false}));
    let shown = w.change(json!({"distributed": false, "ha": true}));
    assert_eq!((&shown["ha"], &shown["admin_state_up"]), (&json!(true), &json!(false)));
    assert_eq!(w.change(json!({"admin_state_up": true}))["status"], "ACTIVE");
    w.change(json!({"admin_state_up": false, "distributed": true}));
    assert!(!w.server.told("h1").routers[&router_id(&w.router)].admin_state_up);
}

#[test]
fn a_conversion_that_cannot_be_is_refused_before_anything_changes() {
    let server = Server::new();
    server.hosts();
    let (external, _) = server.make_external();
    let body = json!({"external_gateway_info": {"network_id": external["id"]}});
    let router = server.make(&admin(), "router", body);
    let (network, subnet) = server.make_network(&admin(), "net1", "10.0.1.0/24");
    let path = format!("/v2.0/routers/{}", id(&router));
    server.put(&admin(), &format!("{path}/add_router_interface"), json!({"subnet_id": subnet["id"]}));
    let refused = |server: &Server, body: Value| {
        let before = server.dump();
        let answer = server.put(&admin(), &path, json!({"router": body}));
        assert_eq!((answer.status, answer.error()), (400, "BadRequest"), "{answer:?}");
        assert_eq!(server.dump(), before);
        answer.message().to_owned()
    };
    let why = refused(&server, json!({"distributed": true, "name": "other"}));
    assert!(why.contains("a distributed router: no L3 agent in mode dvr_snat is alive"), "{why}");
    server.host_in_mode("h4", "dvr_snat");
    let instance = json!({"network_id": network["id"], "device_owner": "compute:nova", "binding:host_id": "h2"});
    server.make(&admin(), "port", instance);
    let why = refused(&server, json!({"distributed": true, "ha": true}));
    assert!(why.contains("hosts that route for none: h2 (agent_mode legacy)"), "{why}");
    server.host_in_mode("h2", "dvr");
    let answer = server.put(&admin(), &path, json!({"router": {"distributed": true}}));
    assert_eq!(answer.status, 200, "{answer:?}");
    ["h1", "h3", "h4"].into_iter().for_each(|name| server.silence(name));
    let why = refused(&server, json!({"ha": true}));
    assert!(why.contains("no L3 agent in mode dvr_snat is alive"), "{why}");
    let why = refused(&server, json!({"distributed": false}));
    assert!(why.contains("a legacy router: no L3 agent in mode legacy or dvr_snat is alive"), "{why}");
}

/// What happens, and how.
type Step<'a> = (&'static str, Box<dyn Fn() + 'a>);

#[test]
fn whoever_is_told_something_else_is_looked_at_and_a_bystander_is_not() {
    let w = world(true);
    let (instance, other) = (w.instance(0, ""), w.instance(1, "h4"));
    let floating_ip = w.server.make(&admin(), "floatingip", json!({"floating_network_id": w.external["id"]}));
    let put = |path: String, body: Value| assert_eq!(w.server.put(&admin(), &path, body).status, 200);
    let router = |body: Value| put(format!("/v2.0/routers/{}", id(&w.router)), json!({"router": body}));
    let float = |port: &Value| {
        put(format!("/v2.0/floatingips/{}", id(&floating_ip)), json!({"floatingip": {"port_id": port}}));
    };
    let pairs = json!({"port": {"allowed_address_pairs": [{"ip_address": "10.0.1.200"}]}});
    let steps: Vec<Step<'_>> = vec![
        ("a port is bound", Box::new(|| w.bind(&instance, "h3"))),
        ("a floating IP is given", Box::new(|| float(&instance["id"]))),
        ("its port moves", Box::new(|| w.bind(&instance, "h1"))),
        ("its port moves again", Box::new(|| w.bind(&instance, "h3"))),
        ("a copy is active", Box::new(|| w.server.report_state("h2", &w.router, HaState::Active, 1))),
        ("a copy takes over", Box::new(|| w.server.report_state("h1", &w.router, HaState::Active, 2))),
        ("a pair is added", Box::new(|| put(format!("/v2.0/ports/{}", id(&instance)), pairs.clone()))),
        (
            "a route is added",
            Box::new(|| {
                router(json!({"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.2.77"}]}));
            }),
        ),
        (
            "source NAT is off",
            Box::new(|| {
                router(json!({"external_gateway_info": {"network_id": w.external["id"], "enable_snat": false}}));
            }),
        ),
        ("it is down", Box::new(|| router(json!({"admin_state_up": false})))),
        ("it is up", Box::new(|| router(json!({"admin_state_up": true})))),
        ("it is central", Box::new(|| router(json!({"distributed": false})))),
        ("it is legacy", Box::new(|| router(json!({"ha": false})))),
        ("it is distributed", Box::new(|| router(json!({"distributed": true})))),
        ("it is both", Box::new(|| router(json!({"ha": true})))),
        ("a host has no way out", Box::new(|| w.server.host_in_mode("h3", "dvr_no_external"))),
        ("a host has one again", Box::new(|| w.server.host_in_mode("h3", "dvr"))),
        ("the floating IP is taken", Box::new(|| float(&json!(null)))),
        ("the route is taken", Box::new(|| router(json!({"routes": []})))),
        ("there is no gateway", Box::new(|| router(json!({"external_gateway_info": null})))),
        ("an interface is gone", Box::new(|| w.unplug(&w.router, &w.subnets[1]))),
        (
            "a port is gone",
            Box::new(|| {
                assert_eq!(w.server.delete(&admin(), &format!("/v2.0/ports/{}", id(&other))).status, 204);
            }),
        ),
    ];
    for (what, step) in steps {
        let before = ["h1", "h2", "h3", "h4", "h5"].map(|name| (name, w.server.told(name)));
        step();
        let mut news = 0;
        for (name, sent) in before {
            let differs = evergate_model::stream::Change::between(&sent, &w.server.told(name)).is_some();
            let look =
                |tx: &evergate_server::store::Tx<'_>| evergate_server::hosts::concerns(tx, name, &sent, sent.revision);
            let looked_at = w.server.store.read(look).unwrap();
            assert!(looked_at || !differs, "{what}: {name} would not hear of it");
            assert!(!(looked_at && name == "h5" && !what.starts_with("a host has")), "{what}: {name} is bothered");
            news += usize::from(differs);
        }
        assert!(news > 0, "{what}: nobody is told anything");
    }
}

#[test]
fn what_is_read_for_a_host_does_not_grow_with_its_routers() {
    let w = world_with(
        Options { limits: evergate_server::options::Limits { router: -1, ..Default::default() }, ..Options::default() },
        true,
    );
    let add = |n: usize| {
        let body = json!({
            "distributed": true, "ha": true, "external_gateway_info": {"network_id": w.external["id"]},
        });
        let router = w.server.make(&admin(), "router", body);
        let (network, subnet) = w.server.make_network(&admin(), "n", &format!("10.1.{n}.0/24"));
        w.plug(&router, &subnet);
        let port = json!({"network_id": network["id"], "binding:host_id": "h3"});
        let port = w.server.make(&admin(), "port", port);
        w.server.make(&admin(), "floatingip", json!({"floating_network_id": w.external["id"], "port_id": port["id"]}));
        network
    };
    let cost = |host: &str| -> usize {
        let read = |tx: &evergate_server::store::Tx<'_>| {
            evergate_server::hostview::host_config(tx, &w.server.options, host)?;
            Ok::<_, evergate_server::error::ApiError>(tx.statements())
        };
        w.server.store.read(read).unwrap()
    };
    // What a write has to look at for one more port of a router that is there already.
    let settling = |network: &Value| -> usize {
        w.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": "h3"}));
        w.server.write(|tx| {
            tx.changed(evergate_server::store::Kind::Network, network["id"].as_str().unwrap());
            evergate_server::dvr::settle(tx, &w.server.options)?;
            Ok(tx.statements())
        })
    };
    let network = add(0);
    let (few, settled) = (["h1", "h3"].map(cost), settling(&network));
    (1..12).for_each(|n| drop(add(n)));
    assert_eq!(w.server.told("h3").routers.len(), 12);
    assert_eq!((["h1", "h3"].map(cost), settling(&network)), (few, settled));
}
