//! Every rule that a policy file can replace decides about something: when nobody passes it, an answer is another.
//!
//! For each name a request is made from the tables of attributes that asks for what the name says, and sent twice by
//! somebody who may do everything: with the rule out of reach, and as it is by default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use evergate_server::attributes::{Absent, Attribute, Kind, Table};
use evergate_server::context::Context;
use evergate_server::options::{Limits, Options};
use evergate_server::policy::{Policy, Watched};
use evergate_server::resources::{COLLECTIONS, NESTED, find};
use serde_json::{Value, json};

use crate::harness::{Answer, PROJECT, Server, admin, id};

#[test]
fn a_rule_that_nobody_passes_changes_an_answer_whichever_it_is() {
    let world = World::new("names");
    let mut unasked = Vec::new();
    for name in Policy::standard().names() {
        let (method, path, body) = world.request(name);
        let send = |rules: &str| {
            world.under(rules);
            world.server.send(&world.who, method, &path, &[], &body.to_string())
        };
        let (refused, usual) = (send(&format!("\"{name}\": \"!\"\n")), send(""));
        let differs = (refused.status, &refused.body) != (usual.status, &usual.body);
        if !differs || !refuses(method, name, &refused) || usual.status == 403 {
            unasked.push(format!("{name}: {method} {path} {body}\n    refused: {refused:?}\n    usual: {usual:?}"));
        }
    }
    assert!(unasked.is_empty(), "{}:\n{}", unasked.len(), unasked.join("\n"));
}

#[test]
fn a_port_asks_for_what_is_given_of_its_addresses_and_by_which_verb() {
    let world = World::new("parts");
    let (path, ports) = (format!("/v2.0/ports/{}", world.id("ports")), "/v2.0/ports".to_owned());
    for part in ["subnet_id", "ip_address"] {
        for (verb, method, path, last) in [("create", "POST", &ports, 33), ("update", "PUT", &path, 34)] {
            let value = if part == "subnet_id" { world.id("subnets").to_owned() } else { world.address(last) };
            let mut body = json!({"port": {"fixed_ips": [{part: value}]}});
            if verb == "create" {
                body["port"]["network_id"] = world.id("networks").into();
            }
            world.under(&format!("\"{verb}_port:fixed_ips:{part}\": \"!\"\n"));
            let refused = world.server.send(&world.who, method, path, &[], &body.to_string());
            let words = format!("(rule:{verb}_port and rule:{verb}_port:fixed_ips:{part}) is disallowed by policy");
            assert_eq!((refused.status, refused.message()), (403, words.as_str()));
            // The other verb's rule, and the other part's, are not asked.
            let (other_verb, other_part) = (
                if verb == "create" { "update" } else { "create" },
                if part == "subnet_id" { "ip_address" } else { "subnet_id" },
            );
            let others = [(other_verb, part), (other_verb, other_part), (verb, other_part)];
            world.under(&others.map(|(verb, part)| format!("\"{verb}_port:fixed_ips:{part}\": \"!\"\n")).concat());
            let usual = world.server.send(&world.who, method, path, &[], &body.to_string());
            assert!(usual.status < 300, "{usual:?}");
        }
    }
}

/// Says no, naming the rule; of what may not be seen an answer says nothing at all.
fn refuses(method: &str, name: &str, answer: &Answer) -> bool {
    method == "GET" || answer.status == 403 && answer.message().contains(&format!("rule:{name}"))
}

