//! Requests made at random from the tables of attributes, by several callers: none breaks the server, none
//! that is refused leaves a trace, and what must always hold does.
//!
//! `EVERGATE_FUZZ_REQUESTS` makes the run longer, `EVERGATE_FUZZ_SEED` repeats one.

use evergate_server::attributes::{Attribute, Kind, Table};
use evergate_server::context::Context;
use evergate_server::options::Options;
use evergate_server::resources::{COLLECTIONS, NESTED, find};
use serde_json::{Map, Value, json};

use crate::harness::{Dice, OTHER, PROJECT, Server, admin, member, reader};

struct Fuzzer {
    server: Server,
    dice: Dice,
    /// Collection and id of what was made.
    known: Vec<(&'static str, String)>,
    /// The external network.
    external: String,
}

const ADDRESSES: [&str; 9] =
    ["10.0.0.5", "10.0.1.1", "203.0.113.9", "0.0.0.0", "255.255.255.255", "224.0.0.1", "fd00::5", "::", "10.0.0.300"];
const NETS: [&str; 9] = [
    "10.0.0.0/24",
    "10.0.1.0/28",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "192.0.2.0/31",
    "192.0.2.1/32",
    "fd00::/64",
    "fd00::/127",
    "10.0.0.0/33",
];
const NO_ID: &str = "00000000-0000-4000-8000-000000000000";

impl Fuzzer {
    fn id(&mut self) -> String {
        if self.known.is_empty() || self.dice.one_in(12) {
            return self.dice.pick(&[NO_ID, "x", ""]).to_owned();
        }
        let index = self.dice.roll(self.known.len());
        self.known[index].1.clone()
    }

    fn id_of(&mut self, collection: &str) -> String {
        let of_kind: Vec<String> =
            self.known.iter().filter(|(kind, _)| *kind == collection).map(|(_, id)| id.clone()).collect();
        if of_kind.is_empty() || self.dice.one_in(15) { self.id() } else { self.dice.pick(&of_kind) }
    }

