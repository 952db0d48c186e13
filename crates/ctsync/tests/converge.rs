//! Engines on a network that loses, repeats and reorders: in the end the standby's kernel holds what the
//! active copy's does.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may start its clock anywhere, and ends where it fails"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_ctsync::message::{Message, Record};
use evergate_ctsync::{Change, Engine, Limits, Role, Wanted, is_valuable};
use evergate_model::RouterId;
use evergate_model::flow::{Flow, FlowKey, L4, Tuple, protocol, status};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn address(host: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, host as u8])
}

fn router(n: u128) -> RouterId {
    RouterId::from_u128(n)
}

fn flow(n: u32, variant: u16) -> Flow {
    let original = Tuple {
        src: IpAddr::from((0x0a00_0000 + n).to_be_bytes()),
        dst: "198.51.100.1".parse().unwrap(),
        protocol: protocol::TCP,
        l4: L4::Ports { src: 1000, dst: 80 },
    };
    let to = L4::Ports { src: 80, dst: 20_000 + variant };
    let reply = Tuple { src: original.dst, dst: "203.0.113.1".parse().unwrap(), l4: to, ..original };
    Flow::established(original, reply)
}

/// A host: its engine and, per router, what its kernel holds.
struct Host {
    engine: Engine,
    kernel: BTreeMap<RouterId, BTreeMap<FlowKey, Flow>>,
    /// How many flows of a router its kernel has room for.
    room: usize,
    expiring: BTreeSet<FlowKey>,
}

struct Net {
    hosts: Vec<Host>,
    wire: VecDeque<(usize, usize, Vec<u8>)>,
    now: Instant,
    /// Of each message, out of 256: lost, repeated, delayed.
    faults: [u8; 3],
    dice: u64,
    carried: usize,
    /// Comparisons that were sent.
    checks: usize,
}

impl Net {
    fn new(hosts: usize, faults: [u8; 3], dice: u64) -> Self {
        let host = |n| Host {
            engine: Engine::new(Limits::default(), 1000 * n as u32),
            kernel: BTreeMap::new(),
            room: usize::MAX,
            expiring: BTreeSet::new(),
        };
        let mut net = Self {
            hosts: (0..hosts).map(host).collect(),
            wire: VecDeque::new(),
            now: Instant::now(),
            faults,
            dice: dice | 1,
            carried: 0,
            checks: 0,
        };
        for a in 0..hosts {
            for b in (0..hosts).filter(|b| *b != a) {
                net.hosts[a].engine.handle_peer_up(address(b));
            }
        }
        net
    }

    fn role(&mut self, host: usize, of: RouterId, role: Role) {
        let peers = (0..self.hosts.len()).filter(|n| *n != host).map(address).collect();
        let (now, entry) = (self.now, &mut self.hosts[host]);
        let kernel = entry.kernel.entry(of).or_default();
        match entry.engine.set_router(of, role, peers) {
            Wanted::Nothing => {}
            Wanted::LookUp(keys) => {
                let found = keys.iter().filter_map(|key| kernel.get(key).copied()).collect();
                entry.engine.handle_looked_up(of, found, now);
            }
            Wanted::Listing => entry.engine.handle_listing(of, kernel.values().copied().collect(), now),
        }
    }

    fn put(&mut self, host: usize, of: RouterId, flow: Flow) {
        let (now, entry) = (self.now, &mut self.hosts[host]);
        entry.kernel.entry(of).or_default().insert(flow.key(), flow);
        entry.engine.handle_changed(of, flow, now);
    }

    fn remove(&mut self, host: usize, of: RouterId, flow: Flow) {
        let (now, entry) = (self.now, &mut self.hosts[host]);
        entry.kernel.entry(of).or_default().remove(&flow.key());
        entry.engine.handle_gone(of, &flow.key(), now);
    }

