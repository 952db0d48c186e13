//! Three hosts on a virtual clock: control and keeper as they are, kernels in memory, and a test that plays
//! the networks between them and the server.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod common;
mod machine;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    HA_NETWORK, ROUTER, add_ha_router, add_port, base, ip, mac, no_ha, port, port_id, remove_router, settings_with,
};
use evergate_config::HostSettings;
use evergate_dataplane::Netns;
use evergate_hostd::core::{Core, FileJob, Output};
use evergate_hostd::worker::Worker;
use evergate_keeper::engine::effect::{Batch, Effect, Opened, Purpose, SocketRequest};
use evergate_keeper::engine::{Engine, Start};
use evergate_keeper::protocol::FromKeeper;
use evergate_model::host::{ActiveCopy, HaPeer, HostConfig, HostReport, Location};
use evergate_model::{HaState, names};
use machine::FakeMachine;

/// Active_Down_Timer at Neutron's 2 s and priority 50, and a little.
const TAKEOVER: Duration = Duration::from_millis(6900);

/// What host `n` (from 1) of three is told.
fn config_of(n: u8, revision: u64, active: Option<ActiveCopy>) -> HostConfig {
    let mut config = base(revision);
    add_ha_router(&mut config);
    let ports = &mut config.networks.get_mut(&HA_NETWORK).unwrap().ports;
    ports.retain(|id, _| ![port_id(0x10), port_id(0x11)].contains(id));
    for other in 1..=3 {
        let location = if other == n { Location::Local } else { Location::Remote { vtep: vtep(other) } };
        let ha_port = port(0x80 + other, &[&ha_address(other)], location);
        add_port(&mut config, HA_NETWORK, ha_port_id(other), ha_port);
    }
    for network in config.networks.values_mut().filter(|network| !network.peers.is_empty()) {
        network.peers = (1..=3).filter(|other| *other != n).map(vtep).collect();
    }
    let copy = config.routers.get_mut(&ROUTER).unwrap().ha.as_mut().unwrap();
    copy.port_id = ha_port_id(n);
    copy.mac = mac(0x80 + n);
    copy.address = format!("{}/18", ha_address(n)).parse().unwrap();
    copy.epoch = active.map_or(0, |active| active.epoch);
    copy.peers = (1..=3)
        .filter(|other| *other != n)
        .map(|other| {
            let address = ha_address(other).parse().unwrap();
            (format!("network{other}"), HaPeer { address, vtep: Some(vtep(other)) })
        })
        .collect();
    config.active_copies.extend(active.map(|active| (ROUTER, active)));
    config
}

fn ha_address(n: u8) -> String {
    format!("169.254.192.{}", 10 + n)
}

fn ha_port_id(n: u8) -> evergate_model::PortId {
    port_id(0x80 + u128::from(n))
}

fn vtep(n: u8) -> IpAddr {
    ip(&format!("192.0.2.1{n}"))
}

struct Host {
    core: Core,
    worker: Worker<FakeMachine>,
    engine: Engine,
    report: Option<HostReport>,
    transitions: Vec<(HaState, u64)>,
    ops: usize,
    has_power: bool,
}

/// Something on its way between hosts.
enum Packet {
    Frame { from: u8, frame: Vec<u8> },
    Claim { from: u8, to: IpAddr, datagram: Vec<u8> },
    Bfd { from: u8, to: IpAddr, datagram: Vec<u8> },
}

struct Cluster {
    hosts: BTreeMap<u8, Host>,
    packets: VecDeque<Packet>,
    now: Instant,
    /// Frames of the HA network reach nobody.
    ha_is_cut: bool,
    /// BFD's packets pass.
    has_bfd: bool,
    /// The host that reaches no other, and is reached by none.
    cut_off: Option<u8>,
    /// How many may serve at once, whenever all have come to rest.
    may_serve: RangeInclusive<usize>,
    /// VRRP priorities of copies that have another than Neutron's.
    priorities: BTreeMap<u8, u8>,
    revision: u64,
    active: Option<ActiveCopy>,
}

