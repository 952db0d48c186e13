//! Ours: a keeper on each host, told what control would tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use evergate_dataplane::Op;
use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{Address, Netns};
use evergate_keeper::hex;
use evergate_keeper::protocol::{
    Announce, BfdSettings, FromKeeper, Item, PROTOCOL_VERSION, Place, RouterSpec, SOCKET_NAME, Settings, ToKeeper,
};
use evergate_kernel::Kernel;
use evergate_model::{HaState, NetworkId, RouterId};

use crate::meter::{self, Costs};
use crate::wires::{NETNS_PATH, PER_NETWORK, Wires, ha_address, ha_mac, ip, vrid, vtep};
use crate::{Run, setting};

/// Both keepers, with all routers active on side 1. Stopped cleanly, so that nothing is left for the next.
struct Pair<'a> {
    sides: Vec<Keeper>,
    specs: Vec<Vec<RouterSpec>>,
    wires: &'a Wires,
    bfd: BfdSettings,
}

/// What a run costs.
pub(crate) fn measure(run: &Run, wires: &Wires) -> Result<Costs> {
    let pair = Pair::up(run, wires, BfdSettings::default())?;
    let mut costs = meter::measure(run, wires, [&[pair.sides[0].pid()], &[pair.sides[1].pid()]])?;
    costs.spurious = pair.sides[1].active().len();
    pair.down()?;
    Ok(costs)
}

/// Kills the host with all active routers, and tells when the last of them was in place on the other.
pub(crate) fn takeovers(routers: u16, wires: &Wires) -> Result<()> {
    let run = Run { routers, interval_cs: 100, time: Duration::ZERO, burners: 0 };
    let interval_ms = setting("EVERGATE_BENCH_BFD", "50").parse().context("a number of milliseconds")?;
    let times = setting("EVERGATE_BENCH_TAKEOVERS", "2").parse().context("a number of takeovers")?;
    let mut gaps = Vec::new();
    for _ in 0..times {
        let mut pair = Pair::up(&run, wires, BfdSettings { interval_ms, multiplier: 3 })?;
        pair.sides[1].wait_bfd()?;
        pair.sides[1].forget();
        // Nothing has to be started for it, which would take milliseconds.
        let change = LinkChange { up: Some(false), ..LinkChange::default() };
        let cut = [Op::SetLink { netns: Netns::Host, name: "eth0".to_owned(), change }];
        let dead = wires.on(1, |kernel| {
            let now = Instant::now();
            kernel.apply(&cut).into_iter().collect::<Result<(), _>>()?;
            Ok(now)
        })?;
        pair.sides[0].kill();
        pair.sides[1].wait_active(routers)?;
        let at: Vec<(Instant, u64)> = pair.sides[1].takeovers();
        let first = at.iter().map(|(at, took)| *at - Duration::from_micros(*took)).min().context("there are some")?;
        let last = at.iter().map(|(at, _)| *at).max().context("there are some")?;
        println!(
            "takeover of {routers} at once: decided {:.0} ms after the power-off (BFD {interval_ms} ms x 3), all in place and announced {:.0} ms later",
            (first - dead).as_secs_f64() * 1e3,
            (last - first).as_secs_f64() * 1e3
        );
        gaps.push((last - dead).as_secs_f64() * 1e3);
        // The dead host boots, and removes what it had when it hears who has it now.
        ip(&format!("-n {} link set eth0 up", wires.host(1)))?;
        pair.boot_first()?;
        pair.down()?;
    }
    gaps.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (gaps.get(gaps.len() / 2), gaps.last()) {
        println!(
            "takeover of {routers} at once: power-off to the last in place, {median:.0} ms (median), {worst:.0} ms (worst)"
        );
    }
    Ok(())
}

impl<'a> Pair<'a> {
    fn up(run: &Run, wires: &'a Wires, bfd: BfdSettings) -> Result<Self> {
        let mut pair = Self { sides: Vec::new(), specs: Vec::new(), wires, bfd };
        for side in [1, 2] {
            let specs = wires.on(side, |kernel| {
                (0..run.routers).map(|number| spec(wires, kernel, side, number, run)).collect::<Result<Vec<_>>>()
            })?;
            let mut keeper = Keeper::start(wires, side)?;
            keeper.tell(side, &specs, bfd)?;
            if side == 1 {
                keeper.wait_active(run.routers)?;
            }
            pair.sides.push(keeper);
            pair.specs.push(specs);
        }
        pair.sides[1].wait_hearing(run.routers)?;
        Ok(pair)
    }

