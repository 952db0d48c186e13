//! The cluster's authority: a certificate and its key, made once, by which servers and hosts know each other.
//!
//! It lives in the store, so all servers beside one database have the same. A server makes a certificate of its own
//! from it at each start and keeps it in memory; a host's is made for the public key that the host sends.
//!
//! Certificates begin a day early, because clocks differ, and end at midnight UTC.

use std::sync::Arc;

use evergate_model::join::SERVER_NAME;
use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::identity::to_hex;
use crate::random;
use crate::store::{StoreError, Tx, TxError};

/// Name of the setting that keeps the authority, its key included.
const SETTING: &str = "cluster.authority";

/// Days that the authority lasts: it is what everybody has to trust.
const AUTHORITY_DAYS: i64 = 20 * 365;
/// Days that a host's certificate lasts. It is renewed when a third of them is left.
pub const HOST_DAYS: i64 = 90;
/// Days that a server's certificate lasts; a new one is made each day.
const SERVER_DAYS: i64 = 30;
/// Days that a certificate begins early.
const EARLY_DAYS: i64 = 1;

/// Length of an uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store failed.
    #[error("failed to read the cluster's authority")]
    Store(#[from] StoreError),
    /// What the store holds is none.
    #[error(
        "setting {SETTING} in the database is damaged: {0}; restore it from a backup, or remove the row: a new \
             authority is made then, and every host has to join again"
    )]
    Damaged(String),
    /// A certificate cannot be made.
    #[error("failed to make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key cannot be used.
    #[error("failed to use a key: {0}")]
    Key(#[from] rustls::Error),
    /// A host sent something else than a key.
    #[error("the public key is none: an uncompressed point of P-256 in hexadecimal is needed")]
    NoPublicKey,
}

impl TxError for AuthorityError {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

/// What is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    certificate: String,
    key: String,
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

/// A certificate that was made for a host.
#[derive(Clone, Debug)]
pub struct Issued {
    /// As PEM.
    pub pem: String,
    /// Its SHA-256, in hexadecimal.
    pub fingerprint: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl Authority {
    /// Reads the authority, or makes it. Of servers that start at the same time one makes it: writers take turns.
    ///
    /// # Errors
    ///
    /// When the store fails, or holds something else.
    pub fn open(tx: &Tx<'_>) -> Result<Self, AuthorityError> {
        if let Some(kept) = tx.setting(SETTING)? {
            return Self::from_kept(&kept);
        }
        let kept = make(tx.now())?;
        let text = serde_json::to_string(&kept).expect("texts are always JSON");
        tx.set_setting(SETTING, &text)?;
        tracing::info!("the cluster's authority is made");
        Self::from_kept(&text)
    }

    fn from_kept(text: &str) -> Result<Self, AuthorityError> {
        let damaged = |why: &dyn std::fmt::Display| AuthorityError::Damaged(why.to_string());
        let kept: Kept = serde_json::from_str(text).map_err(|_| damaged(&"it is not what was written there"))?;
        let certificate = CertificateDer::from_pem_slice(kept.certificate.as_bytes()).map_err(|e| damaged(&e))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(kept.key.as_bytes()).map_err(|e| damaged(&e))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(|e| damaged(&e))?;
        let issuer = Issuer::new(authority_params(&kept.name), key);
        Ok(Self { issuer, certificate, pem: kept.certificate })
    }

    /// SHA-256 of the certificate, in hexadecimal: as `openssl x509 -fingerprint -sha256` gives it, without colons.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// The certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Makes a server's certificate, good for these names and addresses, and for hosts.
    ///
    /// # Errors
    ///
    /// When a name cannot stand in a certificate.
    pub fn for_server(&self, names: &[String], now: Timestamp) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut all = vec![SERVER_NAME.to_owned()];
        all.extend(names.iter().filter(|name| *name != SERVER_NAME).cloned());
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name.push(DnType::CommonName, "evergate server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf(&mut params, now, SERVER_DAYS);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&key)?;
        // The authority's goes along, for whoever looks at what is served.
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }

    /// Makes a host's certificate for the key that it sent.
    ///
    /// # Errors
    ///
    /// When what it sent is no key.
    pub fn for_host(&self, host: &str, public_key: &str, now: Timestamp) -> Result<Issued, AuthorityError> {
        let key = HostKey::parse(public_key).ok_or(AuthorityError::NoPublicKey)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let last = leaf(&mut params, now, HOST_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            pem: certificate.pem(),
            fingerprint: fingerprint(certificate.der()),
            expires_at: last.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |midnight| midnight.timestamp()),
        })
    }
}

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    to_hex(&<[u8; 32]>::from(Sha256::digest(certificate)))
}

