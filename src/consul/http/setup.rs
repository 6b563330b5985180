//! What a client is made from beside its address: the certificates that it trusts and shows, the
//! name that the server has to have, HTTP authentication; and why no client can be made of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HOST, HeaderMap, HeaderValue};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret;

use crate::consul::http::authorities::Trusted;
use crate::consul::http::config::{Config, HttpAuth};
use crate::consul::http::verifier::{Verifier, has_authority};

/// Largest file of certificates: the Mozilla bundle is 230 kB.
const MAX_PEM_FILE: u64 = 4 << 20;

/// A configuration that no client can be made from. The variable is named by whoever set it.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate or key file cannot be read.
    #[error("cannot read {} ({purpose})", path.display())]
    Read {
        /// What it is for.
        purpose: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{}: expected {purpose} in PEM form, found none that can be used", path.display())]
    Pem {
        /// What it should hold.
        purpose: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A client certificate and key that do not make an identity.
    #[error("expected a client certificate and its private key in PEM form in {} and {}", certificate.display(), key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS server name is no DNS name.
    #[error("expected a DNS name as TLS server name (CONSUL_TLS_SERVER_NAME), found {0:?}")]
    ServerName(String),
    /// User and password that no header can carry.
    #[error(
        "expected user and password for HTTP authentication (CONSUL_HTTP_AUTH) that a header can carry"
    )]
    HttpAuth,
    /// None were given for `https://`, and the machine has none.
    #[error("cannot use the machine's CA certificates, which https without CONSUL_CACERT needs")]
    NoAuthorities(#[source] rustls::Error),
    /// The HTTP library refuses the configuration.
    #[error("cannot set up the connection to Consul")]
    Http(#[source] reqwest::Error),
}

/// The certificates that are trusted and the one that is shown.
pub(in crate::consul) fn trust(
    builder: reqwest::ClientBuilder,
    config: &Config,
) -> Result<reqwest::ClientBuilder, BuildError> {
    let verifier = verifier(config)?;
    let identity = identity(config)?;
    let unusable = |source| BuildError::Identity {
        certificate: config.client_certificate.clone().unwrap_or_default(),
        key: config.client_key.clone().unwrap_or_default(),
        source,
    };
    if let Some(verifier) = verifier {
        let tls =
            rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
        let tls = match identity {
            Some(pem) => with_identity(tls, &pem).map_err(unusable)?,
            None => tls.with_no_client_auth(),
        };
        return Ok(builder.tls_backend_preconfigured(tls));
    }
    let builder = builder.tls_danger_accept_invalid_certs(true);
    Ok(match identity {
        Some(pem) => {
            let identity = reqwest::Identity::from_pem(&pem);
            builder.identity(identity.map_err(|error| unusable(error.into()))?)
        }
        None => builder,
    })
}

/// What decides whether the server's certificate is trusted; none where none is to be verified.
fn verifier(config: &Config) -> Result<Option<Arc<dyn ServerCertVerifier>>, BuildError> {
    // Read even if nothing is verified: a file that is not there is a mistake.
    let given = given_certificates(config)?;
    if !config.tls_verify {
        return Ok(None);
    }
    let origin = config.ca_file.as_ref().or(config.ca_directory.as_ref());
    let origin = origin.map(|path| path.display().to_string()).unwrap_or_default();
    let trusted = Trusted::given(&given, origin);
    if let Some(verifier) = Verifier::given(given, trusted) {
        return Ok(Some(verifier));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let machine = rustls_platform_verifier::Verifier::new(provider);
    let machine = Arc::new(machine.map_err(BuildError::NoAuthorities)?);
    Ok(Some(Verifier::new(machine, Trusted::of_the_machine())))
}

/// The CA certificates that are to be trusted instead of the machine's.
fn given_certificates(config: &Config) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let files = match (&config.ca_file, &config.ca_directory) {
        (Some(file), _) => vec![file.clone()],
        (None, Some(directory)) => files_in(directory)?,
        (None, None) => Vec::new(),
    };
    let mut given = Vec::new();
    for path in files {
        let purpose = "CA certificates";
        let pem = read_pem(purpose, &path)?;
        match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
            // Each file has to hold one that can be trusted.
            Ok(found) if has_authority(&found) => given.extend(found),
            _ => return Err(BuildError::Pem { purpose, path }),
        }
    }
    Ok(given)
}

/// The client's certificate and its key, as one PEM text.
fn identity(config: &Config) -> Result<Option<Vec<u8>>, BuildError> {
    let (Some(certificate), Some(key)) = (&config.client_certificate, &config.client_key) else {
        return Ok(None);
    };
    let mut pem = read_pem("the client's certificate", certificate)?;
    pem.push(b'\n');
    pem.extend(read_pem("the client's private key", key)?);
    Ok(Some(pem))
}

/// Shows the certificate, with its chain, and the key of a PEM text.
fn with_identity(
    tls: rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>,
    pem: &[u8],
) -> Result<rustls::ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    Ok(tls.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pem)?)?)
}

/// Makes the URL's host the name that the certificate has to carry, so that TLS checks and
/// sends that one, while connections go to, and the Host header names, the address given.
pub(in crate::consul) fn with_server_name(
    builder: reqwest::ClientBuilder,
    headers: &mut HeaderMap,
    name: &str,
    base: &str,
) -> Result<(reqwest::ClientBuilder, String), BuildError> {
    let invalid = || BuildError::ServerName(name.to_owned());
    let mut url = reqwest::Url::parse(base).map_err(|_| invalid())?;
    let host = url.host_str().ok_or_else(invalid)?.to_owned();
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    if name.parse::<IpAddr>().is_ok() || url.set_host(Some(name)).is_err() {
        return Err(invalid());
    }
    if url.host_str() != Some(name.to_ascii_lowercase().as_str()) {
        return Err(invalid());
    }
    headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|_| invalid())?);
    let resolver = FixedHost { host: host.trim_matches(['[', ']']).into() };
    let base = url.as_str().trim_end_matches('/').to_owned();
    Ok((builder.dns_resolver(resolver), base))
}

/// Resolves every name to the addresses of one host: see [`with_server_name`].
#[derive(Debug)]
struct FixedHost {
    host: Arc<str>,
}

impl Resolve for FixedHost {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            // Port 0 is replaced by the URL's.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let purpose = "CA certificates";
    let failed = |source| BuildError::Read { purpose, path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Kubernetes mounts secrets as links to files beside hidden directories.
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(BuildError::Pem { purpose, path: directory.to_owned() });
    }
    files.sort();
    Ok(files)
}

pub(in crate::consul) fn read_pem(
    purpose: &'static str,
    path: &Path,
) -> Result<Vec<u8>, BuildError> {
    let failed = |source| BuildError::Read { purpose, path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut pem = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_PEM_FILE), &mut pem).map_err(failed)?;
    Ok(pem)
}

pub(in crate::consul) fn basic(auth: &HttpAuth) -> Result<HeaderValue, BuildError> {
    let password = auth.password.as_ref().map_or("", ExposeSecret::expose_secret);
    let encoded = STANDARD.encode(format!("{}:{password}", auth.user));
    let mut value =
        HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|_| BuildError::HttpAuth)?;
    value.set_sensitive(true);
    Ok(value)
}
