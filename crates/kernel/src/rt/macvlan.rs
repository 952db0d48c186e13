//! Devices that carry a virtual router's own Ethernet address (RFC 9568 §7.3), beside the link that it is on.
//!
//! Made in mode *bridge*: in the mode *private*, which others use, advertisements of another active router (they
//! come from the same Ethernet address) would be handed to the macvlan and be missing on the link itself, where
//! they are listened for.

use evergate_dataplane::op::LinkChange;
use evergate_model::Mac;

use super::BatchSocket;
use crate::error::{Cause, Error};
use crate::route::link;

/// A link as it is found by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLink {
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Kind as in `ip -d link`; empty for hardware.
    pub kind: String,
    /// The link that it is on, or the other end of a pair.
    pub base: Option<u32>,
    /// Alias.
    pub alias: Option<String>,
}

/// Looks a link up.
pub fn find_link(socket: &mut BatchSocket, name: &str) -> Result<Option<FoundLink>, Error> {
    let answer = match socket.0.get(link::get(name)) {
        Ok(answer) => answer,
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENODEV => None,
        Err(cause) => return Err(Error::new(format!("look up link {name}"), cause)),
    };
    Ok(answer.as_deref().and_then(link::read).map(|link| FoundLink {
        ifindex: link.index,
        mac: link.mac.unwrap_or(Mac::ZERO),
        kind: link.kind,
        base: link.peer_index,
        alias: link.alias,
    }))
}

/// Makes a macvlan, down, marked with an alias; returns its index.
pub fn make_macvlan(socket: &mut BatchSocket, name: &str, base: u32, mac: Mac, alias: &str) -> Result<u32, Error> {
    let failed = |cause: Cause| Error::new(format!("make the macvlan {name}"), cause);
    exchange(socket, link::create_macvlan(name, base, mac).map_err(failed)?).map_err(failed)?;
    let found = find_link(socket, name)?;
    let found = found.ok_or_else(|| failed(Cause::Invalid("it went away as soon as it was made".to_owned())))?;
    let mark = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
    for message in link::set(link::Target::Index(found.ifindex), &mark, None).map_err(failed)? {
        exchange(socket, message).map_err(failed)?;
    }
    Ok(found.ifindex)
}

/// Removes a link.
pub fn remove_link(socket: &mut BatchSocket, ifindex: u32) -> Result<(), Error> {
    let message = link::delete(link::Target::Index(ifindex));
    match exchange(socket, message) {
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENODEV => Ok(()),
        result => result.map_err(|cause| Error::new(format!("remove link {ifindex}"), cause)),
    }
}

/// The message that sets a link up or down.
pub fn link_state_message(ifindex: u32, up: bool) -> Vec<u8> {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    let messages = link::set(link::Target::Index(ifindex), &change, None);
    messages.ok().and_then(|messages| messages.into_iter().next()).expect("a change of state is one message")
}

fn exchange(socket: &mut BatchSocket, message: Vec<u8>) -> Result<(), Cause> {
    socket.0.exchange(&mut [message]).pop().expect("there is an answer to each message sent")
}
