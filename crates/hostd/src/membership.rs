//! This host as a member of a cluster: how it joins, and the file with which it shows that it did.
//!
//! The file, [`FILE_NAME`] below `state_path`, holds the host's private key, its certificate and the cluster's
//! authority, as PEM, so that `curl` takes it as well. Nobody but its owner may read it. The key is made here and
//! never leaves.
//!
//! Whoever joins believes no server at first sight. The authority's certificate is fetched from the server, and
//! believed because its fingerprint is in the token; only then, over a connection that proves that authority, is the
//! token's secret sent.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use evergate_model::join::{JoinRequest, JoinToken, Membership, RenewRequest, SERVER_NAME};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::cache::{Durability, write_atomically};
use crate::shell::http::{self, Door};
use crate::timestamp;

/// Name of the file below `state_path`.
pub const FILE_NAME: &str = "membership.pem";

/// Name of the file below `state_path` with the authority alone, for clients of the API on this host.
pub const AUTHORITY_FILE_NAME: &str = "ca.pem";

/// A certificate with less than this left is renewed: a third of what the server gives.
const RENEWAL_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// What begins the line that says when the certificate ends, in seconds since the Unix epoch.
const EXPIRES: &str = "expires: ";

/// What a host shows, and what its server must show.
#[derive(Clone)]
pub struct Member {
    certificate: ClientCert,
    authorities: RootCerts,
    /// When the certificate ends, in milliseconds since the Unix epoch.
    expires_at_ms: u64,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member(until {})", timestamp::utc(self.expires_at_ms))
    }
}

impl Member {
    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or holds something else.
    pub fn load(state_path: &Path) -> anyhow::Result<Option<Self>> {
        let path = state_path.join(FILE_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
        };
        let member = Self::parse(&text).with_context(|| {
            format!("{} is damaged: restore it, or remove it and join anew with a token", path.display())
        })?;
        Ok(Some(member))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).context("there is no private key in it")?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .context("a certificate is cut")?;
        let [own, authorities @ ..] = &certificates[..] else { bail!("there is no certificate in it") };
        ensure!(!authorities.is_empty(), "the cluster's authority is not in it");
        let signing = rustls::crypto::ring::sign::any_supported_type(&key).context("the private key cannot be used")?;
        rustls::sign::CertifiedKey::new(vec![own.clone()], signing)
            .keys_match()
            .context("the private key is not the certificate's")?;
        let expires = text.lines().find_map(|line| line.strip_prefix(EXPIRES)?.trim().parse::<u64>().ok());
        let expires = expires.context("it does not say when it ends")?;
        let certificate = |der: &CertificateDer<'_>| Certificate::from_der(der).to_owned();
        let key = PrivateKey::from_pem(text.as_bytes()).context("there is no private key in it")?;
        Ok(Self {
            certificate: ClientCert::new_with_certs(&[certificate(own)], key),
            authorities: RootCerts::from(authorities.iter().map(certificate).collect::<Vec<_>>()),
            expires_at_ms: expires.saturating_mul(1000),
        })
    }

    /// How this host speaks TLS with its servers.
    pub fn tls(&self) -> TlsConfig {
        TlsConfig::builder().client_cert(Some(self.certificate.clone())).root_certs(self.authorities.clone()).build()
    }

    /// When the certificate ends, in milliseconds since the Unix epoch.
    pub const fn expires_at_ms(&self) -> u64 {
        self.expires_at_ms
    }

    /// Tells whether it is time for the next certificate.
    pub fn is_due(&self, now_ms: u64) -> bool {
        now_ms.saturating_add(RENEWAL_MS) >= self.expires_at_ms
    }
}

/// Reads a token from a file.
///
/// # Errors
///
/// When it cannot be read, or holds no token; the token is in no message.
pub fn read_token(path: &Path) -> anyhow::Result<JoinToken> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read the join token {}", path.display()))?;
    text.parse().with_context(|| format!("{} holds no join token", path.display()))
}

/// A key that a certificate is asked for. Who asks again, because the answer was lost, uses the same.
pub struct NewKey(KeyPair);

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub fn generate() -> anyhow::Result<Self> {
        Ok(Self(KeyPair::generate().context("failed to make a key")?))
    }

    fn public(&self) -> String {
        hex(self.0.der_bytes())
    }
}

/// Joins the cluster of the token by way of a server, and writes the file.
///
/// # Errors
///
/// Why it could not: each says what to do.
pub fn join(server: &str, host: &str, token: &JoinToken, key: &NewKey, state_path: &Path) -> anyhow::Result<Member> {
    let authority = find_authority(server, token)?;
    let authorities = RootCerts::from([Certificate::from_der(&authority).to_owned()]);
    let door = Door::new(server, host, TlsConfig::builder().root_certs(authorities).build());
    let asked = JoinRequest { token: token.id.clone(), secret: token.secret.clone(), public_key: key.public() };
    let answer = door.post("join", &serde_json::to_vec(&asked).context("failed to write the request")?)?;
    let membership: Membership = serde_json::from_str(&answer).context("the server's answer makes no sense")?;
    keep(state_path, host, &membership, key)
}

