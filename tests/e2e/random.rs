//! Faults, up to two at a time, and changes at random, on ten hosts: whatever happened, when all is healed every host holds what it must,
//! one copy of each router is active, nothing is left over, and connections went on where a standby had them.
//!
//! `EVERGATE_RANDOM_SEED` chooses a run (`new`: one that nobody has seen), `EVERGATE_RANDOM_SECONDS` makes it longer.
//! The seed decides everything but how many rounds fit into the time. What is checked is in `settled.rs`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use evergate_lab::fault::{Daemon, Fault, HaCut, Signal};
use evergate_lab::spec::{Link, PHYSICAL_NETWORK};
use evergate_lab::{Node, Profile, wait_for};
use evergate_model::RouterId;
use serde_json::{Value, json};

use crate::connections::End;
use crate::settled::wait_settled;
use crate::support::{Cloud, PATIENCE};

const SEED: &str = "EVERGATE_RANDOM_SEED";
const SECONDS: &str = "EVERGATE_RANDOM_SECONDS";
/// An ordinary run looks for what a change has broken, and takes the same steps as the one before it.
const USUAL_SEED: u64 = 7;
/// How long rounds are begun for, unless told otherwise.
const USUAL: u64 = 60;
/// Connections that each of the routers with standbys carries through a round.
const FLOWS: usize = 20;

/// The sequence that a seed stands for: SplitMix64, from its authors' public-domain description.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % end as u64) as usize
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

/// A router that stays for the whole run, with an instance.
struct Base {
    router: RouterId,
    instance: &'static str,
    host: Node,
    /// Whether the router has standbys.
    ha: bool,
}

/// What random changes made, and may unmake.
#[derive(Default)]
struct Extras {
    /// Name, network, subnet, and the router of networks.
    networks: Vec<(usize, String, String, String)>,
    /// Instances of the extra networks: network number and name.
    instances: Vec<(usize, String)>,
    floating: Vec<String>,
    routers: Vec<String>,
}

struct Run {
    cloud: Cloud,
    chance: Chance,
    external: String,
    /// The first base instance's.
    floating: String,
    base: Vec<Base>,
    extras: Extras,
    made: usize,
    steps: Vec<String>,
}

#[test]
fn whatever_happens_at_random_all_is_well_when_all_is_healed() {
    let seed = match std::env::var(SEED).as_deref() {
        Err(_) => USUAL_SEED,
        Ok("new") => new_seed(),
        Ok(text) => text.parse().unwrap(),
    };
    let time = std::env::var(SECONDS).ok().map_or(USUAL, |text| text.parse().unwrap());
    eprintln!("{SEED}={seed}");
    let mut run = Run::up(seed);
    let until = Instant::now() + Duration::from_secs(time);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += 1;
        run.round(9000 + rounds);
    }
    eprintln!("{rounds} rounds, {} steps", run.steps.len());
    assert!(rounds > 0);
}

fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
}

impl Run {
    fn up(seed: u64) -> Self {
        let cloud = Cloud::up_with("random", |spec| {
            spec.profile = Profile::DvrHa;
            (spec.network_hosts, spec.compute_hosts) = (4, 6);
        });
        let steps = vec![format!("{SEED}={seed}")];
        let extras = Extras::default();
        let mut run = Self {
            cloud,
            chance: Chance(seed),
            external: String::new(),
            floating: String::new(),
            base: Vec::new(),
            extras,
            made: 0,
            steps,
        };
        let network = json!({
            "name": "public", "router:external": true,
            "provider:network_type": "flat", "provider:physical_network": PHYSICAL_NETWORK,
        });
        run.external = run.create("network", &network);
        let pool = json!([{"start": "203.0.113.100", "end": "203.0.113.199"}]);
        let subnet = json!({
            "network_id": run.external, "ip_version": 4, "cidr": "203.0.113.0/24", "gateway_ip": "203.0.113.254",
            "enable_dhcp": false, "allocation_pools": pool,
        });
        run.create("subnet", &subnet);
        // An HA router with two instances, and one of each other kind with one.
        let kinds = [
            (true, false, &["vmf", "vmh"][..]),
            (true, true, &["vmd"]),
            (false, false, &["vml"]),
            (false, true, &["vms"]),
        ];
        for (ha, distributed, instances) in kinds {
            let router = run.router(ha, distributed);
            let (network, _) = run.network(&router);
            for instance in instances {
                let host = Node::Compute(1 + run.base.len() as u16);
                run.instance(instance, &network, host);
                run.base.push(Base { router: router.parse().unwrap(), instance, host, ha });
            }
        }
        let port = run.cloud.lab.instances().unwrap()["vmf"].port;
        let body = json!({"floatingip": {"floating_network_id": run.external, "port_id": port}});
        let floating = run.cloud.lab.api_ok("POST", "/v2.0/floatingips", Some(&body)).unwrap();
        run.floating = floating["floatingip"]["floating_ip_address"].as_str().unwrap().to_owned();
        run.wait_well();
        run
    }

