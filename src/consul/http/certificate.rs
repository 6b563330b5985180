//! When the certificates run out that are shown to Consul and by it.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::consul::http::authorities::UntrustedAuthority;
use crate::consul::http::config::Config;
use crate::consul::http::setup::read_pem;
use crate::consul::http::transport::connections;
use crate::domain::text::chain;

/// A certificate and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Whose it is.
    pub of: &'static str,
    /// When it runs out, in seconds since 1970.
    pub at: i64,
}

/// The certificates of a connection by TLS; none without. The server is asked anew for its own.
pub async fn expiries(config: &Config) -> Result<Vec<Expiry>, String> {
    if !config.uses_tls() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    if let Some(path) = &config.client_certificate {
        let purpose = "the client's certificate";
        let pem = read_pem(purpose, path).map_err(|error| chain(&error))?;
        let der = CertificateDer::from_pem_slice(&pem)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        all.push(Expiry { of: purpose, at: end(&der)? });
    }
    let (http, base) = connections(config, true).map_err(|error| chain(&error))?;
    let answer = http.get(format!("{base}/v1/status/leader")).send().await;
    let answer = answer.map_err(|error| {
        // The TLS library would show it as a value of Rust.
        UntrustedAuthority::find(&error)
            .map_or_else(|| chain(&error.without_url()), |untrusted| untrusted.to_string())
    })?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>();
    if let Some(der) = info.and_then(reqwest::tls::TlsInfo::peer_certificate) {
        all.push(Expiry { of: "Consul's certificate", at: end(der)? });
    }
    Ok(all)
}

fn end(der: &[u8]) -> Result<i64, String> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| format!("a certificate cannot be read: {error}"))?;
    Ok(certificate.validity().not_after.timestamp())
}
