//! The table of failures, row by row, in one lab with traffic: what `docs/failures.md` says happens, happens.
//!
//! A run checks states and survivors. With `EVERGATE_WRITE_FAILURES=N` in its environment it makes every fault
//! N times and writes what it measured into the page, survivors or not, before it checks them; otherwise it writes nothing.
//!
//! What more than one fault at a time does is in `split_brain.rs`; acknowledged writes of a server that is killed
//! in the middle of them, in `crates/server/tests/api/durability.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use evergate_lab::fault::{Daemon, Fault, HaCut, Signal};
use evergate_lab::probe::{Report, Running};
use evergate_lab::spec::Link;
use evergate_lab::{Node, wait_for};
use evergate_model::RouterId;

use crate::connections::End;
use crate::page::Page;
use crate::support::{Cloud, PATIENCE};

/// Makes a run write its figures: how many times each fault is made.
const WRITE: &str = "EVERGATE_WRITE_FAILURES";
const PAGE: &str = "docs/failures.md";
/// Between two datagrams of the probe.
const PACE: Duration = Duration::from_millis(5);
/// Connections from an instance through source NAT.
const OUTWARD: usize = 40;
/// Connections from the world to a floating IP.
const INWARD: usize = 20;

/// On whom a fault is made.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Active,
    Standby,
    Controller,
}

/// What becomes of the active copy.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Moves,
    Stays,
    /// It goes on where it was, beside the new one, until the fault is healed.
    MovesWhenHealed,
}

/// What happens to a node.
#[derive(Clone, Copy)]
enum Event {
    /// This is broken, told who is active and who stands by, and then healed.
    Fault(fn(&[Node]) -> Fault),
    /// `evergate drain`, then `undrain`.
    Drain,
}

/// A row of the table.
struct Row {
    name: &'static str,
    noticed_by: &'static str,
    result: &'static str,
    place: Where,
    event: Event,
    outcome: Outcome,
    /// What the operator of a host can read while the fault is in force.
    told: Option<(Where, &'static str)>,
}

const ROWS: &[Row] = &[
    Row {
        name: "active host dies",
        noticed_by: "BFD, else VRRP",
        result: "the next in rank takes over; connections go on",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Power),
        outcome: Outcome::Moves,
        told: None,
    },
    Row {
        name: "active's uplink lost",
        noticed_by: "link state",
        result: "it resigns to a copy that still has its uplink",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Cut(Link::Uplink)),
        outcome: Outcome::Moves,
        told: None,
    },
    Row {
        name: "gateway lost behind the active's uplink",
        noticed_by: "health check, each second",
        result: "it resigns to a copy that still has its gateway",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Loss(Link::Uplink, 100)),
        outcome: Outcome::Moves,
        told: None,
    },
    Row {
        name: "HA network cut, hosts alive",
        noticed_by: "VRRP silent; BFD and claims fine",
        result: "nothing moves; the operator is told",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Ha(HaCut::All)),
        outcome: Outcome::Stays,
        told: Some((Where::Standby, "says by another way that it serves")),
    },
    Row {
        name: "underlay cut between two gateways",
        noticed_by: "BFD down; witnesses still see the active",
        result: "nothing moves; the operator is told",
        place: Where::Active,
        event: Event::Fault(|copies| Fault::Between(copies[1].to_string())),
        outcome: Outcome::Stays,
        told: Some((Where::Standby, "says by another way that it serves")),
    },
    Row {
        name: "active cut off from all hosts",
        noticed_by: "BFD; no witness answers",
        result: "it steps down, and the connected side serves",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Cut(Link::Underlay)),
        outcome: Outcome::Moves,
        told: Some((Where::Active, "this host is cut off")),
    },
    Row {
        name: "server killed, and its database with it",
        noticed_by: "the hosts' streams",
        result: "no API; traffic and failover go on",
        place: Where::Controller,
        event: Event::Fault(|_| Fault::Process(Daemon::Server, Signal::Kill)),
        outcome: Outcome::Stays,
        told: None,
    },
    Row {
        name: "control killed",
        noticed_by: "supervisor",
        result: "started anew, adopts what it finds, has nothing to do",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Process(Daemon::Control, Signal::Kill)),
        outcome: Outcome::Stays,
        told: None,
    },
    Row {
        name: "keeper killed",
        noticed_by: "supervisor",
        result: "started anew, resumes before its peers lose patience",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Process(Daemon::Keeper, Signal::Kill)),
        outcome: Outcome::Stays,
        told: None,
    },
    Row {
        name: "keeper kept from running",
        noticed_by: "BFD",
        result: "another takes over; when it runs again it hears the newer claim and steps down",
        place: Where::Active,
        event: Event::Fault(|_| Fault::Process(Daemon::Keeper, Signal::Stop)),
        outcome: Outcome::MovesWhenHealed,
        told: None,
    },
    Row {
        name: "host of a standby loses power and returns",
        noticed_by: "BFD; control when it starts",
        result: "nothing moves; its copy is back when its devices are ready",
        place: Where::Standby,
        event: Event::Fault(|_| Fault::Power),
        outcome: Outcome::Stays,
        told: None,
    },
    Row {
        name: "maintenance",
        noticed_by: "`evergate drain`",
        result: "every active copy moves away, then the host is free",
        place: Where::Active,
        event: Event::Drain,
        outcome: Outcome::Moves,
        told: None,
    },
];