/// Makes an authority. Its name has something random in it: a deployment that is set up anew has another.
fn make(now: Timestamp) -> Result<Kept, AuthorityError> {
    let name = format!("Evergate cluster {}", to_hex(&random::bytes::<4>()));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = authority_params(&name);
    leaf(&mut params, now, AUTHORITY_DAYS);
    let certificate = params.self_signed(&key)?;
    Ok(Kept { name, certificate: certificate.pem(), key: key.serialize_pem() })
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Fills in times and number; answers the day on whose first moment the certificate ends.
fn leaf(params: &mut CertificateParams, now: Timestamp, days: i64) -> Date {
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |date: Date| rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8);
    let last = today.saturating_add(days.days());
    params.not_before = day(today.saturating_sub(EARLY_DAYS.days()));
    params.not_after = day(last);
    // The first bit is a sign.
    let mut number = random::bytes::<16>();
    number[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&number));
    params.use_authority_key_identifier_extension = true;
    last
}

/// A public key of a host. What it is worth shows in each handshake: nobody can use a certificate without its key.
struct HostKey([u8; POINT_BYTES]);

impl HostKey {
    fn parse(text: &str) -> Option<Self> {
        crate::identity::from_hex(text).filter(|point: &[u8; POINT_BYTES]| point[0] == 4).map(Self)
    }
}

impl PublicKeyData for HostKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file::tests::TempDir;
    use crate::store::Store;

    fn open(store: &Store) -> Result<Authority, AuthorityError> {
        store.write(Authority::open)
    }

    #[test]
    fn the_authority_is_made_once_whoever_is_first() {
        let dir = TempDir::new();
        let path = dir.path().join("db");
        let stores = [Store::open(&path).unwrap(), Store::open(&path).unwrap()];
        let prints = std::thread::scope(|scope| {
            let threads = stores.each_ref().map(|store| scope.spawn(|| open(store).unwrap().fingerprint()));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(prints[0], prints[1]);
        assert_eq!(prints[0].len(), 64);
    }

    #[test]
    fn what_a_host_sends_must_be_a_key() {
        let dir = TempDir::new();
        let authority = open(&Store::open(&dir.path().join("db")).unwrap()).unwrap();
        for nonsense in ["", "04", &"04".repeat(64), &"05".repeat(65)] {
            let refused = authority.for_host("h", nonsense, Timestamp::now());
            assert!(matches!(refused, Err(AuthorityError::NoPublicKey)), "{nonsense}");
        }
    }

    #[test]
    fn a_damaged_authority_is_named_and_its_key_is_not() {
        let dir = TempDir::new();
        let store = Store::open(&dir.path().join("db")).unwrap();
        open(&store).unwrap();
        let damage = |tx: &Tx<'_>| -> Result<String, StoreError> {
            let kept = tx.setting(SETTING)?.unwrap();
            tx.set_setting(SETTING, &kept.replace("BEGIN CERTIFICATE", "BEGIN NONSENSE"))?;
            Ok(kept)
        };
        let kept = store.write(damage).unwrap();
        let error = open(&store).unwrap_err().to_string();
        assert!(error.contains(SETTING) && error.contains("backup"), "{error}");
        let kept: Kept = serde_json::from_str(&kept).unwrap();
        assert!(!error.contains(kept.key.lines().nth(1).unwrap()));
    }
}
