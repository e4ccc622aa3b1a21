//! Probe scheduling: when a probe of a container runs next, and which verdict follows from its results.
//!
//! This module owns the schedule and the counting; the caller runs the probes. The caller keeps a
//! [`ProbeState`] per container run and probe, passes each event to [`step`], and follows the returned
//! [`ProbeStep`]: runs the probe, or sends a tick at the given time.
//!
//! - The first probe is due `initialDelaySeconds` after the container's start, or at once where that time is
//!   past. The next ones follow every `periodSeconds` on a fixed grid: a late tick moves no later one, and
//!   missed ones are skipped.
//! - One probe runs at a time. A result that does not come within [`ProbeState::LOST_AFTER`] beyond the
//!   probe's timeout is given up and counts for nothing.
//! - A verdict needs `successThreshold` or `failureThreshold` equal results in a row.
//!   [`ProbeResult::Unknown`] neither counts nor breaks a row. A timeout is a `Failure`, for exec probes too.
//! - Initial verdicts: readiness Failure, liveness Success, startup none.
//! - A startup probe is on hold after its verdict, a liveness probe after Failure, for the rest of that
//!   container run. Until the startup probe has succeeded, the caller creates no liveness and readiness
//!   state.
//! - A readiness probe without success may run off the grid by [`ProbeEvent::Nudge`]. The caller sends a
//!   nudge when the pod changed (the pod got its address, another container started), so that a container
//!   that can now answer need not wait for a whole period. A nudge runs a probe at most once a second.
//! - After an agent restart [`ProbeState::adopted`] keeps the last verdict. Only a full row of results
//!   changes it.

use crate::{
    model::{Probe, ProbeKind},
    time::Boottime,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The result of running a probe once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeResult {
    /// The probe succeeded.
    Success,
    /// The probe succeeded with a warning: counts as a success. The text is for the `ProbeWarning` event.
    Warning(String),
    /// The probe failed: a bad answer, a late one or none. The text is for the `Unhealthy` event.
    Failure(String),
    /// The probe could not run, for a reason outside the container: counts for nothing.
    Unknown(String),
}

/// The verdict that follows from the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeVerdict {
    /// The probe holds.
    Success,
    /// The probe does not hold.
    Failure,
}

/// An input of [`step`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeEvent {
    /// The time is now this.
    Tick(Boottime),
    /// The result of the running probe, and when it came.
    Result(Boottime, ProbeResult),
    /// The pod changed at this time. A readiness probe that does not hold runs now instead of at its next
    /// grid point. For any other probe a nudge is a tick.
    Nudge(Boottime),
}

/// The next thing that the caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeStep {
    /// Send a tick at this time; [`ProbeState::NEVER`] where the probe is on hold.
    Wait {
        /// The time of the tick.
        until: Boottime,
    },
    /// Run the probe once and pass its result to [`step`].
    Ask,
}

/// State of one probe of one container run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeState {
    kind: ProbeKind,
    verdict: Option<ProbeVerdict>,
    /// The verdict that the results of the current row speak for.
    row_of: Option<ProbeVerdict>,
    row: u32,
    on_hold: bool,
    /// The first point of the grid. The probe never runs before it.
    first_at: Boottime,
    next_at: Boottime,
    /// When the running probe began; `None` while none runs.
    asked_at: Option<Boottime>,
    /// When the probe last began, whether or not its result came.
    last_asked: Option<Boottime>,
}

impl ProbeState {
    /// A time that never comes.
    pub const NEVER: Boottime = Boottime(Duration::MAX);

    /// How long after the probe's timeout a result may still come, before it is given up as lost. The
    /// prober's own retries lie within this time.
    pub const LOST_AFTER: Duration = Duration::from_secs(30);

    /// The least time between the begin of a probe and one that a nudge causes.
    const NUDGE_GAP: Duration = Duration::from_secs(1);