fn host_settings(n: u8) -> HostSettings {
    host_settings_with(n, "")
}

fn host_settings_with(n: u8, lines: &str) -> HostSettings {
    let mut settings = settings_with(Path::new("/nowhere"), lines);
    settings.host = format!("network{n}");
    settings.local_ip = Some(vtep(n));
    settings
}

fn boot(n: u8, cached: Option<HostConfig>, now: Instant) -> Host {
    boot_with(host_settings(n), n.into(), cached, now)
}

fn boot_with(settings: HostSettings, seed: u64, cached: Option<HostConfig>, now: Instant) -> Host {
    let mut machine = FakeMachine::default();
    machine.kernel.add_foreign_link("ext0");
    Host {
        core: Core::new(settings.clone(), 1, cached, now),
        worker: Worker::new(machine, &settings),
        engine: Engine::new(Start { seed, ..Start::default() }, now),
        report: None,
        transitions: Vec::new(),
        ops: 0,
        has_power: true,
    }
}

impl Host {
    /// Another control takes the place of this one; it knows what is cached, and finds everything as it is.
    fn replace_control(&mut self, settings: HostSettings, cached: HostConfig, now: Instant) {
        let machine = std::mem::take(self.worker.machine_mut());
        self.worker = Worker::new(machine, &settings);
        self.core = Core::new(settings, 2, Some(cached), now);
    }

    /// Addresses of the router on this host.
    fn addresses(&mut self) -> Vec<String> {
        let netns = Netns::Named(names::qrouter_namespace(ROUTER));
        let state = self.worker.machine_mut().kernel.state();
        state.netns.get(&netns).map_or_else(Vec::new, |ns| ns.addresses.iter().map(|a| a.net.to_string()).collect())
    }

    fn serves(&mut self) -> bool {
        let addresses = self.addresses();
        let has = |wanted: &str| addresses.iter().any(|address| address == wanted);
        let all = ["169.254.0.7/24", "10.0.0.1/24", "203.0.113.10/24", "203.0.113.20/32"].map(has);
        assert!(all == [true; 4] || all == [false; 4], "all or nothing: {addresses:?}");
        all[0]
    }

    fn open(&mut self, request: &SocketRequest) -> Opened {
        let indexes = request.send_on.iter().chain([&request.ha_ifindex]);
        Opened {
            links: Some(indexes.map(|index| (*index, true)).collect()),
            has_virtual_address: self
                .addresses()
                .iter()
                .any(|a| a.starts_with(&format!("{}/", request.virtual_address))),
        }
    }

    fn send(&mut self, batch: &Batch) -> Vec<Result<(), String>> {
        let machine = self.worker.machine_mut();
        let mut send = |message: &Vec<u8>| match batch.purpose {
            Purpose::Items => machine.send(message),
            // Made by the keeper itself, from indexes: not in our words.
            Purpose::Follow => Ok(()),
        };
        batch.messages.iter().map(&mut send).collect()
    }
}

impl Cluster {
    fn new() -> Self {
        Self::with("")
    }

    /// With some lines more in the hosts' files.
    fn with(lines: &str) -> Self {
        Self::spread(lines, 0)
    }

    /// Another seed spreads in another way what hosts do at the same time.
    fn spread(lines: &str, seed: u64) -> Self {
        let now = Instant::now();
        let host = |n: u8| boot_with(host_settings_with(n, lines), seed + u64::from(n), None, now);
        let hosts = (1..=3).map(|n| (n, host(n))).collect();
        let mut cluster = Self {
            hosts,
            packets: VecDeque::new(),
            now,
            ha_is_cut: false,
            has_bfd: false,
            cut_off: None,
            may_serve: 0..=1,
            priorities: BTreeMap::new(),
            revision: 5,
            active: None,
        };
        for n in 1..=3 {
            cluster.connect_keeper(n);
        }
        cluster.tell_all();
        cluster
    }

