//! The gap that a 5 ms probe sees when the active host loses power, beside a stock keepalived pair.
//!
//! Both run VRRP version 2 with equal priorities and the same interval, both move addresses the way
//! Neutron configures them, and both are hit the same way: links down, processes killed. The pair has
//! two members where the lab has three hosts, and forwards without NAT. Run it with `make bench`.

mod pair;
#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "../support/mod.rs"]
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
    pair::echo_if_asked()?;
    println!("failover, power-off of the active, 5 ms probe, {TIMES} times each (gap: min / median / max ms)");
    for seconds in [2, 1] {
        let ours = evergate(seconds)?;
        let theirs = pair::measure(seconds, TIMES)?;
        println!("  {seconds} s interval  evergate {}   keepalived {}", support::figures(&ours), support::figures(&theirs));
    }
    Ok(())
}

fn evergate(seconds: u8) -> Result<Vec<f64>> {
    let bench = Bench::up("failover", Some(seconds))?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    let patience = Duration::from_secs(30);
    let mut gaps = Vec::new();
    for _ in 0..TIMES {
        let active = evergate_lab::wait_for("one copy is active", patience, || bench.active(&router))?;
        let probe = Running::start(&bench.lab, "vm1", PACE)?;
        bench.first_answer()?.wait()?;
        bench.lab.fail(active, Fault::Power)?;
        bench.first_answer()?.wait()?;
        gaps.push(probe.finish()?.longest_gap_ms());
        bench.lab.heal(active, &Fault::Power)?;
        bench.lab.wait_hosts_alive(&[active])?;
    }
    Ok(gaps)
}
