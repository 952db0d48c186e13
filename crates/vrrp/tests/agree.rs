//! Every order of events for copies that agree on other paths, while paths are cut and healed.
//!
//! A sibling of `explore`, with the same idea: from a settled election, every move that is possible, and from
//! what comes out every move again. Here are also hosts (some with a copy, some only witnesses), the paths between
//! them, claims, questions and the company of hosts. One cut, and its healing, may come at any moment. On the HA
//! network an advertisement takes up to `LATENCY` and any order. On the underlay a message takes no time where
//! there is a path, and is lost where there is none; claims are repeated once, `REPEAT` after the healing. Timers
//! fire up to `JITTER` late, in any order. Nothing ties the hosts' timers to each other while the HA network is cut, so
//! a run is followed for `LONG_ENOUGH` after the cut and after its healing, and then left in peace.
//!
//! What is checked in every world: two copies are active together for at most as long as it takes to notice; and left
//! in peace, cut or healed, it comes to exactly the active copies that are expected, and stays so.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use evergate_vrrp::agreement::{Answer, Claim, Company, Inquiry, News, Rules, Standing, Stay, Verdict, standing};
use evergate_vrrp::router::{Announcements, Config, Output, PeerDown, State, Suspicion, VirtualRouter, Vrid};
use evergate_vrrp::wire::Advertisement;

const MS: Duration = Duration::from_millis(1);
const LATENCY: Duration = Duration::from_millis(15);
const JITTER: Duration = Duration::from_millis(15);
/// BFD: each host may notice a little earlier or later than another.
const DETECTION: [Duration; 3] = [Duration::from_millis(900), Duration::from_millis(700), Duration::from_millis(800)];
const INTERVAL: Duration = Duration::from_millis(300);
const LISTEN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(300);
/// When a claim comes again after the healing. The keeper's sendings are denser.
const REPEAT: Duration = Duration::from_secs(1);
/// An Active_Down_Interval, and what follows from it.
const LONG_ENOUGH: Duration = Duration::from_secs(8);
/// Two copies may be active together for so long: from the earliest that one is given up to the latest that it
/// knows that it is alone.
const NOTICE: Duration = Duration::from_millis(900);
const MAX_WORLDS: usize = 150_000;

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The HA network of the active's host. Its underlay works.
    Ha,
    /// The underlay between two hosts with copies. `true`: the HA network is tunnelled there, and goes with it.
    Between(bool),
    /// The active's host, from everybody but the server.
    Isolated,
    /// The hosts' network falls into halves with a copy and a witness each. The server is seen from both.
    Halves,
    /// The server, from everybody.
    Server,
    /// Everybody from everybody.
    All,
}

#[derive(Clone, Copy)]
struct Scenario {
    cut: Cut,
    copies: usize,
    hosts: usize,
    serve_alone: bool,
    /// There is a server that carries letters.
    server: bool,
}

const SCENARIO: Scenario = Scenario { cut: Cut::Ha, copies: 2, hosts: 3, serve_alone: false, server: false };

#[test]
fn a_cut_ha_network_moves_nothing() {
    for (copies, hosts) in [(2, 2), (2, 3), (3, 3)] {
        let found = explore(&Scenario { cut: Cut::Ha, copies, hosts, ..SCENARIO });
        assert_eq!(found, Found { moved: false, cut: [vec![copies - 1]].into(), healed: [vec![copies - 1]].into() });
    }
}

#[test]
fn a_cut_between_two_gateways_moves_nothing_while_a_third_host_hears_both() {
    for (copies, tunnelled) in [(2, true), (2, false), (3, true)] {
        let found = explore(&Scenario { cut: Cut::Between(tunnelled), copies, ..SCENARIO });
        assert_eq!(found, Found { moved: false, cut: [vec![copies - 1]].into(), healed: [vec![copies - 1]].into() });
    }
}

