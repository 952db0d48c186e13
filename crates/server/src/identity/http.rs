//! The API below `/identity`: tokens, and reading what there is.
//!
//! Answers and errors are shaped as Keystone's. Who may read what follows its default policy: admins
//! all, others themselves and their project.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::directory::{DOMAIN_ID, DOMAIN_NAME, Project, Role, User};
use super::login::{Denied, login};
use super::{Identity, Valid, app_credentials, catalog, time_text};
use crate::store::StoreError;

/// Largest request body: a request for a token is some hundred bytes.
const LARGEST_BODY: usize = 64 * 1024;

pub(super) type Shared = State<Arc<Identity>>;

/// The routes, from the server's root.
pub fn routes(identity: Arc<Identity>) -> Router {
    let v3 = Router::new()
        .route("/auth/tokens", post(issue).get(check).delete(revoke))
        .route("/auth/catalog", get(own_catalog))
        .route("/auth/projects", get(own_projects))
        .route("/auth/domains", get(nothing))
        .route("/auth/system", get(nothing))
        .route("/projects", get(projects))
        .route("/projects/{id}", get(project))
        .route("/users", get(users))
        .route("/users/{id}", get(user))
        .route("/users/{id}/projects", get(projects_of_user))
        .route("/users/{id}/groups", get(nothing))
        .route("/users/{id}/application_credentials", get(app_credentials::list).post(app_credentials::create))
        .route(
            "/users/{id}/application_credentials/{credential}",
            get(app_credentials::show).delete(app_credentials::delete),
        )
        .route("/groups", get(nothing))
        .route("/roles", get(roles))
        .route("/roles/{id}", get(role))
        .route("/role_assignments", get(role_assignments))
        .route("/domains", get(domains))
        .route("/domains/{id}", get(domain))
        .route("/services", get(services))
        .route("/endpoints", get(endpoints))
        .route("/regions", get(regions))
        .method_not_allowed_fallback(not_changed_here)
        .fallback(no_such_url);
    Router::new()
        .route("/identity", get(versions))
        .route("/identity/", get(versions))
        .route("/identity/v3/", get(version))
        .nest("/identity/v3", v3)
        .route("/identity/v3", get(version))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(identity)
}

/// An answer other than success.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    status: StatusCode,
    message: String,
    /// A header that goes with it.
    header: Option<(header::HeaderName, String)>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), header: None }
    }

    /// The 401 that says nothing about why.
    pub(super) fn unauthorized(base_url: &str) -> Self {
        let challenge = format!("Keystone uri=\"{base_url}/identity\"");
        let message = "The request you have made requires authentication.";
        Self { header: Some((header::WWW_AUTHENTICATE, challenge)), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub(super) fn forbidden(action: &str) -> Self {
        let message = format!("You are not authorized to perform the requested action: identity:{action}.");
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(super) fn not_found(kind: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Could not find {kind}: {id}."))
    }

    pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "identity could not be served");
        let message = "An unexpected error prevented the server from fulfilling your request.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The store's failure: an outage is told, and worth another try soon.
    fn of_store(error: &StoreError) -> Self {
        match error.outage() {
            Some(outage) => {
                let message = format!("The database cannot be used: {outage}. Try again soon.");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            }
            None => Self::internal(error),
        }
    }

    fn denied(denied: Denied, base_url: &str) -> Self {
        match denied {
            Denied::Malformed(message) => Self::new(StatusCode::BAD_REQUEST, message),
            Denied::Unauthorized => Self::unauthorized(base_url),
            Denied::UnsupportedMethod => Self {
                message: "Attempted to authenticate with an unsupported method.".to_owned(),
                ..Self::unauthorized(base_url)
            },
            Denied::TooMany(seconds) => Self {
                header: Some((header::RETRY_AFTER, seconds.to_string())),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many failed attempts to authenticate: try again later.")
            },
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = json!({"error": {"code": self.status.as_u16(), "title": title, "message": self.message}});
        let mut response = answer(self.status, &body);
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

pub(super) fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::VARY, HeaderValue::from_static("X-Auth-Token"));
    response
}

/// A request that somebody with a token made.
pub(super) struct Asked {
    pub(super) by: Valid,
    base_url: String,
}

impl Asked {
    pub(super) fn from(identity: &Identity, headers: &HeaderMap) -> Result<Self, Fault> {
        let base_url = identity.base_url(headers);
        let by = named_token(headers, "x-auth-token").and_then(|t| identity.validate(t, Timestamp::now()).ok());
        let by = by.ok_or_else(|| Fault::unauthorized(&base_url))?;
        Ok(Self { by, base_url })
    }

    fn by_admin(identity: &Identity, headers: &HeaderMap, action: &str) -> Result<Self, Fault> {
        let asked = Self::from(identity, headers)?;
        if asked.by.is_admin() { Ok(asked) } else { Err(Fault::forbidden(action)) }
    }

    pub(super) fn list(&self, name: &str, objects: Vec<Value>) -> Response {
        let links = json!({"self": format!("{}/identity/v3/{name}", self.base_url), "previous": null, "next": null});
        let objects: Vec<Value> = objects.into_iter().map(|o| self.linked(name, o)).collect();
        let last = name.rsplit('/').next().unwrap_or(name);
        answer(StatusCode::OK, &json!({last: objects, "links": links}))
    }

    pub(super) fn one(&self, collection: &str, name: &str, object: Value) -> Response {
        answer(StatusCode::OK, &json!({name: self.linked(collection, object)}))
    }

    pub(super) fn linked(&self, collection: &str, mut object: Value) -> Value {
        if let Some(id) = object.get("id").and_then(Value::as_str) {
            // What is listed below something else has a place of its own, but for what belongs to a user.
            let own = collection.rsplit('/').next().unwrap_or(collection);
            let kind = if own == "application_credentials" { collection } else { own };
            object["links"] = json!({"self": format!("{}/identity/v3/{kind}/{id}", self.base_url)});
        }
        object
    }
}

fn named_token<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|t| t.to_str().ok())
}