    fn create(&self, kind: &str, body: &Value) -> String {
        let made = self.cloud.lab.api_ok("POST", &format!("/v2.0/{kind}s"), Some(&json!({ kind: body }))).unwrap();
        made[kind]["id"].as_str().unwrap().to_owned()
    }

    fn router(&self, ha: bool, distributed: bool) -> String {
        let gateway = json!({"network_id": self.external});
        self.create("router", &json!({"ha": ha, "distributed": distributed, "external_gateway_info": gateway}))
    }

    /// A network with a subnet of its own behind a router.
    fn network(&mut self, router: &str) -> (String, String) {
        self.made += 1;
        let network = self.create("network", &json!({"name": format!("network{}", self.made)}));
        let cidr = format!("10.1.{}.0/24", self.made);
        let subnet = self.create("subnet", &json!({"network_id": network, "ip_version": 4, "cidr": cidr}));
        let body = json!({"subnet_id": subnet});
        self.cloud.lab.api_ok("PUT", &format!("/v2.0/routers/{router}/add_router_interface"), Some(&body)).unwrap();
        (network, subnet)
    }

    fn instance(&self, name: &str, network: &str, host: Node) {
        let port = self.create("port", &json!({"name": format!("{name}-port"), "network_id": network}));
        self.cloud.lab.add_instance(name, &port, host).unwrap();
    }

    fn step(&mut self, text: String) {
        eprintln!("  {text}");
        self.steps.push(text);
    }

    /// Changes, one or two faults at a time, changes while they last unless nobody could make them, and the healing.
    fn round(&mut self, port: u16) {
        self.step(format!("round {}", port - 9000));
        let mut flows = self.open_flows(port);
        self.change();
        let faults = self.choose_faults();
        for (node, fault) in &faults {
            self.step(format!("{node}: {fault}"));
            self.cloud.lab.fail(*node, fault.clone()).unwrap();
            if self.chance.below(2) == 0 {
                self.wait_routers_serve(&faults);
            }
        }
        self.wait_routers_serve(&faults);
        let any = |is: fn(&Fault) -> bool| faults.iter().any(|(_, fault)| is(fault));
        // Instances on a host without power cannot be made, nor ended; a server that is away changes nothing.
        if !any(|fault| matches!(fault, Fault::Power | Fault::Process(Daemon::Server, _))) {
            self.change();
        }
        let lost: BTreeSet<Node> =
            faults.iter().filter(|(_, fault)| *fault == Fault::Power).map(|(node, _)| *node).collect();
        // What a fault at an instance's own host interrupts goes on when it is healed.
        let central = |node: &Node| matches!(node, Node::Network(_) | Node::Controller);
        let early = faults.iter().all(|(node, _)| central(node)) && !any(frozen);
        if early {
            self.use_flows(&mut flows, &lost);
        }
        self.heal(faults);
        self.wait_well();
        if !early {
            self.use_flows(&mut flows, &lost);
        }
    }

    fn heal(&mut self, mut faults: Vec<(Node, Fault)>) {
        while !faults.is_empty() {
            let (node, fault) = faults.swap_remove(self.chance.below(faults.len()));
            // A daemon that was killed below its supervisor is there again already.
            if self.cloud.lab.faults().unwrap().of(node).any(|left| *left == fault) {
                self.step(format!("{node}: healed"));
                self.cloud.lab.heal(node, &fault).unwrap();
            }
        }
    }

    /// The server, or a host; or two of all of them.
    fn choose_faults(&mut self) -> Vec<(Node, Fault)> {
        let count = 1 + self.chance.below(2);
        let mut faults: Vec<(Node, Fault)> = Vec::new();
        while faults.len() < count {
            let (node, fault) = self.choose_fault();
            if faults.iter().all(|(other, _)| *other != node) {
                faults.push((node, fault));
            }
        }
        faults
    }

