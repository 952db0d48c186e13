//! What replicating connections costs, beside conntrackd, which is given the same load in the same run.
//!
//! - `rates`: processor time of the active and of a standby host while instances open 1,000 and 10,000
//!   connections per second, and how long each change takes until the standby has confirmed it. A connection is
//!   a datagram to an address and port of its own, into a route that swallows it: nothing answers, so that the
//!   routers' work is what is measured.
//! - `tables`: memory with 100,000 and 1,000,000 connections, how many per second reach the standby's kernel
//!   when all of them appear at once, and how long a standby that starts with an empty table takes to have them.
//! - `plane`: what replication takes from the data plane: one stream's throughput, and connections per second
//!   that are opened, used and closed, with it and without, in turns.
//!
//! Run it with `make bench`, or parts of it with `cargo bench -p evergate --bench replication -- rates`. The
//! kernel's limit of connections (`nf_conntrack_max`, 262,144 for each namespace by default) is left as it is:
//! a million are five routers', 100,000 of the first and 225,000 of each other one.

mod load;
mod meter;
mod plane;
mod rates;
#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "../support/mod.rs"]
mod support;
mod tables;
#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "../throughput/traffic.rs"]
mod traffic;

use anyhow::Result;

fn main() -> Result<()> {
    support::wait_if_asked();
    support::pair::echo_if_asked()?;
    traffic::run_if_asked()?;
    load::run_if_asked()?;
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, part) in [("rates", rates::run as fn() -> Result<()>), ("tables", tables::run), ("plane", plane::run)] {
        if args.is_empty() || args.iter().any(|arg| arg == name) {
            part()?;
        }
    }
    Ok(())
}
