//! What replicating connections costs: processor time of the active and of a standby host while an instance
//! opens 1,000 and 10,000 connections per second, how far the standby is behind, and memory; beside
//! conntrackd, which is given the same load in the same run.
//!
//! A connection is a datagram to an address and port of its own, into a route that swallows it: nothing
//! answers, so that the routers' work is what is measured. Run it with `make bench`.

#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "support/mod.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use evergate_lab::{Node, wait_for};
use evergate_model::RouterId;
use serde_json::Value;
use support::Bench;
use support::pair::Pair;

/// Where the connections lead: RFC 2544's addresses for measurements.
const SINK: &str = "198.18.0.0/15";
const OPEN: &str = "--open";
/// Enough for the rate to settle, and for 100,000 entries at the higher one.
const SECONDS: u32 = 10;
const RATES: [u32; 2] = [1_000, 10_000];
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    support::wait_if_asked();
    support::pair::echo_if_asked()?;
    open_if_asked()?;
    println!("new connections per second, for {SECONDS} s (processor time in percent of one core)");
    println!("                       active  standby   lag p50 / p99 / max ms   PSS active, standby, KiB");
    evergate()?;
    conntrackd()
}

fn evergate() -> Result<()> {
    let bench = Bench::up("replication", None, None)?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    bench.lab.machine(Node::Outside).shell(&format!("ip route add blackhole {SINK}"))?;
    let id: RouterId = router.parse().context("the id of the router")?;
    let active = wait_for("one copy is active", PATIENCE, || bench.active(&router))?;
    let standby = bench.lab.hosts_of(id).into_iter().find(|node| *node != active).context("no standby")?;
    let keepers = [active, standby].map(|node| Keeper { bench: &bench, node });
    for rate in RATES {
        let own = bench.lab.instance_command("vm1", std::env::current_exe().context("own path")?)?;
        let before = [keepers[0].seconds()?, keepers[1].seconds()?];
        let lags = opening(own, rate, || keepers[0].lag_ms(&router))?;
        let used = [keepers[0].seconds()? - before[0], keepers[1].seconds()? - before[1]];
        let pss = [keepers[0].pss()?, keepers[1].pss()?];
        line("evergate keeper", rate, used, Some(lags), pss);
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
    for rate in RATES {
        let before = [process_seconds(active)?, process_seconds(standby)?];
        opening(pair.own(OPEN, "client")?, rate, || Ok(None))?;
        let used = [process_seconds(active)? - before[0], process_seconds(standby)? - before[1]];
        line("conntrackd", rate, used, None, [process_pss(active)?, process_pss(standby)?]);
    }
    Ok(())
}

fn line(who: &str, rate: u32, used: [f64; 2], lags: Option<Vec<f64>>, pss: [f64; 2]) {
    let percent = used.map(|seconds| seconds / f64::from(SECONDS) * 100.0);
    let lags = lags.map_or("-".to_owned(), |mut lags| {
        lags.sort_by(f64::total_cmp);
        let at = |share: f64| lags.get(((lags.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
        format!("{:.1} / {:.1} / {:.1}", at(0.5), at(0.99), at(1.0))
    });
    let [a, s] = percent;
    println!("  {who:15} {rate:6} {a:6.1} {s:8.1}   {lags:>22}   {:.0}, {:.0}", pss[0], pss[1]);
}

/// Runs the opener, and asks `look` every tenth of a second meanwhile.
fn opening(mut own: Command, rate: u32, look: impl Fn() -> Result<Option<f64>>) -> Result<Vec<f64>> {
    let mut child = own.args([OPEN, &rate.to_string()]).spawn().context("failed to start the opener")?;
    let mut seen = Vec::new();
    let status = loop {
        if let Some(status) = child.try_wait().context("the opener")? {
            break status;
        }
        seen.extend(look()?);
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!("the opener failed: {status}");
    }
    Ok(seen)
}

/// Becomes the opener if the arguments say so. Call early in `main`.
fn open_if_asked() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let Some(at) = args.iter().rposition(|arg| arg == OPEN) else { return Ok(()) };
    let rate: u32 = args.get(at + 1).context("a rate")?.parse().context("the rate")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("failed to bind")?;
    let start = Instant::now();
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    for n in 0..rate * SECONDS {
        let due = start + Duration::from_secs_f64(f64::from(n) / f64::from(rate));
        if let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| *wait > Duration::from_millis(1)) {
            std::thread::sleep(wait);
        }
        let to = SocketAddr::from((Ipv4Addr::from(first + n % 50_000), (1024 + n / 50_000) as u16));
        socket.send_to(b"open", to).context("failed to send")?;
    }
    std::process::exit(0);
}

/// The keeper of a host.
struct Keeper<'a> {
    bench: &'a Bench,
    node: Node,
}

impl Keeper<'_> {
    fn shell(&self, line: &str) -> Result<String> {
        self.bench.lab.machine(self.node).shell(line)
    }

    fn seconds(&self) -> Result<f64> {
        stat_seconds(&self.shell("cat /proc/$(pgrep -f '[e]vergate keeper')/stat")?)
    }

    fn pss(&self) -> Result<f64> {
        kib(&self.shell("grep '^Pss:' /proc/$(pgrep -f '[e]vergate keeper')/smaps_rollup")?)
    }

    /// As the keeper last told; nothing before it has.
    fn lag_ms(&self, router: &str) -> Result<Option<f64>> {
        let text = self.shell("evergate show --json")?;
        let view: Value = serde_json::from_str(&text).context("what 'evergate show' printed")?;
        let router = &view["routers"][router];
        router["kind"].as_str().with_context(|| format!("no router in {view}"))?;
        Ok(router["connections"]["lag_us"].as_f64().map(|lag| lag / 1e3))
    }
}

fn process_seconds(pid: u32) -> Result<f64> {
    stat_seconds(&std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a process's times")?)
}

fn process_pss(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("a process's memory")?;
    kib(text.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default())
}

/// User and system time, from `/proc/<pid>/stat`; the kernel counts in hundredths of a second.
fn stat_seconds(stat: &str) -> Result<f64> {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).context("a process's times");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn kib(line: &str) -> Result<f64> {
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("a process's memory")
}
