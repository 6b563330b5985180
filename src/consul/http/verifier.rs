//! Verifies servers' certificates: what the TLS library has, and two things that Go's and people
//! have beside it.
//!
//! A server may show one of the given CA certificates itself: so a self-signed one, which
//! `openssl req -x509` makes a CA, is named as its own CA. And where a server's authority is not
//! trusted, the error names both sides.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::consul::http::authorities::Trusted;

/// Verifies by a verifier of the library's.
#[derive(Debug)]
pub(super) struct Verifier {
    library: Arc<dyn ServerCertVerifier>,
    /// The CA certificates that were given.
    given: Vec<CertificateDer<'static>>,
    trusted: Trusted,
}

// === impl Verifier ===

impl Verifier {
    /// Trusts what `library` does, which is `trusted`.
    pub(super) fn new(library: Arc<dyn ServerCertVerifier>, trusted: Trusted) -> Arc<Self> {
        Arc::new(Self { library, given: Vec::new(), trusted })
    }

    /// Trusts the given CA certificates, which are `trusted`. None where none of them can be used.
    pub(super) fn given(
        given: Vec<CertificateDer<'static>>,
        trusted: Trusted,
    ) -> Option<Arc<Self>> {
        let library = library(&given)?;
        Some(Arc::new(Self { library, given, trusted }))
    }
}

/// Whether one of them can be used as a CA certificate.
pub(super) fn has_authority(given: &[CertificateDer<'static>]) -> bool {
    library(given).is_some()
}

fn library(given: &[CertificateDer<'static>]) -> Option<Arc<dyn ServerCertVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(given.iter().cloned());
    let library = WebPkiServerVerifier::builder(Arc::new(roots)).build().ok()?;
    Some(library)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.library.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(error) if is_a_ca(&error) && self.given.iter().any(|it| it == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified.map_err(|error| self.trusted.named(end_entity, error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}

/// Whether a certificate is refused because it is a CA's, which webpki finds only after its
/// validity; the library hands this error on as text.
fn is_a_ca(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string() == "CaUsedAsEndEntity")
}