    fn choose_fault(&mut self) -> (Node, Fault) {
        let kill_or_stop = [Signal::Kill, Signal::Stop];
        if self.chance.below(6) == 0 {
            return (Node::Controller, Fault::Process(Daemon::Server, self.chance.pick(&kill_or_stop)));
        }
        let hosts = self.cloud.lab.spec().hosts();
        let node = self.chance.pick(&hosts);
        let other = self.chance.pick(&hosts.into_iter().filter(|host| *host != node).collect::<Vec<_>>());
        let faults = [
            Fault::Power,
            Fault::Cut(Link::Underlay),
            Fault::Cut(Link::Uplink),
            Fault::Between(other.to_string()),
            Fault::Ha(HaCut::All),
            Fault::Loss(Link::Underlay, 5),
            Fault::Process(Daemon::Keeper, self.chance.pick(&kill_or_stop)),
            Fault::Process(Daemon::Control, self.chance.pick(&kill_or_stop)),
            Fault::Process(Daemon::Host, Signal::Kill),
        ];
        (node, self.chance.pick(&faults))
    }

    /// Waits until every router that has standbys has an active copy on a host that no fault took. There is one: a
    /// router has three copies, and two of them are hit at most.
    fn wait_routers_serve(&self, faults: &[(Node, Fault)]) {
        let in_force = self.cloud.lab.faults().unwrap();
        let gone = |host: &Node| in_force.of(*host).any(takes_the_role);
        let some_gone = faults.iter().any(|(node, _)| gone(node));
        for base in self.base.iter().filter(|base| base.ha) {
            wait_for(&format!("router {} is served despite of the faults", base.router), PATIENCE, || {
                let active = self.cloud.lab.active_hosts(base.router)?;
                let elsewhere = active.iter().filter(|host| !gone(host)).count();
                Ok(if some_gone { elsewhere == 1 } else { !active.is_empty() }.then_some(()))
            })
            .unwrap_or_else(|error| self.fail(&format!("{error:#}")));
        }
    }

    /// One to three random changes of what the API is told.
    fn change(&mut self) {
        for _ in 0..=self.chance.below(3) {
            match self.chance.below(10) {
                8 => self.migrate_instance(),
                9 => self.share_address(),
                0 => self.add_network(),
                1 | 2 => self.add_instance(),
                3 => self.add_floating(),
                4 => self.add_router(),
                5 => self.remove_instance(),
                6 => self.remove_network(),
                _ => self.remove_floating_and_router(),
            }
        }
    }

    fn add_network(&mut self) {
        let routers: Vec<String> = self.base.iter().map(|base| base.router.to_string()).collect();
        let router = self.chance.pick(&routers);
        let (network, subnet) = self.network(&router);
        self.step(format!("network{} behind router {router}", self.made));
        self.extras.networks.push((self.made, network, subnet, router));
    }

    fn add_instance(&mut self) {
        if self.extras.networks.is_empty() {
            return self.add_network();
        }
        let number = self.chance.below(self.extras.networks.len());
        let (network, id, ..) = self.extras.networks[number].clone();
        self.made += 1;
        let (name, host) = (format!("vm{}", self.made), Node::Compute(1 + self.chance.below(6) as u16));
        self.step(format!("instance {name} on {host} in network{network}"));
        self.instance(&name, &id, host);
        self.extras.instances.push((network, name));
    }

    /// To an instance without connections: those would not go on by another address.
    fn add_floating(&mut self) {
        if self.extras.instances.is_empty() {
            return self.add_instance();
        }
        let (_, name) = self.chance.pick(&self.extras.instances);
        let port = self.cloud.lab.instances().unwrap()[&name].port;
        let body = json!({"floatingip": {"floating_network_id": self.external, "port_id": port}});
        let answer = self.cloud.lab.api("POST", "/v2.0/floatingips", Some(&body)).unwrap();
        // A fixed address has one floating IP at most on a network.
        if answer.status == 201 {
            self.extras.floating.push(answer.body["floatingip"]["id"].as_str().unwrap().to_owned());
        }
        let text = format!("a floating IP for {name}: {}", answer.status);
        assert!([201, 409].contains(&answer.status), "{text} {}", answer.body);
        self.step(text);
    }

    fn add_router(&mut self) {
        let (ha, distributed) = self.chance.pick(&[(true, true), (true, false), (false, true), (false, false)]);
        let router = self.router(ha, distributed);
        self.step(format!("router {router}, HA: {ha}, distributed: {distributed}"));
        self.extras.routers.push(router);
    }

    fn migrate_instance(&mut self) {
        if self.extras.instances.is_empty() {
            return self.add_instance();
        }
        let (_, name) = self.chance.pick(&self.extras.instances);
        let host = Node::Compute(1 + self.chance.below(6) as u16);
        self.step(format!("{name} migrates to {host}"));
        self.cloud.lab.migrate_instance(&name, host).unwrap();
    }