/// What one fault cost.
struct Measured {
    report: Report,
    alive: usize,
}

#[test]
fn every_row_of_the_table_of_failures_holds_under_traffic() {
    let mut page = Page::asked_by(WRITE, PAGE, PACE);
    for row in ROWS {
        let start = format!("| {} | {} | {} |", row.name, row.noticed_by, row.result);
        assert!(page.is_written() || page.text().contains(&start), "{PAGE} has no row '{start}'; see its head");
    }
    let mut cloud = Cloud::up_with("failures", |spec| spec.health_check_interval = Some(1));
    let router = cloud.with_router();
    cloud.with_instance();
    cloud.member.ok("port create vm2-port --network private").unwrap();
    cloud.lab.add_instance("vm2", "vm2-port", Node::Compute(2)).unwrap();
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    let floating = floating.trim().to_owned();
    cloud.member.ok(&format!("floating ip set {floating} --port vm2-port")).unwrap();
    cloud.lab.wait_copies(router, 3, &["ha-", "qr-", "qg-"]).unwrap();

    let mut port = 9000;
    let mut table = String::from(HEADER);
    let mut broken = Vec::new();
    for row in ROWS {
        let mut all = Vec::new();
        for _ in 0..page.times() {
            port += 1;
            eprintln!("{}", row.name);
            let measured = Trial { cloud: &cloud, router, floating: &floating, port, row }.run();
            page.note(row.name, &measured.report);
            all.push(measured);
        }
        if all.iter().any(|measured| measured.alive < OUTWARD + INWARD) {
            broken.push(row.name);
        }
        table.push_str(&line(row, &all));
    }
    page.write(&table);
    assert!(broken.is_empty(), "connections are broken: {broken:?}\n{table}");
}

/// One fault, with traffic of its own.
struct Trial<'a> {
    cloud: &'a Cloud,
    router: RouterId,
    floating: &'a str,
    port: u16,
    row: &'a Row,
}

