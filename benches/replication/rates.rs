//! New connections at a rate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_lab::{Node, Spec, wait_for};
use evergate_model::{RouterId, names};

use crate::load::{self, SECONDS, SINK};
use crate::meter::{Keeper, process_pss, process_seconds, tracked};
use crate::support::Bench;
use crate::support::pair::Pair;

const RATES: [u32; 2] = [1_000, 10_000];
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<()> {
    println!("new connections per second, for {SECONDS} s (processor time in percent of one core, one standby)");
    println!("                       active  standby   lag p50 / p99 / max ms   PSS active, standby, KiB   missing");
    evergate()?;
    conntrackd()
}

fn evergate() -> Result<()> {
    let bench = Bench::up_with("replication", |spec| Spec { network_hosts: 2, ..spec })?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    bench.lab.machine(Node::Outside).shell(&format!("ip route add blackhole {SINK}"))?;
    let id: RouterId = router.parse().context("the id of the router")?;
    let active = wait_for("one copy is active", PATIENCE, || bench.active(&router))?;
    let standby = bench.lab.hosts_of(id).into_iter().find(|node| *node != active).context("no standby")?;
    let keepers = [active, standby].map(|node| Keeper { bench: &bench, node });
    let netns = names::qrouter_namespace(id);
    for rate in RATES {
        let own = bench.lab.instance_command("vm1", std::env::current_exe().context("own path")?)?;
        let lags = keepers[0].lags(&router)?;
        let before = [keepers[0].seconds()?, keepers[1].seconds()?];
        let start = Instant::now();
        load::opening(own, rate)?;
        let opened = start.elapsed().as_secs_f64();
        // What a side that lags has still to do is its cost as well.
        let missing = settled(|| Ok([keepers[0].tracked(&netns)?, keepers[1].tracked(&netns)?]))?;
        let used = [keepers[0].seconds()? - before[0], keepers[1].seconds()? - before[1]].map(|cpu| cpu / opened);
        let pss = [keepers[0].pss()?, keepers[1].pss()?];
        let lags = keepers[0].lags_since(&router, &lags, u64::from(rate * SECONDS))?;
        let words = [0.5, 0.99, 1.0].map(|share| lags.at(share)).join(" / ");
        line("evergate keeper", rate, used, &words, pss, missing);
    }
    Ok(())
}

fn conntrackd() -> Result<()> {
    let mut pair = Pair::up(Duration::from_secs(1))?;
    let daemons = [pair.conntrackd(1)?, pair.conntrackd(2)?];
    let master = wait_for("one keepalived is master", PATIENCE, || pair.master())?;
    pair.answers()?;
    pair.run("server", &["ip", "route", "add", "blackhole", SINK])?;
    for node in ["r1", "r2"] {
        pair.run(node, &["ip", "route", "add", SINK, "via", "10.8.0.10", "dev", "wan0", "onlink"])?;
    }
    let [active, standby] = if master == "r1" { daemons } else { [daemons[1], daemons[0]] };
    let nodes = if master == "r1" { ["r1", "r2"] } else { ["r2", "r1"] }.map(|node| pair.netns(node));
    for rate in RATES {
        let before = [process_seconds(active)?, process_seconds(standby)?];
        let start = Instant::now();
        load::opening(pair.own_at("client")?, rate)?;
        let opened = start.elapsed().as_secs_f64();
        let missing = settled(|| Ok([tracked(&nodes[0])?, tracked(&nodes[1])?]))?;
        let used =
            [process_seconds(active)? - before[0], process_seconds(standby)? - before[1]].map(|cpu| cpu / opened);
        line("conntrackd", rate, used, "-", [process_pss(active)?, process_pss(standby)?], missing);
    }
    Ok(())
}

/// How many more connections the active side has than the standby, when that does not get better any more.
fn settled(look: impl Fn() -> Result<[u64; 2]>) -> Result<u64> {
    let missing = || look().map(|[active, standby]| active.saturating_sub(standby));
    wait_for("the standby has all", Duration::from_secs(1), || Ok(Some(missing()?).filter(|few| *few == 0)))
        .or_else(|_| missing())
}

fn line(who: &str, rate: u32, used: [f64; 2], lags: &str, pss: [f64; 2], missing: u64) {
    let [active, standby] = used.map(|share| share * 100.0);
    println!(
        "  {who:15} {rate:6} {active:6.1} {standby:8.1}   {lags:>22}   {:>10.0}, {:.0} {missing:>17}",
        pss[0], pss[1]
    );
}
