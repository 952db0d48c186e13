//! The hosts' side of the server: what each host is told, and what it tells.
//!
//! `GET /evergate/v1/hosts/{host}/stream` ([`stream`]) answers lines of JSON for as long as both live;
//! `POST /evergate/v1/hosts/{host}/report` ([`report`]) takes a whole report. The words are in
//! [`evergate_model::stream`]; `POST /evergate/v1/hosts/{host}/letters` ([`letters`]) is how hosts reach each other when all
//! other ways are cut. All need TLS with the host's own certificate, which it gets by [`join`]: a host is told
//! and reports what is its own ([`admission`]).
//!
//! Everything here is level-triggered: a lost line, report or connection costs a snapshot or the wait
//! for the next report, never truth.

mod admission;
mod join;
mod letters;
mod publisher;
mod report;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use evergate_model::HostReport;
use tokio::sync::{OnceCell, Semaphore, watch};

pub use admission::Discard;
use letters::Office;
use publisher::Publisher;

use crate::error::ApiError;
use crate::membership::Members;
use crate::options::Options;
use crate::store::{Outage, Store, StoreError, TxError as _};

/// Largest report: one of a host with a hundred thousand ports has some 4 MiB.
const LARGEST_REPORT: usize = 32 << 20;

/// Where everything that is for hosts is.
pub(crate) const PATHS: &str = "/evergate/v1/";

/// Largest request for a certificate: a key and a token.
const LARGEST_REQUEST: usize = 16 << 10;

/// Times of what hosts ask for; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pause between a change and the look at it, so that a burst becomes one line.
    pub gather: Duration,
    /// Longest silence on a stream.
    pub ping: Duration,
    /// How long a host may leave a line unread before its stream is closed.
    pub patience: Duration,
    /// How long a host that wants to join may wait for its turn.
    pub turn: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(2),
            ping: Duration::from_secs(2),
            patience: Duration::from_secs(20),
            turn: Duration::from_secs(5),
        }
    }
}

/// Requests to join that are looked at, each on a thread and in the database, at once. Who asks is not known until then.
const JOINS_AT_ONCE: usize = 4;

/// What the requests share.
pub struct Hosts {
    store: Arc<Store>,
    options: Arc<Options>,
    members: Arc<Members>,
    discards: admission::Discards,
    /// Whether routers without enough copies are filled up when a host appears.
    auto_schedule: bool,
    pace: Pace,
    /// Becomes true when the server stops, so that streams end.
    stopping: watch::Receiver<bool>,
    /// So many hosts are looked after at once: the API's requests want the processors too.
    turns: Semaphore,
    /// So many that want to join are looked at at once.
    joins: Arc<Semaphore>,
    /// Started for the first stream.
    publisher: OnceCell<Publisher>,
    /// Last report of each host, to see cheaply that nothing changed. Losing it costs one full look.
    seen: Mutex<HashMap<String, Seen>>,
    office: Arc<Office>,
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
        members: Arc<Members>,
        auto_schedule: bool,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let office = Arc::new(Office::default());
        let of_others = Arc::clone(&office);
        store.on_carried(Box::new(move |text| of_others.hand_out_carried(text)));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            options,
            members,
            discards: admission::Discards::default(),
            auto_schedule,
            pace: Pace::default(),
            stopping,
            turns: Semaphore::new(processors.max(2)),
            joins: Arc::new(Semaphore::new(JOINS_AT_ONCE)),
            publisher: OnceCell::new(),
            seen: Mutex::default(),
            office,
        }
    }

    /// Replaces the times.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    async fn publisher(&self) -> &Publisher {
        let start = || async { Publisher::start(Arc::clone(&self.store), Arc::clone(&self.options), self.pace.gather) };
        self.publisher.get_or_init(start).await
    }
}

/// The routes, from the server's root. What serves them says who is at the other end (`ConnectInfo`).
pub fn routes(hosts: Arc<Hosts>) -> Router {
    let of_members = Router::new()
        .route("/evergate/v1/hosts/{host}/stream", get(stream::stream))
        .route("/evergate/v1/hosts/{host}/report", post(report::report))
        .route("/evergate/v1/hosts/{host}/letters", post(letters::take))
        .layer(DefaultBodyLimit::max(LARGEST_REPORT))
        .merge(
            Router::new()
                .route("/evergate/v1/hosts/{host}/renew", post(join::renew))
                .layer(DefaultBodyLimit::max(LARGEST_REQUEST)),
        )
        .layer(from_fn_with_state(Arc::clone(&hosts), admission::admit));
    Router::new()
        .route("/evergate/v1/hosts/{host}/join", post(join::join))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .route("/evergate/v1/ca", get(join::authorities))
        .merge(of_members)
        .with_state(hosts)
}

/// An answer other than success: a sentence, for the host's log.
fn refusal(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

/// What a host is told when the store fails: an outage is worth another try soon, here or elsewhere.
fn store_refusal(error: &ApiError) -> Response {
    let outage = error.store_error().and_then(StoreError::outage);
    match outage {
        Some(outage) => outage_refusal(outage),
        None => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot use its store"),
    }
}

fn outage_refusal(outage: Outage) -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the server's database: {outage}"))
}

#[cfg(test)]
mod tests;
