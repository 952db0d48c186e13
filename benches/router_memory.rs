//! Processes and memory of a network host with 1, 50 and 200 HA routers.
//!
//! Proportional set size of every `evergate` process on the host, from `smaps_rollup`; kernel memory is
//! not in it. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_lab::Node;
use serde_json::json;
use support::Bench;

fn main() -> Result<()> {
    support::wait_if_asked();
    let bench = Bench::up("memory", None, None)?;
    // Its own project's 254 VRIDs are enough for 200 routers; the lab's server sets no quotas.
    let external = bench.find("network", "external")?;
    let mut first: Option<(usize, f64)> = None;
    let mut made = 0;
    println!("routers  processes  PSS KiB  user KiB per further router  seconds since the first was asked for");
    let start = Instant::now();
    for target in [1, 50, 200] {
        while made < target {
            let gateway = json!({"network_id": external});
            bench
                .create("router", json!({"name": format!("m{made}"), "ha": true, "external_gateway_info": gateway}))?;
            made += 1;
        }
        settled(&bench, target)?;
        let built = start.elapsed().as_secs_f64();
        let (processes, pss) = usage(&bench)?;
        let (base, base_pss) = *first.get_or_insert((target, pss));
        let slope =
            if target > base { format!("{:.1}", (pss - base_pss) / (target - base) as f64) } else { "-".into() };
        println!("{target:7}  {processes:9}  {pss:7.0}  {slope:>27}  {built:37.1}");
    }
    Ok(())
}

/// Waits until the host has every router's namespace, and the API shows an active copy of the last one.
fn settled(bench: &Bench, routers: usize) -> Result<()> {
    let host = bench.lab.machine(Node::Network(1));
    evergate_lab::wait_for(&format!("{routers} routers on net1"), Duration::from_secs(300), || {
        let there = host.shell("ip netns list | grep -c qrouter- || true")?;
        Ok((there.trim().parse::<usize>().unwrap_or(0) == routers).then_some(()))
    })?;
    let last = bench.find("router", &format!("m{}", routers - 1))?;
    evergate_lab::wait_for("an active copy", Duration::from_secs(60), || bench.active(&last)).map(drop)
}

fn usage(bench: &Bench) -> Result<(usize, f64)> {
    let line = "for pid in $(pgrep -x evergate); do grep -h '^Pss:' /proc/$pid/smaps_rollup; done";
    let text = bench.lab.machine(Node::Network(1)).shell(line)?;
    let kib: Vec<f64> = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    (!kib.is_empty()).then(|| (kib.len(), kib.iter().sum())).context("no evergate process found on net1")
}
