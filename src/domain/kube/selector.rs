//! Label selectors in the text form of the Kubernetes API.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A label selector: all its requirements have to hold. The empty one selects everything.
///
/// Equality-based and set-based requirements, as
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api> gives them:
/// `a=b`, `a==b`, `a!=b`, `a in (b, c)`, `a notin (b, c)`, `a`, `!a`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Box<str>, Vec<Box<str>>),
    NotIn(Box<str>, Vec<Box<str>>),
    Exists(Box<str>),
    Absent(Box<str>),
}

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected requirements such as 'app=web', 'tier in (a,b)', 'team' or '!legacy' separated by commas, found {0:?}"
)]
pub struct InvalidSelector(String);

// === impl Selector ===

impl Selector {
    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn selects(&self, labels: &BTreeMap<Box<str>, Box<str>>) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether the label of this key matters to it.
    pub fn reads(&self, key: &str) -> bool {
        self.0.iter().any(|requirement| match requirement {
            Requirement::In(read, _)
            | Requirement::NotIn(read, _)
            | Requirement::Exists(read)
            | Requirement::Absent(read) => **read == *key,
        })
    }
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        split_outside_parentheses(text)
            .filter(|part| !part.trim().is_empty())
            .map(|part| Requirement::parse(part.trim()).ok_or_else(|| InvalidSelector(part.into())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            match requirement {
                Requirement::In(key, values) => {
                    write!(f, "{separator}{key} in ({})", values.join(","))?;
                }
                Requirement::NotIn(key, values) => {
                    write!(f, "{separator}{key} notin ({})", values.join(","))?;
                }
                Requirement::Exists(key) => write!(f, "{separator}{key}")?,
                Requirement::Absent(key) => write!(f, "{separator}!{key}")?,
            }
        }
        Ok(())
    }
}

// === impl Requirement ===

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
            let values: Vec<Box<str>> =
                values.split(',').map(|value| value.trim().into()).collect();
            let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
            let key = label_key(key)?;
            return match operator {
                "in" => Some(Self::In(key, values)),
                "notin" => Some(Self::NotIn(key, values)),
                _ => None,
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Some(Self::NotIn(label_key(key)?, vec![label_value(value)?]));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Some(Self::In(label_key(key)?, vec![label_value(value)?]));
        }
        match text.strip_prefix('!') {
            Some(key) => label_key(key).map(Self::Absent),
            None => label_key(text).map(Self::Exists),
        }
    }

    fn holds(&self, labels: &BTreeMap<Box<str>, Box<str>>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

fn label_key(text: &str) -> Option<Box<str>> {
    let text = text.trim();
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!text.is_empty() && text.chars().all(valid)).then(|| text.into())
}

fn label_value(text: &str) -> Option<Box<str>> {
    let text = text.trim();
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.chars().all(valid).then(|| text.into())
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_requirement_selects_as_the_api_does() {
        let labels: BTreeMap<Box<str>, Box<str>> =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("app notin (web,db)", false),
            ("other notin (a)", true),
            ("tier", true),
            ("!tier", false),
            ("!other", true),
            ("app=web,tier in (front,back),!other", true),
            ("app=web,other", false),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.selects(&labels), expected, "{text}");
            assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["a b", "a in b", "a between (b)", "=b", "!", "a=b c", "a=(b"] {
            assert!(text.parse::<Selector>().is_err(), "{text:?} was accepted");
        }
    }
}
