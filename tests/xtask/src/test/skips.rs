//! Reviewed list of allowed skips. A skip that is not in the list fails the run, and so does an entry without
//! a skip.

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Names and reasons of allowed skips, in two tables.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Skips {
    /// `[always]`: skipped on every machine. An entry is an error where no test of that name was skipped.
    always: BTreeMap<String, String>,
    /// `[sometimes]`: skipped only where the machine lacks a feature.
    sometimes: BTreeMap<String, String>,
}

impl Skips {
    /// Reads the list from a file.
    pub(crate) fn read(path: &Path) -> Result<Skips> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Skips::parse(&text).with_context(|| path.display().to_string())
    }

    /// Parses the part of TOML that the file uses: tables, `"name" = "reason"`, comments.
    fn parse(text: &str) -> Result<Skips> {
        let mut skips = Skips::default();
        let mut table = String::new();
        for (n, line) in text.lines().enumerate() {
            let (n, line) = (n + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                table = name.to_owned();
                continue;
            }
            let entry =
                line.split_once('=').and_then(|(name, reason)| Some((quoted(name)?, quoted(reason)?)));
            let Some((name, reason)) = entry else { bail!("line {n}: not \"name\" = \"reason\"") };
            ensure!(!reason.is_empty(), "line {n}: {name} has no reason");
            let list = match table.as_str() {
                "always" => &mut skips.always,
                "sometimes" => &mut skips.sometimes,
                _ => bail!("line {n}: not in [always] or [sometimes]"),
            };
            ensure!(list.insert(name.clone(), reason).is_none(), "line {n}: {name} stands there twice");
        }
        Ok(skips)
    }

    /// The reviewed reason of a skip; `None` where the list has no entry.
    pub(crate) fn reason(&self, name: &str) -> Option<&str> {
        self.always.get(name).or_else(|| self.sometimes.get(name)).map(String::as_str)
    }

    /// Entries of `[always]` whose test was not skipped.
    pub(crate) fn unused<'a>(&'a self, skipped: &'a BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
        self.always.keys().map(String::as_str).filter(|name| !skipped.contains(name))
    }
}

fn quoted(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains(['"', '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let skips = Skips::parse("# why\n[always]\n\"a\" = \"r\"\n\n[sometimes]\n\"b\" = \"s\"\n").unwrap();
        assert_eq!(skips.reason("a"), Some("r"));
        assert_eq!(skips.reason("b"), Some("s"));
        assert_eq!(skips.reason("c"), None);
        assert_eq!(skips.unused(&BTreeSet::new()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(skips.unused(&BTreeSet::from(["a"])).count(), 0);
    }

    #[test]
    fn what_has_no_reason_is_refused() {
        for bad in [
            "\"a\" = \"r\"",
            "[always]\n\"a\" = \"\"",
            "[always]\na = \"r\"",
            "[always]\n\"a\" = \"r\"\n\"a\" = \"r\"",
            "[x]\n\"a\" = \"b\"",
        ] {
            assert!(Skips::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_of_the_repository_is_well_formed() {
        Skips::read(&crate::root().join("tests/skips.toml")).unwrap();
    }
}
