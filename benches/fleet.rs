//! Failover of one distributed HA router, and of many at once, as instances on several of many compute hosts see it.
//!
//! All active copies are on one gateway host, which loses its power; the others follow by claims. Of the many
//! routers, some have an instance that probes the outside every 5 ms: the first, the last, and some between, each
//! on a compute host of its own. The first router has a port on every compute host, the others on two. In the
//! last round of each kind the server is stopped.
//!
//! Run it with `make bench`. These make it shorter: `EVERGATE_HOSTS` (compute hosts), `EVERGATE_GATEWAYS`,
//! `EVERGATE_ROUTERS` (a list of numbers of routers), `EVERGATE_TIMES`, `EVERGATE_BFD` (a list of intervals in
//! milliseconds; 0 is VRRP alone).

#[allow(dead_code, reason = "each measurement uses a part")]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::probe::Running;
use evergate_lab::{Node, Profile, Spec, wait_for};
use serde_json::{Value, json};
use support::Bench;

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(5);
/// Routers with an instance.
const PROBES: usize = 8;
/// Whatever is waited for with hundreds of routers on two processors.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    support::wait_if_asked();
    let compute_hosts = support::number("EVERGATE_HOSTS", 50)?;
    let network_hosts = support::number("EVERGATE_GATEWAYS", 2)?;
    let (routers, times) = (support::numbers("EVERGATE_ROUTERS", &[1, 500])?, support::number("EVERGATE_TIMES", 3)?);
    println!("failover with {compute_hosts} compute hosts, {network_hosts} gateway hosts, {times} times each");
    println!("routers  probed by  gap: min / median / max ms  server stopped: the same  ready after s  MiB in use");
    for bfd in support::numbers("EVERGATE_BFD", &[0, 150])? {
        println!("{}", if bfd == 0 { "VRRP alone, 2 s interval".to_owned() } else { format!("BFD at {bfd} ms x 3") });
        let before = memory_in_use()?;
        let mut fleet = Fleet::up(network_hosts, compute_hosts, bfd)?;
        for count in &routers {
            let start = Instant::now();
            fleet.grow(*count)?;
            let ready = start.elapsed().as_secs_f64();
            let memory = (memory_in_use()? - before) / 1024;
            let mut gaps = [Vec::new(), Vec::new()];
            for round in 1..=times {
                let without_server = round == times;
                gaps[usize::from(without_server)].extend(fleet.gaps(without_server)?);
            }
            let [with, without] = gaps.map(|gaps| support::figures(&gaps));
            println!("{count:7}  {:9}  {with:>27}  {without:>24}  {ready:13.0}  {memory:10}", fleet.instances.len());
        }
    }
    Ok(())
}

fn memory_in_use() -> Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    let line = |name: &str| -> Option<i64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Ok(line("MemTotal:").context("MemTotal")? - line("MemAvailable:").context("MemAvailable")?)
}

/// Distributed HA routers, each with a network of its own.
struct Fleet {
    bench: Bench,
    external: String,
    routers: usize,
    instances: Vec<String>,
}

impl Fleet {
    fn up(network_hosts: u16, compute_hosts: u16, bfd: u16) -> Result<Self> {
        let bench = Bench::bare("fleet", |spec| {
            let bfd_interval_ms = Some(bfd);
            Spec { profile: Profile::DvrHa, network_hosts, compute_hosts, bfd_interval_ms, ..spec }
        })?;
        // Room for more routers than the lab's usual network has addresses.
        bench.lab.machine(Node::Outside).shell("ip address add 203.0.113.254/21 dev eth0")?;
        let external = bench.create(
            "network",
            json!({
                "name": "external", "router:external": true,
                "provider:network_type": "flat", "provider:physical_network": "external"
            }),
        )?;
        let pool = json!([{"start": "203.0.114.1", "end": "203.0.119.250"}]);
        let subnet = json!({
            "network_id": external, "ip_version": 4, "cidr": "203.0.112.0/21", "gateway_ip": "203.0.113.254",
            "enable_dhcp": false, "allocation_pools": pool,
        });
        bench.create("subnet", subnet)?;
        Ok(Self { bench, external, routers: 0, instances: Vec::new() })
    }

    /// Makes routers until there are this many, and waits until one gateway host serves them all.
    fn grow(&mut self, count: usize) -> Result<()> {
        while self.routers < count {
            self.add_router(count)?;
        }
        for gateway in self.gateways() {
            wait_for(&format!("{gateway} has a copy of every router"), PATIENCE, || {
                let there = self.bench.lab.machine(gateway).shell("ls /run/netns | grep -c snat- || true")?;
                Ok((there.trim() == count.to_string()).then_some(()))
            })?;
        }
        let [first, others @ ..] = &self.gateways()[..] else { bail!("no gateway host") };
        for other in others {
            self.bench.drain(*other)?;
        }
        wait_for(&format!("{first} serves every router"), PATIENCE, || {
            Ok((self.with_role("active", *first)? == count).then_some(()))
        })?;
        others.iter().try_for_each(|other| self.bench.undrain(*other))?;
        self.instances.iter().try_for_each(|instance| self.bench.first_answer_from(instance)?.wait().map(drop))
    }

