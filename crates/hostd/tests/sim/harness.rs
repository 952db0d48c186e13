//! A host of the simulation: [`Sim`], and what the tests say to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use evergate_dataplane::Netns;
use evergate_dataplane::fake::FakeKernel;
use evergate_hostd::core::{Core, FileJob, Output};
use evergate_hostd::round::Outcome;
use evergate_hostd::worker::Worker;
use evergate_keeper::protocol::{
    FollowSpec, FromKeeper, PROTOCOL_VERSION, Removal, RouterSpec, RouterStatus, Status, ToKeeper, Transition,
};
use evergate_model::host::{Distributed, HostConfig, HostReport, Location};
use evergate_model::stream::{Change, Letter};
use evergate_model::{HaState, names};

use crate::common::{PROJECT_NETWORK, ROUTER, add_ha_router, add_port, base, mac, port, port_id, settings};
use crate::machine::FakeMachine;

const MOMENT: Duration = Duration::from_millis(1);

/// A host, and all that came out of its control process.
pub(crate) struct Sim {
    pub(crate) core: Core,
    pub(crate) worker: Worker<FakeMachine>,
    pub(crate) now: Instant,
    pub(crate) connected: bool,
    pub(crate) status: Status,
    pub(crate) to_keeper: Vec<ToKeeper>,
    pub(crate) reports: Vec<HostReport>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) files: Vec<FileJob>,
    pub(crate) resyncs: usize,
    pub(crate) rounds: usize,
    pub(crate) ops: usize,
    /// Rounds end when the test says so.
    rounds_last: bool,
    unfinished: Option<Result<Outcome, String>>,
}

impl Sim {
    pub(crate) fn new(cached: Option<HostConfig>) -> Self {
        let mut machine = FakeMachine::default();
        machine.kernel.add_foreign_link("ext0");
        Self::on(machine, cached, false)
    }

