//! The probes of one pod: one task for each active probe. A task runs its probe, counts the results and sends
//! updates to the worker.
//!
//! The worker owns the tasks, and dropping the set ends them. A [`ProbeUpdate`] reaches the worker through
//! one bounded channel. A task waits while the channel is full, so that a busy worker slows only the probes
//! of its own pod.

use crate::{
    executor::{Context, Executor},
    metrics::{ProbeSeries, count_probe},
};
use berth_core::{
    ids::{ContainerId, ContainerName},
    model::{Pod, Probe, ProbeKind},
    plan::{ActiveProbe, Memory, Readiness},
    probe::{ProbeEvent, ProbeResult, ProbeState, ProbeStep, ProbeVerdict, step},
    time::Boottime,
};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// The longest sleep of a task. The boot clock counts suspended time and tokio's timers do not, so a longer
/// sleep could overshoot after a suspend.
const NAP: Duration = Duration::from_secs(60);

/// A probe's news for the worker.
#[derive(Debug)]
pub(crate) struct ProbeUpdate {
    pub(crate) id: ContainerId,
    pub(crate) container: ContainerName,
    pub(crate) kind: ProbeKind,
    /// The new verdict. `None` where the verdict did not change.
    pub(crate) verdict: Option<ProbeVerdict>,
    /// The part of the result that becomes an event.
    pub(crate) trouble: Option<Trouble>,
}

/// A probe result that becomes an event of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The probe failed: event `Unhealthy`.
    Failed(String),
    /// The probe succeeded with a warning: event `ProbeWarning`.
    Warned(String),
    /// The probe has no result, with the reason: event `Unhealthy`, in an unknown state.
    Errored(String),
}

struct Task {
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// The active probes of a pod.
pub(crate) struct ProbeManager {
    tasks: BTreeMap<(ContainerId, ProbeKind), Task>,
    news: mpsc::Sender<ProbeUpdate>,
    nudges: watch::Sender<u64>,
    agent_start: Boottime,
    series: ProbeSeries,
}

impl ProbeManager {
    pub(crate) fn new(agent_start: Boottime) -> (ProbeManager, mpsc::Receiver<ProbeUpdate>) {
        let (news, receiver) = mpsc::channel(16);
        let manager = ProbeManager {
            tasks: BTreeMap::new(),
            news,
            nudges: watch::channel(0).0,
            agent_start,
            series: ProbeSeries::default(),
        };
        (manager, receiver)
    }

    /// Tells the tasks that the pod changed, so that readiness probes that have not succeeded run at once.
    pub(crate) fn nudge(&self) {
        self.nudges.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Starts the tasks of wanted probes that have none, and ends the tasks of probes that are no longer
    /// wanted.
    pub(crate) fn reconcile<H: Executor>(
        &mut self,
        wanted: &[ActiveProbe],
        pod: &Pod,
        memory: &Memory,
        executor: &Arc<H>,
        context: impl Fn(&ContainerId) -> Context,
    ) {
        self.tasks.retain(|(id, kind), t| {
            !t.handle.is_finished() && wanted.iter().any(|w| &w.id == id && w.kind == *kind)
        });
        for w in wanted {
            let key = (w.id.clone(), w.kind);
            let Some(probe) = spec_of(pod, w).filter(|_| !self.tasks.contains_key(&key)) else { continue };
            self.series.note(pod, &w.container);
            let asker = ProbeWorker {
                state: self.state(w, &probe, memory, executor.now().boottime),
                probe,
                id: w.id.clone(),
                container: w.container.clone(),
                executor: Arc::clone(executor),
                context: context(&w.id),
                news: self.news.clone(),
                nudges: self.nudges.subscribe(),
            };
            let handle = tokio::spawn(asker.run());
            self.tasks.insert(key, Task { handle });
        }
    }

    fn state(&self, w: &ActiveProbe, probe: &Probe, memory: &Memory, now: Boottime) -> ProbeState {
        let seed = w.id.as_str().bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
        if w.started_at >= self.agent_start {
            return ProbeState::new(w.kind, probe, w.started_at, now, self.agent_start, seed);
        }
        let run = memory.containers.get(&w.container).and_then(|m| m.run.as_ref()).filter(|r| r.id == w.id);
        let last = match (w.kind, run.map(|r| r.readiness)) {
            (ProbeKind::Readiness, Some(Readiness::Yes)) => Some(ProbeVerdict::Success),
            (ProbeKind::Readiness, Some(Readiness::No)) => Some(ProbeVerdict::Failure),
            _ => None,
        };
        ProbeState::adopted(w.kind, probe, last, now, seed).not_before(probe, w.started_at)
    }
}

fn spec_of(pod: &Pod, w: &ActiveProbe) -> Option<Probe> {
    let c = pod.container(&w.container)?;
    match w.kind {
        ProbeKind::Liveness => c.liveness.clone(),
        ProbeKind::Readiness => c.readiness.clone(),
        ProbeKind::Startup => c.startup.clone(),
    }
}

/// Polls the future to its end. Returns `None` where the future panics.
async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // Unwind safety: state that the panic left half changed belongs to the future, which is not polled
        // again.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(_panic) => Poll::Ready(None),
        }
    })
    .await
}

