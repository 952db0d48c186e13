//! Distributed routers: their ports, where they are, what hosts are told of them, and conversions.

use std::collections::BTreeSet;
use std::net::IpAddr;

use evergate_model::host::{Distributed, HaState, Location};
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
