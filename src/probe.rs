//! The edge that tries a probe once, as the kubelet would.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::domain::hook::Target;
use crate::domain::text::chain;

/// Time for one try, connection included: consul-registration-hook's value.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Tries probes. Redirects are not followed: to the kubelet they are a success.
#[derive(Clone, Debug)]
pub struct Prober {
    http: reqwest::Client,
}

/// No client could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the client that tries probes")]
pub struct BuildError(#[from] reqwest::Error);

/// A try that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The answer is not one of success.
    #[error("expected HTTP 200 to 399, found {0}")]
    Status(u16),
    /// No answer, or none in time.
    #[error("{0}")]
    Unreachable(String),
}

// === impl Prober ===

impl Prober {
    /// A client that trusts any certificate, as the kubelet does with its probes.
    pub fn new() -> Result<Self, BuildError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("kube-consul/", env!("CARGO_PKG_VERSION")))
            .timeout(TRY_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // A fresh connection each time tells what a client would see.
            .pool_max_idle_per_host(0)
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { http })
    }

    /// Tries once, for [`TRY_TIMEOUT`] at most. Of gRPC only the connection is tried: the answer
    /// is then judged by Consul's check, which is critical until the first good one.
    pub async fn attempt(&self, target: &Target) -> Result<(), Failed> {
        match target {
            Target::Http { url, headers } => self.get(url, headers).await,
            Target::Tcp(address) | Target::Grpc { address, .. } => connect(address).await,
        }
    }

    async fn get(&self, url: &str, headers: &[(String, String)]) -> Result<(), Failed> {
        let failed = |error: reqwest::Error| Failed::Unreachable(chain(&error.without_url()));
        let request = self.http.get(url).headers(header_map(headers));
        let status = request.send().await.map_err(failed)?.status().as_u16();
        if (200..400).contains(&status) { Ok(()) } else { Err(Failed::Status(status)) }
    }
}

/// Headers that HTTP cannot carry are left out: the API server refuses such names already.
fn header_map(headers: &[(String, String)]) -> HeaderMap {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        })
        .collect()
}

async fn connect(address: &str) -> Result<(), Failed> {
    match timeout(TRY_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Failed::Unreachable(error.to_string())),
        Err(_) => Err(Failed::Unreachable(format!("no connection within {TRY_TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `status` and gives what was asked.
    async fn server(status: u16) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
        );
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (address, served)
    }

    fn prober() -> Prober {
        crate::tls::install_provider();
        Prober::new().unwrap()
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_a_success() {
        for (status, good) in
            [(200, true), (204, true), (302, true), (399, true), (400, false), (503, false)]
        {
            let (address, served) = server(status).await;
            let headers = vec![("Host".to_owned(), "a.example".to_owned())];
            let target = Target::Http { url: format!("http://{address}/ping?a=b"), headers };
            assert_eq!(prober().attempt(&target).await.is_ok(), good, "{status}");
            let asked = served.await.unwrap();
            assert!(asked.starts_with("GET /ping?a=b HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("a.example"), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_fails_and_an_open_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let targets = |address: &str| {
            [
                Target::Tcp(address.to_owned()),
                Target::Grpc { address: address.to_owned(), service: None },
            ]
        };
        for target in targets(&address) {
            prober().attempt(&target).await.unwrap();
        }
        drop(listener);
        for target in targets(&address) {
            let error = prober().attempt(&target).await.unwrap_err();
            assert!(error.to_string().contains("refused"), "{error}");
        }
    }
}
