//! A copy's sockets as the engine sees them: asked for, open, or to be tried again.

use std::time::{Duration, Instant};

use super::effect::SocketRequest;

/// First and longest pause before sockets that could not be opened are tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A copy's sockets.
#[derive(Debug, Default)]
pub(super) struct Access {
    wanted: Option<SocketRequest>,
    /// An answer is on its way.
    asked: bool,
    /// There are sockets, perhaps those of an earlier request.
    open: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    error: String,
    retry_at: Instant,
    pause: Duration,
}

/// How a request for sockets is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Not at all if they are there or asked for already.
    IfNew,
    /// They may be those of a namespace that was replaced: look.
    Check,
    /// A link under them has gone: all anew.
    Fresh,
}

impl Access {
    /// Wants these sockets; tells whether to ask for them.
    pub(super) fn want(&mut self, request: &SocketRequest, how: How) -> bool {
        let same = self.wanted.as_ref() == Some(request);
        if same && (self.asked || (self.open && how == How::IfNew)) {
            return false;
        }
        self.wanted = Some(request.clone());
        self.asked = true;
        true
    }

    /// Takes an answer; `None` if it is to an older request, else whether it is the first failure.
    pub(super) fn answered(&mut self, request: &SocketRequest, error: Option<&str>, now: Instant) -> Option<bool> {
        if self.wanted.as_ref() != Some(request) {
            return None;
        }
        self.asked = false;
        match error {
            None => {
                self.open = true;
                self.failure = None;
                Some(false)
            }
            Some(error) => {
                let first = self.failure.is_none();
                self.fail(error, now);
                Some(first)
            }
        }
    }

    /// They are of no use any more.
    pub(super) fn fail(&mut self, error: &str, now: Instant) {
        let pause = self.failure.as_ref().map_or(PAUSE.0, |failure| (failure.pause * 2).min(PAUSE.1));
        self.open = false;
        self.failure = Some(Failure { error: error.to_owned(), retry_at: now + pause, pause });
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Why they cannot be used, in words.
    pub(super) fn hindrance(&self) -> Option<String> {
        match &self.failure {
            _ if self.open => None,
            Some(failure) => Some(failure.error.clone()),
            None => Some("its sockets are being opened".to_owned()),
        }
    }

    /// When to try again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.failure.as_ref().filter(|_| !self.asked).map(|failure| failure.retry_at)
    }
}
