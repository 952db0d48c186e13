//! Control on a virtual clock: the core and the worker as they are, a kernel in memory, and a test that
//! plays the server and the keeper.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod common;
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    EXTERNAL_NETWORK, HA_NETWORK, HOST_VTEP, PEER_VTEP, PROJECT_NETWORK, ROUTER, add_ha_router, add_port, base, ip,
    mac, port, port_id, remove_router, settings,
};
use evergate_dataplane::fake::FakeKernel;
use evergate_dataplane::state::{FdbEntry, FdbTable};
use evergate_dataplane::{Netns, Op};
use evergate_hostd::core::{Core, DESCRIBE_PATIENCE, FileJob, INTRODUCTION_PATIENCE, Output, PERIOD, REMOVAL_PATIENCE};
use evergate_hostd::worker::Worker;
use evergate_keeper::protocol::{
    FollowSpec, FromKeeper, PROTOCOL_VERSION, Removal, RouterSpec, RouterStatus, Status, ToKeeper, Transition,
};
use evergate_model::host::{ActiveCopy, AgentGateway, Distributed, HaStateReport, HostConfig, HostReport, Location};
use evergate_model::stream::{Change, Letter};
use evergate_model::{FloatingIpId, HaState, RouterId, names};
use machine::FakeMachine;

const MOMENT: Duration = Duration::from_millis(1);

/// A host, and all that came out of its control process.
struct Sim {
    core: Core,
    worker: Worker<FakeMachine>,
    now: Instant,
    connected: bool,
    status: Status,
    to_keeper: Vec<ToKeeper>,
    reports: Vec<HostReport>,
    letters: Vec<Letter>,
    files: Vec<FileJob>,
    resyncs: usize,
    rounds: usize,
    ops: usize,
}

impl Sim {
    fn new(cached: Option<HostConfig>) -> Self {
        let mut machine = FakeMachine::default();
        machine.kernel.add_foreign_link("ext0");
        Self::on(machine, cached)
    }

    fn on(machine: FakeMachine, cached: Option<HostConfig>) -> Self {
        let settings = settings(Path::new("/nowhere"));
        let now = Instant::now();
        let mut sim = Self {
            core: Core::new(settings.clone(), 1, cached, now),
            worker: Worker::new(machine, &settings),
            now,
            connected: false,
            status: Status::default(),
            to_keeper: Vec::new(),
            reports: Vec::new(),
            letters: Vec::new(),
            files: Vec::new(),
            resyncs: 0,
            rounds: 0,
            ops: 0,
        };
        sim.settle();
        sim
    }

    /// Starts control again on the same kernel, without a farewell.
    fn restart(mut self, cached: Option<HostConfig>) -> Self {
        Self::on(std::mem::take(self.worker.machine_mut()), cached)
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        &mut self.worker.machine_mut().kernel
    }

    /// Does all that the core wants, at this moment.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(output) = self.core.poll_output() else { return };
            match output {
                Output::Reconcile(round) => {
                    self.rounds += 1;
                    let outcome = self.worker.run(&round).map_err(|e| format!("{e:#}"));
                    self.ops += outcome.as_ref().map_or(0, |o| o.ops);
                    self.core.handle_outcome(outcome, self.now);
                }
                Output::SendToKeeper(message) => {
                    if self.connected {
                        self.to_keeper.push(*message);
                    }
                }
                Output::Report(report) => self.reports.push(*report),
                Output::Post(letter) => self.letters.push(letter),
                Output::Write(job) => self.files.push(job),
                Output::Resync => self.resyncs += 1,
            }
        }
        panic!("the core never comes to rest: {:?}", self.core.last_round());
    }

    fn snapshot(&mut self, config: HostConfig) {
        self.now += MOMENT;
        self.core.handle_snapshot(config, self.now);
        self.settle();
        self.introduce();
    }

    fn change(&mut self, new: &HostConfig) {
        self.now += MOMENT;
        let change = Change::between(self.core.config().unwrap(), new).unwrap();
        self.core.handle_change(change, self.now);
        self.settle();
    }

    fn connect_keeper(&mut self) {
        self.now += MOMENT;
        self.connected = true;
        self.core.handle_keeper_connected(self.now);
        self.keeper_says(FromKeeper::Hello { version: PROTOCOL_VERSION, pid: 42, notes: Vec::new() });
        self.introduce();
    }

    /// Answers as the keeper does when it is asked for its status.
    fn introduce(&mut self) {
        if self.to_keeper.iter().any(|message| matches!(message, ToKeeper::Status)) {
            self.keeper_says(FromKeeper::Status(self.status.clone()));
        }
    }

    fn disconnect_keeper(&mut self) {
        self.connected = false;
        self.core.handle_keeper_gone(self.now);
        self.settle();
    }

    fn keeper_says(&mut self, said: FromKeeper) {
        self.now += MOMENT;
        self.core.handle_keeper(said, self.now);
        self.settle();
    }

    /// Lets time pass, timer by timer.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            let (at, _) = self.core.poll_timeout();
            if at > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now);
            self.settle();
        }
        panic!("timers fire without end: {:?}", self.core.poll_timeout());
    }

    fn specs(&self) -> Vec<&RouterSpec> {
        self.to_keeper
            .iter()
            .filter_map(|m| if let ToKeeper::Router(spec) = m { Some(&**spec) } else { None })
            .collect()
    }

    fn follows(&self) -> Vec<&FollowSpec> {
        self.to_keeper.iter().filter_map(|m| if let ToKeeper::Follow(spec) = m { Some(spec) } else { None }).collect()
    }

    fn has_netns(&mut self) -> bool {
        let name = Netns::Named(names::qrouter_namespace(ROUTER));
        self.kernel().state().netns.contains_key(&name)
    }

    fn has_link(&mut self, name: &str) -> bool {
        self.kernel().state().netns[&Netns::Host].links.contains_key(name)
    }

    fn report(&self) -> &HostReport {
        self.reports.last().expect("a report was made")
    }

    fn said_end(&self) -> bool {
        self.to_keeper.iter().any(|message| matches!(message, ToKeeper::EndOfState))
    }

    fn removals(&self) -> usize {
        self.to_keeper
            .iter()
            .filter(|m| matches!(m, ToKeeper::RemoveRouter { router, .. } if *router == ROUTER))
            .count()
    }
}

