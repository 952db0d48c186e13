//! Files in oslo.config's format, read into the settings of each daemon.
//!
//! Deployments have these files already (`neutron.conf`, `ml2_conf.ini`, `l3_agent.ini`,
//! `openvswitch_agent.ini`), so they are read as they stand; Evergate's own options live in the same
//! files, in section `[evergate]`. The steps, each a module:
//!
//! - [`token`]: text into sections and keys (pure);
//! - [`options`]: the table of every known option;
//! - [`value`]: what a text means as a value of an option's kind;
//! - [`config`]: which value counts, variables, complaints with file and line;
//! - `check`: what no single option shows;
//! - [`settings`]: the plain structs that the daemons use.
//!
//! An unknown option is a warning, since files outlive versions. An impossible value is an error, and
//! all errors are told at once. Nothing secret is ever in a complaint or in what `--check-config` prints.

#![warn(missing_docs)]

mod check;
pub mod config;
pub mod document;
pub mod finding;
pub mod keystone;
mod load;
pub mod options;
pub mod settings;
mod similar;
pub mod token;
pub mod value;

pub use config::{Config, Sources};
pub use finding::{Finding, Level, Refused};
pub use keystone::KeystoneSettings;
pub use options::Role;
pub use settings::{Database, HostSettings, Secret, ServerSettings};
