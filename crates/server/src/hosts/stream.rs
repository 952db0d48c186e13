//! Down: a snapshot, then what changes, for as long as the host listens.
//!
//! A task per stream waits until the store has a newer revision, gathers a moment so that a burst
//! becomes one line, reads what the host must know now and sends the difference to what it sent last.
//! It looks only when there is room for a line: a slow host gets fewer and larger changes, and never a
//! queue. One that reads nothing at all is let go.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use evergate_model::HostConfig;
use evergate_model::stream::{Change, Downstream};
use http_body::Frame;
use tokio::sync::mpsc::{Permit, Receiver, Sender, channel};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::admission::Member;
use super::relevance::concerns;
use super::{Hosts, store_refusal};
use crate::error::ApiError;
use crate::hostview::host_config;
use crate::membership::Standing;
use crate::store::{StoreError, TxError as _};

/// Pause between looks at a database that cannot be used.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn stream(
    State(hosts): State<Arc<Hosts>>,
    Extension(member): Extension<Member>,
    RawQuery(query): RawQuery,
) -> Response {
    let host = member.host.clone();
    // The first read tells whether there is anything to stream, while a status can still be answered.
    let first = match read(&hosts, &host).await {
        Ok(config) => config,
        Err(error) => return store_refusal(&error),
    };
    let (sender, lines) = channel(1);
    // A host of an earlier version would not understand them.
    let wants_letters = query.is_some_and(|query| query.split('&').any(|pair| pair == "letters=true"));
    let letters = wants_letters.then(|| hosts.office.open_box(&host));
    tokio::spawn(follow(hosts, member, first, sender));
    let mut response = Response::new(Body::new(Lines { lines, letters }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The lines of a stream, as a body. Letters do not wait for what is read from the database, nor for the line before.
struct Lines {
    lines: Receiver<Bytes>,
    letters: Option<Receiver<Bytes>>,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let letter = self.letters.as_mut().map(|letters| letters.poll_recv(cx));
        if let Some(Poll::Ready(Some(letter))) = letter {
            return Poll::Ready(Some(Ok(Frame::data(letter))));
        }
        self.lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the host is gone")]
    Gone,
    #[error("the host does not read what it is told")]
    Stalled,
    #[error("the server stops")]
    Stopping,
    #[error("the host's certificate counts no more")]
    Dismissed,
    #[error("the server cannot read its store")]
    Unreadable,
}

async fn follow(hosts: Arc<Hosts>, member: Member, first: HostConfig, sender: Sender<Bytes>) {
    let host = &member.host;
    tracing::info!(host, revision = first.revision, "host follows");
    let end = follow_until_end(&hosts, &member, first, &sender).await;
    tracing::info!(host, reason = %end, "host follows no longer");
}

async fn follow_until_end(hosts: &Arc<Hosts>, member: &Member, first: HostConfig, sender: &Sender<Bytes>) -> End {
    let host = member.host.as_str();
    let result: Result<Infallible, End> = async {
        let mut revisions = hosts.store.subscribe();
        let mut stopping = hosts.stopping.clone();
        // The revision up to which all was looked at: the host may be at an older one that differs in nothing.
        let mut seen = first.revision;
        let mut sent = Arc::new(first);
        room(hosts, sender).await?.send(line(&Downstream::Snapshot { config: (*sent).clone() }));
        let mut ping_at = Instant::now() + hosts.pace.ping;
        // What was committed between the first read and the subscription must be looked at too.
        let mut newer = *revisions.borrow_and_update() > seen;
        loop {
            if !newer {
                newer = tokio::select! {
                    changed = revisions.changed() => changed.map(|()| true).map_err(|_| End::Stopping)?,
                    () = sleep_until(ping_at) => false,
                    () = sender.closed() => return Err(End::Gone),
                    _ = stopping.wait_for(|stop| *stop) => return Err(End::Stopping),
                };
            }
            if !matches!(hosts.members.standing(&member.fingerprint), Standing::Member(_)) {
                return Err(End::Dismissed);
            }
            if newer {
                sleep(hosts.pace.gather).await;
            }
            let room = room(hosts, sender).await?;
            if newer {
                newer = false;
                revisions.mark_unchanged();
                let now = match look(hosts, host, &sent, seen).await {
                    Ok((now, looked_at)) => {
                        seen = looked_at;
                        now
                    }
                    // The host goes on with what it has, and the stream when the database is back.
                    Err(error) if is_outage(&error) => {
                        newer = true;
                        sleep(OUTAGE_PAUSE).await;
                        None
                    }
                    Err(_) => return Err(End::Unreadable),
                };
                if let Some((change, now)) = now.and_then(|now| Some((Change::between(&sent, &now)?, now))) {
                    tracing::debug!(host, revision = now.revision, "host is told of a change");
                    room.send(line(&Downstream::Change(change)));
                    sent = Arc::new(now);
                    ping_at = Instant::now() + hosts.pace.ping;
                    continue;
                }
            }
            // Also when much changes that this host need not know.
            if Instant::now() >= ping_at {
                room.send(line(&Downstream::Ping { revision: sent.revision }));
                ping_at = Instant::now() + hosts.pace.ping;
            }
        }
    }
    .await;
    match result {
        Err(end) => end,
        Ok(never) => match never {},
    }
}

/// Waits until the host has taken the line before.
async fn room<'a>(hosts: &Hosts, sender: &'a Sender<Bytes>) -> Result<Permit<'a, Bytes>, End> {
    match timeout(hosts.pace.patience, sender.reserve()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Stalled),
    }
}

