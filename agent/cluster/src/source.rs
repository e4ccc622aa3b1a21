//! The node's desired state from the API server.
//!
//! One reflector each follows the pods of this node, the Services and the EndpointSlices, and one each ConfigMap and
//! Secret that a pod uses ([`References`]). Owns one task that applies their changes to [`State`] and publishes a
//! [`Snapshot`] for all changes that have arrived. While the API server is away, the last state stays.

mod health;
mod kinds;
mod refusals;
mod state;

use crate::{
    ApiPods, Task, Tokens, inputs,
    refs::{Answer, References},
};
use berth_core::{ids::NodeName, model::ObjectName, value::Why};
use berth_kube::{
    pool::Pool,
    reflector::{Change, Health, Kind, ListWatch, Options, follow},
};
use berth_source::{Snapshot, Source};
use kinds::{CsiDrivers, EndpointSlices, Pods, Services};
use state::State;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

pub use health::SourceHealth;

/// Changes of a set that may wait for the task.
const WAITING: usize = 64;

/// The source of desired state of a worker of a control plane. Its tasks end with this value.
#[derive(Debug)]
pub struct ClusterSource {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    health: SourceHealth,
    _tasks: Vec<Task>,
}

impl ClusterSource {
    /// Starts the source, which fills `api` with the pods of `node`. What their containers are started from is kept in
    /// `dir` of this boot's state; its first snapshot has what an earlier agent kept there. Requires a tokio runtime.
    pub fn start(pool: &Pool, node: &NodeName, api: ApiPods, dir: PathBuf) -> ClusterSource {
        ClusterSource::following(pool, node, api, dir, true)
    }

    /// The same for a node whose pods another agent runs: neither the ConfigMaps and Secrets of pods are read, nor are
    /// tokens asked for.
    pub fn of_services(pool: &Pool, node: &NodeName, api: ApiPods, dir: PathBuf) -> ClusterSource {
        ClusterSource::following(pool, node, api, dir, false)
    }

    fn following(pool: &Pool, node: &NodeName, api: ApiPods, dir: PathBuf, runs_pods: bool) -> ClusterSource {
        let (mut sets, mut tasks) = (Vec::new(), Vec::new());
        let input = Input {
            pods: set("pods", Pods::of(node.clone()), pool, &mut sets, &mut tasks),
            services: set("services", Services, pool, &mut sets, &mut tasks),
            slices: set("endpointslices", EndpointSlices, pool, &mut sets, &mut tasks),
            drivers: runs_pods.then(|| set("csidrivers", CsiDrivers, pool, &mut sets, &mut tasks)),
        };
        for (name, health) in &sets {
            tasks.push(Task::spawn(refusals::tell(name, node.clone(), health.clone())));
        }
        let state = State::new(api, inputs::load(&dir));
        let (publish, snapshots) = watch::channel(Arc::new(state.snapshot(&Snapshot::default())));
        tasks.push(Task::spawn(inputs::keep(dir, snapshots.clone())));
        let (tell, unread) = watch::channel(BTreeMap::new());
        let (answers, objects) = mpsc::channel(WAITING);
        let inputs_of_pods = InputsOfPods {
            wanted: runs_pods,
            references: References::new(pool.clone(), answers),
            tokens: Tokens::start(pool.clone()),
        };
        let outputs = Outputs { publish, tell };
        tasks.push(Task::spawn(run(input, objects, state, inputs_of_pods, outputs)));
        ClusterSource { snapshots, health: SourceHealth { sets, unread }, _tasks: tasks }
    }

    /// Whether the source's state is the API server's.
    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }
}

impl Source for ClusterSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

/// The changes of the followed sets.
struct Input {
    pods: mpsc::Receiver<Change<<Pods as Kind>::Item>>,
    services: mpsc::Receiver<Change<<Services as Kind>::Item>>,
    slices: mpsc::Receiver<Change<<EndpointSlices as Kind>::Item>>,
    /// Of a node that runs pods.
    drivers: Option<mpsc::Receiver<Change<<CsiDrivers as Kind>::Item>>>,
}