    fn roll(&mut self) -> u8 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 24) as u8
    }

    /// Everything that can happen now, then a little later.
    fn step(&mut self) {
        for from in 0..self.hosts.len() {
            while let Some((to, bytes)) = self.hosts[from].engine.poll_transmit(self.now) {
                assert!(bytes.len() <= evergate_ctsync::message::MAX_LEN);
                let to = (0..self.hosts.len()).find(|n| address(*n) == to).unwrap();
                self.carried += 1;
                let records = Message::parse(&bytes).unwrap().records;
                self.checks += records.iter().filter(|record| matches!(record, Record::Check { .. })).count();
                if self.roll() < self.faults[0] {
                    continue;
                }
                if self.roll() < self.faults[1] {
                    self.wire.push_back((from, to, bytes.clone()));
                }
                if self.roll() < self.faults[2] {
                    self.wire.push_front((from, to, bytes));
                } else {
                    self.wire.push_back((from, to, bytes));
                }
            }
        }
        // Some stay under way.
        let count = if self.faults[2] > 0 { self.wire.len().div_ceil(2) } else { self.wire.len() };
        for (from, to, bytes) in self.wire.drain(..count).collect::<Vec<_>>() {
            self.hosts[to].engine.handle_message(address(from), &bytes, self.now).unwrap();
            self.apply(to);
        }
        self.now += MS;
        for host in &mut self.hosts {
            if host.engine.poll_timeout().is_some_and(|at| at <= self.now) {
                host.engine.handle_timeout(self.now);
            }
        }
    }

    fn apply(&mut self, to: usize) {
        let host = &mut self.hosts[to];
        while let Some((of, changes)) = host.engine.poll_changes() {
            let kernel = host.kernel.entry(of).or_default();
            let mut missing = BTreeSet::new();
            for change in changes.iter().copied() {
                if let Change::Put { flow, .. } = change
                    && !kernel.contains_key(&flow.key())
                    && kernel.len() >= host.room
                {
                    let mut lesser = std::iter::from_fn(|| host.engine.take_lesser(of));
                    let gone = if is_valuable(&flow) { lesser.find(|key| kernel.remove(key).is_some()) } else { None };
                    missing.insert(gone.unwrap_or(flow.key()));
                    if gone.is_none() {
                        continue;
                    }
                }
                match change {
                    Change::Put { flow, replace, known } => {
                        let before = kernel.get(&flow.key());
                        // One that is not known is made, in the place of whatever is left to expire there.
                        assert!(
                            replace || !known || before.is_none_or(|before| before.reply == flow.reply),
                            "an entry's translation cannot be changed: {before:?} to {flow:?}"
                        );
                        kernel.insert(flow.key(), flow);
                    }
                    Change::Delete(key) => drop(kernel.remove(&key)),
                    Change::Expire(key, _) => drop(host.expiring.insert(key)),
                }
            }
            host.engine.handle_injected(of, &changes, &missing);
        }
    }

    fn calm(&mut self) {
        self.faults = [0; 3];
        for _ in 0..8000 {
            self.step();
        }
    }

    fn assert_same(&self, a: usize, b: usize, of: RouterId) {
        let kernel = |n: usize| {
            let host: &Host = &self.hosts[n];
            host.kernel.get(&of).cloned().unwrap_or_default()
        };
        assert_eq!(kernel(a), kernel(b));
        assert_eq!(self.hosts[a].engine.entries(of), kernel(a).len());
        assert_eq!(self.hosts[b].engine.entries(of), kernel(b).len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does_the_standbys_end_up_with_what_the_active_has(
        faults: [u8; 3], dice: u64,
        events in prop::collection::vec((0..40_u32, 0..4_u16, 0..5_u8), 0..300),
        restart_at in 0..300_usize,
    ) {
        let mut net = Net::new(3, faults.map(|fault| fault / 2), dice);
        net.role(0, router(1), Role::Active { epoch: 1 });
        net.role(1, router(1), Role::Standby);
        for (at, (n, variant, what)) in events.into_iter().enumerate() {
            if at == 50 {
                net.role(2, router(1), Role::Standby);
            }
            if at == restart_at {
                // The process on host 1 is another one: it knows nothing, its kernel is as it was.
                net.hosts[1].engine = Engine::new(Limits::default(), 77_000);
                net.wire.clear();
                for n in [0, 2] {
                    net.hosts[n].engine.handle_peer_up(address(1));
                    net.hosts[1].engine.handle_peer_up(address(n));
                }
                net.role(1, router(1), Role::Standby);
            }
            match what {
                0 => net.remove(0, router(1), flow(n, variant)),
                1 => net.step(),
                _ => net.put(0, router(1), flow(n, if what == 2 { variant } else { 0 })),
            }
        }
        net.role(2, router(1), Role::Standby);
        net.calm();
        // What a restarted standby found in its kernel and nobody vouched for would expire by itself.
        let expiring = std::mem::take(&mut net.hosts[1].expiring);
        let vouched: BTreeSet<FlowKey> = net.hosts[0].kernel.entry(router(1)).or_default().keys().copied().collect();
        net.hosts[1].kernel.entry(router(1)).or_default().retain(|k, _| vouched.contains(k) || !expiring.contains(k));
        net.assert_same(0, 1, router(1));
        net.assert_same(0, 2, router(1));
        prop_assert!(net.hosts[0].engine.stats(net.now)[&router(1)].in_step);
    }
}

#[test]
fn ten_thousand_flows_reach_a_standby_that_joins_late_and_a_takeover_swaps_the_roles() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    for n in 0..10_000 {
        net.put(0, router(1), flow(n, n as u16));
    }
    net.role(1, router(1), Role::Standby);
    for _ in 0..200 {
        net.step();
    }
    net.assert_same(0, 1, router(1));
    assert!(net.carried < 1000, "{} messages for 10,000 flows", net.carried);
    net.role(1, router(1), Role::Active { epoch: 2 });
    net.role(0, router(1), Role::Standby);
    for n in 0..5000 {
        net.remove(1, router(1), flow(n, n as u16));
        net.put(1, router(1), flow(20_000 + n, 7));
    }
    net.calm();
    // What the new active had let go of before the former one listened stays there for a while.
    let expiring = std::mem::take(&mut net.hosts[0].expiring);
    assert_eq!(expiring.len(), 5000);
    net.hosts[0].kernel.entry(router(1)).or_default().retain(|key, _| !expiring.contains(key));
    net.assert_same(0, 1, router(1));
}

