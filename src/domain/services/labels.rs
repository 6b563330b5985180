//! Tags and meta that the operator takes from the labels of Services.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::domain::consul::meta::{is_meta_key, is_reserved_meta};

/// What stands for the label's value in a tag.
const VALUE: &str = "{value}";

/// A tag for the Services that have a label: `KEY` gives its value, `KEY=TAG` the tag TAG, in which
/// `{value}` is the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTag {
    label: Box<str>,
    template: Box<str>,
}

/// A meta pair for the Services that have a label: `KEY` or `KEY=META`, META being its key in Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMeta {
    label: Box<str>,
    meta: Box<str>,
}

/// What cannot be taken from a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    /// No label has this key.
    #[error("expected the key of a label, such as app.kubernetes.io/version, found {0:?}")]
    Key(String),
    /// Nothing is left of it.
    #[error("expected KEY=TAG with a tag of printable characters, found {0:?}")]
    Tag(String),
    /// Consul does not take such a key, or it says whose an instance is.
    #[error(
        "expected KEY=META, META being a meta key of at most 128 of A-Z, a-z, 0-9, '-' and '_' that \
         does not begin with \"consul-\" and does not mark ownership, found {0:?}"
    )]
    Meta(String),
}

// === impl LabelTag ===

impl LabelTag {
    /// The label's key.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The tag of an object with these labels.
    pub fn tag(&self, labels: &BTreeMap<Box<str>, Box<str>>) -> Option<String> {
        let value = labels.get(&self.label).filter(|value| !value.is_empty())?;
        Some(self.template.replace(VALUE, value))
    }
}

impl FromStr for LabelTag {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let (label, template) = text.split_once('=').unwrap_or((text, VALUE));
        let template = template.trim();
        if template.is_empty() || template.contains(char::is_control) {
            return Err(InvalidLabel::Tag(text.to_owned()));
        }
        Ok(Self { label: label_key(label)?, template: template.into() })
    }
}

// === impl LabelMeta ===

impl LabelMeta {
    /// The label's key.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The pair of an object with these labels.
    pub fn pair(&self, labels: &BTreeMap<Box<str>, Box<str>>) -> Option<(String, String)> {
        let value = labels.get(&self.label)?;
        Some((self.meta.to_string(), value.to_string()))
    }
}

impl FromStr for LabelMeta {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let (label, meta) = text.split_once('=').unwrap_or((text, text));
        let label = label_key(label)?;
        if !is_meta_key(meta) || is_reserved_meta(meta) {
            return Err(InvalidLabel::Meta(text.to_owned()));
        }
        Ok(Self { label, meta: meta.into() })
    }
}

/// A label's key, as the API takes it: at most 63 characters after an optional prefix.
fn label_key(text: &str) -> Result<Box<str>, InvalidLabel> {
    let (prefix, name) = text.rsplit_once('/').unwrap_or(("", text));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_key = (1..=63).contains(&name.len()) && prefix.len() <= 253;
    if is_key && name.bytes().chain(prefix.bytes()).all(allowed) {
        Ok(text.into())
    } else {
        Err(InvalidLabel::Key(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> BTreeMap<Box<str>, Box<str>> {
        [("team", "payments"), ("app.kubernetes.io/version", "1.2"), ("canary", "")]
            .map(|(key, value)| (key.into(), value.into()))
            .into()
    }

    #[test]
    fn tags_and_meta_are_made_of_labels() {
        let tag = |text: &str| text.parse::<LabelTag>().unwrap().tag(&labels());
        assert_eq!(tag("team").as_deref(), Some("payments"));
        assert_eq!(tag("app.kubernetes.io/version=v{value}").as_deref(), Some("v1.2"));
        assert_eq!(tag("team=with-team").as_deref(), Some("with-team"));
        // A label without a value would be a tag without text.
        assert_eq!(tag("canary"), None);
        assert_eq!(tag("absent"), None);
        let pair = |text: &str| text.parse::<LabelMeta>().unwrap().pair(&labels());
        let owned = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
        assert_eq!(pair("team"), owned("team", "payments"));
        assert_eq!(pair("app.kubernetes.io/version=version"), owned("version", "1.2"));
        assert_eq!(pair("canary"), owned("canary", ""));
        assert_eq!(pair("absent"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["", "=tag", "a b", "a/", "team=", "team= ", "team=a\tb", "team=a\nb"] {
            assert!(text.parse::<LabelTag>().is_err(), "{text:?}");
        }
        for text in ["", "a.b/c", "team=", "team=a.b", "team=consul-x", "team=kube-consul-cluster"]
        {
            assert!(text.parse::<LabelMeta>().is_err(), "{text:?}");
        }
    }
}