fn with_router(revision: u64) -> HostConfig {
    let mut config = base(revision);
    add_ha_router(&mut config);
    config
}

fn became(state: HaState, epoch: u64, at_ms: u64) -> FromKeeper {
    let reason = "nothing heard for 6.8 s".to_owned();
    FromKeeper::Transition(Transition { router: ROUTER, state, epoch, at_ms, reason, took_us: 700 })
}

fn transitions(files: &[FileJob]) -> usize {
    files.iter().filter(|job| matches!(job, FileJob::Transition(_))).count()
}

#[test]
fn a_host_that_knows_nothing_touches_nothing() {
    let mut sim = Sim::new(None);
    sim.pass(PERIOD * 3);
    assert_eq!(sim.rounds, 0);
    assert!(!sim.reports.is_empty(), "the server must learn of the host all the same");
    assert_eq!(sim.reports[0].sequence, 1);
}

#[test]
fn the_keeper_is_told_of_a_router_when_its_namespace_stands() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    assert!(sim.to_keeper.is_empty(), "without a configuration there is no key to greet with: {:?}", sim.to_keeper);
    sim.snapshot(with_router(5));
    assert!(sim.has_netns() && sim.has_link("tap00100000-00") && sim.has_link("vxlan-1001"));
    assert!(matches!(&sim.to_keeper[0], ToKeeper::Hello { settings, .. } if !settings.claim_key.is_empty()));
    let specs = sim.specs();
    assert_eq!(specs.len(), 1);
    assert!(specs[0].ready && specs[0].ha_ifindex > 0 && !specs[0].items.is_empty());
    assert_eq!(specs[0].claim_to, BTreeSet::from([ip(PEER_VTEP), ip(common::COMPUTE_VTEP)]));
    let position = |wanted: fn(&ToKeeper) -> bool| sim.to_keeper.iter().position(wanted).expect("it was said");
    assert!(position(|m| matches!(m, ToKeeper::Router(_))) < position(|m| matches!(m, ToKeeper::EndOfState)));
    assert_eq!(sim.report().applied_revision, Some(5));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_copy_is_not_ready_while_a_way_to_its_networks_is_missing() {
    let mut sim = Sim::new(None);
    sim.kernel().remove_link("ext0");
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.specs()[0].ready);
    assert!(sim.report().warnings.iter().any(|w| w.contains("not ready") && w.contains("physnet1")));
    sim.kernel().add_foreign_link("ext0");
    sim.core.handle_link_event("ext0", true, false, sim.now);
    sim.settle();
    assert!(sim.specs().last().unwrap().ready);
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_copy_that_takes_part_is_not_taken_out_for_one_network() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.kernel().remove_link("ext0");
    sim.pass(PERIOD * 2);
    assert!(sim.specs().iter().all(|spec| spec.ready));
    assert!(sim.report().warnings.iter().any(|w| w.contains("ext0") || w.contains("physnet1")));
}

