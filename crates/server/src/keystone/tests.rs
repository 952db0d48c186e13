//! Against a stand-in that answers as Keystone does, for what a real one does not do on demand: go away and come
//! back, forget the server's token, be slow. The real one is in `tests/keystone.rs` of this crate.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use evergate_config::{Config, Role, ServerSettings};
use serde_json::{Value, json};

use super::*;
use crate::context::Context;
use crate::testing::{Answer, Served};

/// What the stand-in does and has seen.
#[derive(Default)]
struct Script {
    logins: AtomicU32,
    questions: AtomicU32,
    /// A status to answer questions with instead, or 0.
    trouble: AtomicU16,
    /// The number of the login whose token is good.
    good_login: AtomicU32,
}

struct Fixture {
    script: Arc<Script>,
    api: Served,
    _keystone: Served,
}

impl Fixture {
    fn new(more: &str) -> Self {
        let script = Arc::new(Script::default());
        let (of_login, of_question) = (Arc::clone(&script), Arc::clone(&script));
        let login = move |body: String| {
            let script = Arc::clone(&of_login);
            async move { script.log_in(&body) }
        };
        let question = move |uri: axum::http::Uri, headers: HeaderMap| {
            let script = Arc::clone(&of_question);
            async move { script.answer(uri.query().unwrap_or_default(), &headers) }
        };
        let routes = axum::Router::new().route("/v3/auth/tokens", post(login).get(question));
        let keystone = Served::start(routes);
        let text = format!(
            "[keystone_authtoken]\nauth_url = http://{}/v3/\nwww_authenticate_uri = http://keystone.example:5000\n\
             username = neutron\npassword = sesame\nproject_name = service\nhttp_request_max_retries = 0\n{more}",
            keystone.0
        );
        let config = Config::from_texts(&[("x".into(), text)], "ctl", Role::Server, vec![]).unwrap();
        let settings = ServerSettings::from_config(&config).keystone.unwrap();
        let authority = Arc::new(Keystone::new(settings).unwrap());
        let behind = axum::Router::new()
            .route("/v2.0/whoami", get(whoami))
            .layer(axum::middleware::from_fn_with_state(authority, guard));
        Self { script, api: Served::start(behind), _keystone: keystone }
    }

    fn whoami(&self, token: &str) -> Answer {
        self.api.call("GET", "/v2.0/whoami", &[("x-auth-token", token)], None)
    }

    fn questions(&self) -> u32 {
        self.script.questions.load(Ordering::SeqCst)
    }
}

async fn whoami(axum::Extension(context): axum::Extension<Context>) -> String {
    json!({
        "user": context.user_name, "project": context.project_id, "roles": context.roles,
        "service_roles": context.service_roles, "domain": context.user_domain_id,
    })
    .to_string()
}