    /// The server says what it knows, to those who listen.
    fn tell_all(&mut self) {
        for n in 1..=3 {
            let mut config = config_of(n, self.revision, self.active);
            let copy = config.routers.get_mut(&ROUTER).unwrap().ha.as_mut().unwrap();
            copy.priority = self.priorities.get(&n).copied().unwrap_or(copy.priority);
            let now = self.now;
            let host = self.host(n);
            if host.has_power {
                host.core.handle_snapshot(config, now);
            }
        }
        self.settle();
    }

    fn host(&mut self, n: u8) -> &mut Host {
        self.hosts.get_mut(&n).unwrap()
    }

    fn connect_keeper(&mut self, n: u8) {
        let now = self.now;
        let host = self.host(n);
        host.engine.handle_disconnected(now);
        host.core.handle_keeper_connected(now);
        self.settle();
    }

    /// Lets all come to rest at this moment.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut busy = false;
            for n in 1..=3 {
                busy |= self.step(n);
            }
            if let Some(packet) = self.packets.pop_front() {
                self.deliver(packet);
            } else if !busy {
                return;
            }
        }
        panic!("the hosts never come to rest");
    }

    /// Does one thing of what each of a host's processes wants; false if neither wants anything.
    fn step(&mut self, n: u8) -> bool {
        let now = self.now;
        let host = self.host(n);
        if !host.has_power {
            return false;
        }
        let output = host.core.poll_output();
        let effect = host.engine.poll_effect().or_else(|| host.engine.poll_announcement());
        let busy = output.is_some() || effect.is_some();
        match output {
            Some(Output::Reconcile(round)) => {
                let outcome = host.worker.run(&round).map_err(|error| format!("{error:#}"));
                host.ops += outcome.as_ref().unwrap().ops;
                host.core.handle_outcome(outcome, now);
            }
            Some(Output::SendToKeeper(message)) => host.engine.handle_message(*message, now),
            Some(Output::Report(report)) => host.report = Some(*report),
            Some(Output::Write(FileJob::Transition(t))) => host.transitions.push((t.state, t.epoch)),
            Some(Output::Write(_) | Output::Post(_) | Output::Resync) | None => {}
        }
        if let Some(effect) = effect {
            self.carry_out(n, effect);
        }
        busy
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not VRRP, a claim or the kernel is not looked at")]
    fn carry_out(&mut self, n: u8, effect: Effect) {
        let now = self.now;
        let host = self.hosts.get_mut(&n).unwrap();
        match effect {
            Effect::OpenSockets { router, request, .. } => {
                let opened = host.open(&request);
                host.engine.handle_opened(router, &request, Ok(opened), now);
            }
            Effect::CloseSockets { router } => host.engine.handle_closed(router),
            Effect::RunBatch(batch) => {
                let results = host.send(&batch);
                host.engine.handle_batch(&batch, results, now);
            }
            // IP with protocol 112; what is announced to instances and the outside is not looked at here.
            Effect::SendFrame { frame, .. } if frame.get(23) == Some(&112) => {
                self.packets.push_back(Packet::Frame { from: n, frame });
            }
            Effect::SendClaim { to, datagram } => {
                self.packets.push_back(Packet::Claim { from: n, to: to.ip(), datagram });
            }
            Effect::SendBfd { to, datagram } if self.has_bfd => {
                self.packets.push_back(Packet::Bfd { from: n, to: to.ip(), datagram });
            }
            Effect::AskWhoIsComplete(routers) => {
                // Nothing is replicated here, so nobody lacks anything.
                let all: BTreeSet<IpAddr> = (1..=3).map(vtep).collect();
                host.engine.handle_complete(routers.into_iter().map(|router| (router, all.clone())).collect(), now);
            }
            Effect::Emit(FromKeeper::Transition(mut transition)) => {
                transition.at_ms = now.elapsed().as_millis() as u64 + transition.epoch;
                host.core.handle_keeper(FromKeeper::Transition(transition), now);
            }
            Effect::Emit(said) => host.core.handle_keeper(said, now),
            _ => {}
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let (now, cut_off) = (self.now, self.cut_off);
        let (Packet::Frame { from, .. } | Packet::Claim { from, .. } | Packet::Bfd { from, .. }) = &packet;
        let reached = |to: u8| to == *from || ![Some(to), Some(*from)].contains(&cut_off);
        for (n, host) in self.hosts.iter_mut().filter(|(n, host)| host.has_power && reached(**n)) {
            match &packet {
                Packet::Frame { from, frame } if n != from && !self.ha_is_cut => {
                    host.engine.handle_frame(ROUTER, frame, now);
                }
                Packet::Claim { from, to, datagram } if vtep(*n) == *to => {
                    host.engine.handle_claim(datagram, vtep(*from), now);
                }
                Packet::Bfd { from, to, datagram } if vtep(*n) == *to => {
                    host.engine.handle_bfd(datagram, vtep(*from), None, now);
                }
                Packet::Frame { .. } | Packet::Claim { .. } | Packet::Bfd { .. } => {}
            }
        }
    }

    /// Lets time pass, timer by timer. At rest, as many hosts serve as may.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadline = |host: &Host| {
                let keeper = host.engine.poll_timeout().map(|(at, _)| at);
                keeper.into_iter().chain([host.core.poll_timeout().0]).min()
            };
            let next = self.hosts.values().filter(|host| host.has_power).filter_map(deadline).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            for host in self.hosts.values_mut().filter(|host| host.has_power) {
                host.engine.handle_timeout(now);
                if host.core.poll_timeout().0 <= now {
                    host.core.handle_timeout(now);
                }
            }
            self.settle();
            self.judge();
        }
        self.now = end;
    }

    fn judge(&mut self) {
        let serving = self.serving();
        assert!(self.may_serve.contains(&serving.len()), "{:?} may serve, and these do: {serving:?}", self.may_serve);
    }

    fn serving(&mut self) -> Vec<u8> {
        self.hosts
            .iter_mut()
            .filter(|(_, host)| host.has_power)
            .filter_map(|(n, host)| host.serves().then_some(*n))
            .collect()
    }

    /// The only one that serves.
    fn active(&mut self) -> u8 {
        let serving = self.serving();
        assert_eq!(serving.len(), 1, "one must serve: {serving:?}");
        serving[0]
    }

    /// What the server makes of the last reports: who is active, by the highest epoch.
    fn server_learns(&mut self) {
        let state = |host: &Host| host.report.as_ref()?.ha_states.get(&ROUTER).copied();
        let states = self.hosts.iter().filter_map(|(n, host)| Some((*n, state(host)?)));
        let active = states.filter(|(_, s)| s.state == HaState::Active).max_by_key(|(_, s)| s.epoch);
        self.active = active.map(|(n, s)| ActiveCopy { epoch: s.epoch, vtep: vtep(n) });
        self.revision += 1;
        self.tell_all();
    }
}

