//! The reviewed list of differences that Berth's status and events may have from the kubelet's.

use crate::compare::Unlike;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

/// Contents of `tests/golden/status-differences.json`. Each entry names shapes, paths with the values of both
/// sides, and the reason why the difference is right. In shapes and paths `*` stands for any text; as a value
/// it stands for any value or none. Every entry must occur in a run, except those with `"chance": true`,
/// whose difference occurs in some runs only.
#[derive(Debug)]
pub(crate) struct Differences {
    lines: Vec<Line>,
    used: BTreeSet<usize>,
}

/// One path of an entry, for one of the entry's shapes.
#[derive(Debug)]
struct Line {
    shape: String,
    path: String,
    kubelet: Value,
    berth: Value,
    /// Whether the difference occurs in some runs only.
    chance: bool,
}

impl Line {
    fn covers(&self, shape: &str, unlike: &Unlike) -> bool {
        let same = |listed: &Value, found: &Value| listed == "*" || listed == found;
        matches(&self.shape, shape)
            && same(&self.kubelet, &unlike.kubelet)
            && same(&self.berth, &unlike.berth)
            && matches(&self.path, &unlike.path)
    }
}

/// Whether the text matches the pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, after)) = text.split_once(part) else { return false };
        text = after;
    }
    text.ends_with(last)
}

impl Differences {
    pub(crate) fn read(path: &Path) -> Result<Differences> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let list: Vec<Value> =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let mut lines = Vec::new();
        let mut listed = BTreeSet::new();
        for entry in &list {
            ensure!(
                entry["reason"].as_str().is_some_and(|r| r.len() > 20),
                "an entry without a reason: {entry}"
            );
            let shapes = entry["shapes"].as_array().with_context(|| format!("no shapes in {entry}"))?;
            let values = entry["values"].as_object().with_context(|| format!("no values in {entry}"))?;
            ensure!(!shapes.is_empty() && !values.is_empty(), "an entry about nothing: {entry}");
            let chance = entry["chance"] == true;
            for shape in shapes {
                let shape = shape.as_str().with_context(|| format!("a shape in {entry}"))?.to_owned();
                for (path, sides) in values {
                    let once = listed.insert((shape.clone(), path.clone(), sides.to_string()));
                    ensure!(once, "{shape} {path} is listed twice with the same values");
                    let (kubelet, berth) = (sides["kubelet"].clone(), sides["berth"].clone());
                    lines.push(Line { shape: shape.clone(), path: path.clone(), kubelet, berth, chance });
                }
            }
        }
        Ok(Differences { lines, used: BTreeSet::new() })
    }

    /// Returns the differences that are not on the list.
    pub(crate) fn unknown(&self, shape: &str, found: &[Unlike]) -> Vec<Unlike> {
        found.iter().filter(|u| !self.lines.iter().any(|l| l.covers(shape, u))).cloned().collect()
    }

    /// Marks the entries that cover these differences as used.
    pub(crate) fn meet(&mut self, shape: &str, found: &[Unlike]) {
        let met = |line: &Line| found.iter().any(|u| line.covers(shape, u));
        self.used.extend(self.lines.iter().enumerate().filter(|(_, l)| met(l)).map(|(i, _)| i));
    }

    /// Entries that match no existing shape, and entries without an occurrence although all their shapes ran.
    pub(crate) fn unused(&self, ran: &BTreeSet<&str>, exist: &BTreeSet<&str>) -> Vec<String> {
        let needless = |i: usize, line: &Line| {
            let about: Vec<&&str> = exist.iter().filter(|shape| matches(&line.shape, shape)).collect();
            let met = line.chance || self.used.contains(&i);
            about.is_empty() || (about.iter().all(|s| ran.contains(**s)) && !met)
        };
        let lines = self.lines.iter().enumerate().filter(|(i, line)| needless(*i, line));
        lines.map(|(_, line)| format!("{} {}", line.shape, line.path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in
            [("*", ""), ("a*", "ab"), ("*b", "ab"), ("a*c*e", "abcde"), ("a*a", "aa"), ("ab", "ab")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*a", "a"), ("a", "ab"), ("a*c*e", "abde"), ("*.b", "a.bc"), ("", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_list_covers_just_what_it_says_and_must_be_needed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.json");
        let entry = json!([
            {
                "shapes": ["a", "b"], "reason": "a reason that is long enough",
                "values": {"phase": {"kubelet": "Running", "berth": "Pending"}},
            },
            {
                "shapes": ["*"], "reason": "a reason that is long enough", "chance": true,
                "values": {"events.*.Pulled: *": {"kubelet": "*", "berth": null}},
            },
            {
                "shapes": ["a", "b"], "reason": "the same value is otherwise at times",
                "values": {"phase": {"kubelet": "Running", "berth": "Unknown"}},
            },
        ]);
        fs::write(&path, entry.to_string()).unwrap();
        let mut list = Differences::read(&path).unwrap();
        let one =
            |path: &str, kubelet: Value, berth: Value| vec![Unlike { path: path.into(), kubelet, berth }];
        let found = |berth: &str| one("phase", json!("Running"), json!(berth));
        assert!(list.unknown("a", &found("Pending")).is_empty());
        assert_eq!(list.unknown("a", &found("Failed")).len(), 1);
        assert_eq!(list.unknown("c", &found("Pending")).len(), 1);
        let pulled = |berth| one("events.spec.containers{app}.Pulled: x", json!("Normal"), berth);
        assert!(list.unknown("c", &pulled(Value::Null)).is_empty());
        assert_eq!(list.unknown("c", &pulled(json!("Warning"))).len(), 1);
        list.meet("a", &found("Pending"));
        list.meet("a", &found("Unknown"));
        list.meet("b", &found("Unknown"));
        let exist = BTreeSet::from(["a", "b"]);
        assert_eq!(list.unused(&exist, &exist), ["b phase"]);
        assert!(list.unused(&BTreeSet::from(["a"]), &exist).is_empty());
        assert_eq!(list.unused(&BTreeSet::new(), &BTreeSet::from(["a"])), ["b phase"; 2]);
        fs::write(&path, r#"[{"shapes": ["a"], "values": {"phase": {}}}]"#).unwrap();
        assert!(Differences::read(&path).is_err(), "an entry without a reason");
        let twice = entry.as_array().unwrap().iter().chain([&entry[0]]).cloned().collect::<Value>();
        fs::write(&path, twice.to_string()).unwrap();
        assert!(Differences::read(&path).is_err(), "an entry twice");
    }
}