impl Script {
    fn log_in(&self, body: &str) -> Response {
        let body: Value = serde_json::from_str(body).unwrap();
        let user = &body["auth"]["identity"]["password"]["user"];
        if (&user["name"], &user["password"], &user["domain"]["id"])
            != (&json!("neutron"), &json!("sesame"), &json!("default"))
        {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let number = self.logins.fetch_add(1, Ordering::SeqCst) + 1;
        self.good_login.store(number, Ordering::SeqCst);
        let token = json!({"token": {"user": {"id": "n"}, "expires_at": "2999-01-01T00:00:00.000000Z"}});
        (StatusCode::CREATED, [("x-subject-token", format!("own-{number}"))], token.to_string()).into_response()
    }

    /// A token is named after what it is: `member@p1`, `expired@p1`, `domain@d`, `system@all`.
    fn answer(&self, query: &str, headers: &HeaderMap) -> Response {
        self.questions.fetch_add(1, Ordering::SeqCst);
        let trouble = self.trouble.load(Ordering::SeqCst);
        if trouble != 0 {
            return StatusCode::from_u16(trouble).unwrap().into_response();
        }
        let header = |name: &str| headers[name].to_str().unwrap();
        if header("x-auth-token") != format!("own-{}", self.good_login.load(Ordering::SeqCst)) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let Some((role, scope)) = header("x-subject-token").split_once('@') else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let expired = role == "expired";
        if expired && !query.contains("allow_expired=1") {
            return StatusCode::NOT_FOUND.into_response();
        }
        let mut token = json!({
            "user": {"id": "u1", "name": "ann", "domain": {"id": "d1", "name": "D"}},
            "roles": [{"id": "r", "name": role}],
            "expires_at": if expired { "2001-01-01T00:00:00.000000Z" } else { "2999-01-01T00:00:00.000000Z" },
        });
        match role {
            "domain" => token["domain"] = json!({"id": scope, "name": "D"}),
            "system" => token["system"] = json!({"all": true}),
            _ => token["project"] = json!({"id": scope, "name": "P", "domain": {"id": "d1", "name": "D"}}),
        }
        json!({"token": token}).to_string().into_response()
    }
}

#[test]
fn a_token_is_asked_about_once_and_the_server_logs_in_once() {
    let f = Fixture::new("");
    for _ in 0..3 {
        let answer = f.whoami("member@p1");
        assert_eq!(answer.status, 200);
        let expected =
            json!({"user": "ann", "project": "p1", "roles": ["member"], "service_roles": [], "domain": "d1"});
        assert_eq!(answer.body, expected);
        assert!(answer.header("x-openstack-request-id").starts_with("req-"));
    }
    assert_eq!(f.whoami("reader@p2").body["project"], "p2");
    assert_eq!((f.questions(), f.script.logins.load(Ordering::SeqCst)), (2, 1));
}

#[test]
fn without_a_cache_every_request_is_asked_for() {
    let f = Fixture::new("token_cache_time = -1\n");
    assert_eq!((f.whoami("member@p1").status, f.whoami("member@p1").status, f.questions()), (200, 200, 2));
}

#[test]
fn a_bad_token_is_refused_with_the_way_to_keystone_and_not_asked_about_again() {
    let f = Fixture::new("");
    for token in ["nonsense", "nonsense", "expired@p1"] {
        let refused = f.whoami(token);
        assert_eq!(refused.status, 401);
        assert_eq!(refused.header("www-authenticate"), "Keystone uri=\"http://keystone.example:5000\"");
        assert!(!refused.body.to_string().contains(token));
    }
    assert_eq!(f.api.call("GET", "/v2.0/whoami", &[], None).status, 401);
    assert_eq!(f.whoami(&"x".repeat(9000)).status, 401);
    assert_eq!(f.questions(), 2);
}

#[test]
fn while_keystone_is_away_only_known_tokens_count_and_then_all_again() {
    let f = Fixture::new("");
    assert_eq!(f.whoami("member@p1").status, 200);
    f.script.trouble.store(503, Ordering::SeqCst);
    let away = f.whoami("member@p2");
    assert_eq!((away.status, away.header("retry-after")), (503, "5"));
    assert_eq!(away.body["NeutronError"]["type"], "HTTPServiceUnavailable");
    assert!(away.body["NeutronError"]["message"].as_str().unwrap().contains("status 503"), "{}", away.body);
    let asked = f.questions();
    assert_eq!((f.whoami("member@p1").status, f.whoami("member@p3").status), (200, 503));
    assert_eq!(f.questions(), asked, "it is left alone for a moment");
    f.script.trouble.store(0, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(30);
    while f.whoami("member@p2").status != 200 {
        assert!(Instant::now() < deadline, "it is asked again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_login_that_is_refused_is_told_without_the_password() {
    let f = Fixture::new("password = wrong\n");
    let refused = f.whoami("member@p1");
    let message = refused.body["NeutronError"]["message"].as_str().unwrap().to_owned();
    assert_eq!(refused.status, 503);
    assert!(message.contains("does not let this server log in") && !message.contains("wrong"), "{message}");
}

#[test]
fn the_servers_own_token_is_renewed_when_keystone_forgets_it() {
    let f = Fixture::new("");
    assert_eq!(f.whoami("member@p1").status, 200);
    f.script.good_login.store(0, Ordering::SeqCst);
    assert_eq!((f.whoami("member@p2").status, f.script.logins.load(Ordering::SeqCst)), (200, 2));
}

#[test]
fn a_service_passes_on_even_what_has_expired() {
    let f = Fixture::new("");
    let with = |token: &str, service: &str| {
        f.api.call("GET", "/v2.0/whoami", &[("x-auth-token", token), ("x-service-token", service)], None)
    };
    assert_eq!(with("expired@p1", "service@s").body["service_roles"], json!(["service"]));
    assert_eq!(with("expired@p1", "member@s").status, 401, "no service");
    assert_eq!(with("member@p1", "member@s").body["service_roles"], json!([]));
    assert_eq!(with("member@p1", "nonsense").status, 401);
    assert_eq!(f.whoami("expired@p1").status, 401, "what the service was told counts for nobody else");
    let strict = Fixture::new("service_token_roles_required = true\n");
    let headers = [("x-auth-token", "member@p1"), ("x-service-token", "member@s")];
    assert_eq!(strict.api.call("GET", "/v2.0/whoami", &headers, None).status, 401);
}

#[test]
fn a_token_for_a_domain_or_the_system_is_not_taken_for_a_projects() {
    let f = Fixture::new("");
    for (token, scope) in [("domain@d1", "domain"), ("system@all", "system")] {
        let refused = f.whoami(token);
        assert_eq!((refused.status, &refused.body["NeutronError"]["type"]), (403, &json!("HTTPForbidden")));
        assert!(refused.body.to_string().contains(&format!("made with {scope} scope")));
    }
}