#[test]
fn an_older_state_is_refused_and_said_to_be() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    let rounds = sim.rounds;
    sim.snapshot(base(4));
    assert_eq!((sim.rounds, sim.resyncs), (rounds, 0), "to ask again would bring the same answer");
    assert!(sim.has_netns());
    assert!(sim.report().warnings.iter().any(|w| w.contains("revision 4")));
    for (revision, resyncs) in [(5, 0), (6, 1)] {
        sim.core.handle_change(Change { revision, routers_removed: [ROUTER].into(), ..Change::default() }, sim.now);
        sim.settle();
        assert_eq!((sim.rounds, sim.resyncs), (rounds, resyncs), "changes to what was refused mean nothing");
    }
    sim.snapshot(with_router(6));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_stale_change_asks_for_the_whole_state() {
    let mut sim = Sim::new(None);
    sim.core.handle_change(Change { revision: 9, ..Change::default() }, sim.now);
    sim.settle();
    assert_eq!(sim.resyncs, 1, "a change to nothing");
    sim.snapshot(with_router(5));
    sim.core.handle_change(Change { revision: 5, ..Change::default() }, sim.now);
    sim.settle();
    assert_eq!(sim.resyncs, 2);
    assert_eq!(sim.core.config().unwrap().revision, 5);
}

#[test]
fn a_restart_adopts_everything() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let cached = sim.core.config().map(|config| (**config).clone());
    let mut sim = sim.restart(cached);
    assert_eq!((sim.rounds, sim.ops), (1, 0), "the plan is empty");
    sim.connect_keeper();
    assert!(sim.specs()[0].ready && sim.said_end());
    sim.snapshot(with_router(5));
    assert_eq!(sim.rounds, 1, "the server says nothing new");
    assert!(!sim.core.is_from_cache());
}

#[test]
fn what_the_keeper_did_is_left_alone() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    // The router becomes active: the keeper puts its addresses and its forwarding entries.
    let config = sim.core.config().unwrap().clone();
    let round = evergate_hostd::round::Round {
        vtep: Some(ip(HOST_VTEP)),
        ..evergate_hostd::round::Round::towards((*config).clone())
    };
    let items = sim.worker.plan(&round).unwrap().desired.prepared.remove(&ROUTER).unwrap().items;
    let ops: Vec<Op> = items.into_iter().map(|item| item.add).collect();
    assert!(sim.kernel().apply(&ops).iter().all(Result::is_ok));
    let before = sim.ops;
    sim.pass(PERIOD * 2);
    assert_eq!(sim.ops, before);
}

#[test]
fn letters_pass_between_keeper_and_server_and_the_keeper_knows_whether_they_do() {
    let mut sim = Sim::new(Some(with_router(5)));
    let reachable = |sim: &Sim| -> Vec<bool> {
        let one =
            |message: &ToKeeper| if let ToKeeper::Server { reachable } = message { Some(*reachable) } else { None };
        sim.to_keeper.iter().filter_map(one).collect()
    };
    sim.core.handle_server(true, sim.now);
    sim.settle();
    sim.connect_keeper();
    assert_eq!(reachable(&sim), [true], "a keeper that comes later is told as well");
    sim.core.handle_server(true, sim.now);
    sim.core.handle_server(false, sim.now);
    sim.settle();
    assert_eq!(reachable(&sim), [true, false]);
    let peer = "192.0.2.9".parse().unwrap();
    sim.keeper_says(FromKeeper::Letter { to: peer, datagram: "0a".to_owned() });
    assert_eq!(sim.letters, [Letter { peer, datagram: "0a".to_owned() }]);
    sim.core.handle_letter(Letter { peer, datagram: "0b".to_owned() }, sim.now);
    sim.settle();
    let brought = sim.to_keeper.last().unwrap();
    assert!(matches!(brought, ToKeeper::Letter { from, datagram } if *from == peer && datagram == "0b"), "{brought:?}");
}

#[test]
fn removal_waits_for_the_keeper() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    assert_eq!(sim.removals(), 1);
    assert!(sim.has_netns(), "the keeper has sockets in it");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns() && !sim.has_link("tap00100000-00"));
    assert_eq!(sim.removals(), 1, "asked once");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn a_router_that_becomes_distributed_moves_its_copy_to_another_namespace_and_back() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let ways = [
        (distributed(with_router(6)), names::snat_namespace(ROUTER)),
        (with_router(7), names::qrouter_namespace(ROUTER)),
    ];
    for (config, netns) in ways {
        sim.to_keeper.clear();
        sim.change(&config);
        assert_eq!((sim.removals(), sim.specs().len()), (1, 0), "the copy that was is let go of first");
        let changes = |m: &ToKeeper| matches!(m, ToKeeper::RemoveRouter { how: Removal::Changes, .. });
        assert!(sim.to_keeper.iter().any(changes), "it has nobody to hand over to");
        sim.keeper_says(FromKeeper::Removed { router: ROUTER });
        assert_eq!(sim.specs().last().unwrap().netns, netns);
        let inside = sim.kernel().state().netns[&Netns::Named(names::qrouter_namespace(ROUTER))].clone();
        assert_eq!(inside.links.keys().any(|link| link.starts_with("ha-")), netns.starts_with("qrouter-"));
        assert_eq!(sim.report().applied_revision, Some(config.revision));
        sim.pass(PERIOD * 2);
        assert_eq!(sim.removals(), 1, "asked once");
    }
    let left = Netns::Named(names::snat_namespace(ROUTER));
    assert!(!sim.kernel().state().netns.contains_key(&left));
}

