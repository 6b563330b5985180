//! Versions of what we wrote: what a watch shows later may be older than the answer to a write, and
//! would undo it here, and so cost another write.

use crate::domain::import::object::Version;
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;

/// What the API server answered to our newest write of each object, until a watch has shown it.
#[derive(Debug, Default)]
pub(super) struct Versions(HashMap<ObjectKey, Written>);

#[derive(Clone, Copy, Debug)]
enum Written {
    /// It has this version.
    Version(u64),
    /// It is gone; this was its last version.
    Gone(u64),
}

// === impl Versions ===

impl Versions {
    /// The API server answered this version; `shown` is what is known of the object.
    pub(super) fn written(&mut self, key: &ObjectKey, version: &Version, shown: Option<&Version>) {
        let Some(number) = version.number() else { return };
        // The watch was faster than the answer: it will not show this version again.
        let was_shown = shown.and_then(Version::number).is_some_and(|shown| shown >= number);
        if !was_shown {
            self.0.insert(key.clone(), Written::Version(number));
        }
    }

    /// The API server answered that it is gone; `version` was known of it.
    pub(super) fn deleted(&mut self, key: &ObjectKey, version: &Version) {
        if let Some(number) = version.number() {
            self.0.insert(key.clone(), Written::Gone(number));
        }
    }

    /// Whether what a watch shows is not older than what was written.
    pub(super) fn is_news(&mut self, key: &ObjectKey, version: &Version) -> bool {
        let Some(written) = self.0.get(key) else { return true };
        let is_older = |number| match *written {
            Written::Version(written) => number < written,
            Written::Gone(last) => number <= last,
        };
        if version.number().is_some_and(is_older) {
            return false;
        }
        self.0.remove(key);
        true
    }

    /// Whether a deletion that a watch shows is not that of an object before what was written: it
    /// shows each version, in their order, so that what was written comes first.
    pub(super) fn is_news_of_deletion(&mut self, key: &ObjectKey) -> bool {
        if let Some(Written::Version(_)) = self.0.get(key) {
            return false;
        }
        self.0.remove(key);
        true
    }

    /// A list begins: what it shows counts, whatever its versions are. They go backwards where etcd
    /// was restored from a backup.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