#[test]
fn an_active_that_is_cut_off_gives_up_and_the_connected_side_serves_also_afterwards() {
    for (copies, hosts) in [(2, 3), (3, 3)] {
        let found = explore(&Scenario { cut: Cut::Isolated, copies, hosts, ..SCENARIO });
        assert_eq!(found.cut, [vec![copies - 2]].into());
        // A cut that heals before anybody noticed moves nothing.
        assert_eq!(found.healed, [vec![copies - 2], vec![copies - 1]].into());
    }
}

#[test]
fn with_everything_cut_the_setting_decides_and_one_is_left_when_it_heals() {
    for serve_alone in [false, true] {
        let found = explore(&Scenario { cut: Cut::All, serve_alone, ..SCENARIO });
        assert_eq!(found.cut, [if serve_alone { vec![0, 1] } else { vec![] }].into());
        assert!(found.healed.iter().all(|actives| actives.len() == 1), "{found:?}");
    }
}

#[test]
fn of_two_hosts_alone_with_any_one_way_cut_one_serves_while_there_is_a_server() {
    for cut in [Cut::Ha, Cut::Between(true), Cut::Between(false), Cut::Isolated, Cut::Server] {
        for serve_alone in [false, true] {
            let found = explore(&Scenario { cut, hosts: 2, serve_alone, server: true, ..SCENARIO });
            assert_eq!(found, Found { moved: false, cut: [vec![1]].into(), healed: [vec![1]].into() }, "{cut:?}");
        }
    }
}

#[test]
fn of_three_hosts_with_any_one_way_cut_one_serves_whether_or_not_there_is_a_server() {
    for cut in [Cut::Ha, Cut::Between(true), Cut::Server] {
        let found = explore(&Scenario { cut, server: true, ..SCENARIO });
        assert_eq!(found, Found { moved: false, cut: [vec![1]].into(), healed: [vec![1]].into() }, "{cut:?}");
    }
}

#[test]
fn the_server_does_not_hold_the_role_where_nobody_but_the_server_is_reached() {
    for copies in [2, 3] {
        let found = explore(&Scenario { cut: Cut::Isolated, copies, server: true, ..SCENARIO });
        assert_eq!(found.cut, [vec![copies - 2]].into());
        assert_eq!(found.healed, [vec![copies - 2], vec![copies - 1]].into());
    }
}

#[test]
fn of_two_halves_the_one_that_serves_goes_on_while_there_is_a_server_and_each_without() {
    for server in [true, false] {
        let found = explore(&Scenario { cut: Cut::Halves, hosts: 4, server, ..SCENARIO });
        assert_eq!(found.cut, [if server { vec![1] } else { vec![0, 1] }].into());
        assert!(found.healed.iter().all(|actives| actives.len() == 1), "{found:?}");
    }
}

#[test]
fn with_the_server_cut_as_well_the_setting_decides_among_three_and_each_of_two_serves() {
    for (hosts, serve_alone, expected) in
        [(3, false, vec![]), (3, true, vec![0, 1]), (2, false, vec![0, 1]), (2, true, vec![0, 1])]
    {
        let found = explore(&Scenario { cut: Cut::All, hosts, serve_alone, server: true, ..SCENARIO });
        assert_eq!(found.cut, [expected].into(), "{hosts} hosts");
        assert!(found.healed.iter().all(|actives| actives.len() == 1), "{found:?}");
    }
}

#[test]
fn of_two_hosts_alone_each_serves_while_they_are_cut_and_one_when_they_are_not() {
    let found = explore(&Scenario { cut: Cut::Isolated, hosts: 2, ..SCENARIO });
    assert_eq!(found.cut, [vec![0, 1]].into());
    assert!(found.healed.iter().all(|actives| actives.len() == 1), "{found:?}");
}

// The world.

#[derive(Clone)]
struct World {
    scenario: Scenario,
    now: Instant,
    hosts: Vec<Host>,
    air: Vec<Flight>,
    phase: Phase,
    phase_since: Instant,
    two_since: Option<Instant>,
    takeovers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    Whole,
    Cut,
    Healed,
}

