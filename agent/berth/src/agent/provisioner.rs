//! Volumes of CSI drivers for the claims of manifests: a node without a control plane has the drivers that are registered
//! with it make the volumes of its claims, and delete them after their claims where the class says so.
//!
//! Owns one task, and one for each volume that is being made or deleted, so that a driver that hangs holds up its own
//! volumes alone. What is done is in a journal ([`journal`]), written before a call and after it.
//!
//! On failure: tried again after 1 s to 2 minutes. `berth volumes` and the pod's events have the reason.

mod calls;
mod journal;

use super::{csi::PluginWatch, sources::Latest};
use berth_core::{
    model::Objects,
    time::{Boottime, backoff},
    volume::{
        bind::ClaimName,
        provision::{ProvisionStep, Provisioning, Wanted},
    },
};
use berth_csi_client::registration::RegisteredDriver;
use berth_source::provisioned::{Provisioned, ProvisionedVolumes, StorageClaims};
use berth_sys::clock;
use berth_volumes::Volumes;
use calls::{Called, CannotCall, call};
use journal::Journal;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{Id, JoinSet, spawn_blocking},
    time::sleep,
};

/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// Interval of looks at what still has a volume whose claim is gone.
const LOOK: Duration = Duration::from_secs(5);
/// The longest time without a look.
const IDLE: Duration = Duration::from_secs(3600);

/// What the provisioner works with.
pub(super) struct Parts {
    /// The directory of the journal.
    pub(super) state: PathBuf,
    pub(super) latest: Latest,
    pub(super) plugins: PluginWatch,
    pub(super) volumes: Volumes,
    pub(super) out: ProvisionedVolumes,
}

/// The pause of a volume that failed.
#[derive(Debug, Clone, Copy)]
struct Pause {
    tries: u32,
    until: Boottime,
}

/// A call that is due.
struct Due {
    name: ClaimName,
    step: ProvisionStep,
    /// Whether it is the first one for the volume.
    first: bool,
    driver: Arc<RegisteredDriver>,
}

struct Provisioner {
    plugins: PluginWatch,
    volumes: Volumes,
    journal: Journal,
    running: JoinSet<(ProvisionStep, Result<Called, CannotCall>)>,
    /// The claims whose volumes are being made or deleted, and whether it is the first call for the volume.
    busy: HashMap<Id, (ClaimName, bool)>,
    pauses: BTreeMap<ClaimName, Pause>,
    problems: BTreeMap<ClaimName, String>,
}

/// Makes and deletes volumes, as long as this runs.
pub(super) async fn run(parts: Parts) {
    let Parts { state, mut latest, plugins, volumes, out } = parts;
    let journal = match spawn_blocking(move || Journal::open(&state)).await {
        Ok(Ok(journal)) => journal,
        Ok(Err(error)) => {
            tracing::error!(%error, "cannot read which volumes were made: none is made or deleted until the agent's next start");
            return;
        }
        Err(error) => {
            tracing::error!(%error, "cannot read which volumes were made");
            return;
        }
    };
    let mut changes = plugins.clone();
    let mut provisioner = Provisioner {
        plugins,
        volumes,
        journal,
        running: JoinSet::new(),
        busy: HashMap::new(),
        pauses: BTreeMap::new(),
        problems: BTreeMap::new(),
    };
    loop {
        let (claims, objects) = {
            let sources = latest.borrow_and_update();
            (sources.claims(), sources.objects())
        };
        changes.mark_unchanged();
        let wait = provisioner.step(&claims, &objects).await;
        out.set(provisioner.shown(&claims));
        tokio::select! {
            changed = latest.changed() => if changed.is_err() {
                return;
            },
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            Some(done) = provisioner.running.join_next_with_id() => match done {
                Ok((id, (step, called))) => provisioner.ended(id, step, called),
                Err(error) => {
                    tracing::error!(%error, "cannot make or delete a volume");
                    provisioner.busy.remove(&error.id());
                }
            },
            () = sleep(wait) => {}
        }
    }
}

