//! Versions of the specification that a driver supports.

use std::fmt;

/// A version 1.x of the specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u64>);

/// The most versions of a list that are read.
const MAX: usize = 64;

impl Version {
    /// The newest version of the list that the node can speak: any 1.x, as they are compatible. As the kubelet's
    /// (`HighestSupportedVersion`): a version is two or more numbers, perhaps after a "v", and anything may follow.
    ///
    /// # Errors
    /// There is none; the reason is for the plugin.
    pub(super) fn newest(list: &[String]) -> Result<Version, String> {
        let versions = list.iter().take(MAX).filter_map(|text| Version::parse(text));
        match versions.filter(|v| v.0.first().is_some_and(|major| *major <= 1)).max() {
            Some(version) if version.0.first() == Some(&1) => Ok(version),
            _ => Err(format!("none of the supported versions {:?} is 1.x", list.get(..MAX).unwrap_or(list))),
        }
    }

    /// Reads a version; `None` where it is none.
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers = text.get(..end)?.trim_end_matches('.').split('.');
        let mut version: Vec<u64> = numbers.map(|n| n.parse().ok()).collect::<Option<_>>()?;
        if version.len() < 2 {
            return None;
        }
        // 1.2 and 1.2.0 are one version.
        while version.len() > 2 && version.last() == Some(&0) {
            version.pop();
        }
        Some(Version(version))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(list: &[&str]) -> Result<String, String> {
        let list: Vec<String> = list.iter().map(|t| (*t).to_owned()).collect();
        Version::newest(&list).map(|v| v.to_string())
    }

    #[test]
    fn the_newest_of_1_x_counts() {
        for (list, version) in [
            (&["1.0.0"][..], "1.0"),
            (&["v1.2", "1.10.0", "1.9"], "1.10"),
            (&["0.3", " 1.1.2-rc1 "], "1.1.2"),
            (&["2.0.0", "1.5"], "1.5"),
            (&["odd", "1.5."], "1.5"),
        ] {
            assert_eq!(newest(list).as_deref(), Ok(version));
        }
    }

    #[test]
    fn a_driver_without_1_x_is_refused() {
        for list in
            [&[][..], &["0.3.0"], &["2.0"], &["1"], &[""], &["1..2"], &["99999999999999999999.1"], &["-1.2"]]
        {
            let error = newest(list).unwrap_err();
            assert!(error.starts_with("none of the supported versions ["), "{error}");
        }
    }
}
