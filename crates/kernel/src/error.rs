//! What went wrong, with which object.

use std::io;

/// A request that failed: what was attempted, and the cause as its source.
///
/// Its `Display` does not repeat the cause; print the chain (`anyhow`'s `{:#}`), or use [`Error::full`].
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
    #[error(transparent)]
    Kernel(#[from] Refusal),
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

/// The kernel's negative answer to a netlink request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Error number.
    pub errno: i32,
    /// The kernel's own words (extended acknowledgement) where it has some, then the error number's.
    pub text: String,
}

impl Refusal {
    pub(crate) fn new(errno: i32, words: Option<String>) -> Self {
        let meaning = errno_text(errno);
        let text = match words {
            Some(words) => format!("{words} ({meaning})"),
            None => meaning,
        };
        Self { errno, text }
    }
}

impl Error {
    pub(crate) fn new(action: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { action: action.into(), cause: cause.into() }
    }

    /// The whole chain in one line: `failed to …: <cause>`.
    pub fn full(&self) -> String {
        format!("{self}: {}", self.cause)
    }

    /// The error number, where the kernel or a system call gave one.
    pub fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Kernel(refusal) => Some(refusal.errno),
            Cause::Io(error) => error.raw_os_error(),
            Cause::NoLink(_) | Cause::NoNetns(_) | Cause::InTheWay(_) | Cause::Invalid(_) => None,
        }
    }
}

/// Words for an error number, without the number that the standard library appends.
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_object_and_the_kernels_words() {
        let refusal = Refusal::new(libc::EINVAL, Some("Invalid prefix for given prefix length".to_owned()));
        let error = Error::new("add route 10.0.0.1/24 in qrouter-1", refusal);
        assert_eq!(
            error.full(),
            "failed to add route 10.0.0.1/24 in qrouter-1: Invalid prefix for given prefix length (Invalid argument)"
        );
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert_eq!(Refusal::new(libc::ENODEV, None).text, "No such device");
    }
}
