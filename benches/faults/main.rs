//! What each kind of fault costs: the longest gap that a 5 ms probe sees from an instance through source
//! NAT, and how many of a thousand connections are broken; at the default settings and at the fastest,
//! beside a keepalived and conntrackd pair that loses its master's power in the same run.
//!
//! Run it with `make bench`; `EVERGATE_BENCH_FAULTS=drain` takes only what has that in its name,
//! `EVERGATE_BENCH_BFD=10` only that interval (0 stands for the default), and `EVERGATE_TIMES=10` makes it more exact.

#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use anyhow::Result;
use evergate_lab::fault::{Daemon, Signal};
use evergate_lab::flows::End;
use evergate_lab::probe::Running;
use evergate_lab::spec::Link;
use evergate_lab::{Fault, Node, wait_for};
use evergate_model::RouterId;
use support::pair::{self, Ending};
use support::{Bench, figures};

const CONNECTIONS: usize = 1_000;
/// The kind of fault that the pair has, too.
const POWER_OFF: &str = "host power-off";
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two datagrams.
const PACE: Duration = Duration::from_millis(5);

/// What happens to the active host.
#[derive(Clone)]
enum Event {
    /// A fault of the lab's.
    Fault(&'static str, Fault),
    /// `evergate drain`, then `undrain`.
    Drain,
}

fn main() -> Result<()> {
    support::wait_if_asked();
    pair::echo_if_asked()?;
    let times = support::number("EVERGATE_TIMES", 3)?;
    println!("{CONNECTIONS} connections and a 5 ms probe through source NAT, {times} times each");
    println!("(gap: min / median / max ms; connections: what worked afterwards, each time)");
    let only = std::env::var("EVERGATE_BENCH_FAULTS").unwrap_or_default();
    for bfd in support::numbers("EVERGATE_BENCH_BFD", &[0, 10])? {
        let bfd = (bfd > 0).then_some(bfd);
        let settings = bfd.map_or("default".to_owned(), |ms| format!("BFD {ms} ms x 3"));
        let bench = Bench::up("faults", None, bfd)?;
        let waiting = bench.first_answer()?;
        let router = bench.create_router()?;
        waiting.wait()?;
        for event in events().into_iter().filter(|event| event.name().contains(&only)) {
            one_kind(&bench, &router, &settings, &event, times)?;
        }
    }
    if !POWER_OFF.contains(&only) {
        return Ok(());
    }
    let mut damage = Vec::new();
    while damage.len() < times {
        damage.extend(pair::power_off(Duration::from_secs(1), CONNECTIONS)?);
    }
    let gaps: Vec<f64> = damage.iter().map(|damage| damage.gap_ms).collect();
    let words: Vec<&str> = damage.iter().map(|damage| damage.connections.as_str()).collect();
    println!("  keepalived + conntrackd, 1 s  host power-off     gap {}   {}", figures(&gaps), words.join("; "));
    Ok(())
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Fault(name, _) => name,
            Self::Drain => "drain",
        }
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::Fault(POWER_OFF, Fault::Power),
        Event::Fault("underlay link cut", Fault::Cut(Link::Underlay)),
        Event::Fault("keeper killed", Fault::Process(Daemon::Keeper, Signal::Kill)),
        Event::Fault("control killed", Fault::Process(Daemon::Control, Signal::Kill)),
        Event::Drain,
    ]
}

fn one_kind(bench: &Bench, router: &str, settings: &str, event: &Event, times: usize) -> Result<()> {
    let (mut gaps, mut words) = (Vec::new(), Vec::new());
    while gaps.len() < times {
        // A probe that was started too late to get an answer before a power-off saw no gap, and proves nothing.
        let (Some(gap), connections) = once(bench, router, event)? else { continue };
        gaps.push(gap);
        words.push(connections);
    }
    println!("  {settings:14} {:18} gap {}   {}", event.name(), figures(&gaps), words.join("; "));
    Ok(())
}

fn pids(bench: &Bench, node: Node, daemon: Daemon) -> Vec<u32> {
    bench.lab.machine(node).daemons(daemon).iter().map(|process| process.pid).collect()
}

fn once(bench: &Bench, router: &str, event: &Event) -> Result<(Option<f64>, String)> {
    bench.wait_bfd()?;
    let id: RouterId = router.parse()?;
    let active = wait_for("one copy is active", PATIENCE, || bench.active(router))?;
    let mut server = End::start(bench.lab.machine(Node::Web).command("python3")?, &["serve", "9000"])?;
    server.says()?;
    let args = ["connect", "198.51.100.10", "9000", &CONNECTIONS.to_string()];
    let mut client = End::start(bench.lab.instance_command("vm1", "python3")?, &args)?;
    client.says()?;
    for node in bench.lab.hosts_of(id).into_iter().filter(|node| *node != active) {
        wait_for("the standby has all", PATIENCE, || bench.tracks(node, id, CONNECTIONS))?;
    }
    let probe = Running::start(&bench.lab, "vm1", PACE)?;
    bench.first_answer()?.wait()?;
    match event {
        Event::Fault(_, fault) => {
            let killed = match fault {
                Fault::Process(daemon, _) => pids(bench, active, *daemon),
                Fault::Power | Fault::Cut(_) | Fault::Between(_) | Fault::Ha(_) | Fault::Loss(..) => Vec::new(),
            };
            bench.lab.fail(active, fault.clone())?;
            if let Fault::Process(daemon, _) = fault {
                wait_for("the killed daemon's successor", PATIENCE, || {
                    Ok(pids(bench, active, *daemon).iter().any(|pid| !killed.contains(pid)).then_some(()))
                })?;
                // Whoever would have taken the role by mistake has done so when all hear each other again.
                bench.wait_bfd()?;
            }
        }
        Event::Drain => bench.drain(active)?,
    }
    bench.first_answer()?.wait()?;
    for end in [&mut server, &mut client] {
        end.go()?;
    }
    server.says()?;
    let connections = client.says()?;
    let ending = if matches!(event, Event::Fault(_, Fault::Power)) { Ending::Power } else { Ending::Stop };
    let gap = pair::seen(&probe.finish()?, ending);
    match event {
        Event::Fault(_, fault @ (Fault::Power | Fault::Cut(_))) => bench.lab.heal(active, fault)?,
        Event::Fault(..) => {}
        Event::Drain => bench.undrain(active)?,
    }
    bench.lab.wait_hosts_alive(&[active])?;
    Ok((gap, connections))
}
