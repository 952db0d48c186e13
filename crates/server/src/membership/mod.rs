//! Membership: which hosts and servers are of this cluster, and how each side knows.
//!
//! - [`authority`]: the certificate that all others come from;
//! - [`roll`]: join tokens and the hosts' certificates, in the store;
//! - [`members`]: the same in memory, kept fresh, for the question that every request of a host asks;
//! - [`manage`]: `evergate cluster`, the operator's side.
//!
//! A host's request is judged by the certificate that its connection was made with, and by nothing that it says. The
//! certificate proves a key; whose it is, and whether it still counts, is in the store. So a revoked host is out
//! within a second or two, on all servers.

pub mod authority;
pub mod manage;
mod members;
mod roll;

pub use authority::{Authority, AuthorityError};
pub use members::{Members, Standing, keep_fresh};
pub use roll::{Admission, NewToken, Refusal, Revoked, admit, check_token, make_token, renew};

use crate::store::{Row, StoreError, Tx};
use crate::values;

/// The host's certificate, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub host: String,
    /// When it was made, and when it ends, as the store keeps times.
    pub issued_at: String,
    /// See there.
    pub expires_at: String,
    /// Why it counts no more.
    pub revoked: Option<Revoked>,
}

impl Certificate {
    /// Tells what it is worth at a time, as the store keeps times.
    fn standing(&self, now: &str) -> Standing {
        let host = self.host.clone();
        match self.revoked {
            Some(why) => Standing::Revoked(host, why),
            None if self.expires_at.as_str() <= now => Standing::Expired(host, self.expires_at.clone()),
            None => Standing::Member(host),
        }
    }

    /// Reads the one with a fingerprint.
    fn find(tx: &Tx<'_>, fingerprint: &str) -> Result<Option<Self>, StoreError> {
        let sql =
            "SELECT fingerprint, host, issued_at, expires_at, revoked FROM host_certificates WHERE fingerprint = ?1";
        Ok(tx.query_opt(sql, &values![fingerprint], Self::read)?.map(|(_, found)| found))
    }

    /// Reads all, by fingerprint.
    fn all(tx: &Tx<'_>) -> Result<Vec<(String, Self)>, StoreError> {
        let sql = "SELECT fingerprint, host, issued_at, expires_at, revoked FROM host_certificates \
                   ORDER BY host, issued_at, fingerprint";
        tx.query(sql, &values![], Self::read)
    }

    fn read(row: &Row<'_>) -> Result<(String, Self), StoreError> {
        let revoked = row.opt_text(4)?.map(|word| Revoked::from_word(&word));
        let (host, issued_at, expires_at) = (row.text(1)?, row.text(2)?, row.text(3)?);
        Ok((row.text(0)?, Self { host, issued_at, expires_at, revoked }))
    }
}
