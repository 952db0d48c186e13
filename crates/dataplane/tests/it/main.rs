//! Tests of the data plane as a whole, on a small cloud ([`cloud`]) that all of them share.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod cloud;
mod compile;
mod diff;
mod dvr;
mod keepalived;
mod plans;
mod properties;