    fn add_router(&mut self, count: usize) -> Result<()> {
        let (bench, number) = (&self.bench, self.routers);
        let network = bench.create("network", json!({"name": format!("net{number}")}))?;
        let subnet = json!({"network_id": network, "ip_version": 4, "cidr": "10.0.0.0/24"});
        let subnet = bench.create("subnet", subnet)?;
        let gateway = json!({"network_id": self.external});
        let router = json!({"ha": true, "distributed": true, "external_gateway_info": gateway});
        let router = bench.create("router", router)?;
        let path = format!("/v2.0/routers/{router}/add_router_interface");
        bench.lab.api_ok("PUT", &path, Some(&json!({"subnet_id": subnet})))?;
        let hosts = usize::from(bench.lab.spec().compute_hosts);
        let ports: Vec<usize> =
            if number == 0 { (0..hosts).collect() } else { vec![number % hosts, (number + 1) % hosts] };
        let is_probed = number == 0 || number + 1 == count || number.is_multiple_of((count / PROBES).max(1));
        for (nth, host) in ports.into_iter().enumerate() {
            let port = json!({"network_id": network, "binding:host_id": format!("cmp{}", host + 1)});
            let port = bench.create("port", port)?;
            // Of the first router on several hosts.
            let is_instance = if number == 0 { nth < PROBES } else { nth == 0 && is_probed };
            if is_instance {
                let name = format!("vm{number}x{nth}");
                bench.lab.add_instance(&name, &port, Node::Compute(host as u16 + 1))?;
                self.instances.push(name);
            }
        }
        self.routers += 1;
        Ok(())
    }

    fn gateways(&self) -> Vec<Node> {
        (1..=self.bench.lab.spec().network_hosts).map(Node::Network).collect()
    }

    /// How many routers a gateway host has this role for; none where it is off.
    fn with_role(&self, role: &str, gateway: Node) -> Result<usize> {
        let machine = self.bench.lab.machine(gateway);
        if !machine.is_on() {
            return Ok(0);
        }
        let shown: Value = serde_json::from_str(&machine.shell("evergate show --json")?).context("what it shows")?;
        let routers = shown["routers"].as_object().context("no routers are shown")?;
        Ok(routers.values().filter(|router| router["role"] == role).count())
    }

    /// Powers the gateway host off that serves all routers; what each instance saw of it.
    fn gaps(&self, without_server: bool) -> Result<Vec<f64>> {
        // A copy that does not take part yet, as after an undrain or a boot, has nothing to take over.
        let active = wait_for("one gateway host serves every router, the others stand by", PATIENCE, || {
            let mut active = None;
            for gateway in self.gateways() {
                if self.with_role("active", gateway)? == self.routers {
                    active = Some(gateway);
                } else if self.with_role("standby", gateway)? != self.routers {
                    return Ok(None);
                }
            }
            Ok(active)
        })?;
        self.wait_heard()?;
        let lab = &self.bench.lab;
        let probes: Vec<Running> =
            self.instances.iter().map(|name| Running::start(lab, name, PACE)).collect::<Result<_>>()?;
        self.wait_answers()?;
        if without_server {
            lab.fail(Node::Controller, Fault::Process(Daemon::Server, Signal::Stop))?;
        }
        lab.fail(active, Fault::Power)?;
        self.wait_answers()?;
        let reports = probes.into_iter().map(Running::finish).collect::<Result<Vec<_>>>()?;
        if without_server {
            lab.heal(Node::Controller, &Fault::Process(Daemon::Server, Signal::Stop))?;
        }
        lab.heal(active, &Fault::Power)?;
        lab.wait_hosts_alive(&[active])?;
        wait_for(&format!("{active} has a copy of every router again"), PATIENCE, || {
            let there = lab.machine(active).shell("ls /run/netns | grep -c snat- || true")?;
            Ok((there.trim() == self.routers.to_string()).then_some(()))
        })?;
        Ok(reports.iter().filter(|report| !report.gaps.is_empty()).map(|report| report.longest_gap_ms()).collect())
    }

    /// Waits until every gateway host hears the others by BFD, where it is spoken.
    fn wait_heard(&self) -> Result<()> {
        let spec = self.bench.lab.spec();
        if spec.bfd_interval_ms == Some(0) {
            return Ok(());
        }
        let others = (spec.network_hosts - 1).to_string();
        for gateway in self.gateways() {
            let machine = self.bench.lab.machine(gateway);
            wait_for(&format!("{gateway} hears the others"), PATIENCE, || {
                let up = machine.shell("evergate show | grep -c 'BFD.*: up' || true")?;
                Ok((up.trim() == others).then_some(()))
            })?;
        }
        Ok(())
    }

    fn wait_answers(&self) -> Result<()> {
        let waiting: Vec<_> =
            self.instances.iter().map(|name| self.bench.first_answer_from(name)).collect::<Result<_>>()?;
        waiting.into_iter().try_for_each(|one| one.wait().map(drop))
    }
}