#[test]
fn a_router_that_is_ha_no_more_goes_on_where_it_is() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut config = no_ha(with_router(6), Location::Local);
    sim.change(&config);
    let removal = sim.to_keeper.iter().find(|message| matches!(message, ToKeeper::RemoveRouter { .. }));
    assert!(matches!(removal, Some(ToKeeper::RemoveRouter { how: Removal::Remains, .. })), "{removal:?}");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    let inside = &sim.kernel().state().netns[&Netns::Named(names::qrouter_namespace(ROUTER))];
    assert!(!inside.links.keys().any(|link| link.starts_with("ha-")) && inside.addresses.len() == 3);
    // It becomes another's, and is nothing to be left here.
    config = with_router(7);
    sim.change(&config);
    remove_router(&mut config);
    config.revision = 8;
    sim.to_keeper.clear();
    sim.change(&config);
    let removal = sim.to_keeper.iter().find(|message| matches!(message, ToKeeper::RemoveRouter { .. }));
    assert!(matches!(removal, Some(ToKeeper::RemoveRouter { how: Removal::Leaves, .. })), "{removal:?}");
}

#[test]
fn entries_that_followed_an_active_copy_become_controls_without_a_moment_without() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let follows = |revision, location| {
        let mut config = with_router(revision);
        config.routers.clear();
        no_ha(config, location)
    };
    sim.snapshot(follows(5, Location::Active { router: ROUTER }));
    let followed = sim.follows()[0].entries.clone();
    // The keeper's, which control has not seen yet.
    let entry = |table| FdbEntry { link: "vxlan-1002".to_owned(), mac: mac(0x20), table };
    let host = |sim: &mut Sim| sim.kernel().state_mut().netns.get_mut(&Netns::Host).unwrap().fdb.clone();
    let path = entry(FdbTable::Nexthop { group: 7 });
    sim.kernel().state_mut().netns.get_mut(&Netns::Host).unwrap().fdb.insert(path.clone());
    sim.to_keeper.clear();
    sim.change(&follows(6, Location::Remote { vtep: ip(PEER_VTEP) }));
    let fdb = host(&mut sim);
    assert!(fdb.contains(&entry(FdbTable::Vxlan { dst: ip(PEER_VTEP) })) && !fdb.contains(&path), "{fdb:?}");
    let said: Vec<_> = sim.to_keeper.iter().filter(|m| !matches!(m, ToKeeper::Status)).collect();
    let [ToKeeper::Cede { router: ROUTER, entries }, ToKeeper::Unfollow { router: ROUTER }] = said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(*entries, followed);
}

/// As a router that is not HA is told of: its ports are at one place.
fn no_ha(mut config: HostConfig, at: Location) -> HostConfig {
    if let Some(router) = config.routers.get_mut(&ROUTER) {
        router.ha = None;
    }
    config.networks.get_mut(&HA_NETWORK).unwrap().ports.clear();
    for network in config.networks.values_mut() {
        network.ports.values_mut().filter(|port| is_active(&port.location)).for_each(|port| port.location = at.clone());
    }
    config
}

fn is_active(location: &Location) -> bool {
    matches!(location, Location::Active { .. })
}

#[test]
fn a_floating_ip_that_is_translated_at_the_instance_works_whichever_copy_is_active() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let mut config = distributed(with_router(5));
    let external = port(0x31, &["203.0.113.11"], Location::Local);
    add_port(&mut config, EXTERNAL_NETWORK, port_id(0x31), external);
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.distributed.as_mut().unwrap().agent_gateway =
        Some(AgentGateway { port_id: port_id(0x31), mac: mac(0x31), addresses: Vec::new() });
    sim.snapshot(config.clone());
    let id = FloatingIpId::from_u128(1);
    assert!(!sim.report().floating_ips_active.contains(&id), "translated where the source NAT is: not here");
    config.revision = 6;
    config.routers.get_mut(&ROUTER).unwrap().floating_ips.get_mut(&id).unwrap().distributed = true;
    sim.change(&config);
    assert!(sim.report().floating_ips_active.contains(&id));
}