    /// Something that an attribute may hold, or nearly.
    fn value(&mut self, attribute: &Attribute) -> Value {
        if self.dice.one_in(10) {
            return self.junk();
        }
        let collection = match attribute.name {
            "object_id" => {
                self.dice.pick(&["networks", "networks", "subnetpools", "address-scopes", "security-groups"])
            }
            "network_id" | "floating_network_id" => "networks",
            "port_id" | "internal_port_id" => "ports",
            "subnet_id" => "subnets",
            "subnetpool_id" => "subnetpools",
            "address_scope_id" => "address-scopes",
            _ => "routers",
        };
        let address = self.dice.pick(&ADDRESSES);
        match attribute.kind {
            Kind::Bool | Kind::BoolOrNull => self.dice.pick(&[json!(true), json!(false), json!("1"), json!(null)]),
            Kind::Int | Kind::IntOrNull | Kind::Limit => {
                self.dice.pick(&[json!(0), json!(1), json!(1400), json!("68"), json!(-1), json!(i64::MAX), json!(null)])
            }
            Kind::PortNumber => self.dice.pick(&[json!(80), json!(443), json!("90"), json!(0), json!(70000)]),
            Kind::PortRange => json!(self.dice.pick(&["80:90", "85:95", "1:65535", "90:80", "80", ":"])),
            Kind::OneOf(allowed) => json!(self.dice.pick(allowed)),
            Kind::Words(words) | Kind::WordsOrNull(words) => json!(self.dice.pick(words)),
            Kind::Scalar => self.dice.pick(&[
                json!(null),
                json!("tcp"),
                json!("icmp"),
                json!(6),
                json!(80),
                json!("443"),
                json!("10.0.0.0/8"),
                json!("IPv4"),
                json!("IPv6"),
                json!("any"),
                json!(300),
            ]),
            Kind::Uuids => json!([self.id_of("security-groups")]),
            Kind::DhcpOptions => json!([{"opt_name": "mtu", "opt_value": self.dice.pick(&[Some("9"), None])}]),
            Kind::Uuid | Kind::UuidOrNull => json!(self.id_of(collection)),
            Kind::IpOrNull => json!(address),
            Kind::CidrOrNull => json!(self.dice.pick(&NETS)),
            Kind::MacOrNull => json!(self.dice.pick(&["fa:16:3e:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff"])),
            Kind::Prefixes => json!([self.dice.pick(&NETS)]),
            Kind::Pools => json!([{"start": address, "end": self.dice.pick(&ADDRESSES)}]),
            Kind::Nameservers => json!([address]),
            Kind::Routes => json!([{"destination": self.dice.pick(&NETS), "nexthop": address}]),
            Kind::FixedIps => json!([{"subnet_id": self.id_of("subnets"), "ip_address": address}]),
            Kind::AddressPairs => json!([{"ip_address": address}]),
            Kind::GatewayInfo => {
                let info = json!({"network_id": self.id_of("networks")});
                let ips = json!([{"ip_address": address}]);
                let precise = json!({"network_id": self.id_of("networks"), "external_fixed_ips": ips});
                self.dice.pick(&[json!(null), json!({}), info.clone(), info, precise])
            }
            Kind::NotBlank(_) | Kind::Text(_) | Kind::TextOrNull(_) => match attribute.name {
                "security_group_id" | "remote_group_id" => json!(self.id_of("security-groups")),
                "action" => json!(self.dice.pick(&["access_as_shared", "access_as_external"])),
                "object_type" => {
                    json!(self.dice.pick(&["network", "network", "subnetpool", "address_scope", "security_group"]))
                }
                "target_tenant" | "project_id" => json!(self.dice.pick(&[PROJECT, OTHER, "*"])),
                "provider:network_type" => json!(self.dice.pick(&["vxlan", "flat", "local", "vlan"])),
                "device_owner" => {
                    json!(self.dice.pick(&["", "compute:nova", "network:dhcp", "network:router_gateway"]))
                }
                _ => json!(self.dice.pick(&["", "a", "h1", "naïve 'quoted\" %_\u{1F600}"])),
            },
            Kind::Dict
            | Kind::Strings(_)
            | Kind::ServiceTypes
            | Kind::NotOffered
            | Kind::NoneOffered
            | Kind::Computed => self.dice.pick(&[json!([]), json!({}), json!(null), json!(["nova"])]),
        }
    }

    fn junk(&mut self) -> Value {
        let long = "x".repeat(300);
        let values = [
            json!(null),
            json!([]),
            json!({}),
            json!([null]),
            json!([[]]),
            json!([{}]),
            json!(-1),
            json!(1.5),
            json!(1e300),
            json!("\u{0}"),
            json!(long),
            json!("'; DROP TABLE ports; --"),
            json!({"a": {"b": []}}),
            json!(true),
            json!(""),
        ];
        self.dice.pick(&values)
    }

    fn body(&mut self, table: &Table, create: bool) -> Value {
        let mut given = Map::new();
        for attribute in table.attributes {
            let usual = if create { attribute.post } else { attribute.put };
            let required = create && attribute.absent == evergate_server::attributes::Absent::Required;
            // Mostly what the verb takes; some of what it does not.
            let wanted = match (usual, required && attribute.name != "project_id") {
                (_, true) => !self.dice.one_in(30),
                (true, _) => self.dice.one_in(5),
                (false, _) => self.dice.one_in(120),
            };
            if wanted {
                let value = self.value(attribute);
                given.insert(attribute.name.into(), value);
            }
        }
        let bulk = create && table.bulk && self.dice.one_in(15);
        if bulk { json!({table.plural: [given.clone(), given]}) } else { json!({table.singular: given}) }
    }

