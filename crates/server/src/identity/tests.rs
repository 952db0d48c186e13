use axum::routing::get;
use evergate_config::{Config, Role};
use serde_json::{Value, json};

use super::*;
use crate::context::Context;
use crate::policy::Policy;
use crate::private_file::tests::TempDir;
use crate::testing::{Answer, Served, password};

/// A server's identity with its own directory, and a route behind the guard.
struct Fixture {
    dir: TempDir,
    served: Served,
    identity: Arc<Identity>,
}

impl Fixture {
    fn new() -> Self {
        Self::at(TempDir::new(), "")
    }

    fn at(dir: TempDir, more: &str) -> Self {
        let text = format!("[DEFAULT]\nstate_path = {}\n{more}", dir.path().display());
        let config = Config::from_texts(&[("test.conf".into(), text)], "ctl", Role::Server, vec![]).unwrap();
        let settings = ServerSettings::from_config(&config);
        let store = Arc::new(Store::connect(&settings.database).unwrap());
        let identity = Arc::new(Identity::open(&settings, store).unwrap());
        let behind = axum::Router::new()
            .route("/v2.0/whoami", get(whoami))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&identity), guard));
        let served = Served::start(routes(Arc::clone(&identity)).merge(behind));
        Self { dir, served, identity }
    }

    fn password(&self, user: &str) -> String {
        password(&self.dir.path().join("clouds.yaml"), user)
    }

    fn login(&self, user: &str, scope: Value) -> Answer {
        self.login_with(user, &self.password(user), scope)
    }

    fn login_with(&self, user: &str, password: &str, scope: Value) -> Answer {
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": {
            "name": user, "domain": {"name": "Default"}, "password": password,
        }}}});
        if !scope.is_null() {
            auth["scope"] = scope;
        }
        self.served.call("POST", "/identity/v3/auth/tokens", &[], Some(&json!({"auth": auth})))
    }

    /// A token scoped to the user's own project.
    fn token(&self, user: &str) -> String {
        self.served.log_in(&self.dir.path().join("clouds.yaml"), user)
    }

    fn get(&self, path: &str, token: &str) -> Answer {
        self.served.call("GET", path, &[("x-auth-token", token)], None)
    }
}

fn project(name: &str) -> Value {
    json!({"project": {"name": name, "domain": {"id": "default"}}})
}

async fn whoami(axum::Extension(mut context): axum::Extension<Context>) -> String {
    Policy::standard().introduce(&mut context);
    let roles: Vec<&str> = context.roles.iter().map(String::as_str).collect();
    json!({"user": context.user_name, "admin": context.is_admin, "project": context.project_id, "roles": roles})
        .to_string()
}

#[test]
fn a_client_finds_the_version_and_its_url() {
    let f = Fixture::new();
    let own = format!("http://{}/identity/v3/", f.served.0);
    for (path, status, pointer) in [
        ("/identity", 300, "/versions/values/0"),
        ("/identity/", 300, "/versions/values/0"),
        ("/identity/v3", 200, "/version"),
        ("/identity/v3/", 200, "/version"),
    ] {
        let answer = f.served.call("GET", path, &[], None);
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.body.pointer(pointer).unwrap()["links"][0]["href"], own, "{path}");
    }
}