struct ProbeWorker<H> {
    state: ProbeState,
    probe: Probe,
    id: ContainerId,
    container: ContainerName,
    executor: Arc<H>,
    context: Context,
    news: mpsc::Sender<ProbeUpdate>,
    nudges: watch::Receiver<u64>,
}

impl<H: Executor> ProbeWorker<H> {
    fn now(&self) -> Boottime {
        self.executor.now().boottime
    }

    async fn run(mut self) {
        let mut event = ProbeEvent::Tick(self.now());
        loop {
            let (state, next, _verdict) = step(&self.state, &self.probe, event);
            self.state = state;
            event = match next {
                ProbeStep::Wait { until } => match self.wait(until).await {
                    Some(event) => event,
                    None => return,
                },
                ProbeStep::Ask => {
                    // The future of a probe takes some 20 KB and exists only while the probe runs. Boxed, it
                    // does not enlarge the task.
                    let ask = Box::pin(self.executor.probe(
                        self.context.clone(),
                        self.id.clone(),
                        self.probe.clone(),
                        self.container.clone(),
                    ));
                    let begun = Instant::now();
                    let answer = caught(ask)
                        .await
                        .unwrap_or_else(|| ProbeResult::Unknown("asking panicked".to_owned()));
                    let kind = self.state.kind();
                    count_probe(&self.context.pod, &self.container, kind, &answer, begun.elapsed());
                    if !self.publish(answer).await {
                        return;
                    }
                    ProbeEvent::Tick(self.now())
                }
            };
        }
    }

    async fn wait(&mut self, until: Boottime) -> Option<ProbeEvent> {
        if until == ProbeState::NEVER {
            return None;
        }
        let rest = until.since(self.now()).min(NAP);
        let wants_nudge =
            self.state.kind() == ProbeKind::Readiness && self.state.verdict() != Some(ProbeVerdict::Success);
        tokio::select! {
            () = tokio::time::sleep(rest) => Some(ProbeEvent::Tick(self.now())),
            nudged = self.nudges.changed(), if wants_nudge => {
                nudged.ok()?;
                Some(ProbeEvent::Nudge(self.now()))
            }
        }
    }

    /// Counts a result and sends an update where there is news. Returns false where the worker no longer
    /// receives updates.
    async fn publish(&mut self, answer: ProbeResult) -> bool {
        let trouble = match &answer {
            ProbeResult::Success => None,
            ProbeResult::Warning(what) => Some(Trouble::Warned(what.clone())),
            ProbeResult::Failure(message) => Some(Trouble::Failed(message.clone())),
            ProbeResult::Unknown(why) => Some(Trouble::Errored(why.clone())),
        };
        let (state, _, verdict) = step(&self.state, &self.probe, ProbeEvent::Result(self.now(), answer));
        self.state = state;
        if verdict.is_none() && trouble.is_none() {
            return !self.news.is_closed();
        }
        let news = ProbeUpdate {
            id: self.id.clone(),
            container: self.container.clone(),
            kind: self.state.kind(),
            verdict,
            trouble,
        };
        self.news.send(news).await.is_ok()
    }
}
