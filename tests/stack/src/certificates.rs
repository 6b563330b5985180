//! Certificates made on the spot, for the API server and for Consul with TLS.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate authority that lives as long as the test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both PEM.
pub struct Certificate {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM (PKCS #8).
    pub key: String,
}

impl Authority {
    /// Makes a new authority of that common name.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority's own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a certificate for those DNS names and IP addresses, good for a
    /// server and for a client.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Certificate> {
        self.sign(names, None)
    }

    /// The same, good until then only.
    pub fn issue_until(&self, names: &[&str], end: SystemTime) -> anyhow::Result<Certificate> {
        self.sign(names, Some(end))
    }

    fn sign(&self, names: &[&str], end: Option<SystemTime>) -> anyhow::Result<Certificate> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(end) = end {
            params.not_after = end.into();
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Certificate {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Certificate {
    /// A certificate for those DNS names and IP addresses that its own key signed: a CA's, as
    /// `openssl req -x509` makes them, or none.
    pub fn self_signed(names: &[&str], is_ca: bool) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }
}

/// Makes ring the provider of TLS in this process. Without it kube and reqwest
/// panic when they make a client; an earlier choice of the test's own stays.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A key pair for service-account tokens, both PEM: the private one that signs
/// and the public one that verifies.
pub(crate) fn signing_keys() -> anyhow::Result<(String, String)> {
    let keys = KeyPair::generate()?;
    Ok((keys.serialize_pem(), keys.public_key_pem()))
}
