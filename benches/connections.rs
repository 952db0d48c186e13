//! How many of 10,000 connections through source NAT are broken by the power-off of the active host, and
//! how fast a standby that joins gets them all.
//!
//! Half of the connections are used first by the client, half by the server. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_lab::fault::{Daemon, Signal};
use evergate_lab::flows::End;
use evergate_lab::{Fault, Node, wait_for};
use evergate_model::{RouterId, names};
use support::Bench;

const CONNECTIONS: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    support::wait_if_asked();
    let bench = Bench::up("connections", Some(1), None)?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    let id: RouterId = router.parse().context("the id of the router")?;
    let mut server = End::start(bench.lab.machine(Node::Web).command("python3")?, &["serve", "9000"])?;
    server.says()?;
    let count = CONNECTIONS.to_string();
    let args = ["connect", "198.51.100.10", "9000", &count];
    let mut client = End::start(bench.lab.instance_command("vm1", "python3")?, &args)?;
    client.says()?;
    let active = wait_for("one copy is active", PATIENCE, || bench.active(&router))?;
    let standbys: Vec<Node> = bench.lab.hosts_of(id).into_iter().filter(|node| *node != active).collect();
    for node in &standbys {
        wait_for("the standby has all", PATIENCE, || bench.tracks(*node, id, CONNECTIONS))?;
    }
    let joined = rejoin(&bench, standbys[0], id)?;
    bench.lab.fail(active, Fault::Power)?;
    wait_for("another copy is active", PATIENCE, || {
        Ok(bench.lab.active_hosts(id)?.into_iter().find(|n| *n != active))
    })?;
    for end in [&mut server, &mut client] {
        end.go()?;
    }
    server.says()?;
    println!("connections through source NAT over the power-off of the active: {}", client.says()?);
    println!(
        "a standby with an empty table had all {CONNECTIONS} of them {:.0} ms after its keeper was killed",
        joined.as_secs_f64() * 1e3
    );
    Ok(())
}

/// Empties a standby's table and kills its keeper: the next one is told everything.
fn rejoin(bench: &Bench, node: Node, router: RouterId) -> Result<Duration> {
    let netns = names::qrouter_namespace(router);
    bench.lab.machine(node).shell(&format!("ip netns exec {netns} conntrack -F 2>/dev/null"))?;
    let since = Instant::now();
    bench.lab.fail(node, Fault::Process(Daemon::Keeper, Signal::Kill))?;
    wait_for("the standby has all again", PATIENCE, || bench.tracks(node, router, CONNECTIONS))?;
    Ok(since.elapsed())
}
