//! The statuses of this node's pods, and the deletion of the objects of pods that have ended.
//!
//! Owns one task and its requests: at most one for each pod and [`AT_ONCE`] in all. In: the reports ([`PodReports`]) and
//! the API server's newest objects ([`ApiPods`]). An answer goes into [`ApiPods`] as an event of the watch does, so that
//! no GET comes before a PATCH. [`decide`] says what to send next; nothing is sent where nothing differs.

mod decide;
mod unpublished;

use super::{PodReports, PodToPublish, RateLimit};
use crate::{ApiPods, Task, object::version};
use berth_core::{error::Chain, ids::PodUid, time::Boottime};
use berth_kube::{
    Error,
    pool::Pool,
    request::{Patch, Preconditions, Request},
};
use berth_source::{RawPod, cluster::drop_managed_fields};
use berth_sys::clock;
use decide::{Answer, Entry, Step};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};

pub use unpublished::{Unpublished, UnpublishedStatus};

/// Requests at once.
const AT_ONCE: usize = 16;

/// The longest sleep of the task. The boot clock counts suspended time and tokio's timers do not.
const MAX_SLEEP: Duration = Duration::from_secs(300);

/// Starts to publish the reports on the pods in `api`. Pods whose requests fail are in `unpublished` meanwhile.
pub fn start<R: PodReports>(
    pool: Pool,
    limit: RateLimit,
    api: ApiPods,
    reports: Arc<R>,
    unpublished: Unpublished,
) -> Task {
    let (pods, requests) = (BTreeMap::new(), JoinSet::new());
    let publisher = Publisher { pool, limit, api, reports, unpublished, pods, requests };
    Task::spawn(publisher.run())
}

struct Publisher<R> {
    pool: Pool,
    limit: RateLimit,
    api: ApiPods,
    reports: Arc<R>,
    unpublished: Unpublished,
    pods: BTreeMap<PodUid, Published>,
    requests: JoinSet<(PodUid, Answer)>,
}

#[derive(Default)]
struct Published {
    entry: Entry,
    /// The object at the last decision.
    seen: Option<Arc<RawPod>>,
    due: Option<Boottime>,
}

impl<R: PodReports> Publisher<R> {
    async fn run(mut self) {
        let mut changes = self.api.changes();
        let reports = Arc::clone(&self.reports);
        let mut look: BTreeSet<PodUid> = self.api.uids().into_iter().collect();
        loop {
            // Pods beyond the limit stay in `look` until an answer has come.
            while self.requests.len() < AT_ONCE
                && let Some(uid) = look.pop_first()
            {
                self.step(&uid);
            }
            let now = clock::now().boottime;
            let due = self.pods.values().filter_map(|p| p.due).min();
            let wait = due.map_or(MAX_SLEEP, |due| due.since(now).min(MAX_SLEEP));
            tokio::select! {
                () = reports.dirty() => {
                    let now = clock::now().boottime;
                    for uid in reports.take_dirty() {
                        self.pods.entry(uid.clone()).or_default().entry.report_changed(now);
                        look.insert(uid);
                    }
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    look.extend(self.changed_objects());
                }
                Some(answered) = self.requests.join_next() => {
                    // A request's task has no panic of its own and is never aborted.
                    let Ok((uid, answer)) = answered else { continue };
                    if let Some(pod) = self.pods.get_mut(&uid) {
                        pod.entry.answered(answer, clock::now());
                        look.insert(uid);
                    }
                }
                () = sleep(wait) => {
                    let now = clock::now().boottime;
                    let due = self.pods.iter().filter(|(_, p)| p.due.is_some_and(|due| due <= now));
                    look.extend(due.map(|(uid, _)| uid.clone()));
                }
            }
        }
    }

    /// The pods whose object changed since the last decision. Pods that the API server has no more are forgotten.
    fn changed_objects(&mut self) -> Vec<PodUid> {
        let (mut changed, mut known) = (Vec::new(), 0);
        self.api.for_each(|uid, now| {
            let published = self.pods.get(uid);
            known += usize::from(published.is_some());
            if !published.and_then(|p| p.seen.as_ref()).is_some_and(|seen| Arc::ptr_eq(seen, now)) {
                changed.push(uid.clone());
            }
        });
        // Each change of one pod comes here: the pods are gone through only where one of them is gone.
        if known < self.pods.len() {
            let gone = |uid: &PodUid| self.api.get(uid).is_none() && self.reports.report(uid).is_none();
            for (uid, _) in self.pods.extract_if(.., |uid, _| gone(uid)) {
                self.unpublished.published(&uid);
            }
        }
        changed
    }

    /// Sends the next request for a pod, if there is one.
    fn step(&mut self, uid: &PodUid) {
        let Some(object) = self.api.get(uid) else { return };
        let pod = self.pods.entry(uid.clone()).or_default();
        pod.seen = Some(Arc::clone(&object));
        pod.due = None;
        let Some(report) = self.reports.report(uid) else { return };
        let object = object.value();
        let step = pod.entry.next(&object, &report, clock::now());
        let deletes = step == Step::Delete;
        let request = match step {
            Step::Nothing => return,
            Step::Wait(until) => {
                pod.due = Some(until);
                return;
            }
            Step::Patch(patch) => {
                let path = format!("{}/status", path(&report));
                Request::patch(path, Patch::StrategicMerge, patch.to_string())
            }
            Step::Delete => {
                let only = Preconditions { uid: Some(uid.to_string()), resource_version: None };
                Request::delete(path(&report), Some(0), &only)
            }
        };
        let (pool, limit, api) = (self.pool.clone(), self.limit.clone(), self.api.clone());
        let (uid, key, unpublished) = (uid.clone(), report.pod.key.clone(), self.unpublished.clone());
        self.requests.spawn(async move {
            limit.wait().await;
            let answer = match pool.send(&request).await {
                Ok(_) if deletes => Answer::Deleted,
                Ok(answer) => taken(&uid, &answer.body, &object, &api),
                Err(error) => {
                    let answer = refused(&error, deletes, &object);
                    let error = Chain(&error);
                    tracing::debug!(pod = %key, %error, "cannot report a pod");
                    if answer != Answer::Deleted {
                        unpublished.failed(&uid, &key, error.to_string(), clock::wall());
                        return (uid, answer);
                    }
                    answer
                }
            };
            unpublished.published(&uid);
            (uid, answer)
        });
    }
}

fn path(report: &PodToPublish) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", report.pod.key.namespace, report.pod.key.name)
}

/// Takes the object of an answer, as one of the watch.
fn taken(uid: &PodUid, body: &[u8], before: &Value, api: &ApiPods) -> Answer {
    let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
        return Answer::Failed { retry_after: None };
    };
    drop_managed_fields(&mut object);
    let owned = |object| version(object).map(str::to_owned);
    let answer = Answer::Patched { before: owned(before), after: owned(&object) };
    api.put(uid, Arc::new(RawPod::new(&object)));
    answer
}

fn refused(error: &Error, deletes: bool, object: &Value) -> Answer {
    match error.refusal() {
        // The pod is gone, or another one has its name.
        Some(refusal) if deletes && matches!(refusal.code, 404 | 409) => Answer::Deleted,
        // The watch will tell what became of the object.
        Some(refusal) if matches!(refusal.code, 400 | 404 | 409 | 422) => {
            tracing::warn!(%refusal, "the API server refuses the status of a pod");
            Answer::Refused { version: version(object).map(str::to_owned) }
        }
        refusal => Answer::Failed { retry_after: refusal.and_then(|refusal| refusal.retry_after) },
    }
}
