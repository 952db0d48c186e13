//! HTTP: from a request to one call in one transaction, and back.
//!
//! One dispatcher serves all resources, since all are alike: the path names a collection, a member, and
//! perhaps something below it. Identity has put the caller's [`Context`] into the request's extensions;
//! without one, only version discovery is answered.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body::Body as _;
use serde_json::Value as Json;

use crate::attributes::body::Posted;
use crate::attributes::{Body, Object, query};
use crate::base_url::base_url;
use crate::context::Context;
use crate::dvr;
use crate::error::ApiError;
use crate::objects::security_group;
use crate::options::Options;
use crate::policy;
use crate::resources::{
    self, Call, Resource, availability_zones, extensions, interfaces, port_forwardings, quotas, routers, scheduling,
    subnet_pools, tags, versions, views,
};
use crate::shares::Shares;
use crate::store::{Store, Tx, TxError as _};

/// Largest body that is read. A bulk request of a few thousand ports fits.
const MAX_BODY: usize = 4 << 20;
/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// What every request needs.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Where intent lives.
    pub store: Arc<Store>,
    /// The settings.
    pub options: Arc<Options>,
    /// The rules of who may do what.
    pub policy: Arc<policy::Watched>,
    shares: Arc<Shares>,
}

/// Makes the part of the server that answers `/` and `/v2.0`.
pub fn api_router(state: ApiState) -> Router {
    Router::new()
        .route("/", axum::routing::get(root))
        .route("/v2.0", axum::routing::any(handle))
        .route("/v2.0/", axum::routing::any(handle))
        .route("/v2.0/{*path}", axum::routing::any(handle))
        .with_state(state)
}

async fn root(State(state): State<ApiState>, request: Request) -> Response {
    // Neutron answers 300 only to clients that ask for nothing in particular; all of them take 200.
    json(StatusCode::OK, &versions::versions(&state.base_url(request.headers())))
}

/// A request, taken apart.
struct Asked {
    method: Method,
    /// The path below `/v2.0`, without empty segments.
    segments: Vec<String>,
    pairs: Vec<(String, String)>,
    base: String,
    if_match: Option<i64>,
    body: bytes::Bytes,
    /// The body, once it is read; `None` where it is no object.
    object: OnceCell<Option<Object>>,
}

/// What a request gives that is a resource's, read and checked against its table.
enum Given<'a> {
    New(&'static dyn Resource, Posted),
    /// Of the object with this id.
    Changes(&'static dyn Resource, &'a str, Body),
    /// Nothing, or what its handler reads.
    Else,
}

/// An answer: a status, and a body where there is one.
type Answer = (StatusCode, Option<Said>);

/// What an answer says.
enum Said {
    /// An object.
    Json(Json),
    /// JSON that is in words already, since it may be long.
    Text(Vec<u8>),
}

impl From<Json> for Said {
    fn from(json: Json) -> Self {
        Self::Json(json)
    }
}

async fn handle(State(state): State<ApiState>, request: Request) -> Response {
    let Some(mut context) = request.extensions().get::<Context>().cloned() else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    state.policy.current().introduce(&mut context);
    let request_id = context.request_id.clone();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let outcome = work(state, &context, request).await;
    audit(&context, &method, &path, &outcome);
    let mut response = match outcome {
        Ok((status, Some(Said::Json(body)))) => json(status, &body),
        Ok((status, Some(Said::Text(body)))) => in_json(status, body),
        Ok((status, None)) => status.into_response(),
        Err(error) => failure(&error),
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-openstack-request-id", value);
    }
    response
}

