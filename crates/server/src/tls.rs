//! TLS on the listening socket: which certificate a connection is shown, and what is asked of the other side.
//!
//! There is one port. Hosts call the server [`SERVER_NAME`](evergate_model::join::SERVER_NAME); whoever does is shown a certificate of the cluster's
//! authority and asked for its own. Everybody else is a client of the API: it is shown the operator's certificate
//! (`[ssl] cert_file`) if there is one, and otherwise one of the cluster's authority for the name or address that it
//! came by.
//!
//! A host's certificate that is no good does not end the handshake. The key behind it is proved all the same, and
//! what is wrong with the certificate is answered in words ([`Shown`]): an alert tells nobody what to do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use evergate_config::settings::TlsSettings;
use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::membership::authority::fingerprint;
use crate::membership::{AuthorityError, Members};
use crate::private_file::{Stamp, stamp};

/// How long a certificate of our own is shown before the next is made.
const MADE_ANEW: Duration = Duration::from_secs(24 * 60 * 60);
/// Addresses of this machine that certificates are kept for.
const MOST_ADDRESSES: usize = 256;
/// Pause between two looks at the operator's files.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// Spoken inside.
const PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("failed to read {option} {path}: {why}")]
    File {
        /// The option that names it.
        option: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        why: String,
    },
    /// A certificate and a key do not make a pair.
    #[error("cert_file {certificate} and key_file {key} cannot be used together: {why}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// Why not.
        why: rustls::Error,
    },
    /// Something else of TLS.
    #[error("failed to prepare TLS: {0}")]
    Other(String),
    /// No certificate of our own can be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// A certificate that a client showed, and whose key it proved to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// What is wrong with it, apart from what the store says.
    pub fault: Option<Fault>,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has ended.
    Expired,
    /// It has not begun, by our clock.
    NotYet,
    /// Another authority made it.
    Foreign,
}

impl Fault {
    fn of(error: &rustls::Error) -> Self {
        use CertificateError as C;
        let rustls::Error::InvalidCertificate(error) = error else { return Self::Foreign };
        if matches!(error, C::Expired | C::ExpiredContext { .. }) {
            Self::Expired
        } else if matches!(error, C::NotValidYet | C::NotValidYetContext { .. }) {
            Self::NotYet
        } else {
            Self::Foreign
        }
    }
}

