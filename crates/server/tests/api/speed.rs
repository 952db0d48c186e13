//! How long requests take in a deployment of some size. Not run by default, since it judges nothing:
//! `cargo test --release -p evergate-server --test api speed -- --ignored --nocapture`.

use std::time::Instant;

use serde_json::json;

use crate::harness::{PROJECT, Server, admin, id, member};

const ROUTERS: usize = 1000;

fn timed<T>(what: &str, times: usize, mut work: impl FnMut() -> T) -> T {
    let start = Instant::now();
    let mut last = work();
    for _ in 1..times {
        last = work();
    }
    println!("{what}: {:.2} ms", start.elapsed().as_secs_f64() * 1000.0 / times as f64);
    last
}

#[test]
#[ignore = "a measurement"]
fn a_thousand_ha_routers_with_gateway_and_interface() {
    let server = Server::with_many_ha_routers();
    server.hosts();
    (4..=10).for_each(|n| server.host(&format!("h{n}")));
    let external = json!({
        "router:external": true, "provider:network_type": "flat", "provider:physical_network": "p",
    });
    let external = server.make(&admin(), "network", external);
    let subnet = json!({"network_id": external["id"], "ip_version": 4, "cidr": "198.18.0.0/15"});
    server.make(&admin(), "subnet", subnet);
    let who = member(PROJECT);
    let info = json!({"external_gateway_info": {"network_id": external["id"]}});
    let mut routers = Vec::new();
    timed("router create --ha with gateway", ROUTERS, || routers.push(server.make(&who, "router", info.clone())));
    let mut subnets = Vec::new();
    timed("network and subnet create", ROUTERS, || subnets.push(server.make_network(&who, "n", "10.0.0.0/24").1));
    let mut pairs = routers.iter().zip(&subnets);
    timed("router add subnet", ROUTERS, || {
        let (router, subnet) = pairs.next().unwrap();
        let path = format!("/v2.0/routers/{}/add_router_interface", id(router));
        assert_eq!(server.put(&who, &path, json!({"subnet_id": subnet["id"]})).status, 200);
    });
    let network = subnets[0]["network_id"].clone();
    timed("port create", 200, || server.make(&who, "port", json!({"network_id": network})));
    timed("router show", 100, || server.get(&who, &format!("/v2.0/routers/{}", id(&routers[0]))));
    timed("list of 1000 routers", 5, || server.list(&who, "routers", ""));
    timed("list of 1000 networks", 5, || server.list(&who, "networks", ""));
    timed("list of 5200 ports", 5, || server.list(&admin(), "ports", ""));
    timed("list of 100 ports", 20, || server.list(&admin(), "ports", "?limit=100"));
    timed("list of one router's ports", 100, || {
        server.list(&admin(), "ports", &format!("?device_id={}", id(&routers[500])))
    });
    let told = timed("one host's view", 5, || server.told("h1"));
    println!("  of {} routers and {} networks", told.routers.len(), told.networks.len());
    timed("router delete", 100, || {
        let (router, subnet) = (routers.pop().unwrap(), subnets.pop().unwrap());
        let path = format!("/v2.0/routers/{}", id(&router));
        server.put(&who, &format!("{path}/remove_router_interface"), json!({"subnet_id": subnet["id"]}));
        assert_eq!(server.delete(&who, &path).status, 204);
    });
}
