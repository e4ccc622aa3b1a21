//! Probe scheduling: when one probe of one container is asked next, and what its answers so far amount to.
//!
//! Owns the schedule and the counting; asking is the shell's. The caller keeps a [`ProbeState`] per container run and
//! probe, hands every event to [`step`] and does what it says: asks, or comes back with a tick at the time given.
//!
//! - The first question comes at `initialDelaySeconds` after the container's start (at once where that is past), the
//!   next ones every `periodSeconds` on a fixed grid: a late tick moves no later one, missed ones are skipped.
//! - One question at a time. An answer that never comes is given up after [`ProbeState::LOST_AFTER`] beyond the
//!   probe's timeout and counts for nothing.
//! - Only `successThreshold` or `failureThreshold` equal answers in a row make a verdict. [`ProbeResult::Unknown`]
//!   neither counts nor breaks a row. A timeout is a `Failure`, of exec probes too.
//! - Initial verdicts: readiness Failure, liveness Success, startup none.
//! - A startup probe is on hold after its verdict, a liveness probe after Failure, for the rest of that container run.
//!   Until the startup probe succeeded the caller creates no liveness and readiness state.
//! - A readiness probe that is not successful may be asked off the grid by [`ProbeEvent::Nudge`], which the caller
//!   sends when something about the pod changed (its address came, another container started): a pod that has just
//!   become able to answer need not wait for a whole period. Nudges are answered at most once a second.
//! - After an agent restart [`ProbeState::adopted`] keeps the last verdict, and as ever only a full row changes it.

use crate::{
    model::{Probe, ProbeKind},
    time::Boottime,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeResult {
    /// The container answered well.
    Success,
    /// The container answered well, but in a way that people should know of: counts as a success; the text is for the
    /// `ProbeWarning` event.
    Warning(String),
    /// The container answered badly, late or not at all; the text is for the `Unhealthy` event.
    Failure(String),
    /// It could not be found out, for a reason that is not the container's: counts for nothing.
    Unknown(String),
}

/// What the answers amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// The probe holds.
    Success,
    /// The probe does not hold.
    Failure,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeEvent {
    /// Time went by.
    Tick(Boottime),
    /// The answer to the last question came at that time.
    Result(Boottime, ProbeResult),
    /// Something about the pod changed: a readiness probe that does not hold is asked now rather than at its next
    /// time. Any other probe takes it as a tick.
    Nudge(Boottime),
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Come back with a tick then; [`ProbeState::NEVER`] where the probe is on hold.
    Wait {
        /// When.
        until: Boottime,
    },
    /// Ask the container once and come back with the answer.
    Ask,
}

/// Where one probe of one container run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeState {
    kind: ProbeKind,
    verdict: Option<Verdict>,
    /// The answer that the present row consists of.
    row_of: Option<Verdict>,
    row: u32,
    on_hold: bool,
    /// The first point of the grid; nothing is asked before.
    first_at: Boottime,
    next_at: Boottime,
    /// When the question that is in flight was asked.
    asked_at: Option<Boottime>,
    /// When the last question was asked, answered or not.
    last_asked: Option<Boottime>,
}

impl ProbeState {
    /// The time that does not come.
    pub const NEVER: Boottime = Boottime(Duration::MAX);

    /// An answer may come this much later than the probe's timeout (the prober's own retries lie within) before it is
    /// given up as lost.
    pub const LOST_AFTER: Duration = Duration::from_secs(30);

    /// The least time between a question and one that a nudge brings about.
    const NUDGE_GAP: Duration = Duration::from_secs(1);

    /// The probe of a container that started at `started_at`.
    ///
    /// Where that was before the agent's own start and the agent is younger than one period, the first question is
    /// put off by a part of the period drawn from `seed`, so that a restarted agent does not ask all pods at once.
    pub fn new(
        kind: ProbeKind,
        probe: &Probe,
        started_at: Boottime,
        now: Boottime,
        agent_start: Boottime,
        seed: u32,
    ) -> ProbeState {
        let verdict = match kind {
            ProbeKind::Readiness => Some(Verdict::Failure),
            ProbeKind::Liveness => Some(Verdict::Success),
            ProbeKind::Startup => None,
        };
        let spread = if started_at < agent_start && now.since(agent_start) < period(probe) {
            part(period(probe), seed)
        } else {
            Duration::ZERO
        };
        Self::at(kind, verdict, now + spread).not_before(probe, started_at)
    }

    /// The probe of a container that an earlier agent started, with the last verdict known of it.
    ///
    /// `None` stays "not known" for readiness and startup until a full row of answers says otherwise; liveness is
    /// then taken as holding. The first question comes within one period, at a point drawn from `seed`; where the
    /// container's start is known, [`ProbeState::not_before`] keeps its initial delay.
    pub fn adopted(
        kind: ProbeKind,
        probe: &Probe,
        last: Option<Verdict>,
        now: Boottime,
        seed: u32,
    ) -> ProbeState {
        let verdict = match kind {
            ProbeKind::Liveness => Some(last.unwrap_or(Verdict::Success)),
            ProbeKind::Readiness | ProbeKind::Startup => last,
        };
        Self::at(kind, verdict, now + part(period(probe), seed))
    }