/// The same router, distributed, with a copy of its source NAT and a port of an instance on this host.
fn distributed(mut config: HostConfig) -> HostConfig {
    let everywhere = port(0x20, &["10.0.0.1"], Location::Everywhere { router: ROUTER });
    add_port(&mut config, PROJECT_NETWORK, port_id(0x20), everywhere);
    let snat = port(0x21, &["10.0.0.5"], Location::Active { router: ROUTER });
    add_port(&mut config, PROJECT_NETWORK, port_id(0x21), snat);
    let router = config.routers.get_mut(&ROUTER).unwrap();
    let mut interface = router.interfaces[&port_id(0x20)].clone();
    (interface.mac, interface.addresses) = (mac(0x21), vec!["10.0.0.5/24".parse().unwrap()]);
    router.distributed = Some(Distributed {
        routes_here: true,
        translates_here: true,
        snat_ports: BTreeMap::from([(port_id(0x21), interface)]),
        agent_gateway: None,
    });
    config
}

#[test]
fn routers_that_go_together_are_let_go_one_by_one() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let mut config = with_router(5);
    let second = RouterId::from_u128(0xc000_0000_0000_0000_0000_0000_0000_0002);
    let mut router = config.routers[&ROUTER].clone();
    router.id = second;
    router.gateway = None;
    router.interfaces.clear();
    router.ha.as_mut().unwrap().port_id = port_id(0x12);
    config.routers.insert(second, router);
    sim.snapshot(config);
    assert_eq!(sim.specs().len(), 2);
    sim.to_keeper.clear();
    sim.change(&base(6));
    for router in [ROUTER, second] {
        assert!(sim.has_netns());
        // It takes its time, but gets on with it.
        sim.pass(REMOVAL_PATIENCE * 2 / 3);
        sim.keeper_says(FromKeeper::Removed { router });
    }
    assert!(!sim.has_netns());
    let asked = sim.to_keeper.iter().filter(|m| matches!(m, ToKeeper::RemoveRouter { .. })).count();
    assert_eq!(asked, 2, "each once");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn removal_does_not_wait_for_ever() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.disconnect_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    assert!(sim.has_netns());
    sim.pass(REMOVAL_PATIENCE);
    assert!(!sim.has_netns());
}

#[test]
fn a_router_that_was_deleted_while_control_was_down_is_let_go_first() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut sim = sim.restart(None);
    sim.connect_keeper();
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.snapshot(config);
    assert_eq!(sim.removals(), 1);
    assert!(sim.has_netns());
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
}

#[test]
fn a_removal_is_asked_for_again_on_a_new_connection() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    sim.disconnect_keeper();
    sim.to_keeper.clear();
    sim.connect_keeper();
    assert_eq!(sim.removals(), 1);
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
}

#[test]
fn a_router_that_comes_back_before_it_is_gone_stays() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    sim.to_keeper.clear();
    sim.change(&with_router(7));
    assert_eq!(sim.specs().len(), 1, "it is told anew");
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    sim.pass(PERIOD);
    assert!(sim.has_netns());
}

#[test]
fn a_router_that_is_put_down_leaves_the_keeper_and_the_host() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let mut config = with_router(6);
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = false;
    sim.change(&config);
    assert_eq!(sim.removals(), 1);
    sim.keeper_says(FromKeeper::Removed { router: ROUTER });
    assert!(!sim.has_netns());
    config.revision = 7;
    config.routers.get_mut(&ROUTER).unwrap().admin_state_up = true;
    sim.change(&config);
    assert!(sim.has_netns() && sim.specs().len() == 2);
}

#[test]
fn what_failed_is_tried_again_with_growing_pauses() {
    let mut sim = Sim::new(None);
    for _ in 0..3 {
        sim.kernel().fail_next("no buffer space", |op| matches!(op, Op::AddNetns { .. }));
    }
    sim.snapshot(with_router(5));
    assert_eq!(sim.report().applied_revision, None);
    assert!(sim.report().warnings.iter().any(|w| w.contains("no buffer space")));
    sim.pass(Duration::from_millis(200));
    sim.pass(Duration::from_millis(400));
    assert_eq!(sim.rounds, 3);
    sim.pass(Duration::from_millis(700));
    assert_eq!(sim.rounds, 3, "the third pause is longer");
    sim.pass(Duration::from_millis(200));
    assert!(sim.has_netns());
    assert_eq!(sim.report().applied_revision, Some(5));
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn a_kernel_that_cannot_be_read_is_tried_again() {
    let mut sim = Sim::new(None);
    sim.worker.machine_mut().broken = true;
    sim.snapshot(with_router(5));
    assert!(sim.report().warnings.iter().any(|w| w.contains("out of memory")));
    sim.worker.machine_mut().broken = false;
    sim.pass(Duration::from_secs(1));
    assert!(sim.has_netns());
    assert_eq!(sim.report().warnings, Vec::<String>::new());
}

#[test]
fn what_somebody_changed_by_hand_is_put_right() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    sim.kernel().remove_link("vxlan-1002");
    sim.core.handle_link_event("vxlan-1002", false, false, sim.now);
    sim.settle();
    assert!(sim.has_link("vxlan-1002"), "at once where an event tells");
    sim.kernel().remove_link("vxlan-1002");
    sim.pass(PERIOD);
    assert!(sim.has_link("vxlan-1002"), "or at the next periodic round");
}

