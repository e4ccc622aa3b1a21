//! Secrets of a call.

use std::{collections::BTreeMap, fmt};

/// Secrets of a call by key: the data of the Secret that a volume names. Shown by no `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// These secrets.
    pub fn new(secrets: BTreeMap<String, String>) -> Secrets {
        Secrets(secrets)
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, key: &str, secret: String) -> Secrets {
        self.0.insert(key.to_owned(), secret);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secrets themselves, for the message to the driver.
    pub(crate) fn reveal(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Secrets {
    /// Shows the number only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} hidden)", self.0.len())
    }
}
