//! A router becomes each of the four kinds from each other one, as it stands: up, and with traffic.
//!
//! What is interrupted, for how long, and which connections go on is printed as the table of
//! `docs/conversions.md`, and written there with `EVERGATE_WRITE_CONVERSIONS=1` in the environment. Nothing is
//! asserted about times: only that everything works again, that nothing is left behind, and that nothing is lost where
//! the router's place does not change ([`Form::stays_in_place`]), as [`Report::is_unharmed`] has it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use evergate_lab::probe::{ECHO_PORT, Report, Running};
use evergate_lab::spec::WEB;
use evergate_lab::{Node, Profile, wait_for};
use evergate_model::{RouterId, names};

use crate::connections::End;
use crate::page::Page;
use crate::support::{Cloud, PATIENCE};

/// Makes a run write its figures.
const WRITE: &str = "EVERGATE_WRITE_CONVERSIONS";
const PAGE: &str = "docs/conversions.md";

/// Time between two packets of a probe.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long probes run before a conversion, and after everything works again.
const MARGIN: Duration = Duration::from_millis(700);

/// Connections of each kind of traffic; the server speaks first on every other one afterwards.
const CONNECTIONS: &str = "20";

/// Seconds that a connection is given to answer; one that was lost to the conversion does not at all.
const CONNECTION_PATIENCE: &str = "3";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Legacy,
    Ha,
    Distributed,
    DistributedHa,
}

use Form::{Distributed, DistributedHa, Ha, Legacy};

/// Every conversion once, each from where the one before it ended.
const TOUR: [Form; 13] = [
    Legacy,
    Ha,
    Distributed,
    Ha,
    DistributedHa,
    Distributed,
    DistributedHa,
    Ha,
    Legacy,
    Distributed,
    Legacy,
    DistributedHa,
    Legacy,
];

impl Form {
    const fn flags(self) -> &'static str {
        match self {
            Legacy => "--no-ha --centralized",
            Ha => "--ha --centralized",
            Distributed => "--no-ha --distributed",
            DistributedHa => "--ha --distributed",
        }
    }

    const fn is_ha(self) -> bool {
        matches!(self, Ha | DistributedHa)
    }

    const fn is_distributed(self) -> bool {
        matches!(self, Distributed | DistributedHa)
    }

    /// Tells whether the namespaces of one kind are those of the other, but for copies.
    const fn stays_in_place(self, to: Self) -> bool {
        self.is_distributed() == to.is_distributed()
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Legacy => "legacy",
            Ha => "HA",
            Distributed => "distributed",
            DistributedHa => "distributed HA",
        })
    }
}

/// The three kinds of traffic: between two instances, by source NAT to the outside, and from there to a floating IP.
struct Traffic {
    vm2: IpAddr,
    floating: IpAddr,
}

impl Traffic {
    fn probe(&self, cloud: &Cloud) -> [Running; 3] {
        let evergate = &cloud.lab.spec().evergate;
        let from_vm1 = || cloud.lab.instance_command("vm1", evergate).unwrap();
        let from_outside = cloud.lab.machine(Node::Web).command(evergate).unwrap();
        let run =
            |command, to: IpAddr| Running::start_by(command, SocketAddr::from((to, ECHO_PORT)), INTERVAL).unwrap();
        [run(from_vm1(), self.vm2), run(from_vm1(), WEB.into()), run(from_outside, self.floating)]
    }

    /// Connections of each kind of traffic, with the servers that half of them wait for.
    fn connect(&self, cloud: &Cloud, servers: &mut [End; 2], port: &str) -> [End; 3] {
        let guest = || cloud.lab.instance_command("vm1", "python3").unwrap();
        let outside = || cloud.lab.machine(Node::Web).command("python3").unwrap();
        let connect = |command, to: &str| End::start(command, &["connect", to, port, CONNECTIONS, CONNECTION_PATIENCE]);
        assert_eq!(servers.each_mut().map(End::says), ["ready", "ready"]);
        let mut ends = [
            connect(guest(), &self.vm2.to_string()),
            connect(guest(), &WEB.to_string()),
            connect(outside(), &self.floating.to_string()),
        ];
        assert_eq!(ends.each_mut().map(End::says), ["ready", "ready", "ready"]);
        ends
    }

