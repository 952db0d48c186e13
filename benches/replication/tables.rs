//! Large tables: memory, what a core carries, and a standby that begins with nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_lab::fault::{Daemon, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Fault, Node, Spec, wait_for};
use evergate_model::{RouterId, names};
use serde_json::json;

use crate::load;
use crate::meter::{Keeper, process_pss, process_seconds, tracked};
use crate::support::Bench;
use crate::support::pair::Pair;

/// Connections of each further router; the kernel permits 262,144.
const EACH: u32 = 225_000;
const FEW: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two datagrams of the probe.
const PACE: Duration = Duration::from_millis(5);

pub(crate) fn run() -> Result<()> {
    println!("connections that appear at once in the active host's kernel, and a standby that begins with none");
    println!(
        "                    connections   until all are on the standby   processor seconds   PSS active, standby, MiB"
    );
    evergate()?;
    conntrackd()
}

/// Routers of which one host has all the active copies.
struct Routers<'a> {
    active: Keeper<'a>,
    standby: Keeper<'a>,
    /// Their namespaces.
    all: Vec<String>,
    /// Connections that were put into them.
    told: u64,
}

impl Routers<'_> {
    fn on_standby(&self) -> Result<u64> {
        self.all.iter().map(|netns| self.standby.tracked(netns)).sum()
    }

    /// Puts connections into the namespaces from this one on at once, waits until the standby has them, and prints a line.
    fn fill(&mut self, from: usize, count: u32) -> Result<()> {
        let before = [self.active.seconds()?, self.standby.seconds()?];
        self.told += u64::from(count) * (self.all.len() - from) as u64;
        let goal = self.told;
        let since = Instant::now();
        for netns in &self.all[from..] {
            let own = std::env::current_exe().context("own path")?;
            load::filling(self.active.bench.lab.machine(self.active.node).command(own)?, netns, 0, count)?;
        }
        let filled = since.elapsed();
        wait_for("the standby has all", PATIENCE, || Ok((self.on_standby()? >= goal).then_some(())))?;
        let used = [self.active.seconds()? - before[0], self.standby.seconds()? - before[1]];
        line("evergate", goal, [filled, since.elapsed()], used, [self.active.pss()?, self.standby.pss()?]);
        Ok(())
    }

    /// Empties the standby's tables and kills its keeper: the next one is told everything, under a probe.
    fn rejoin(&self) -> Result<()> {
        let lab = &self.active.bench.lab;
        let goal = self.told;
        let late = self.active.worst_lateness_ms()?;
        let probe = Running::start(lab, "vm1", PACE)?;
        self.active.bench.first_answer()?.wait()?;
        let before = self.active.seconds()?;
        for netns in &self.all {
            lab.machine(self.standby.node).shell(&format!("ip netns exec {netns} conntrack -F 2>/dev/null"))?;
        }
        let since = Instant::now();
        lab.fail(self.standby.node, Fault::Process(Daemon::Keeper, Signal::Kill))?;
        wait_for("the standby has all again", PATIENCE, || Ok((self.on_standby()? >= goal).then_some(())))?;
        let took = since.elapsed();
        let used = self.active.seconds()? - before;
        let gap = probe.finish()?.longest_gap_ms();
        let later = self.active.worst_lateness_ms()?;
        println!(
            "  a standby with an empty table had {goal} connections {:.1} s after its keeper was killed; the active's keeper worked {used:.1} s meanwhile, and the longest gap of a 5 ms probe through it was {gap:.0} ms; its timing was at worst {later:.1} ms late since its start ({:.1} before)",
            took.as_secs_f64(),
            late
        );
        Ok(())
    }
}

fn evergate() -> Result<()> {
    let bench = Bench::up_with("tables", |spec| Spec { network_hosts: 2, ..spec })?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    let active = wait_for("one copy is active", PATIENCE, || bench.active(&router))?;
    let standby = [Node::Network(1), Node::Network(2)].into_iter().find(|node| *node != active).context("a standby")?;
    let keeper = |node| Keeper { bench: &bench, node };
    let mut routers = Routers { active: keeper(active), standby: keeper(standby), all: Vec::new(), told: 0 };
    routers.all.push(names::qrouter_namespace(router.parse::<RouterId>().context("the id of the router")?));
    let base = [routers.active.pss()?, routers.standby.pss()?];
    println!("  evergate                    0 {:>73.1}, {:.1}", base[0] / 1024.0, base[1] / 1024.0);
    routers.fill(0, FEW)?;
    routers.rejoin()?;
    let external = bench.find("network", "external")?;
    for number in 2..=5 {
        let gateway =
            json!({"name": format!("r{number}"), "ha": true, "external_gateway_info": {"network_id": external}});
        let id = bench.create("router", gateway)?;
        wait_for("one copy is active", PATIENCE, || bench.active(&id))?;
        bench.lab.machine(Node::Controller).shell(&format!("evergate router move {id} --to {active}"))?;
        wait_for("it is where it should be", PATIENCE, || Ok((bench.active(&id)? == Some(active)).then_some(())))?;
        routers.all.push(names::qrouter_namespace(id.parse::<RouterId>().context("the id of a router")?));
    }
    routers.fill(1, EACH)?;
    routers.rejoin()
}

fn conntrackd() -> Result<()> {
    let mut pair = Pair::up(Duration::from_secs(1))?;
    let daemons = [pair.conntrackd(1)?, pair.conntrackd(2)?];
    let master = wait_for("one keepalived is master", PATIENCE, || pair.master())?;
    pair.answers()?;
    let [active, standby] = if master == "r1" { daemons } else { [daemons[1], daemons[0]] };
    let [from, to] = if master == "r1" { ["r1", "r2"] } else { ["r2", "r1"] }.map(|node| pair.netns(node));
    let mut first = 0;
    for count in [FEW, EACH - FEW] {
        let before = [process_seconds(active)?, process_seconds(standby)?];
        let since = Instant::now();
        let own = std::process::Command::new(std::env::current_exe().context("own path")?);
        load::filling(own, &from, first, count)?;
        let filled = since.elapsed();
        first += count;
        // It may lose some for good.
        let until = Instant::now() + Duration::from_secs(20);
        while tracked(&to)? < u64::from(first) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let used = [process_seconds(active)? - before[0], process_seconds(standby)? - before[1]];
        let pss = [process_pss(active)?, process_pss(standby)?];
        line("conntrackd", tracked(&to)?, [filled, since.elapsed()], used, pss);
    }
    Ok(())
}

fn line(who: &str, count: u64, [filled, told]: [Duration; 2], used: [f64; 2], pss: [f64; 2]) {
    println!(
        "  {who:15} {count:>13}   {:>9.1} s (put in within {:.1}) {:>9.1}, {:.1} {:>17.1}, {:.1}",
        told.as_secs_f64(),
        filled.as_secs_f64(),
        used[0],
        used[1],
        pss[0] / 1024.0,
        pss[1] / 1024.0
    );
}
