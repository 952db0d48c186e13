//! What thousands of virtual routers cost, beside one keepalived that has as many.
//!
//! Two hosts, each a namespace with bridges and VXLAN devices as the product makes them, one HA network per 250
//! routers. Ours: a keeper on each, every router in a namespace of its own. Theirs: a stock keepalived on each, all
//! instances in one namespace, an interface per HA network. One side has all the active ones, the other all the
//! backups, so sending and receiving are told apart.
//!
//! `EVERGATE_BENCH_ROUTERS=10,100` and `EVERGATE_BENCH_SECONDS=5` make it shorter. `EVERGATE_BENCH_ONLY` leaves out all but
//! some of these: `evergate`, `keepalived`, `busy` (both, with busy processes beside them), `takeovers`.
//! `EVERGATE_BENCH_INTERVALS=100` leaves out other intervals, in centiseconds. `EVERGATE_BENCH_FLOOD=1` floods
//! advertisements to all copies of a host, as it is where few are. `EVERGATE_BENCH_BFD` is BFD's interval in takeovers, in
//! milliseconds, `EVERGATE_BENCH_TAKEOVERS` how many there are. All four sizes take about ten minutes, most of which goes
//! by with the making and removing of namespaces.

#![allow(clippy::wildcard_enum_match_arm, reason = "one message among many is looked for")]

mod keepalived;
mod keepers;
mod meter;
mod wires;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use meter::Costs;
use wires::Wires;

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
    let time = Duration::from_secs(setting("EVERGATE_BENCH_SECONDS", "10").parse().context("a number of seconds")?);
    println!("cost of one side: CPU % of a core, and memory; how late advertisements arrive, microseconds");
    for routers in numbers.split(',') {
        size(routers.trim().parse().context("a number of routers")?, time)?;
    }
    Ok(())
}

/// Everything that is measured of one number of routers, on one set of namespaces.
fn size(routers: u16, time: Duration) -> Result<()> {
    let start = Instant::now();
    let mut wires = Wires::up(routers)?;
    for side in [1, 2] {
        wires.routers(side, routers)?;
    }
    println!("{routers:>5} routers: namespaces made in {:.0} s", start.elapsed().as_secs_f64());
    for interval_cs in setting("EVERGATE_BENCH_INTERVALS", "100,10").split(',') {
        let interval_cs = interval_cs.trim().parse().context("a number of centiseconds")?;
        one(&Run { routers, interval_cs, time, burners: 0 }, &wires)?;
        // Beyond, whoever waits for the CPU is measured, and not whoever uses it.
        if routers <= 1000 && interval_cs < 100 && is_wanted("busy") {
            one(&Run { routers, interval_cs, time, burners: 4 }, &wires)?;
        }
    }
    if is_wanted("takeovers") { keepers::takeovers(routers, &wires) } else { Ok(()) }
}

/// Ours and theirs, one after the other.
fn one(run: &Run, wires: &Wires) -> Result<()> {
    let beside = if run.burners > 0 { ", four busy processes" } else { "" };
    let what = format!("{:>5} routers, every {:>4} ms{beside}", run.routers, run.interval_cs * 10);
    if is_wanted("evergate") {
        println!("{what}   evergate    {}", keepers::measure(run, wires)?);
    }
    // One keepalived refuses nothing, but its users report trouble beyond 1,000 instances.
    if run.routers <= 1000 && is_wanted("keepalived") {
        match keepalived::measure(run) {
            Ok(costs) => println!("{what}   keepalived  {costs}"),
            // On a busy machine many of them go on taking the role from each other.
            Err(error) => println!("{what}   keepalived  did not settle: {error}"),
        }
    }
    Ok(())
}

fn is_wanted(part: &str) -> bool {
    let only = setting("EVERGATE_BENCH_ONLY", "");
    only.is_empty() || only.split(',').any(|one| one.trim() == part)
}

pub(crate) fn setting(name: &str, default: &str) -> String {
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
