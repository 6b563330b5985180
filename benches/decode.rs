//! How fast objects of Kubernetes are decoded to what is kept of them, beside a floor: the same text
//! read as JSON of which nothing is kept.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use kube_consul::kubernetes::slim::{Content, EndpointSlices, Services, Watched};
use serde::de::IgnoredAny;
use serde_json::json;

#[expect(dead_code, reason = "others measure memory, and more objects")]
mod objects;

/// Of each kind: seconds of work, and no warm-up worth mentioning.
const ROUNDS: u32 = 100_000;
/// What managers of fields add to a Service that Helm has applied, in bytes.
const MANAGED_FIELDS: usize = 1_700;

fn main() -> Result<()> {
    let mut service = objects::service(1);
    service["metadata"]["managedFields"] = json!([{"f": "x".repeat(MANAGED_FIELDS)}]);
    measure::<Services>("Service", &service.to_string())?;
    measure::<EndpointSlices>("EndpointSlice", &objects::slice(1).to_string())
}

fn measure<P: Watched>(what: &str, text: &str) -> Result<()> {
    let floor = rate(|| {
        black_box(serde_json::from_str::<IgnoredAny>(black_box(text))?);
        Ok(())
    })?;
    let rate = rate(|| {
        let (_, content) = P::decode(black_box(text))?;
        ensure!(matches!(content, Content::Object(_)), "it is not taken");
        Ok(())
    })?;
    let length = text.len();
    println!("{what} of {length} bytes: {rate:.0} a second, {:.2} of the floor", rate / floor);
    Ok(())
}

fn rate(mut each: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..ROUNDS {
        each()?;
    }
    Ok(f64::from(ROUNDS) / began.elapsed().as_secs_f64())
}