/// Query parameters, as `?name=x&domain_id=y`.
pub(super) struct Filters(Vec<(String, String)>);

impl Filters {
    pub(super) fn from(query: &RawQuery) -> Self {
        let query = query.0.as_deref().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Tells whether an object has what every filter asks for; what it does not have at all is ignored.
    pub(super) fn accept(&self, object: &Value) -> bool {
        self.0.iter().all(|(key, wanted)| match object.get(key) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Bool(true)) => !matches!(wanted.to_lowercase().as_str(), "false" | "0"),
            Some(Value::Bool(false)) => matches!(wanted.to_lowercase().as_str(), "false" | "0"),
            Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => true,
        })
    }
}

async fn versions(State(identity): Shared, headers: HeaderMap) -> Response {
    answer(StatusCode::MULTIPLE_CHOICES, &catalog::versions(&identity.base_url(&headers)))
}

async fn version(State(identity): Shared, headers: HeaderMap) -> Response {
    answer(StatusCode::OK, &catalog::version(&identity.base_url(&headers)))
}

async fn issue(State(identity): Shared, query: RawQuery, headers: HeaderMap, body: Bytes) -> Result<Response, Fault> {
    let base_url = identity.base_url(&headers);
    let claims = login(&identity, &body).await.map_err(|denied| Fault::denied(denied, &base_url))?;
    let token = identity.signer.sign(&claims);
    // What was just made holds, unless its user was given no rights: then it is as good as refused.
    let valid = identity.validate(&token, Timestamp::now()).map_err(|_| Fault::unauthorized(&base_url))?;
    let body = token_body(&valid, &base_url, !Filters::from(&query).has("nocatalog"));
    Ok(with_subject(answer(StatusCode::CREATED, &body), &token))
}

/// `GET` and `HEAD`: is this token good, and what for?
async fn check(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    let (token, subject) = subject(&identity, &headers)?;
    if !asked.by.is_admin() && !asked.by.roles.contains_key("service") && subject.user.id != asked.by.user.id {
        return Err(Fault::forbidden("validate_token"));
    }
    let body = token_body(&subject, &asked.base_url, !Filters::from(&query).has("nocatalog"));
    Ok(with_subject(answer(StatusCode::OK, &body), token))
}

async fn revoke(State(identity): Shared, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    let (_, subject) = subject(&identity, &headers)?;
    if !asked.by.is_admin() && subject.user.id != asked.by.user.id {
        return Err(Fault::forbidden("revoke_token"));
    }
    identity.revoke(&subject.claims, Timestamp::now()).await.map_err(|e| Fault::of_store(&e))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The token that a request is about.
fn subject<'a>(identity: &Identity, headers: &'a HeaderMap) -> Result<(&'a str, Valid), Fault> {
    let token = named_token(headers, "x-subject-token")
        .ok_or_else(|| Fault::new(StatusCode::BAD_REQUEST, "Expecting to find X-Subject-Token in the headers."))?;
    let valid = identity.validate(token, Timestamp::now());
    // The token itself is not repeated: it may be a good one elsewhere.
    valid.map(|valid| (token, valid)).map_err(|_| Fault::new(StatusCode::NOT_FOUND, "Could not find token."))
}