    fn boot_first(&mut self) -> Result<()> {
        let mut keeper = Keeper::start(self.wires, 1)?;
        keeper.tell(1, &self.specs[0], self.bfd)?;
        keeper.wait_standby()?;
        self.sides[0] = keeper;
        Ok(())
    }

    /// The standby first, so that nothing moves.
    fn down(mut self) -> Result<()> {
        let active = usize::from(self.sides[0].active().is_empty());
        self.sides[1 - active].stop()?;
        self.sides[active].stop()
    }
}

fn spec(wires: &Wires, kernel: &mut Kernel, side: u8, number: u16, run: &Run) -> Result<RouterSpec> {
    let netns = Netns::Named(wires.router(side, number));
    let ha_ifindex = kernel.link_index(&netns, "ha-1")?.context("the HA interface is there")?;
    let vip = format!("169.254.0.{}/24", vrid(number)).parse()?;
    let mut item = |net: ipnet::IpNet| -> Result<Item> {
        let address = Address { link: "ha-1".to_owned(), net };
        let mut encode = |op: Op| -> Result<String> { Ok(hex::encode(&kernel.encode(&op)?)) };
        Ok(Item {
            key: format!("address {net}"),
            place: Place::Router,
            add: encode(Op::AddAddress { netns: netns.clone(), address: address.clone() })?,
            del: encode(Op::DeleteAddress { netns: netns.clone(), address })?,
        })
    };
    let items = vec![item(ipnet::IpNet::V4(vip))?, item("10.0.0.1/24".parse()?)?, item("203.0.113.9/24".parse()?)?];
    let announce = |ip: [u8; 4]| Announce {
        link: "ha-1".to_owned(),
        ifindex: ha_ifindex,
        mac: ha_mac(side, number),
        ip: IpAddr::from(ip),
    };
    let other = 3 - side;
    Ok(RouterSpec {
        router: RouterId::from_u128(u128::from(number) + 1),
        ha_network: NetworkId::from_u128(u128::from(number / PER_NETWORK) + 1),
        netns: wires.router(side, number),
        ha_link: "ha-1".to_owned(),
        ha_ifindex,
        ha_mac: ha_mac(side, number),
        ha_address: ipnet::Ipv4Net::new(ha_address(side, number), 18)?,
        vrid: vrid(number),
        virtual_address: vip,
        vrrp_version: if run.interval_cs < 100 { 3 } else { 2 },
        priority: 50,
        advertise_interval_cs: run.interval_cs,
        preempt: false,
        preempt_delay_s: 0,
        password: None,
        peers: BTreeSet::from([ha_address(other, number)]),
        peer_hosts: BTreeMap::from([(ha_address(other, number), vtep(other))]),
        items,
        announce: vec![announce([203, 0, 113, 9]), announce([10, 0, 0, 1])],
        gateways: Vec::new(),
        uplinks: BTreeSet::new(),
        claim_to: BTreeSet::from([vtep(other)]),
        epoch: 0,
        wish: None,
        new: false,
        inherits: None,
        ready: true,
    })
}

struct Keeper {
    child: Child,
    stream: UnixStream,
    heard: Arc<Mutex<Vec<(Instant, FromKeeper)>>>,
    folder: PathBuf,
}

