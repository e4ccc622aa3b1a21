//! Resource versions and their order.

use serde::{Deserialize, Deserializer, de};
use std::{cmp::Ordering, fmt};

/// Longest version in bytes. The API server's are decimal numbers of at most 20 digits.
const MAX_LEN: usize = 64;

/// The version of an object or of a list: a text that is sent back to the server unchanged.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct ResourceVersion(Box<str>);

impl ResourceVersion {
    /// A version from the server's text; `None` if the text cannot be a version, because it is empty or too
    /// long.
    pub fn new(text: &str) -> Option<ResourceVersion> {
        (!text.is_empty() && text.len() <= MAX_LEN).then(|| ResourceVersion(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Order of two versions of one resource. Since Kubernetes 1.35 versions are decimal numbers without
    /// leading zeros (`apimachinery/util/resourceversion`). `None` if a version has another form.
    pub fn compare(&self, other: &ResourceVersion) -> Option<Ordering> {
        let number = |v: &ResourceVersion| {
            !v.0.is_empty() && v.0.bytes().all(|b| b.is_ascii_digit()) && !v.0.starts_with('0')
        };
        (number(self) && number(other))
            .then(|| self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0)))
    }
}

impl fmt::Debug for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ResourceVersion {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ResourceVersion, D::Error> {
        let text = String::deserialize(from)?;
        ResourceVersion::new(&text)
            .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(""), &"a resource version"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_whatever_their_length_and_other_texts_are_not() {
        let version = |text| ResourceVersion::new(text).unwrap();
        let compare = |a, b| version(a).compare(&version(b));
        assert_eq!(compare("9", "10"), Some(Ordering::Less));
        assert_eq!(compare("10", "10"), Some(Ordering::Equal));
        assert_eq!(compare("18446744073709551616", "18446744073709551615"), Some(Ordering::Greater));
        for other in ["010", "0", "-1", "1a", "1 "] {
            assert_eq!(compare("9", other), None, "{other}");
        }
        assert_eq!(ResourceVersion::new(""), None);
        assert_eq!(ResourceVersion::new(&"1".repeat(65)), None);
    }
}
