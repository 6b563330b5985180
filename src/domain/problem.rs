//! What is wrong with one object, told to the people who can fix it.

use std::fmt;

/// One thing that is wrong with one object. It never stops the others (invariant: isolation).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// What kind of problem: the reason of the Kubernetes Event and the label of the metric.
    pub reason: Reason,
    /// What was expected, what was found and what to do.
    pub message: String,
}

/// Kinds of problems. Their names are CamelCase words, as reasons of Kubernetes Events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An annotation's value is not what it has to be.
    InvalidAnnotation,
    /// An annotation does not count where it stands, by `--annotations`.
    IgnoredAnnotation,
    /// A label says that the Service mirrors one of Consul.
    ImportLabel,
    /// The name cannot be registered, or cannot be asked for by DNS.
    InvalidName,
    /// Nobody may be led to the address, or it is none.
    InvalidAddress,
    /// An endpoint or Service lacks what a registration needs: a port, an address.
    Incomplete,
    /// Another Service has this Consul name.
    NameConflict,
    /// Others than this program hold instances under this Consul name.
    ForeignName,
    /// PTR records cannot be written: the datacenter or the DNS domain is not known.
    NoDnsDomain,
    /// Others than this program hold this PTR record.
    ForeignPtrRecord,
    /// More is asked for than is registered of one Service.
    TooLarge,
    /// The object could not be read.
    Undecodable,
    /// Consul refused the record for what is in it.
    Refused,
    /// A right is missing: the token's in Consul, or that to see an object in Kubernetes.
    Denied,
    /// Consul fails this record's write, again and again, and takes others.
    Failing,
    /// The agent has the record and the catalog does not.
    NotInCatalog,
    /// Somebody else keeps changing the record, or has something in its place.
    Contested,
    /// Services that no bridge made keep a namespace's node in the catalog.
    ForeignOnNode,
}

// === impl Reason ===

impl Reason {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Reason::InvalidAnnotation,
        Reason::IgnoredAnnotation,
        Reason::ImportLabel,
        Reason::InvalidName,
        Reason::InvalidAddress,
        Reason::Incomplete,
        Reason::NameConflict,
        Reason::ForeignName,
        Reason::NoDnsDomain,
        Reason::ForeignPtrRecord,
        Reason::Undecodable,
        Reason::Refused,
        Reason::Denied,
        Reason::Failing,
        Reason::NotInCatalog,
        Reason::Contested,
        Reason::ForeignOnNode,
        Reason::TooLarge,
    ];

    /// The word by which Events and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidAnnotation => "InvalidAnnotation",
            Reason::IgnoredAnnotation => "IgnoredAnnotation",
            Reason::ImportLabel => "ImportLabel",
            Reason::InvalidName => "InvalidName",
            Reason::InvalidAddress => "InvalidAddress",
            Reason::Incomplete => "Incomplete",
            Reason::NameConflict => "NameConflict",
            Reason::ForeignName => "ForeignName",
            Reason::NoDnsDomain => "NoDnsDomain",
            Reason::ForeignPtrRecord => "ForeignPtrRecord",
            Reason::TooLarge => "TooLarge",
            Reason::Undecodable => "Undecodable",
            Reason::Refused => "Refused",
            Reason::Denied => "Denied",
            Reason::Failing => "Failing",
            Reason::NotInCatalog => "NotInCatalog",
            Reason::Contested => "Contested",
            Reason::ForeignOnNode => "ForeignOnNode",
        }
    }
}

// === impl Problem ===

impl Problem {
    /// A problem of this kind.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