    /// A method, a path and a body.
    fn request(&mut self) -> (&'static str, String, String) {
        let collection = self.dice.pick(&COLLECTIONS);
        if self.dice.one_in(8) {
            return self.likely();
        }
        if self.dice.one_in(12) {
            return self.nested();
        }
        let table = find(collection).unwrap().table();
        let id = self.id_of(collection);
        let member = format!("/v2.0/{collection}/{id}");
        if self.dice.one_in(20) {
            let verb = self.dice.pick(&["add_prefixes", "remove_prefixes", "onboard_network_subnets"]);
            let body = json!({"prefixes": [self.dice.pick(&NETS)], "network_id": self.id_of("networks")});
            return ("PUT", format!("/v2.0/subnetpools/{}/{verb}", self.id_of("subnetpools")), body.to_string());
        }
        match self.dice.roll(20) {
            0..=8 => ("POST", format!("/v2.0/{collection}"), self.body(table, true).to_string()),
            9..=11 => ("PUT", member, self.body(table, false).to_string()),
            12 => ("DELETE", member, String::new()),
            13 | 14 => {
                let action =
                    self.dice.pick(&["add_router_interface", "add_router_interface", "remove_router_interface"]);
                let (subnet, port) =
                    (json!({"subnet_id": self.id_of("subnets")}), json!({"port_id": self.id_of("ports")}));
                let body = self.dice.pick(&[subnet.clone(), subnet, port]);
                ("PUT", format!("/v2.0/routers/{}/{action}", self.id_of("routers")), body.to_string())
            }
            15 => {
                let path = format!("/v2.0/agents/{}/l3-routers", self.id_of("agents"));
                ("POST", path, json!({"router_id": self.id_of("routers")}).to_string())
            }
            16 => ("PUT", format!("{member}/tags"), json!({"tags": ["a", "b"]}).to_string()),
            17 => {
                let limits =
                    json!({"quota": {self.dice.pick(&["network", "port", "router"]): self.dice.pick(&[-1, 3, 60])}});
                ("PUT", format!("/v2.0/quotas/{OTHER}"), limits.to_string())
            }
            18 => {
                let attribute = &table.attributes[self.dice.roll(table.attributes.len())];
                let value = self.value(attribute).to_string();
                let query: String = form_urlencoded(attribute.name, value.trim_matches('"'));
                ("GET", format!("/v2.0/{collection}?{query}&limit=3&sort_key=id&sort_dir=desc"), String::new())
            }
            _ => self.broken(&member),
        }
    }

    /// A request for what is below a member.
    fn nested(&mut self) -> (&'static str, String, String) {
        let (above, collection, table) = self.dice.pick(&NESTED);
        let many = format!("/v2.0/{above}/{}/{collection}", self.id_of(above));
        let one = format!("{many}/{}", self.id_of(collection));
        match self.dice.roll(8) {
            0..=4 => ("POST", many, self.body(table, true).to_string()),
            5 => ("PUT", one, self.body(table, false).to_string()),
            6 => ("DELETE", one, String::new()),
            _ => ("GET", self.dice.pick(&[one, many]), String::new()),
        }
    }

    /// A request that is well-formed, so that there is something to work on.
    fn likely(&mut self) -> (&'static str, String, String) {
        let (network, net) = (self.id_of("networks"), format!("10.{}.{}.0/24", self.dice.roll(3), self.dice.roll(4)));
        let gateway = json!({"network_id": self.external});
        let (collection, body) = match self.dice.roll(5) {
            0 => ("networks", json!({"network": {"project_id": self.dice.pick(&[PROJECT, OTHER])}})),
            1 | 2 => ("subnets", json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": net}})),
            3 => ("routers", json!({"router": {"external_gateway_info": gateway}})),
            _ => ("floatingips", json!({"floatingip": {"floating_network_id": self.external}})),
        };
        ("POST", format!("/v2.0/{collection}"), body.to_string())
    }

    fn broken(&mut self, member: &str) -> (&'static str, String, String) {
        let body = self.dice.pick(&[
            "",
            "{",
            "[]",
            "null",
            "{\"network\": []}",
            "{\"ports\": {}}",
            "\u{0}",
            "{\"router\": 1}",
        ]);
        let method = self.dice.pick(&["PUT", "POST", "DELETE", "PATCH"]);
        let below =
            self.dice.pick(&["", "/", "/tags/%00", "/tags/x", "/nothing", "/add_extraroutes", "/default", "/../x"]);
        (method, format!("{member}{below}"), body.to_owned())
    }

    fn step(&mut self, who: &Context, trail: &str) {
        let (method, path, body) = self.request();
        if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return;
        }
        let before = self.server.dump();
        let answer = self.server.send(who, method, &path, &[], &body);
        let what = || format!("{trail}: {method} {path} {body} by {}: {answer:?}", who.user_id);
        assert!(
            answer.status < 500 || matches!(answer.error(), "NoNetworkAvailable" | "HTTPNotImplemented"),
            "{}",
            what()
        );
        if answer.status >= 400 {
            assert!(!answer.error().is_empty() && !answer.message().is_empty(), "{}", what());
            assert_eq!(self.server.dump(), before, "{}", what());
            return;
        }
        if method == "POST" && answer.status == 201 {
            let nested = NESTED.iter().map(|(_, collection, _)| *collection);
            let collection = COLLECTIONS.into_iter().chain(nested).find(|c| path.ends_with(&format!("/{c}")));
            let made = answer.body.as_object().and_then(|body| body.values().next()).cloned().unwrap_or_default();
            let made = made.as_array().cloned().unwrap_or_else(|| vec![made]);
            let ids = made.iter().filter_map(|object| object["id"].as_str());
            self.known.extend(collection.into_iter().flat_map(|c| ids.clone().map(move |id| (c, id.to_owned()))));
        }
    }

