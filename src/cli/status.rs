//! The flags of `status` and `explain`.

use clap::Args;
use http::Uri;

use crate::run::plan::Output;
use crate::run::status::ServiceName;

pub(super) const STATUS_EXAMPLES: &str = "Examples:
  kubectl port-forward deployment/kube-consul 9655 &
  kube-consul status

Exit codes: 0 shown, 1 no bridge answers, 2 wrong usage.";

pub(super) const EXPLAIN_EXAMPLES: &str = "Examples:
  kube-consul explain shop/web

Exit codes: 0 shown, 1 no bridge answers or it has no such Service, 2 wrong usage.";

/// Where the bridge is.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Where a bridge serves /status
    #[arg(
        long,
        env = "KUBE_CONSUL_ADMIN_URL",
        default_value = "http://127.0.0.1:9655",
        value_name = "URL"
    )]
    pub(super) admin_url: Uri,
    /// How it is printed
    #[arg(short = 'o', long, env = "KUBE_CONSUL_OUTPUT", default_value = "text", value_enum)]
    pub(super) output: Output,
}

/// Which Service.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The Service
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub(super) service: ServiceName,
    #[command(flatten)]
    pub(super) status: StatusArgs,
}

fn service_name(text: &str) -> Result<ServiceName, String> {
    // What Kubernetes names are made of; nothing of it needs escaping in a URL.
    let is_name = |name: &str| {
        let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !name.is_empty() && name.bytes().all(is_part) && !name.ends_with('-')
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(ServiceName { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(format!("expected NAMESPACE/NAME of a Service, such as shop/web, found {text:?}")),
    }
}
