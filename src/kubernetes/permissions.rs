//! What this client may do, by the API's own word (`SelfSubjectAccessReview`), and the API's clock.

use std::fmt;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::client::Body;

use crate::kubernetes::errors::failure;

/// A permission, in the words of an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The API group; empty: the core's.
    pub group: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// What is done with it.
    pub verb: &'static str,
    /// In this namespace only.
    pub namespace: Option<Box<str>>,
    /// With the object of this name only.
    pub name: Option<&'static str>,
}

/// Whether this client has the permission.
pub async fn is_permitted(client: &Client, permission: &Permission) -> Result<bool, String> {
    let text = |text: &str| Some(text.to_owned());
    let attributes = ResourceAttributes {
        group: text(permission.group),
        resource: text(permission.resource),
        verb: text(permission.verb),
        namespace: permission.namespace.as_deref().map(str::to_owned),
        name: permission.name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|error| failure(&error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The `Date` of the API server's answer.
pub async fn server_date(client: &Client) -> Result<Option<String>, String> {
    let request = http::Request::get("/version").body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| failure(&error))?;
    let date = answer.headers().get(http::header::DATE);
    Ok(date.and_then(|date| date.to_str().ok()).map(str::to_owned))
}

// === impl Permission ===

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = self.name {
            write!(f, " {name}")?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, " in {namespace}")?;
        }
        Ok(())
    }
}