    fn on(machine: FakeMachine, cached: Option<HostConfig>, rounds_last: bool) -> Self {
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
            rounds_last,
            unfinished: None,
        };
        sim.settle();
        sim
    }

    /// Starts control again on the same kernel, without a farewell.
    pub(crate) fn restart(mut self, cached: Option<HostConfig>) -> Self {
        Self::on(std::mem::take(self.worker.machine_mut()), cached, false)
    }

    /// The same; its first round is under way, until [`Self::end_round`].
    pub(crate) fn restart_in_a_round(mut self, cached: HostConfig) -> Self {
        Self::on(std::mem::take(self.worker.machine_mut()), Some(cached), true)
    }

    /// Ends the round that is under way; further ones take no time.
    pub(crate) fn end_round(&mut self) {
        self.rounds_last = false;
        let outcome = self.unfinished.take().expect("a round was begun");
        self.core.handle_outcome(outcome, self.now);
        self.settle();
    }

    pub(crate) fn kernel(&mut self) -> &mut FakeKernel {
        &mut self.worker.machine_mut().kernel
    }

    /// Does all that the core wants, at this moment.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(output) = self.core.poll_output() else { return };
            match output {
                Output::Reconcile(round) => {
                    self.rounds += 1;
                    let outcome = self.worker.run(&round).map_err(|e| format!("{e:#}"));
                    self.ops += outcome.as_ref().map_or(0, |o| o.ops);
                    if self.rounds_last {
                        self.unfinished = Some(outcome);
                    } else {
                        self.core.handle_outcome(outcome, self.now);
                    }
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

    pub(crate) fn snapshot(&mut self, config: HostConfig) {
        self.now += MOMENT;
        self.core.handle_snapshot(config, self.now);
        self.settle();
        self.introduce();
    }

    /// One whose keeper has the router.
    pub(crate) fn with_router_in_keeper() -> Self {
        let mut sim = Self::new(None);
        sim.connect_keeper();
        sim.snapshot(with_router(5));
        sim
    }

    pub(crate) fn change(&mut self, new: &HostConfig) {
        self.now += MOMENT;
        let change = Change::between(self.core.config().unwrap(), new).unwrap();
        self.core.handle_change(change, self.now);
        self.settle();
    }

    pub(crate) fn connect_keeper(&mut self) {
        self.now += MOMENT;
        self.connected = true;
        self.core.handle_keeper_connected(self.now);
        self.keeper_says(FromKeeper::Hello { version: PROTOCOL_VERSION, pid: 42, notes: Vec::new() });
        self.introduce();
    }

    /// Answers as the keeper does when it is asked for its status.
    pub(crate) fn introduce(&mut self) {
        if self.to_keeper.iter().any(|message| matches!(message, ToKeeper::Status)) {
            self.keeper_says(FromKeeper::Status(self.status.clone()));
        }
    }

    pub(crate) fn disconnect_keeper(&mut self) {
        self.connected = false;
        self.core.handle_keeper_gone(self.now);
        self.settle();
    }

    pub(crate) fn keeper_says(&mut self, said: FromKeeper) {
        self.now += MOMENT;
        self.core.handle_keeper(said, self.now);
        self.settle();
    }

    /// Lets time pass, timer by timer.
    pub(crate) fn pass(&mut self, time: Duration) {
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

    pub(crate) fn specs(&self) -> Vec<&RouterSpec> {
        self.to_keeper
            .iter()
            .filter_map(|m| if let ToKeeper::Router(spec) = m { Some(&**spec) } else { None })
            .collect()
    }

    pub(crate) fn follows(&self) -> Vec<&FollowSpec> {
        self.to_keeper.iter().filter_map(|m| if let ToKeeper::Follow(spec) = m { Some(spec) } else { None }).collect()
    }

    pub(crate) fn has_netns(&mut self) -> bool {
        let name = Netns::Named(names::qrouter_namespace(ROUTER));
        self.kernel().state().netns.contains_key(&name)
    }

    pub(crate) fn has_link(&mut self, name: &str) -> bool {
        self.kernel().state().netns[&Netns::Host].links.contains_key(name)
    }

    pub(crate) fn report(&self) -> &HostReport {
        self.reports.last().expect("a report was made")
    }

    pub(crate) fn said_end(&self) -> bool {
        self.to_keeper.iter().any(|message| matches!(message, ToKeeper::EndOfState))
    }

    pub(crate) fn removals(&self) -> usize {
        self.to_keeper
            .iter()
            .filter(|m| matches!(m, ToKeeper::RemoveRouter { router, .. } if *router == ROUTER))
            .count()
    }

    /// What the keeper was told of each router's end.
    pub(crate) fn removal_kinds(&self) -> Vec<Removal> {
        let kind =
            |message: &ToKeeper| if let ToKeeper::RemoveRouter { how, .. } = message { Some(*how) } else { None };
        self.to_keeper.iter().filter_map(kind).collect()
    }
}

pub(crate) fn with_router(revision: u64) -> HostConfig {
    let mut config = base(revision);
    add_ha_router(&mut config);
    config
}

pub(crate) fn became(state: HaState, epoch: u64, at_ms: u64) -> FromKeeper {
    let reason = "nothing heard for 6.8 s".to_owned();
    FromKeeper::Transition(Transition { router: ROUTER, state, epoch, at_ms, reason, took_us: 700 })
}

pub(crate) fn transitions(files: &[FileJob]) -> usize {
    files.iter().filter(|job| matches!(job, FileJob::Transition(_))).count()
}

/// The same router, distributed, with a copy of its source NAT and a port of an instance on this host.
pub(crate) fn distributed(mut config: HostConfig) -> HostConfig {
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

pub(crate) fn active(epoch: u64) -> Status {
    let copy = RouterStatus {
        router: ROUTER,
        netns: names::qrouter_namespace(ROUTER),
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
