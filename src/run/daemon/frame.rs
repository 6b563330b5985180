//! The frame around the loop of a daemon: the admin server and the writer of Events run beside it,
//! and end after it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use kube::Client;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::admin::render::Render;
use crate::admin::status::Readiness;
use crate::admin::{Admin, QUESTIONS, Question};
use crate::kubernetes::events::{Reporter, reporter};
use crate::run::daemon::admin::AdminServer;
use crate::run::daemon::connect::instance;

/// How long the last Events may take to be written at the end.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// What the loop of a daemon gets from its frame; `P` is a page of its `/status`.
pub(in crate::run) struct Inside<P> {
    /// What `/readyz` says.
    pub(in crate::run) readiness: watch::Sender<Readiness>,
    /// What the admin server asks.
    pub(in crate::run) asked: mpsc::Receiver<Question<P>>,
    /// Takes the problems that become Events. The loop drops it at its end.
    pub(in crate::run) reporter: Reporter,
}

/// Runs the loop that `daemon` makes, and whatever is beside it; ends with it.
///
/// `listener`: where the admin server is to answer, if anywhere; `events`: what writes Events, if
/// anything does.
pub(in crate::run) async fn run<P, F>(
    listener: Option<TcpListener>,
    metrics: Arc<dyn Render>,
    events: Option<Client>,
    daemon: impl FnOnce(Inside<P>) -> F,
) -> F::Output
where
    P: Serialize + Send + 'static,
    F: Future,
{
    let (readiness, ready) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let server = listener.map(|listener| {
        AdminServer::start(listener, Admin { metrics, readiness: ready, questions })
    });
    let (reporter, writer) = match events {
        Some(client) => {
            let (reporter, writer) = reporter(client, &instance());
            (reporter, Some(tokio::spawn(writer)))
        }
        None => (Reporter::to_nobody(), None),
    };
    let result = daemon(Inside { readiness, asked, reporter }).await;
    OptionFuture::from(server.map(AdminServer::stop)).await;
    // The reporter went with the loop: the writer ends once its queue is empty.
    if let Some(mut writer) = writer
        && timeout(LAST_EVENTS, &mut writer).await.is_err()
    {
        writer.abort();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::metrics::Metrics;

    #[tokio::test]
    async fn what_is_beside_the_loop_ends_with_it() {
        crate::tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let inside = |mut inside: Inside<u8>| async move {
            let asking = async {
                reqwest::get(format!("http://{address}/status")).await.unwrap().text().await
            };
            let answering = async {
                match inside.asked.recv().await {
                    Some(Question::Page(_, reply)) => reply.send(7).unwrap(),
                    other => panic!("{other:?}"),
                }
            };
            // In one task, so that one that fails does not leave the other waiting.
            tokio::join!(asking, answering).0.unwrap()
        };
        assert_eq!(run(Some(listener), metrics, None, inside).await, "7");
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens");
    }
}