async fn work(state: ApiState, context: &Context, request: Request) -> Result<Answer, ApiError> {
    if !context.is_service {
        state.shares.count(&context.user_id, Instant::now()).map_err(|wait| {
            // Whole seconds, as the header has it.
            ApiError::HTTPTooManyRequests { seconds: (wait.as_secs() + 1).to_string() }
        })?;
    }
    let place = state.shares.place(&context.user_id);
    let mut place = place.ok_or_else(|| ApiError::HTTPTooManyRequests { seconds: "1".into() })?;
    // The body first: a slow client shall not hold a turn.
    place.room(longest_body(&request)?).await.ok_or_else(ApiError::busy)?;
    let asked = Asked::read(&state, request).await?;
    let turn = place.turn().await.ok_or_else(ApiError::busy)?;
    let context = context.clone();
    // The store blocks, so its work is kept off the threads that serve connections.
    let work = tokio::task::spawn_blocking(move || {
        let answer = answer(&state, &context, &asked);
        drop(turn);
        answer
    });
    work.await.unwrap_or_else(|panic| Err(ApiError::internal(format!("a handler panicked: {panic}"))))
}

/// Writes a line about whatever was to change something: who, what, and what came of it. Its target is
/// `audit`, so that it can be kept apart from other lines. Bodies are not in it.
fn audit(context: &Context, method: &Method, path: &str, outcome: &Result<Answer, ApiError>) {
    if matches!(*method, Method::GET | Method::HEAD) {
        return;
    }
    let (status, error) = match outcome {
        Ok((status, _)) => (status.as_u16(), None),
        Err(error) => (error.status(), Some(error.type_name())),
    };
    let made = match outcome {
        Ok((_, Some(Said::Json(body)))) => made_id(body),
        _ => None,
    };
    tracing::info!(
        target: "audit",
        request_id = %context.request_id,
        user_id = %context.user_id,
        user = %context.user_name,
        project_id = context.project_id.as_deref(),
        %method,
        path,
        status,
        error,
        made,
        "write"
    );
}

/// The id of the one object that a body shows.
fn made_id(body: &Json) -> Option<&str> {
    body.as_object()?.values().next()?.get("id")?.as_str()
}

fn failure(error: &ApiError) -> Response {
    if let ApiError::Store(cause) = error {
        let chain = std::error::Error::source(cause).map(ToString::to_string);
        if error.is_constraint() {
            // The schema had the last word over a request that lost a race, or that a check above it missed.
            tracing::warn!(error = %cause, "the schema refused a request");
        } else if cause.outage().is_some() {
            // Every request meets it; the store says once that it began, and once that it is over.
            tracing::debug!(error = %cause, cause = chain, "a request found the database unusable");
        } else {
            tracing::error!(error = %cause, cause = chain, "a request failed in the store");
        }
    }
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, &error.body());
    if let ApiError::HTTPTooManyRequests { seconds } = error
        && let Ok(seconds) = seconds.parse()
    {
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn json(status: StatusCode, body: &Json) -> Response {
    in_json(status, body.to_string())
}

fn in_json(status: StatusCode, body: impl Into<HttpBody>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl ApiState {
    /// Serves a store under settings.
    pub fn new(store: Arc<Store>, options: Arc<Options>) -> Self {
        let shares = Arc::new(Shares::new(options.api_rate_limit));
        Self { store, options, policy: Arc::default(), shares }
    }

    /// Lets this policy decide.
    pub fn under(self, policy: Arc<policy::Watched>) -> Self {
        Self { policy, ..self }
    }

    fn base_url(&self, headers: &HeaderMap) -> String {
        base_url(self.options.public_url.as_deref(), headers)
    }
}

impl Asked {
    async fn read(state: &ApiState, request: Request) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().strip_prefix("/v2.0").unwrap_or_default();
        let segments: Vec<String> =
            path.split('/').filter(|segment| !segment.is_empty()).map(percent_decoded).collect();
        let body = read_body(body).await?;
        Ok(Self {
            method: parts.method,
            segments,
            pairs: query::pairs(parts.uri.query()),
            base: state.base_url(&parts.headers),
            if_match: if_match(&parts.headers)?,
            body,
            object: OnceCell::new(),
        })
    }

    fn object(&self) -> Result<&Object, ApiError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::bad_request("Resource body required"));
        }
        let object = self.object.get_or_init(|| match serde_json::from_slice(&self.body) {
            Ok(Json::Object(object)) => Some(object),
            _ => None,
        });
        object.as_ref().ok_or_else(|| ApiError::bad_request("Body contains invalid data"))
    }

    /// Reads what a POST to a collection or a PUT of a member gives; nothing of any other request.
    fn given(&self, ctx: &Context) -> Result<Given<'_>, ApiError> {
        let resource = |collection: &str| resources::find(collection.trim_end_matches(".json"));
        Ok(match (&self.method, self.segments.as_slice()) {
            (&Method::POST, [collection]) => match resource(collection) {
                Some(resource) => Given::New(resource, resources::read_post(ctx, resource, self.object()?)?),
                None => Given::Else,
            },
            (&Method::PUT, [collection, id]) => match resource(collection) {
                Some(resource) => Given::Changes(resource, id, resources::read_put(resource, self.object()?)?),
                None => Given::Else,
            },
            _ => Given::Else,
        })
    }
}