#[test]
fn what_has_a_short_timeout_is_renewed_until_it_ends() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    let short = Flow { timeout_s: 120, ..flow(1, 1) };
    net.put(0, router(1), short);
    for _ in 0..100 {
        net.step();
    }
    net.hosts[1].kernel.entry(router(1)).or_default().clear();
    // Two thirds of its time.
    net.now += Duration::from_secs(80);
    for _ in 0..100 {
        net.step();
    }
    let kernel = &net.hosts[1].kernel[&router(1)];
    assert_eq!(kernel[&short.key()].timeout_s, 120, "it was told again, although nothing changed");
    net.remove(0, router(1), short);
    for _ in 0..100 {
        net.step();
    }
    assert!(net.hosts[1].kernel[&router(1)].is_empty());
}

#[test]
fn under_pressure_established_connections_go_first_and_what_ends_meanwhile_is_counted() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    for _ in 0..20 {
        net.step();
    }
    let attempt = |n| Flow { status: status::CONFIRMED, tcp: None, timeout_s: 60, ..flow(n, 1) };
    for n in 0..20_000 {
        net.put(0, router(1), attempt(n));
    }
    for n in 100_000..100_500 {
        net.put(0, router(1), flow(n, 2));
    }
    net.step();
    let first: Vec<Flow> = net.hosts[1].kernel[&router(1)].values().copied().collect();
    assert!(first.len() >= 500);
    assert_eq!(first.iter().filter(|flow| flow.has(status::ASSURED)).count(), 500);
    for n in 0..20_000 {
        net.remove(0, router(1), attempt(n));
    }
    for _ in 0..100 {
        net.step();
    }
    net.assert_same(0, 1, router(1));
    assert!(net.hosts[0].engine.stats(net.now)[&router(1)].shed > 10_000);
}

