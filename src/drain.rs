//! `evergate drain HOST` and `undrain HOST`: every router leaves a host, before it is worked on, and may return.
//!
//! A drained host is one whose L3 agent is disabled, in Neutron's words; so the store remembers it, no restart
//! brings a router back, and nothing new is placed there. The host is told, as of any change; its keeper hands every
//! active copy over before it lets go of it. This verb only asks for that, waits, and tells how far it is: ended
//! half-way and started again, it goes on where it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::cloud::{Api, CloudArgs};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Moves every router away from a host, without losing a packet of those that have another copy.
#[derive(Clone, Debug, Args)]
pub(crate) struct DrainArgs {
    /// The host's name, as `openstack network agent list` shows it.
    host: String,
    /// Seconds to wait for the last router to leave; the host stays disabled all the same.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Which cloud.
    #[command(flatten)]
    cloud: CloudArgs,
}

/// Lets routers return to a host. They return as standbys: nothing moves.
#[derive(Clone, Debug, Args)]
pub(crate) struct UndrainArgs {
    /// The host's name.
    host: String,
    /// Which cloud.
    #[command(flatten)]
    cloud: CloudArgs,
}

/// Runs `drain`.
pub(crate) fn drain(args: &DrainArgs) -> Result<()> {
    let api = args.cloud.open()?;
    let agent = agent(&api, &args.host)?;
    ensure!(agent["alive"] == true, "{} is not alive: its routers have moved already, or cannot be moved", args.host);
    let id = id(&agent)?;
    let routers = api.get(&format!("/v2.0/agents/{id}/l3-routers"))?;
    let routers = routers["routers"].as_array().cloned().unwrap_or_default();
    let (ha, single): (Vec<_>, Vec<_>) = routers.iter().partition(|router| router["ha"] == true);
    for router in single {
        println!("router {} has no other copy: it is away until {} is undrained", router["id"], args.host);
    }
    let ids: Vec<&str> = ha.iter().filter_map(|router| router["id"].as_str()).collect();
    set_enabled(&api, id, false)?;
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let mut said = None;
    loop {
        let left = active_on(&api, &ids, &args.host)?;
        if said != Some(left.len()) {
            println!("{} of {} routers are still active on {}", left.len(), ids.len(), args.host);
            said = Some(left.len());
        }
        let agent = self::agent(&api, &args.host)?;
        let heard = agent["heartbeat_timestamp"].as_str().unwrap_or("an unknown time");
        // Of a host that is not heard nothing counts as active, whatever it does.
        ensure!(
            agent["alive"] == true,
            "{} is not alive any more, and reported last at {heard} (UTC): look there whether its routers have moved",
            args.host,
        );
        if left.is_empty() {
            println!("{} is drained", args.host);
            return Ok(());
        }
        if Instant::now() > end {
            bail!(
                "these routers are still active on {}: {}; has each another copy that lives, and does control run on \
                 {}, which reported last at {heard} (UTC)?",
                args.host,
                left.join(", "),
                args.host,
            );
        }
        std::thread::sleep(LOOK);
    }
}

/// Runs `undrain`.
pub(crate) fn undrain(args: &UndrainArgs) -> Result<()> {
    let api = args.cloud.open()?;
    set_enabled(&api, id(&agent(&api, &args.host)?)?, true)?;
    println!("{} takes part again", args.host);
    Ok(())
}

fn agent(api: &Api, host: &str) -> Result<Value> {
    let found = api.get("/v2.0/agents")?;
    let agents = found["agents"].as_array().context("the API lists no agents; is this an admin's cloud?")?;
    let is_it = |agent: &&Value| agent["host"] == host && agent["agent_type"] == "L3 agent";
    agents.iter().find(is_it).cloned().with_context(|| format!("no L3 agent runs on a host named {host}"))
}

fn id(agent: &Value) -> Result<&str> {
    agent["id"].as_str().context("the API shows an agent without an id")
}

fn set_enabled(api: &Api, agent: &str, enabled: bool) -> Result<()> {
    api.put(&format!("/v2.0/agents/{agent}"), &json!({"agent": {"admin_state_up": enabled}})).map(drop)
}

/// The routers whose active copy is on the host.
fn active_on<'a>(api: &Api, routers: &[&'a str], host: &str) -> Result<Vec<&'a str>> {
    let mut active = Vec::new();
    for router in routers {
        let agents = api.get(&format!("/v2.0/routers/{router}/l3-agents"))?;
        let copies = agents["agents"].as_array().cloned().unwrap_or_default();
        if copies.iter().any(|copy| copy["host"] == host && copy["ha_state"] == "active") {
            active.push(*router);
        }
    }
    Ok(active)
}
