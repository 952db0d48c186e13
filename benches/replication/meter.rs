//! What is read of the processes and tables that are measured.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use evergate_keeper::protocol::LAG_BOUNDS_MS;
use evergate_lab::{Node, wait_for};
use serde_json::Value;

use crate::support::Bench;

/// How many changes took how long.
#[derive(Clone, Debug)]
pub(crate) struct Lags(Vec<u64>);

impl Lags {
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|(now, before)| now.saturating_sub(*before)).collect())
    }

    /// The class that this share of the changes was not above, in words.
    pub(crate) fn at(&self, share: f64) -> String {
        let total: u64 = self.0.iter().sum();
        let mut sum = 0;
        for (class, count) in self.0.iter().enumerate() {
            sum += count;
            if total > 0 && sum as f64 >= total as f64 * share {
                return LAG_BOUNDS_MS.get(class).map_or_else(|| ">5000".to_owned(), |bound| format!("<{bound}"));
            }
        }
        "-".to_owned()
    }
}

/// The keeper of a host.
pub(crate) struct Keeper<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) node: Node,
}

impl Keeper<'_> {
    fn shell(&self, line: &str) -> Result<String> {
        self.bench.lab.machine(self.node).shell(line)
    }

    pub(crate) fn seconds(&self) -> Result<f64> {
        stat_seconds(&self.shell("cat /proc/$(pgrep -f '[e]vergate keeper')/stat")?)
    }

    pub(crate) fn pss(&self) -> Result<f64> {
        kib(&self.shell("grep '^Pss:' /proc/$(pgrep -f '[e]vergate keeper')/smaps_rollup")?)
    }

    pub(crate) fn view(&self) -> Result<Value> {
        serde_json::from_str(&self.shell("evergate show --json")?).context("what 'evergate show' printed")
    }

    /// Of a router that is active on the host, as the keeper last told: it is asked every 10 s.
    pub(crate) fn lags(&self, router: &str) -> Result<Lags> {
        let view = self.view()?;
        let lags = view["routers"][router]["connections"]["lags"].as_array().cloned().unwrap_or_default();
        let count = |class| lags.get(class).and_then(Value::as_u64).unwrap_or_default();
        Ok(Lags((0..=LAG_BOUNDS_MS.len()).map(count).collect()))
    }

    /// What was confirmed since, as soon as that is at least so much.
    pub(crate) fn lags_since(&self, router: &str, earlier: &Lags, count: u64) -> Result<Lags> {
        wait_for("the keeper has told its lags", Duration::from_secs(30), || {
            let lags = self.lags(router)?.since(earlier);
            Ok((lags.0.iter().sum::<u64>() >= count).then_some(lags))
        })
    }

    /// How late its timing loop was at worst since its start.
    pub(crate) fn worst_lateness_ms(&self) -> Result<f64> {
        let view = self.view()?;
        view["keeper"]["worst_lateness_us"].as_f64().map(|us| us / 1e3).context("no lateness is shown")
    }

    /// Connections in a namespace of the host.
    pub(crate) fn tracked(&self, netns: &str) -> Result<u64> {
        self.shell(&format!("ip netns exec {netns} conntrack -C"))?.trim().parse().context("a number of connections")
    }
}

/// Connections in a namespace of this machine.
pub(crate) fn tracked(netns: &str) -> Result<u64> {
    let out = Command::new("ip").args(["netns", "exec", netns, "conntrack", "-C"]).output().context("conntrack")?;
    String::from_utf8_lossy(&out.stdout).trim().parse().context("a number of connections")
}

pub(crate) fn process_seconds(pid: u32) -> Result<f64> {
    stat_seconds(&std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a process's times")?)
}

pub(crate) fn process_pss(pid: u32) -> Result<f64> {
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
