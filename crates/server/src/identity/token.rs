//! Tokens: self-contained, signed, so that validating one asks no database.
//!
//! `<claims>.<signature>`, each in base64url: the claims are JSON, the signature HMAC-SHA256 over their
//! spelling. What a token says about rights is only *who* and *where*; the roles are looked up when it
//! is used, so that a change of roles counts at once.
//!
//! Invariant: the key never leaves this module's types; it has no `Debug`.

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::base64url;

/// Length of the signing key, in bytes: as long as the hash, as RFC 2104 §3 recommends.
pub(super) const KEY_BYTES: usize = 32;

/// What a token says. Field names are short because the token travels with every request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The user's id.
    #[serde(rename = "u")]
    pub(super) user_id: String,
    /// The project's id, where the token is scoped to one.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub(super) project_id: Option<String>,
    /// The application credential's id, where one was shown.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(super) credential: Option<String>,
    /// How the user showed who they are: `password`, `token`.
    #[serde(rename = "m")]
    pub(super) methods: Vec<String>,
    /// When it was issued, in microseconds since 1970.
    #[serde(rename = "i")]
    pub(super) issued_us: i64,
    /// When it ends, in microseconds since 1970.
    #[serde(rename = "e")]
    pub(super) expires_us: i64,
    /// Its own audit id, and that of the first token it was made from.
    #[serde(rename = "a")]
    pub(super) audit_ids: Vec<String>,
}

/// Why a token is not accepted. Clients are told nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Not one of ours, or changed since.
    Forged,
    /// Too old.
    Expired,
    /// Given back, or taken away.
    Revoked,
    /// Its user or project is gone or disabled, or the user has no role there any more.
    Obsolete,
}

/// Signs and checks.
pub(super) struct Signer(Hmac<Sha256>);

impl Signer {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    pub(super) fn sign(&self, claims: &Claims) -> String {
        let json = serde_json::to_vec(claims).expect("claims are strings and numbers, which are always JSON");
        let claims = base64url::encode(&json);
        let mut mac = self.0.clone();
        mac.update(claims.as_bytes());
        let signature = base64url::encode(&mac.finalize().into_bytes());
        format!("{claims}.{signature}")
    }

    /// Checks signature and time; whether it was revoked is another question.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Invalid> {
        let (spelled, signature) = token.split_once('.').ok_or(Invalid::Forged)?;
        let signature = base64url::decode(signature).ok_or(Invalid::Forged)?;
        let mut mac = self.0.clone();
        mac.update(spelled.as_bytes());
        // In constant time, and before anything in the claims is looked at.
        mac.verify_slice(&signature).map_err(|_| Invalid::Forged)?;
        let json = base64url::decode(spelled).ok_or(Invalid::Forged)?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|_| Invalid::Forged)?;
        if claims.expires_us <= now.as_microsecond() { Err(Invalid::Expired) } else { Ok(claims) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            user_id: "u".into(),
            project_id: Some("p".into()),
            credential: None,
            methods: vec!["password".into()],
            issued_us: 1_000_000,
            expires_us: 2_000_000,
            audit_ids: vec!["a".into()],
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires() {
        let signer = Signer::new(&[7; KEY_BYTES]);
        let token = signer.sign(&claims());
        assert_eq!(signer.verify(&token, at(1)), Ok(claims()));
        assert_eq!(signer.verify(&token, at(2)), Err(Invalid::Expired));
    }

    #[test]
    fn no_letter_of_a_token_can_be_changed() {
        let signer = Signer::new(&[7; KEY_BYTES]);
        let token = signer.sign(&claims());
        for position in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(signer.verify(&changed, at(1)), Err(Invalid::Forged), "letter {position}");
        }
        for cut in ["", ".", &token[..token.len() - 1], &token[1..]] {
            assert_eq!(signer.verify(cut, at(1)), Err(Invalid::Forged));
        }
    }

    #[test]
    fn a_token_of_another_deployment_is_forged() {
        let token = Signer::new(&[8; KEY_BYTES]).sign(&claims());
        assert_eq!(Signer::new(&[7; KEY_BYTES]).verify(&token, at(1)), Err(Invalid::Forged));
    }
}
