//! The server under a real Keystone: installed and started by `conformance/keystone`, on the loopback.
//!
//! One deployment, one story: who may in and what as, what a revoked token costs, Keystone gone. All that
//! server and Keystone were told in confidence must not be in the server's log, at its most talkative.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Dir, PATIENCE, Process, Server, wait_for};

/// Seconds that the server believes a token.
const CACHED: u32 = 10;

#[test]
fn a_real_keystone_says_who_callers_are() {
    let world = World::start();
    let (admin, member, reader) = (world.token("admin", "admin"), world.token("ann", "p1"), world.token("bob", "p1"));

    let stranger = world.server("GET", "/v2.0/networks", &[], None);
    assert_eq!(stranger.status, 401);
    assert_eq!(stranger.header("www-authenticate"), format!("Keystone uri=\"{}\"", world.keystone_url));
    assert_eq!(world.get("/v2.0/networks", "no-such-token").status, 401);
    assert_eq!(world.server("GET", "/identity/v3", &[], None).status, 404, "the embedded identity is not served");

    let body = json!({"network": {"name": "net1"}});
    let made = world.server("POST", "/v2.0/networks", &[("x-auth-token", &member)], Some(&body));
    assert_eq!((made.status, &made.body["network"]["project_id"]), (201, &json!(world.project)));
    let write = |token: &str, body: Value| {
        world.server("POST", "/v2.0/routers", &[("x-auth-token", token)], Some(&body)).status
    };
    assert_eq!(write(&reader, json!({"router": {}})), 403);
    assert_eq!(write(&member, json!({"router": {"ha": true}})), 403);
    assert_eq!(write(&admin, json!({"router": {"ha": false}})), 201);
    let names = |token: &str, path: &str| world.get(path, token).body["networks"].as_array().unwrap().len();
    assert_eq!((names(&reader, "/v2.0/networks"), names(&admin, "/v2.0/networks?name=net1")), (1, 1));

    scopes(&world);
    the_stock_client_finds_its_way(&world);
    revocation(&world, &member);
    keystone_gone(&world);

    let log = world.server.log();
    for secret in world.secrets.borrow().iter() {
        assert!(!log.contains(secret.as_str()), "a secret is in the log");
    }
    assert!(log.contains("Keystone cannot be asked"), "the operator is told");
}

fn scopes(world: &World) {
    let unscoped = world.log_in(&password_of("ann", "secret-ann"), &json!("unscoped"));
    assert_eq!(world.get("/v2.0/networks", &unscoped).body, json!({"networks": []}));
    let of_system = world.log_in(&password_of("admin", "secret-admin"), &json!({"system": {"all": true}}));
    let refused = world.get("/v2.0/networks", &of_system);
    assert_eq!((refused.status, &refused.body["NeutronError"]["type"]), (403, &json!("HTTPForbidden")));

    let admin = world.token("admin", "admin");
    let role = world.role_id(&admin, "admin");
    let path = format!("/v3/domains/default/users/{}/roles/{role}", world.user_id(&admin, "ann"));
    assert_eq!(world.keystone("PUT", &path, &[("x-auth-token", &admin)], None).status, 204);
    let of_domain = world.log_in(&password_of("ann", "secret-ann"), &json!({"domain": {"id": "default"}}));
    assert_eq!(world.get("/v2.0/networks", &of_domain).status, 403, "an admin of a domain is not one of the cloud");

    let member = world.token("ann", "p1");
    let body = json!({"application_credential": {"name": "robot", "secret": "secret-robot"}});
    let path = format!("/v3/users/{}/application_credentials", world.user_id(&admin, "ann"));
    let made = world.keystone("POST", &path, &[("x-auth-token", &member)], Some(&body));
    assert_eq!(made.status, 201, "{}", made.body);
    let identity = json!({"methods": ["application_credential"], "application_credential": {
        "id": made.body["application_credential"]["id"], "secret": "secret-robot",
    }});
    let robot = world.log_in(&identity, &Value::Null);
    assert_eq!(world.get("/v2.0/networks?name=net1", &robot).body["networks"].as_array().unwrap().len(), 1);
}

