//! Throughput and datagrams per second through Evergate's data plane, as ratios to the same paths made of
//! plain kernel objects.
//!
//! *North-south*: an instance on a compute host, a distributed HA router's source NAT on a network host, a server
//! outside. *East-west*: two instances of two networks of the router on two compute hosts. Ours and the plain
//! paths take turns; the ratio is that of each turn. North-south, ours has a router on the instance's host and one
//! on the gateway's; of the plain paths one has a router on the gateway host alone, and one has both. Run it
//! with `make bench`; `EVERGATE_TURNS` makes it shorter or longer.

mod plain;
#[allow(dead_code, reason = "each measurement uses a part")]
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result};
use evergate_lab::spec::WEB;
use evergate_lab::{Node, Profile};
use plain::Plain;
use serde_json::json;
use support::Bench;
use traffic::{Kind, Receiver};

const TURNS: usize = 7;

fn turns() -> Result<usize> {
    std::env::var("EVERGATE_TURNS").map_or(Ok(TURNS), |text| text.parse().context("EVERGATE_TURNS"))
}

fn main() -> Result<()> {
    support::wait_if_asked();
    traffic::run_if_asked()?;
    let bench = Bench::up_as(Profile::DvrHa, "throughput", None, None)?;
    let neighbour = neighbours(&bench)?;
    let plain = Plain::up()?;
    let turns = turns()?;
    println!("throughput, {turns} turns each (ours and plain: median; ratio ours / plain: min / median / max)");
    let here = || std::env::current_exe().context("own path");
    let ours = Path {
        receiver: Receiver::start(bench.lab.machine(Node::Web).command(here()?)?)?,
        sender: &|| bench.lab.instance_command("vm1", here()?),
        to: vec![("ours", WEB)],
    };
    let theirs = Path {
        receiver: Receiver::start(plain.own("web")?)?,
        sender: &|| plain.own("vm"),
        to: vec![("plain", plain::WEB), ("plain with two routers", plain::WEB_ROUTED_TWICE)],
    };
    compare("north-south", turns, ours, theirs)?;
    let ours = Path {
        receiver: Receiver::start(bench.lab.instance_command("vm2", here()?)?)?,
        sender: &|| bench.lab.instance_command("vm1", here()?),
        to: vec![("ours", neighbour)],
    };
    let theirs = Path {
        receiver: Receiver::start(plain.own("vm2")?)?,
        sender: &|| plain.own("vm"),
        to: vec![("plain", plain::NEIGHBOUR)],
    };
    compare("east-west", turns, ours, theirs)
}

/// Makes a distributed HA router between two networks, with an instance on another host in the second;
/// returns that one's address.
fn neighbours(bench: &Bench) -> Result<Ipv4Addr> {
    let waiting = bench.first_answer()?;
    let external = bench.find("network", "external")?;
    let router = bench.create(
        "router",
        json!({"name": "r1", "ha": true, "distributed": true, "external_gateway_info": {"network_id": external}}),
    )?;
    let network = bench.create("network", json!({"name": "net2"}))?;
    bench.create("subnet", json!({"name": "net2", "network_id": network, "ip_version": 4, "cidr": "10.0.1.0/24"}))?;
    for subnet in ["net1", "net2"] {
        let path = format!("/v2.0/routers/{router}/add_router_interface");
        bench.lab.api_ok("PUT", &path, Some(&json!({"subnet_id": bench.find("subnet", subnet)?})))?;
    }
    let port = bench.create("port", json!({"network_id": network}))?;
    let instance = bench.lab.add_instance("vm2", &port, Node::Compute(2))?;
    waiting.wait()?;
    let address = instance.address.split('/').next().unwrap_or_default();
    address.parse().context("the address of vm2")
}

struct Path<'a> {
    receiver: Receiver,
    sender: &'a dyn Fn() -> Result<Command>,
    /// The receiver's addresses, and what the way to each is called.
    to: Vec<(&'static str, Ipv4Addr)>,
}

fn compare<'a>(name: &str, turns: usize, mut ours: Path<'a>, mut theirs: Path<'a>) -> Result<()> {
    for (kind, unit, scale) in [(Kind::Tcp, "Gbit/s", 1e9), (Kind::Udp, "kpackets/s", 1e3)] {
        let mut rates: Vec<Vec<f64>> = Vec::new();
        for _ in 0..turns {
            let mut turn = Vec::new();
            for path in [&mut ours, &mut theirs] {
                for (_, to) in &path.to {
                    turn.push(path.receiver.rate((path.sender)()?, kind, *to)? / scale);
                }
            }
            rates.push(turn);
        }
        let column = |number: usize| spread(rates.iter().map(|turn| turn[number]));
        println!("  {name:12} {kind:?}  ours {:.2} {unit}", column(0)[1]);
        for (number, (plain, _)) in (1..).zip(&theirs.to) {
            let [low, middle, high] = spread(rates.iter().map(|turn| turn[0] / turn[number]));
            println!("    {plain} {:.2} {unit}  ratio {low:.2} / {middle:.2} / {high:.2}", column(number)[1]);
        }
    }
    Ok(())
}

fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
