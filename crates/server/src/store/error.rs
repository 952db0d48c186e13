//! What can go wrong in the store, told apart by what a caller can do about it.

/// What a database said, whichever it is.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement failed: our own mistake, or a damaged database.
    #[error("database operation failed")]
    Database(#[source] Cause),
    /// A rule of the schema forbids the write.
    #[error("the database refused the write: {rule}")]
    Constraint {
        /// The rule, in the database's words.
        rule: String,
    },
    /// Another transaction was in the way: the same again may go well.
    #[error("the database gave way to another transaction")]
    Contended(#[source] Cause),
    /// The database cannot be used for now. Nothing was written, unless the outage says otherwise.
    #[error("the database cannot be used: {outage}")]
    Unavailable {
        /// What is the matter with it.
        outage: Outage,
        /// How it was noticed.
        #[source]
        cause: Cause,
    },
    /// A text cannot be stored: it has a character of code 0 in it.
    #[error("a text with a character of code 0 cannot be stored")]
    Unstorable,
    /// A stored value cannot be read back.
    #[error("unreadable value '{text}' in column {column} of an answer")]
    Corrupt {
        /// Position in the SELECT.
        column: usize,
        /// What was found.
        text: String,
    },
    /// The database was written by a later version of this program.
    #[error("database has schema version {found}, but this program knows only up to {known}: upgrade it")]
    NewerSchema {
        /// Version in the database.
        found: usize,
        /// Newest version known here.
        known: usize,
    },
    /// The database is not one that can be used.
    #[error("{0}")]
    Unsuitable(String),
}

/// Why a database cannot be used, as clients and operators are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outage {
    /// No room.
    #[error("its disk is full")]
    Full,
    /// It takes no writes.
    #[error("it is read-only")]
    ReadOnly,
    /// Nobody answers, or it just stopped or starts.
    #[error("it does not answer")]
    Gone,
    /// It answers too late.
    #[error("it takes too long to answer")]
    Slow,
    /// It has no room for another connection.
    #[error("it has too many connections")]
    Crowded,
    /// It does not let us in.
    #[error("it refuses this server's login")]
    Refused,
    /// Somebody else has it for himself.
    #[error("another program keeps it locked")]
    Locked,
    /// It has no memory.
    #[error("it has no memory left")]
    Exhausted,
    /// What is in it makes no sense.
    #[error("it is damaged")]
    Damaged,
    /// There is no file, or none that can be opened.
    #[error("its file cannot be opened")]
    Missing,
    /// Another file has its name.
    #[error("its file was replaced by another one; the server must be started again")]
    Replaced,
    /// It shows a certificate that it should not.
    #[error("its certificate is not one that sslmode and sslrootcert allow")]
    Untrusted,
    /// Its disk fails.
    #[error("its disk cannot be read or written")]
    BrokenDisk,
    /// The connection was lost while a write was being made final.
    #[error("the connection was lost during the commit, and whether the change was made is not known")]
    Uncertain,
}

impl StoreError {
    /// Tells whether the database as such is out of order.
    pub fn outage(&self) -> Option<Outage> {
        if let Self::Unavailable { outage, .. } = self { Some(*outage) } else { None }
    }

    pub(super) fn unavailable(outage: Outage, cause: impl Into<Cause>) -> Self {
        Self::Unavailable { outage, cause: cause.into() }
    }
}

/// An error of a transaction's closure that may stand for a lost race.
pub trait TxError: From<StoreError> {
    /// The store's error that it stands for.
    fn store_error(&self) -> Option<&StoreError>;

    /// Tells whether the schema refused a write, so that trying again may go well.
    fn is_constraint(&self) -> bool {
        matches!(self.store_error(), Some(StoreError::Constraint { .. }))
    }
}

impl TxError for StoreError {
    fn store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}