#[derive(Clone)]
struct Host {
    router: Option<VirtualRouter>,
    inquiry: Option<Inquiry>,
    company: Company,
    /// The highest epoch that is known, and whose it is.
    known: (u64, Option<usize>),
    epoch: u64,
    active_since: Instant,
    prevailed: Option<(usize, Instant)>,
    repeat: Option<Instant>,
    /// When BFD gives each other host up.
    expiry: Vec<Option<Instant>>,
}

#[derive(Clone)]
struct Flight {
    from: usize,
    to: usize,
    adv: Advertisement,
    due: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Deliver(usize),
    /// Time passes until an advertisement must have arrived.
    Delay,
    /// A host's next timer fires.
    Fire(usize),
    Cut,
    Heal,
}

fn tunnel(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + host as u32))
}

fn address(copy: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + copy as u32))
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
    fn new(scenario: &Scenario) -> Self {
        let now = Instant::now();
        let host = |index: usize| {
            let mut company = Company::default();
            let others = (0..scenario.hosts).filter(|other| *other != index).map(tunnel);
            company.configure(others.collect(), DETECTION[0], PATIENCE);
            Host {
                router: (index < scenario.copies).then(|| VirtualRouter::new(config(scenario.copies, index))),
                inquiry: None,
                company,
                known: (0, None),
                epoch: 0,
                active_since: now,
                prevailed: None,
                repeat: None,
                expiry: vec![None; scenario.hosts],
            }
        };
        let hosts = (0..scenario.hosts).map(host).collect();
        let (air, phase) = (Vec::new(), Phase::Whole);
        let mut world =
            Self { scenario: *scenario, now, hosts, air, phase, phase_since: now, two_since: None, takeovers: 0 };
        for copy in 0..scenario.copies {
            world.act(copy, VirtualRouter::handle_startup);
        }
        world.rest(Duration::from_secs(20));
        assert_eq!(world.actives(), [scenario.copies - 1], "the election is over");
        world.takeovers = 0;
        world
    }

    fn actives(&self) -> Vec<usize> {
        (0..self.scenario.copies).filter(|copy| self.is_active(*copy)).collect()
    }

    fn is_active(&self, host: usize) -> bool {
        self.hosts[host].router.as_ref().is_some_and(|router| router.state() == State::Active)
    }

    /// Whether there is a way on the underlay.
    fn linked(&self, a: usize, b: usize) -> bool {
        let last = self.scenario.copies - 1;
        let pair = |x, y| (a, b) == (x, y) || (a, b) == (y, x);
        self.phase != Phase::Cut
            || match self.scenario.cut {
                Cut::Ha | Cut::Server => true,
                Cut::Between(_) => !pair(last, last - 1),
                Cut::Isolated => a != last && b != last,
                Cut::Halves => a % 2 == b % 2,
                Cut::All => false,
            }
    }

    /// Whether letters pass.
    fn has_server(&self) -> bool {
        let cut = self.phase == Phase::Cut && matches!(self.scenario.cut, Cut::Server | Cut::All);
        self.scenario.server && !cut
    }

    /// Whether there is a way on the HA network.
    fn hears(&self, a: usize, b: usize) -> bool {
        let last = self.scenario.copies - 1;
        self.phase != Phase::Cut
            || match self.scenario.cut {
                Cut::Ha => a != last && b != last,
                Cut::Between(tunnelled) => !tunnelled || self.linked(a, b),
                Cut::Isolated | Cut::Halves | Cut::Server | Cut::All => self.linked(a, b),
            }
    }

    fn neighbours(&self, host: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|other| *other != host && self.linked(host, *other)).collect()
    }

    /// Lets a copy do something, and does what it wants done.
    fn act(&mut self, copy: usize, handle: impl FnOnce(&mut VirtualRouter, Instant)) {
        let Some(mut router) = self.hosts[copy].router.take() else { return };
        handle(&mut router, self.now);
        let outputs: Vec<Output> = std::iter::from_fn(|| router.poll_output()).collect();
        self.hosts[copy].router = Some(router);
        for output in outputs {
            match output {
                Output::Transmit(adv) => {
                    for to in (0..self.scenario.copies).filter(|to| *to != copy) {
                        if self.hears(copy, to) {
                            self.air.push(Flight { from: copy, to, adv: adv.clone(), due: self.now + LATENCY });
                        }
                    }
                }
                Output::StateChanged { to: State::Active, .. } => {
                    self.takeovers += 1;
                    self.hosts[copy].active_since = self.now;
                    self.claim_anew(copy);
                }
                Output::StateChanged { .. } => self.give_up(copy),
                Output::TakeoverDue { active } => self.takeover_due(copy, active),
                Output::Contested { with } => self.contested(copy, with),
                Output::Prevailed { over } => self.hosts[copy].prevailed = Some((copy_at(over), self.now)),
                Output::Activate | Output::Deactivate | Output::AnnounceAddresses => {}
            }
        }
    }

    // Claims, as `keeper::engine::mastership` has them.

    fn claim_anew(&mut self, copy: usize) {
        let host = &mut self.hosts[copy];
        host.epoch = host.known.0 + 1;
        host.known = (host.epoch, Some(copy));
        self.claim(copy);
    }

    fn claim(&mut self, copy: usize) {
        self.hosts[copy].repeat = None;
        let epoch = self.hosts[copy].epoch;
        for other in self.neighbours(copy) {
            if self.is_active(copy) {
                self.learn(other, epoch, Some(copy));
                self.hear_claim(other, copy);
                let (epoch, whose) = self.hosts[other].known;
                self.learn(copy, epoch, whose);
            }
        }
    }

    fn hear_claim(&mut self, at: usize, of: usize) {
        if self.hosts[at].known.1 == Some(of) {
            let mut news = false;
            self.act(at, |router, now| news = router.handle_word_of(address(of), now));
            if news {
                self.hosts[at].inquiry = None;
            }
        }
    }

    fn give_up(&mut self, copy: usize) {
        let host = &mut self.hosts[copy];
        host.repeat = None;
        if host.known.1 == Some(copy) {
            host.known.1 = None;
        }
    }

    fn learn(&mut self, at: usize, epoch: u64, whose: Option<usize>) {
        let before = self.hosts[at].known;
        let newer = epoch > before.0 || (epoch == before.0 && before.1.is_none() && whose.is_some());
        let conflict = epoch == before.0 && whose.is_some() && before.1.is_some() && whose != before.1;
        if newer {
            self.hosts[at].known = (epoch, whose);
            if let Some(old) = before.1.filter(|old| whose.is_some() && Some(*old) != whose && *old != at)
                && self.linked(at, old)
            {
                self.learn(old, epoch, whose);
            }
        }
        if self.is_active(at) && (newer || conflict) {
            self.superseded(at, epoch, whose);
        }
    }

    fn superseded(&mut self, at: usize, epoch: u64, whose: Option<usize>) {
        let Some(rival) = whose.filter(|rival| *rival != at) else { return self.claim_anew(at) };
        let host = &self.hosts[at];
        let told = host.prevailed.is_some_and(|(over, when)| over == rival && self.now - when < 2000 * MS);
        let own = Claim { epoch: host.epoch, host: tunnel(at) };
        match standing(own, Claim { epoch, host: tunnel(rival) }) {
            Standing::Newer if !told => {
                self.act(at, |router, now| router.handle_superseded(Some(address(rival)), now));
                self.learn(at, epoch, whose);
            }
            Standing::Newer | Standing::Tie => self.claim_anew(at),
            Standing::Older => {}
        }
    }

    fn contested(&mut self, copy: usize, with: IpAddr) {
        let other = copy_at(with);
        if self.linked(copy, other) {
            let epoch = self.hosts[copy].epoch;
            self.learn(other, epoch, Some(copy));
            let (epoch, whose) = self.hosts[other].known;
            self.learn(copy, epoch, whose);
            if self.is_active(copy) {
                self.act(copy, |router, now| router.handle_settled(with, now));
            }
        }
    }

    // Questions, as `keeper::engine::inquiry` has them.

    fn rules(&self) -> Rules {
        Rules { listen: LISTEN, patience: PATIENCE, serve_alone: self.scenario.serve_alone }
    }

    fn takeover_due(&mut self, copy: usize, active: Option<IpAddr>) {
        if self.hosts[copy].inquiry.is_none() {
            let known = self.hosts[copy].known.1.filter(|host| *host != copy);
            let suspect = active.map(copy_at).or(known);
            let seen = suspect.is_some_and(|host| self.hosts[copy].expiry[host].is_none() && self.linked(copy, host));
            self.inquire(copy, suspect, seen);
        }
        if let Some(inquiry) = &mut self.hosts[copy].inquiry {
            inquiry.handle_due();
        }
        self.decide(copy);
    }

    fn inquire(&mut self, copy: usize, suspect: Option<usize>, seen: bool) {
        let company = self.hosts[copy].company.has_others(suspect.map(tunnel), self.now);
        self.hosts[copy].inquiry = Some(Inquiry::ask(self.rules(), suspect.map(tunnel), company, seen, self.now));
    }

    fn decide(&mut self, copy: usize) {
        if !self.hosts[copy].router.as_ref().is_some_and(VirtualRouter::is_in_doubt) {
            self.hosts[copy].inquiry = None;
            return;
        }
        let Some(mut inquiry) = self.hosts[copy].inquiry.take() else { return };
        if inquiry.take_question(self.now) {
            let suspect = inquiry.suspect().map(|suspect| (0..self.hosts.len()).find(|host| tunnel(*host) == suspect));
            for speaker in self.speakers(copy, suspect.flatten()) {
                let (mut epoch, mut whose) = self.hosts[speaker].known;
                if self.is_active(speaker) {
                    (epoch, whose) = (self.hosts[speaker].epoch, Some(speaker));
                }
                self.learn(copy, epoch, whose);
                let active = whose == Some(speaker) && epoch >= self.hosts[copy].known.0;
                inquiry.handle_answer(Answer { speaker: tunnel(speaker), active }, self.now);
            }
            if let Some(speaker) = suspect.flatten().filter(|speaker| *speaker != copy && self.has_server()) {
                let (mut epoch, mut whose) = self.hosts[speaker].known;
                if self.is_active(speaker) {
                    (epoch, whose) = (self.hosts[speaker].epoch, Some(speaker));
                }
                self.learn(copy, epoch, whose);
                let active = whose == Some(speaker) && epoch >= self.hosts[copy].known.0;
                let hears_others = self.neighbours(speaker).iter().any(|host| *host != copy);
                inquiry.handle_answer_by_server(Answer { speaker: tunnel(speaker), active }, hears_others);
            }
        }
        let Some(verdict) = inquiry.verdict(self.now) else {
            self.hosts[copy].inquiry = Some(inquiry);
            return;
        };
        match verdict {
            Verdict::TakeOver => self.act(copy, VirtualRouter::handle_permission),
            Verdict::Stay(Stay::Isolated) => {
                self.act(copy, |router, now| router.handle_refusal(None, Some(1000 * MS), now));
            }
            Verdict::Stay(Stay::Lives(host)) => {
                let by = (0..self.hosts.len()).find(|other| tunnel(*other) == host).unwrap_or_default();
                let again = (!self.linked(copy, by)).then_some(DETECTION[0]);
                self.act(copy, |router, now| router.handle_refusal(Some(address(by)), again, now));
            }
        }
    }

    /// Who answers a question: whoever is reached, and the suspect through them.
    fn speakers(&self, copy: usize, suspect: Option<usize>) -> BTreeSet<usize> {
        let reached = self.neighbours(copy);
        let through = suspect.filter(|suspect| {
            *suspect != copy && reached.iter().any(|host| host == suspect || self.linked(*host, *suspect))
        });
        reached.into_iter().chain(through).collect()
    }

    // Time.

    /// Whoever is reached is heard all the time.
    fn keep_company(&mut self) {
        for host in 0..self.hosts.len() {
            let serving = self.is_active(host);
            self.hosts[host].company.set_serving(serving);
            for other in self.neighbours(host) {
                self.hosts[host].company.heard(tunnel(other), self.now);
            }
        }
    }

    /// The deadlines of a host's timers, and which.
    fn deadlines(&self, host: usize) -> Vec<(Instant, What)> {
        let state = &self.hosts[host];
        let mut deadlines = Vec::new();
        deadlines.extend(state.router.as_ref().and_then(VirtualRouter::poll_timeout).map(|(at, _)| (at, What::Vrrp)));
        deadlines.extend(state.inquiry.as_ref().and_then(Inquiry::poll_timeout).map(|at| (at, What::Inquiry)));
        deadlines.extend(state.repeat.map(|at| (at, What::Repeat)));
        deadlines
            .extend(self.is_lonely(host).then(|| state.company.poll_timeout()).flatten().map(|at| (at, What::Company)));
        deadlines.extend(state.expiry.iter().enumerate().filter_map(|(of, at)| at.map(|at| (at, What::Expiry(of)))));
        deadlines
    }

    fn is_lonely(&self, host: usize) -> bool {
        self.is_active(host) && self.neighbours(host).is_empty() && !self.hosts[host].company.is_alone()
    }

    fn next(&self, host: usize) -> Option<(Instant, What)> {
        self.deadlines(host).into_iter().min()
    }

    /// Time may not pass beyond this without something else happening first.
    fn horizon(&self) -> Instant {
        let timers = (0..self.hosts.len()).filter_map(|host| self.next(host)).map(|(at, _)| at.max(self.now) + JITTER);
        timers.chain(self.air.iter().map(|flight| flight.due)).min().unwrap_or(self.now)
    }

    fn moves(&self) -> Vec<Move> {
        if self.phase != Phase::Whole && self.now - self.phase_since > LONG_ENOUGH {
            return if self.phase == Phase::Cut { vec![Move::Heal] } else { Vec::new() };
        }
        let horizon = self.horizon();
        let mut moves: Vec<Move> = (0..self.air.len()).map(Move::Deliver).collect();
        let fires = |host: &usize| self.next(*host).is_some_and(|(at, _)| at <= horizon);
        moves.extend((0..self.hosts.len()).filter(fires).map(Move::Fire));
        if self.air.iter().any(|flight| self.now < flight.due && flight.due <= horizon) {
            moves.push(Move::Delay);
        }
        match self.phase {
            Phase::Whole => moves.push(Move::Cut),
            Phase::Cut => moves.push(Move::Heal),
            Phase::Healed => {}
        }
        moves
    }

    fn make(&mut self, made: Move) {
        match made {
            Move::Deliver(index) => {
                let Flight { from, to, adv, .. } = self.air.swap_remove(index);
                if self.hears(from, to) {
                    self.act(to, |router, now| router.handle_advertisement(address(from), &adv, now));
                }
            }
            Move::Delay => {
                self.now = self.air.iter().map(|f| f.due).filter(|due| *due > self.now).min().unwrap_or(self.now)
            }
            Move::Fire(host) => self.fire(host),
            Move::Cut => {
                (self.phase, self.phase_since) = (Phase::Cut, self.now);
                for a in 0..self.hosts.len() {
                    for b in (0..self.scenario.copies).filter(|b| *b != a) {
                        let expiry = self.now + DETECTION[a % DETECTION.len()];
                        let copy = a < self.scenario.copies;
                        self.hosts[a].expiry[b] = (copy && !self.linked(a, b)).then_some(expiry);
                    }
                }
            }
            Move::Heal => {
                (self.phase, self.phase_since) = (Phase::Healed, self.now);
                for copy in self.actives() {
                    self.hosts[copy].repeat = Some(self.now + REPEAT);
                }
                for host in &mut self.hosts {
                    host.expiry.iter_mut().for_each(|expiry| *expiry = None);
                }
            }
        }
        self.keep_company();
        let two = self.actives().len() > 1;
        self.two_since = if two { self.two_since.or(Some(self.now)) } else { None };
    }

    fn fire(&mut self, host: usize) {
        let Some((at, what)) = self.next(host) else { return };
        self.now = self.now.max(at);
        match what {
            What::Vrrp => self.act(host, VirtualRouter::handle_timeout),
            What::Inquiry => self.decide(host),
            What::Repeat => self.claim(host),
            What::Company => self.fire_company(host),
            What::Expiry(of) => {
                self.hosts[host].expiry[of] = None;
                let detection = DETECTION[host % DETECTION.len()];
                let last_heard = self.now - detection;
                let down = PeerDown { peer: address(of), last_heard, interval: INTERVAL, listen: LISTEN };
                // It was asked for when the first packets were missing; others had heard it then.
                let seen = self.speakers(host, Some(of)).contains(&of);
                let mut suspicion = Suspicion::Irrelevant;
                self.act(host, |router, now| suspicion = router.handle_peer_down(&down, now));
                if suspicion == Suspicion::Listening {
                    self.inquire(host, Some(of), seen);
                    self.decide(host);
                }
            }
        }
    }

    fn fire_company(&mut self, host: usize) {
        if self.hosts[host].company.handle_timeout(self.now) == Some(News::Alone) && !self.scenario.serve_alone {
            let last = self.hosts[host].company.last();
            if last.is_some_and(|last| last >= self.hosts[host].active_since) {
                self.act(host, VirtualRouter::handle_isolation);
            }
        }
    }

    /// Leaves the world in peace: everything arrives at once and fires in order. Returns when somebody last
    /// changed state.
    fn rest(&mut self, time: Duration) -> Instant {
        let end = self.now + time;
        let mut changed = self.now;
        while self.now < end {
            let before = self.actives();
            let soonest =
                (0..self.hosts.len()).filter(|host| self.next(*host).is_some()).min_by_key(|host| self.next(*host));
            match (self.air.is_empty(), soonest) {
                (false, _) => self.make(Move::Deliver(0)),
                (true, Some(host)) => self.make(Move::Fire(host)),
                (true, None) => break,
            }
            if self.actives() != before {
                changed = self.now;
            }
        }
        changed
    }

    /// What makes two worlds the same from now on.
    fn key(&self) -> String {
        let ahead = |at: Instant| at.saturating_duration_since(self.now).as_micros();
        let mut air: Vec<_> = self.air.iter().map(|f| (f.from, f.to, f.adv.priority, ahead(f.due))).collect();
        air.sort_unstable();
        // Only the order of epochs counts.
        let least = self.hosts.iter().map(|host| host.known.0).min().unwrap_or_default();
        let hosts: Vec<_> = (0..self.hosts.len())
            .map(|index| {
                let host = &self.hosts[index];
                let status = host.router.as_ref().map(|router| {
                    let status = router.status(self.now);
                    let settled = status.contest.1.map(|ago| ago.min(Duration::from_secs(6)));
                    let since = if status.state == State::Backup { status.since } else { Duration::ZERO };
                    (
                        status.state,
                        status.active,
                        status.timers,
                        since,
                        settled,
                        (status.suspects, status.absent, status.excused),
                    )
                });
                let timers: Vec<_> = self.deadlines(index).into_iter().map(|(at, what)| (ahead(at), what)).collect();
                let company = (host.company.is_alone(), host.company.has_others(None, self.now));
                let prevailed =
                    host.prevailed.filter(|(_, at)| self.now - *at < 2000 * MS).map(|(over, at)| (over, self.now - at));
                let epochs = (host.known.0 - least, host.known.1, host.epoch.saturating_sub(least));
                let inquiry = host.inquiry.as_ref().map(|inquiry| (inquiry.suspect(), inquiry.verdict(self.now)));
                (status, timers, company, prevailed, epochs, inquiry)
            })
            .collect();
        format!("{:?}", (self.phase, air, hosts, self.two_since.map(|at| self.now - at), self.takeovers.min(3)))
    }
}

