//! Roles against actions, as one table, and what a policy file makes of it.

use std::sync::Arc;

use evergate_server::context::Context;
use evergate_server::options::Options;
use evergate_server::policy::Watched;
use serde_json::{Value, json};

use crate::harness::{OTHER, PROJECT, Server, admin, caller, id, member, reader};

/// What may come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Allowed,
    Denied,
    /// As if there were no such thing.
    Hidden,
}
use Fate::{Allowed, Denied, Hidden};

fn fate(status: u16) -> Fate {
    match status {
        403 => Denied,
        404 => Hidden,
        _ => Allowed,
    }
}

/// A server with a project's network, subnet, port, router and an external network, the way requests name them.
struct World {
    server: Server,
    names: Vec<(&'static str, String)>,
}

impl World {
    fn new(server: Server) -> Self {
        server.hosts();
        let (network, subnet) = server.make_network(&admin(), "net", "10.0.0.0/24");
        let (external, _) = server.make_external();
        let shared = server.make(&admin(), "network", json!({"shared": true, "name": "shared"}));
        let body = json!({"network_id": shared["id"], "ip_version": 4, "cidr": "10.9.0.0/24"});
        let shared_subnet = server.make(&admin(), "subnet", body);
        let port = server.make(&admin(), "port", json!({"network_id": network["id"]}));
        let router = server.make(&admin(), "router", json!({}));
        let agent = server.list(&admin(), "agents", "?agent_type=L3%20agent").remove(0);
        let pool = server.make(&admin(), "subnetpool", json!({"name": "pool", "prefixes": ["10.64.0.0/16"]}));
        let floating = server.make(&admin(), "floatingip", json!({"floating_network_id": external["id"]}));
        let make = |collection: &str, singular: &str, attributes: Value| {
            let answer = server.post(&admin(), &format!("/v2.0/{collection}"), json!({singular: attributes}));
            assert_eq!(answer.status, 201, "{answer:?}");
            answer.body[singular].clone()
        };
        let scope = make("address-scopes", "address_scope", json!({"name": "scope", "ip_version": 4}));
        let group = make("security-groups", "security_group", json!({"name": "group"}));
        let rule = json!({"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp"});
        let rule = make("security-group-rules", "security_group_rule", rule);
        let policy = json!({"object_type": "security_group", "object_id": group["id"], "action": "access_as_shared",
                            "target_tenant": "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"});
        let policy = make("rbac-policies", "rbac_policy", policy);
        let names = [
            ("POOL", &pool),
            ("SCOPE", &scope),
            ("GROUP", &group),
            ("RULE", &rule),
            ("POLICY", &policy),
            ("FLOATING", &floating),
            ("NETWORK", &network),
            ("SUBNET", &subnet),
            ("EXTERNAL", &external),
            ("SHARED-SUBNET", &shared_subnet),
            ("SHARED", &shared),
            ("PORT", &port),
            ("ROUTER", &router),
            ("AGENT", &agent),
        ];
        let names = names.map(|(name, object)| (name, id(object).to_owned()));
        Self { server, names: names.to_vec() }
    }

    fn filled(&self, text: &str) -> String {
        // Longer names come before those that they begin with.
        self.names.iter().fold(text.to_owned(), |text, (name, id)| text.replace(&format!("<{name}>"), id))
    }

    /// `POST /v2.0/ports {"port": {...}}`, with `<NETWORK>` for the network's id.
    fn ask(&self, who: &Context, request: &str) -> (u16, Value) {
        let mut parts = request.splitn(3, ' ');
        let (method, path, body) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or(""));
        let answer = self.server.send(who, method, &format!("/v2.0/{}", self.filled(path)), &[], &self.filled(body));
        (answer.status, answer.body)
    }
}

