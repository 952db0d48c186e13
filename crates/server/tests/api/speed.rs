//! How long requests take in a deployment of some size. Not run by default, since it judges nothing:
//! `cargo test --release -p evergate-server --test api speed -- --ignored --nocapture`.

use std::time::Instant;

use evergate_server::dvr;
use evergate_server::hostview::Picture;
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

#[test]
#[ignore = "a measurement"]
fn a_thousand_distributed_ha_routers_on_fifty_compute_hosts() {
    let server = Server::with_many_ha_routers();
    ["h1", "h2", "h3"].into_iter().for_each(|name| server.host_in_mode(name, "dvr_snat"));
    let compute: Vec<String> = (4..54).map(|n| format!("h{n}")).collect();
    compute.iter().for_each(|name| server.host_in_mode(name, "dvr"));
    let external = json!({
        "router:external": true, "provider:network_type": "flat", "provider:physical_network": "physnet1",
    });
    let external = server.make(&admin(), "network", external);
    let subnet = json!({"network_id": external["id"], "ip_version": 4, "cidr": "198.18.0.0/15"});
    server.make(&admin(), "subnet", subnet);
    let info = json!({"distributed": true, "external_gateway_info": {"network_id": external["id"]}});
    let mut routers = Vec::new();
    timed("router create --distributed --ha", ROUTERS, || routers.push(server.make(&admin(), "router", info.clone())));
    let mut subnets = Vec::new();
    timed("network and subnet create", ROUTERS, || subnets.push(server.make_network(&admin(), "n", "10.0.0.0/24").1));
    let mut pairs = routers.iter().zip(&subnets);
    timed("router add subnet", ROUTERS, || {
        let (router, subnet) = pairs.next().unwrap();
        let path = format!("/v2.0/routers/{}/add_router_interface", id(router));
        assert_eq!(server.put(&admin(), &path, json!({"subnet_id": subnet["id"]})).status, 200);
    });
    // Five instances per router, so that each compute host has a hundred routers.
    let mut n = 0;
    timed("port create --host", ROUTERS * 5, || {
        let port = json!({
            "network_id": subnets[n % ROUTERS]["network_id"], "binding:host_id": compute[(n * 7 + n / ROUTERS) % 50],
        });
        n += 1;
        server.make(&admin(), "port", port)
    });
    for host in ["h1", "h4"] {
        let told = timed(&format!("the view of {host}"), 5, || server.told(host));
        println!("  of {} routers and {} networks", told.routers.len(), told.networks.len());
    }
    let port = server.make(&admin(), "port", json!({"network_id": subnets[0]["network_id"]}));
    let mut picture = Picture::default();
    let names: Vec<_> = compute.iter().map(|host| host.as_str().into()).collect();
    timed("the views of all compute hosts", 1, || {
        let news = server.store.read(|tx| picture.look(tx, &server.options, &names)).unwrap();
        picture.take(news)
    });
    timed("port set --host", 1, || {
        let body = json!({"port": {"binding:host_id": "h9"}});
        assert_eq!(server.put(&admin(), &format!("/v2.0/ports/{}", id(&port)), body).status, 200);
    });
    let touched = timed("whom it concerns, of all compute hosts", 1, || {
        let news = server.store.read(|tx| picture.look(tx, &server.options, &[])).unwrap();
        picture.take(news).len()
    });
    println!("  {touched} hosts");
    timed("a host's mode changes: all routers are looked at", 1, || server.host_in_mode("h20", "dvr_no_external"));
    timed("all routers, at the start of the server", 1, || {
        server.write(|tx| dvr::settle_all(tx, &server.options));
    });
    // All of this may have taken longer than hosts are waited for.
    ["h1", "h2", "h3"].into_iter().for_each(|name| server.host_in_mode(name, "dvr_snat"));
    timed("router set --centralized and back", 10, || {
        for distributed in [false, true] {
            let body = json!({"router": {"distributed": distributed}});
            let path = format!("/v2.0/routers/{}", id(&routers[1]));
            assert_eq!(server.put(&admin(), &path, body).status, 200);
        }
    });
    timed("router show", 100, || server.get(&admin(), &format!("/v2.0/routers/{}", id(&routers[0]))));
    timed("list of 1000 routers", 3, || server.list(&admin(), "routers", ""));
}