#[test]
fn a_password_gives_a_token_with_roles_and_catalog() {
    let f = Fixture::new();
    let answer = f.login("admin", project("admin"));
    assert_eq!(answer.status, 201);
    let token = &answer.body["token"];
    assert_eq!(token["user"]["name"], "admin");
    assert_eq!(token["project"]["domain"]["name"], "Default");
    let roles: Vec<&str> = token["roles"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(roles, ["admin", "manager", "member", "reader"]);
    let network = token["catalog"].as_array().unwrap().iter().find(|s| s["type"] == "network").unwrap();
    assert_eq!(network["endpoints"][0]["url"], format!("http://{}", f.served.0));
    let hidden =
        f.served.call("GET", "/identity/v3/auth/tokens?nocatalog", &both(answer.header("x-subject-token")), None);
    assert_eq!((hidden.status, hidden.body["token"].get("catalog")), (200, None));
}

fn both(token: &str) -> [(&str, &str); 2] {
    [("x-auth-token", token), ("x-subject-token", token)]
}

#[test]
fn a_token_is_scoped_as_asked() {
    let f = Fixture::new();
    let scoped = |scope: Value| f.login("demo", scope).body["token"]["project"]["name"].clone();
    assert_eq!(scoped(Value::Null), "demo");
    assert_eq!(scoped(json!("unscoped")), Value::Null);
    assert_eq!(scoped(json!({"project": {"id": f.identity.directory().project_named("demo").unwrap().id}})), "demo");
    for forbidden in [project("admin"), project("nowhere"), json!({"system": {"all": true}})] {
        assert_eq!(f.login("demo", forbidden).status, 401);
    }
    let elsewhere = json!({"project": {"name": "demo", "domain": {"name": "Other"}}});
    assert_eq!(f.login("demo", elsewhere).status, 401);
}

#[test]
fn a_token_can_be_rescoped_but_not_prolonged() {
    let f = Fixture::new();
    let first = f.login("demo", json!("unscoped"));
    let body = json!({"auth": {
        "identity": {"methods": ["token"], "token": {"id": first.header("x-subject-token")}},
        "scope": project("demo"),
    }});
    let second = f.served.call("POST", "/identity/v3/auth/tokens", &[], Some(&body));
    assert_eq!(second.status, 201);
    assert_eq!(second.body["token"]["project"]["name"], "demo");
    assert_eq!(second.body["token"]["methods"], json!(["token", "password"]));
    assert_eq!(second.body["token"]["expires_at"], first.body["token"]["expires_at"]);
    assert_eq!(second.body["token"]["audit_ids"][1], first.body["token"]["audit_ids"][0]);
}

#[test]
fn wrong_credentials_are_refused_without_saying_why() {
    let f = Fixture::new();
    let answers = [
        f.login_with("admin", "wrong", project("admin")),
        f.login_with("nobody", "wrong", project("admin")),
        f.login_with("admin", &f.password("admin"), project("nowhere")),
    ];
    for answer in answers {
        assert_eq!(answer.status, 401);
        assert_eq!(
            answer.body,
            json!({"error": {
                "code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication.",
            }})
        );
        assert_eq!(answer.header("www-authenticate"), format!("Keystone uri=\"http://{}/identity\"", f.served.0));
    }
}

#[test]
fn a_body_that_makes_no_sense_is_told_so() {
    let f = Fixture::new();
    for body in ["", "{", "[]", r#"{"auth": {}}"#, r#"{"auth": {"identity": {"methods": []}}}"#, "\u{0}"] {
        let answer = f.served.send("POST", "/identity/v3/auth/tokens", &[], body.as_bytes());
        assert_eq!((answer.status, &answer.body["error"]["title"]), (400, &json!("Bad Request")), "{body}");
    }
    let totp = json!({"auth": {"identity": {"methods": ["totp"], "totp": {}}}});
    assert_eq!(f.served.call("POST", "/identity/v3/auth/tokens", &[], Some(&totp)).status, 401);
    let large = "x".repeat(100_000);
    assert_eq!(f.served.send("POST", "/identity/v3/auth/tokens", &[], large.as_bytes()).status, 413);
}

#[test]
fn the_api_is_closed_without_a_token_that_holds() {
    let f = Fixture::new();
    let token = f.token("admin");
    let open = f.get("/v2.0/whoami", &token);
    assert_eq!(open.status, 200);
    assert_eq!((&open.body["user"], &open.body["admin"]), (&json!("admin"), &json!(true)));
    assert!(open.header("x-openstack-request-id").starts_with("req-"));
    assert_eq!(f.get("/v2.0/whoami", &f.token("demo")).body["roles"], json!(["member", "reader"]));

    let other = if token.ends_with('A') { 'E' } else { 'A' };
    let tampered = format!("{}{other}", &token[..token.len() - 1]);
    for bad in ["", "x", "a.b", tampered.as_str()] {
        let answer = f.get("/v2.0/whoami", bad);
        assert_eq!(answer.status, 401, "{bad}");
        assert_eq!(answer.body["error"]["code"], 401);
        assert!(answer.header("www-authenticate").starts_with("Keystone uri="));
    }
}

#[test]
fn an_expired_token_opens_nothing() {
    let f = Fixture::new();
    let claims = f.identity.validate(&f.token("admin"), Timestamp::now()).unwrap().claims;
    let past = Claims { expires_us: Timestamp::now().as_microsecond() - 1, ..claims };
    let token = f.identity.signer.sign(&past);
    assert_eq!(f.get("/v2.0/whoami", &token).status, 401);
    assert_eq!(f.get("/identity/v3/projects", &token).status, 401);
}

#[test]
fn a_revoked_token_opens_nothing_also_after_a_restart() {
    let f = Fixture::new();
    let (admin, token) = (f.token("admin"), f.token("demo"));
    assert_eq!(f.served.call("HEAD", "/identity/v3/auth/tokens", &both(&token), None).status, 200);
    // Another user may neither look nor revoke.
    let foreign = [("x-auth-token", token.as_str()), ("x-subject-token", admin.as_str())];
    assert_eq!(f.served.call("GET", "/identity/v3/auth/tokens", &foreign, None).status, 403);
    assert_eq!(f.served.call("DELETE", "/identity/v3/auth/tokens", &foreign, None).status, 403);

    assert_eq!(f.served.call("DELETE", "/identity/v3/auth/tokens", &both(&token), None).status, 204);
    assert_eq!(f.get("/v2.0/whoami", &token).status, 401);
    let by_admin = [("x-auth-token", admin.as_str()), ("x-subject-token", token.as_str())];
    assert_eq!(f.served.call("GET", "/identity/v3/auth/tokens", &by_admin, None).status, 404);

    let Fixture { dir, served, identity } = f;
    drop((served, identity));
    let again = Fixture::at(dir, "");
    assert_eq!(again.get("/v2.0/whoami", &admin).status, 200, "a restart keeps the key");
    assert_eq!(again.get("/v2.0/whoami", &token).status, 401);
}

#[test]
fn an_admin_reads_everything_and_others_themselves() {
    let f = Fixture::new();
    let (admin, demo) = (f.token("admin"), f.token("demo"));
    let found = f.get("/identity/v3/projects?name=demo", &admin).body;
    let project = found["projects"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(found["projects"].as_array().unwrap().len(), 1);
    assert_eq!(f.get("/identity/v3/projects?name=none&domain_id=default", &admin).body["projects"], json!([]));
    for path in ["users", "roles", "domains", "services", "endpoints", "regions", "groups", "role_assignments"] {
        let answer = f.get(&format!("/identity/v3/{path}"), &admin);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body[path].is_array(), "{path}");
        assert!(!answer.body.to_string().contains("argon2"), "{path}");
    }
    let named = f.get("/identity/v3/role_assignments?include_names=true&user.id=x", &admin);
    assert_eq!(named.body["role_assignments"], json!([]));

    for path in ["projects", "users", "roles", "role_assignments"] {
        let answer = f.get(&format!("/identity/v3/{path}"), &demo);
        assert_eq!((answer.status, &answer.body["error"]["title"]), (403, &json!("Forbidden")), "{path}");
    }
    assert_eq!(f.get(&format!("/identity/v3/projects/{project}"), &demo).body["project"]["name"], "demo");
    assert_eq!(f.get("/identity/v3/auth/projects", &demo).body["projects"][0]["name"], "demo");
    let own = f.identity.directory().user_named("demo").unwrap().id.clone();
    assert_eq!(f.get(&format!("/identity/v3/users/{own}"), &demo).body["user"]["name"], "demo");
    assert_eq!(f.get(&format!("/identity/v3/users/{own}/projects"), &demo).body["projects"][0]["name"], "demo");
    assert_eq!(f.get("/identity/v3/users/other", &demo).status, 403);
    assert_eq!(f.get("/identity/v3/users/other", &admin).status, 404);
    assert_eq!(f.get("/identity/v3/nonsense", &admin).body["error"]["code"], 404);
    let change = f.served.call("POST", "/identity/v3/projects", &[("x-auth-token", &admin)], Some(&json!({})));
    assert_eq!(change.status, 501);
    assert!(change.body["error"]["message"].as_str().unwrap().contains("identity file"));
}

#[test]
fn the_configured_url_is_told_whatever_the_client_used() {
    let f = Fixture::at(TempDir::new(), "[evergate]\npublic_url = https://net.example:9696/\n");
    let answer = f.login("admin", project("admin"));
    let text = answer.body["token"]["catalog"].to_string();
    assert!(text.contains("https://net.example:9696/identity") && !text.contains("127.0.0.1"), "{text}");
    assert!(f.identity.announce("http://127.0.0.1:1", None).unwrap());
    let clouds = std::fs::read_to_string(f.dir.path().join("clouds.yaml")).unwrap();
    assert!(clouds.contains("auth_url: https://net.example:9696/identity/v3\n"));
}

#[test]
fn guessing_is_slowed_down() {
    let f = Fixture::new();
    let answers: Vec<Answer> = (0..12).map(|_| f.login_with("demo", "guess", Value::Null)).collect();
    let last = answers.last().unwrap();
    assert_eq!(last.status, 429);
    assert!(last.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(f.login("admin", Value::Null).status, 201, "others are not affected");
}

#[test]
fn an_application_credential_logs_in_with_some_of_its_users_roles() {
    let f = Fixture::new();
    let token = f.token("demo");
    let user = f.identity.directory().user_named("demo").unwrap().id.clone();
    let path = format!("/identity/v3/users/{user}/application_credentials");
    let post = |token: &str, inner: Value| {
        let body = json!({"application_credential": inner});
        f.served.call("POST", &path, &[("x-auth-token", token)], Some(&body))
    };
    let made = post(&token, json!({"name": "robot", "description": "d", "roles": [{"name": "reader"}]}));
    assert_eq!(made.status, 201, "{}", made.body);
    let made = &made.body["application_credential"];
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert!(!std::fs::read_to_string(f.dir.path().join("identity.json")).unwrap().contains(secret));
    assert_eq!(post(&token, json!({"name": "robot"})).status, 409);
    assert_eq!(post(&token, json!({"name": "x", "roles": [{"name": "admin"}]})).status, 400);
    assert_eq!(post(&token, json!({"name": "x", "expires_at": "2001-01-01T00:00:00"})).status, 400);
    assert_eq!(post(&token, json!({"nonsense": 1})).status, 400);

    let log_in = |shown: Value| {
        let identity = json!({"methods": ["application_credential"], "application_credential": shown});
        f.served.call("POST", "/identity/v3/auth/tokens", &[], Some(&json!({"auth": {"identity": identity}})))
    };
    let by_name = json!({"name": "robot", "secret": secret, "user": {"name": "demo", "domain": {"id": "default"}}});
    for shown in [json!({"id": id, "secret": secret}), by_name] {
        let answer = log_in(shown);
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(answer.body["token"]["project"]["name"], "demo");
        assert_eq!(answer.body["token"]["application_credential"]["restricted"], true);
    }
    assert_eq!(log_in(json!({"id": id, "secret": "wrong"})).status, 401);
    assert_eq!(log_in(json!({"id": "none", "secret": secret})).status, 401);
    let robot = log_in(json!({"id": id, "secret": secret})).header("x-subject-token").to_owned();
    let who = f.get("/v2.0/whoami", &robot).body;
    assert_eq!((&who["user"], &who["roles"]), (&json!("demo"), &json!(["reader"])));
    assert_eq!(post(&robot, json!({"name": "child"})).status, 403, "it makes no others of its kind");
    let rescope =
        json!({"auth": {"identity": {"methods": ["token"], "token": {"id": robot}}, "scope": project("demo")}});
    assert_eq!(f.served.call("POST", "/identity/v3/auth/tokens", &[], Some(&rescope)).status, 401);

    assert_eq!(f.get(&path, &token).body["application_credentials"][0]["name"], "robot");
    assert_eq!(f.get(&format!("{path}/{id}"), &token).body["application_credential"].get("secret"), None);
    assert_eq!(f.get(&path, &f.token("admin")).status, 200);
    let foreign = f.identity.directory().user_named("admin").unwrap().id.clone();
    assert_eq!(f.get(&format!("/identity/v3/users/{foreign}/application_credentials"), &token).status, 403);
    let delete = || f.served.call("DELETE", &format!("{path}/{id}"), &[("x-auth-token", &token)], None).status;
    assert_eq!((delete(), delete()), (204, 404));
    assert_eq!(f.get("/v2.0/whoami", &robot).status, 401, "its tokens went with it");
}

#[test]
fn what_the_command_line_changes_counts_without_a_restart() {
    let f = Fixture::new();
    let file = f.dir.path().join("identity.json");
    let (demo, old) = (f.token("demo"), f.password("demo"));
    let seen = f.identity.look(None);
    assert_eq!(f.identity.look(seen), seen);
    directory::change::<_, DirectoryError>(&file, |directory| {
        let user = directory.users.iter_mut().find(|u| u.name == "demo").unwrap();
        user.password_hash = Some(password::hash("another password").unwrap());
        user.password_changed_us = Some(Timestamp::now().as_microsecond());
        Ok(())
    })
    .unwrap();
    assert_ne!(f.identity.look(seen), seen);
    assert_eq!(f.get("/v2.0/whoami", &demo).status, 401, "the old password's tokens are void");
    assert_eq!(f.login_with("demo", &old, Value::Null).status, 401);
    assert_eq!(f.login_with("demo", "another password", Value::Null).status, 201);
    // A file that cannot be used changes nothing.
    std::fs::write(&file, "{").unwrap();
    f.identity.look(None);
    assert_eq!(f.login_with("demo", "another password", Value::Null).status, 201);
}
