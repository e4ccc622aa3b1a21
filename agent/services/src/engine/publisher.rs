//! When something is published that follows from many changes: a burst makes one, a failure comes again.

use crate::Cause;
use berth_core::{error::Chain, time::Boottime};
use std::time::Duration;

/// What cannot be written is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// One thing that is published.
#[derive(Debug)]
pub(super) struct DebouncedPublisher {
    what: &'static str,
    /// A burst of changes is let come to its end for so long.
    settle: Duration,
    dirty: bool,
    due: Option<Boottime>,
    told: bool,
}

impl DebouncedPublisher {
    /// To be published at the first round.
    pub(super) fn new(what: &'static str, settle: Duration) -> DebouncedPublisher {
        DebouncedPublisher { what, settle, dirty: true, due: None, told: false }
    }

    /// Something that it follows from changed.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Publishes when it is time; otherwise says when that is.
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
            Ok(()) => (self.due, self.dirty, self.told) = (None, false, false),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
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
