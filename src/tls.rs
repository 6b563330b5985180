//! Who encrypts: one provider for the whole process.

/// Makes `ring` the provider of whatever in this process speaks TLS; nothing if it has one already.
pub fn install_provider() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("another TLS provider is installed already");
    }
}