#[test]
fn a_new_router_is_served_by_one_host_at_once() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(1));
    let active = cluster.active();
    cluster.pass(Duration::from_secs(120));
    assert_eq!(cluster.active(), active);
    for (n, host) in &cluster.hosts {
        let state = host.report.as_ref().unwrap().ha_states[&ROUTER].state;
        assert_eq!(state == HaState::Active, *n == active);
        assert_eq!(host.report.as_ref().unwrap().warnings, Vec::<String>::new());
    }
}

#[test]
fn another_host_takes_over_from_one_that_lost_its_power_and_keeps_what_it_took() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    let first = cluster.active();
    cluster.host(first).has_power = false;
    cluster.pass(TAKEOVER);
    let second = cluster.active();
    assert_ne!(second, first);
    assert_eq!(cluster.host(second).transitions.last(), Some(&(HaState::Active, 2)));
    cluster.server_learns();

    // It boots with the configuration of its last life; then the server answers.
    let (cached, now) = (config_of(first, 5, None), cluster.now);
    cluster.hosts.insert(first, boot(first, Some(cached), now));
    cluster.connect_keeper(first);
    cluster.pass(Duration::from_secs(3));
    cluster.tell_all();
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), second, "who came back gives way");
    assert!(cluster.host(first).transitions.iter().all(|(state, _)| *state == HaState::Standby));
}

