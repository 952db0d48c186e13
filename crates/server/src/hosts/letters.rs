//! Letters: what a host's keeper has to say to another's when the two may not hear each other.
//!
//! A letter goes into the addressee's open stream at once, or is lost; nothing is kept, and no database is asked, so
//! letters pass while it is away. Its content is sealed by the hosts' own key, which is of no use to the server:
//! it carries, and cannot answer for anybody. A host whose stream another server has is reached through that one
//! ([`Store::carry`](crate::store::Store::carry)).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use evergate_model::stream::{Downstream, Letter};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Hosts, refusal};
use crate::hostview::say;

/// Letters that may wait until a host reads them.
const MOST_WAITING: usize = 64;

/// Who can be reached from this server.
#[derive(Debug, Default)]
pub(super) struct Office(Mutex<HashMap<String, Host>>);

/// A host that has reported.
#[derive(Debug, Default)]
struct Host {
    /// Its tunnel address, as it said last.
    address: Option<IpAddr>,
    /// Its open stream, if that is here.
    box_: Option<Sender<Bytes>>,
}

/// A letter on its way to another server.
#[derive(Debug, Serialize, Deserialize)]
struct Carried {
    from: IpAddr,
    letter: Letter,
}

impl Office {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a host's tunnel address.
    pub(super) fn learn(&self, host: &str, address: Option<IpAddr>) {
        self.lock().entry(host.to_owned()).or_default().address = address;
    }

    /// A host's stream opens; it ends what an earlier one of the same host gets.
    pub(super) fn open_box(&self, host: &str) -> Receiver<Bytes> {
        let (sender, receiver) = channel(MOST_WAITING);
        self.lock().entry(host.to_owned()).or_default().box_ = Some(sender);
        receiver
    }

    fn address_of(&self, host: &str) -> Option<IpAddr> {
        self.lock().get(host)?.address
    }

    /// Puts a letter into its addressee's stream; tells whether there is one here that takes it.
    fn hand_out(&self, from: IpAddr, letter: &Letter) -> bool {
        let mut hosts = self.lock();
        let here = hosts.values_mut().find(|host| host.address == Some(letter.peer) && host.box_.is_some());
        let Some(host) = here else { return false };
        let said = Downstream::Letter(Letter { peer: from, datagram: letter.datagram.clone() });
        let given = host.box_.as_ref().is_some_and(|sender| sender.try_send(say(&said)).is_ok());
        if host.box_.as_ref().is_some_and(Sender::is_closed) {
            host.box_ = None;
        }
        given
    }

    /// Takes what another server carries, for a host whose stream may be here.
    pub(super) fn hand_out_carried(&self, text: &str) {
        match serde_json::from_str::<Carried>(text) {
            Ok(Carried { from, letter }) => drop(self.hand_out(from, &letter)),
            Err(error) => tracing::debug!(%error, "another server carries what is no letter"),
        }
    }
}

pub(super) async fn take(State(hosts): State<Arc<Hosts>>, Path(host): Path<String>, body: Bytes) -> Response {
    let letters: Vec<Letter> = match serde_json::from_slice(&body) {
        Ok(letters) => letters,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("these are no letters: {error}")),
    };
    if letters.len() > Letter::MOST || !letters.iter().all(Letter::is_sound) {
        return refusal(StatusCode::BAD_REQUEST, "too many letters, or one that is too long or not in hexadecimal");
    }
    let Some(from) = hosts.office.address_of(&host) else {
        return refusal(StatusCode::CONFLICT, "this host has not reported its tunnel address");
    };
    for letter in letters {
        if !hosts.office.hand_out(from, &letter) {
            let text = serde_json::to_string(&Carried { from, letter }).expect("addresses and texts are always JSON");
            hosts.store.carry(text);
        }
    }
    StatusCode::NO_CONTENT.into_response()
}
