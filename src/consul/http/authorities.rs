//! Who has issued certificates, for people: rustls says of a server's certificate no more than
//! that its issuer is unknown, and nobody can tell from that which of two CAs is the wrong one.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use crate::domain::text::one_line;

/// Longest name that is shown, in bytes: `Consul Agent CA` with its serial number has 56.
const MAX_NAME: usize = 120;

/// Most authorities that are named: during a rotation there are two.
const MAX_NAMED: usize = 4;

/// A server's certificate is of an authority that is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the certificate that the server shows ({subject}) was issued by {issuer}, which is not \
     trusted; trusted: {trusted}{}",
    if *.same_name { " (of the same name, with another key)" } else { "" }
)]
pub struct UntrustedAuthority {
    /// Whose certificate it is.
    subject: String,
    /// Who issued it.
    issuer: String,
    /// Which authorities are trusted, and where that is from.
    trusted: String,
    /// Whether one of these has the issuer's name.
    same_name: bool,
}

/// Which authorities a client trusts.
#[derive(Debug)]
pub(super) struct Trusted {
    names: Vec<String>,
    /// A file, a directory, or the machine.
    origin: String,
}

// === impl UntrustedAuthority ===

impl UntrustedAuthority {
    /// What became of it on its way through the layers of a failed request.
    pub(super) fn find(error: &reqwest::Error) -> Option<Self> {
        let mut next = error.source();
        while let Some(error) = next {
            if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(found)))) =
                error.downcast_ref::<Error>()
            {
                return found.downcast_ref::<Self>().cloned();
            }
            // What an I/O error holds is not its source: its source is the source of that.
            next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
                Some(held) => Some(held),
                None => error.source(),
            };
        }
        None
    }
}

// === impl Trusted ===

impl Trusted {
    /// The given certificates, and where they are from.
    pub(super) fn given(certificates: &[CertificateDer<'_>], origin: String) -> Self {
        let names = certificates.iter().filter_map(|der| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(name(certificate.subject()))
        });
        Self { names: names.collect(), origin }
    }

    /// Those that the machine trusts.
    pub(super) fn of_the_machine() -> Self {
        let origin = "the machine's CA certificates, as none were given (CONSUL_CACERT)";
        Self { names: Vec::new(), origin: origin.to_owned() }
    }

    /// The error that a server's certificate is not accepted, naming both sides where that is for its
    /// authority.
    pub(super) fn named(&self, certificate: &CertificateDer<'_>, error: Error) -> Error {
        let is_untrusted = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature
            )
        );
        match self.refusal(certificate) {
            Some(refusal) if is_untrusted => {
                CertificateError::Other(OtherError(Arc::new(refusal))).into()
            }
            _ => error,
        }
    }

    fn refusal(&self, certificate: &CertificateDer<'_>) -> Option<UntrustedAuthority> {
        let (_, shown) = X509Certificate::from_der(certificate).ok()?;
        let issuer = name(shown.issuer());
        Some(UntrustedAuthority {
            subject: name(shown.subject()),
            same_name: self.names.contains(&issuer),
            issuer,
            trusted: self.to_string(),
        })
    }
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str(&self.origin);
        }
        write!(f, "{}", self.names[..self.names.len().min(MAX_NAMED)].join(", "))?;
        if let more @ 1.. = self.names.len().saturating_sub(MAX_NAMED) {
            write!(f, " and {more} more")?;
        }
        write!(f, " of {}", self.origin)
    }
}

/// The common name, or the whole name where there is none, quoted: others have written it.
fn name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|it| it.as_str().ok());
    let text = common.map_or_else(|| name.to_string(), ToOwned::to_owned);
    format!("{:?}", one_line(&text, MAX_NAME))
}