#[test]
fn nothing_moves_while_a_control_is_replaced() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    let active = cluster.active();
    let (now, settings) = (cluster.now, host_settings(active));
    let cached = config_of(active, cluster.revision, cluster.active);
    let host = cluster.host(active);
    host.engine.handle_disconnected(now);
    host.replace_control(settings, cached, now);
    (host.ops, host.transitions) = (0, Vec::new());
    cluster.pass(Duration::from_secs(60));
    cluster.connect_keeper(active);
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), active);
    let host = cluster.host(active);
    assert_eq!(host.ops, 0, "the plan is empty");
    assert!(host.transitions.iter().all(|(state, _)| *state == HaState::Active), "{:?}", host.transitions);
    assert_eq!(host.report.as_ref().unwrap().ha_states[&ROUTER].state, HaState::Active);
}

#[test]
fn a_router_that_stops_being_ha_while_its_control_is_replaced_goes_on() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    let active = cluster.active();
    let (now, settings) = (cluster.now, host_settings(active));
    let cached = config_of(active, cluster.revision, cluster.active);
    let host = cluster.host(active);
    host.replace_control(settings, cached, now);
    // The server says so while the first round, towards what was cached, is under way.
    let round = std::iter::from_fn(|| host.core.poll_output());
    let round =
        round.filter_map(|output| if let Output::Reconcile(round) = output { Some(round) } else { None }).next();
    host.core.handle_snapshot(no_ha(config_of(active, 100, None), Location::Local), now);
    let outcome = host.worker.run(&round.unwrap()).map_err(|error| format!("{error:#}"));
    host.core.handle_outcome(outcome, now);
    cluster.connect_keeper(active);
    let host = cluster.host(active);
    let left: BTreeSet<String> = host.addresses().into_iter().filter(|a| !a.starts_with("169.254.")).collect();
    assert_eq!(left, ["10.0.0.1/24", "203.0.113.10/24", "203.0.113.20/32"].map(str::to_owned).into());
    assert!(host.engine.status().routers.is_empty());
    assert_eq!(host.report.as_ref().unwrap().applied_revision, Some(100));
}

#[test]
fn a_keeper_that_is_killed_resumes() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    let active = cluster.active();
    let (epoch, now) = (cluster.active.unwrap().epoch, cluster.now);
    let host = cluster.host(active);
    host.core.handle_keeper_gone(now);
    let start = Start { seed: 9, away: Some(Duration::from_millis(50)), ..Start::default() };
    host.engine = Engine::new(start, now);
    cluster.connect_keeper(active);
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), active);
    let state = cluster.host(active).report.as_ref().unwrap().ha_states[&ROUTER];
    assert_eq!((state.state, state.epoch), (HaState::Active, epoch));
}

/// Takes the active copy's host out of the router for good; tells how long it takes until another serves alone. There
/// is one that serves at every moment.
fn leave(cluster: &mut Cluster) -> Duration {
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    let leaving = cluster.active();
    let mut config = config_of(leaving, cluster.revision + 1, cluster.active);
    remove_router(&mut config);
    let start = cluster.now;
    cluster.may_serve = 1..=2;
    cluster.host(leaving).core.handle_snapshot(config, start);
    cluster.settle();
    cluster.judge();
    assert!(cluster.serving().contains(&leaving), "it goes on until another is ready");
    while cluster.serving().contains(&leaving) {
        assert!(cluster.now < start + Duration::from_secs(60), "it goes on for ever");
        cluster.pass(Duration::from_millis(1));
    }
    let took = cluster.now - start;
    let active = cluster.active();
    assert_ne!(active, leaving);
    assert_eq!(cluster.host(leaving).addresses(), Vec::<String>::new());
    let role = cluster.host(active).core.keeper().roles()[&ROUTER].clone();
    assert_eq!((role.state, role.reason.as_str()), (HaState::Active, "the active copy handed over"));
    cluster.may_serve = 1..=1;
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), active);
    took
}

