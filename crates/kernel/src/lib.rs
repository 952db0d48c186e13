//! The only privileged code.

#![warn(missing_docs)]
#![allow(unsafe_code, reason = "this crate is where the kernel is spoken to")]

pub mod error;
pub mod kernel;
pub mod rt;
pub mod sys;
pub mod watch;

pub use error::{Cause, Error};
pub use kernel::Kernel;
pub use watch::{HostWatch, LinkEvent};