fn with_subject(mut response: Response, token: &str) -> Response {
    if let Ok(mut value) = HeaderValue::from_str(token) {
        value.set_sensitive(true);
        response.headers_mut().insert("x-subject-token", value);
    }
    response
}

fn token_body(valid: &Valid, base_url: &str, with_catalog: bool) -> Value {
    let domain = json!({"id": DOMAIN_ID, "name": DOMAIN_NAME});
    let mut token = json!({
        "methods": valid.claims.methods,
        "user": {"id": valid.user.id, "name": valid.user.name, "domain": domain, "password_expires_at": null},
        "audit_ids": valid.claims.audit_ids,
        "issued_at": time_text(valid.claims.issued_us),
        "expires_at": time_text(valid.claims.expires_us),
    });
    if let Some(project) = &valid.project {
        token["project"] = json!({"id": project.id, "name": project.name, "domain": domain});
        token["is_domain"] = json!(false);
        token["roles"] = valid.roles.values().map(|r| json!({"id": r.id, "name": r.name})).collect();
        if with_catalog {
            token["catalog"] = catalog::catalog(base_url);
        }
    }
    if let Some(credential) = &valid.credential {
        token["application_credential"] = json!({
            "id": credential.id, "name": credential.name, "restricted": !credential.unrestricted,
        });
    }
    json!({"token": token})
}

async fn own_catalog(State(identity): Shared, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    if asked.by.project.is_none() {
        return Err(Fault::forbidden("get_auth_catalog"));
    }
    let links = json!({"self": format!("{}/identity/v3/auth/catalog", asked.base_url)});
    Ok(answer(StatusCode::OK, &json!({"catalog": catalog::catalog(&asked.base_url), "links": links})))
}

async fn own_projects(State(identity): Shared, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    let projects = identity.directory().projects_of(&asked.by.user.id).into_iter().map(project_json).collect();
    Ok(asked.list("auth/projects", projects))
}

async fn projects_of_user(
    State(identity): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    if !asked.by.is_admin() && asked.by.user.id != id {
        return Err(Fault::forbidden("list_user_projects"));
    }
    let directory = identity.directory();
    directory.user(&id).ok_or_else(|| Fault::not_found("user", &id))?;
    let projects = directory.projects_of(&id).into_iter().map(project_json).collect();
    Ok(asked.list(&format!("users/{id}/projects"), projects))
}

/// A collection that is always empty; its name is the last part of its path.
async fn nothing(State(identity): Shared, uri: axum::http::Uri, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    Ok(asked.list(uri.path().trim_start_matches("/identity/v3/").trim_matches('/'), Vec::new()))
}

async fn projects(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_projects")?;
    let filters = Filters::from(&query);
    let directory = identity.directory();
    let all = directory.projects.iter().map(project_json);
    Ok(asked.list("projects", all.filter(|p| filters.accept(p)).collect()))
}

async fn project(State(identity): Shared, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    if !asked.by.is_admin() && asked.by.project.as_ref().is_none_or(|p| p.id != id) {
        return Err(Fault::forbidden("get_project"));
    }
    let directory = identity.directory();
    let project = directory.project(&id).ok_or_else(|| Fault::not_found("project", &id))?;
    Ok(asked.one("projects", "project", project_json(project)))
}

async fn users(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_users")?;
    let filters = Filters::from(&query);
    let directory = identity.directory();
    let all = directory.users.iter().map(user_json);
    Ok(asked.list("users", all.filter(|u| filters.accept(u)).collect()))
}

async fn user(State(identity): Shared, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    if !asked.by.is_admin() && asked.by.user.id != id {
        return Err(Fault::forbidden("get_user"));
    }
    let directory = identity.directory();
    let user = directory.user(&id).ok_or_else(|| Fault::not_found("user", &id))?;
    Ok(asked.one("users", "user", user_json(user)))
}

async fn roles(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_roles")?;
    let filters = Filters::from(&query);
    let directory = identity.directory();
    let all = directory.roles.iter().map(role_json);
    Ok(asked.list("roles", all.filter(|r| filters.accept(r)).collect()))
}

