//! Results of end-to-end tests: read from Ginkgo's report, kept as a text of one test a line.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should: failed, timed out, panicked or interrupted.
    Failed,
    /// The test found that it does not fit this cluster.
    Skipped,
}

/// Outcomes by the tests' full names.
pub(super) type Results = BTreeMap<String, Outcome>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// How often the test was begun; none where it was not chosen.
    num_attempts: u32,
}

/// Reads Ginkgo's JSON report. Tests that were not chosen are left out.
///
/// # Errors
/// The text is no such report.
pub(super) fn read(json: &[u8]) -> Result<Results> {
    let suites: Vec<Suite> = serde_json::from_slice(json).context("cannot read the tests' report")?;
    let specs = suites.into_iter().flat_map(|s| s.spec_reports.unwrap_or_default());
    let mut found = Results::new();
    for spec in specs.filter(|s| s.leaf_node_type == "It" && s.num_attempts > 0) {
        let outcome = match spec.state.as_str() {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        found.insert(name.join(" "), outcome);
    }
    Ok(found)
}

/// The results as text: `passed <name>`, sorted by name.
pub(super) fn print(results: &Results) -> String {
    let word = |outcome: &Outcome| match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
    };
    results.iter().map(|(name, outcome)| format!("{} {name}\n", word(outcome))).collect()
}

/// Reads what [`print`] wrote.
///
/// # Errors
/// A line begins with another word.
pub(super) fn parse(text: &str) -> Result<Results> {
    text.lines()
        .map(|line| match line.split_once(' ') {
            Some(("passed", name)) => Ok((name.to_owned(), Outcome::Passed)),
            Some(("failed", name)) => Ok((name.to_owned(), Outcome::Failed)),
            Some(("skipped", name)) => Ok((name.to_owned(), Outcome::Skipped)),
            _ => bail!("the line {line:?} begins with neither passed, failed nor skipped"),
        })
        .collect()
}

/// The names in a list of tests: one a line, without comments.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read_test_by_test() {
        let spec = |state: &str, kind: &str, text: &str, attempts: u32| {
            serde_json::json!({"ContainerHierarchyTexts": ["[sig-x] A", "b"], "LeafNodeType": kind,
                "LeafNodeText": text, "State": state, "NumAttempts": attempts})
        };
        let report = serde_json::json!([{"SpecReports": [
            spec("passed", "It", "works", 1),
            spec("timedout", "It", "hangs", 1),
            spec("skipped", "It", "does not fit", 1),
            spec("skipped", "It", "was not chosen", 0),
            spec("passed", "SynchronizedBeforeSuite", "", 1),
        ]}, {"SpecReports": null}]);
        let found = read(report.to_string().as_bytes()).unwrap();
        let text = print(&found);
        assert_eq!(
            text,
            "skipped [sig-x] A b does not fit\nfailed [sig-x] A b hangs\npassed [sig-x] A b works\n"
        );
        assert_eq!(parse(&text).unwrap(), found);
        assert!(parse("perhaps x\n").is_err());
        assert!(read(b"{}").is_err());
    }

    #[test]
    fn a_list_may_have_comments() {
        assert_eq!(names("# why\na b\n\n c\n").collect::<Vec<_>>(), ["a b", "c"]);
    }
}
