//! What hosts are told, brought up to date by the change log alone, is at every revision what reading all of it anew
//! gives: after writes at random of every kind that matters to a host, alone and several at once, with hosts that
//! are slow to read, that leave and that come back.
//!
//! `EVERGATE_FUZZ_REQUESTS` makes the run longer, `EVERGATE_FUZZ_SEED` takes another way.

use std::collections::BTreeMap;
use std::sync::Arc;

use evergate_model::HostConfig;
use evergate_model::host::{AgentKind, AgentReport, HaState};
use evergate_model::stream::{Change, Downstream};
use evergate_server::hostview::{self, HostView, Line, Name, Picture};
use evergate_server::objects::{agent, port};
use evergate_server::options::{Limits, Options};
use evergate_server::store::{Dialect, StoreError};
use evergate_server::{dvr, ha};
use serde_json::{Value, json};

use crate::harness::{Dice, Server, admin, id};

/// Writes of a run, unless told otherwise.
const WRITES: usize = 240;
const SEEDS: [u64; 2] = [0x5eed_0001, 0x5eed_0002];
const HOSTS: [&str; 7] = ["h1", "h2", "h3", "h4", "h5", "h6", "h7"];
const MODES: [&str; 4] = ["legacy", "dvr", "dvr_snat", "dvr_no_external"];

/// A host as its stream makes it.
struct Follower {
    /// What the stream was compared with last.
    sent: Arc<HostView>,
    /// What the host knows.
    knows: HostConfig,
}

fn heard(line: &Line) -> Downstream {
    let line: Vec<u8> = line.iter().flatten().copied().collect();
    assert!(line.ends_with(b"\n") && !line[..line.len() - 1].contains(&b'\n'));
    serde_json::from_slice(&line).unwrap()
}

