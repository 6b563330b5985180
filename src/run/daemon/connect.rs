//! The runtime, the clients of both sides, and the end of a login.

use std::time::Duration;

use tokio::time::timeout;

use crate::admin::metrics::ConsulRequests;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::http::config::Config;
use crate::domain::text::chain;
use crate::kubernetes::client::{Connected, connect};
use crate::run::Error;
use crate::run::daemon::options::Common;
use crate::tls::install_provider;

/// How long ending the login may take at the end: one write of the servers', which takes
/// milliseconds. After that the token stays until it runs out or somebody deletes it.
const LOGOUT: Duration = Duration::from_secs(1);

/// The runtime, and TLS. One thread: the state of a daemon is one task's anyway, and what others
/// would do beside it (connections, the admin server) is little, while each would have a heap of
/// its own: with 10,000 Services that was 5 MiB. What a probe may wait for is the loop's longest
/// turn, the first reconciliation: a second with 100,000 endpoints.
pub(in crate::run) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    install_provider();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Failed(format!("cannot start: {error}")))
}

/// A client for Kubernetes, which was not asked yet.
pub(in crate::run) async fn kubernetes(common: &Common) -> Result<Connected, Error> {
    connect(&common.access, &common.environment).await.map_err(|error| {
        if error.is_configuration() {
            Error::Usage(error.to_string())
        } else {
            Error::Failed(error.to_string())
        }
    })
}

/// A client for Consul, which was not asked yet.
pub(in crate::run) fn consul(config: &Config) -> Result<ConsulClient, Error> {
    ConsulClient::new(config).map_err(|error| Error::Usage(chain(&error)))
}

/// Has each request to Consul counted.
pub(in crate::run) fn count_requests(consul: &ConsulClient, requests: &ConsulRequests) {
    let requests = requests.clone();
    consul.observe(Box::new(move |operation, took, is_answered| {
        requests.asked(operation.as_str(), took, is_answered);
    }));
}

/// The name of the pod or host: for Events, and in the leader's lock.
pub(in crate::run) fn instance() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    named("POD_NAME").or_else(|| named("HOSTNAME")).unwrap_or_else(|| "kube-consul".to_owned())
}

/// Ends the login, where there was one: its token must not outlive the process. The caller sees to
/// it that nothing is asked of Consul any more, which would log in again.
pub(in crate::run) async fn log_out(consul: &ConsulClient) {
    match timeout(LOGOUT, consul.logout()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = error.chain(), "cannot log out of Consul: the token stays");
        }
        Err(_) => tracing::warn!("no answer to logging out of Consul: the token stays"),
    }
}
