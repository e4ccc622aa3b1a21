//! Which pods have a worker. One task owns the workers, their mailboxes and the wishes that wait.
//!
//! Hears: the desired set (a `watch`), what the node tells (an `mpsc`), the ends of workers (a `JoinSet`).
//! Invariants: a pod is ended only after its source has listed; of two pods with one name the second waits until
//! nothing of the first is left; a worker that panics is started again from what the world shows, and no other pod
//! notices.

use crate::{
    hands::{Hands, Sight},
    refs::references,
    report::Reports,
    store::Store,
    worker::{self, Letter, Start},
};
use berth_core::{
    ids::{Namespace, PodKey, PodUid},
    model::{Objects, Pod},
    plan::{Desired, Memory},
    time::Boottime,
};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
};

/// How long a pod whose worker panicked rests.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// What the source wants of this node.
#[derive(Debug, Clone, Default)]
pub struct DesiredSet {
    /// Whether the source has listed; until then nothing is ended for not being in it.
    pub listed: bool,
    /// The pods.
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    /// What they may refer to.
    pub objects: Arc<Objects>,
}

/// A pod that containerd shows.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The pod as stored on its containers, where that could be read.
    pub pod: Option<Arc<Pod>>,
    /// What is there of it.
    pub sight: Sight,
}

/// What the node tells.
#[derive(Debug)]
pub enum Incoming {
    /// Something about one pod.
    One(PodUid, Letter),
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers, for the first time or again: everything that is there.
    RuntimeBack(BTreeMap<PodUid, Found>),
}

/// What is needed to run pods.
#[derive(Debug)]
pub struct ManagerConfig<H, R> {
    /// Carries actions out.
    pub hands: Arc<H>,
    /// Is told.
    pub reports: Arc<R>,
    /// Keeps memory.
    pub store: Store,
    /// What is wanted.
    pub desired: watch::Receiver<Arc<DesiredSet>>,
    /// What the node tells.
    pub incoming: mpsc::Receiver<Incoming>,
    /// Ends the manager, leaving every pod as it is.
    pub stop: oneshot::Receiver<()>,
}

struct Live {
    pod: Arc<Pod>,
    mail: mpsc::UnboundedSender<Letter>,
    ending: bool,
}

struct Manager<H, R> {
    hands: Arc<H>,
    reports: Arc<R>,
    store: Store,
    desired: Arc<DesiredSet>,
    live: BTreeMap<PodUid, Live>,
    by_key: HashMap<PodKey, PodUid>,
    by_object: HashMap<(Namespace, String), BTreeSet<PodUid>>,
    workers: JoinSet<PodUid>,
    by_task: HashMap<Id, PodUid>,
    kept: BTreeMap<PodUid, (Arc<Pod>, Memory)>,
    found: BTreeMap<PodUid, Found>,
    runtime_answers: bool,
    cleaned: bool,
    agent_start: Boottime,
}

/// Runs the pods until told to stop.
pub async fn run<H: Hands, R: Reports>(config: ManagerConfig<H, R>) {
    let ManagerConfig { hands, reports, store, mut desired, mut incoming, mut stop } = config;
    let kept = store.load().unwrap_or_else(|error| {
        tracing::error!(%error, "memory of pods not read; what runs is taken for started");
        Vec::new()
    });
    let mut m = Manager {
        hands,
        reports,
        store,
        desired: desired.borrow_and_update().clone(),
        live: BTreeMap::new(),
        by_key: HashMap::new(),
        by_object: HashMap::new(),
        workers: JoinSet::new(),
        by_task: HashMap::new(),
        kept: kept.into_iter().map(|k| (k.pod.uid.clone(), (k.pod, k.memory))).collect(),
        found: BTreeMap::new(),
        runtime_answers: false,
        cleaned: false,
        agent_start: clock::boottime(),
    };
    loop {
        m.reconcile().await;
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => {
                    let now = desired.borrow_and_update().clone();
                    m.want(now);
                }
                // The source is gone: what was wanted last stays wanted.
                Err(_gone) => match incoming.recv().await {
                    Some(i) => m.hear(i).await,
                    None => return,
                },
            },
            i = incoming.recv() => match i {
                Some(i) => m.hear(i).await,
                None => return,
            },
            Some(ended) = m.workers.join_next_with_id() => m.ended(ended).await,
            _ = &mut stop => return,
        }
    }
}

impl<H: Hands, R: Reports> Manager<H, R> {
    fn want(&mut self, now: Arc<DesiredSet>) {
        let before = std::mem::replace(&mut self.desired, now);
        if !Arc::ptr_eq(&before.objects, &self.desired.objects) {
            let mut touched: BTreeSet<PodUid> = BTreeSet::new();
            for (namespace, name) in self.desired.objects.changed_since(&before.objects) {
                touched.extend(self.by_object.get(&(namespace, name)).into_iter().flatten().cloned());
            }
            for uid in touched {
                self.send(&uid, Letter::Objects(Arc::clone(&self.desired.objects)));
            }
        }
    }

    fn send(&self, uid: &PodUid, letter: Letter) {
        if let Some(live) = self.live.get(uid) {
            // A worker that has just ended needs no letter any more; its end is in the JoinSet.
            live.mail.send(letter).ok();
        }
    }