/// How long a request's body may turn out to be.
fn longest_body(request: &Request) -> Result<usize, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match announced.or_else(|| request.body().size_hint().upper()) {
        Some(length) if length > MAX_BODY as u64 => Err(ApiError::too_large()),
        Some(length) => Ok(length as usize),
        None => Ok(MAX_BODY),
    }
}

async fn read_body(body: HttpBody) -> Result<bytes::Bytes, ApiError> {
    match tokio::time::timeout(BODY_PATIENCE, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(match std::error::Error::source(&error) {
            Some(cause) if cause.to_string() == "length limit exceeded" => ApiError::too_large(),
            _ => ApiError::bad_request("Request body was cut off"),
        }),
        Err(_) => Err(ApiError::HTTPRequestTimeout { message: "The request's body did not come in time.".into() }),
    }
}

fn percent_decoded(segment: &str) -> String {
    // A form's decoding, but `+` stands for itself in a path.
    let escaped = segment.replace('+', "%2B");
    let pair = format!("x={}", escaped.replace('&', "%26").replace('=', "%3D"));
    form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn if_match(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().trim_matches('"').strip_prefix("revision_number="));
    match number.and_then(|number| number.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(ApiError::bad_request("Invalid If-Match constraint: only revision_number=N is known")),
    }
}

fn answer(state: &ApiState, ctx: &Context, asked: &Asked) -> Result<Answer, ApiError> {
    let work = |tx: &Tx<'_>| dispatch(Call { tx, ctx, options: &state.options }, asked);
    match asked.method {
        Method::GET | Method::HEAD => {
            let answer = state.store.read(work)?;
            // After the answer, so that a request that is refused leaves no trace.
            if made_default_group(state, ctx, asked) { state.store.read(work) } else { Ok(answer) }
        }
        _ => {
            // Whatever can be done before the turn to write is: everybody else waits for it.
            let given = asked.given(ctx)?;
            let _ = asked.object();
            state.store.write(|tx| {
                let call = Call { tx, ctx, options: &state.options };
                let answer = match &given {
                    Given::New(resource, posted) => made(resources::create(call, *resource, posted)?),
                    Given::Changes(resource, id, body) => {
                        ok(resources::update(call, *resource, id.trim_end_matches(".json"), asked.if_match, body)?)
                    }
                    Given::Else => dispatch(call, asked),
                }?;
                dvr::settle(tx, &state.options)?;
                Ok(answer)
            })
        }
    }
}

/// As Neutron: who lists security groups finds the project's default one, also the first time.
/// Whether it was made now.
fn made_default_group(state: &ApiState, ctx: &Context, asked: &Asked) -> bool {
    if asked.segments.first().is_none_or(|first| first.trim_end_matches(".json") != "security-groups") {
        return false;
    }
    let named = |key: &str| asked.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let filtered = named("project_id").or(named("tenant_id")).filter(|_| ctx.is_admin);
    let Some(project) = filtered.or(ctx.project_id.as_deref()).filter(|project| (1..=255).contains(&project.len()))
    else {
        return false;
    };
    let found = state.store.read(|tx| security_group::default_of(tx, project));
    if matches!(found, Ok(Some(_))) {
        return false;
    }
    // Without one there is a list all the same.
    let made = found.and_then(|_| state.store.write(|tx| security_group::ensure_default(tx, project)));
    if let Err(error) = &made {
        tracing::debug!(%error, project, "failed to make the default security group");
    }
    made.is_ok()
}