#[test]
fn a_tunnel_address_that_is_no_address_of_this_host_is_told() {
    let mut sim = Sim::new(None);
    sim.worker.machine_mut().lacks_address = true;
    sim.snapshot(with_router(5));
    let told =
        |sim: &Sim| sim.report().warnings.iter().any(|text| text.contains("local_ip 192.0.2.11 is not an address"));
    assert!(told(&sim), "{:?}", sim.report().warnings);
    sim.worker.machine_mut().lacks_address = false;
    sim.pass(PERIOD);
    assert!(!told(&sim));
}

#[test]
fn a_tap_is_plugged_in_when_it_appears_and_its_port_reported() {
    let mut sim = Sim::new(None);
    let mut config = with_router(5);
    add_port(&mut config, PROJECT_NETWORK, port_id(0x60), port(0x60, &["10.0.0.60"], Location::Local));
    sim.snapshot(config);
    assert!(!sim.report().ports_up.contains(&port_id(0x60)));
    let rounds = sim.rounds;
    sim.core.handle_link_event("tapunrelated", true, true, sim.now);
    sim.settle();
    assert_eq!(sim.rounds, rounds, "not ours to plug");
    sim.kernel().add_foreign_link("tap00600000-00");
    sim.core.handle_link_event("tap00600000-00", true, false, sim.now);
    sim.settle();
    let tap = &sim.kernel().state().netns[&Netns::Host].links["tap00600000-00"];
    assert_eq!(tap.master.as_deref(), Some("brq02000000-00"));
    assert!(sim.report().ports_up.contains(&port_id(0x60)));
    sim.kernel().remove_link("tap00600000-00");
    sim.core.handle_link_event("tap00600000-00", false, false, sim.now);
    sim.settle();
    assert!(!sim.report().ports_up.contains(&port_id(0x60)));
}

#[test]
fn a_foreign_object_by_our_name_is_left_alone_and_said_to_be_in_the_way() {
    let mut sim = Sim::new(None);
    let bridge = names::bridge(EXTERNAL_NETWORK);
    sim.kernel().add_foreign_link(&bridge);
    sim.snapshot(with_router(5));
    assert!(sim.report().warnings.iter().any(|w| w.contains(&bridge) && w.contains("not made by Evergate")));
    let rounds = sim.rounds;
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.rounds, rounds, "a refusal is no failure to try again");
}

#[test]
fn a_keeper_that_comes_back_is_told_everything_again() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.to_keeper.clear();
    sim.disconnect_keeper();
    sim.connect_keeper();
    assert!(matches!(sim.to_keeper[0], ToKeeper::Hello { .. }));
    assert_eq!((sim.specs().len(), sim.follows().len()), (1, 1));
    assert!(matches!(sim.to_keeper.last().unwrap(), ToKeeper::EndOfState));
}

#[test]
fn a_router_is_new_to_the_keeper_until_a_copy_was_active() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(sim.specs()[0].new);
    sim.keeper_says(became(HaState::Active, 1, 1000));
    sim.pass(PERIOD);
    assert_eq!(sim.specs().len(), 1, "that it is not new any more is no news");
    sim.disconnect_keeper();
    sim.to_keeper.clear();
    sim.connect_keeper();
    assert!(!sim.specs()[0].new, "a keeper that starts again waits for silence");
    let mut sim = Sim::new(Some(with_router(5)));
    sim.connect_keeper();
    assert!(!sim.specs()[0].new, "the cache may be old");
}

#[test]
fn a_keeper_is_not_told_the_end_while_a_copy_cannot_be_described() {
    let mut sim = Sim::new(None);
    // Of all its objects, the router's HA device is in the way of nothing but itself.
    sim.kernel().fail_next("no", |op| matches!(op, Op::AddNetns { .. }));
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.said_end(), "what is not mentioned, the keeper drops");
    sim.pass(Duration::from_secs(1));
    assert!(sim.said_end() && sim.specs().len() == 1);
}

#[test]
fn a_keeper_does_not_wait_for_a_hopeless_copy_for_ever() {
    let mut sim = Sim::new(None);
    let name = names::qrouter_namespace(ROUTER);
    sim.kernel().state_mut().netns.insert(Netns::Named(name), Default::default());
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(!sim.said_end());
    sim.pass(DESCRIBE_PATIENCE);
    assert!(sim.said_end() && sim.specs().is_empty());
    assert!(sim.report().warnings.iter().any(|w| w.contains("namespace")));
}