    /// An address of the network that its instances may take from each other, which the API does not hear of.
    fn share_address(&mut self) {
        if self.extras.instances.is_empty() {
            return self.add_instance();
        }
        let (network, name) = self.chance.pick(&self.extras.instances);
        let pairs = self.chance.pick(&[json!([]), json!([{"ip_address": format!("10.1.{network}.200")}])]);
        self.step(format!("{name} may have {pairs}"));
        let port = self.cloud.lab.instances().unwrap()[&name].port;
        let body = json!({"port": {"allowed_address_pairs": pairs}});
        self.cloud.lab.api_ok("PUT", &format!("/v2.0/ports/{port}"), Some(&body)).unwrap();
    }

    fn remove_instance(&mut self) {
        if self.extras.instances.is_empty() {
            return;
        }
        let (_, name) = self.extras.instances.swap_remove(self.chance.below(self.extras.instances.len()));
        self.end_instance(&name);
    }

    /// Ends an instance, and deletes its port with its floating IPs.
    fn end_instance(&mut self, name: &str) {
        self.step(format!("{name} ends"));
        let lab = &self.cloud.lab;
        let port = lab.instances().unwrap()[name].port;
        let found = lab.api_ok("GET", &format!("/v2.0/floatingips?port_id={port}"), None).unwrap();
        for floating in found["floatingips"].as_array().unwrap() {
            let id = floating["id"].as_str().unwrap();
            lab.api_ok("DELETE", &format!("/v2.0/floatingips/{id}"), None).unwrap();
            self.extras.floating.retain(|other| other != id);
        }
        lab.delete_instance(name).unwrap();
        lab.api_ok("DELETE", &format!("/v2.0/ports/{port}"), None).unwrap();
    }

    fn remove_network(&mut self) {
        if self.extras.networks.is_empty() {
            return;
        }
        let number = self.chance.below(self.extras.networks.len());
        let (network, id, subnet, router) = self.extras.networks.swap_remove(number);
        for (_, name) in self.extras.instances.extract_if(.., |(of, _)| *of == network).collect::<Vec<_>>() {
            self.end_instance(&name);
        }
        self.step(format!("network{network} is deleted"));
        let lab = &self.cloud.lab;
        let body = json!({"subnet_id": subnet});
        lab.api_ok("PUT", &format!("/v2.0/routers/{router}/remove_router_interface"), Some(&body)).unwrap();
        lab.api_ok("DELETE", &format!("/v2.0/networks/{id}"), None).unwrap();
    }

    fn remove_floating_and_router(&mut self) {
        for (kind, id) in [("floatingips", self.extras.floating.pop()), ("routers", self.extras.routers.pop())] {
            if let Some(id) = id {
                self.step(format!("{id} of {kind} is deleted"));
                self.cloud.lab.api_ok("DELETE", &format!("/v2.0/{kind}/{id}"), None).unwrap();
            }
        }
    }

    /// Opens connections through the routers that have standbys, by source NAT and to a floating IP, and waits until
    /// every standby holds them.
    fn open_flows(&self, port: u16) -> Flows {
        let lab = &self.cloud.lab;
        let (number, count) = (port.to_string(), FLOWS.to_string());
        let outside = || lab.machine(Node::Web).command("python3").unwrap();
        let guest = |instance| lab.instance_command(instance, "python3").unwrap();
        let [served, by_nat, behind_nat] = [&self.base[0], &self.base[1], &self.base[2]];
        let servers = [(None, outside()), (Some(served.host), guest(served.instance))];
        let mut servers = servers.map(|(host, python)| (host, End::start(python, &["serve", &number])));
        let connect = |python, to: &str| End::start(python, &["connect", to, &number, &count]);
        assert!(servers.iter_mut().all(|(_, server)| server.says() == "ready"));
        let mut clients = [
            (served.host, connect(outside(), &self.floating)),
            (by_nat.host, connect(guest(by_nat.instance), "198.51.100.10")),
            (behind_nat.host, connect(guest(behind_nat.instance), "198.51.100.10")),
        ];
        assert!(clients.iter_mut().all(|(_, client)| client.says() == "ready"));
        for (router, flows) in [(served.router, 2 * FLOWS), (behind_nat.router, FLOWS)] {
            let active = lab.wait_active(router).unwrap();
            for node in lab.hosts_of(router).into_iter().filter(|node| *node != active) {
                wait_for(&format!("{node} holds the connections of {router}"), PATIENCE, || {
                    let list = format!("conntrack -L -p tcp --dport {port} 2>/dev/null | wc -l");
                    let done = lab.machine(node).router_command(router, "sh")?.args(["-c", &list]).output()?;
                    Ok((String::from_utf8(done.stdout)?.trim().parse::<usize>()? >= flows).then_some(()))
                })
                .unwrap_or_else(|error| self.fail(&format!("{error:#}")));
            }
        }
        Flows { servers, clients }
    }