struct Run {
    server: Server,
    dice: Dice,
    picture: Picture,
    followers: BTreeMap<Name, Follower>,
    external: String,
    epoch: u64,
    told: usize,
    trail: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let none = Limits {
            network: -1,
            subnet: -1,
            port: -1,
            router: -1,
            floatingip: -1,
            subnetpool: -1,
            ..Limits::default()
        };
        let server = Server::with(Options { limits: none, ..Options::default() });
        for (host, mode) in HOSTS.into_iter().zip(["dvr_snat", "dvr_snat", "legacy", "dvr", "dvr", "legacy"]) {
            server.host_in_mode(host, mode);
        }
        let (external, _) = server.make_external();
        let flat = json!({"provider:network_type": "flat", "provider:physical_network": "physnet2"});
        let flat = server.make(&admin(), "network", flat);
        server.make(&admin(), "subnet", json!({"network_id": flat["id"], "ip_version": 4, "cidr": "10.9.0.0/24"}));
        let mut run = Self {
            server,
            dice: Dice(seed),
            picture: Picture::default(),
            followers: BTreeMap::new(),
            external: id(&external).to_owned(),
            epoch: 0,
            told: 0,
            trail: Vec::new(),
        };
        run.advance(&HOSTS.map(Name::from));
        run
    }

    fn ids(&self, table: &str) -> Vec<String> {
        // By age: ids are random, and a run is to be the same each time.
        let is_sqlite = self.server.store.dialect() == Dialect::Sqlite;
        let order = if is_sqlite && table != "agents" { "rowid" } else { "id" };
        let sql = format!("SELECT id FROM {table} ORDER BY {order}");
        self.server.store.read::<_, StoreError>(|tx| tx.query(&sql, &[], |row| row.text(0))).unwrap()
    }

    fn id(&mut self, table: &str) -> String {
        let ids = self.ids(table);
        if ids.is_empty() { "none".to_owned() } else { self.dice.pick(&ids) }
    }

    fn host(&mut self) -> &'static str {
        self.dice.pick(&["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", ""])
    }

    fn send(&mut self, method: &str, path: String, body: Value) {
        let answer = self.server.send(&admin(), method, &path, &[], &body.to_string());
        assert!(answer.status < 500, "{method} {path} {body}: {answer:?}");
        self.trail.push(format!("{method} {path} {body}: {}", answer.status));
    }

    fn write(&mut self) {
        match self.dice.roll(22) {
            0 => self.send("POST", "/v2.0/networks".into(), json!({"network": {}})),
            1 => self.make_subnet(),
            2..=4 => self.make_port(),
            5 | 6 => self.change_port(),
            7 => {
                let path = format!("/v2.0/ports/{}", self.id("ports"));
                self.send("DELETE", path, Value::Null);
            }
            8 => self.make_router(),
            9 | 10 => self.plug(),
            11 | 12 => self.change_router(),
            13 | 14 => self.float(),
            15 => self.forward(),
            16 => self.report_agents(),
            17 => self.administer_agents(),
            18 => self.report_states(),
            19 => self.change_subnet(),
            20 => self.change_network(),
            _ => self.pool(),
        }
    }

    fn make_subnet(&mut self) {
        let network = self.id("networks");
        let (a, b) = (self.dice.roll(3), self.dice.roll(5));
        let subnet = if self.dice.one_in(3) {
            let mode = self.dice.pick(&["slaac", "dhcpv6-stateless", "dhcpv6-stateful"]);
            json!({
                "network_id": network, "ip_version": 6, "cidr": format!("fd00:{a}:{b}::/64"),
                "ipv6_ra_mode": mode, "ipv6_address_mode": mode, "dns_nameservers": ["fd00::53"],
            })
        } else {
            json!({"network_id": network, "ip_version": 4, "cidr": format!("10.{a}.{b}.0/24")})
        };
        self.send("POST", "/v2.0/subnets".into(), json!({"subnet": subnet}));
    }

    fn make_port(&mut self) {
        let mut port = json!({"network_id": self.id("networks"), "binding:host_id": self.host()});
        if self.dice.one_in(6) {
            port["allowed_address_pairs"] = json!([{"ip_address": "10.0.0.77"}]);
        }
        let port = if self.dice.one_in(8) { json!({"ports": [port.clone(), port]}) } else { json!({"port": port}) };
        self.send("POST", "/v2.0/ports".into(), port);
    }

    fn change_port(&mut self) {
        let path = format!("/v2.0/ports/{}", self.id("ports"));
        let subnet = self.id("subnets");
        let change = [
            json!({"binding:host_id": self.host()}),
            json!({"binding:host_id": self.host()}),
            json!({"admin_state_up": self.dice.one_in(2)}),
            json!({"name": "x"}),
            json!({"fixed_ips": []}),
            json!({"fixed_ips": [{"subnet_id": subnet}]}),
            json!({"allowed_address_pairs": [{"ip_address": "10.0.0.0/28", "mac_address": "fa:16:3e:00:00:07"}]}),
        ];
        let change = self.dice.pick(&change);
        self.send("PUT", path, json!({"port": change}));
    }

    fn make_router(&mut self) {
        let mut router = json!({"ha": self.dice.one_in(2), "distributed": self.dice.one_in(2)});
        if !self.dice.one_in(3) {
            router["external_gateway_info"] = json!({"network_id": self.external});
        }
        self.send("POST", "/v2.0/routers".into(), json!({"router": router}));
    }

    fn plug(&mut self) {
        let action = self.dice.pick(&["add_router_interface", "add_router_interface", "remove_router_interface"]);
        let path = format!("/v2.0/routers/{}/{action}", self.id("routers"));
        let body = if self.dice.one_in(4) {
            json!({"port_id": self.id("ports")})
        } else {
            json!({"subnet_id": self.id("subnets")})
        };
        self.send("PUT", path, body);
    }

    fn change_router(&mut self) {
        let path = format!("/v2.0/routers/{}", self.id("routers"));
        if self.dice.one_in(12) {
            return self.send("DELETE", path, Value::Null);
        }
        let route = json!({"destination": "192.0.2.0/24", "nexthop": format!("10.0.{}.9", self.dice.roll(3))});
        let change = [
            json!({"external_gateway_info": null}),
            json!({"external_gateway_info": {"network_id": self.external, "enable_snat": self.dice.one_in(2)}}),
            json!({"external_gateway_info": {"network_id": self.external}}),
            json!({"ha": self.dice.one_in(2)}),
            json!({"distributed": self.dice.one_in(2)}),
            json!({"admin_state_up": self.dice.one_in(2)}),
            json!({"routes": [route]}),
            json!({"routes": []}),
        ];
        let change = self.dice.pick(&change);
        self.send("PUT", path, json!({"router": change}));
    }

    fn float(&mut self) {
        let (port, one) = (self.id("ports"), self.id("floating_ips"));
        match self.dice.roll(4) {
            0 | 1 => {
                let body = json!({"floating_network_id": self.external, "port_id": port});
                self.send("POST", "/v2.0/floatingips".into(), json!({"floatingip": body}));
            }
            2 => {
                let to = self.dice.pick(&[json!(null), json!(port)]);
                self.send("PUT", format!("/v2.0/floatingips/{one}"), json!({"floatingip": {"port_id": to}}));
            }
            _ => self.send("DELETE", format!("/v2.0/floatingips/{one}"), Value::Null),
        }
    }

    fn forward(&mut self) {
        let (floating, port) = (self.id("floating_ips"), self.id("ports"));
        let sql = "SELECT ip_address FROM fixed_ips WHERE port_id = ?1";
        let params = evergate_server::values![&port];
        let ip = self.server.store.read::<_, StoreError>(|tx| tx.query_opt(sql, &params, |row| row.text(0))).unwrap();
        let free = json!({"floatingip": {"floating_network_id": self.external}});
        if self.dice.one_in(2) {
            self.send("POST", "/v2.0/floatingips".into(), free);
        }
        let number = 80 + self.dice.roll(4);
        let body = json!({"port_forwarding": {
            "external_port": number, "internal_port": 80, "protocol": "tcp", "internal_port_id": port,
            "internal_ip_address": ip,
        }});
        let gone = self.id("port_forwardings");
        match self.dice.roll(3) {
            0 | 1 => self.send("POST", format!("/v2.0/floatingips/{floating}/port_forwardings"), body),
            _ => {
                let sql = "SELECT floating_ip_id FROM port_forwardings WHERE id = ?1";
                let params = evergate_server::values![&gone];
                let read = |tx: &evergate_server::store::Tx<'_>| tx.query_opt(sql, &params, |row| row.text(0));
                let of = self.server.store.read::<_, StoreError>(read).unwrap().unwrap_or_default();
                self.send("DELETE", format!("/v2.0/floatingips/{of}/port_forwardings/{gone}"), Value::Null);
            }
        }
    }

    /// A host says that it is something else, or somewhere else, or what it has.
    fn report_agents(&mut self) {
        let host = self.dice.pick(&["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"]);
        let (mode, last) = (self.dice.pick(&MODES), self.dice.pick(&[11, 12, 15, 21, 22, 23, 24]));
        let bridges = self.dice.pick(&[json!({"physnet1": "br-ex"}), json!({})]);
        let l2 = json!({"tunneling_ip": format!("10.60.0.{last}"), "bridge_mappings": bridges});
        let l3 = json!({"agent_mode": mode});
        let report = |kind, configurations: &Value| AgentReport {
            kind,
            availability_zone: Some("nova".to_owned()),
            configurations: configurations.as_object().unwrap().clone(),
        };
        let ports: Vec<String> = self.ids("ports");
        let up = ports.iter().filter(|_| self.dice.one_in(2)).map(|id| id.parse().unwrap()).collect();
        let options = Arc::clone(&self.server.options);
        self.server.write(|tx| {
            agent::upsert(tx, &options, host, &report(AgentKind::LinuxBridge, &l2), false)?;
            let l3 = agent::upsert(tx, &options, host, &report(AgentKind::L3, &l3), false)?;
            if l3.has_new_mode {
                ha::vacate_unfit(tx, &options, l3.id)?;
            }
            if l3.is_new {
                ha::schedule_missing(tx, &options)?;
            }
            dvr::settle(tx, &options)?;
            port::record_status(tx, host, &up)?;
            dvr::settle(tx, &options)
        });
        self.trail.push(format!("{host} reports {mode} {l2}"));
    }

    fn administer_agents(&mut self) {
        let (agent, router) = (self.id("agents"), self.id("routers"));
        match self.dice.roll(6) {
            0 => self.send("DELETE", format!("/v2.0/agents/{agent}"), Value::Null),
            1 => self.send("POST", format!("/v2.0/agents/{agent}/l3-routers"), json!({"router_id": router})),
            2 => self.send("DELETE", format!("/v2.0/agents/{agent}/l3-routers/{router}"), Value::Null),
            _ => {
                let up = !self.dice.one_in(3);
                self.send("PUT", format!("/v2.0/agents/{agent}"), json!({"agent": {"admin_state_up": up}}));
            }
        }
    }

    fn report_states(&mut self) {
        let (host, router) = (self.dice.pick(&HOSTS), self.id("routers"));
        let state = self.dice.pick(&[HaState::Active, HaState::Active, HaState::Standby]);
        self.epoch += 1;
        if router != "none" {
            self.server.report_state(host, &json!({"id": router}), state, self.epoch);
        }
        self.trail.push(format!("{host} is {state:?} of {router}"));
    }

    fn change_subnet(&mut self) {
        let path = format!("/v2.0/subnets/{}", self.id("subnets"));
        let change = [
            json!({"dns_nameservers": ["fd00::54"]}),
            json!({"dns_nameservers": []}),
            json!({"gateway_ip": null}),
            json!({"name": "x"}),
        ];
        match self.dice.roll(4) {
            0 => self.send("DELETE", path, Value::Null),
            _ => {
                let change = self.dice.pick(&change);
                self.send("PUT", path, json!({"subnet": change}));
            }
        }
    }

    fn change_network(&mut self) {
        let path = format!("/v2.0/networks/{}", self.id("networks"));
        let change = [json!({"mtu": 1300 + self.dice.roll(100)}), json!({"name": "x"})];
        match self.dice.roll(4) {
            0 => self.send("DELETE", path, Value::Null),
            _ => {
                let change = self.dice.pick(&change);
                self.send("PUT", path, json!({"network": change}));
            }
        }
    }

    fn pool(&mut self) {
        let (pool, scope, network) = (self.id("subnet_pools"), self.id("address_scopes"), self.id("networks"));
        match self.dice.roll(4) {
            0 => self.send(
                "POST",
                "/v2.0/address-scopes".into(),
                json!({"address_scope": {"name": "s", "ip_version": 4}}),
            ),
            1 => {
                let prefix = format!("10.{}.0.0/16", 100 + self.dice.roll(20));
                let body =
                    json!({"name": "p", "prefixes": [prefix], "default_prefixlen": 24, "address_scope_id": scope});
                self.send("POST", "/v2.0/subnetpools".into(), json!({"subnetpool": body}));
            }
            2 => {
                let body = json!({"network_id": network, "ip_version": 4, "subnetpool_id": pool});
                self.send("POST", "/v2.0/subnets".into(), json!({"subnet": body}));
            }
            _ => {
                let to = self.dice.pick(&[json!(null), json!(scope)]);
                self.send("PUT", format!("/v2.0/subnetpools/{pool}"), json!({"subnetpool": {"address_scope_id": to}}));
            }
        }
    }

    /// Brings the picture up to date, and lets hosts follow.
    fn advance(&mut self, joining: &[Name]) {
        let news = self.server.store.read(|tx| self.picture.look(tx, &self.server.options, joining)).unwrap();
        self.picture.take(news);
        for host in joining {
            let sent = Arc::clone(self.picture.view(host).unwrap());
            let Downstream::Snapshot { config } = heard(&hostview::snapshot(&sent, self.picture.revision())) else {
                panic!("a stream begins with a snapshot")
            };
            self.followers.insert(Arc::clone(host), Follower { sent, knows: config });
        }
    }

    /// A host hears what is new.
    fn hear(&mut self, host: &str) {
        let follower = self.followers.get_mut(host).unwrap();
        let now = Arc::clone(self.picture.view(host).unwrap());
        if let Some(line) = hostview::change(&follower.sent, &now) {
            let Downstream::Change(change) = heard(&line) else { panic!("a change is a change") };
            change.apply(&mut follower.knows).unwrap();
            self.told += 1;
        }
        follower.sent = now;
    }

    fn check(&mut self, host: &str) {
        let truth = self.server.told(host);
        let trail = || self.trail[self.trail.len().saturating_sub(12)..].join("\n");
        let shown = self.picture.view(host).unwrap().config(self.picture.revision());
        let between = |shown: &HostConfig| Change::between(shown, &truth);
        assert!(shown == truth, "the picture of {host} lacks {:?} after\n{}", between(&shown), trail());
        let revision = self.followers[host].knows.revision;
        self.followers.get_mut(host).unwrap().knows.revision = truth.revision;
        let knows = &self.followers[host].knows;
        assert!(*knows == truth, "{host} was not told {:?} after\n{}", between(knows), trail());
        self.followers.get_mut(host).unwrap().knows.revision = revision;
    }

    fn step(&mut self, n: usize) {
        for _ in 0..=(if self.dice.one_in(4) { self.dice.roll(4) } else { 0 }) {
            self.write();
        }
        self.advance(&[]);
        let all = n.is_multiple_of(8);
        for host in HOSTS {
            // Others are slow, and get several changes as one.
            if all || self.dice.one_in(3) {
                self.hear(host);
                self.check(host);
            }
        }
        if self.dice.one_in(20) {
            let host = self.dice.pick(&HOSTS);
            self.picture.retain(|kept| *kept != *host);
            self.trail.push(format!("{host} left"));
            if self.dice.one_in(2) {
                self.write();
            }
            self.advance(&[host.into()]);
            self.check(host);
        }
    }
}

