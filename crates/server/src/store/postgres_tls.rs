//! TLS between server and PostgreSQL, as libpq's parameters of the URL say.
//!
//! `sslmode` is `disable` (also when nothing is said), `prefer`, `require`, `verify-ca` or `verify-full`. As with
//! libpq, `prefer` and `require` encrypt without asking who answers, unless `sslrootcert` says who may; the two others
//! need it. `sslcert` and `sslkey` are what this server shows. The driver knows the first three modes alone, so these
//! parameters are taken out of the URL before it reads it.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

/// What the URL says about TLS.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    mode: Option<String>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Wishes {
    /// Takes them out of a URL; answers the URL without them.
    pub(super) fn take(url: &str) -> (String, Self) {
        let mut wishes = Self::default();
        let Some((rest, query)) = url.split_once('?') else { return (url.to_owned(), wishes) };
        let mut left = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded =
                || form_urlencoded::parse(format!("x={value}").as_bytes()).next().map(|(_, v)| v.into_owned());
            match name {
                "sslmode" => wishes.mode = decoded(),
                "sslrootcert" => wishes.root = decoded().map(PathBuf::from),
                "sslcert" => wishes.certificate = decoded().map(PathBuf::from),
                "sslkey" => wishes.key = decoded().map(PathBuf::from),
                _ => left.push(pair),
            }
        }
        let url = if left.is_empty() { rest.to_owned() } else { format!("{rest}?{}", left.join("&")) };
        (url, wishes)
    }

    /// Makes of them what the driver needs: its mode, and how to speak TLS.
    ///
    /// # Errors
    ///
    /// What is wrong, in half a sentence.
    pub(super) fn prepare(&self) -> Result<(SslMode, Connector), String> {
        let mode = match self.mode.as_deref() {
            None | Some("disable") => return Ok((SslMode::Disable, Connector(None))),
            Some("prefer") => SslMode::Prefer,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(other) => {
                return Err(format!(
                    "sslmode={other} is not known; there are disable, prefer, require, verify-ca and verify-full"
                ));
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(rustls::ALL_VERSIONS).map_err(|error| error.to_string())?;
        let wants_name = self.mode.as_deref() == Some("verify-full");
        let builder = match &self.root {
            Some(path) if wants_name => builder.with_root_certificates(roots(path)?),
            Some(path) => {
                let verifier = Authority { roots: Some(roots(path)?), provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            None if self.mode.as_deref().is_some_and(|mode| mode.starts_with("verify")) => {
                return Err(
                    "sslmode=verify-ca and verify-full need sslrootcert, a file with the authority in PEM".into()
                );
            }
            None => {
                let verifier = Authority { roots: None, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = certificates("sslcert", certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("sslkey {} cannot be read: {error}", key.display()))?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| {
                    format!("sslcert {} and sslkey {} cannot be used: {error}", certificate.display(), key.display())
                })?
            }
            _ => return Err("sslcert and sslkey are needed both, or neither".into()),
        };
        Ok((mode, Connector(Some(Arc::new(config)))))
    }
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates("sslrootcert", path)? {
        roots.add(root).map_err(|error| format!("sslrootcert {} cannot be used: {error}", path.display()))?;
    }
    Ok(roots)
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error| format!("{option} {} cannot be read: {error}", path.display());
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() { Err(format!("there is no certificate in {option} {}", path.display())) } else { Ok(all) }
}

/// How the driver speaks TLS; `None`: not at all.
#[derive(Clone)]
pub(super) struct Connector(Option<Arc<ClientConfig>>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connect> {
        // Asked for every connection, also where nothing is encrypted in the end: without TLS, or by a directory of
        // sockets, which is no name.
        Ok(Connect { config: self.0.clone(), name: ServerName::try_from(host.to_owned()).map_err(io::Error::other) })
    }
}

/// One connection that becomes TLS.
pub(super) struct Connect {
    config: Option<Arc<ClientConfig>>,
    name: io::Result<ServerName<'static>>,
}

impl TlsConnect<Socket> for Connect {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let config = self.config.ok_or_else(|| io::Error::other("TLS was not asked for"))?;
            let stream = TlsConnector::from(config).connect(self.name?, socket).await?;
            Ok(Stream(Box::new(stream)))
        })
    }
}

/// A connection with TLS.
pub(super) struct Stream(Box<tokio_rustls::client::TlsStream<Socket>>);

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Believes whom these authorities signed, whatever its name is; without any, everybody.
#[derive(Debug)]
struct Authority {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Authority {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_taken_out_of_the_url() {
        let url = "postgresql://u@h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fetc%2Fca%20x.pem";
        let (left, wishes) = Wishes::take(url);
        assert_eq!(left, "postgresql://u@h/d?connect_timeout=3");
        assert_eq!(wishes.mode.as_deref(), Some("verify-full"));
        assert_eq!(wishes.root.as_deref(), Some(Path::new("/etc/ca x.pem")));
        assert_eq!(Wishes::take("postgresql://u@h/d?sslmode=require").0, "postgresql://u@h/d");
    }

    #[test]
    fn wishes_that_cannot_be_met_say_what_is_missing() {
        let why =
            |query: &str| Wishes::take(&format!("postgresql://h/d?{query}")).1.prepare().err().unwrap_or_default();
        assert_eq!(why("application_name=x"), "");
        assert!(why("sslmode=maybe").contains("there are disable"));
        assert!(why("sslmode=verify-ca").contains("need sslrootcert"));
        assert!(why("sslmode=verify-full&sslrootcert=/nonexistent").contains("sslrootcert /nonexistent"));
        assert!(why("sslmode=require&sslcert=/x").contains("needed both"));
    }
}
