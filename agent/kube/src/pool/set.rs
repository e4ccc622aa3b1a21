//! The open connections of one kind, and the wait before its next dial.

use crate::connection::Connection;
use std::{sync::Arc, time::Duration};

/// First wait after a failed dial.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Maximum wait between two dials. Measured: 5 s instead of 30 s costs 11 dials in half a minute, and an
/// outage ends 20 s sooner.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The connections of one kind.
#[derive(Default)]
pub(super) struct Set {
    pub(super) open: Vec<Arc<Connection>>,
    pub(super) dialing: bool,
    /// Consecutive failures, from which the wait before the next dial follows.
    pub(super) failures: u32,
    /// Failures before the last successful dial. They count again if that connection turns out to be useless.
    pub(super) doubt: u32,
}

impl Set {
    /// Records the end of a connection for the wait before the next dial.
    pub(super) fn learn(&mut self, connection: &Connection) {
        // An HTTP/1.1 connection ends with its request.
        if !connection.is_http2() {
            return;
        }
        if connection.was_useless() {
            self.failures = self.failures.max(self.doubt).saturating_add(1);
        } else {
            self.doubt = 0;
        }
    }

    /// Wait before the next dial.
    pub(super) fn wait(&self, dice: u16) -> Duration {
        let Some(times) = self.failures.checked_sub(1) else { return Duration::ZERO };
        let whole = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(times.min(16))).min(LONGEST_WAIT);
        // Between half of the wait and the whole wait.
        whole / 2 + (whole / 2) * u32::from(dice) / u32::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_wait_longer_after_each_failure_up_to_five_seconds() {
        let waits = |dice| {
            (0..9)
                .map(move |failures| Set { failures, ..Set::default() }.wait(dice).as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(u16::MAX), [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(waits(0), [0, 50, 100, 200, 400, 800, 1600, 2500, 2500]);
    }
}
