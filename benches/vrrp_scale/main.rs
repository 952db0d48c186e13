//! What thousands of virtual routers cost, beside one keepalived that has as many.
//!
//! Two hosts, each a namespace with bridges and VXLAN devices as the product makes them, one HA network per 250
//! routers. Ours: a keeper on each, every router in a namespace of its own. Theirs: a stock keepalived on each, all
//! instances in one namespace, an interface per HA network. One side has all the active ones, the other all the
//! backups, so sending and receiving are told apart.
//!
//! `EVERGATE_BENCH_ROUTERS=10,100` and `EVERGATE_BENCH_SECONDS=10` make it shorter.

#![allow(clippy::wildcard_enum_match_arm, reason = "one message among many is looked for")]

mod keepalived;
mod keepers;
mod meter;
mod wires;

use std::time::Duration;

use anyhow::{Context, Result};
use meter::Costs;

/// What one run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) routers: u16,
    /// Centiseconds between two advertisements.
    pub(crate) interval_cs: u16,
    pub(crate) time: Duration,
    /// Processes that do nothing but use the CPU meanwhile.
    pub(crate) burners: usize,
}

fn main() -> Result<()> {
    let numbers = setting("EVERGATE_BENCH_ROUTERS", "10,100,1000,4000");
    let time = Duration::from_secs(setting("EVERGATE_BENCH_SECONDS", "20").parse().context("a number of seconds")?);
    println!("cost of one side: CPU % of a core, and memory; how late advertisements arrive, microseconds");
    for routers in numbers.split(',') {
        let routers = routers.trim().parse().context("a number of routers")?;
        for interval_cs in [100, 10] {
            one(&Run { routers, interval_cs, time, burners: 0 })?;
        }
    }
    let routers = numbers.split(',').filter_map(|n| n.trim().parse().ok()).filter(|n| *n <= 1000).max().unwrap_or(10);
    println!("with four processes that use the CPU beside it");
    one(&Run { routers, interval_cs: 10, time, burners: 4 })?;
    keepers::takeovers(routers)
}

fn one(run: &Run) -> Result<()> {
    let what = format!("{:>5} routers, every {:>4} ms", run.routers, run.interval_cs * 10);
    println!("{what}   evergate    {}", keepers::measure(run)?);
    // One keepalived refuses nothing, but its users report trouble beyond 1,000 instances.
    if run.routers <= 1000 {
        println!("{what}   keepalived  {}", keepalived::measure(run)?);
    }
    Ok(())
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

impl std::fmt::Display for Costs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "active {:5.1} % {:6} KiB, backup {:5.1} % {:6} KiB; late by {} / {} / {} (p50 / p99 / max); {} spurious takeovers",
            self.active.cpu,
            self.active.memory_kib,
            self.backup.cpu,
            self.backup.memory_kib,
            self.late[0],
            self.late[1],
            self.late[2],
            self.spurious
        )
    }
}