    async fn hear(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::One(uid, letter) => self.send(&uid, letter),
            Incoming::RuntimeLost => {
                self.runtime_answers = false;
                self.live
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .iter()
                    .for_each(|u| self.send(u, Letter::RuntimeLost));
            }
            Incoming::RuntimeBack(mut found) => {
                self.runtime_answers = true;
                let live: Vec<PodUid> = self.live.keys().cloned().collect();
                for uid in live {
                    // Also what is not in containerd may have a sandbox and volumes.
                    let sight = match found.remove(&uid) {
                        Some(f) => f.sight,
                        None => match self.hands.look(&uid).await {
                            Ok(sight) => sight,
                            Err(_unknown) => continue,
                        },
                    };
                    self.send(&uid, Letter::Sight(Box::new(sight)));
                }
                self.found = found;
            }
        }
    }

    /// Brings the workers in line with what is wanted and with what is there.
    async fn reconcile(&mut self) {
        let desired = Arc::clone(&self.desired);
        for (uid, pod) in &desired.pods {
            match self.live.get_mut(uid) {
                Some(live) => {
                    if live.pod != *pod {
                        live.pod = Arc::clone(pod);
                        let letter = Letter::Desired(Desired { pod: Arc::clone(pod), end: None });
                        self.send(uid, letter);
                    }
                }
                None if self.by_key.contains_key(&pod.key) => {}
                None => self.start(Arc::clone(pod), None).await,
            }
        }
        if desired.listed {
            let over: Vec<PodUid> = self
                .live
                .iter()
                .filter(|(u, l)| !l.ending && !desired.pods.contains_key(*u))
                .map(|(u, _)| u.clone())
                .collect();
            for uid in over {
                if let Some(live) = self.live.get_mut(&uid) {
                    live.ending = true;
                    let pod = Arc::clone(&live.pod);
                    tracing::info!(pod = %pod.key, uid = %uid, grace = pod.grace_seconds, "no longer wanted");
                    let end = Some(pod.grace_seconds);
                    self.send(&uid, Letter::Desired(Desired { pod, end }));
                }
            }
        }
        self.adopt().await;
        if desired.listed && self.runtime_answers && !self.cleaned {
            self.cleaned = true;
            let known: BTreeSet<PodUid> = self.live.keys().cloned().collect();
            self.hands.clean_leftovers(known).await;
        }
    }

    /// Gives a worker to what is there and has none: kept running until the source has listed, ended after that.
    async fn adopt(&mut self) {
        if !self.runtime_answers {
            return;
        }
        let strays: BTreeSet<PodUid> = self
            .found
            .keys()
            .chain(self.kept.keys())
            .filter(|u| !self.live.contains_key(*u) && !self.desired.pods.contains_key(*u))
            .cloned()
            .collect();
        for uid in strays {
            let pod = self
                .found
                .get(&uid)
                .and_then(|f| f.pod.clone())
                .or_else(|| self.kept.get(&uid).map(|k| Arc::clone(&k.0)));
            let Some(pod) = pod else {
                tracing::error!(uid = %uid, "containers of a pod whose spec cannot be read are left alone");
                self.found.remove(&uid);
                continue;
            };
            let end = self.desired.listed.then_some(pod.grace_seconds);
            self.start(pod, end).await;
        }
    }

    async fn start(&mut self, pod: Arc<Pod>, end: Option<u32>) {
        let uid = pod.uid.clone();
        let sight = match self.found.remove(&uid) {
            Some(f) => f.sight,
            // What could not be found out is looked at again by the worker.
            None if self.runtime_answers => self.hands.look(&uid).await.unwrap_or_default(),
            None => Sight::default(),
        };
        let memory = self.kept.remove(&uid).map(|k| k.1).unwrap_or_default();
        let (mail, box_) = mpsc::unbounded_channel();
        for reference in references(&pod) {
            self.by_object.entry((pod.key.namespace.clone(), reference)).or_default().insert(uid.clone());
        }
        self.by_key.insert(pod.key.clone(), uid.clone());
        let start = Start {
            desired: Desired { pod: Arc::clone(&pod), end },
            objects: Arc::clone(&self.desired.objects),
            memory,
            sight,
            hands: Arc::clone(&self.hands),
            reports: Arc::clone(&self.reports),
            store: self.store.clone(),
            agent_start: self.agent_start,
        };
        let name = uid.clone();
        let handle = self.workers.spawn(async move {
            worker::run(start, box_).await;
            name
        });
        self.by_task.insert(handle.id(), uid.clone());
        self.live.insert(uid, Live { pod, mail, ending: end.is_some() });
    }

    async fn ended(&mut self, ended: Result<(Id, PodUid), JoinError>) {
        let (id, panicked) = match &ended {
            Ok((id, _)) => (*id, None),
            Err(e) => (e.id(), Some(e.to_string())),
        };
        let Some(uid) = self.by_task.remove(&id) else { return };
        let Some(live) = self.live.remove(&uid) else { return };
        self.by_key.retain(|_, u| *u != uid);
        for reference in references(&live.pod) {
            let key = (live.pod.key.namespace.clone(), reference);
            if let Some(set) = self.by_object.get_mut(&key) {
                set.remove(&uid);
                if set.is_empty() {
                    self.by_object.remove(&key);
                }
            }
        }
        if let Some(panic) = panicked {
            tracing::error!(pod = %live.pod.key, uid = %uid, panic, "the pod's worker panicked; it is started again");
            tokio::time::sleep(AFTER_PANIC).await;
            if let Ok(kept) = self.store.load() {
                self.kept.extend(
                    kept.into_iter()
                        .filter(|k| k.pod.uid == uid)
                        .map(|k| (k.pod.uid.clone(), (k.pod, k.memory))),
                );
            }
            self.start(live.pod, None).await;
        }
    }
}
