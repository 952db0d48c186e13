//! The API over a real database file, request by request, as a client sees it.
//!
//! `harness.rs` makes a server without a socket and the callers; each other file is about one thing.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

mod harness;
#[path = "../support/postgres.rs"]
mod support;

mod audit;
mod bad_input;
mod concurrency;
mod distributed;
mod durability;
mod filters;
mod floating_ips;
mod fuzz;
mod ha;
mod hostview;
mod incremental;
mod lists;
mod networks;
mod outages;
mod policy;
mod policy_names;
mod port_forwardings;
mod ports;
mod postgres;
mod postgres_outages;
mod quotas;
mod rbac;
mod roles;
mod routers;
mod security_groups;
mod shapes;
mod shortage;
mod speed;
mod subnet_pools;
mod views;