    /// The probe of a container that started at `started_at`.
    ///
    /// If the container started before the agent, and the agent is younger than one period, the first probe
    /// is delayed by a part of the period drawn from `seed`, so that a restarted agent does not probe all
    /// pods at once.
    pub fn new(
        kind: ProbeKind,
        probe: &Probe,
        started_at: Boottime,
        now: Boottime,
        agent_start: Boottime,
        seed: u32,
    ) -> ProbeState {
        let verdict = match kind {
            ProbeKind::Readiness => Some(ProbeVerdict::Failure),
            ProbeKind::Liveness => Some(ProbeVerdict::Success),
            ProbeKind::Startup => None,
        };
        let spread = if started_at < agent_start && now.since(agent_start) < period(probe) {
            part(period(probe), seed)
        } else {
            Duration::ZERO
        };
        Self::at(kind, verdict, now + spread).not_before(probe, started_at)
    }

    /// The probe of a container that an earlier agent started, with the last known verdict.
    ///
    /// A verdict of `None` stays unknown for readiness and startup until a full row of results decides; for
    /// liveness it counts as Success. The first probe runs within one period, at a point drawn from `seed`.
    /// Where the container's start is known, [`ProbeState::not_before`] keeps the initial delay.
    pub fn adopted(
        kind: ProbeKind,
        probe: &Probe,
        last: Option<ProbeVerdict>,
        now: Boottime,
        seed: u32,
    ) -> ProbeState {
        let verdict = match kind {
            ProbeKind::Liveness => Some(last.unwrap_or(ProbeVerdict::Success)),
            ProbeKind::Readiness | ProbeKind::Startup => last,
        };
        Self::at(kind, verdict, now + part(period(probe), seed))
    }

    /// Moves the first probe to no earlier than the initial delay after `started_at`.
    #[must_use]
    pub fn not_before(mut self, probe: &Probe, started_at: Boottime) -> ProbeState {
        let first = started_at + Duration::from_secs(u64::from(probe.initial_delay_seconds));
        self.first_at = self.first_at.max(first);
        self.next_at = self.next_at.max(first);
        self
    }

    fn at(kind: ProbeKind, verdict: Option<ProbeVerdict>, first_at: Boottime) -> ProbeState {
        ProbeState {
            kind,
            verdict,
            row_of: None,
            row: 0,
            on_hold: holds(kind, verdict),
            first_at,
            next_at: first_at,
            asked_at: None,
            last_asked: None,
        }
    }

    /// Startup, liveness or readiness.
    pub fn kind(&self) -> ProbeKind {
        self.kind
    }

    /// The current verdict; `None` for a startup probe without a verdict yet, and for an adopted probe
    /// without a remembered verdict.
    pub fn verdict(&self) -> Option<ProbeVerdict> {
        self.verdict
    }

    /// The last result other than Unknown, and how often it came in a row; for `describe` and `explain`.
    pub fn row(&self) -> Option<(ProbeVerdict, u32)> {
        self.row_of.map(|answer| (answer, self.row))
    }

    /// Whether the probe never runs again in this container run.
    pub fn on_hold(&self) -> bool {
        self.on_hold
    }

    /// When the probe is due next; while one runs, when the one after it is due. `None` on hold.
    pub fn next_at(&self) -> Option<Boottime> {
        (!self.on_hold).then_some(self.next_at)
    }

    /// Whether the probe is running.
    pub fn asking(&self) -> bool {
        self.asked_at.is_some()
    }

    fn lost_at(&self, probe: &Probe) -> Option<Boottime> {
        let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        self.asked_at.map(|t| t + timeout + Self::LOST_AFTER)
    }

    fn wait(&self, probe: &Probe) -> ProbeStep {
        let until = match self.lost_at(probe) {
            _ if self.on_hold => Self::NEVER,
            Some(lost) => lost,
            None => self.next_at,
        };
        ProbeStep::Wait { until }
    }

    fn ask(&mut self, now: Boottime) -> ProbeStep {
        self.asked_at = Some(now);
        self.last_asked = Some(now);
        ProbeStep::Ask
    }