    fn wait_works(&self, cloud: &Cloud, what: &str) {
        wait_for(&format!("instances reach each other, {what}"), PATIENCE, || {
            cloud.fetch(&format!("http://{}/", self.vm2)).map(Some)
        })
        .unwrap();
        wait_for(&format!("an instance reaches the outside, {what}"), PATIENCE, || {
            cloud.fetch("http://198.51.100.10/").map(Some)
        })
        .unwrap();
        wait_for(&format!("the floating IP answers, {what}"), PATIENCE, || {
            cloud.lab.machine(Node::Web).shell(&format!("evergate lab fetch http://{}/", self.floating)).map(Some)
        })
        .unwrap();
    }
}

/// Hosts that have a namespace whose name begins so.
fn hosts_with(cloud: &Cloud, prefix: &str) -> Vec<String> {
    let has = |node: &Node| cloud.lab.machine(*node).namespaces().iter().any(|name| name.starts_with(prefix));
    cloud.lab.spec().hosts().iter().filter(|node| has(node)).map(ToString::to_string).collect()
}

/// Waits until the hosts have the namespaces that the router's kind needs, and no others.
fn wait_placed(cloud: &Cloud, router: RouterId, form: Form) {
    let copies = if form.is_ha() { 2 } else { 1 };
    wait_for(&format!("hosts have what {form} needs"), PATIENCE, || {
        let qrouter = hosts_with(cloud, &names::qrouter_namespace(router));
        let snat = hosts_with(cloud, &names::snat_namespace(router)).len();
        let fip = hosts_with(cloud, "fip-");
        let fits = if form.is_distributed() {
            let on_compute = qrouter.iter().filter(|host| host.starts_with("cmp")).count();
            on_compute == 2 && snat == copies && fip == ["cmp1", "cmp2"]
        } else {
            let on_network = qrouter.iter().all(|host| host.starts_with("net"));
            on_network && qrouter.len() == copies && snat == 0 && fip.is_empty()
        };
        anyhow::ensure!(fits, "qrouter on {qrouter:?}, {snat} snat, fip on {fip:?}");
        Ok(Some(()))
    })
    .unwrap();
}

fn wait_nothing_to_do(cloud: &Cloud) {
    cloud.lab.spec().hosts().iter().for_each(|host| cloud.lab.machine(*host).wait_nothing_to_do().unwrap());
}

/// Waits until the API shows of the copies what their kind has: one active, or no state at all.
fn wait_states(cloud: &mut Cloud, form: Form) {
    wait_for(&format!("ha_state is that of {form}"), PATIENCE, || {
        let copies = cloud.copies("router1");
        let mut states: Vec<_> = copies.iter().map(|(_, _, state)| state.as_str()).collect();
        states.sort_unstable();
        let wanted: &[&str] = if form.is_ha() { &["active", "standby"] } else { &[""] };
        anyhow::ensure!(states == wanted, "{states:?}");
        Ok(Some(()))
    })
    .unwrap();
}

fn shown((report, alive): (&Report, &String)) -> String {
    let lost = report.lost() - report.unanswered_at_end;
    let gap = if report.gaps.is_empty() { "0".into() } else { format!("{:.0} ({lost} lost)", report.longest_gap_ms()) };
    format!("{gap}; {alive}")
}

/// How many connections go on, of what `connect` says of them.
fn alive(said: &str) -> String {
    let words: Vec<&str> = said.trim_end_matches(',').split([' ', ',']).collect();
    assert!(words.len() > 3 && words[0] == "alive", "{said}");
    if words[1] == words[3] { "all".into() } else { format!("{} of {}", words[1], words[3]) }
}

