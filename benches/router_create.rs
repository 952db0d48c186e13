//! Time from the first API request for an HA router until an instance behind it reaches the outside.
//!
//! Three requests (router with gateway, interface; each by a process of its own inside the lab, which
//! costs a few milliseconds that are not the product's), then the first answered datagram. Neutron's
//! figure for the same is in `docs/benchmarks.md`. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
mod support;

use std::time::Instant;

use anyhow::Result;
use support::Bench;

const TIMES: usize = 10;

fn main() -> Result<()> {
    support::wait_if_asked();
    let bench = Bench::up("create", None, None)?;
    let (external, subnet) = (bench.find("network", "external")?, bench.find("subnet", "net1")?);
    let mut answered = Vec::new();
    let mut forwards = Vec::new();
    for _ in 0..TIMES {
        let waiting = bench.first_answer()?;
        let start = Instant::now();
        let router = bench.create_router_between(&external, &subnet)?;
        answered.push(start.elapsed().as_secs_f64() * 1000.0);
        forwards.push(waiting.wait()?.duration_since(start).as_secs_f64() * 1000.0);
        bench.delete_router(&router)?;
        evergate_lab::wait_for("the router is gone", std::time::Duration::from_secs(20), || {
            let left = bench.lab.machine_named("net1")?.shell("ip netns list")?;
            Ok((!left.contains(&router)).then_some(()))
        })?;
    }
    println!("HA router with gateway and interface, {TIMES} times (min / median / max ms)");
    println!("  API answered          {}", support::figures(&answered));
    println!("  instance gets through {}", support::figures(&forwards));
    Ok(())
}
