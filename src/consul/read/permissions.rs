//! What the token may do, by Consul's own word, and what else is worth knowing before anything is
//! written.

use serde::{Deserialize, Serialize};

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::Request;

/// An ACL rule: resource, what it applies to, and access, as in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AclRule {
    /// `service`, `node`, `key`, `session` or `agent`.
    pub resource: &'static str,
    /// The name or prefix that is asked for.
    pub segment: String,
    /// `read` or `write`.
    pub access: &'static str,
}

/// What Consul says of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// ACLs are off: everybody may do everything.
    NoAcls,
    /// Whether the token has each of the rules.
    Rules(Vec<bool>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    allow: bool,
}

// === impl Client ===

impl Client {
    /// Whether the token has each of these rules. Consul's own UI asks in this way; the path is
    /// there from 1.7 on (seen on 1.20.1: without ACLs it is a 401).
    pub async fn authorize(&self, rules: &[AclRule]) -> Result<Authorization, Error> {
        let request = Request::post("/v1/internal/acl/authorize").json(&rules);
        match self.send(&request).await {
            Ok(reply) => {
                let answers: Vec<Answer> = reply.into_found().await?.json().await?;
                Ok(Authorization::Rules(answers.into_iter().map(|answer| answer.allow).collect()))
            }
            Err(Error::Unexpected { status: 401, message, .. })
                if message.contains("ACL support disabled") =>
            {
                Ok(Authorization::NoAcls)
            }
            Err(error) => Err(error),
        }
    }

    /// The `Date` of Consul's answer.
    pub async fn server_date(&self) -> Result<Option<String>, Error> {
        let reply = self.send(&Request::get("/v1/status/leader")).await?;
        Ok(reply.header("Date").map(str::to_owned))
    }
}
