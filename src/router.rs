//! `evergate router move R --to HOST`: one HA router's active copy goes to another host.
//!
//! The wish is written to the router (`evergate:move_to`) and stands until the role is there, so nothing is lost if
//! this verb, the server or the active host is interrupted. The active copy hands over when the wanted one lives and
//! holds all connections.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cloud::{Api, CloudArgs};

/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(200);

/// Acts on one router.
#[derive(Clone, Debug, Args)]
pub(crate) struct RouterArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Move an HA router's active copy to another host that has one, without losing a packet.
    Move(MoveArgs),
}

#[derive(Clone, Debug, Args)]
struct MoveArgs {
    /// The router's name or id.
    router: String,
    /// The host's name.
    #[arg(long, value_name = "HOST")]
    to: String,
    /// Seconds to wait; then the wish is taken back.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Which cloud.
    #[command(flatten)]
    cloud: CloudArgs,
}

/// Runs `router`.
pub(crate) fn run(args: &RouterArgs) -> Result<()> {
    match &args.verb {
        Verb::Move(args) => r#move(args),
    }
}

fn r#move(args: &MoveArgs) -> Result<()> {
    let api = args.cloud.open()?;
    let id = find(&api, &args.router)?;
    wish(&api, &id, &json!(args.to))?;
    let end = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let active = active_at(&api, &id)?;
        if active.as_deref() == Some(args.to.as_str()) {
            println!("{} is active on {}", args.router, args.to);
            return Ok(());
        }
        if Instant::now() > end {
            wish(&api, &id, &Value::Null)?;
            let at = active.map_or_else(|| "on no host".to_owned(), |host| format!("on {host}"));
            bail!("{} is still active {at}; does {} live, and hold its connections?", args.router, args.to);
        }
        std::thread::sleep(LOOK);
    }
}

fn wish(api: &Api, router: &str, host: &Value) -> Result<()> {
    api.put(&format!("/v2.0/routers/{router}"), &json!({"router": {"evergate:move_to": host}})).map(drop)
}

/// The id of a router that is given by id or name.
fn find(api: &Api, router: &str) -> Result<String> {
    let found = api.get("/v2.0/routers")?;
    let routers = found["routers"].as_array().context("the API lists no routers")?;
    let named: Vec<&Value> = routers.iter().filter(|one| one["id"] == router || one["name"] == router).collect();
    match named.as_slice() {
        [one] => one["id"].as_str().map(ToOwned::to_owned).context("the API shows a router without an id"),
        [] => bail!("there is no router {router}"),
        several => bail!("{} routers are named {router}; give an id", several.len()),
    }
}

fn active_at(api: &Api, router: &str) -> Result<Option<String>> {
    let agents = api.get(&format!("/v2.0/routers/{router}/l3-agents"))?;
    let copies = agents["agents"].as_array().cloned().unwrap_or_default();
    let active = copies.iter().find(|copy| copy["ha_state"] == "active");
    Ok(active.and_then(|copy| copy["host"].as_str()).map(ToOwned::to_owned))
}
