//! The thread that speaks VRRP: every instance of the process, in whatever namespaces, on one epoll.
//!
//! It never runs a script, reads a file or resolves a name. A reload is taken one instance at a time, with
//! packets and timers served in between.
//!
//! Groups: a member becomes active only when the timers of all have expired (another member's active may well
//! be alive), and then all do; when one gives way or fails, all do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context;
use evergate_kernel::rt::{Epoll, NetnsFd};
use evergate_vrrp::router::{Output, Reason, State};
use evergate_vrrp::wire::Ipv4Checksum;
use tracing::{error, info, warn};

use crate::bfd::{self, Bfd};
use crate::conf::{Command, Configuration, Group, Instance, Tracked, What};
use crate::helper::{Mailbox, Message, Notifier, Transition};
use crate::instance::{FRAME_MAX, Shown, Slot, Space};
use crate::lease::{Key, Lease, Left};
use crate::track::{Reading, Spec, TrackId, Tracker, Verdict, judge};

/// What cannot be opened now is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// Packets of one instance that are taken before others have their turn.
const PACKETS_AT_ONCE: usize = 64;

/// Epoll tokens below are instances; this one is the mailbox.
const MAILBOX: u64 = u64::MAX;

/// Tokens from here on are namespaces.
const SPACES: u64 = 1 << 32;

/// Tokens from here on are sockets of BFD.
const BFD: u64 = 1 << 33;

/// What the speaker is made with.
pub(crate) struct Setup {
    pub(crate) netns_path: PathBuf,
    pub(crate) checksum: Ipv4Checksum,
    pub(crate) checksum_follows: bool,
    pub(crate) queue: Receiver<Message>,
    pub(crate) wake: UnixStream,
    pub(crate) mailbox: Mailbox,
    pub(crate) notifier: Notifier,
    pub(crate) lease: Lease,
    pub(crate) left: Left,
}

/// A group with its members.
struct GroupState {
    spec: Group,
    netns: Option<String>,
    fifos: Vec<String>,
    members: Vec<usize>,
    shown: Shown,
}

/// What a reload still has to do.
enum Step {
    Remove(usize),
    Put(Key, Box<Instance>),
    /// All instances are as they should be: now their groups and scripts.
    Finish(Vec<Configuration>),
}

/// All instances.
pub(crate) struct Speaker {
    setup: Setup,
    epoll: Epoll,
    spaces: Vec<(Option<String>, Space)>,
    slots: BTreeMap<usize, Slot>,
    next_slot: usize,
    groups: Vec<GroupState>,
    fifos: BTreeMap<Option<String>, Vec<String>>,
    trackers: BTreeMap<TrackId, Tracker>,
    /// What they have told.
    readings: BTreeMap<TrackId, Reading>,
    bfd: Bfd,
    deadlines: BTreeSet<(Instant, usize)>,
    retry: Option<Instant>,
    steps: VecDeque<Step>,
    stopping: bool,
}

impl Speaker {
    pub(crate) fn new(setup: Setup, configurations: Vec<Configuration>) -> anyhow::Result<Self> {
        let epoll = Epoll::new().context("failed to make an epoll descriptor")?;
        setup.wake.set_nonblocking(true).context("failed to prepare the mailbox")?;
        epoll.add(&setup.wake, MAILBOX).context("failed to watch the mailbox")?;
        let mut speaker = Self {
            setup,
            epoll,
            spaces: Vec::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            groups: Vec::new(),
            fifos: BTreeMap::new(),
            trackers: BTreeMap::new(),
            readings: BTreeMap::new(),
            bfd: Bfd::new(BFD),
            deadlines: BTreeSet::new(),
            retry: None,
            steps: VecDeque::new(),
            stopping: false,
        };
        for configuration in &configurations {
            speaker.open_space(&configuration.net_namespace)?;
        }
        speaker.plan(configurations);
        Ok(speaker)
    }