#[test]
fn a_standby_is_complete_and_compares_also_while_connections_come_and_go_without_a_pause() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    for n in 0..30_000 {
        net.put(0, router(1), flow(n, 1));
        net.put(0, router(1), flow(50_000 + n, 2));
        if n >= 100 {
            net.remove(0, router(1), flow(n - 100, 1));
        }
        if n % 5 == 0 {
            net.step();
        }
        if n == 1000 {
            let now = net.now;
            assert_eq!(net.hosts[0].engine.complete(router(1), now), [address(1)].into());
            assert!(net.hosts[0].engine.stats(now)[&router(1)].in_step);
        }
    }
    // 6 seconds: at the beginning, and after 5.
    assert_eq!(net.checks, 2);
    let stats = net.hosts[0].engine.stats(net.now)[&router(1)];
    assert!(stats.lag < 20 * MS && stats.lags.0[5..].iter().all(|count| *count == 0), "{stats:?}");
    net.calm();
    net.assert_same(0, 1, router(1));
    assert_eq!(net.hosts[1].engine.stats(net.now)[&router(1)].resyncs, 0);
}

#[test]
fn lag_is_how_long_the_oldest_change_waits_and_without_one_how_long_the_last_took() {
    let mut net = Net::new(3, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    net.role(2, router(1), Role::Standby);
    for _ in 0..20 {
        net.step();
    }
    let lag = |net: &mut Net| {
        let now = net.now;
        net.hosts[0].engine.stats(now)[&router(1)].lag
    };
    net.put(0, router(1), flow(1, 1));
    net.faults = [255, 0, 0];
    for waited in 0..100 {
        assert_eq!(lag(&mut net), waited * MS);
        net.step();
    }
    net.faults = [0; 3];
    for _ in 0..200 {
        net.step();
    }
    let took = lag(&mut net);
    assert!(took >= 100 * MS && took < 300 * MS, "{took:?}");
    net.put(0, router(1), flow(2, 1));
    assert_eq!(lag(&mut net), Duration::ZERO, "what waits now has just come");
    net.now += 3 * MS;
    assert_eq!(lag(&mut net), 3 * MS);
}

#[test]
fn a_standby_that_does_not_answer_costs_no_more_memory_than_the_table() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    for _ in 0..20 {
        net.step();
    }
    net.faults = [255, 0, 0];
    for n in 0..200_000 {
        net.put(0, router(1), flow(n, 1));
        if n >= 10 {
            net.remove(0, router(1), flow(n - 10, 1));
        }
        if n % 100 == 0 {
            net.step();
        }
        assert!(net.hosts[0].engine.waiting(router(1)) < 4_000);
    }
    net.calm();
    net.assert_same(0, 1, router(1));
}

#[test]
fn a_full_table_keeps_what_is_valuable() {
    let mut engine = Engine::new(Limits { max_flows: 100 }, 1);
    let now = Instant::now();
    engine.set_router(router(1), Role::Active { epoch: 1 }, BTreeSet::new());
    engine.handle_listing(router(1), Vec::new(), now);
    let attempt = |n| Flow { status: status::CONFIRMED, ..flow(n, 1) };
    for n in 0..150 {
        engine.handle_changed(router(1), attempt(n), now);
    }
    for n in 1000..1050 {
        engine.handle_changed(router(1), flow(n, 1), now);
    }
    let stats = engine.stats(now)[&router(1)];
    assert_eq!((stats.entries, stats.shed), (100, 100));
}

#[test]
fn a_standby_without_room_keeps_what_is_valuable_and_says_what_it_lacks_now() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.hosts[1].room = 10;
    // One is found there when it starts.
    let attempt = |n| Flow { status: status::CONFIRMED, ..flow(n, 1) };
    net.put(0, router(1), attempt(0));
    net.hosts[1].kernel.entry(router(1)).or_default().insert(attempt(0).key(), attempt(0));
    net.role(1, router(1), Role::Standby);
    let kept = |net: &mut Net| {
        (0..20).for_each(|_| net.step());
        let stats = net.hosts[1].engine.stats(net.now)[&router(1)];
        let is_kept = |flow: &&Flow| is_valuable(flow);
        let valuable = net.hosts[1].kernel[&router(1)].values().filter(is_kept).count();
        (valuable, stats.entries, stats.missing)
    };
    (1..30).for_each(|n| net.put(0, router(1), attempt(n)));
    assert_eq!(kept(&mut net), (0, 10, 20));
    (100..105).for_each(|n| net.put(0, router(1), flow(n, 1)));
    assert_eq!(kept(&mut net), (5, 10, 25));
    (105..115).for_each(|n| net.put(0, router(1), flow(n, 1)));
    assert_eq!(kept(&mut net), (10, 10, 35));
    // Attempts end, and so do connections: what is told again finds its place.
    (0..30).for_each(|n| net.remove(0, router(1), attempt(n)));
    assert_eq!(kept(&mut net), (10, 10, 5));
    (100..105).for_each(|n| net.remove(0, router(1), flow(n, 1)));
    assert_eq!(kept(&mut net), (5, 5, 5));
    (105..115).for_each(|n| net.put(0, router(1), Flow { mark: 1, ..flow(n, 1) }));
    assert_eq!(kept(&mut net), (10, 10, 0));
    net.assert_same(0, 1, router(1));
}

