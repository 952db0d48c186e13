//! Down: a snapshot, then what changes, for as long as the host listens.
//!
//! A task per stream waits until the host's view is another ([`publisher`](super::publisher)), and sends how it
//! differs from what it sent last. It looks only when there is room for a line: a slow host gets fewer and larger
//! changes, and never a queue. One that reads nothing at all is let go. Nothing here asks the database.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use evergate_model::stream::Downstream;
use http_body::Frame;
use tokio::sync::mpsc::{Permit, Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout};

use super::admission::Member;
use super::publisher::{Failed, Followed};
use super::{Hosts, outage_refusal, refusal};
use crate::hostview::{self, HostView, Line};
use crate::membership::Standing;

/// A view of more parts than this is compared and put into words on a thread of its own: it takes too long for one
/// that serves connections.
const LARGE: usize = 256;

pub(super) async fn stream(
    State(hosts): State<Arc<Hosts>>,
    Extension(member): Extension<Member>,
    RawQuery(query): RawQuery,
) -> Response {
    let host = member.host.clone();
    // The first read tells whether there is anything to stream, while a status can still be answered.
    let followed = match hosts.publisher().await.follow(&host).await {
        Ok(followed) => followed,
        Err(Failed::Outage(outage)) => return outage_refusal(outage),
        Err(Failed::Otherwise) => {
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot use its store");
        }
    };
    let (sender, lines) = channel(1);
    // A host of an earlier version would not understand them.
    let wants_letters = query.is_some_and(|query| query.split('&').any(|pair| pair == "letters=true"));
    let letters = wants_letters.then(|| hosts.office.open_box(&host));
    tokio::spawn(follow(hosts, member, followed, sender));
    let mut response = Response::new(Body::new(Lines { lines, rest: VecDeque::new(), letters }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The lines of a stream, as a body. Letters do not wait for what is read from the database, nor for the line before,
/// unless that is on its way in pieces.
struct Lines {
    lines: Receiver<Line>,
    /// Of the line that is being sent.
    rest: VecDeque<Bytes>,
    letters: Option<Receiver<Bytes>>,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.rest.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let letter = self.letters.as_mut().map(|letters| letters.poll_recv(cx));
            if let Some(Poll::Ready(Some(letter))) = letter {
                return Poll::Ready(Some(Ok(Frame::data(letter))));
            }
            match ready!(self.lines.poll_recv(cx)) {
                Some(line) => self.rest = line.into(),
                None => return Poll::Ready(None),
            }
        }
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

async fn follow(hosts: Arc<Hosts>, member: Member, followed: Followed, sender: Sender<Line>) {
    let host = &member.host;
    tracing::info!(host, revision = followed.revision, "host follows");
    let end = follow_until_end(&hosts, &member, followed, &sender).await;
    tracing::info!(host, reason = %end, "host follows no longer");
}

async fn follow_until_end(hosts: &Arc<Hosts>, member: &Member, followed: Followed, sender: &Sender<Line>) -> End {
    let host = member.host.as_str();
    let result: Result<Infallible, End> = async {
        let Followed { view: mut sent, revision, mut views } = followed;
        let mut stopping = hosts.stopping.clone();
        let mut told = revision;
        let first = Arc::clone(&sent);
        let snapshot = in_words(hosts, usize::MAX, move || hostview::snapshot(&first, revision)).await?;
        room(hosts, sender).await?.send(snapshot);
        let mut ping_at = Instant::now() + hosts.pace.ping;
        loop {
            let newer = tokio::select! {
                changed = views.changed() => changed.map(|()| true).map_err(|_| End::Unreadable)?,
                () = sleep_until(ping_at) => false,
                () = sender.closed() => return Err(End::Gone),
                _ = stopping.wait_for(|stop| *stop) => return Err(End::Stopping),
            };
            if !matches!(hosts.members.standing(&member.fingerprint), Standing::Member(_)) {
                return Err(End::Dismissed);
            }
            let room = room(hosts, sender).await?;
            if newer {
                let now = Arc::clone(&views.borrow_and_update());
                let (old, new) = (std::mem::replace(&mut sent, Arc::clone(&now)), now);
                let (size, revision) = (new.size(), new.revision());
                if let Some(line) = in_words(hosts, size, move || change(&old, &new)).await? {
                    tracing::debug!(host, revision, "host is told of a change");
                    room.send(line);
                    told = revision;
                    ping_at = Instant::now() + hosts.pace.ping;
                    continue;
                }
            }
            // Also when much changes that this host need not know.
            if Instant::now() >= ping_at {
                room.send(vec![hostview::say(&Downstream::Ping { revision: told })]);
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

fn change(old: &HostView, new: &HostView) -> Option<Line> {
    hostview::change(old, new)
}

/// Waits until the host has taken the line before.
async fn room<'a>(hosts: &Hosts, sender: &'a Sender<Line>) -> Result<Permit<'a, Line>, End> {
    match timeout(hosts.pace.patience, sender.reserve()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Stalled),
    }
}

/// Puts a view of some size into words: here and now, or when it is its turn.
async fn in_words<T: Send + 'static>(
    hosts: &Hosts,
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, End> {
    if size <= LARGE {
        return Ok(work());
    }
    // Closed it never is; and while a host waits for its turn, more changes come together.
    let _turn = hosts.turns.acquire().await;
    tokio::task::spawn_blocking(work).await.map_err(|_| End::Unreadable)
}
