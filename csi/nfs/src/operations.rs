//! Operations that run, by what they work on: at most one for a volume or a snapshot. A second call on the same thing
//! is answered at once with what the first one is at.

use crate::error::{Error, Result};
use berth_csi_proto::csi::Snapshot;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// An operation.
#[derive(Debug)]
pub(crate) struct Operation {
    what: &'static str,
    /// The key of what it reads all the while.
    reads: Option<String>,
    /// What it is at.
    step: Mutex<String>,
    entries: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
    /// The snapshot that is being made, once it is on record.
    pub(crate) snapshot: OnceLock<Snapshot>,
}

impl Operation {
    fn new(what: &'static str, reads: Option<&str>) -> Self {
        Self {
            what,
            reads: reads.map(str::to_owned),
            step: Mutex::new("waiting for a thread".into()),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            snapshot: OnceLock::new(),
        }
    }

    /// An operation that nobody else sees.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self::new("test", None)
    }

    /// Says what the operation is at.
    pub(crate) fn step(&self, step: impl Into<String>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step.into();
    }

    /// Counts entries and bytes that are done.
    ///
    /// # Errors
    /// The operation is to end.
    pub(crate) fn progress(&self, entries: u64, bytes: u64) -> Result<()> {
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled(self.what)) } else { Ok(()) }
    }

    /// Bytes that are done.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether it makes the thing of this key.
    pub(crate) fn creates(&self, key: &str) -> bool {
        self.what == "create" && self.reads.as_deref() != Some(key)
    }

    /// Has the operation end at its next step.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// What the operation is at, for people.
    pub(crate) fn describe(&self) -> String {
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (entries, bytes) = (self.entries.load(Ordering::Relaxed), self.bytes());
        match (entries, bytes) {
            (0, 0) => format!("{} runs: {step}", self.what),
            _ => format!("{} runs: {step}: {entries} entries and {} MiB so far", self.what, bytes >> 20),
        }
    }
}

/// The operations that run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Operations {
    running: Arc<Mutex<HashMap<String, Arc<Operation>>>>,
}

/// A running operation; its end is the end of this value.
#[derive(Debug)]
pub(crate) struct Running {
    key: String,
    operation: Arc<Operation>,
    all: Operations,
}

impl Operations {
    /// Begins an operation on `key`. `reads` is the key of what it copies: many may read one thing, but none while
    /// another operation works on it.
    ///
    /// # Errors
    /// Another one works on the same thing.
    pub(crate) fn begin(
        &self,
        what: &'static str,
        key: &str,
        reads: Option<&str>,
    ) -> Result<Running, Arc<Operation>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let on_it = running.get(key).or_else(|| running.get(reads?));
        if let Some(there) = on_it.or_else(|| running.values().find(|o| o.reads.as_deref() == Some(key))) {
            return Err(Arc::clone(there));
        }
        let operation = Arc::new(Operation::new(what, reads));
        running.insert(key.to_owned(), Arc::clone(&operation));
        Ok(Running { key: key.to_owned(), operation, all: self.clone() })
    }

    /// Has all operations end at their next step. Returns their number.
    pub(crate) fn cancel_all(&self) -> usize {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().for_each(|operation| operation.cancel());
        running.len()
    }
}

impl Running {
    /// The operation.
    pub(crate) fn operation(&self) -> Arc<Operation> {
        Arc::clone(&self.operation)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn one_operation_at_a_time_for_one_thing() {
        let all = Operations::default();
        let first = all.begin("copy", "a", None).unwrap();
        first.operation().step("copying h:/s/a");
        first.operation().progress(3, 5 << 20).unwrap();
        let there = all.begin("delete", "a", None).unwrap_err();
        assert_eq!(there.describe(), "copy runs: copying h:/s/a: 3 entries and 5 MiB so far");
        all.begin("copy", "b", None).unwrap();
        there.cancel();
        assert!(first.operation().progress(1, 0).is_err());
        drop(first);
        assert!(all.begin("delete", "a", None).is_ok());
    }
    #[test]
    fn what_is_being_copied_is_not_deleted() {
        let all = Operations::default();
        let first = all.begin("create", "b", Some("a")).unwrap();
        let second = all.begin("create", "c", Some("a")).unwrap();
        let there = all.begin("delete", "a", None).unwrap_err();
        assert!(!there.creates("a") && there.creates("b"), "it is not to be cancelled");
        drop((first, second));
        let _deletes = all.begin("delete", "a", None).unwrap();
        assert!(all.begin("create", "b", Some("a")).is_err());
    }
}
