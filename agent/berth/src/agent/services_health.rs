//! Health of Services on this node: what the engine reports, and whether a self-test's connections are answered.
//!
//! A test runs when somebody asks and the last one is some seconds old, on a thread that may block; who asks meanwhile waits
//! for the same test. After a failure the engine compares the kernel's state with the wanted one at once, so that the next
//! test finds what it could mend.

use super::host_network::Host;
use berth_api::view::Health;
use berth_core::{sync::lock, time::Wall};
use berth_services::{DatapathHealth, SelfTest};
use berth_sys::clock;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::spawn_blocking};

/// Time for which a good result holds.
const HOLDS: Duration = Duration::from_secs(2);

/// Time for which a bad one holds.
const HOLDS_BAD: Duration = Duration::from_millis(500);

/// Pause before a test that has failed is made again: a device that has just come gets its programs in this time.
const AGAIN: Duration = Duration::from_millis(100);

/// A test that has taken longer is not made again: who asked waits for a second at most.
const SLOW: Duration = Duration::from_millis(350);

/// Least time between two comparisons that failed tests ask for.
const DOUBT: Duration = Duration::from_secs(5);

/// Health of Services. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServicesHealth {
    state: Arc<Mutex<State>>,
    /// One test at a time.
    testing: Arc<tokio::sync::Mutex<()>>,
    doubt: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    health: DatapathHealth,
    /// The time of the first of the present failures.
    since: Option<Wall>,
    test: Option<(Arc<SelfTest>, Host)>,
    result: Option<TestResult>,
    doubted: bool,
    doubted_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct TestResult {
    at: Instant,
    /// What is not answered; empty where all is well.
    failures: Vec<String>,
    /// The time of the first failure in a row.
    since: Wall,
}

impl TestResult {
    fn holds(&self) -> bool {
        self.at.elapsed() < if self.failures.is_empty() { HOLDS } else { HOLDS_BAD }
    }
}

impl ServicesHealth {
    /// Takes the health that the engine reports.
    pub(super) fn set(&self, health: &DatapathHealth) {
        let mut state = lock(&self.state);
        state.since = match (health.failures.is_empty(), state.since) {
            (true, _) => None,
            (false, since) => Some(since.unwrap_or_else(clock::wall)),
        };
        state.health.clone_from(health);
    }

    /// Takes the test, whose Service the engine keeps in the tables.
    pub(super) fn test_by(&self, test: Arc<SelfTest>, host: Host) {
        lock(&self.state).test = Some((test, host));
    }

    /// Whether a test has failed since the last call.
    pub(super) fn take_doubt(&self) -> bool {
        std::mem::take(&mut lock(&self.state).doubted)
    }

    /// Waits until a test fails.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Whether Services are carried: hooks are attached and the tables follow the sources.
    pub(crate) fn carries(&self) -> bool {
        let state = lock(&self.state);
        state.health.hooked && state.health.open
    }

    /// Whether connections to Services are answered: they are carried, and the test's connections are answered. Takes a
    /// second at most.
    ///
    /// # Errors
    /// They are not; the text says why.
    pub(crate) async fn answers(&self) -> Result<(), String> {
        if !self.carries() {
            return Err(lock(&self.state).carried().message);
        }
        let _one_at_a_time = self.testing.lock().await;
        let (test, host) = {
            let state = lock(&self.state);
            match (&state.test, &state.result) {
                (None, _) => return Ok(()),
                (_, Some(result)) if result.holds() => return result_of(&result.failures),
                (Some(test), _) => test.clone(),
            }
        };
        let run = move || {
            twice(|| {
                let now = Arc::clone(&host.borrow());
                let uplinks = now.uplinks.iter().map(|(index, uplink)| (*index, Arc::clone(&uplink.name)));
                test.run(&uplinks.collect::<Vec<_>>())
            })
        };
        let failures =
            spawn_blocking(run).await.unwrap_or_else(|_panic| vec!["the self-test has panicked".to_owned()]);
        self.tested(failures)
    }

