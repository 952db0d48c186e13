//! `evergate server`: Neutron's v2.0 API over a store, and the rules of routers that survive a host.
//!
//! Read [`store`] first (where intent lives and how a change gets a revision), then [`options`].

#![warn(missing_docs)]

pub mod context;
pub mod identity;
pub mod options;
pub mod random;
pub mod store;

mod private_file;
#[cfg(test)]
mod testing;
