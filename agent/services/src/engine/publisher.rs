//! Debounced publisher: a burst of changes makes one publication, and a failed publication is retried.

use crate::Cause;
use berth_core::{error::Chain, time::Boottime};
use std::time::Duration;

/// Time until a failed publication is retried.
const RETRY: Duration = Duration::from_secs(5);

/// Publication of one kind of data, with its pending state.
#[derive(Debug)]
pub(super) struct DebouncedPublisher {
    what: &'static str,
    /// Time to wait for a burst of changes to end.
    settle: Duration,
    dirty: bool,
    due: Option<Boottime>,
    failure_logged: bool,
}

impl DebouncedPublisher {
    /// New publisher. Its data count as changed, so the first round starts a publication.
    pub(super) fn new(what: &'static str, settle: Duration) -> DebouncedPublisher {
        DebouncedPublisher { what, settle, dirty: true, due: None, failure_logged: false }
    }

    /// Marks the data as changed.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Publishes where the publication is due. Returns the time of the next attempt, where one is pending.
    pub(super) fn keep(
        &mut self,
        now: Boottime,
        publish: impl FnOnce() -> Result<(), Cause>,
    ) -> Option<Boottime> {
        if !self.dirty {
            return None;
        }
        let due = *self.due.get_or_insert(now + self.settle);
        if now < due {
            return Some(due);
        }
        match publish() {
            Ok(()) => (self.due, self.dirty, self.failure_logged) = (None, false, false),
            Err(error) => {
                if !std::mem::replace(&mut self.failure_logged, true) {
                    tracing::error!(error = %Chain(&*error), "{} not published; tried again", self.what);
                }
                self.due = Some(now + RETRY);
            }
        }
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Boottime {
        Boottime(Duration::from_millis(ms))
    }

    #[test]
    fn a_burst_is_one_and_a_failure_comes_again() {
        let mut outlet = DebouncedPublisher::new("names are", Duration::from_millis(50));
        assert_eq!(outlet.keep(at(0), || unreachable!()), Some(at(50)));
        outlet.changed();
        assert_eq!(outlet.keep(at(49), || unreachable!()), Some(at(50)));
        assert_eq!(outlet.keep(at(50), || Err("full".into())), Some(at(5050)));
        assert_eq!(outlet.keep(at(5049), || unreachable!()), Some(at(5050)));
        assert_eq!(outlet.keep(at(5050), || Ok(())), None);
        assert_eq!(outlet.keep(at(9000), || unreachable!()), None);
    }
}
