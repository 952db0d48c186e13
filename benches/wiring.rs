//! Time from the request that binds a port to a host until the first packet gets through to another host,
//! with 1, 100 and 1,000 further ports in the network.
//!
//! The request is made by a process of its own inside the lab, which costs a few milliseconds that are not
//! the product's. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_lab::{Node, wait_for};
use serde_json::json;
use support::Bench;
use support::percentile::percentile;

const TIMES: usize = 50;

fn main() -> Result<()> {
    support::wait_if_asked();
    let bench = Bench::up("wiring", None, None)?;
    let network = bench.create("network", json!({"name": "wide"}))?;
    bench.create("subnet", json!({"network_id": network, "ip_version": 4, "cidr": "10.8.0.0/16"}))?;
    let port = bench.create("port", json!({"network_id": network}))?;
    let there = bench.lab.add_instance("there", &port, Node::Compute(1))?;
    let target = there.address.split('/').next().unwrap_or_default().parse().context("the address there")?;
    let port = bench.create("port", json!({"network_id": network}))?;
    bench.lab.add_instance("vm2", &port, Node::Compute(2))?;
    println!("a port is bound until its first packet gets through, {TIMES} times each (median / max ms)");
    let mut others = 0;
    for ports in [1, 100, 1_000] {
        while others < ports {
            // Bound to the other host, so that each must be known on this one.
            bench.create("port", json!({"network_id": network, "binding:host_id": "cmp1"}))?;
            others += 1;
        }
        let mut times = Vec::new();
        for _ in 0..TIMES {
            bind(&bench, &port, "")?;
            let cmp2 = bench.lab.machine(Node::Compute(2));
            let tap = evergate_model::names::tap(port.parse().context("the port's id")?);
            wait_for("the tap is unplugged", Duration::from_secs(30), || {
                let shown = cmp2.shell(&format!("ip link show {tap}"))?;
                Ok((!shown.contains("master")).then_some(()))
            })?;
            let waiting = bench.first_answer_of("vm2", target)?;
            let start = Instant::now();
            bind(&bench, &port, "cmp2")?;
            times.push(waiting.wait()?.duration_since(start).as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let [middle, greatest] = [0.5, 1.0].map(|share| percentile(&times, share));
        println!("  {ports:5} other ports   {middle:.0} / {greatest:.0}");
    }
    Ok(())
}

fn bind(bench: &Bench, port: &str, host: &str) -> Result<()> {
    let body = json!({"port": {"binding:host_id": host}});
    bench.lab.api_ok("PUT", &format!("/v2.0/ports/{port}"), Some(&body)).map(drop)
}
