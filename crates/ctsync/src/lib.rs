//! Replication of tracked connections between gateways, without I/O or clock.
//!
//! The active copy of a router tells each standby what its connection tracking holds; a standby keeps that
//! in its own kernel, so that a takeover has nothing left to do. [`Engine`] is a host's side of that, for all
//! its routers and towards all its peer hosts. Read it first.
//!
//! **Registers, not a log.** What is told is the present value of a register, one per flow (and a few per
//! router). A register that changed is marked for each standby; a message takes the marks of what it carries
//! away; if it is lost, the marks come back, and the next message carries what is true by then. So a burst
//! of changes of one flow costs one message, a standby that was away needs nothing that is kept for it
//! beyond the marks, and everything that can be lost is repaired in the same way.
//!
//! **Order.** A receiver takes a message only if it is newer than all that it has taken, and says which it
//! took. So an older value never replaces a newer one, and the sender knows at once that what was overtaken
//! on the way is lost.
//!
//! **Standbys ask.** A host subscribes at every host that has another copy of a router it stands by for;
//! whoever is active, now or later, streams. A stream begins with everything, in slices; the first
//! [`message::Record::Check`] says that all was told, and later ones let the standby compare.

#![warn(missing_docs)]

mod engine;
mod link;
pub mod message;
mod mirror;
mod subscriber;
mod table;

pub use engine::{Engine, Limits, Role, RouterStats, Wanted};
pub use mirror::Change;
pub use subscriber::{LAG_BOUNDS_MS, Lags};
pub use table::{is_replicated, is_valuable};