impl Keeper {
    fn start(wires: &Wires, side: u8) -> Result<Self> {
        let folder = std::env::temp_dir().join(wires.host(side));
        std::fs::create_dir_all(&folder)?;
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &wires.host(side),
            env!("CARGO_BIN_EXE_evergate"),
            "keeper",
            "--netns-path",
            NETNS_PATH,
        ]);
        command.arg("--run-path").arg(&folder).env("EVERGATE_LOG", "error").stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.stdout(Stdio::null()).spawn().context("failed to start a keeper")?;
        let path = folder.join(SOCKET_NAME);
        let stream = evergate_lab::wait_for("the keeper listens", Duration::from_secs(30), || {
            Ok(UnixStream::connect(&path).ok())
        })?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (lines, sink) = (BufReader::new(stream.try_clone()?).lines(), Arc::clone(&heard));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let now = Instant::now();
                if let (Ok(message), Ok(mut heard)) = (serde_json::from_str(&line), sink.lock()) {
                    heard.push((now, message));
                }
            }
        });
        Ok(Self { child, stream, heard, folder })
    }

    fn say(&mut self, message: &ToKeeper) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(self.stream.write_all(&line)?)
    }

    fn tell(&mut self, side: u8, specs: &[RouterSpec], bfd: BfdSettings) -> Result<()> {
        let settings = Settings {
            host: format!("h{side}"),
            vtep: Some(vtep(side)),
            claim_port: 3796,
            claim_key: "00112233".to_owned(),
            replication_port: Some(3797),
            bfd,
            ..Settings::default()
        };
        self.say(&ToKeeper::Hello { version: PROTOCOL_VERSION, settings })?;
        for network in specs.iter().map(|spec| spec.ha_network).collect::<BTreeSet<_>>() {
            self.say(&ToKeeper::Vrids { network, vrids: (1..=PER_NETWORK as u8).collect() })?;
        }
        for spec in specs {
            self.say(&ToKeeper::Router(Box::new(spec.clone())))?;
        }
        self.say(&ToKeeper::EndOfState)
    }

    /// The namespace's helper is replaced by what it runs, so this is the keeper itself.
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(&mut self) -> Result<()> {
        let status =
            Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().context("failed to run kill")?;
        anyhow::ensure!(status.success(), "the keeper has ended");
        self.child.wait().context("failed to wait for a keeper")?;
        Ok(())
    }

    fn forget(&self) {
        if let Ok(mut heard) = self.heard.lock() {
            heard.clear();
        }
    }

    fn takeovers(&self) -> Vec<(Instant, u64)> {
        let heard = self.heard.lock().map(|heard| heard.clone()).unwrap_or_default();
        let active = |(at, message): (Instant, FromKeeper)| match message {
            FromKeeper::Transition(one) if one.state == HaState::Active => Some((at, one.took_us)),
            _ => None,
        };
        heard.into_iter().filter_map(active).collect()
    }

    fn active(&self) -> BTreeSet<RouterId> {
        let heard = self.heard.lock().map(|heard| heard.clone()).unwrap_or_default();
        let active = |(_, message): (Instant, FromKeeper)| match message {
            FromKeeper::Transition(one) if one.state == HaState::Active => Some(one.router),
            _ => None,
        };
        heard.into_iter().filter_map(active).collect()
    }

    fn wait_active(&self, routers: u16) -> Result<()> {
        let all = || Ok((self.active().len() == usize::from(routers)).then_some(()));
        evergate_lab::wait_for("all are active", Duration::from_secs(120), all)
    }

    fn wait_status(&mut self, what: &str, so: impl Fn(&evergate_keeper::protocol::Status) -> bool) -> Result<()> {
        evergate_lab::wait_for(what, Duration::from_secs(120), || {
            self.say(&ToKeeper::Status)?;
            std::thread::sleep(Duration::from_millis(200));
            let heard = self.heard.lock().map(|heard| heard.clone()).unwrap_or_default();
            let last = heard.into_iter().rev().find_map(|(_, message)| match message {
                FromKeeper::Status(status) => Some(status),
                _ => None,
            });
            Ok(last.is_some_and(|status| so(&status)).then_some(()))
        })
    }

    fn wait_hearing(&mut self, routers: u16) -> Result<()> {
        self.wait_status("all backups hear their active", |status| {
            status.routers.len() == usize::from(routers) && status.routers.iter().all(|one| one.received > 0)
        })
    }

    fn wait_standby(&mut self) -> Result<()> {
        self.wait_status("nothing is active any more", |status| {
            status.routers.iter().all(|one| one.state != HaState::Active && one.received > 0)
        })
    }

    fn wait_bfd(&mut self) -> Result<()> {
        self.wait_status("the hosts hear each other", |status| status.bfd.iter().all(|one| one.state == "up"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