impl Trial<'_> {
    fn run(&self) -> Measured {
        let (cloud, row) = (self.cloud, self.row);
        let copies = self.wait_calm();
        let mut ends = self.connections(&copies);
        let probe = Running::start(&cloud.lab, "vm1", PACE).unwrap();
        cloud.wait_instance_reaches_the_world();

        let node = self.node(row.place, &copies);
        let late = row.outcome == Outcome::MovesWhenHealed;
        let mut in_time = None;
        let meanwhile = || {
            self.wait_outcome(&copies);
            if !late {
                in_time = Some(self.alive(&mut ends));
            }
        };
        match row.event {
            Event::Fault(fault) => self.broken(node, &fault(&copies), meanwhile),
            Event::Drain => self.drained(node, meanwhile),
        }
        let after = self.wait_calm();
        assert_eq!(after[0] != copies[0], row.outcome != Outcome::Stays, "{}: {} is active", row.name, after[0]);
        let alive = in_time.unwrap_or_else(|| self.alive(&mut ends));
        cloud.wait_instance_reaches_the_world();
        let report = probe.finish().unwrap();
        eprintln!("  {report}");
        Measured { report, alive }
    }

    /// Breaks something, and mends what does not mend itself.
    fn broken(&self, node: Node, fault: &Fault, meanwhile: impl FnOnce()) {
        let before = self.pids(node, fault);
        self.cloud.lab.fail(node, fault.clone()).unwrap();
        meanwhile();
        if self.cloud.lab.faults().unwrap().of(node).any(|other| other == fault) {
            return self.cloud.lab.heal(node, fault).unwrap();
        }
        wait_for("it runs again", PATIENCE, || {
            let now = self.pids(node, fault);
            Ok((!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(()))
        })
        .unwrap();
    }

    fn drained(&self, node: Node, meanwhile: impl FnOnce()) {
        let verb = |verb: &str| self.cloud.lab.machine(Node::Controller).shell(&format!("evergate {verb} {node}"));
        verb("drain").unwrap();
        meanwhile();
        wait_for("nothing of the router is left on the drained host", PATIENCE, || {
            Ok((!self.cloud.lab.hosts_of(self.router).contains(&node)).then_some(()))
        })
        .unwrap();
        verb("undrain").unwrap();
    }

    fn node(&self, place: Where, copies: &[Node]) -> Node {
        match place {
            Where::Active => copies[0],
            Where::Standby => copies[1],
            Where::Controller => Node::Controller,
        }
    }

    fn pids(&self, node: Node, fault: &Fault) -> Vec<u32> {
        let Fault::Process(daemon, _) = fault else { return Vec::new() };
        self.cloud.lab.machine(node).daemons(*daemon).iter().map(|process| process.pid).collect()
    }

    /// Opens connections, one kind in each direction, and waits until every standby's kernel holds them.
    fn connections(&self, copies: &[Node]) -> [End; 4] {
        let lab = &self.cloud.lab;
        let python = |node| lab.machine(node).command("python3").unwrap();
        let guest = |name| lab.instance_command(name, "python3").unwrap();
        let port = self.port.to_string();
        let serve = ["serve", port.as_str()];
        let mut web = End::start(python(Node::Web), &serve);
        let mut vm2 = End::start(guest("vm2"), &serve);
        assert_eq!((web.says().as_str(), vm2.says().as_str()), ("ready", "ready"));
        let mut out = End::start(guest("vm1"), &["connect", "198.51.100.10", &port, &OUTWARD.to_string()]);
        let mut inward = End::start(python(Node::Web), &["connect", self.floating, &port, &INWARD.to_string()]);
        assert_eq!((out.says().as_str(), inward.says().as_str()), ("ready", "ready"));
        for node in &copies[1..] {
            wait_for(&format!("{node} holds the connections"), PATIENCE, || {
                let list = format!("conntrack -L -p tcp --dport {port} 2>/dev/null | wc -l");
                let done = lab.machine(*node).router_command(self.router, "sh")?.args(["-c", &list]).output()?;
                Ok((String::from_utf8(done.stdout)?.trim().parse::<usize>()? >= OUTWARD + INWARD).then_some(()))
            })
            .unwrap();
        }
        [web, vm2, out, inward]
    }

    /// Uses every connection, half of them from the servers' side first; how many work.
    fn alive(&self, ends: &mut [End; 4]) -> usize {
        let [web, vm2, out, inward] = ends;
        for end in [web, vm2] {
            end.go();
            assert_eq!(end.says(), "pushed");
        }
        [out, inward].into_iter().map(|end| self.count(end)).sum()
    }

    fn count(&self, end: &mut End) -> usize {
        end.go();
        let said = end.says();
        said.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
    }

    fn wait_outcome(&self, copies: &[Node]) {
        let (lab, row) = (&self.cloud.lab, self.row);
        wait_for(&format!("{}: {}", row.name, row.result), PATIENCE, || {
            let active = lab.active_hosts(self.router)?;
            Ok(match row.outcome {
                Outcome::Stays => active == [copies[0]],
                Outcome::Moves => active.len() == 1 && active[0] != copies[0],
                Outcome::MovesWhenHealed => active.iter().any(|node| *node != copies[0]),
            }
            .then_some(()))
        })
        .unwrap();
        if let Some((place, text)) = row.told {
            let host = lab.machine(self.node(place, copies));
            wait_for(&format!("the operator is told '{text}'"), PATIENCE, || {
                Ok(host.shell(&format!("evergate show router {}", self.router))?.contains(text).then_some(()))
            })
            .unwrap();
        }
        self.cloud.wait_instance_reaches_the_world();
    }

    /// Waits until all copies are there and hear each other, one is active, no host has anything to do or to
    /// complain about, and all report to the server; returns the copies, the active one first.
    fn wait_calm(&self) -> Vec<Node> {
        let lab = &self.cloud.lab;
        lab.wait_hosts_alive(&lab.spec().hosts()).unwrap();
        let active = lab.wait_copies(self.router, 3, &["ha-", "qr-", "qg-"]).unwrap();
        lab.wait_watching(self.router).unwrap();
        for node in lab.hosts_of(self.router) {
            wait_for(&format!("{node} is content"), PATIENCE, || {
                let shown = lab.machine(node).shell(&format!("evergate show router {}", self.router))?;
                anyhow::ensure!(!shown.contains("problem "), "{shown}");
                Ok(Some(()))
            })
            .unwrap();
            lab.machine(node).wait_nothing_to_do().unwrap();
        }
        let mut copies = vec![active];
        copies.extend(lab.hosts_of(self.router).into_iter().filter(|node| *node != active));
        copies
    }
}

const HEADER: &str =
    "| event | noticed by | result | gap, ms | packets lost | connections broken |\n|---|---|---|---|---|---|\n";

fn line(row: &Row, all: &[Measured]) -> String {
    let mut gaps: Vec<f64> = all.iter().map(|measured| measured.report.longest_gap_ms()).collect();
    gaps.sort_by(f64::total_cmp);
    let (least, middle, most) = (gaps[0], gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    let gap = if gaps.len() == 1 { format!("{least:.0}") } else { format!("{least:.0} / {middle:.0} / {most:.0}") };
    let lost: Vec<String> = all.iter().map(|measured| measured.report.lost().to_string()).collect();
    let broken: usize = all.iter().map(|measured| OUTWARD + INWARD - measured.alive).sum();
    let mut line = format!("| {} | {} | {} ", row.name, row.noticed_by, row.result);
    let _ = writeln!(line, "| {gap} | {} | {broken} of {} |", lost.join(", "), all.len() * (OUTWARD + INWARD));
    line
}