#[test]
fn a_host_that_leaves_for_good_hands_over_first() {
    // No BFD passes between these hosts, so it is not sure that another lives, and waits for that for a while.
    let took = leave(&mut Cluster::new());
    assert!(took > Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_host_that_leaves_for_good_hands_over_at_once_to_one_that_lives() {
    let mut cluster = Cluster::new();
    cluster.has_bfd = true;
    let took = leave(&mut cluster);
    // For most of that, both hold the addresses.
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// The first of a router's life is the copy with the highest address, and then another one is given a higher priority.
fn give_another_a_higher_priority(lines: &str) -> Cluster {
    let mut cluster = Cluster::with(lines);
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    assert_eq!(cluster.active(), 3);
    cluster.priorities.insert(1, 60);
    cluster.revision += 1;
    cluster.tell_all();
    cluster
}

#[test]
fn a_higher_priority_takes_over_from_a_living_copy_only_where_the_files_say_so_and_after_the_delay() {
    let mut cluster = give_another_a_higher_priority("");
    cluster.pass(Duration::from_secs(120));
    assert_eq!(cluster.active(), 3);

    let mut cluster = give_another_a_higher_priority("ha_vrrp_preempt = true\n");
    cluster.pass(TAKEOVER);
    assert_eq!(cluster.active(), 1);

    let delayed = "ha_vrrp_preempt = true\nha_vrrp_preempt_delay = 60\n";
    let mut cluster = give_another_a_higher_priority(delayed);
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), 3);
    // The next advertisement restarts the timer no more.
    cluster.pass(Duration::from_secs(2) + TAKEOVER);
    assert_eq!(cluster.active(), 1);
}

#[test]
fn when_the_ha_network_heals_one_remains() {
    let mut cluster = Cluster::new();
    cluster.pass(Duration::from_secs(10));
    cluster.server_learns();
    (cluster.ha_is_cut, cluster.may_serve) = (true, 0..=3);
    cluster.pass(Duration::from_secs(30));
    cluster.ha_is_cut = false;
    // Two advertisement intervals: each copy hears the other.
    cluster.pass(Duration::from_secs(4));
    cluster.may_serve = 0..=1;
    let active = cluster.active();
    cluster.pass(Duration::from_secs(60));
    assert_eq!(cluster.active(), active);
}

/// Cuts the active copy's host off; tells how long it takes until another one serves, and returns when it alone does.
fn cut_active_off(cluster: &mut Cluster) -> Duration {
    let (first, start) = (cluster.active(), cluster.now);
    (cluster.cut_off, cluster.may_serve) = (Some(first), 0..=2);
    while cluster.serving().iter().all(|n| *n == first) {
        cluster.pass(Duration::from_millis(1));
    }
    let took = cluster.now - start;
    while cluster.serving().contains(&first) {
        cluster.pass(Duration::from_millis(1));
    }
    cluster.may_serve = 1..=1;
    took
}

fn hear_each_other(cluster: &Cluster) -> bool {
    let up = |host: &Host| host.engine.status().bfd.iter().all(|session| session.state == "up");
    cluster.hosts.values().all(up)
}

#[test]
fn a_host_that_is_cut_off_is_replaced_within_half_a_second_however_lately_the_next_one_was() {
    // BFD's detection time, and as long as an answer is listened for.
    let bound = Duration::from_millis(450 + 20 + 1);
    for seed in 0..20_u64 {
        let mut cluster = Cluster::spread("", 1000 * seed);
        cluster.has_bfd = true;
        cluster.pass(Duration::from_secs(10));
        cluster.server_learns();
        for round in 0..8 {
            let took = cut_active_off(&mut cluster);
            assert!(took <= bound, "seed {seed}, round {round}: {took:?}");
            // Long enough that it asks now and then, or that it has yet to ask.
            cluster.pass(Duration::from_millis(400 + 977 * (seed + 3 * round) % 4000));
            cluster.cut_off = None;
            cluster.server_learns();
            while !hear_each_other(&cluster) {
                cluster.pass(Duration::from_millis(1));
            }
            // At once, or between two advertisements.
            cluster.pass(Duration::from_millis(1 + 331 * (seed + round) % 2500));
        }
    }
}