/// Which of a host's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Vrrp,
    Inquiry,
    Company,
    Repeat,
    Expiry(usize),
}

fn copy_at(wanted: IpAddr) -> usize {
    (0..DETECTION.len()).find(|copy| address(*copy) == wanted).unwrap_or_default()
}

fn config(copies: usize, own: usize) -> Config {
    let others: BTreeSet<IpAddr> = (0..copies).filter(|copy| *copy != own).map(address).collect();
    Config {
        primary_address: address(own),
        peers: others.clone(),
        agreement: Some(others),
        announcements: Announcements { rounds: 1, spacing: MS, again_after: None },
        ..Config::neutron(Vrid::new(1).expect("not 0"), Ipv4Addr::UNSPECIFIED)
    }
}

// The exploration.

/// What an exploration saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Whether anybody ever took over.
    moved: bool,
    /// The active copies when a world was left in peace, cut or healed.
    cut: BTreeSet<Vec<usize>>,
    healed: BTreeSet<Vec<usize>>,
}

fn explore(scenario: &Scenario) -> Found {
    let first = World::new(scenario);
    let mut known = HashSet::from([first.key()]);
    let mut queue = VecDeque::from([(first, Vec::<Move>::new())]);
    let (mut found, mut count) = (Found::default(), 0);
    while let Some((world, path)) = queue.pop_front() {
        count += 1;
        assert!(count < MAX_WORLDS, "{:?}: unbounded", scenario.cut);
        check(&world, &path, &mut found);
        for made in world.moves() {
            let mut next = world.clone();
            next.make(made);
            if known.insert(next.key()) {
                let mut path = path.clone();
                path.push(made);
                queue.push_back((next, path));
            }
        }
    }
    println!("{:?}, {} copies on {} hosts: {count} worlds", scenario.cut, scenario.copies, scenario.hosts);
    found
}