#[test]
fn a_router_becomes_every_kind_from_every_other_while_it_is_up() {
    let mut cloud = Cloud::up_with("conversion", |spec| {
        spec.profile = Profile::DvrHa;
        (spec.network_hosts, spec.compute_hosts) = (2, 2);
    });
    let router = cloud.with_router();
    cloud.admin.ok(&format!("router set router1 {}", TOUR[0].flags())).unwrap();
    cloud.member.ok("network create second").unwrap();
    cloud.member.ok("subnet create second-subnet --network second --subnet-range 10.0.1.0/24").unwrap();
    cloud.member.ok("router add subnet router1 second-subnet").unwrap();
    for (name, network, host) in [("vm1", "private", 1), ("vm2", "second", 2)] {
        cloud.member.ok(&format!("port create {name}-port --network {network}")).unwrap();
        cloud.lab.add_instance(name, &format!("{name}-port"), Node::Compute(host)).unwrap();
    }
    let floating = cloud.member.ok("floating ip create public -f value -c floating_ip_address").unwrap();
    cloud.member.ok(&format!("floating ip set {} --port vm2-port", floating.trim())).unwrap();
    let vm2 = cloud.lab.instances().unwrap()["vm2"].address.split('/').next().unwrap().parse().unwrap();
    let traffic = Traffic { vm2, floating: floating.trim().parse().unwrap() };
    traffic.wait_works(&cloud, "at first");
    wait_placed(&cloud, router, TOUR[0]);
    wait_nothing_to_do(&cloud);

    let mut page = Page::asked_by(WRITE, PAGE, INTERVAL);
    let mut wrong = Vec::new();
    let mut table = String::from("| From | to | east-west | source NAT | floating IP |\n|---|---|---|---|---|\n");
    for (port, step) in (9000..).zip(TOUR.windows(2)) {
        let (from, to) = (step[0], step[1]);
        let what = format!("from {from} to {to}");
        let port = format!("{port}");
        let outside = cloud.lab.machine(Node::Web).command("python3").unwrap();
        let guest = cloud.lab.instance_command("vm2", "python3").unwrap();
        let mut servers = [outside, guest].map(|command| End::start(command, &["serve", &port]));
        let mut connections = traffic.connect(&cloud, &mut servers, &port);
        let probes = traffic.probe(&cloud);
        std::thread::sleep(MARGIN);
        cloud.admin.ok(&format!("router set router1 {}", to.flags())).unwrap();
        wait_placed(&cloud, router, to);
        wait_nothing_to_do(&cloud);
        wait_states(&mut cloud, to);
        traffic.wait_works(&cloud, &what);
        std::thread::sleep(MARGIN);
        let reports = probes.map(|probe| probe.finish().unwrap());
        for server in &mut servers {
            server.go();
            assert_eq!(server.says(), "pushed");
        }
        connections.iter_mut().for_each(End::go);
        let alive = connections.each_mut().map(|end| alive(&end.says()));
        let cells: Vec<_> = reports.iter().zip(&alive).map(shown).collect();
        let line = format!("| {from} | {to} | {} |\n", cells.join(" | "));
        eprint!("{line}");
        table += &line;
        reports.iter().for_each(|report| page.note(&what, report));
        // Flows of before the conversion go on, not only new ones; instances reach each other, and floating IPs are
        // translated, whatever the router remembers.
        let flows_go_on = reports.iter().all(|report| report.unanswered_at_end < 30);
        if !flows_go_on || [&alive[0], &alive[2]] != ["all", "all"] {
            wrong.push(format!("{what}: what need not end has ended: {alive:?}, {reports:?}"));
        }
        let unharmed = alive[1] == "all" && reports.iter().all(Report::is_unharmed);
        if from.stays_in_place(to) && !unharmed {
            wrong.push(format!("{what}: nothing need be lost: {alive:?}, {reports:?}"));
        }
    }
    println!("{table}");
    page.write(&table);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
