//! The data plane with replication and without.

use std::time::Duration;

use anyhow::{Context, Result};
use evergate_lab::fault::{Daemon, Signal};
use evergate_lab::spec::WEB;
use evergate_lab::{Fault, Node, Spec, wait_for};
use serde_json::Value;

use crate::load;
use crate::meter::Keeper;
use crate::support::Bench;
use crate::traffic::{Kind, Receiver};

const TURNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<()> {
    let bench = Bench::up_with("plane", |spec| Spec { network_hosts: 2, ..spec })?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    let here = || std::env::current_exe().context("own path");
    let mut receiver = Receiver::start(bench.lab.machine(Node::Web).command(here()?)?)?;
    let mut server = load::answering(bench.lab.machine(Node::Web).command(here()?)?).spawn().context("the server")?;
    let mut figures: [[Vec<f64>; 3]; 2] = Default::default();
    let measured = (0..TURNS).try_for_each(|_| {
        for (which, on) in [true, false].into_iter().enumerate() {
            replicate(&bench, &router, on)?;
            let stream = receiver.rate(bench.lab.instance_command("vm1", here()?)?, Kind::Tcp, WEB)? / 1e9;
            let [rate, slowest] = load::connecting(bench.lab.instance_command("vm1", here()?)?, WEB)?;
            for (values, value) in figures[which].iter_mut().zip([stream, rate, slowest]) {
                values.push(value);
            }
        }
        Ok(())
    });
    let _ = server.kill();
    let _ = server.wait();
    measured.map(|()| print(&figures))
}

fn print(figures: &[[Vec<f64>; 3]; 2]) {
    println!("the data plane through source NAT, {TURNS} turns each (min / median / max)");
    let line = |what: &str, at: usize, digits: usize| {
        let words = [0, 1].map(|which| {
            let mut sorted: Vec<f64> = figures[which][at].clone();
            sorted.sort_by(f64::total_cmp);
            let value = |n: usize| format!("{:.digits$}", sorted.get(n).copied().unwrap_or_default());
            format!("{} / {} / {}", value(0), value(TURNS / 2), value(TURNS - 1))
        });
        println!("  {what:32} replicated {:>24}   not replicated {:>24}", words[0], words[1]);
    };
    line("one stream, Gbit/s", 0, 2);
    line("connections opened per second", 1, 0);
    // A second or more: some had to be tried again, and the rate is that of waiting.
    line("the slowest of them, ms", 2, 0);
}

/// Turns replication on or off on both hosts, as an operator does: in the file, and a restart of control.
fn replicate(bench: &Bench, router: &str, on: bool) -> Result<()> {
    for node in [Node::Network(1), Node::Network(2)] {
        // Its last section is ours.
        let path = bench.lab.machine(node).disk().join("etc/neutron/neutron.conf");
        let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("conntrack_sync")).collect();
        let setting = format!("conntrack_sync = {on}\n");
        lines.push(&setting);
        std::fs::write(&path, lines.join("\n")).with_context(|| format!("failed to write {}", path.display()))?;
        bench.lab.fail(node, Fault::Process(Daemon::Control, Signal::Kill))?;
    }
    wait_for("replication is as wanted", PATIENCE, || {
        let Some(active) = bench.active(router)? else { return Ok(None) };
        let connections = Keeper { bench, node: active }.view()?["routers"][router]["connections"].clone();
        let told = connections["peers"] == 1 && connections["in_step"] == Value::Bool(true);
        Ok((told == on).then_some(()))
    })
}