    /// What no request may break, each as a query that finds nothing.
    fn check(&self, trail: &str) {
        let broken = [
            (
                "an address is on its port's network",
                "SELECT count(*) FROM fixed_ips f JOIN ports p ON p.id = f.port_id JOIN subnets s ON s.id = f.subnet_id \
              WHERE p.network_id <> s.network_id OR f.network_id <> p.network_id",
            ),
            (
                "an HA router has a VRID, and no other has",
                "SELECT count(*) FROM routers r LEFT JOIN ha_routers h ON h.router_id = r.id \
              WHERE (r.ha = 1) <> (h.router_id IS NOT NULL)",
            ),
            (
                "a copy of an HA router has an HA port, and no other has",
                "SELECT count(*) FROM router_bindings b JOIN routers r ON r.id = b.router_id \
              WHERE (r.ha = 1) <> (b.ha_port_id IS NOT NULL)",
            ),
            (
                "a floating IP that leads somewhere goes through a gateway on its network",
                "SELECT count(*) FROM floating_ips f WHERE f.router_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM router_ports rp \
              WHERE rp.router_id = f.router_id AND rp.role = 'gateway' AND rp.network_id = f.floating_network_id)",
            ),
            (
                "a floating IP's address is one of its holder's",
                "SELECT count(*) FROM floating_ips f WHERE NOT EXISTS (SELECT 1 FROM fixed_ips i \
              WHERE i.port_id = f.floating_port_id AND i.ip_address = f.floating_ip_address)",
            ),
            (
                "what a floating IP leads to is one of its port's addresses",
                "SELECT count(*) FROM floating_ips f WHERE f.port_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM fixed_ips i \
              WHERE i.port_id = f.port_id AND i.ip_address = f.fixed_ip_address)",
            ),
            (
                "a floating IP leads to one port or forwards some, and is on a router for either",
                "SELECT count(*) FROM floating_ips f WHERE (f.router_id IS NOT NULL) <> (f.port_id IS NOT NULL OR EXISTS \
              (SELECT 1 FROM port_forwardings pf WHERE pf.floating_ip_id = f.id)) OR (f.port_id IS NOT NULL AND EXISTS \
              (SELECT 1 FROM port_forwardings pf WHERE pf.floating_ip_id = f.id))",
            ),
            (
                "what a port forwarding leads to is one of its port's addresses",
                "SELECT count(*) FROM port_forwardings pf WHERE NOT EXISTS (SELECT 1 FROM fixed_ips i \
              WHERE i.port_id = pf.internal_port_id AND i.ip_address = pf.internal_ip_address)",
            ),
            (
                "port forwardings of one floating IP do not overlap",
                "SELECT count(*) FROM port_forwardings a JOIN port_forwardings b ON a.floating_ip_id = b.floating_ip_id \
              AND a.protocol = b.protocol AND a.id < b.id WHERE a.external_port_start <= b.external_port_end \
              AND b.external_port_start <= a.external_port_end",
            ),
            (
                "shared is the policy for all",
                "SELECT count(*) FROM networks n WHERE (n.shared = 1) <> EXISTS (SELECT 1 FROM rbac_policies p \
              WHERE p.object_id = n.id AND p.action = 'access_as_shared' AND p.target_project = '*')",
            ),
            (
                "policies go with their object",
                "SELECT count(*) FROM rbac_policies WHERE object_id NOT IN (SELECT id FROM networks UNION \
              SELECT id FROM subnet_pools UNION SELECT id FROM address_scopes UNION SELECT id FROM security_groups)",
            ),
            (
                "only secured ports are in security groups",
                "SELECT count(*) FROM port_security_groups b JOIN ports p ON p.id = b.port_id \
              WHERE p.port_security_enabled = 0",
            ),
            (
                "pools and their subnets and scopes are of one IP version",
                "SELECT (SELECT count(*) FROM subnets s JOIN subnet_pools p ON p.id = s.subnetpool_id \
              WHERE p.ip_version <> s.ip_version) + (SELECT count(*) FROM subnet_pools p JOIN address_scopes a \
              ON a.id = p.address_scope_id WHERE a.ip_version <> p.ip_version)",
            ),
            (
                "subnets of one version on a network are of one address scope",
                "SELECT count(*) FROM (SELECT s.network_id FROM subnets s LEFT JOIN subnet_pools p \
              ON p.id = s.subnetpool_id GROUP BY s.network_id, s.ip_version \
              HAVING count(DISTINCT coalesce(p.address_scope_id, '')) > 1) x",
            ),
            (
                "a router's interface on a subnet has an address there",
                "SELECT count(*) FROM router_subnets r WHERE NOT EXISTS (SELECT 1 FROM fixed_ips f \
              WHERE f.port_id = r.port_id AND f.subnet_id = r.subnet_id)",
            ),
            (
                "tags belong to something",
                "SELECT count(*) FROM tags WHERE object_id NOT IN (SELECT id FROM networks UNION SELECT id FROM subnets \
              UNION SELECT id FROM ports UNION SELECT id FROM routers UNION SELECT id FROM floating_ips \
              UNION SELECT id FROM subnet_pools UNION SELECT id FROM security_groups)",
            ),
        ];
        for (rule, sql) in broken {
            assert_eq!(self.server.write(|tx| Ok(tx.count(sql, &[])?)), 0, "{trail}: {rule}");
        }
        for host in ["h1", "h2", "h3"] {
            self.server.told(host);
        }
    }
}

fn form_urlencoded(name: &str, value: &str) -> String {
    let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    format!("{}={}", escape(name), escape(value))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn requests_at_random_break_nothing() {
    let requests = number("EVERGATE_FUZZ_REQUESTS", 1500);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("EVERGATE_FUZZ_SEED", clock | 1);
    println!("EVERGATE_FUZZ_SEED={seed}");
    let server = Server::with(Options { l3_ha: true, ..Options::default() });
    server.hosts();
    let external = server.make_external().0["id"].as_str().unwrap().to_owned();
    let agents = server.list(&admin(), "agents", "");
    let known = agents.iter().map(|agent| ("agents", agent["id"].as_str().unwrap().to_owned())).collect();
    let mut fuzzer = Fuzzer { server, dice: Dice(seed | 1), known, external };
    let callers = [admin(), admin(), member(PROJECT), member(OTHER), reader(OTHER)];
    for n in 0..requests {
        let who = fuzzer.dice.pick(&callers);
        let trail = format!("seed {seed}, request {n}");
        fuzzer.step(&who, &trail);
        if n % 50 == 0 {
            fuzzer.check(&trail);
        }
    }
    fuzzer.check(&format!("seed {seed}, the end"));
    let kinds: std::collections::BTreeSet<&str> = fuzzer.known.iter().map(|(kind, _)| *kind).collect();
    assert!(
        kinds.len() >= COLLECTIONS.len() - 1,
        "the requests were too poor: only {kinds:?} came to be (seed {seed})"
    );
}