fn dispatch(call: Call<'_>, asked: &Asked) -> Result<Answer, ApiError> {
    let segments: Vec<&str> = asked.segments.iter().map(String::as_str).collect();
    let get = matches!(asked.method, Method::GET | Method::HEAD);
    match segments.as_slice() {
        [] if get => ok(versions::resources(&asked.base)),
        ["extensions"] if get => ok(extensions::list(call.options)),
        ["extensions", alias] if get => ok(extensions::member(call.options, alias)?),
        ["network-ip-availabilities"] if get => ok(views::ip_availabilities(call, &asked.pairs)?),
        ["network-ip-availabilities", id] if get => ok(views::ip_availability(call, id.trim_end_matches(".json"))?),
        ["floatingip_pools" | "floatingip-pools"] if get => ok(views::floating_ip_pools(call, &asked.pairs)?),
        ["availability_zones"] if get => ok(availability_zones::list(call, &asked.pairs)?),
        ["quotas", rest @ ..] => quotas_verb(call, rest, asked),
        [collection, rest @ ..] => {
            let resource = resources::find(collection.trim_end_matches(".json")).ok_or_else(ApiError::not_found)?;
            match rest {
                [] => collection_verb(call, resource, collection, asked),
                [id] => member_verb(call, resource, id.trim_end_matches(".json"), asked),
                [id, below @ ..] => below_member(call, (collection, resource), id, below, asked),
            }
        }
        [] => Err(ApiError::not_found()),
    }
}

fn ok(body: Json) -> Result<Answer, ApiError> {
    Ok((StatusCode::OK, Some(body.into())))
}

fn made(body: Json) -> Result<Answer, ApiError> {
    Ok((StatusCode::CREATED, Some(body.into())))
}

const NO_CONTENT: Answer = (StatusCode::NO_CONTENT, None);

fn unknown_verb(asked: &Asked) -> ApiError {
    ApiError::HTTPMethodNotAllowed { message: format!("The method {} is not allowed for this resource.", asked.method) }
}

fn collection_verb(call: Call<'_>, resource: &dyn Resource, path: &str, asked: &Asked) -> Result<Answer, ApiError> {
    match asked.method {
        Method::GET | Method::HEAD => {
            let url = format!("{}/v2.0/{path}", asked.base);
            let listed = resources::list(call, resource, &asked.pairs, &url)?;
            Ok((StatusCode::OK, Some(Said::Text(listed))))
        }
        Method::POST => {
            let posted = resources::read_post(call.ctx, resource, asked.object()?)?;
            made(resources::create(call, resource, &posted)?)
        }
        _ => Err(unknown_verb(asked)),
    }
}

fn member_verb(call: Call<'_>, resource: &dyn Resource, id: &str, asked: &Asked) -> Result<Answer, ApiError> {
    match asked.method {
        Method::GET | Method::HEAD => ok(resources::show(call, resource, id, &query::fields(&asked.pairs))?),
        Method::PUT => {
            let body = resources::read_put(resource, asked.object()?)?;
            ok(resources::update(call, resource, id, asked.if_match, &body)?)
        }
        Method::DELETE => {
            resources::delete(call, resource, id, asked.if_match)?;
            Ok(NO_CONTENT)
        }
        _ => Err(unknown_verb(asked)),
    }
}