/// Fetches the authority that the token names. What else the server says is not believed.
fn find_authority(server: &str, token: &JoinToken) -> anyhow::Result<CertificateDer<'static>> {
    // Nothing is sent but the question, and nothing of the answer counts but what has the fingerprint.
    let anybody = TlsConfig::builder().disable_verification(true).build();
    let text = Door::new(server, "", anybody).get_authorities()?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).collect();
    let prints: Vec<String> = found.iter().map(|certificate| hex(&Sha256::digest(certificate))).collect();
    let which = prints.iter().position(|print| *print == token.authority);
    which.and_then(|which| found.into_iter().nth(which)).with_context(|| {
        let said = if prints.is_empty() { "no authority".to_owned() } else { prints.join(", ") };
        format!(
            "{server} is not of the cluster that the join token is of: the token's authority is {}, and the server says \
             {said}. Is server_url the right server's, or is somebody in between?",
            token.authority
        )
    })
}

/// Gets the next certificate, and writes the file.
///
/// # Errors
///
/// Why it could not.
pub fn renew(door: &Door, host: &str, state_path: &Path) -> anyhow::Result<Member> {
    let key = NewKey::generate()?;
    let asked = RenewRequest { public_key: key.public() };
    let answer = door.post("renew", &serde_json::to_vec(&asked).context("failed to write the request")?)?;
    let membership: Membership = serde_json::from_str(&answer).context("the server's answer makes no sense")?;
    keep(state_path, host, &membership, &key)
}

/// Writes the file, and takes it into use only as it was written.
fn keep(state_path: &Path, host: &str, membership: &Membership, key: &NewKey) -> anyhow::Result<Member> {
    let mut text = format!(
        "Membership of host {host} in an Evergate cluster: private key, certificate, and the cluster's authority.\n\
         Keep it private: who has it is this host. The host renews it by itself.\n{EXPIRES}{}\n",
        membership.expires_at
    );
    for part in [&key.0.serialize_pem(), &membership.certificate, &membership.authorities] {
        let _ = writeln!(text, "{}", part.trim_end());
    }
    let member = Member::parse(&text).context("the server gave a certificate that cannot be used")?;
    fs::create_dir_all(state_path).with_context(|| format!("failed to make {}", state_path.display()))?;
    let path = state_path.join(FILE_NAME);
    write_atomically(&path, text.as_bytes(), Durability::Disk)
        .with_context(|| format!("failed to write {}", path.display()))?;
    publish(&state_path.join(AUTHORITY_FILE_NAME), &membership.authorities)?;
    Ok(member)
}

/// Writes what everybody may read.
fn publish(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_atomically(path, text.as_bytes(), Durability::Disk)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Joins from the command line: by way of the first server that answers.
///
/// # Errors
///
/// What each server said, or why none was reached.
pub fn join_any(servers: &[String], host: &str, token: &JoinToken, state_path: &Path) -> anyhow::Result<Member> {
    let key = NewKey::generate()?;
    let mut failures = Vec::new();
    for server in servers {
        match join(server, host, token, &key, state_path) {
            Ok(member) => return Ok(member),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    bail!("host '{host}' did not join: {}", failures.join("; "))
}

/// The servers as hosts call them; see [`SERVER_NAME`].
pub(crate) fn url(host: &str, what: &str) -> String {
    format!("https://{SERVER_NAME}/evergate/v1/hosts/{}/{what}", http::escape(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    /// What a server would answer, for a key.
    fn membership(key: &NewKey) -> Membership {
        let authority_key = KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let certificate = rcgen::CertificateParams::default().signed_by(&key.0, &issuer).unwrap();
        Membership { certificate: certificate.pem(), authorities: authority.pem(), expires_at: 2_000_000_000 }
    }

    #[test]
    fn what_was_kept_is_loaded_and_private() {
        let folder = Folder::new("membership");
        assert!(Member::load(folder.path()).unwrap().is_none());
        let key = NewKey::generate().unwrap();
        keep(folder.path(), "h1", &membership(&key), &key).unwrap();
        let member = Member::load(folder.path()).unwrap().unwrap();
        assert_eq!(member.expires_at_ms(), 2_000_000_000_000);
        assert!(!member.is_due(2_000_000_000_000 - RENEWAL_MS - 1) && member.is_due(2_000_000_000_000 - RENEWAL_MS));
        let mode = |name| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(FILE_NAME), mode(AUTHORITY_FILE_NAME)), (0o600, 0o644));
        assert!(!format!("{member:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_certificate_for_another_key_is_not_taken() {
        let folder = Folder::new("foreign-membership");
        let (ours, theirs) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        let error = keep(folder.path(), "h1", &membership(&theirs), &ours).unwrap_err();
        assert!(format!("{error:#}").contains("not the certificate's"), "{error:#}");
        assert!(Member::load(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_damaged_is_named_with_a_way_out() {
        let folder = Folder::new("damaged-membership");
        let key = NewKey::generate().unwrap();
        keep(folder.path(), "h1", &membership(&key), &key).unwrap();
        let path = folder.path().join(FILE_NAME);
        let whole = fs::read_to_string(&path).unwrap();
        for text in ["", "nonsense", &whole.replace(EXPIRES, ""), &whole[..whole.len() / 2]] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Member::load(folder.path()).unwrap_err());
            assert!(error.contains(FILE_NAME) && error.contains("join anew"), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_token_is_named() {
        let folder = Folder::new("token");
        let path = folder.path().join("join-token");
        assert!(format!("{:#}", read_token(&path).unwrap_err()).contains("join-token"));
        fs::write(&path, "secret\n").unwrap();
        let error = format!("{:#}", read_token(&path).unwrap_err());
        assert!(error.contains("holds no join token") && !error.contains("secret"), "{error}");
    }
}
