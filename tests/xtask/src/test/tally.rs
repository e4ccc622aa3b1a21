//! Results of all tests of a run.

use super::skips::Skips;
use crate::out;
use std::{collections::BTreeSet, ffi::OsString, time::Duration};

/// Result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The test passed.
    Passed,
    /// The test failed, with its output.
    Failed(String),
    /// The test did not run, for this reason.
    Skipped(String),
}

/// Results of all tests so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    tests: Vec<(String, Outcome, Duration)>,
    /// Environment variables for every test binary.
    pub(crate) env: Vec<(String, OsString)>,
    /// Whether the output of passing tests is printed too.
    pub(crate) show: bool,
}

/// Number of slowest tests in the report.
const SLOWEST: usize = 10;

impl Tally {
    /// Adds a test. Failures and skips are printed at once.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => out::line(&format!("✗ {name} failed\n{why}")),
            Outcome::Skipped(why) => out::line(&format!("- {name} skipped: {why}")),
        }
        self.tests.push((name.to_owned(), outcome, took));
    }

    /// An empty tally for one test binary, with the same settings.
    pub(crate) fn part(&self) -> Tally {
        Tally { tests: Vec::new(), env: self.env.clone(), show: self.show }
    }

    /// Adds the results of a part, which were printed already.
    pub(crate) fn join(&mut self, part: Tally) {
        self.tests.extend(part.tests);
    }

    /// Whether no test ran.
    pub(crate) fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|(_, outcome, _)| wanted(outcome)).count()
    }

    /// Numbers of passed and failed tests.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.count(|o| *o == Outcome::Passed), self.count(|o| matches!(o, Outcome::Failed(_))))
    }

    /// Prints the report and returns whether the run is good. With `whole`, the run covers every test, and an
    /// unused `[always]` entry of the list is a failure.
    pub(crate) fn report(&mut self, skips: &Skips, whole: bool, took: Duration) -> bool {
        let skipped: Vec<String> = self
            .tests
            .iter()
            .filter(|(_, o, _)| matches!(o, Outcome::Skipped(_)))
            .map(|(n, ..)| n.clone())
            .collect();
        for name in &skipped {
            match skips.reason(name) {
                Some(reason) => out::line(&format!("skipped, reviewed: {name}: {reason}")),
                None => self.add(
                    name,
                    Outcome::Failed("skipped without an entry in tests/skips.toml".into()),
                    Duration::ZERO,
                ),
            }
        }
        if whole {
            let names: BTreeSet<&str> = skipped.iter().map(String::as_str).collect();
            for name in skips.unused(&names) {
                let why = "its entry in tests/skips.toml is not needed any more";
                self.add(name, Outcome::Failed(why.into()), Duration::ZERO);
            }
        }
        let mut slowest: Vec<_> = self.tests.iter().collect();
        slowest.sort_by_key(|(.., took)| std::cmp::Reverse(*took));
        out::line("the slowest:");
        for (name, _, took) in slowest.into_iter().take(SLOWEST) {
            out::line(&format!("  {:7.2} s  {name}", took.as_secs_f64()));
        }
        let failed: Vec<&str> = self
            .tests
            .iter()
            .filter(|(_, o, _)| matches!(o, Outcome::Failed(_)))
            .map(|(n, ..)| n.as_str())
            .collect();
        if !failed.is_empty() {
            out::line(&format!("failed:\n  {}", failed.join("\n  ")));
        }
        let passed = self.count(|o| *o == Outcome::Passed);
        out::line(&format!("in {:.0} s", took.as_secs_f64()));
        // The summary stays the last line, because scripts parse it.
        out::line(&format!("{passed} passed, {} failed, {} skipped", failed.len(), skipped.len()));
        failed.is_empty() && passed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreviewed_skip_and_an_empty_run_are_failures() {
        let mut tally = Tally::default();
        assert!(!tally.report(&Skips::default(), true, Duration::ZERO));
        tally.add("a", Outcome::Passed, Duration::ZERO);
        assert!(tally.report(&Skips::default(), true, Duration::ZERO));
        tally.add("b", Outcome::Skipped("no".into()), Duration::ZERO);
        assert!(!tally.report(&Skips::default(), true, Duration::ZERO));
    }
}
