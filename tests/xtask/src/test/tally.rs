//! What ran and how it ended.

use super::skips::Skips;
use crate::out;
use std::{collections::BTreeSet, ffi::OsString, time::Duration};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well.
    Passed,
    /// Not; with what it said.
    Failed(String),
    /// It did not run, for this reason.
    Skipped(String),
}

/// Everything that ran.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    tests: Vec<(String, Outcome, Duration)>,
    /// What every test binary gets into its environment.
    pub(crate) env: Vec<(String, OsString)>,
    /// Whether what tests print is told when they pass, too.
    pub(crate) show: bool,
}

/// How many of the slowest are named.
const SLOWEST: usize = 10;

impl Tally {
    /// Adds a test; what is no success is told at once.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => out::line(&format!("✗ {name} failed\n{why}")),
            Outcome::Skipped(why) => out::line(&format!("- {name} skipped: {why}")),
        }
        self.tests.push((name.to_owned(), outcome, took));
    }

    /// An empty one for a test binary, which runs as this one says.
    pub(crate) fn part(&self) -> Tally {
        Tally { tests: Vec::new(), env: self.env.clone(), show: self.show }
    }

    /// Takes in what a part has; it was told already.
    pub(crate) fn join(&mut self, part: Tally) {
        self.tests.extend(part.tests);
    }

    /// Whether nothing ran.
    pub(crate) fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|(_, outcome, _)| wanted(outcome)).count()
    }

    /// How many passed and failed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.count(|o| *o == Outcome::Passed), self.count(|o| matches!(o, Outcome::Failed(_))))
    }

    /// Tells everything and says whether it is good. `whole` says that all there is was asked for, so that every
    /// entry of the list has to be needed.
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
        // The last line, as others read it.
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
