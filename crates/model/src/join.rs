//! How a host becomes one of a cluster, and what it has afterwards.
//!
//! A cluster has an authority (CA). Every server shows a certificate of it under [`SERVER_NAME`], whatever its
//! addresses are; every host has a certificate of its own. A host gets its first one for a [`JoinToken`], which also
//! says by which authority the server must prove itself, so nothing is trusted at first sight:
//!
//! - `GET /evergate/v1/ca` answers the authorities as PEM; their fingerprint is in the token;
//! - `POST /evergate/v1/hosts/<host>/join` takes a [`JoinRequest`] and answers a [`Membership`];
//! - `POST /evergate/v1/hosts/<host>/renew` takes a [`RenewRequest`] from whoever has a certificate, and answers the
//!   next [`Membership`].
//!
//! Hosts make their keys themselves: no private key is ever sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name by which hosts call their servers, and in the certificates that prove it. It is no name in any DNS.
pub const SERVER_NAME: &str = "server.evergate.internal";

/// What a token begins with.
const PREFIX: &str = "evergate-join-1";

/// Hexadecimal digits of a token's id, secret and fingerprint.
const LENGTHS: [usize; 3] = [16, 64, 64];

/// What opens a cluster to a host, once or for a while. Its secret has no `Debug` or `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token, in lists and logs.
    pub id: String,
    /// What only its holder and the one that made it know, in hexadecimal.
    pub secret: String,
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub authority: String,
}

impl JoinToken {
    /// Writes the token out, secret included: for the one who asked for it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, self.secret, self.authority)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// A text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// It is something else.
    #[error("it does not begin with {PREFIX}: is this the whole line that 'evergate cluster token create' printed?")]
    Foreign,
    /// A part of it is missing, or not what it should be.
    #[error("it is damaged: a part of it is missing or changed; copy the whole line again")]
    Damaged,
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NoToken::Empty);
        }
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')).ok_or(NoToken::Foreign)?;
        let parts: Vec<&str> = rest.split('.').collect();
        match parts[..] {
            [id, secret, authority] if are_digits(parts.iter().copied().zip(LENGTHS)) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned(), authority: authority.to_owned() })
            }
            _ => Err(NoToken::Damaged),
        }
    }
}

/// Tells whether each text is so many hexadecimal digits, as they are written in tokens.
fn are_digits<'a>(mut texts: impl Iterator<Item = (&'a str, usize)>) -> bool {
    let is_digit = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    texts.all(|(text, length)| text.len() == length && text.bytes().all(is_digit))
}

/// Asks for a host's first certificate.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's id.
    pub token: String,
    /// The token's secret.
    pub secret: String,
    /// The host's public key: a point of the curve P-256, uncompressed, in hexadecimal.
    pub public_key: String,
}

impl JoinRequest {
    /// Tells whether the token's id and secret can be those of any token.
    pub fn may_be_of_a_token(&self) -> bool {
        are_digits([self.token.as_str(), self.secret.as_str()].into_iter().zip(LENGTHS))
    }
}

/// Asks for a host's next certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// As [`JoinRequest::public_key`].
    pub public_key: String,
}

/// What makes a host one of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The host's certificate, as PEM.
    pub certificate: String,
    /// The authorities that a server may prove itself by, as PEM.
    pub authorities: String,
    /// When the certificate ends, in seconds since the Unix epoch.
    pub expires_at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken { id: "0123456789abcdef".into(), secret: "5e".repeat(32), authority: "ca".repeat(32) }
    }

    #[test]
    fn a_token_reads_back_as_it_was_revealed() {
        assert_eq!(format!(" {}\n", token().reveal()).parse(), Ok(token()));
    }

    #[test]
    fn what_is_no_token_is_told_apart() {
        let revealed = token().reveal();
        let read = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(read(" \n"), NoToken::Empty);
        assert_eq!(read("letmein"), NoToken::Foreign);
        assert_eq!(read(&revealed[..revealed.len() - 1]), NoToken::Damaged);
        assert_eq!(read(&revealed.replace("5e", "5x")), NoToken::Damaged);
        assert_eq!(read(&format!("{revealed}.00")), NoToken::Damaged);
    }

    #[test]
    fn a_request_without_a_token_s_digits_is_told_from_one_with_them() {
        let asked = |token: &str, secret: &str| {
            JoinRequest { token: token.into(), secret: secret.into(), public_key: String::new() }.may_be_of_a_token()
        };
        let JoinToken { id, secret, .. } = token();
        assert!(asked(&id, &secret));
        for (id, secret) in
            [("", &*secret), (&id[1..], &secret), (&id, ""), (&id, &secret.replace('5', "G")), (&secret, &id)]
        {
            assert!(!asked(id, secret), "{id} {secret}");
        }
    }

    #[test]
    fn a_secret_is_not_printed_by_accident() {
        assert!(!format!("{:?}", token()).contains(&token().secret));
    }
}
