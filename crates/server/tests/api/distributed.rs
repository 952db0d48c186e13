//! Distributed routers. A world to try them in is here; what is tried is in the files below.

mod agents;
mod changes;
mod conversion;
mod floating_ips;
mod hosts;
mod ports;

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