/// TLS of a server.
pub struct Tls {
    members: Arc<Members>,
    provider: Arc<CryptoProvider>,
    /// Names that certificates of our own are good for, besides the address that the client came to.
    names: Vec<String>,
    settings: TlsSettings,
    files: RwLock<Files>,
    /// By address of this machine.
    own: Mutex<HashMap<IpAddr, Own>>,
    judge: Arc<dyn ClientCertVerifier>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The operator's files, each as it was when it last made sense. No connection reads them: what an operator does to
/// them is no reason to keep anybody out.
#[derive(Clone)]
struct Files {
    /// What clients of the API are asked for.
    asked: Arc<dyn ClientCertVerifier>,
    /// What they are shown, where there is a `cert_file`.
    shown: Option<Arc<CertifiedKey>>,
    /// Both.
    clients: Option<Arc<ServerConfig>>,
}

impl Files {
    fn new(
        provider: &Arc<CryptoProvider>,
        asked: Arc<dyn ClientCertVerifier>,
        shown: Option<Arc<CertifiedKey>>,
    ) -> Result<Self, TlsError> {
        let clients = match &shown {
            Some(shown) => Some(Arc::new(for_clients(provider, &asked, Arc::clone(shown))?)),
            None => None,
        };
        Ok(Self { asked, shown, clients })
    }
}

/// What is shown with certificates of the cluster's authority.
#[derive(Clone)]
struct Own {
    since: Instant,
    hosts: Arc<ServerConfig>,
    clients: Arc<ServerConfig>,
}

impl Tls {
    /// Prepares TLS; reads the operator's files, if there are any.
    ///
    /// # Errors
    ///
    /// When a file cannot be used, or a name cannot stand in a certificate.
    pub fn new(members: Arc<Members>, settings: &TlsSettings, names: Vec<String>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(members.authority().certificate().clone()).map_err(other)?;
        let judge = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let judge = judge.build().map_err(|error| TlsError::Other(error.to_string()))?;
        let (asked, shown) = (asked(&provider, settings)?, shown(&provider, settings)?);
        let files = RwLock::new(Files::new(&provider, asked, shown)?);
        let settings = settings.clone();
        let tls = Self { members, provider, names, settings, files, own: Mutex::default(), judge };
        // Now rather than with the first client: a name that is impossible is a mistake in the configuration.
        tls.own(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        Ok(tls)
    }

    /// Chooses what a host or a client is shown that came to an address of ours.
    ///
    /// # Errors
    ///
    /// When no certificate can be made.
    pub fn config_for(&self, is_host: bool, local: IpAddr) -> Result<Arc<ServerConfig>, TlsError> {
        if is_host {
            return Ok(self.own(local)?.hosts);
        }
        match self.files().clients {
            Some(clients) => Ok(clients),
            None => Ok(self.own(local)?.clients),
        }
    }

    fn files(&self) -> Files {
        self.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the certificate that a client showed.
    pub fn look_at(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Shown> {
        let certificate = chain?.first()?;
        let judged = self.judge.verify_client_cert(certificate, &[], UnixTime::now());
        let fault = judged.err().map(|error| Fault::of(&error));
        Some(Shown { fingerprint: fingerprint(certificate), fault })
    }

    fn own(&self, local: IpAddr) -> Result<Own, TlsError> {
        let local = local.to_canonical();
        let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get(&local).filter(|own| own.since.elapsed() < MADE_ANEW) {
            return Ok(own.clone());
        }
        let addresses = [local, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut names = self.names.clone();
        names.extend(addresses.iter().map(ToString::to_string));
        names.sort();
        names.dedup();
        let shown = self.members.authority().for_server(&names, Timestamp::now())?;
        let own = Own {
            since: Instant::now(),
            hosts: Arc::new(for_hosts(&self.provider, Arc::clone(&shown))?),
            clients: Arc::new(for_clients(&self.provider, &self.files().asked, shown)?),
        };
        if all.len() >= MOST_ADDRESSES {
            all.clear();
        }
        all.insert(local, own.clone());
        Ok(own)
    }

    /// Takes over the operator's files as they are now; of what cannot be used, what was in use stays.
    fn reload(&self) {
        let TlsSettings { cert_file, ca_file, .. } = &self.settings;
        let before = self.files();
        let asked = asked(&self.provider, &self.settings).unwrap_or_else(|error| {
            tracing::error!("clients' certificates are judged by the authorities that were in use: {error}");
            before.asked
        });
        let shown = shown(&self.provider, &self.settings).unwrap_or_else(|error| {
            tracing::error!("the certificate that was in use stays in use: {error}");
            before.shown
        });
        match Files::new(&self.provider, asked, shown) {
            Ok(files) => {
                *self.files.write().unwrap_or_else(PoisonError::into_inner) = files;
                // What was made meanwhile with the authorities from before goes, too.
                self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
                tracing::info!(?cert_file, ?ca_file, "the files for TLS are read again");
            }
            Err(error) => tracing::error!("the files for TLS that were in use stay in use: {error}"),
        }
    }

    fn stamps(&self) -> Vec<Stamp> {
        let all = [&self.settings.cert_file, &self.settings.key_file, &self.settings.ca_file];
        all.into_iter().flatten().map(|path| stamp(path)).collect()
    }
}

/// Reads the operator's files again when they change, until the server stops.
pub async fn keep_fresh(tls: Arc<Tls>, mut stopping: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = tls.stamps();
    let mut before = used.clone();
    while !used.is_empty() {
        tokio::select! {
            _ = looks.tick() => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let now = tls.stamps();
        // Files of a pair are replaced one after the other: wait until they rest.
        if now != used && now == before {
            tls.reload();
            used.clone_from(&now);
        }
        before = now;
    }
}

fn other(error: impl std::fmt::Display) -> TlsError {
    TlsError::Other(error.to_string())
}

/// Hosts speak the newest version alone, and are asked who they are.
fn for_hosts(provider: &Arc<CryptoProvider>, shown: Arc<CertifiedKey>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(other)?;
    let builder = builder.with_client_cert_verifier(Arc::new(AnyCertificate(Arc::clone(provider))));
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

fn for_clients(
    provider: &Arc<CryptoProvider>,
    asked: &Arc<dyn ClientCertVerifier>,
    shown: Arc<CertifiedKey>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
    let builder = builder.with_protocol_versions(rustls::ALL_VERSIONS).map_err(other)?;
    let builder = builder.with_client_cert_verifier(Arc::clone(asked));
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// Reads `cert_file` and `key_file`.
fn shown(provider: &CryptoProvider, settings: &TlsSettings) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let Some(certificate) = settings.cert_file.as_deref() else { return Ok(None) };
    let key_file = settings.key_file.as_deref().unwrap_or(certificate);
    let chain = certificates("cert_file", certificate)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unreadable("key_file", key_file, error))?;
    let pair = |why| TlsError::Pair {
        certificate: certificate.display().to_string(),
        key: key_file.display().to_string(),
        why,
    };
    Ok(Some(Arc::new(CertifiedKey::from_der(chain, key, provider).map_err(pair)?)))
}

/// Reads `ca_file`: clients must show a certificate where there is one.
fn asked(provider: &Arc<CryptoProvider>, settings: &TlsSettings) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(path) = &settings.ca_file else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    let mut roots = RootCertStore::empty();
    for root in certificates("ca_file", path)? {
        roots.add(root).map_err(|error| unreadable("ca_file", path, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().map_err(other)
}

fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error: rustls::pki_types::pem::Error| unreadable(option, path, error);
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() {
        return Err(unreadable(option, path, "there is no certificate in it"));
    }
    Ok(all)
}

fn unreadable(option: &'static str, path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { option, path: path.display().to_string(), why: why.to_string() }
}

/// Takes any certificate whose key the client proves to have; what it is worth is judged later.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        // Who joins has none.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // It must be one, or its key is not to be found.
        ParsedCertificate::try_from(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::private_file::tests::TempDir;
    use crate::store::Store;

    fn members(dir: &TempDir, name: &str) -> Arc<Members> {
        Arc::new(Members::open(Arc::new(Store::open(&dir.path().join(name)).unwrap())).unwrap())
    }

    #[test]
    fn what_is_wrong_with_a_hosts_certificate_is_told_apart() {
        let dir = TempDir::new();
        let (ours, other) = (members(&dir, "ours"), members(&dir, "other"));
        let tls = Tls::new(Arc::clone(&ours), &TlsSettings::default(), Vec::new()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let point: String = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
        let fault = |members: &Members, hours: i64| {
            let now = Timestamp::now() + SignedDuration::from_hours(hours);
            let issued = members.authority().for_host("h1", &point, now).unwrap();
            let certificate = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
            let shown = tls.look_at(Some(&[certificate])).unwrap();
            assert_eq!(shown.fingerprint, issued.fingerprint);
            shown.fault
        };
        // A clock that is an hour off on either side is no matter.
        for hours in [-1, 0, 1] {
            assert_eq!(fault(&ours, hours), None, "{hours}");
        }
        assert_eq!(fault(&ours, -365 * 24), Some(Fault::Expired));
        assert_eq!(fault(&ours, 365 * 24), Some(Fault::NotYet));
        assert_eq!(fault(&other, 0), Some(Fault::Foreign));
        // A server's is none for a host.
        let server = ours.authority().for_server(&[], Timestamp::now()).unwrap();
        assert_eq!(tls.look_at(Some(&server.cert)).unwrap().fault, Some(Fault::Foreign));
        assert_eq!(tls.look_at(None), None);
    }

    #[test]
    fn files_of_the_operator_that_go_or_break_keep_nobody_out() {
        let dir = TempDir::new();
        let file = |name: &str| dir.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        let members = members(&dir, "db");
        for cert_file in [None, Some(file("cert"))] {
            std::fs::write(file("cert"), certificate.pem() + &key.serialize_pem()).unwrap();
            std::fs::write(file("ca"), certificate.pem()).unwrap();
            let settings = TlsSettings {
                only: true,
                cert_file,
                key_file: None,
                ca_file: Some(file("ca")),
                ..TlsSettings::default()
            };
            let tls = Tls::new(Arc::clone(&members), &settings, Vec::new()).unwrap();
            let serves_everybody = |address: [u8; 4]| {
                // At an address that nothing was made for yet.
                for is_host in [true, false] {
                    tls.config_for(is_host, address.into()).unwrap();
                }
                tls.files().asked.client_auth_mandatory()
            };
            for (n, text) in [(1, Some("half a certific")), (2, None)] {
                for name in ["ca", "cert"] {
                    match text {
                        Some(text) => std::fs::write(file(name), text).unwrap(),
                        None => std::fs::remove_file(file(name)).unwrap(),
                    }
                }
                assert!(serves_everybody([192, 0, 2, n]));
                tls.reload();
                assert!(serves_everybody([192, 0, 2, n]), "clients are still asked");
            }
        }
    }

    #[test]
    fn a_name_that_cannot_be_in_a_certificate_is_refused_at_start() {
        let dir = TempDir::new();
        let refused = Tls::new(members(&dir, "db"), &TlsSettings::default(), vec!["caf\u{e9}".into()]).unwrap_err();
        assert!(refused.to_string().contains("failed to make a certificate"), "{refused}");
    }
}