fn the_stock_client_finds_its_way(world: &World) {
    let client = root().join(".venv/bin/openstack");
    let output = Command::new(client)
        .args(["network", "show", "net1", "-f", "json"])
        .env_remove("OS_CLOUD")
        .envs([
            ("OS_AUTH_URL", format!("{}/v3", world.keystone_url)),
            ("OS_USERNAME", "ann".into()),
            ("OS_PASSWORD", "secret-ann".into()),
            ("OS_PROJECT_NAME", "p1".into()),
            ("OS_USER_DOMAIN_ID", "default".into()),
            ("OS_PROJECT_DOMAIN_ID", "default".into()),
            ("OS_IDENTITY_API_VERSION", "3".into()),
        ])
        .output()
        .expect("the stock client is in .venv: make deps");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["name"], "net1");
}

fn revocation(world: &World, token: &str) {
    assert_eq!(world.get("/v2.0/networks", token).status, 200);
    let headers = [("x-auth-token", token), ("x-subject-token", token)];
    assert_eq!(world.keystone("DELETE", "/v3/auth/tokens", &headers, None).status, 204);
    wait_for("the end of the revoked token", || (world.get("/v2.0/networks", token).status == 401).then_some(()));
}

fn keystone_gone(world: &World) {
    let (seen, unseen) = (world.token("ann", "p1"), world.token("bob", "p1"));
    assert_eq!(world.get("/v2.0/networks", &seen).status, 200);
    world.stop_keystone();
    assert_eq!(world.get("/v2.0/networks", &seen).status, 200, "it is believed for {CACHED} s");
    let refused = world.get("/v2.0/networks", &unseen);
    assert_eq!((refused.status, &refused.body["NeutronError"]["type"]), (503, &json!("HTTPServiceUnavailable")));
    assert!(refused.body["NeutronError"]["message"].as_str().unwrap().contains("no answer"), "{}", refused.body);
}

