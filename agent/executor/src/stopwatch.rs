//! Stopwatch of an action: its parts and the time that each took.

use std::time::{Duration, Instant};

/// The parts of an action that have ended, each with the time since the part before.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    /// Begins the first part.
    pub(crate) fn start() -> Stopwatch {
        Stopwatch { since: Instant::now(), parts: Vec::new() }
    }

    /// Ends the current part under this name, and begins the next one.
    pub(crate) fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.push((name, now.duration_since(self.since)));
        self.since = now;
    }

    /// The parts that have ended, in their order.
    pub(crate) fn into_parts(self) -> Vec<(&'static str, Duration)> {
        self.parts
    }
}
