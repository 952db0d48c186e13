//! The gap that a 5 ms probe sees when the active host loses power, beside a stock keepalived pair.
//!
//! Both run VRRP version 2 with equal priorities and the same interval, both move addresses the way
//! Neutron configures them, and both are hit the same way: links down, processes killed. The pair has
//! two members where the lab has three hosts, and forwards without NAT. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use anyhow::Result;
use evergate_lab::Fault;
use evergate_lab::probe::Running;
use support::Bench;

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(5);
const TIMES: usize = 3;

fn main() -> Result<()> {
    support::wait_if_asked();
    support::pair::echo_if_asked()?;
    println!("failover, power-off of the active, 5 ms probe, {TIMES} times each (gap: min / median / max ms)");
    for seconds in [2, 1] {
        let ours = evergate(seconds, Some(0))?;
        let theirs = support::pair::measure(seconds, TIMES)?;
        let (ours, theirs) = (support::figures(&ours), support::figures(&theirs));
        println!("  VRRP alone, {seconds} s interval   evergate {ours}   keepalived {theirs}");
    }
    for bfd in [None, Some(50), Some(10)] {
        let interval = bfd.map_or("default".to_owned(), |ms| format!("{ms} ms"));
        println!("  BFD, {interval} interval   evergate {}", support::figures(&evergate(2, bfd)?));
    }
    Ok(())
}

fn evergate(seconds: u8, bfd_interval_ms: Option<u16>) -> Result<Vec<f64>> {
    let bench = Bench::up("failover", Some(seconds), bfd_interval_ms)?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    let mut gaps = Vec::new();
    while gaps.len() < TIMES {
        if bfd_interval_ms != Some(0) {
            bench.wait_bfd()?;
        }
        // A probe that was started too late to get an answer before the fault saw no gap, and proves nothing.
        gaps.extend(one_gap(&bench, &router)?.filter(|gap| *gap > 0.0));
    }
    Ok(gaps)
}

fn one_gap(bench: &Bench, router: &str) -> Result<Option<f64>> {
    let patience = Duration::from_secs(30);
    let active = evergate_lab::wait_for("one copy is active", patience, || bench.active(router))?;
    let probe = Running::start(&bench.lab, "vm1", PACE)?;
    bench.first_answer()?.wait()?;
    bench.lab.fail(active, Fault::Power)?;
    bench.first_answer()?.wait()?;
    let report = probe.finish()?;
    bench.lab.heal(active, &Fault::Power)?;
    bench.lab.wait_hosts_alive(&[active])?;
    Ok(report.gaps.first().map(|_| report.longest_gap_ms()))
}