#[test]
fn a_lost_notification_is_repaired_by_a_listing() {
    let mut net = Net::new(2, [0; 3], 1);
    net.role(0, router(1), Role::Active { epoch: 1 });
    net.role(1, router(1), Role::Standby);
    for n in 0..100 {
        net.put(0, router(1), flow(n, 1));
    }
    for _ in 0..50 {
        net.step();
    }
    let kernel = net.hosts[0].kernel.entry(router(1)).or_default();
    for n in 0..50 {
        kernel.remove(&flow(n, 1).key());
        kernel.insert(flow(500 + n, 2).key(), flow(500 + n, 2));
    }
    let listing = kernel.values().copied().collect();
    let now = net.now;
    net.hosts[0].engine.handle_listing(router(1), listing, now);
    for _ in 0..50 {
        net.step();
    }
    net.assert_same(0, 1, router(1));
}

/// What a copy that stands by must be told of its kernel when it becomes active.
fn on_takeover(net: &mut Net, host: usize) -> Wanted {
    net.hosts[host].engine.set_router(router(1), Role::Active { epoch: 2 }, BTreeSet::new())
}

#[test]
fn a_new_active_looks_up_the_few_flows_that_it_was_told_of_and_lists_many() {
    for (flows, is_looked_up) in [(0, true), (500, true), (5_000, false)] {
        let mut net = Net::new(2, [0; 3], 1);
        net.role(0, router(1), Role::Active { epoch: 1 });
        net.role(1, router(1), Role::Standby);
        (0..flows).for_each(|n| net.put(0, router(1), flow(n, 1)));
        net.calm();
        net.assert_same(0, 1, router(1));
        let all: Vec<FlowKey> = net.hosts[1].kernel.entry(router(1)).or_default().keys().copied().collect();
        let wanted = on_takeover(&mut net, 1);
        assert_eq!(wanted, if is_looked_up { Wanted::LookUp(all) } else { Wanted::Listing }, "{flows} flows");
    }
    // It does not know yet what its kernel holds.
    let mut net = Net::new(2, [0; 3], 1);
    net.hosts[1].engine.set_router(router(1), Role::Standby, BTreeSet::from([address(0)]));
    assert_eq!(on_takeover(&mut net, 1), Wanted::Listing);
}

#[test]
fn what_a_listing_finds_late_on_a_standby_is_let_go_of_and_what_it_was_told_meanwhile_is_kept() {
    for told in [0, 100] {
        let mut net = Net::new(2, [0; 3], 1);
        net.role(0, router(1), Role::Active { epoch: 1 });
        (0..100).for_each(|n| net.put(0, router(1), flow(n, 1)));
        let left_over = flow(7_000, 3);
        net.hosts[1].kernel.entry(router(1)).or_default().insert(left_over.key(), left_over);
        net.hosts[1].engine.set_router(router(1), Role::Standby, BTreeSet::from([address(0)]));
        if told > 0 {
            net.calm();
        }
        assert_eq!(net.hosts[1].engine.entries(router(1)), told);
        let listing = net.hosts[1].kernel[&router(1)].values().copied().collect();
        let now = net.now;
        net.hosts[1].engine.handle_listing(router(1), listing, now);
        net.calm();
        assert_eq!(net.hosts[1].expiring, BTreeSet::from([left_over.key()]), "after {told} were told");
        let stats = net.hosts[1].engine.stats(net.now)[&router(1)];
        assert_eq!((stats.entries, stats.resyncs), (100, 0));
    }
}