impl Provisioner {
    /// Begins what is due. Returns the time until the next look.
    async fn step(&mut self, claims: &StorageClaims, objects: &Arc<Objects>) -> Duration {
        for request in &claims.requests {
            self.journal.add(request);
        }
        let (now, mut wait, mut due) = (clock::boottime(), IDLE, Vec::new());
        for name in self.journal.names() {
            let Some(entry) =
                self.journal.get(&name).filter(|_| !self.busy.values().any(|(b, _)| *b == name))
            else {
                continue;
            };
            let entry = entry.clone();
            let wanted = self.wanted(&name, &entry, claims).await;
            if wanted == Wanted::Perhaps {
                wait = wait.min(LOOK);
            }
            match entry.next(wanted) {
                None => {}
                Some(ProvisionStep::Forget) => self.forget(&name),
                Some(step) => match self.pauses.get(&name) {
                    Some(pause) if pause.until > now => wait = wait.min(pause.until.since(now)),
                    // The plugins tell when the driver is there.
                    _ => match self.driver(&entry.request.class.provisioner) {
                        Ok(driver) => due.push(Due { name, step, first: !entry.begun, driver }),
                        Err(missing) => drop(self.problems.insert(name, missing)),
                    },
                },
            }
        }
        for Due { name, step, .. } in &due {
            self.journal.begin(name, *step);
        }
        if !self.journal.save().await {
            // What is not on disk is not begun.
            return PAUSES.0;
        }
        for due in due {
            self.begin(due, objects);
        }
        wait
    }

    /// The registered driver of that name, or what is told of a missing one.
    fn driver(&self, name: &str) -> Result<Arc<RegisteredDriver>, String> {
        let plugins = self.plugins.borrow();
        let found = plugins.drivers.iter().find(|(known, _)| known.as_str() == name);
        let missing = || format!("CSI driver {name} is not registered with this node");
        found.map(|(_, driver)| Arc::clone(driver)).ok_or_else(missing)
    }

    fn begin(&mut self, due: Due, objects: &Arc<Objects>) {
        let Due { name, step, first, driver } = due;
        let Some(entry) = self.journal.get(&name).cloned() else { return };
        let objects = Arc::clone(objects);
        let task = self.running.spawn(async move { (step, call(step, &entry, &driver, &objects).await) });
        self.busy.insert(task.id(), (name, first));
    }

    fn ended(&mut self, id: Id, step: ProvisionStep, called: Result<Called, CannotCall>) {
        let Some((name, first)) = self.busy.remove(&id) else { return };
        let shown = format!("{}/{}", name.0, name.1);
        match called {
            Ok(Called::Made(made)) => {
                tracing::info!(claim = shown, volume = made.handle, "volume made");
                self.journal.made(&name, made);
            }
            Ok(Called::Deleted) => {
                tracing::info!(claim = shown, "volume deleted after its claim");
                return self.forget(&name);
            }
            Err(CannotCall { text, is_final }) => {
                if self.problems.get(&name) != Some(&text) {
                    tracing::warn!(claim = shown, "{text}");
                }
                if is_final && first && step == ProvisionStep::Create {
                    self.journal.refused(&name);
                }
                self.problems.insert(name.clone(), text);
                let tries = self.pauses.get(&name).map_or(1, |pause| pause.tries.saturating_add(1));
                let until = clock::boottime() + backoff(tries, PAUSES.0, PAUSES.1);
                self.pauses.insert(name, Pause { tries, until });
                return;
            }
        }
        self.problems.remove(&name);
        self.pauses.remove(&name);
    }

    fn forget(&mut self, name: &ClaimName) {
        self.journal.remove(name);
        self.problems.remove(name);
        self.pauses.remove(name);
    }

    async fn wanted(&self, name: &ClaimName, entry: &Provisioning, claims: &StorageClaims) -> Wanted {
        let asked = claims.requests.iter().any(|request| request.claim_name() == *name);
        if asked || entry.made.is_some() && claims.claims.contains(name) {
            return Wanted::ByClaim;
        }
        if !claims.whole || claims.used.contains(name) {
            return Wanted::Perhaps;
        }
        let Some(made) = entry.made.clone() else { return Wanted::ByNobody };
        let (volumes, driver) = (self.volumes.clone(), entry.request.class.provisioner.clone());
        let has = spawn_blocking(move || volumes.has_volume(&driver, &made.handle)).await;
        match has {
            Ok(Ok(false)) => Wanted::ByNobody,
            Ok(Ok(true)) | Err(_) => Wanted::Perhaps,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot tell whether a volume whose claim is gone is in use: it is kept");
                Wanted::Perhaps
            }
        }
    }

    /// What the directory of manifests sees.
    fn shown(&self, claims: &StorageClaims) -> Provisioned {
        let mut problems = self.problems.clone();
        for request in &claims.requests {
            let name = request.claim_name();
            if self.journal.get(&name).is_some_and(|entry| entry.made.is_some() && entry.request != *request)
            {
                let text = "the volume that was made for a claim of its name before does not suit it";
                problems.insert(name, text.to_owned());
            }
        }
        Provisioned { volumes: self.journal.volumes(), problems }
    }
}

#[cfg(test)]
mod tests;