#[test]
fn a_transition_is_reported_and_written_at_once() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    assert!(sim.report().floating_ips_active.is_empty(), "it does not work on a copy that stands by");
    let reports = sim.reports.len();
    sim.keeper_says(became(HaState::Active, 3, 1000));
    assert_eq!(sim.reports.len(), reports + 1);
    assert_eq!(sim.report().ha_states[&ROUTER], HaStateReport { state: HaState::Active, epoch: 3 });
    assert_eq!(sim.report().floating_ips_active, BTreeSet::from([FloatingIpId::from_u128(1)]));
    assert_eq!(transitions(&sim.files), 1);
    sim.keeper_says(became(HaState::Active, 3, 1000));
    assert_eq!((sim.reports.len(), transitions(&sim.files)), (reports + 1, 1), "told twice, taken once");
}

fn active(epoch: u64) -> Status {
    let copy = RouterStatus {
        router: ROUTER,
        vrrp_state: "active".into(),
        state: HaState::Active,
        epoch,
        heard_from: None,
        sent: 1,
        received: 2,
        hindrance: String::new(),
        impairment: String::new(),
        problem: String::new(),
    };
    Status { routers: vec![copy], ..Status::default() }
}

#[test]
fn a_control_that_starts_learns_the_roles_from_the_keeper() {
    let mut sim = Sim::new(Some(with_router(5)));
    sim.status = active(4);
    sim.connect_keeper();
    assert_eq!(sim.report().ha_states[&ROUTER].epoch, 4);
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::State { state: HaState::Active, .. })));
    assert_eq!(transitions(&sim.files), 0, "nothing changed");
}

#[test]
fn a_control_that_starts_does_not_take_an_active_router_away() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.kernel().remove_link("ext0");
    let mut sim = sim.restart(Some(with_router(5)));
    sim.status = active(4);
    sim.connect_keeper();
    assert!(sim.specs()[0].ready, "a copy that is not ready would resign");
    assert!(sim.report().warnings.iter().any(|w| w.contains("physnet1")));
}

#[test]
fn a_keeper_that_does_not_say_what_it_has_is_told_all_the_same() {
    let mut sim = Sim::new(Some(with_router(5)));
    sim.connected = true;
    sim.core.handle_keeper_connected(sim.now);
    sim.settle();
    assert!(sim.specs().is_empty());
    sim.pass(INTRODUCTION_PATIENCE);
    assert!(sim.specs().len() == 1 && sim.said_end());
}

#[test]
fn reports_come_at_the_interval_and_count_up() {
    let mut sim = Sim::new(Some(with_router(5)));
    let interval = sim.core.settings().report_interval;
    let before = sim.reports.len();
    sim.pass(interval * 3);
    assert!(sim.reports.len() >= before + 3);
    assert!(sim.reports.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    assert!(sim.reports.iter().all(|report| report.host == "network1" && report.incarnation == 1));
}

#[test]
fn a_takeover_elsewhere_costs_a_message_and_no_round() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    let (rounds, follows) = (sim.rounds, sim.follows().len());
    let mut config = with_router(6);
    config.active_copies.insert(ROUTER, ActiveCopy { epoch: 2, vtep: ip(PEER_VTEP) });
    config.routers.get_mut(&ROUTER).unwrap().ha.as_mut().unwrap().epoch = 2;
    sim.change(&config);
    assert_eq!((sim.rounds, sim.specs().len()), (rounds, 1));
    assert_eq!(sim.follows().len(), follows + 1);
    let last = sim.follows()[follows];
    assert_eq!((last.epoch, last.vtep), (2, Some(ip(PEER_VTEP))));
    assert_eq!(last.entries.len(), 1, "the flat network learns by itself");
    assert_eq!(sim.report().applied_revision, Some(6));
}

#[test]
fn a_router_whose_device_was_made_anew_is_told_anew() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.kernel().remove_link("tap00100000-00");
    sim.core.handle_link_event("tap00100000-00", false, false, sim.now);
    sim.settle();
    let specs = sim.specs();
    assert_eq!(specs.len(), 2);
    assert_ne!(specs[0].ha_ifindex, specs[1].ha_ifindex);
}

#[test]
fn a_burst_of_changes_costs_one_round() {
    let mut sim = Sim::new(Some(base(1)));
    let rounds = sim.rounds;
    for revision in 2..50 {
        let mut config = with_router(revision);
        add_port(&mut config, PROJECT_NETWORK, port_id(u128::from(revision) + 0x100), port(1, &[], Location::Unbound));
        let change = Change::between(sim.core.config().unwrap(), &config).unwrap();
        sim.core.handle_change(change, sim.now);
    }
    sim.settle();
    assert_eq!(sim.rounds, rounds + 1);
}