#[test]
fn what_the_log_brings_up_to_date_is_what_reading_anew_gives() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let writes = number("EVERGATE_FUZZ_REQUESTS").map_or(WRITES, |n| n as usize);
    for seed in number("EVERGATE_FUZZ_SEED").map_or(SEEDS.to_vec(), |seed| vec![seed]) {
        let mut run = Run::new(seed);
        (1..=writes).for_each(|n| run.step(n));
        assert!(run.told > writes / 8, "hosts were told of {} changes only", run.told);
        let done = run.trail.iter().filter(|line| line.ends_with(": 200") || line.ends_with(": 201")).count();
        assert!(done > writes / 4, "{done} of the writes did anything");
    }
}

#[test]
fn hosts_that_a_write_does_not_concern_are_left_alone() {
    let mut run = Run::new(1);
    let (network, _) = run.server.make_network(&admin(), "n", "10.1.1.0/24");
    let port =
        |host: &str| run.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": host}));
    port("h1");
    port("h2");
    run.advance(&[]);
    let touched = |run: &mut Run| -> Vec<String> {
        let news = run.server.store.read(|tx| run.picture.look(tx, &run.server.options, &[])).unwrap();
        run.picture.take(news).iter().map(|view| view.host().to_string()).collect()
    };
    let made = run.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": "h3"}));
    assert_eq!(touched(&mut run), ["h1", "h2", "h3"]);
    // A name, a network that nobody has, a status: nobody's.
    run.send("PUT", format!("/v2.0/ports/{}", id(&made)), json!({"port": {"name": "x"}}));
    run.server.make_network(&admin(), "m", "10.1.2.0/24");
    let up = [id(&made).parse().unwrap()].into();
    run.server.write(|tx| Ok(port::record_status(tx, "h3", &up)?));
    assert_eq!(touched(&mut run), [""; 0]);
    // On the external network everybody may have a port, and is told of its own alone.
    run.server.make(&admin(), "port", json!({"network_id": run.external, "binding:host_id": "h5"}));
    assert_eq!(touched(&mut run), ["h5"]);
    run.server.make(&admin(), "port", json!({"network_id": run.external, "binding:host_id": "h6"}));
    assert_eq!(touched(&mut run), ["h6"]);
}

#[test]
fn what_is_read_for_a_write_does_not_grow_with_the_network_or_its_hosts() {
    let mut run = Run::new(1);
    let (network, _) = run.server.make_network(&admin(), "n", "10.1.0.0/16");
    let cost = |run: &mut Run, ports: usize| -> (usize, usize) {
        for n in 0..ports {
            let host = HOSTS[n % HOSTS.len()];
            run.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": host}));
        }
        run.advance(&[]);
        run.server.make(&admin(), "port", json!({"network_id": network["id"], "binding:host_id": "h1"}));
        let look = |tx: &evergate_server::store::Tx<'_>| {
            let news = run.picture.look(tx, &run.server.options, &[])?;
            Ok::<_, evergate_server::error::ApiError>((news, tx.statements(), tx.rows()))
        };
        let (news, statements, rows) = run.server.store.read(look).unwrap();
        assert_eq!(run.picture.take(news).len(), ports.min(HOSTS.len()));
        (statements, rows)
    };
    let few = cost(&mut run, 7);
    assert_eq!(cost(&mut run, 70), few);
}