/// Requests about objects of `PROJECT`, and what comes of them for: admin (of another project), manager, member and
/// reader of the project, service (of another project), and member of another project.
const TABLE: &[(&str, [Fate; 6])] = &[
    ("GET networks/<NETWORK>", [Allowed, Allowed, Allowed, Allowed, Allowed, Hidden]),
    ("GET networks/<SHARED>", [Allowed, Allowed, Allowed, Allowed, Allowed, Allowed]),
    ("GET networks/<EXTERNAL>", [Allowed, Allowed, Allowed, Allowed, Allowed, Allowed]),
    ("GET subnets/<SUBNET>", [Allowed, Allowed, Allowed, Allowed, Allowed, Hidden]),
    ("GET subnets/<SHARED-SUBNET>", [Allowed, Allowed, Allowed, Allowed, Allowed, Allowed]),
    ("GET ports/<PORT>", [Allowed, Allowed, Allowed, Allowed, Allowed, Hidden]),
    ("GET routers/<ROUTER>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    ("GET agents/<AGENT>", [Allowed, Hidden, Hidden, Hidden, Hidden, Hidden]),
    ("GET routers/<ROUTER>/l3-agents", [Allowed, Denied, Denied, Denied, Denied, Denied]),
    ("GET agents/<AGENT>/l3-routers", [Allowed, Denied, Denied, Denied, Denied, Denied]),
    ("PUT networks/<NETWORK> {\"network\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Denied, Hidden]),
    ("PUT networks/<NETWORK> {\"network\": {\"shared\": true}}", [Allowed, Denied, Denied, Denied, Denied, Hidden]),
    ("PUT networks/<EXTERNAL> {\"network\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Denied, Denied]),
    ("PUT subnets/<SUBNET> {\"subnet\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Denied, Hidden]),
    ("PUT ports/<PORT> {\"port\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Allowed, Hidden]),
    (
        "PUT ports/<PORT> {\"port\": {\"mac_address\": \"fa:16:3e:00:00:0a\"}}",
        [Allowed, Allowed, Denied, Denied, Allowed, Hidden],
    ),
    (
        "PUT ports/<PORT> {\"port\": {\"binding:profile\": {\"a\": 1}}}",
        [Denied, Denied, Denied, Denied, Allowed, Hidden],
    ),
    ("PUT ports/<PORT> {\"port\": {\"binding:host_id\": \"h1\"}}", [Allowed, Denied, Denied, Denied, Allowed, Hidden]),
    (
        "PUT ports/<PORT> {\"port\": {\"device_owner\": \"network:x\"}}",
        [Allowed, Allowed, Allowed, Denied, Allowed, Hidden],
    ),
    ("PUT routers/<ROUTER> {\"router\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("PUT routers/<ROUTER> {\"router\": {\"ha\": false}}", [Allowed, Denied, Denied, Denied, Hidden, Hidden]),
    ("PUT routers/<ROUTER>/tags/x", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    (
        "PUT routers/<ROUTER>/add_extraroutes {\"router\": {\"routes\": []}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("PUT agents/<AGENT> {\"agent\": {\"description\": \"x\"}}", [Allowed, Hidden, Hidden, Hidden, Hidden, Hidden]),
    ("POST networks {\"network\": {}}", [Allowed, Allowed, Allowed, Denied, Denied, Allowed]),
    ("POST routers {\"router\": {}}", [Allowed, Allowed, Allowed, Denied, Denied, Allowed]),
    ("POST routers {\"router\": {\"ha\": true}}", [Allowed, Denied, Denied, Denied, Denied, Denied]),
    ("POST ports {\"port\": {\"network_id\": \"<NETWORK>\"}}", [Allowed, Allowed, Allowed, Denied, Allowed, Hidden]),
    (
        "POST floatingips {\"floatingip\": {\"floating_network_id\": \"<EXTERNAL>\"}}",
        [Allowed, Allowed, Allowed, Denied, Denied, Allowed],
    ),
    (
        "POST floatingips {\"floatingip\": {\"floating_network_id\": \"<EXTERNAL>\", \"floating_ip_address\": \"203.0.113.99\"}}",
        [Allowed, Allowed, Denied, Denied, Denied, Denied],
    ),
    (
        "PUT routers/<ROUTER> {\"router\": {\"external_gateway_info\": {\"network_id\": \"<EXTERNAL>\", \"enable_snat\": false}}}",
        [Allowed, Denied, Denied, Denied, Hidden, Hidden],
    ),
    ("GET quotas/cccccccccccccccccccccccccccccccc", [Allowed, Allowed, Allowed, Allowed, Denied, Denied]),
    (
        "PUT quotas/cccccccccccccccccccccccccccccccc {\"quota\": {\"port\": 9}}",
        [Allowed, Denied, Denied, Denied, Denied, Denied],
    ),
    ("GET quotas/cccccccccccccccccccccccccccccccc/details.json", [Allowed, Allowed, Allowed, Allowed, Denied, Denied]),
    ("GET network-ip-availabilities/<NETWORK>", [Allowed, Denied, Denied, Denied, Allowed, Denied]),
    ("GET availability_zones", [Allowed; 6]),
    ("GET subnetpools/<POOL>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    ("PUT subnetpools/<POOL> {\"subnetpool\": {\"name\": \"x\"}}", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    (
        "PUT subnetpools/<POOL> {\"subnetpool\": {\"is_default\": true}}",
        [Allowed, Denied, Denied, Denied, Hidden, Hidden],
    ),
    (
        "PUT subnetpools/<POOL>/add_prefixes {\"prefixes\": [\"10.65.0.0/16\"]}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("GET address-scopes/<SCOPE>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    (
        "PUT address-scopes/<SCOPE> {\"address_scope\": {\"name\": \"x\"}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("GET security-groups/<GROUP>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    (
        "PUT security-groups/<GROUP> {\"security_group\": {\"name\": \"x\"}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("GET security-group-rules/<RULE>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    (
        "POST security-group-rules {\"security_group_rule\": {\"security_group_id\": \"<GROUP>\", \"direction\": \"ingress\"}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("DELETE security-group-rules/<RULE>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("GET rbac-policies/<POLICY>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    (
        "PUT rbac-policies/<POLICY> {\"rbac_policy\": {\"target_tenant\": \"*\"}}",
        [Allowed, Denied, Denied, Denied, Hidden, Hidden],
    ),
    (
        "PUT rbac-policies/<POLICY> {\"rbac_policy\": {\"target_tenant\": \"ffffffffffffffffffffffffffffffff\"}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    ("GET floatingips/<FLOATING>", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    ("GET floatingips/<FLOATING>/port_forwardings", [Allowed, Allowed, Allowed, Allowed, Hidden, Hidden]),
    (
        "PUT floatingips/<FLOATING> {\"floatingip\": {\"description\": \"x\"}}",
        [Allowed, Allowed, Allowed, Denied, Hidden, Hidden],
    ),
    (
        "POST address-scopes {\"address_scope\": {\"name\": \"x\", \"ip_version\": 4, \"shared\": true}}",
        [Allowed, Denied, Denied, Denied, Denied, Denied],
    ),
    (
        "POST security-groups {\"security_group\": {\"name\": \"y\"}}",
        [Allowed, Allowed, Allowed, Denied, Denied, Allowed],
    ),
    ("DELETE subnetpools/<POOL>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("DELETE address-scopes/<SCOPE>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("DELETE rbac-policies/<POLICY>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("DELETE security-groups/<GROUP>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("DELETE floatingips/<FLOATING>", [Allowed, Allowed, Allowed, Denied, Hidden, Hidden]),
    ("DELETE agents/<AGENT>", [Allowed, Hidden, Hidden, Hidden, Hidden, Hidden]),
    ("DELETE ports/<PORT>", [Allowed, Allowed, Allowed, Denied, Allowed, Hidden]),
];

#[test]
fn each_role_may_do_what_neutron_lets_it() {
    let callers = [
        caller(OTHER, "admin"),
        caller(PROJECT, "manager"),
        member(PROJECT),
        reader(PROJECT),
        caller(OTHER, "service"),
        member(OTHER),
    ];
    let mut wrong = Vec::new();
    for (at, who) in callers.iter().enumerate() {
        // Each caller has a world of its own, since some requests change it.
        let world = World::new(Server::new());
        for (request, fates) in TABLE {
            let (status, body) = world.ask(who, request);
            if fate(status) != fates[at] || !(200..=404).contains(&status) || status == 400 {
                wrong.push(format!("{} {request}: {status} and not {:?}: {body}", who.user_name, fates[at]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_service_plugged_in_is_not_for_members_to_remove() {
    let world = World::new(Server::new());
    let owner = "PUT ports/<PORT> {\"port\": {\"device_owner\": \"compute:nova\"}}";
    assert_eq!(world.ask(&caller(OTHER, "service"), owner).0, 200);
    assert_eq!(world.ask(&member(PROJECT), "DELETE ports/<PORT>").0, 403);
    assert_eq!(world.ask(&caller(OTHER, "service"), "DELETE ports/<PORT>").0, 204);
}

#[test]
fn what_a_role_may_not_see_is_left_out() {
    let world = World::new(Server::new());
    let hidden = |who: &Context, path: &str, names: &[&str]| -> Vec<bool> {
        let (_, body) = world.ask(who, &format!("GET {path}"));
        let object = body.as_object().unwrap().values().next().unwrap().clone();
        names.iter().map(|name| object.get(*name).is_none()).collect()
    };
    let bindings = ["binding:host_id", "binding:vif_type", "binding:profile", "binding:vnic_type"];
    assert_eq!(hidden(&member(PROJECT), "ports/<PORT>", &bindings), [true, true, true, false]);
    assert_eq!(hidden(&caller(OTHER, "service"), "ports/<PORT>", &bindings), [false; 4]);
    assert_eq!(hidden(&admin(), "ports/<PORT>", &bindings), [false; 4]);
    assert_eq!(hidden(&member(PROJECT), "routers/<ROUTER>", &["ha", "distributed", "name"]), [true, true, false]);
    assert_eq!(hidden(&admin(), "routers/<ROUTER>", &["ha", "distributed"]), [false; 2]);
}

#[test]
fn somebody_without_a_known_role_sees_only_what_is_for_everybody() {
    let world = World::new(Server::new());
    let who = caller(PROJECT, "dancer");
    let names = |collection: &str| -> Vec<String> {
        let listed = world.server.list(&who, collection, "");
        listed.iter().map(|object| object["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let mut networks = names("networks");
    networks.sort();
    assert_eq!(networks, ["ext", "shared"]);
    assert_eq!(names("routers"), Vec::<String>::new());
    assert_eq!(world.ask(&who, "GET networks/<NETWORK>").0, 404);
}

/// A policy file, and a world under it.
struct Ruled {
    path: std::path::PathBuf,
    policy: Arc<Watched>,
    world: World,
}

impl Ruled {
    fn by(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evergate-policy-{}.yaml", uuid::Uuid::new_v4()));
        std::fs::write(&path, "").unwrap();
        let policy = Arc::new(Watched::open(vec![path.clone()]).unwrap());
        let world = World::new(Server::under(Options::default(), Arc::clone(&policy)));
        let ruled = Self { path, policy, world };
        ruled.now(text);
        ruled
    }

    fn now(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
        assert!(self.policy.refresh(true));
    }

    fn status(&self, who: &Context, request: &str) -> u16 {
        self.world.ask(who, request).0
    }
}

impl Drop for Ruled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn an_operators_rules_replace_the_defaults_while_the_server_runs() {
    let ruled = Ruled::by("'create_router:ha': rule:admin_or_project_member\nget_agent: role:auditor\n");
    let (member, admin) = (member(PROJECT), admin());
    assert_eq!(ruled.status(&member, "POST routers {\"router\": {\"ha\": true}}"), 201);
    assert_eq!(ruled.status(&caller(OTHER, "auditor"), "GET agents/<AGENT>"), 200);
    assert_eq!(ruled.status(&admin, "GET agents/<AGENT>"), 404, "admins are named by the default rule, which is gone");
    ruled.now("create_router: '!'\nget_routers_l3_agents: rule:admin_or_project_reader or role:auditor\n");
    assert_eq!(ruled.status(&admin, "POST routers {\"router\": {}}"), 403);
    assert_eq!(ruled.status(&caller(PROJECT, "auditor"), "GET routers/<ROUTER>/l3-agents"), 404);
    ruled.now("get_router: role:auditor and project_id:%(project_id)s\n'get_l3-agents': role:auditor\n");
    assert_eq!(ruled.status(&caller(PROJECT, "auditor"), "GET routers/<ROUTER>/l3-agents"), 200);
    assert_eq!(ruled.status(&member, "GET routers/<ROUTER>"), 404);
    ruled.now("");
    assert_eq!(ruled.status(&member, "POST routers {\"router\": {\"ha\": true}}"), 403);
}

#[test]
fn a_rule_about_objects_filters_lists_pages_and_attributes() {
    let ruled = Ruled::by(
        "get_network: rule:admin_only or field:networks:name=~^net\n'get_network:mtu': field:networks:shared=True\n\
         'get_port:binding:host_id': project_id:%(project_id)s\n",
    );
    let server = &ruled.world.server;
    let who = member(PROJECT);
    server.make(&admin(), "network", json!({"name": "net2"}));
    server.make(&admin(), "network", json!({"name": "hidden"}));
    let names = |query: &str| {
        let listed = server.list(&who, "networks", query);
        listed.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("?sort_key=name&sort_dir=asc"), ["net", "net2"]);
    assert_eq!(names("?sort_key=name&sort_dir=asc&limit=1"), ["net"]);
    let shown = server.list(&who, "networks", "?name=net").remove(0);
    assert!(shown.get("mtu").is_none(), "not shared, so hidden");
    let port = ruled.world.ask(&who, "GET ports/<PORT>").1;
    assert_eq!(port["port"]["binding:host_id"], "");
}

#[test]
fn a_rule_that_is_too_generous_shows_nothing_of_other_projects() {
    let ruled = Ruled::by("get_network: '@'\nget_port: ''\nupdate_port: '@'\n");
    let who = member(OTHER);
    for request in ["GET networks/<NETWORK>", "GET ports/<PORT>", "PUT ports/<PORT> {\"port\": {\"name\": \"x\"}}"] {
        assert_eq!(ruled.status(&who, request), 404, "{request}");
    }
}