pub(super) fn line(said: &Downstream) -> Bytes {
    let mut line = serde_json::to_vec(said).expect("maps with textual keys are always JSON");
    line.push(b'\n');
    line.into()
}

async fn read(hosts: &Arc<Hosts>, host: &str) -> Result<HostConfig, ApiError> {
    let (hosts_, host_) = (Arc::clone(hosts), host.to_owned());
    in_store(hosts, host, move || hosts_.store.read(|tx| host_config(tx, &hosts_.options, &host_))).await
}

/// Reads what the host must know now, if anything since `seen` concerns it; and up to which revision
/// this holds.
async fn look(
    hosts: &Arc<Hosts>,
    host: &str,
    sent: &Arc<HostConfig>,
    seen: u64,
) -> Result<(Option<HostConfig>, u64), ApiError> {
    let (hosts_, host_, sent) = (Arc::clone(hosts), host.to_owned(), Arc::clone(sent));
    let look = move || {
        hosts_.store.read(|tx| {
            if concerns(tx, &host_, &sent, seen)? {
                let now = host_config(tx, &hosts_.options, &host_)?;
                let revision = now.revision;
                Ok((Some(now), revision))
            } else {
                Ok((None, tx.revision()?))
            }
        })
    };
    in_store(hosts, host, look).await
}

/// Does blocking work on the store for a host, when it is its turn.
async fn in_store<T: Send + 'static>(
    hosts: &Hosts,
    host: &str,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // Closed it never is; and while a host waits for its turn, more changes come together.
    let _turn = hosts.turns.acquire().await;
    let result = tokio::task::spawn_blocking(work).await;
    let result = result.unwrap_or_else(|panic| Err(ApiError::internal(panic.to_string())));
    match &result {
        // Every host meets it, and the API tells.
        Err(error) if is_outage(error) => tracing::debug!(host, "the database cannot be used"),
        Err(error) => {
            let error = error as &dyn std::error::Error;
            tracing::error!(host, error, "failed to read what a host must know");
        }
        Ok(_) => {}
    }
    result
}

fn is_outage(error: &ApiError) -> bool {
    error.store_error().and_then(StoreError::outage).is_some()
}