fn check(world: &World, path: &[Move], found: &mut Found) {
    found.moved |= world.takeovers > 0;
    // Where there is nobody to tell either that it is cut off, two serve as long as the cut lasts.
    let unknowable = match world.scenario.cut {
        Cut::Isolated | Cut::All => world.scenario.hosts == 2,
        Cut::Halves => !world.scenario.server,
        Cut::Ha | Cut::Between(_) | Cut::Server => false,
    };
    let may_be_two = world.phase == Phase::Cut && (unknowable || world.scenario.serve_alone);
    // Once they can hear each other, the first claim that passes ends it.
    let since =
        world.two_since.map(|since| if world.phase == Phase::Healed { since.max(world.phase_since) } else { since });
    let notice = if world.phase == Phase::Healed { REPEAT + JITTER } else { NOTICE };
    let long = since.is_some_and(|since| world.now - since > notice);
    assert!(may_be_two || !long, "two actives for too long: {path:?}");
    let mut rest = world.clone();
    let start = rest.now;
    let settled = rest.rest(Duration::from_secs(24)) - start;
    assert!(settled < Duration::from_secs(16), "left in peace, it does not come to rest: {path:?}");
    match world.phase {
        Phase::Whole => assert_eq!(rest.actives(), world.actives(), "nothing happened: {path:?}"),
        Phase::Cut => drop(found.cut.insert(rest.actives())),
        Phase::Healed => drop(found.healed.insert(rest.actives())),
    }
}
