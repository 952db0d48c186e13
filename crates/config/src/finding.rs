//! What there is to say about configuration files: how grave, where, in words.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The file, as it was named.
    pub path: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// How grave a finding is; the gravest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The daemon does not start.
    Error,
    /// Deserves attention.
    Warning,
    /// Good to know.
    Info,
    /// For those who wonder why something has no effect.
    Debug,
}

/// One complaint or remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave.
    pub level: Level,
    /// Where, if a line of a file is to blame.
    pub at: Option<Location>,
    /// What. Never holds a secret.
    pub text: String,
}

impl Finding {
    pub(crate) fn new(level: Level, at: Option<Location>, text: String) -> Self {
        Self { level, at, text }
    }

    pub(crate) fn log(&self) {
        match self.level {
            Level::Error => tracing::error!("{self}"),
            Level::Warning => tracing::warn!("{self}"),
            Level::Info => tracing::info!("{self}"),
            Level::Debug => tracing::debug!("{self}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(at) => write!(f, "{at}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// The files cannot be used; printed, it lists every error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<Finding>);

impl Refused {
    /// Gives the errors alone.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().filter(|f| f.level == Level::Error)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        self.errors().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for Refused {}
