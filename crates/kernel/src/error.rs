//! What went wrong, with which object.

use std::io;

/// A request that failed: what was attempted, and the cause as its source.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct Error {
    /// Operation and object, such as `add address 10.0.0.1/24 to qr-1f2e3d4c in qrouter-…`.
    pub action: String,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused it.
    #[error("{text}")]
    Kernel {
        /// Error number.
        errno: i32,
        /// The kernel's own words (extended acknowledgement), or the error number's.
        text: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no link of this name.
    #[error("there is no link {0}")]
    NoLink(String),
    /// There is no namespace of this name.
    #[error("there is no network namespace {0}")]
    NoNetns(String),
    /// Something that Evergate did not make, or that differs, has the name.
    #[error("{0}")]
    InTheWay(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The whole chain in one line: `failed to …: <cause>`.
    pub fn full(&self) -> String {
        format!("{self}: {}", self.cause)
    }
}