async fn role(State(identity): Shared, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "get_role")?;
    let directory = identity.directory();
    let role = directory.role(&id).ok_or_else(|| Fault::not_found("role", &id))?;
    Ok(asked.one("roles", "role", role_json(role)))
}

async fn role_assignments(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_role_assignments")?;
    let filters = Filters::from(&query);
    let is = |name: &str, id: &str| filters.get(name).is_none_or(|wanted| wanted == id);
    // Nobody has a role on a domain, on the system or through a group.
    let elsewhere = ["scope.domain.id", "scope.system", "group.id"].into_iter().any(|name| filters.has(name));
    let directory = identity.directory();
    let mut found = Vec::new();
    for a in directory.assignments.iter().filter(|_| !elsewhere) {
        if !is("user.id", &a.user) || !is("scope.project.id", &a.project) || !is("role.id", &a.role) {
            continue;
        }
        let (Some(user), Some(project), Some(role)) =
            (directory.user(&a.user), directory.project(&a.project), directory.role(&a.role))
        else {
            continue;
        };
        let mut assignment = json!({
            "role": {"id": role.id}, "user": {"id": user.id}, "scope": {"project": {"id": project.id}},
            "links": {"assignment": format!(
                "{}/identity/v3/projects/{}/users/{}/roles/{}", asked.base_url, project.id, user.id, role.id
            )},
        });
        if filters.get("include_names").is_some_and(|v| !matches!(v.to_lowercase().as_str(), "false" | "0")) {
            let domain = json!({"id": DOMAIN_ID, "name": DOMAIN_NAME});
            assignment["role"]["name"] = json!(role.name);
            assignment["user"]["name"] = json!(user.name);
            assignment["user"]["domain"] = domain.clone();
            assignment["scope"]["project"]["name"] = json!(project.name);
            assignment["scope"]["project"]["domain"] = domain;
        }
        found.push(assignment);
    }
    Ok(asked.list("role_assignments", found))
}

async fn domains(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_domains")?;
    let filters = Filters::from(&query);
    Ok(asked.list("domains", [domain_json()].into_iter().filter(|d| filters.accept(d)).collect()))
}

async fn domain(State(identity): Shared, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Fault> {
    // Everybody is of this domain, so everybody may see it.
    let asked = Asked::from(&identity, &headers)?;
    if id == DOMAIN_ID {
        Ok(asked.one("domains", "domain", domain_json()))
    } else {
        Err(Fault::not_found("domain", &id))
    }
}

async fn services(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_services")?;
    let filters = Filters::from(&query);
    Ok(asked.list("services", catalog::services().into_iter().filter(|s| filters.accept(s)).collect()))
}

async fn endpoints(State(identity): Shared, query: RawQuery, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::by_admin(&identity, &headers, "list_endpoints")?;
    let filters = Filters::from(&query);
    let all = catalog::endpoints(&asked.base_url).into_iter();
    Ok(asked.list("endpoints", all.filter(|e| filters.accept(e)).collect()))
}

async fn regions(State(identity): Shared, headers: HeaderMap) -> Result<Response, Fault> {
    let asked = Asked::from(&identity, &headers)?;
    Ok(asked.list("regions", catalog::regions()))
}

async fn no_such_url() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "The resource could not be found.")
}

async fn not_changed_here(State(identity): Shared, method: Method, headers: HeaderMap) -> Fault {
    match Asked::from(&identity, &headers) {
        Err(fault) => fault,
        Ok(_) => Fault::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "{method} is not served here: users, projects and roles are changed by evergate identity, or in the \
                 server's identity file."
            ),
        ),
    }
}

fn project_json(project: &Project) -> Value {
    json!({
        "id": project.id, "name": project.name, "description": project.description, "enabled": project.enabled,
        "domain_id": DOMAIN_ID, "parent_id": DOMAIN_ID, "is_domain": false, "tags": [], "options": {},
    })
}

fn user_json(user: &User) -> Value {
    let mut json = json!({
        "id": user.id, "name": user.name, "enabled": user.enabled, "domain_id": DOMAIN_ID,
        "password_expires_at": null, "options": {},
    });
    if let Some(project) = &user.default_project_id {
        json["default_project_id"] = json!(project);
    }
    json
}

fn role_json(role: &Role) -> Value {
    json!({"id": role.id, "name": role.name, "domain_id": null, "description": null, "options": {}})
}

fn domain_json() -> Value {
    json!({
        "id": DOMAIN_ID, "name": DOMAIN_NAME, "enabled": true, "description": "The only domain.", "tags": [],
        "options": {},
    })
}