    fn tick(&mut self, probe: &Probe, now: Boottime) -> ProbeStep {
        if self.lost_at(probe).is_some_and(|lost| now >= lost) {
            self.asked_at = None;
        }
        if self.on_hold || self.asked_at.is_some() || now < self.next_at {
            return self.wait(probe);
        }
        self.next_at = next_on_grid(self.first_at, period(probe), now);
        self.ask(now)
    }

    fn nudge(&mut self, probe: &Probe, now: Boottime) -> ProbeStep {
        let due = self.tick(probe, now);
        let rested = self.last_asked.is_none_or(|t| now.since(t) >= Self::NUDGE_GAP);
        let may = self.kind == ProbeKind::Readiness && self.verdict != Some(ProbeVerdict::Success);
        if due == ProbeStep::Ask || !may || !rested || self.asked_at.is_some() || now < self.first_at {
            return due;
        }
        self.ask(now)
    }

    /// Counts one result, and returns the verdict if it changed.
    fn count(&mut self, probe: &Probe, answer: ProbeVerdict) -> Option<ProbeVerdict> {
        self.row = if self.row_of == Some(answer) { self.row.saturating_add(1) } else { 1 };
        self.row_of = Some(answer);
        let needed = match (answer, self.kind) {
            (ProbeVerdict::Failure, _) => probe.failure_threshold,
            (ProbeVerdict::Success, ProbeKind::Readiness) => probe.success_threshold,
            (ProbeVerdict::Success, ProbeKind::Liveness | ProbeKind::Startup) => 1,
        };
        if self.row < needed || self.verdict == Some(answer) {
            return None;
        }
        self.verdict = Some(answer);
        self.on_hold = holds(self.kind, self.verdict);
        self.verdict
    }
}

/// Processes one event. Returns the new state, the next step, and the verdict if this event changed it.
///
/// A result while no probe runs (a late one, after it was given up) counts for nothing.
pub fn step(
    state: &ProbeState,
    probe: &Probe,
    event: ProbeEvent,
) -> (ProbeState, ProbeStep, Option<ProbeVerdict>) {
    let mut state = state.clone();
    let (todo, changed) = match event {
        ProbeEvent::Tick(now) => (state.tick(probe, now), None),
        ProbeEvent::Nudge(now) => (state.nudge(probe, now), None),
        ProbeEvent::Result(now, result) => {
            let awaited = state.asked_at.take().is_some() && !state.on_hold;
            let changed = match result {
                ProbeResult::Success | ProbeResult::Warning(_) if awaited => {
                    state.count(probe, ProbeVerdict::Success)
                }
                ProbeResult::Failure(_) if awaited => state.count(probe, ProbeVerdict::Failure),
                _ => None,
            };
            // A probe that ran longer than the period has used up the grid points that passed meanwhile.
            if awaited && state.next_at <= now {
                state.next_at = next_on_grid(state.first_at, period(probe), now);
            }
            (state.wait(probe), changed)
        }
    };
    (state, todo, changed)
}

fn holds(kind: ProbeKind, verdict: Option<ProbeVerdict>) -> bool {
    match kind {
        ProbeKind::Startup => verdict.is_some(),
        ProbeKind::Liveness => verdict == Some(ProbeVerdict::Failure),
        ProbeKind::Readiness => false,
    }
}

fn period(probe: &Probe) -> Duration {
    Duration::from_secs(u64::from(probe.period_seconds.max(1)))
}

/// The first point of the grid after `now`.
fn next_on_grid(first: Boottime, period: Duration, now: Boottime) -> Boottime {
    if now < first {
        return first;
    }
    let past = now.since(first).as_nanos();
    let into = past % period.as_nanos().max(1);
    // The rest of a period fits into 64 bits of nanoseconds, because a period is at most u32::MAX seconds.
    let left = u64::try_from(period.as_nanos() - into).unwrap_or(u64::MAX);
    now + Duration::from_nanos(left)
}

/// A part of `whole` in [0, 1) drawn from `seed`. The parts of successive seeds are evenly spread, too.
fn part(whole: Duration, seed: u32) -> Duration {
    let mixed = (u64::from(seed).wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let nanos = (whole.as_nanos() * u128::from(mixed)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