/// A server with an object of each kind that has whatever it can have, and others that are for being removed.
struct World {
    server: Server,
    policy: Arc<Watched>,
    directory: PathBuf,
    who: Context,
    objects: BTreeMap<&'static str, Value>,
    spare: BTreeMap<&'static str, Value>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl World {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("evergate-policy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let policy = Arc::new(Watched::open(vec![directory.join("policy.yaml")]).unwrap());
        let any = Limits {
            network: -1,
            subnet: -1,
            port: -1,
            router: -1,
            floatingip: -1,
            rbac_policy: -1,
            security_group: -1,
            security_group_rule: -1,
            ..Limits::default()
        };
        let server = Server::under(Options { l3_ha: true, limits: any, ..Options::default() }, Arc::clone(&policy));
        // Binding profiles are for services alone.
        let mut who = admin();
        who.roles.insert("service".into());
        let mut world = Self { server, policy, directory, who, objects: BTreeMap::new(), spare: BTreeMap::new() };
        // Fewer than a router wants copies, so that it warns.
        ["h1", "h2"].into_iter().for_each(|host| world.server.host(host));
        let (external, outside) = world.server.make_external();
        let default = json!({"network": {"is_default": true}});
        assert_eq!(world.put(&format!("networks/{}", id(&external)), &default).status, 200);
        world.objects = BTreeMap::from([("external", external), ("outside", outside)]);
        let agents = world.server.list(&admin(), "agents", "?binary=neutron-l3-agent");
        world.objects.insert("agents", agents[0].clone());
        world.spare.insert("agents", agents[1].clone());
        for collection in COLLECTIONS.into_iter().chain(NESTED.map(|(_, collection, _)| collection)) {
            if collection != "agents" {
                for spare in [false, true] {
                    let made = world.make(collection);
                    let into = if spare { &mut world.spare } else { &mut world.objects };
                    into.insert(collection, made);
                }
            }
        }
        world
    }

    /// Lets these rules of a file count.
    fn under(&self, rules: &str) {
        std::fs::write(self.directory.join("policy.yaml"), rules).unwrap();
        assert!(self.policy.refresh(true));
    }

    fn id(&self, collection: &str) -> &str {
        id(&self.objects[collection])
    }

    /// An address of the subnet.
    fn address(&self, last: u8) -> String {
        self.objects["subnets"]["cidr"].as_str().unwrap().replace(".0/24", &format!(".{last}"))
    }

    fn put(&self, path: &str, body: &Value) -> Answer {
        self.server.put(&self.who, &format!("/v2.0/{path}"), body.clone())
    }

    fn table(collection: &str) -> &'static Table {
        let nested = NESTED.iter().find(|(_, nested, _)| *nested == collection).map(|(_, _, table)| *table);
        nested.unwrap_or_else(|| find(collection).unwrap().table())
    }

    fn path(&self, collection: &str) -> String {
        match NESTED.iter().find(|(_, nested, _)| *nested == collection) {
            Some((above, ..)) => format!("/v2.0/{above}/{}/{collection}", self.id(above)),
            None => format!("/v2.0/{collection}"),
        }
    }

    fn make(&self, collection: &str) -> Value {
        let singular = Self::table(collection).singular;
        let answer = self.server.post(&self.who, &self.path(collection), json!({singular: self.least(collection)}));
        assert_eq!(answer.status, 201, "{collection}: {answer:?}");
        let made = answer.body[singular].clone();
        if collection == "routers" && !self.objects.contains_key("routers") {
            let path = format!("routers/{}", id(&made));
            let gateway = json!({"external_gateway_info": {"network_id": self.id("external")}});
            let wishes = json!({"evergate:preferred_host": "h1", "evergate:preempt": true, "evergate:move_to": "h2"});
            for (path, body) in [
                (path.clone(), json!({"router": gateway})),
                (path.clone(), json!({"router": wishes})),
                (format!("{path}/add_router_interface"), json!({"subnet_id": self.id("subnets")})),
            ] {
                let answer = self.put(&path, &body);
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        made
    }

    /// What makes an object, and not more.
    fn least(&self, collection: &str) -> Value {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed) % 250;
        match collection {
            "subnets" => json!({"network_id": self.id("networks"), "ip_version": 4, "cidr": format!("10.{n}.0.0/24")}),
            "ports" => json!({"network_id": self.id("networks"), "fixed_ips": [{"subnet_id": self.id("subnets")}]}),
            "floatingips" => json!({"floating_network_id": self.id("external")}),
            "port_forwardings" => json!({
                "internal_port_id": self.id("ports"), "protocol": "tcp", "internal_port": 1000 + n, "external_port": 1000 + n,
            }),
            "subnetpools" => json!({"name": "pool", "prefixes": [format!("172.16.{n}.0/24")]}),
            "address-scopes" => json!({"name": "scope", "ip_version": 4}),
            "security-groups" => json!({"name": "group"}),
            "security-group-rules" => json!({
                "security_group_id": self.id("security-groups"), "direction": "ingress", "protocol": n,
            }),
            "rbac-policies" => json!({
                "object_type": "network", "object_id": self.id("networks"), "action": "access_as_shared",
                "target_tenant": format!("project {n}"),
            }),
            _ => json!({}),
        }
    }

    /// A value of an attribute that is not its default, with a part that is asked for.
    fn value(&self, attribute: &Attribute, part: Option<&str>) -> Value {
        let subnet = json!({"subnet_id": self.id("subnets")});
        match attribute.kind {
            Kind::Bool | Kind::BoolOrNull => (attribute.absent != Absent::Bool(true)).into(),
            Kind::Int | Kind::IntOrNull | Kind::Limit => 29.into(),
            Kind::PortNumber | Kind::Scalar => 99.into(),
            Kind::PortRange => "98:99".into(),
            Kind::OneOf(numbers) => numbers[0].into(),
            Kind::Text(_) | Kind::NotBlank(_) | Kind::TextOrNull(_) if attribute.name.ends_with("_id") => {
                self.id("security-groups").into()
            }
            Kind::Text(_) | Kind::NotBlank(_) | Kind::TextOrNull(_) => "text".into(),
            Kind::Words(words) | Kind::WordsOrNull(words) => words[words.len() - 1].into(),
            Kind::Uuid | Kind::UuidOrNull => self.id("networks").into(),
            Kind::IpOrNull => "10.0.0.77".into(),
            Kind::CidrOrNull => "10.255.0.0/24".into(),
            Kind::MacOrNull => "fa:16:3e:01:02:03".into(),
            Kind::Dict => json!({"a": "b"}),
            Kind::Strings(_) => json!(["a"]),
            Kind::Prefixes => json!(["172.16.0.0/12"]),
            Kind::Pools => json!([{"start": "10.0.0.2", "end": "10.0.0.9"}]),
            Kind::Nameservers => json!(["192.0.2.53"]),
            Kind::Routes => json!([{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]),
            Kind::FixedIps if part == Some("ip_address") => json!([{"ip_address": self.address(77)}]),
            Kind::FixedIps => json!([subnet]),
            Kind::Uuids => json!([self.id("security-groups")]),
            Kind::DhcpOptions => json!([{"opt_name": "mtu", "opt_value": "1400"}]),
            Kind::AddressPairs => json!([{"ip_address": "10.0.0.78"}]),
            Kind::GatewayInfo => {
                let mut info = json!({"network_id": self.id("external")});
                match part {
                    Some("enable_snat") => info["enable_snat"] = true.into(),
                    Some("external_fixed_ips") => {
                        info["external_fixed_ips"] = json!([{"subnet_id": self.id("outside")}])
                    }
                    _ => {}
                }
                info
            }
            Kind::ServiceTypes => json!(["compute:nova"]),
            Kind::NotOffered | Kind::NoneOffered | Kind::Computed => Value::Null,
        }
    }

    /// A request that asks the rule: method, path and body.
    fn request(&self, name: &str) -> (&'static str, String, Value) {
        if let Some(request) = self.special(name) {
            return request;
        }
        let (action, rest) = name.split_once(':').map_or((name, None), |(action, rest)| (action, Some(rest)));
        let (verb, of) = action.split_once('_').unwrap();
        let all = COLLECTIONS.into_iter().chain(NESTED.map(|(_, collection, _)| collection));
        let collection = all.into_iter().find(|collection| Self::table(collection).policy_name() == of);
        let collection = collection.unwrap_or_else(|| panic!("{name} is about nothing that is known"));
        let (table, path) = (Self::table(collection), self.path(collection));
        // Only external networks show it.
        let shown = if name == "get_network:is_default" { "external" } else { collection };
        let one = |objects: &BTreeMap<&str, Value>| format!("{path}/{}", id(&objects[shown]));
        // The longest name that fits: names of attributes have colons, too.
        let attributes = table.attributes.iter().filter_map(|attribute| {
            let part = rest?.strip_prefix(attribute.name)?;
            Some((attribute, part.strip_prefix(':').or(part.is_empty().then_some(""))?))
        });
        let attribute = attributes.max_by_key(|(attribute, _)| attribute.name.len());
        let given = |mut body: Value| {
            if let Some((attribute, part)) = attribute {
                body[attribute.name] = self.value(attribute, Some(part).filter(|part| !part.is_empty()));
            }
            json!({table.singular: body})
        };
        let is_given = |verb: &str| match attribute {
            Some((attribute, _)) => {
                if verb == "create" {
                    attribute.post
                } else {
                    attribute.put
                }
            }
            None => true,
        };
        match verb {
            "get" => ("GET", one(&self.objects), Value::Null),
            "create" if is_given(verb) => ("POST", path.clone(), given(self.least(collection))),
            "update" if is_given(verb) => ("PUT", one(&self.objects), given(json!({}))),
            "create" => ("POST", format!("{}/tags", one(&self.objects)), json!({"tags": ["a"]})),
            "update" => ("PUT", format!("{}/tags", one(&self.objects)), json!({"tags": ["a"]})),
            "delete" if rest.is_some() => ("DELETE", format!("{}/tags", one(&self.objects)), Value::Null),
            "delete" => ("DELETE", one(&self.spare), Value::Null),
            _ => panic!("{name} is about nothing that is known"),
        }
    }

    /// The same for rules of actions.
    fn special(&self, name: &str) -> Option<(&'static str, String, Value)> {
        let (router, agent, pool) = (self.id("routers"), self.id("agents"), self.id("subnetpools"));
        let routes = json!({"router": {"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]}});
        let (prefixes, subnet) = (json!({"prefixes": ["172.30.0.0/24"]}), json!({"subnet_id": self.id("subnets")}));
        let get = |path: &str| ("GET", format!("/v2.0/{path}"), Value::Null);
        let (of_router, of_pool) =
            (format!("/v2.0/routers/{router}/{name}"), format!("/v2.0/subnetpools/{pool}/{name}"));
        Some(match name {
            "add_router_interface" | "remove_router_interface" => ("PUT", of_router, subnet),
            "add_extraroutes" | "remove_extraroutes" => ("PUT", of_router, routes),
            "add_prefixes" | "remove_prefixes" => ("PUT", of_pool, prefixes),
            "onboard_network_subnets" => {
                ("PUT", format!("/v2.0/subnetpools/{pool}/{name}"), json!({"network_id": self.id("networks")}))
            }
            "get_l3-agents" => get(&format!("routers/{router}/l3-agents")),
            "get_l3-routers" => get(&format!("agents/{agent}/l3-routers")),
            "create_l3-router" => ("POST", format!("/v2.0/agents/{agent}/l3-routers"), json!({"router_id": router})),
            "delete_l3-router" => ("DELETE", format!("/v2.0/agents/{agent}/l3-routers/{router}"), Value::Null),
            "get_network_ip_availability" => get("network-ip-availabilities"),
            "get_floatingip_pool" => get("floatingip_pools"),
            "get_availability_zone" => get("availability_zones"),
            "get_quota" => get(&format!("quotas/{PROJECT}")),
            "update_quota" => ("PUT", format!("/v2.0/quotas/{PROJECT}"), json!({"quota": {"network": 50}})),
            "delete_quota" => ("DELETE", format!("/v2.0/quotas/{PROJECT}"), Value::Null),
            _ => return None,
        })
    }
}