#[test]
fn a_change_is_applied_without_observing_and_verified_when_the_changes_pause() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(base(5));
    let (rounds, observations) = (sim.rounds, sim.worker.machine_mut().observations);
    sim.change(&with_router(6));
    assert!(sim.has_netns() && sim.specs()[0].ready);
    assert_eq!(sim.worker.machine_mut().observations, observations);
    sim.pass(Duration::from_secs(1));
    assert_eq!((sim.rounds, sim.worker.machine_mut().observations), (rounds + 2, observations + 1));
    assert_eq!(sim.core.last_round().unwrap().outcome.ops, 0);
}

#[test]
fn what_changed_by_hand_behind_a_quick_round_is_found_by_the_next() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().remove_link("vxlan-1002");
    sim.change(&with_router(6));
    assert!(!sim.has_link("vxlan-1002"));
    sim.pass(Duration::from_secs(1));
    assert!(sim.has_link("vxlan-1002"));
}

#[test]
fn changes_without_pause_are_verified_all_the_same() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    let observations = sim.worker.machine_mut().observations;
    for revision in 6..46 {
        let mut config = with_router(revision);
        add_port(&mut config, PROJECT_NETWORK, port_id(0x70), port(revision as u8, &[], Location::Unbound));
        sim.change(&config);
        sim.pass(Duration::from_millis(100));
    }
    assert_eq!(sim.worker.machine_mut().observations, observations + 1);
}

#[test]
fn many_removals_let_the_next_change_pass() {
    let mut sim = Sim::new(None);
    let mut config = base(5);
    for n in 0..80 {
        let mut network = config.networks[&PROJECT_NETWORK].clone();
        network.id = common::network_id(0x20 + n);
        network.segment = evergate_model::host::Segment::Vxlan { vni: 2000 + n as u32 };
        config.networks.insert(network.id, network);
    }
    sim.snapshot(config);
    let rounds = sim.rounds;
    sim.change(&base(6));
    assert!(sim.rounds > rounds + 1, "in several rounds");
    let links = sim.kernel().state().netns[&Netns::Host].links.keys().filter(|l| l.starts_with("vxlan-")).count();
    assert_eq!((links, sim.report().applied_revision), (2, Some(6)));
}

#[test]
fn a_quick_round_does_not_touch_what_has_the_name_of_something_new() {
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().add_foreign_link("tap00100000-00");
    let name = Netns::Named(names::qrouter_namespace(ROUTER));
    sim.change(&with_router(6));
    assert!(sim.report().warnings.iter().any(|w| w.contains("tap00100000-00")));
    let mut sim = Sim::new(None);
    sim.snapshot(base(5));
    sim.kernel().state_mut().netns.insert(name.clone(), Default::default());
    sim.change(&with_router(6));
    assert_eq!(sim.kernel().state().netns[&name], Default::default());
}

#[test]
fn the_configuration_for_keepalived_is_written_once_and_goes_with_the_router() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    sim.snapshot(with_router(5));
    sim.pass(PERIOD * 2);
    let confs: Vec<&String> = sim
        .files
        .iter()
        .filter_map(|job| if let FileJob::KeepalivedConf { text, .. } = job { Some(text) } else { None })
        .collect();
    assert_eq!(confs.len(), 1);
    assert!(confs[0].contains("virtual_router_id 7"), "{}", confs[0]);
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    let nothing: BTreeSet<RouterId> = BTreeSet::new();
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::Prune { keep } if *keep == nothing)));
}

#[test]
fn the_last_configuration_is_kept_for_a_start_without_the_server() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::Cache(config) if config.revision == 5)));
    let sim = Sim::new(Some(with_router(5)));
    assert!(sim.core.is_from_cache());
    assert_eq!(sim.core.applied_revision(), Some(5));
}

#[test]
fn agents_are_described_in_neutrons_words() {
    let sim = Sim::new(Some(with_router(5)));
    let report = sim.report();
    let l3 = &report.agents[0].configurations;
    assert_eq!((l3["agent_mode"].as_str(), l3["routers"].as_u64()), (Some("legacy"), Some(1)));
    assert_eq!((l3["ex_gw_ports"].as_u64(), l3["floating_ips"].as_u64()), (Some(1), Some(1)));
    let l2 = &report.agents[1].configurations;
    assert_eq!(l2["tunneling_ip"].as_str(), Some(HOST_VTEP));
    assert_eq!(l2["interface_mappings"]["physnet1"].as_str(), Some("ext0"));
    assert_eq!(l2["tunnel_types"][0].as_str(), Some("vxlan"));
}
