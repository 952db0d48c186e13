//! Who is at the door: what a host may ask, by the certificate that its connection was made with.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::{Hosts, refusal};
use crate::listener::Peer;
use crate::membership::{Revoked, Standing};
use crate::seldom::Seldom;
use crate::tls::Fault;

/// A host that is a member, by the certificate that it came with.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) host: String,
    pub(super) fingerprint: String,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// It came without TLS.
    Plain,
    /// No certificate was shown.
    NoCertificate,
    /// The certificate is of another authority, or of none.
    Foreign,
    /// It has ended.
    Expired,
    /// It has not begun.
    NotYet,
    /// It was revoked, or its host has another by now.
    Revoked,
    /// The host asks for what is another's.
    OtherHost,
    /// A join token is no good.
    Token,
}

impl Discard {
    const ALL: [Self; 8] = [
        Self::Plain,
        Self::NoCertificate,
        Self::Foreign,
        Self::Expired,
        Self::NotYet,
        Self::Revoked,
        Self::OtherHost,
        Self::Token,
    ];

    /// Names the counter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::NoCertificate => "no_certificate",
            Self::Foreign => "foreign_certificate",
            Self::Expired => "expired_certificate",
            Self::NotYet => "certificate_not_yet_valid",
            Self::Revoked => "revoked_certificate",
            Self::OtherHost => "other_host",
            Self::Token => "join_token",
        }
    }
}

/// How many requests were refused, by reason, which is what each line in the log says; and who was told of lately.
#[derive(Debug, Default)]
pub(super) struct Discards {
    counts: [AtomicU64; Discard::ALL.len()],
    told: Seldom<(Discard, IpAddr)>,
}

impl Discards {
    /// Counts one, writes it to the log unless that was done lately, and makes the answer.
    pub(super) fn refuse(&self, peer: &Peer, path: &str, why: Discard, status: StatusCode, text: &str) -> Response {
        let count = self.counts.get(why as usize).map_or(0, |count| count.fetch_add(1, Ordering::Relaxed) + 1);
        if self.told.speak((why, peer.address.ip())).is_some() {
            tracing::warn!(peer = %peer.address, path, reason = why.as_str(), count, "host refused: {text}");
        }
        refusal(status, text)
    }

    /// The counter of that name.
    #[cfg(test)]
    pub(super) fn count(&self, name: &str) -> u64 {
        let at = Discard::ALL.iter().position(|why| why.as_str() == name).expect("there is such a counter");
        self.counts.get(at).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

const JOIN: &str = "put a join token of its name into the host's join_token_file (on the controller: evergate cluster \
                    token create --host NAME)";

/// Lets a member do what is its own.
pub(super) async fn admit(
    State(hosts): State<Arc<Hosts>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(host): Path<String>,
    mut request: Request,
    next: Next,
) -> Response {
    match judge(&hosts, &peer, &host).await {
        Ok(member) => {
            request.extensions_mut().insert(member);
            next.run(request).await
        }
        Err((why, status, text)) => hosts.discards.refuse(&peer, request.uri().path(), why, status, &text),
    }
}

/// Why not, and how that is answered.
pub(super) type Refused = (Discard, StatusCode, String);

fn refuse<T>(why: Discard, text: fmt::Arguments<'_>) -> Result<T, Refused> {
    Err((why, StatusCode::UNAUTHORIZED, text.to_string()))
}

async fn judge(hosts: &Arc<Hosts>, peer: &Peer, host: &str) -> Result<Member, Refused> {
    if !peer.is_secure {
        let text = "hosts are served over TLS alone, and each has a certificate of its own: the host needs this \
                    version of evergate, and a join token";
        return Err((Discard::Plain, StatusCode::UPGRADE_REQUIRED, text.to_owned()));
    }
    let Some(shown) = &peer.shown else {
        return refuse(Discard::NoCertificate, format_args!("no host's certificate was shown: {JOIN}"));
    };
    match shown.fault {
        None => {}
        Some(Fault::Expired) => {
            return refuse(Discard::Expired, format_args!("this host's certificate has expired: {JOIN}"));
        }
        Some(Fault::NotYet) => {
            let text =
                format_args!("this host's certificate has not begun: compare the server's clock with the host's");
            return refuse(Discard::NotYet, text);
        }
        Some(Fault::Foreign) => {
            let text = format_args!(
                "this host's certificate is of another cluster, or of this one before its database was made anew: {JOIN}"
            );
            return refuse(Discard::Foreign, text);
        }
    }
    weigh(standing(hosts, &shown.fingerprint).await, host)?;
    Ok(Member { host: host.to_owned(), fingerprint: shown.fingerprint.clone() })
}

/// Lets a host have what is its own, by what its certificate is worth.
pub(super) fn weigh(standing: Standing, host: &str) -> Result<(), Refused> {
    match standing {
        Standing::Member(name) if name == host => Ok(()),
        Standing::Member(name) => {
            let text = format!(
                "this is the certificate of host '{name}', and '{host}' is another: a host is told and reports what is its own"
            );
            Err((Discard::OtherHost, StatusCode::FORBIDDEN, text))
        }
        Standing::Revoked(name, Revoked::Revoked) => refuse(
            Discard::Revoked,
            format_args!("host '{name}' was revoked by an operator; to let it in again, {JOIN}"),
        ),
        Standing::Revoked(name, Revoked::Replaced) => {
            let text = format_args!(
                "a newer machine or certificate has taken the place of this host '{name}'; to take it back, {JOIN}"
            );
            refuse(Discard::Revoked, text)
        }
        Standing::Expired(_, when) => {
            refuse(Discard::Expired, format_args!("this host's certificate expired at {when}: {JOIN}"))
        }
        Standing::Unknown => {
            refuse(Discard::Foreign, format_args!("this host's certificate is not known here: {JOIN}"))
        }
    }
}

/// What a certificate is worth; one that is not known may be new, made by another server.
async fn standing(hosts: &Arc<Hosts>, fingerprint: &str) -> Standing {
    let standing = hosts.members.standing(fingerprint);
    if standing != Standing::Unknown {
        return standing;
    }
    let members = Arc::clone(&hosts.members);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || members.refresh()).await {
        tracing::debug!(%error, "the hosts' certificates could not be read");
    }
    hosts.members.standing(fingerprint)
}
