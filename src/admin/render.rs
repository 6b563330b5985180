//! How metrics are shown.

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The content type of the text format that [`Render::render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters that can be shown.
pub trait Render: Send + Sync {
    /// Where they are registered.
    fn registry(&self) -> &Registry;

    /// All of them in the `OpenMetrics` text format.
    fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, self.registry())?;
        Ok(text)
    }
}
