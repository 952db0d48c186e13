//! The hosts' side of the server: what each host is told, and what it tells.
//!
//! `GET /evergate/v1/hosts/{host}/stream` ([`stream`]) answers lines of JSON for as long as both live;
//! `POST /evergate/v1/hosts/{host}/report` ([`report`]) takes a whole report. The words are in
//! [`evergate_model::stream`]. Both need the host token ([`token`]), one secret for all hosts.
//!
//! Everything here is level-triggered: a lost line, report or connection costs a snapshot or the wait
//! for the next report, never truth.

mod relevance;
mod report;
mod stream;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use evergate_model::HostReport;
use tokio::sync::{Semaphore, watch};

pub use relevance::concerns;
pub use token::{HostToken, TokenError};

use crate::error::ApiError;
use crate::options::Options;
use crate::store::{Store, StoreError, TxError as _};

/// Largest report: one of a host with a hundred thousand ports has some 4 MiB.
const LARGEST_REPORT: usize = 32 << 20;

/// Times of the streams; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pause between a change and the look at it, so that a burst becomes one line.
    pub gather: Duration,
    /// Longest silence on a stream.
    pub ping: Duration,
    /// How long a host may leave a line unread before its stream is closed.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { gather: Duration::from_millis(2), ping: Duration::from_secs(2), patience: Duration::from_secs(20) }
    }
}

/// What the two requests share.
pub struct Hosts {
    store: Arc<Store>,
    options: Arc<Options>,
    token: HostToken,
    /// Whether routers without enough copies are filled up when a host appears.
    auto_schedule: bool,
    pace: Pace,
    /// Becomes true when the server stops, so that streams end.
    stopping: watch::Receiver<bool>,
    /// So many hosts are looked after at once: the API's requests want the processors too.
    turns: Semaphore,
    /// Last report of each host, to see cheaply that nothing changed. Losing it costs one full look.
    seen: Mutex<HashMap<String, Seen>>,
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosts").finish_non_exhaustive()
    }
}

/// A report that was taken.
struct Seen {
    report: HostReport,
    /// The store's revision that it was compared with.
    revision: u64,
    at: Instant,
}

impl Hosts {
    /// Makes the shared state; `stopping` becomes true when streams must end.
    pub fn new(
        store: Arc<Store>,
        options: Arc<Options>,
        token: HostToken,
        auto_schedule: bool,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            options,
            token,
            auto_schedule,
            pace: Pace::default(),
            stopping,
            turns: Semaphore::new(processors.max(2)),
            seen: Mutex::default(),
        }
    }

    /// Replaces the times of the streams.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }
}

/// The routes, from the server's root.
pub fn routes(hosts: Arc<Hosts>) -> Router {
    Router::new()
        .route("/evergate/v1/hosts/{host}/stream", get(stream::stream))
        .route("/evergate/v1/hosts/{host}/report", post(report::report))
        .layer(DefaultBodyLimit::max(LARGEST_REPORT))
        .layer(from_fn_with_state(Arc::clone(&hosts), admit))
        .with_state(hosts)
}

/// Lets nobody in without the host token.
async fn admit(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer "));
    if given.is_some_and(|given| hosts.token.is(given)) {
        return next.run(request).await;
    }
    tracing::warn!(path = request.uri().path(), "host refused: it does not show the host token");
    let mut refusal = refusal(StatusCode::UNAUTHORIZED, "the host token is missing or wrong");
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}

/// An answer other than success: a sentence, for the host's log.
fn refusal(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

/// What a host is told when the store fails: an outage is worth another try soon, here or elsewhere.
fn store_refusal(error: &ApiError) -> Response {
    let outage = error.store_error().and_then(StoreError::outage);
    match outage {
        Some(outage) => refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the server's database: {outage}")),
        None => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot use its store"),
    }
}

#[cfg(test)]
mod tests;