fn quotas_verb(call: Call<'_>, rest: &[&str], asked: &Asked) -> Result<Answer, ApiError> {
    let last = rest.last().map_or("", |last| last.trim_end_matches(".json"));
    match (rest, asked.method.as_str()) {
        ([], "GET" | "HEAD") => ok(quotas::list(call)?),
        ([_], "GET" | "HEAD") if matches!(last, "project" | "tenant") => ok(quotas::own_project(call, last)?),
        ([_], "GET" | "HEAD") => ok(quotas::show(call, last)?),
        ([_], "PUT") => ok(quotas::update(call, last, asked.object()?)?),
        ([_], "DELETE") => quotas::delete(call, last).map(|()| NO_CONTENT),
        ([project, _], "GET" | "HEAD") if last == "default" => ok(quotas::defaults(call, project)?),
        ([project, _], "GET" | "HEAD") if last == "details" => ok(quotas::details(call, project)?),
        ([] | [_], _) => Err(unknown_verb(asked)),
        _ => Err(ApiError::not_found()),
    }
}

fn below_member(
    call: Call<'_>,
    (collection, resource): (&str, &dyn Resource),
    id: &str,
    below: &[&str],
    asked: &Asked,
) -> Result<Answer, ApiError> {
    let fields = query::fields(&asked.pairs);
    match (collection, below, asked.method.as_str()) {
        ("routers", ["add_router_interface"], "PUT") => ok(interfaces::add(call, id, asked.object()?)?),
        ("routers", ["remove_router_interface"], "PUT") => ok(interfaces::remove(call, id, asked.object()?)?),
        ("routers", ["add_extraroutes"], "PUT") => ok(routers::change_extra_routes(call, id, asked.object()?, true)?),
        ("routers", ["remove_extraroutes"], "PUT") => {
            ok(routers::change_extra_routes(call, id, asked.object()?, false)?)
        }
        ("routers", ["l3-agents"], "GET") => ok(scheduling::agents_of_router(call, id, &fields)?),
        ("floatingips", ["port_forwardings", below @ ..], _) => {
            let resource = port_forwardings::PortForwardings::of(call, id)?;
            match below {
                [] => collection_verb(call, &resource, &format!("{collection}/{id}/port_forwardings"), asked),
                [id] => member_verb(call, &resource, id.trim_end_matches(".json"), asked),
                _ => Err(ApiError::not_found()),
            }
        }
        ("subnetpools", ["add_prefixes"], "PUT") => ok(subnet_pools::change_prefixes(call, id, asked.object()?, true)?),
        ("subnetpools", ["remove_prefixes"], "PUT") => {
            ok(subnet_pools::change_prefixes(call, id, asked.object()?, false)?)
        }
        ("subnetpools", ["onboard_network_subnets"], "PUT") => ok(subnet_pools::onboard(call, id, asked.object()?)?),
        ("routers", ["evergate:hosts"], "GET") => ok(scheduling::hosts_of_router(call, id)?),
        ("agents", ["l3-routers"], "GET") => ok(scheduling::routers_of_agent(call, id, &fields)?),
        ("agents", ["l3-routers"], "POST") => made(scheduling::add_router(call, id, asked.object()?)?),
        ("agents", ["l3-routers", router], "DELETE") => {
            scheduling::remove_router(call, id, router)?;
            Ok(NO_CONTENT)
        }
        ("agents", ["l3-routers", ..], "PUT") => {
            Err(ApiError::HTTPNotImplemented { message: "PUT is not implemented for l3-routers".into() })
        }
        (_, ["tags"], "GET") => ok(tags::list(call, resource, id)?),
        (_, ["tags"], "PUT") => ok(tags::put(call, resource, id, asked.object()?, false)?),
        (_, ["tags"], "POST") => made(tags::put(call, resource, id, asked.object()?, true)?),
        (_, ["tags"], "DELETE") => tags::remove(call, resource, id, None).map(|()| NO_CONTENT),
        (_, ["tags", tag], "GET") => tags::check(call, resource, id, tag).map(|()| NO_CONTENT),
        (_, ["tags", tag], "PUT") => tags::add(call, resource, id, tag).map(|()| (StatusCode::CREATED, None)),
        (_, ["tags", tag], "DELETE") => tags::remove(call, resource, id, Some(tag)).map(|()| NO_CONTENT),
        _ => Err(ApiError::not_found()),
    }
}
