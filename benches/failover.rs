//! The gap that a 5 ms probe sees when the active host loses power, or is stopped, beside a stock keepalived pair.
//!
//! Both run the same version of VRRP with equal priorities and the same interval (version 3 below a second), both move
//! addresses the way Neutron configures them, and both are hit the same way: links down, processes killed; or told to
//! stop. The pair has two members where the lab has three hosts. Run it with `make bench`; `EVERGATE_BENCH_MS=100,10`
//! and `EVERGATE_BENCH_BFD=50` make it shorter, `EVERGATE_TIMES=10` more exact.

#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use anyhow::Result;
use evergate_lab::fault::{Daemon, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Fault, Spec};
use support::Bench;
use support::pair::{self, Ending};

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(5);

fn main() -> Result<()> {
    support::wait_if_asked();
    pair::echo_if_asked()?;
    let times = support::number("EVERGATE_TIMES", 3)?;
    println!("failover, end of the active, 5 ms probe, {times} times each (gap: min / median / max ms)");
    for ms in support::numbers::<u16>("EVERGATE_BENCH_MS", &[2000, 1000, 100, 10])? {
        let interval = Duration::from_millis(ms.into());
        let bench = lab(|spec| match ms {
            1000.. => Spec { advert_int: Some((ms / 1000) as u8), bfd_interval_ms: Some(0), ..spec },
            _ => Spec { vrrp3_interval_ms: Some(ms), bfd_interval_ms: Some(0), ..spec },
        })?;
        for (ending, what) in [(Ending::Power, "power-off"), (Ending::Stop, "clean stop")] {
            let ours = support::figures(&gaps(&bench, ending, false, times)?);
            let theirs = support::figures(&pair::measure(interval, ending, times)?);
            println!("  VRRP alone, {ms} ms interval, {what}   evergate {ours}   keepalived {theirs}");
        }
    }
    // 0 stands for the default.
    for bfd in support::numbers("EVERGATE_BENCH_BFD", &[0, 50, 10])? {
        let bfd = (bfd > 0).then_some(bfd);
        let interval = bfd.map_or("default".to_owned(), |ms| format!("{ms} ms"));
        let bench = lab(|spec| Spec { advert_int: Some(2), bfd_interval_ms: bfd, ..spec })?;
        for (ending, what) in [(Ending::Power, "power-off"), (Ending::Stop, "clean stop")] {
            println!(
                "  BFD, {interval} interval, {what}   evergate {}",
                support::figures(&gaps(&bench, ending, true, times)?)
            );
        }
    }
    Ok(())
}

/// A lab with one router that works.
fn lab(change: impl FnOnce(Spec) -> Spec) -> Result<(Bench, String)> {
    let bench = Bench::up_with("failover", change)?;
    let waiting = bench.first_answer()?;
    let router = bench.create_router()?;
    waiting.wait()?;
    Ok((bench, router))
}

fn gaps((bench, router): &(Bench, String), ending: Ending, bfd: bool, times: usize) -> Result<Vec<f64>> {
    let mut gaps = Vec::new();
    while gaps.len() < times {
        if bfd {
            bench.wait_bfd()?;
        }
        // A probe that was started too late to get an answer before the fault saw no gap, and proves nothing.
        gaps.extend(one_gap(bench, router, ending)?);
    }
    Ok(gaps)
}

fn one_gap(bench: &Bench, router: &str, ending: Ending) -> Result<Option<f64>> {
    let patience = Duration::from_secs(30);
    let active = evergate_lab::wait_for("one copy is active", patience, || bench.active(router))?;
    let fault = match ending {
        Ending::Power => Fault::Power,
        Ending::Stop => Fault::Process(Daemon::Host, Signal::Term),
    };
    let probe = Running::start(&bench.lab, "vm1", PACE)?;
    bench.first_answer()?.wait()?;
    bench.lab.fail(active, fault.clone())?;
    let elsewhere = || Ok(bench.active(router)?.filter(|now| *now != active));
    evergate_lab::wait_for("another copy is active", patience, elsewhere)?;
    bench.first_answer()?.wait()?;
    let report = probe.finish()?;
    bench.lab.heal(active, &fault)?;
    bench.lab.wait_hosts_alive(&[active])?;
    Ok(pair::seen(&report, ending))
}