/// A Keystone with a few people in it, and a server that asks it.
struct World {
    keystone: std::cell::RefCell<Process>,
    keystone_url: String,
    server: Server,
    server_url: String,
    /// Id of project `p1`.
    project: String,
    secrets: std::cell::RefCell<Vec<String>>,
    dir: Dir,
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["server.log", "keystone.log"] {
                let log = std::fs::read_to_string(self.dir.0.join(name)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                eprintln!("== {name}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

impl World {
    fn start() -> Self {
        let files = Dir::new("keystone");
        let dir = &files.0;
        std::fs::create_dir(dir.join("keystone")).unwrap();
        let installed = Command::new(root().join("conformance/keystone/install")).status().unwrap();
        assert!(installed.success(), "Keystone could not be installed");
        let log = File::create(dir.join("keystone.log")).unwrap();
        let keystone = Command::new(root().join(".venv-keystone/bin/python"))
            .arg(root().join("conformance/keystone/serve.py"))
            .arg(dir.join("keystone"))
            .arg("secret-admin")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let keystone = Process(keystone);
        let port = wait_for("Keystone", || std::fs::read_to_string(dir.join("keystone/port")).ok());
        let keystone_url = format!("http://127.0.0.1:{port}");
        let secrets = ["admin", "ann", "bob", "neutron", "robot"].map(|name| format!("secret-{name}")).to_vec();

        let conf = format!(
            "state_path = {}\n\
             [keystone_authtoken]\nauth_url = {keystone_url}\nwww_authenticate_uri = {keystone_url}/v3\n\
             auth_type = password\nusername = neutron\npassword = secret-neutron\nuser_domain_name = Default\n\
             project_name = service\nproject_domain_name = Default\ntoken_cache_time = {CACHED}\n\
             memcached_servers = localhost:11211\n",
            dir.join("state").display()
        );
        let mut server = Server::start(dir, "server", &conf);
        let server_url = format!("http://{}", server.address());
        let mut world = Self {
            keystone: std::cell::RefCell::new(keystone),
            keystone_url,
            server,
            server_url,
            project: String::new(),
            secrets: std::cell::RefCell::new(secrets),
            dir: files,
        };
        world.people();
        world
    }

    /// Makes what an installation has: the server's own user, a project, its people, the catalog.
    fn people(&mut self) {
        let admin = self.token("admin", "admin");
        let make = |path: &str, singular: &str, body: Value| {
            let answer = self.keystone("POST", path, &[("x-auth-token", &admin)], Some(&json!({singular: body})));
            assert_eq!(answer.status, 201, "{}", answer.body);
            answer.body[singular]["id"].as_str().unwrap().to_owned()
        };
        let service = make("/v3/projects", "project", json!({"name": "service", "domain_id": "default"}));
        let project = make("/v3/projects", "project", json!({"name": "p1", "domain_id": "default"}));
        for (name, project, role) in
            [("neutron", &service, "service"), ("ann", &project, "member"), ("bob", &project, "reader")]
        {
            let body = json!({"name": name, "domain_id": "default", "password": format!("secret-{name}")});
            let user = make("/v3/users", "user", body);
            let path = format!("/v3/projects/{project}/users/{user}/roles/{}", self.role_id(&admin, role));
            assert_eq!(self.keystone("PUT", &path, &[("x-auth-token", &admin)], None).status, 204);
        }
        let network = make("/v3/services", "service", json!({"type": "network", "name": "neutron"}));
        let identity = make("/v3/services", "service", json!({"type": "identity", "name": "keystone"}));
        for (service, url) in [(network, self.server_url.clone()), (identity, format!("{}/v3", self.keystone_url))] {
            make("/v3/endpoints", "endpoint", json!({"service_id": service, "interface": "public", "url": url}));
        }
        self.project = project;
    }

    fn role_id(&self, admin: &str, name: &str) -> String {
        self.first(admin, &format!("/v3/roles?name={name}"), "roles")
    }

    fn user_id(&self, admin: &str, name: &str) -> String {
        self.first(admin, &format!("/v3/users?name={name}"), "users")
    }

    fn first(&self, admin: &str, path: &str, plural: &str) -> String {
        let found = self.keystone("GET", path, &[("x-auth-token", admin)], None);
        found.body[plural][0]["id"].as_str().unwrap().to_owned()
    }

    /// A token of a user for a project.
    fn token(&self, user: &str, project: &str) -> String {
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        self.log_in(&password_of(user, &format!("secret-{user}")), &scope)
    }

    fn log_in(&self, identity: &Value, scope: &Value) -> String {
        let mut auth = json!({"identity": identity});
        if !scope.is_null() {
            auth["scope"] = scope.clone();
        }
        let answer = self.keystone("POST", "/v3/auth/tokens", &[], Some(&json!({"auth": auth})));
        assert_eq!(answer.status, 201, "{}", answer.body);
        let token = answer.header("x-subject-token").to_owned();
        self.secrets.borrow_mut().push(token.clone());
        token
    }

    fn stop_keystone(&self) {
        let mut keystone = self.keystone.borrow_mut();
        keystone.0.kill().unwrap();
        keystone.0.wait().unwrap();
    }

    fn get(&self, path: &str, token: &str) -> Answer {
        self.server("GET", path, &[("x-auth-token", token)], None)
    }

    fn server(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        call(method, &format!("{}{path}", self.server_url), headers, body)
    }

    fn keystone(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        call(method, &format!("{}{path}", self.keystone_url), headers, body)
    }
}

fn password_of(user: &str, password: &str) -> Value {
    json!({"methods": ["password"], "password": {"user": {
        "name": user, "domain": {"id": "default"}, "password": password,
    }}})
}

fn call(method: &str, url: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(PATIENCE))
        .allow_non_standard_methods(true)
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut response = agent.run(request.body(body).unwrap()).unwrap();
    let text = response.body_mut().read_to_string().unwrap_or_default();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_str(&text).unwrap_or(Value::Null),
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
