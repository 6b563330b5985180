//! What routes to Services: Ingresses, and the HTTPRoutes and Gateways of the Gateway API.
//!
//! | file | what it is |
//! |---|---|
//! | `ingress` | Ingresses |
//! | `gateway` | HTTPRoutes and Gateways |
//! | `kept` | what is kept of both: names, addresses, so many rules |

mod gateway;
mod ingress;
mod kept;

pub use self::gateway::{Gateways, HttpRoutes};
pub use self::ingress::Ingresses;

#[cfg(test)]
mod tests;
