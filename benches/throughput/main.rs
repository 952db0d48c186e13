//! Throughput and datagrams per second through Evergate's data plane, as ratios to the same paths made of
//! plain kernel objects.
//!
//! *North-south*: an instance on a compute host, an HA router's source NAT on a network host, a server
//! outside. *East-west*: two instances of two networks of a distributed router on two compute hosts. Ours
//! and the plain path take turns; the ratio is that of each turn. Run it with `make bench`.

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

fn main() -> Result<()> {
    support::wait_if_asked();
    traffic::run_if_asked()?;
    let bench = Bench::up_as(Profile::DvrHa, "throughput", None, None)?;
    let neighbour = neighbours(&bench)?;
    let plain = Plain::up()?;
    println!("throughput, {TURNS} turns each (ours and plain: median; ratio ours / plain: min / median / max)");
    let here = || std::env::current_exe().context("own path");
    let ours = Path {
        receiver: Receiver::start(bench.lab.machine(Node::Web).command(here()?)?)?,
        sender: &|| bench.lab.instance_command("vm1", here()?),
        to: WEB,
    };
    let theirs = Path { receiver: Receiver::start(plain.own("web")?)?, sender: &|| plain.own("vm"), to: plain::WEB };
    compare("north-south", ours, theirs)?;
    let ours = Path {
        receiver: Receiver::start(bench.lab.instance_command("vm2", here()?)?)?,
        sender: &|| bench.lab.instance_command("vm1", here()?),
        to: neighbour,
    };
    let theirs =
        Path { receiver: Receiver::start(plain.own("vm2")?)?, sender: &|| plain.own("vm"), to: plain::NEIGHBOUR };
    compare("east-west", ours, theirs)
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
    to: Ipv4Addr,
}

fn compare(name: &str, mut ours: Path<'_>, mut theirs: Path<'_>) -> Result<()> {
    for (kind, unit, scale) in [(Kind::Tcp, "Gbit/s", 1e9), (Kind::Udp, "kpackets/s", 1e3)] {
        let (mut mine, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let a = ours.receiver.rate((ours.sender)()?, kind, ours.to)?;
            let b = theirs.receiver.rate((theirs.sender)()?, kind, theirs.to)?;
            mine.push(a / scale);
            plain.push(b / scale);
            ratios.push(a / b);
        }
        let [low, middle, high] = spread(&mut ratios);
        let ([_, a, _], [_, b, _]) = (spread(&mut mine), spread(&mut plain));
        println!(
            "  {name:12} {kind:?}  ours {a:.2} {unit}  plain {b:.2} {unit}  ratio {low:.2} / {middle:.2} / {high:.2}"
        );
    }
    Ok(())
}

fn spread(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
