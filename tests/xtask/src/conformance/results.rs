//! Results of end-to-end tests: read from Ginkgo's report and the API server's audit log, kept as a text of one
//! test a line.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should: failed, timed out or panicked.
    Failed,
    /// The test found that it does not fit this cluster.
    Skipped,
}

/// Result of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    /// How the test ended.
    pub(super) outcome: Outcome,
    /// What the test asked of the node's own API: `log`, `exec`, `attach`, `portforward`, `proxy`.
    pub(super) asked: BTreeSet<String>,
}

/// Tests by their full names.
pub(super) type Results = BTreeMap<String, Test>;

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
    start_time: String,
    end_time: String,
}

/// A line of the audit log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    request_received_timestamp: String,
    object_ref: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    subresource: Option<String>,
}

/// Reads Ginkgo's JSON report of tests that ran one by one, in UTC, and the requests to the node among those of
/// the audit log. Tests that were not chosen, and one that was interrupted by hand, are left out.
///
/// # Errors
/// A text is not what it should be.
pub(super) fn read(report: &[u8], audit: &str) -> Result<Results> {
    let suites: Vec<Suite> = serde_json::from_slice(report).context("cannot read the tests' report")?;
    let requests = requests(audit)?;
    let specs = suites.into_iter().flat_map(|s| s.spec_reports.unwrap_or_default());
    let mut found = Results::new();
    let counts = |s: &Spec| s.leaf_node_type == "It" && s.num_attempts > 0 && s.state != "interrupted";
    for spec in specs.filter(counts) {
        let outcome = match spec.state.as_str() {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let during = moment(&spec.start_time)..moment(&spec.end_time);
        let asked =
            requests.iter().filter(|(at, _)| during.contains(&at.as_str())).map(|(_, what)| what.clone());
        let asked = asked.collect();
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        found.insert(name.join(" "), Test { outcome, asked });
    }
    Ok(found)
}

/// Moment and subresource of every request in the audit log.
fn requests(audit: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for line in audit.lines() {
        let request: Request = serde_json::from_str(line).context("cannot read the audit log")?;
        if let Some(what) = request.object_ref.and_then(|o| o.subresource) {
            found.push((moment(&request.request_received_timestamp).to_owned(), what));
        }
    }
    Ok(found)
}

/// A time of RFC 3339 in UTC as a text that sorts as time does, whatever its number of decimals.
fn moment(time: &str) -> &str {
    time.trim_end_matches('Z')
}

/// The results as text, sorted by name: the outcome, what was asked of the node or `-`, the name.
pub(super) fn print(results: &Results) -> String {
    let word = |outcome: Outcome| match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
    };
    let asked = |test: &Test| match test.asked.iter().map(String::as_str).collect::<Vec<_>>().join(",") {
        none if none.is_empty() => "-".to_owned(),
        some => some,
    };
    results.iter().map(|(name, test)| format!("{} {} {name}\n", word(test.outcome), asked(test))).collect()
}

/// Reads what [`print`] wrote.
///
/// # Errors
/// A line is not of that form.
pub(super) fn parse(text: &str) -> Result<Results> {
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let (outcome, asked, name) = (words.next(), words.next(), words.next());
            let outcome = match outcome {
                Some("passed") => Outcome::Passed,
                Some("failed") => Outcome::Failed,
                Some("skipped") => Outcome::Skipped,
                _ => bail!("the line {line:?} begins with neither passed, failed nor skipped"),
            };
            let (Some(asked), Some(name)) = (asked, name) else { bail!("the line {line:?} names no test") };
            let asked = asked.split(',').filter(|a| *a != "-").map(str::to_owned).collect();
            Ok((name.to_owned(), Test { outcome, asked }))
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
    use serde_json::{Value, json};

    fn spec(state: &str, kind: &str, text: &str, attempts: u32, during: [&str; 2]) -> Value {
        json!({"ContainerHierarchyTexts": ["[sig-x] A", "b"], "LeafNodeType": kind, "LeafNodeText": text,
            "State": state, "NumAttempts": attempts, "StartTime": during[0], "EndTime": during[1]})
    }

    #[test]
    fn the_report_is_read_test_by_test() {
        let (one, two) = (
            ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02.5Z"],
            ["2026-01-01T00:00:02.6Z", "2026-01-01T00:00:03Z"],
        );
        let report = json!([{"SpecReports": [
            spec("passed", "It", "works", 1, one),
            spec("timedout", "It", "hangs", 1, two),
            spec("skipped", "It", "does not fit", 1, two),
            spec("skipped", "It", "was not chosen", 0, one),
            spec("interrupted", "It", "was cut off", 1, two),
            spec("passed", "SynchronizedBeforeSuite", "", 1, one),
        ]}, {"SpecReports": null}]);
        let audit = r#"{"requestReceivedTimestamp":"2026-01-01T00:00:01.000001Z","objectRef":{"resource":"pods","subresource":"log"}}
{"requestReceivedTimestamp":"2026-01-01T00:00:02.499999Z","objectRef":{"resource":"pods","subresource":"exec"}}
{"requestReceivedTimestamp":"2026-01-01T00:00:02.499999Z","objectRef":{"resource":"pods","subresource":"log"}}
{"requestReceivedTimestamp":"2026-01-01T00:00:02.550000Z","objectRef":{"resource":"pods","subresource":"attach"}}
"#;
        let found = read(report.to_string().as_bytes(), audit).unwrap();
        let text = print(&found);
        assert_eq!(
            text,
            "skipped - [sig-x] A b does not fit\nfailed - [sig-x] A b hangs\npassed exec,log [sig-x] A b works\n"
        );
        assert_eq!(parse(&text).unwrap(), found);
        assert!(read(b"{}", "").is_err());
        assert!(read(b"[]", "x").is_err());
    }

    #[test]
    fn a_line_of_another_form_is_refused() {
        assert!(parse("perhaps - x\n").is_err());
        assert!(parse("passed -\n").is_err());
    }

    #[test]
    fn a_list_may_have_comments() {
        assert_eq!(names("# why\na b\n\n c\n").collect::<Vec<_>>(), ["a b", "c"]);
    }
}
