//! The pods of a node as its kubelet shows them: one HTTP request after the other, for roles that may
//! not watch pods at the API server.
//!
//! Whatever is not a whole `PodList` is a failure, and shows nothing: it removes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reqwest::Certificate;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::node::pod::{Phase, Seen};
use crate::domain::text::{chain, one_line};
use crate::kubernetes::node::{key_of, project};
use crate::kubernetes::watch::{Error as WatchError, Notice, Relist, Trouble};

/// How long an answer may take: a kubelet has its pods in memory.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer: 250 pods of 64 kB.
const MAX_BODY: usize = 16 << 20;
/// A failure is reported at first and then no more often than this.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Where a pod finds its token and the cluster's CA.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// As much of an answer that is no list as is shown.
const SHOWN: usize = 200;

/// How a kubelet is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// The URL of its list of pods.
    pub url: String,
    /// Whatever certificate it shows.
    pub skip_verify: bool,
    /// Between two requests.
    pub interval: Duration,
    /// The file of the token that is sent, if it is not the one that a pod has.
    pub token_file: Option<PathBuf>,
    /// The file of the authority that vouches for it, if it is not the cluster's that a pod has.
    pub ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct List<'a> {
    kind: Option<String>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// Whose an item is that is no pod otherwise.
#[derive(Deserialize)]
struct Named {
    metadata: ObjectMeta,
}

// === impl Kubelet ===

impl Kubelet {
    /// The pods, again and again. A list that is asked for comes with the next request.
    pub fn watch(self, relist: Relist) -> BoxStream<'static, Notice<Seen>> {
        let state = (self, relist, 0_u32, None::<Instant>, true);
        stream::unfold(state, |(kubelet, relist, failures, said, first)| async move {
            if !first {
                sleep(kubelet.interval).await;
            }
            relist.take();
            let (notices, failures, said) = match kubelet.list().await {
                Ok(pods) => {
                    let mut notices = vec![Notice::Event(WatchEvent::ListStarted(Kind::Pod))];
                    notices
                        .extend(pods.into_iter().map(|pod| Notice::Event(WatchEvent::Seen(pod))));
                    notices.push(Notice::Event(WatchEvent::ListCompleted(Kind::Pod)));
                    (notices, 0, None)
                }
                Err(why) => {
                    let failures = failures + 1;
                    let is_due = said.is_none_or(|said: Instant| said.elapsed() >= SAY_EVERY);
                    let trouble = Notice::Trouble(Trouble {
                        kind: Kind::Pod,
                        error: WatchError::Kubelet { url: kubelet.shown_url(), cause: why },
                        failures,
                        retry_in: kubelet.interval,
                    });
                    let notices = if is_due { vec![trouble] } else { Vec::new() };
                    (notices, failures, if is_due { Some(Instant::now()) } else { said })
                }
            };
            Some((stream::iter(notices), (kubelet, relist, failures, said, false)))
        })
        .flatten()
        .boxed()
    }

    /// Without the password that it may have.
    pub fn shown_url(&self) -> String {
        match (self.url.split_once("://"), self.url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            _ => self.url.clone(),
        }
    }

    async fn list(&self) -> Result<Vec<Seen>, String> {
        let request = self.client()?.get(&self.url);
        let request = match read(self.token_file.as_deref(), "token")? {
            Some(token) => request.bearer_auth(token.trim()),
            None => request,
        };
        let failed = |error: reqwest::Error| chain(&error.without_url());
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(format!("expected at most {MAX_BODY} bytes, found more"));
            }
            body.extend_from_slice(&chunk);
        }
        let shown = || one_line(&String::from_utf8_lossy(&body), SHOWN);
        if !status.is_success() {
            return Err(format!("expected a PodList, found HTTP {status}: {}", shown()));
        }
        let list: List<'_> = serde_json::from_slice(&body)
            .map_err(|error| format!("expected a PodList, found {:?}: {error}", shown()))?;
        match (list.kind.as_deref(), list.items) {
            (Some("PodList" | "List"), items) => pods(&items.unwrap_or_default()),
            _ => Err(format!("expected a PodList, found {:?}", shown())),
        }
    }

    /// A client for one request: token and CA are renewed on disk, and requests are seconds apart.
    fn client(&self) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .timeout(DEADLINE)
            .tls_danger_accept_invalid_certs(self.skip_verify);
        builder = match read(self.ca_file.as_deref(), "ca.crt")? {
            Some(pem) if !self.skip_verify => {
                let all = Certificate::from_pem_bundle(pem.as_bytes());
                builder.tls_certs_only(all.map_err(|error| format!("ca.crt: {}", chain(&error)))?)
            }
            _ => builder.tls_certs_only([]),
        };
        builder.build().map_err(|error| chain(&error))
    }
}

/// The file that was given, or else the one that a pod may have.
fn read(given: Option<&Path>, name: &str) -> Result<Option<String>, String> {
    let text = match given {
        Some(path) => fs::read_to_string(path)
            .map(Some)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        None => fs::read_to_string(Path::new(SERVICE_ACCOUNT).join(name)).ok(),
    };
    Ok(text.filter(|text| !text.trim().is_empty()))
}