    /// Runs until it is told to stop; everything is resigned and removed then.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        let mut buffer = vec![0; FRAME_MAX];
        while !self.stopping {
            let until = if self.steps.is_empty() { self.next_deadline() } else { Some(Instant::now()) };
            self.epoll.wait(until, &mut ready).context("failed to wait for packets")?;
            // Packets before timers: one may be the very advertisement whose absence a timer would report.
            for &token in &ready {
                self.serve(token, &mut buffer);
            }
            self.fire(Instant::now());
            self.attend_bfd(Instant::now());
            if let Some(step) = self.steps.pop_front() {
                self.step(step);
            }
            if self.retry.is_some_and(|at| at <= Instant::now()) {
                self.retry = None;
                let faulty: Vec<usize> =
                    self.slots.iter().filter(|(_, slot)| !slot.faults.is_empty()).map(|(id, _)| *id).collect();
                self.review(&faulty);
            }
        }
        self.stop();
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let next = self.deadlines.first().map(|(at, _)| *at);
        [next, self.retry, self.bfd.poll_timeout(), self.bfd.retry_at()].into_iter().flatten().min()
    }

    fn serve(&mut self, token: u64, buffer: &mut [u8]) {
        match token {
            MAILBOX => self.read_mail(),
            BFD.. => {
                let changes = self.bfd.serve(token, Instant::now());
                self.take_bfd(changes);
            }
            SPACES.. => {
                let Some((netns, space)) = self.spaces.get_mut((token - SPACES) as usize) else { return };
                let (netns, changed) = (netns.clone(), space.take_events());
                let concerned: Vec<usize> = self
                    .slots
                    .iter()
                    .filter(|(_, slot)| slot.key.0 == netns && slot.concerns(&changed))
                    .map(|(id, _)| *id)
                    .collect();
                self.review(&concerned);
            }
            id => {
                let id = id as usize;
                for _ in 0..PACKETS_AT_ONCE {
                    let Some(slot) = self.slots.get_mut(&id) else { return };
                    if !slot.receive(buffer, Instant::now()) {
                        break;
                    }
                    self.settle(id);
                }
            }
        }
    }

    fn read_mail(&mut self) {
        let mut bytes = [0; 64];
        while matches!((&self.setup.wake).read(&mut bytes), Ok(1..)) {}
        while let Ok(message) = self.setup.queue.try_recv() {
            match message {
                Message::Tracked { id, reading } => self.take_reading(id, reading),
                Message::Reload(configurations) => self.plan(configurations),
                Message::Stop => self.stopping = true,
            }
        }
    }

    fn take_reading(&mut self, id: TrackId, reading: Reading) {
        // What was said of something that is not tracked any more is too late.
        if id.1 != What::Bfd && !self.trackers.contains_key(&id) {
            return;
        }
        self.readings.insert(id.clone(), reading);
        let tracks = |slot: &Slot| {
            slot.key.0 == id.0 && slot.spec.tracked.iter().any(|tracked| tracked.what == id.1 && tracked.name == id.2)
        };
        let concerned: Vec<usize> = self.slots.iter().filter(|(_, slot)| tracks(slot)).map(|(id, _)| *id).collect();
        self.review(&concerned);
    }

    fn take_bfd(&mut self, changes: Vec<bfd::Change>) {
        for change in changes {
            self.take_reading(change.id, Reading::Works(change.is_up));
        }
    }

    fn attend_bfd(&mut self, now: Instant) {
        if self.bfd.poll_timeout().is_some_and(|at| at <= now) {
            let changes = self.bfd.handle_timeout(now);
            self.take_bfd(changes);
        }
        if self.bfd.retry_at().is_some_and(|at| at <= now) {
            self.open_bfd(now);
        }
    }

    fn open_bfd(&mut self, now: Instant) {
        let spaces = &self.spaces;
        let find =
            |netns: &Option<String>| spaces.iter().find(|(known, _)| known == netns).map(|(_, space)| &*space.netns);
        self.bfd.open(now, &self.epoll, find);
    }

    /// Fires the timers that are due.
    fn fire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.deadline = None;
            if slot.refresh.is_some_and(|at| at <= now) {
                slot.announce();
                slot.refresh = slot.spec.announce_refresh.map(|every| now + every);
            }
            let due = slot.engine.as_ref().and_then(|engine| engine.poll_timeout()).filter(|(at, _)| *at <= now);
            if let Some((at, _)) = due {
                if self.must_wait_for_group(id, now) {
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.deferred = Some(at);
                    }
                } else if let Some(engine) = self.slots.get_mut(&id).and_then(|slot| slot.engine.as_mut()) {
                    engine.handle_timeout(now);
                }
            }
            self.settle(id);
        }
    }

    /// Whether another member of its group hears an active (its timer has not expired).
    fn must_wait_for_group(&self, id: usize, now: Instant) -> bool {
        if self.slots.get(&id).map(Slot::state) != Some(State::Backup) {
            return false;
        }
        let Some(group) = self.groups.iter().find(|group| group.members.contains(&id)) else { return false };
        group.members.iter().filter(|other| **other != id).filter_map(|other| self.slots.get(other)).any(|other| {
            let due = other.engine.as_ref().and_then(|engine| engine.poll_timeout());
            other.state() == State::Backup && due.is_some_and(|(at, _)| at > now)
        })
    }

    /// Carries out what the engine wants, takes its group along, and sets its deadline.
    fn settle(&mut self, id: usize) {
        let mut changes = VecDeque::from([id]);
        // Every member changes at most twice for one cause; the bound is for a cause that nobody thought of.
        for _ in 0..1000 {
            let Some(id) = changes.pop_front() else { return };
            let before = self.carry_out(id);
            let state = self.slots.get(&id).map_or(State::Initialize, Slot::state);
            if let Some((before, reason)) = before
                && before != state
            {
                changes.extend(self.take_group_along(id, before, reason));
            }
            self.tell(id);
            self.set_deadline(id);
        }
    }

    /// Returns the state before the first change, and its reason.
    fn carry_out(&mut self, id: usize) -> Option<(State, Reason)> {
        let slot = self.slots.get_mut(&id)?;
        let space = self.spaces.iter_mut().find(|(netns, _)| *netns == slot.key.0).map(|(_, space)| space)?;
        let mut first = None;
        while let Some(output) = slot.engine.as_mut().and_then(|engine| engine.poll_output()) {
            match output {
                Output::Transmit(advertisement) => slot.transmit(&advertisement),
                Output::Activate => {
                    slot.activate(space);
                    slot.refresh = slot.spec.announce_refresh.map(|every| Instant::now() + every);
                    self.setup.lease.set(&slot.key, true);
                }
                Output::Deactivate => {
                    slot.deactivate(space);
                    slot.refresh = None;
                    self.setup.lease.set(&slot.key, false);
                }
                Output::AnnounceAddresses => slot.announce(),
                // Only copies that agree on other paths say these; a keepalived has no such peers.
                Output::TakeoverDue { .. } | Output::Contested { .. } | Output::Prevailed { .. } => {}
                Output::StateChanged { from, to, reason } => {
                    first.get_or_insert((from, reason));
                    info!(instance = slot.spec.name, ?from, ?to, ?reason, "transition");
                }
            }
        }
        first
    }

    /// What a member did, the others do.
    fn take_group_along(&mut self, id: usize, before: State, reason: Reason) -> Vec<usize> {
        let Some(slot) = self.slots.get(&id) else { return Vec::new() };
        let Some(group) = self.groups.iter().find(|group| group.members.contains(&id)) else { return Vec::new() };
        let (state, now) = (slot.state(), Instant::now());
        let mut moved = Vec::new();
        for &other in group.members.iter().filter(|other| **other != id) {
            let Some(other_slot) = self.slots.get_mut(&other) else { continue };
            let Some(engine) = &mut other_slot.engine else { continue };
            match (state, engine.state()) {
                // Leaving the election for a moment starts it anew: that is how a role is put on.
                (State::Active, State::Backup) => {
                    engine.handle_fault(now);
                    engine.handle_adopt_active(now);
                }
                (State::Backup, State::Active) if before == State::Active => {
                    engine.handle_fault(now);
                    engine.handle_startup(now);
                }
                (State::Initialize, State::Active | State::Backup) if reason == Reason::Fault => {
                    engine.handle_fault(now);
                }
                _ => continue,
            }
            moved.push(other);
        }
        moved
    }

    fn set_deadline(&mut self, id: usize) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let due = slot.engine.as_ref().and_then(|engine| engine.poll_timeout()).map(|(at, _)| at);
        if slot.deferred.is_some() && slot.deferred != due {
            slot.deferred = None;
        }
        let timer = if slot.deferred.is_some() { None } else { due };
        let next = [timer, slot.refresh].into_iter().flatten().min();
        if next != slot.deadline {
            if let Some(old) = slot.deadline.take() {
                self.deadlines.remove(&(old, id));
            }
            if let Some(next) = next {
                self.deadlines.insert((next, id));
            }
            slot.deadline = next;
        }
    }

    /// Looks again at what instances need and track, and lets them take part or not.
    fn review(&mut self, ids: &[usize]) {
        let now = Instant::now();
        for &id in ids {
            self.review_one(id, now);
        }
        // A member takes part only if all can; so whoever recovered may free the others.
        let mut concerned: BTreeSet<usize> = ids.iter().copied().collect();
        for group in &self.groups {
            if group.members.iter().any(|member| concerned.contains(member)) {
                concerned.extend(&group.members);
            }
        }
        for id in concerned {
            let group_ok = self.group_can(id);
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let can = slot.faults.is_empty() && group_ok;
            if !slot.faults.is_empty() {
                self.retry.get_or_insert(now + RETRY);
            }
            match (can, slot.state()) {
                (true, State::Initialize) => self.start(id, now),
                (false, State::Backup | State::Active) => {
                    if let Some(engine) = &mut slot.engine {
                        engine.handle_fault(now);
                    }
                }
                (true, State::Backup | State::Active) | (false, State::Initialize) => {}
            }
            self.settle(id);
        }
    }

    fn group_can(&self, id: usize) -> bool {
        let group = self.groups.iter().find(|group| group.members.contains(&id));
        let members = group.map(|group| group.members.as_slice()).unwrap_or_default();
        members.iter().filter_map(|member| self.slots.get(member)).all(|slot| slot.faults.is_empty())
    }

    /// Its faults, its priority and its messages.
    fn review_one(&mut self, id: usize, now: Instant) {
        let readings = &self.readings;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some((_, space)) = self.spaces.iter_mut().find(|(netns, _)| *netns == slot.key.0) else { return };
        let mut faults = BTreeSet::new();
        let opened = slot.open(space);
        if opened == Ok(true)
            && let Some(packets) = slot.packets()
            && let Err(error) = self.epoll.add(packets, id as u64)
        {
            faults.insert(format!("its socket cannot be watched: {error}"));
        }
        faults.extend(opened.err());
        let mut priority = i32::from(slot.spec.priority);
        for tracked in &slot.spec.tracked {
            let Tracked { what, name, .. } = tracked;
            let reading = match what {
                What::Interface => Reading::Works(space.works(name)),
                What::Script | What::File | What::Process | What::Bfd => {
                    let told = readings.get(&(slot.key.0.clone(), *what, name.clone())).copied();
                    told.unwrap_or(if *what == What::File { Reading::Value(0) } else { Reading::Works(true) })
                }
            };
            match judge(tracked, reading) {
                Verdict::Fault => {
                    let state = if tracked.weight.reverse { "works, and must not" } else { "does not work" };
                    faults.insert(format!("{what} {name} {state}"));
                }
                Verdict::Adds(weight) => priority += weight,
            }
        }
        if slot.spec.priority != evergate_vrrp::router::OWNER_PRIORITY {
            // RFC 9568 §5.2.4: what is tracked yields neither 0 nor 255.
            priority = priority.clamp(1, 254);
        }
        for fault in faults.difference(&slot.faults) {
            warn!(instance = slot.spec.name, "fault: {fault}");
        }
        if faults.is_empty() && !slot.faults.is_empty() {
            info!(instance = slot.spec.name, "fault is over");
        }
        slot.faults = faults;
        if slot.packets().is_some() {
            slot.prepare(space);
            slot.configure(priority as u8, now);
        }
    }

    /// Takes part, as active if it was so a moment ago.
    fn start(&mut self, id: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some((_, space)) = self.spaces.iter_mut().find(|(netns, _)| *netns == slot.key.0) else { return };
        let left = std::mem::take(&mut slot.left_behind);
        let adopt = left && self.setup.left.was_active(&slot.key, slot.adoption_time()) && slot.is_in_place(space);
        if left && !adopt {
            // Whatever a killed process left: another router may have it now.
            slot.deactivate(space);
        }
        if let Some(engine) = &mut slot.engine {
            if adopt { engine.handle_adopt_active(now) } else { engine.handle_startup(now) }
        }
    }

    /// Tells those who want to know what an instance, and its group, has become.
    fn tell(&mut self, id: usize) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let in_fault = slot.packets().is_none() || !slot.faults.is_empty();
        let shown = match slot.state() {
            State::Active => Shown::Master,
            State::Backup => Shown::Backup,
            State::Initialize if self.stopping => Shown::Stop,
            State::Initialize if in_fault => Shown::Fault,
            // A group's member whose group is in fault, or one that has not begun.
            State::Initialize if slot.shown == Shown::Nothing => Shown::Nothing,
            State::Initialize => Shown::Fault,
        };
        if shown != slot.shown && shown != Shown::Nothing {
            slot.shown = shown;
            let priority = slot.engine.as_ref().map_or(slot.spec.priority, |engine| engine.config().priority);
            let event = Event { kind: "INSTANCE", name: &slot.spec.name, shown, priority };
            let fifos = self.fifos.get(&slot.key.0).cloned().unwrap_or_default();
            let netns = named(&self.spaces, &slot.key.0);
            self.setup.notifier.tell(event.transition(&slot.spec.notify, fifos, netns));
        }
        let slots = &self.slots;
        for group in self.groups.iter_mut().filter(|group| group.members.contains(&id)) {
            let all = |wanted: Shown| group.members.iter().filter_map(|id| slots.get(id)).all(|s| s.shown == wanted);
            let any = |wanted: Shown| group.members.iter().filter_map(|id| slots.get(id)).any(|s| s.shown == wanted);
            let shown = if any(Shown::Fault) {
                Shown::Fault
            } else if let Some(same) =
                [Shown::Master, Shown::Backup, Shown::Stop].into_iter().find(|wanted| all(*wanted))
            {
                same
            } else {
                continue;
            };
            if shown != group.shown {
                group.shown = shown;
                let event = Event { kind: "GROUP", name: &group.spec.name, shown, priority: 0 };
                let netns = named(&self.spaces, &group.netns);
                self.setup.notifier.tell(event.transition(&group.spec.notify, group.fifos.clone(), netns));
            }
        }
    }

    fn open_space(&mut self, netns: &Option<String>) -> anyhow::Result<()> {
        if self.spaces.iter().any(|(known, _)| known == netns) {
            return Ok(());
        }
        let opened = match netns {
            None => NetnsFd::host(),
            Some(name) => NetnsFd::open(&self.setup.netns_path.join(Path::new(name))),
        };
        let space = opened.and_then(Space::open).map_err(|error| anyhow::anyhow!(error.full()))?;
        self.epoll.add(&space.watch, SPACES + self.spaces.len() as u64).context("failed to watch links")?;
        self.spaces.push((netns.clone(), space));
        Ok(())
    }

    /// Plans the way from what runs to what is configured.
    fn plan(&mut self, configurations: Vec<Configuration>) {
        for configuration in &configurations {
            if let Err(error) = self.open_space(&configuration.net_namespace) {
                error!("the configuration is not taken: {error:#}");
                return;
            }
        }
        // What an earlier reload had not got to, this one does.
        self.steps.clear();
        let mut wanted: BTreeMap<Key, &Instance> = BTreeMap::new();
        for configuration in &configurations {
            for instance in &configuration.instances {
                wanted.insert((configuration.net_namespace.clone(), instance.name.clone()), instance);
            }
        }
        for (id, slot) in &self.slots {
            match wanted.get(&slot.key) {
                Some(spec) if !slot.is_other(spec) => {}
                Some(_) | None => self.steps.push_back(Step::Remove(*id)),
            }
        }
        for (key, spec) in wanted {
            if !self.slots.values().any(|slot| slot.key == key && slot.spec == *spec) {
                self.steps.push_back(Step::Put(key, Box::new(spec.clone())));
            }
        }
        self.steps.push_back(Step::Finish(configurations));
    }

    fn step(&mut self, step: Step) {
        let now = Instant::now();
        match step {
            Step::Remove(id) => {
                if let Some(engine) = self.slots.get_mut(&id).and_then(|slot| slot.engine.as_mut()) {
                    engine.handle_shutdown(now);
                }
                for group in &mut self.groups {
                    group.members.retain(|member| *member != id);
                }
                self.carry_out(id);
                self.deadlines.retain(|(_, other)| *other != id);
                if let Some(mut slot) = self.slots.remove(&id)
                    && let Some((_, space)) = self.spaces.iter_mut().find(|(netns, _)| *netns == slot.key.0)
                {
                    slot.clear_away(space);
                }
            }
            Step::Put(key, spec) => {
                let existing = self.slots.iter_mut().find(|(_, slot)| slot.key == key);
                if let Some((_, slot)) = existing {
                    slot.spec = *spec;
                } else {
                    let slot = Slot::new(key, *spec, self.setup.checksum, self.setup.checksum_follows);
                    self.slots.insert(self.next_slot, slot);
                    self.next_slot += 1;
                }
            }
            Step::Finish(configurations) => {
                self.set_trackers(&configurations);
                self.set_bfd(&configurations, now);
                self.set_groups(&configurations);
                let all: Vec<usize> = self.slots.keys().copied().collect();
                self.review(&all);
                info!(instances = self.slots.len(), "the configuration is in effect");
            }
        }
    }

    fn set_groups(&mut self, configurations: &[Configuration]) {
        let old = std::mem::take(&mut self.groups);
        self.fifos.clear();
        for configuration in configurations {
            let netns = &configuration.net_namespace;
            self.fifos.entry(netns.clone()).or_default().extend(configuration.fifos.iter().cloned());
            for spec in &configuration.groups {
                let is_member = |slot: &Slot| slot.key.0 == *netns && spec.members.contains(&slot.key.1);
                let members = self.slots.iter().filter(|(_, slot)| is_member(slot)).map(|(id, _)| *id).collect();
                let before = old.iter().find(|group| group.netns == *netns && group.spec.name == spec.name);
                self.groups.push(GroupState {
                    spec: spec.clone(),
                    netns: netns.clone(),
                    fifos: configuration.fifos.clone(),
                    members,
                    shown: before.map_or(Shown::Nothing, |group| group.shown),
                });
            }
        }
        for slot in self.slots.values_mut() {
            slot.deferred = None;
        }
    }

    /// What nobody tracks is not looked after.
    fn set_trackers(&mut self, configurations: &[Configuration]) {
        let mut wanted: BTreeMap<TrackId, Spec> = BTreeMap::new();
        for configuration in configurations {
            for tracked in configuration.instances.iter().flat_map(|instance| &instance.tracked) {
                let Tracked { what, name, .. } = tracked;
                let spec = match what {
                    What::Script => configuration.scripts.get(name).cloned().map(Spec::Script),
                    What::File => configuration.files.get(name).cloned().map(Spec::File),
                    What::Process => configuration.processes.get(name).cloned().map(Spec::Process),
                    What::Interface | What::Bfd => None,
                };
                let id = (configuration.net_namespace.clone(), *what, name.clone());
                wanted.extend(spec.map(|spec| (id, spec)));
            }
        }
        self.trackers.retain(|id, tracker| wanted.get(id) == Some(&tracker.spec));
        self.readings.retain(|id, _| id.1 == What::Bfd || self.trackers.contains_key(id));
        for (id, spec) in wanted {
            if self.trackers.contains_key(&id) {
                continue;
            }
            if matches!(&spec, Spec::Script(script) if script.init_fail) {
                self.readings.insert(id.clone(), Reading::Works(false));
            }
            let netns = named(&self.spaces, &id.0);
            let started = self.setup.mailbox.try_clone().and_then(|m| Tracker::start(id.clone(), spec, netns, m));
            match started {
                Ok(tracker) => drop(self.trackers.insert(id, tracker)),
                Err(error) => error!("{} {} cannot be looked after: {error}", id.1, id.2),
            }
        }
    }

    /// Sessions that nobody tracks are not opened.
    fn set_bfd(&mut self, configurations: &[Configuration], now: Instant) {
        let mut wanted = BTreeMap::new();
        for configuration in configurations {
            let tracked = configuration.instances.iter().flat_map(|instance| &instance.tracked);
            for tracked in tracked.filter(|tracked| tracked.what == What::Bfd) {
                let spec = configuration.bfd.get(&tracked.name).cloned();
                wanted.extend(spec.map(|spec| (bfd::id(&configuration.net_namespace, &tracked.name), spec)));
            }
        }
        self.readings.retain(|id, _| id.1 != What::Bfd);
        self.bfd.set(wanted.clone(), now);
        for id in wanted.into_keys() {
            // Before it was up, a session counts as failed.
            let is_up = self.bfd.is_up(&id);
            self.readings.insert(id, Reading::Works(is_up));
        }
        self.open_bfd(now);
    }

    /// Resigns, removes, tells, and waits for who is told.
    fn stop(mut self) {
        self.stopping = true;
        self.groups.iter_mut().for_each(|group| group.members.retain(|id| self.slots.contains_key(id)));
        let now = Instant::now();
        for slot in self.slots.values_mut() {
            if let Some(engine) = &mut slot.engine {
                engine.handle_shutdown(now);
            }
        }
        let all: Vec<usize> = self.slots.keys().copied().collect();
        for id in all {
            self.carry_out(id);
            self.tell(id);
        }
        for slot in self.slots.values().filter(|slot| !slot.discards().is_empty()) {
            info!(instance = slot.spec.name, "advertisements discarded: {:?}", slot.discards());
        }
        for slot in self.slots.values_mut() {
            if let Some((_, space)) = self.spaces.iter_mut().find(|(netns, _)| *netns == slot.key.0) {
                slot.clear_away(space);
            }
        }
        self.bfd.stop(now);
        self.trackers.clear();
        self.setup.notifier.finish();
        self.setup.lease.finish();
    }
}

