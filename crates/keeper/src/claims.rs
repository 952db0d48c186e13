//! How hosts agree where a router is: signed statements "I have this router, in this epoch".
//!
//! A host that becomes active sends a claim to every host that must know, again and again until each
//! has acknowledged it, and repeats it slowly while it stays active. The highest epoch wins. Epochs only
//! grow, so a datagram that is recorded and played back says nothing that is not known already.
//!
//! Before a backup takes over from one that merely fell silent, it asks ([`question`]).
//!
//! [`wire`] is the datagram, [`outbox`] decides when which claim is sent to whom, and [`book`] keeps
//! what is known.

pub mod book;
pub mod outbox;
pub mod question;
pub mod wire;

/// What is added where a datagram was refused for its version.
pub(crate) const OTHER_VERSION: &str = " (it speaks another version: is that host of another release?)";
