//! Files in oslo.config's format, read into the settings of each daemon.

#![warn(missing_docs)]

pub mod settings;

pub use settings::{HostSettings, Secret, ServerSettings};
