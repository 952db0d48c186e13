//! Many hosts on one machine: the deployment that newcomers try, operators break and tests judge.
//!
//! Every host of a lab is a network namespace with its own processes and files, joined to the others
//! by switches, and runs the same `evergate server` or `evergate host` that production runs. The lab is
//! only the surroundings: racks, wires, power, the provider's router, and instances.
//!
//! Read [`spec`] for the topology, [`machine`] for what a node is, [`fault`] for what can be broken,
//! [`demo`] for the walk-through. A [`Lab`] value is a handle to what stands on the machine: dropping
//! it ends nothing, and any later command finds the lab again by its name.
//!
//! Owned: named network namespaces that start with `eglab-<name>-`, the processes inside them, and the
//! lab's folder. Nothing else of the machine is changed: no interface, address, route or rule in its
//! own network namespace, no mount in its own mount namespace but those of the named namespaces.

#![warn(missing_docs)]

mod api;
pub mod cli;
pub mod client;
pub mod demo;
pub mod fault;
mod files;
pub mod flows;
pub mod instance;
mod lab;
pub mod machine;
mod narrator;
pub mod probe;
pub mod procs;
pub mod router;
pub mod spec;
mod status;
mod temporary;
mod tools;
mod web;

pub use api::Answer;
pub use fault::Fault;
pub use files::AGENT_DOWN_TIME_S;
pub use lab::{ADMIN_CLOUD, DEFAULT_NAME, Lab, MEMBER_CLOUD, folder_of};
pub use machine::Machine;
pub use spec::{Link, Node, Profile, Spec, Switch};
pub use temporary::{Temporary, Traces};
pub use tools::wait_for;