    /// The same, but asked for the first time no earlier than the probe's initial delay after `started_at`.
    #[must_use]
    pub fn not_before(mut self, probe: &Probe, started_at: Boottime) -> ProbeState {
        let first = started_at + Duration::from_secs(u64::from(probe.initial_delay_seconds));
        self.first_at = self.first_at.max(first);
        self.next_at = self.next_at.max(first);
        self
    }

    fn at(kind: ProbeKind, verdict: Option<Verdict>, first_at: Boottime) -> ProbeState {
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

    /// Which probe this is.
    pub fn kind(&self) -> ProbeKind {
        self.kind
    }

    /// What is known: `None` for a startup probe without verdict yet and for an adopted probe of which nothing was
    /// remembered.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// The answer that came last (not counting Unknown) and how often in a row, for `describe` and `explain`.
    pub fn row(&self) -> Option<(Verdict, u32)> {
        self.row_of.map(|answer| (answer, self.row))
    }

    /// Whether nothing will be asked any more in this container run.
    pub fn on_hold(&self) -> bool {
        self.on_hold
    }

    /// When the next question is due, or, while one is in flight, the one after; `None` on hold.
    pub fn next_at(&self) -> Option<Boottime> {
        (!self.on_hold).then_some(self.next_at)
    }

    /// Whether a question is in flight.
    pub fn asking(&self) -> bool {
        self.asked_at.is_some()
    }

    fn lost_at(&self, probe: &Probe) -> Option<Boottime> {
        let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        self.asked_at.map(|t| t + timeout + Self::LOST_AFTER)
    }

    fn wait(&self, probe: &Probe) -> Step {
        let until = match self.lost_at(probe) {
            _ if self.on_hold => Self::NEVER,
            Some(lost) => lost,
            None => self.next_at,
        };
        Step::Wait { until }
    }

    fn ask(&mut self, now: Boottime) -> Step {
        self.asked_at = Some(now);
        self.last_asked = Some(now);
        Step::Ask
    }

    fn tick(&mut self, probe: &Probe, now: Boottime) -> Step {
        if self.lost_at(probe).is_some_and(|lost| now >= lost) {
            self.asked_at = None;
        }
        if self.on_hold || self.asked_at.is_some() || now < self.next_at {
            return self.wait(probe);
        }
        self.next_at = next_on_grid(self.first_at, period(probe), now);
        self.ask(now)
    }

    fn nudge(&mut self, probe: &Probe, now: Boottime) -> Step {
        let due = self.tick(probe, now);
        let rested = self.last_asked.is_none_or(|t| now.since(t) >= Self::NUDGE_GAP);
        let may = self.kind == ProbeKind::Readiness && self.verdict != Some(Verdict::Success);
        if due == Step::Ask || !may || !rested || self.asked_at.is_some() || now < self.first_at {
            return due;
        }
        self.ask(now)
    }

    /// Counts one answer; gives the verdict where it changed.
    fn count(&mut self, probe: &Probe, answer: Verdict) -> Option<Verdict> {
        self.row = if self.row_of == Some(answer) { self.row.saturating_add(1) } else { 1 };
        self.row_of = Some(answer);
        let needed = match (answer, self.kind) {
            (Verdict::Failure, _) => probe.failure_threshold,
            (Verdict::Success, ProbeKind::Readiness) => probe.success_threshold,
            (Verdict::Success, ProbeKind::Liveness | ProbeKind::Startup) => 1,
        };
        if self.row < needed || self.verdict == Some(answer) {
            return None;
        }
        self.verdict = Some(answer);
        self.on_hold = holds(self.kind, self.verdict);
        self.verdict
    }
}

/// Takes one event: the new state, what to do, and the verdict where this event changed it.
///
/// An answer to no question (a late one of an earlier life) counts for nothing.
pub fn step(state: &ProbeState, probe: &Probe, event: ProbeEvent) -> (ProbeState, Step, Option<Verdict>) {
    let mut state = state.clone();
    let (todo, changed) = match event {
        ProbeEvent::Tick(now) => (state.tick(probe, now), None),
        ProbeEvent::Nudge(now) => (state.nudge(probe, now), None),
        ProbeEvent::Result(now, result) => {
            let awaited = state.asked_at.take().is_some() && !state.on_hold;
            let changed = match result {
                ProbeResult::Success | ProbeResult::Warning(_) if awaited => {
                    state.count(probe, Verdict::Success)
                }
                ProbeResult::Failure(_) if awaited => state.count(probe, Verdict::Failure),
                _ => None,
            };
            // A question that took longer than the period has used up the times that passed meanwhile.
            if awaited && state.next_at <= now {
                state.next_at = next_on_grid(state.first_at, period(probe), now);
            }
            (state.wait(probe), changed)
        }
    };
    (state, todo, changed)
}

fn holds(kind: ProbeKind, verdict: Option<Verdict>) -> bool {
    match kind {
        ProbeKind::Startup => verdict.is_some(),
        ProbeKind::Liveness => verdict == Some(Verdict::Failure),
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
    // What is left of a period fits into 64 bits: a period is at most u32::MAX seconds.
    let left = u64::try_from(period.as_nanos() - into).unwrap_or(u64::MAX);
    now + Duration::from_nanos(left)
}

/// A part of `whole` in [0, 1), evenly spread also over seeds that follow one another.
fn part(whole: Duration, seed: u32) -> Duration {
    let mixed = (u64::from(seed).wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let nanos = (whole.as_nanos() * u128::from(mixed)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
