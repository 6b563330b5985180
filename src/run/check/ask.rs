//! A question, and how long its answer may take.

use std::error::Error as StdError;
use std::time::Duration;

use tokio::time::timeout;

use crate::consul::http::error::Error as ConsulError;
use crate::domain::text::chain;

/// How long an answer may take.
#[derive(Clone, Copy)]
pub(super) struct Ask(Duration);

// === impl Ask ===

impl Ask {
    /// With this time for each answer.
    pub(super) fn within(time: Duration) -> Self {
        Self(time)
    }

    pub(super) async fn of<T, E: StdError + 'static>(
        self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        self.of_text(async { answer.await.map_err(|error| chain(&error)) }).await
    }

    pub(super) async fn of_consul<T>(
        self,
        answer: impl Future<Output = Result<T, ConsulError>>,
    ) -> Result<T, String> {
        self.of_text(async { answer.await.map_err(|error| error.chain()) }).await
    }

    pub(super) async fn of_text<T>(
        self,
        answer: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let late = || Err(format!("no answer within --timeout ({:?})", self.0));
        timeout(self.0, answer).await.unwrap_or_else(|_| late())
    }
}