/// The next change of a set, if it is followed.
async fn next<T>(set: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match set {
        Some(set) => set.recv().await,
        None => std::future::pending().await,
    }
}

/// Who reads what the containers of pods are started from.
struct InputsOfPods {
    /// Whether the pods are run by this node agent.
    wanted: bool,
    references: References,
    tokens: Tokens,
}

/// What the task publishes.
struct Outputs {
    publish: watch::Sender<Arc<Snapshot>>,
    /// The objects of which nothing is known yet.
    tell: watch::Sender<BTreeMap<ObjectName, Why>>,
}

/// Starts the reflector of a set.
fn set<K>(
    name: &'static str,
    kind: K,
    pool: &Pool,
    sets: &mut Vec<(&'static str, watch::Receiver<Health>)>,
    tasks: &mut Vec<Task>,
) -> mpsc::Receiver<Change<K::Item>>
where
    K: Kind + Send + Sync + 'static,
    K::Item: Send,
{
    let (changes, incoming) = mpsc::channel(WAITING);
    let (health, current) = watch::channel(Health::unknown());
    sets.push((name, current));
    tasks.push(Task::spawn(follow(kind, pool.clone(), ListWatch::new(Options::set()), changes, health)));
    incoming
}

async fn run(
    mut input: Input,
    mut objects: mpsc::Receiver<(ObjectName, Answer)>,
    mut state: State,
    InputsOfPods { wanted, mut references, tokens }: InputsOfPods,
    Outputs { publish, tell }: Outputs,
) {
    let mut token_values = tokens.values();
    loop {
        let idle = references.next_stop();
        let mut drivers_changed = false;
        tokio::select! {
            Some(change) = input.pods.recv() => state.pod(change),
            Some(change) = input.services.recv() => state.service(change),
            Some(change) = input.slices.recv() => state.slice(change),
            Some(change) = next(&mut input.drivers) => drivers_changed |= state.driver(change),
            Some((name, answer)) = objects.recv() => references.answered(&name, answer, &mut state.objects),
            Ok(()) = token_values.changed() => {
                Arc::make_mut(&mut state.objects).set_tokens(token_values.borrow_and_update().clone());
            }
            () = sleep_until(idle.unwrap_or_else(Instant::now)), if idle.is_some() => {}
            else => return,
        }
        // All that has arrived makes one snapshot.
        loop {
            if let Ok(change) = input.pods.try_recv() {
                state.pod(change);
            } else if let Ok(change) = input.services.try_recv() {
                state.service(change);
            } else if let Ok(change) = input.slices.try_recv() {
                state.slice(change);
            } else if let Some(Ok(change)) = input.drivers.as_mut().map(mpsc::Receiver::try_recv) {
                drivers_changed |= state.driver(change);
            } else if let Ok((name, answer)) = objects.try_recv() {
                references.answered(&name, answer, &mut state.objects);
            } else {
                break;
            }
        }
        let mut changed = state.take_changed();
        changed.extend(references.take_led());
        if drivers_changed {
            changed.extend(references.with_storage());
        }
        if !wanted {
            changed.clear();
        }
        if !changed.is_empty() || drivers_changed {
            tokens.want(state.tokens());
        }
        for uid in changed {
            let desired = state.desired(&uid).cloned();
            references.pod(&uid, desired.as_deref(), &mut state.objects);
        }
        if state.take_first_listing() {
            references.forget_kept(&mut state.objects);
        }
        references.stop_idle(&mut state.objects);
        publish.send_if_modified(|published| {
            let now = state.snapshot(published);
            let changed = !now.is(published);
            if changed {
                *published = Arc::new(now);
            }
            changed
        });
        tell.send_if_modified(|told| {
            let now = references.unread(&state.objects);
            let changed = *told != now;
            *told = now;
            changed
        });
    }
}