    /// Uses the connections, but for those of instances that ended with a host in `without`.
    fn use_flows(&self, flows: &mut Flows, without: &BTreeSet<Node>) {
        let lives = |host: &Option<Node>| host.is_none_or(|host| !without.contains(&host));
        for (_, server) in flows.servers.iter_mut().filter(|(host, _)| lives(host)) {
            server.go();
            assert_eq!(server.says(), "pushed");
        }
        for (host, client) in flows.clients.iter_mut().filter(|(host, _)| lives(&Some(*host))) {
            client.go();
            let said = client.says();
            // A datagram's entry may have ended of itself: it is kept for 30 s.
            if !said.starts_with(&format!("alive {FLOWS} of {FLOWS},")) {
                self.fail(&format!("connections of the instance on {host}: {said}"));
            }
        }
    }

    fn wait_well(&self) {
        let hosts = self.cloud.lab.spec().hosts();
        let settled = self.cloud.lab.wait_hosts_alive(&hosts).and_then(|()| wait_settled(&self.cloud.lab));
        settled.unwrap_or_else(|error| self.fail(&format!("{error:#}")));
        for instance in self.cloud.lab.instances().unwrap().keys() {
            wait_for(&format!("{instance} reaches the web server"), PATIENCE, || {
                self.cloud.lab.instance_shell(instance, "evergate lab fetch http://198.51.100.10/").map(Some)
            })
            .unwrap_or_else(|error| self.fail(&format!("{error:#}")));
        }
        for instances in self.behind_one_router() {
            for pair in instances.windows(2) {
                self.wait_meet(pair[0], pair[1]);
            }
        }
    }

    /// The instances of each router that stays.
    fn behind_one_router(&self) -> impl Iterator<Item = Vec<&str>> {
        let routers: BTreeSet<RouterId> = self.base.iter().map(|base| base.router).collect();
        routers.into_iter().map(move |router| {
            let base = self.base.iter().filter(move |base| base.router == router).map(|base| base.instance);
            let is_behind = move |of: usize| {
                self.extras.networks.iter().any(|(number, .., other)| *number == of && *other == router.to_string())
            };
            let extras = self.extras.instances.iter().filter(move |(of, _)| is_behind(*of)).map(|(_, name)| &name[..]);
            base.chain(extras).collect()
        })
    }

    fn wait_meet(&self, from: &str, to: &str) {
        let lab = &self.cloud.lab;
        let address = lab.instances().unwrap()[to].address.split('/').next().unwrap_or_default().to_owned();
        wait_for(&format!("{from} reaches {to}"), PATIENCE, || {
            let page = lab.instance_shell(from, &format!("evergate lab fetch http://{address}/"))?;
            anyhow::ensure!(page.contains(to), "{page}");
            Ok(Some(()))
        })
        .unwrap_or_else(|error| self.fail(&format!("{error:#}")));
    }

    /// Prints how it came to this, and what every host says.
    fn fail(&self, why: &str) -> ! {
        eprintln!("steps:\n  {}", self.steps.join("\n  "));
        for node in self.cloud.lab.spec().hosts() {
            // A control that was stopped answers nobody.
            let shown = self.cloud.lab.machine(node).shell("timeout 5 evergate show; timeout 5 evergate plan");
            eprintln!("--- {node}\n{}", shown.unwrap_or_else(|error| format!("{error:#}")));
        }
        panic!("{why}");
    }
}

/// Connections of a round.
struct Flows {
    /// With the hosts that they run on; one is outside.
    servers: [(Option<Node>, End); 2],
    /// With the hosts of the instances at the one or the other end.
    clients: [(Node, End); 3],
}

/// Tells whether a host that has the fault cannot remain a router's only active one.
fn takes_the_role(fault: &Fault) -> bool {
    frozen(fault) || matches!(fault, Fault::Power | Fault::Cut(_))
}

/// Tells whether the host's kernel goes on for a router that another host serves as well.
fn frozen(fault: &Fault) -> bool {
    matches!(fault, Fault::Process(Daemon::Keeper, Signal::Stop))
}
