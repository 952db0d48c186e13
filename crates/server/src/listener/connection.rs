//! An accepted connection, plain or of TLS, that is not held for nothing.
//!
//! A peer that does not take what is written to it for a while is let go: otherwise a host that was switched off, or
//! a client that stopped reading, would hold its connection and what is queued for it for as long as TCP is willing
//! to try. Nor does anybody hold a connection who asks for nothing whole: one that sends a header byte by byte, or
//! keeps a connection it does not use. Streams of hosts are never silent for so long. Until its first answer, and from a
//! few seconds after each, a connection is one of those that wait ([`waiting`](super::waiting)), and closed sooner where
//! these are too many.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::waiting::{Place, Waiting};
use super::{Limits, Patient};
use crate::tls::Shown;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// Whether TLS is spoken with it.
    pub(crate) is_secure: bool,
    /// Whether it called the server as hosts do.
    pub(crate) is_host: bool,
    /// The certificate that it showed.
    pub(crate) shown: Option<Shown>,
}

impl Connected<IncomingStream<'_, Patient>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Patient>) -> Self {
        stream.io().peer.clone()
    }
}

/// What carries the bytes.
pub(super) enum Wire {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// An accepted connection.
pub(crate) struct Connection {
    wire: Wire,
    peer: Peer,
    limits: Limits,
    /// Runs out when the write that waits now has waited for too long.
    unread: Option<Pin<Box<Sleep>>>,
    /// Runs out when nothing was written for so long that it is one that waits; and then, for too long.
    silent: Pin<Box<Sleep>>,
    /// Its place among those that wait, if it is one.
    place: Option<Place>,
    waiting: Arc<Waiting>,
}

impl Connection {
    pub(super) fn new(wire: Wire, peer: Peer, limits: Limits, place: Place) -> Self {
        let (silent, waiting) = (Box::pin(sleep(limits.silence)), Arc::clone(place.waiting()));
        Self { wire, peer, limits, unread: None, silent, place: Some(place), waiting }
    }

    pub(super) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Passes a write's outcome on; while it waits, watches the clock.
    fn timed<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.unread = None;
            return outcome;
        }
        let patience = self.limits.patience;
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(unread.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read what it is sent")))
    }
}

impl Connection {
    /// Notes that something was answered. A flush is nothing: it comes with every look at the connection.
    fn wrote(&mut self, outcome: &Poll<io::Result<usize>>) {
        if matches!(outcome, Poll::Ready(Ok(bytes)) if *bytes > 0) {
            self.place = None;
            let quiet_until = Instant::now() + self.quiet();
            self.silent.as_mut().reset(quiet_until);
        }
    }

    /// Ready when nothing was answered for too long, or while others need the place.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.place.as_mut().is_some_and(|place| place.poll_lost(cx).is_ready()) {
                return Poll::Ready(());
            }
            ready!(self.silent.as_mut().poll(cx));
            if self.place.is_some() {
                return Poll::Ready(());
            }
            self.place = Some(self.waiting.enter(self.peer.address.ip()));
            let left = self.limits.silence - self.quiet();
            self.silent.as_mut().reset(Instant::now() + left);
        }
    }

    fn quiet(&self) -> Duration {
        self.limits.quiet.min(self.limits.silence)
    }
}

impl Wire {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = self.wire.poll_read(cx, buf);
        // Looked at also when bytes came: few bytes at a time are no excuse.
        if self.poll_idle(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was asked for in time")));
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.wire.poll_write(cx, buf);
        self.wrote(&outcome);
        self.timed(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.wire.poll_write_vectored(cx, bufs);
        self.wrote(&outcome);
        self.timed(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.wire.poll_flush(cx);
        self.timed(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_shutdown(cx)
    }
}