/// The namespace to run scripts in; `None` is ours.
fn named(spaces: &[(Option<String>, Space)], netns: &Option<String>) -> Option<Arc<NetnsFd>> {
    netns.as_ref()?;
    spaces.iter().find(|(known, _)| known == netns).map(|(_, space)| Arc::clone(&space.netns))
}

/// What somebody became.
struct Event<'a> {
    kind: &'static str,
    name: &'a str,
    shown: Shown,
    priority: u8,
}

impl Event<'_> {
    fn transition(&self, notify: &crate::conf::Notify, fifos: Vec<String>, netns: Option<Arc<NetnsFd>>) -> Transition {
        let (word, own) = match self.shown {
            Shown::Master => ("MASTER", &notify.master),
            Shown::Backup => ("BACKUP", &notify.backup),
            Shown::Stop => ("STOP", &notify.stop),
            Shown::Fault | Shown::Nothing => ("FAULT", &notify.fault),
        };
        let any = notify.any.as_ref().map(|command| {
            let arguments = [self.kind, self.name, word].map(str::to_owned).into_iter();
            let words = command.words.iter().cloned().chain(arguments).chain([self.priority.to_string()]).collect();
            Command { words, ..command.clone() }
        });
        Transition {
            fifos,
            line: format!("{} \"{}\" {word} {}\n", self.kind, self.name, self.priority),
            commands: own.iter().cloned().chain(any).collect(),
            netns,
        }
    }
}
