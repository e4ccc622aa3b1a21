//! When a report on the node is published, and when the next one is made. Pure.

use std::time::Duration;

/// Interval of reports on a node that is ready (`nodeStatusUpdateFrequency`).
const EVERY: Duration = Duration::from_secs(10);

/// Interval of reports on a node that is not, so that others soon see that it is.
const UNREADY_EVERY: Duration = Duration::from_secs(1);

/// Interval of the first reports.
const FIRST_EVERY: Duration = Duration::from_millis(100);

/// Time after the agent's start within which only a report on a ready node is published. An agent that has just
/// started has no connection to containerd yet: that says nothing about the node, whose pods run, and a Ready condition
/// that is False would take them out of service.
const START: Duration = Duration::from_secs(10);

/// Whether a report is published, and the time until the next one, `age` after the agent's start.
pub(super) fn pace(ready: bool, age: Duration) -> (bool, Duration) {
    match ready {
        true => (true, EVERY),
        false if age < START => (false, FIRST_EVERY),
        false => (true, UNREADY_EVERY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_connects_yet_does_not_report_its_node_as_unready() {
        let second = Duration::from_secs(1);
        assert_eq!(pace(false, Duration::ZERO), (false, FIRST_EVERY));
        assert_eq!(pace(true, Duration::ZERO), (true, EVERY));
        assert_eq!(pace(false, 10 * second), (true, UNREADY_EVERY), "a containerd that is away is told");
        assert_eq!(pace(true, 10 * second), (true, EVERY));
    }
}