    fn tested(&self, failures: Vec<String>) -> Result<(), String> {
        let mut state = lock(&self.state);
        let failed_before = state.result.as_ref().filter(|result| !result.failures.is_empty());
        let since = failed_before.map_or_else(clock::wall, |result| result.since);
        let told = failed_before.map(|result| result.failures.clone()).unwrap_or_default();
        match (told.is_empty(), failures.is_empty()) {
            (_, false) if told != failures => {
                tracing::error!(failures = failures.join("; "), "connections to Services are not answered");
            }
            (false, true) => tracing::info!("connections to Services are answered again"),
            _ => {}
        }
        let result = result_of(&failures);
        if result.is_err() && state.doubted_at.is_none_or(|at| at.elapsed() >= DOUBT) {
            (state.doubted, state.doubted_at) = (true, Some(Instant::now()));
            self.doubt.notify_one();
        }
        state.result = Some(TestResult { at: Instant::now(), failures, since });
        result
    }

    /// The health for the status page, by the last test.
    pub(crate) fn get(&self) -> Health {
        let state = lock(&self.state);
        let failed = state.result.as_ref().filter(|result| !result.failures.is_empty());
        match failed {
            Some(result) if state.health.hooked && state.health.open => {
                let others = state.health.failures.iter();
                let failures: Vec<&str> = result.failures.iter().chain(others).map(String::as_str).collect();
                Health {
                    since: Some(result.since),
                    ..Health::bad(format!("not answered: {}", failures.join("; ")))
                }
            }
            _ => state.carried(),
        }
    }

    /// The health for the status page, by a test of now.
    pub(crate) async fn tested_now(&self) -> Health {
        // What fails is in the health.
        drop(self.answers().await);
        self.get()
    }
}

impl State {
    fn carried(&self) -> Health {
        let health = &self.health;
        match (self.since, health.hooked) {
            (Some(since), hooked) => {
                let what = if hooked { "behind" } else { "hooks missing" };
                let why = Health::bad(format!("{what}: {}", health.failures.join("; ")));
                Health { since: Some(since), ..why }
            }
            (None, true) => Health::good("answered"),
            (None, false) => Health::bad("not answered yet: sources and pods are waited for"),
        }
    }
}

fn result_of(failures: &[String]) -> Result<(), String> {
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// Runs a test, and once more where it fails soon.
fn twice(run: impl Fn() -> Vec<String>) -> Vec<String> {
    let begun = Instant::now();
    let failures = run();
    if failures.is_empty() || begun.elapsed() > SLOW {
        return failures;
    }
    std::thread::sleep(AGAIN);
    run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrying() -> ServicesHealth {
        let health = ServicesHealth::default();
        health.set(&DatapathHealth { hooked: true, open: true, failures: Vec::new() });
        health
    }

    #[test]
    fn what_is_not_answered_is_told_until_it_is() {
        let health = carrying();
        assert_eq!(health.tested(vec!["connect4".to_owned()]), Err("connect4".to_owned()));
        let told = health.get();
        assert!(!told.ok && told.since.is_some(), "{told:?}");
        assert_eq!(told.message, "not answered: connect4");
        assert!(health.carries(), "a failed test is no reason to start the agent again");
        assert_eq!(health.tested(Vec::new()), Ok(()));
        assert!(health.get().ok);
    }

    #[test]
    fn failed_tests_in_a_row_ask_for_one_comparison() {
        let health = carrying();
        for asked in [true, false] {
            assert!(health.tested(vec!["sendmsg4".to_owned()]).is_err());
            assert_eq!(health.take_doubt(), asked);
        }
    }

    #[tokio::test]
    async fn without_hooks_nothing_is_tested_and_nothing_answered() {
        let health = ServicesHealth::default();
        assert!(health.answers().await.is_err());
        assert_eq!(carrying().answers().await, Ok(()), "no test is there");
    }

    #[test]
    fn a_test_that_fails_once_is_no_failure() {
        let runs = std::cell::Cell::new(0);
        let failures = twice(|| {
            runs.set(runs.get() + 1);
            if runs.get() == 1 { vec!["late".to_owned()] } else { Vec::new() }
        });
        assert_eq!((failures.len(), runs.get()), (0, 2));
    }
}
