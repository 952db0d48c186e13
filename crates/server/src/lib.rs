//! `evergate server`: Neutron's v2.0 API over a store, and the rules of routers that survive a host.
//!
//! Read [`store`] first (where intent lives and how a change gets a revision), then [`options`].

#![warn(missing_docs)]

pub mod api;
pub mod attributes;
pub mod cli;
pub mod context;
pub mod dvr;
pub mod error;
pub mod ha;
pub mod hosts;
pub mod hostview;
pub mod identity;
pub mod ipam;
pub mod keystone;
pub mod membership;
pub mod objects;
pub mod openapi;
pub mod options;
pub mod placement;
pub mod policy;
pub mod prefixes;
pub mod random;
pub mod resources;
pub mod store;
pub mod tls;

mod base_url;
mod listener;
mod private_file;
mod seldom;
mod shares;
#[cfg(test)]
mod testing;