/// The pods of a list. One that cannot be read costs no other; one that does not even have a name may
/// be any, so that the list proves nothing.
fn pods(items: &[&RawValue]) -> Result<Vec<Seen>, String> {
    let mut found: BTreeMap<ObjectKey, Seen> = BTreeMap::new();
    for item in items {
        let pod = serde_json::from_str::<ApiPod>(item.get());
        let seen = match pod {
            Ok(pod) => named(&pod.metadata).map(|key| match project(pod) {
                Ok(pod) => Seen::Pod(key, pod),
                Err(why) => Seen::Undecodable(key, why),
            }),
            Err(error) => serde_json::from_str::<Named>(item.get())
                .ok()
                .and_then(|it| named(&it.metadata))
                .map(|key| Seen::Undecodable(key, error.to_string())),
        };
        let seen = seen.ok_or_else(|| {
            let item = one_line(item.get(), SHOWN);
            format!("expected pods with name and namespace, found {item:?}")
        })?;
        // A pod and the one that takes its place have one name: the one that stays counts.
        let rank = |seen: &Seen| match seen {
            Seen::Pod(_, pod) => (!pod.is_terminating, pod.phase != Phase::Ended),
            Seen::Undecodable(..) => (true, true),
        };
        let is_better = |known: &Seen| rank(&seen) >= rank(known);
        if found.get(seen.key()).is_none_or(is_better) {
            found.insert(seen.key().clone(), seen);
        }
    }
    Ok(found.into_values().collect())
}

fn named(metadata: &ObjectMeta) -> Option<ObjectKey> {
    let key = key_of(metadata);
    (!key.namespace.is_empty() && !key.name.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PODS: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
        {"metadata":{"name":"web-0","namespace":"shop","uid":"1"},"spec":{"containers":[{"name":"a"}]},
         "status":{"phase":"Running","podIP":"10.1.0.1"}}]}"#;

    /// A kubelet that gives one answer, byte by byte as it stands, and shows what it was asked.
    async fn answers(answer: String) -> (Kubelet, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:pw@{}/pods", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let kubelet = Kubelet {
            url,
            skip_verify: false,
            interval: Duration::from_millis(1),
            token_file: None,
            ca_file: None,
        };
        (kubelet, asked)
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_list_of_pods_is_read_with_the_password_of_its_url() {
        crate::tls::install_provider();
        let (kubelet, asked) = answers(http("200 OK", PODS)).await;
        let pods = kubelet.list().await.unwrap();
        assert!(matches!(&pods[..], [Seen::Pod(key, _)] if key.to_string() == "shop/web-0"));
        assert!(asked.await.unwrap().to_lowercase().contains("authorization: basic"));
        let (kubelet, _) = answers(http("200 OK", r#"{"kind":"PodList","items":[]}"#)).await;
        assert_eq!(kubelet.list().await, Ok(vec![]));
    }

    /// A pod that cannot be read costs no other; of one name the one that stays counts (P7).
    #[tokio::test]
    async fn p7_each_pod_of_a_list_is_read_by_itself_and_each_name_once() {
        crate::tls::install_provider();
        let pod = |name: &str, uid: &str, more: &str, status: &str| {
            format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"shop","uid":"{uid}"{more}}},
                "spec":{{"containers":[{{"name":"a"}}]}},"status":{status}}}"#
            )
        };
        let going = r#","deletionTimestamp":"2026-11-01T00:00:00Z""#;
        let big = format!(r#","annotations":{{"kube-consul.io/x":"{}"}}"#, "<".repeat(70_000));
        let (runs, ended) = (r#"{"phase":"Running"}"#, r#"{"phase":"Failed"}"#);
        for order in [[0, 1], [1, 0]] {
            let db = [pod("db-0", "2", "", runs), pod("db-0", "1", going, runs)];
            let web = [pod("web-0", "2", "", runs), pod("web-0", "1", "", ended)];
            let items = [
                db[order[0]].clone(),
                db[order[1]].clone(),
                web[order[0]].clone(),
                web[order[1]].clone(),
                pod("bad", "1", "", r#"{"phase":7}"#),
                pod("big", "1", &big, runs),
            ];
            let list = format!(r#"{{"kind":"PodList","items":[{}]}}"#, items.join(","));
            let (kubelet, _) = answers(http("200 OK", &list)).await;
            let found = kubelet.list().await.unwrap();
            let shown: Vec<_> = found
                .iter()
                .map(|seen| match seen {
                    Seen::Pod(key, pod) => format!("{} {}", key.name, pod.uid),
                    Seen::Undecodable(key, why) => {
                        assert!(why.len() < 300, "{why}");
                        format!("{} ?", key.name)
                    }
                })
                .collect();
            assert_eq!(shown, ["bad ?", "big ?", "db-0 2", "web-0 2"]);
        }
        // One without a name may be any.
        for nameless in ["{}", "7", r#"{"metadata":{"name":"a"}}"#, "null"] {
            let list = format!(r#"{{"kind":"PodList","items":[{nameless}]}}"#);
            let (kubelet, _) = answers(http("200 OK", &list)).await;
            assert!(kubelet.list().await.is_err(), "{nameless}");
        }
    }

    #[tokio::test]
    async fn whatever_is_no_list_shows_nothing() {
        crate::tls::install_provider();
        let half = format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{PODS}");
        for answer in [
            http("401 Unauthorized", "Unauthorized"),
            http("403 Forbidden", r#"{"kind":"Status","status":"Failure"}"#),
            http("500 Internal Server Error", PODS),
            http("200 OK", r#"{"kind":"Status","status":"Failure","code":401}"#),
            http("200 OK", "{}"),
            http("200 OK", "null"),
            http("200 OK", ""),
            half,
        ] {
            let (kubelet, _asked) = answers(answer.clone()).await;
            let found = kubelet.list().await;
            assert!(found.is_err(), "{answer:?} is {found:?}");
            let (kubelet, _asked) = answers(answer).await;
            let mut notices = kubelet.watch(Relist::default());
            let first = notices.next().await.unwrap();
            let Notice::Trouble(trouble) = first else { panic!("{first:?}") };
            assert!(!trouble.error.to_string().contains("pw"), "{}", trouble.error);
        }
    }
}
