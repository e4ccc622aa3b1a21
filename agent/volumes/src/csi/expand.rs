//! NodeExpandVolume: after a volume has grown, its file system follows, while pods use it or as a pod mounts it. The
//! decision is [`berth_core::volume::expand`]'s; the claim's status tells its progress.
//!
//! The size that the volume has on this node is a mark of this boot: the claim's as it was first mounted, then that of
//! each expansion. What a driver refuses is kept in memory, as the kubelet keeps it.

use super::{CallableDriver, CsiPaths, CsiVolumeSpec};
use crate::{Error, Volumes};
use berth_core::{
    error::Chain,
    event::Event,
    ids::Namespace,
    model::Pod,
    quantity::Quantity,
    sync::lock,
    time::backoff,
    volume::{
        expand::{
            AfterFailure, ClaimSize, ExpandFailure, Expansion, ExpansionCall, SizeChange, after_failure,
            expansion,
        },
        steps::Progress,
    },
};
use berth_csi_client::{Code, Expand, Secrets};
use berth_sys::failpoint::step;
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Mutex,
    time::{Duration, Instant},
};

/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// An answer of the API server, or why there is none.
pub type ClaimAnswer<'a> = Pin<Box<dyn Future<Output = Result<ClaimSize, String>> + Send + 'a>>;

/// The claims of a control plane.
pub trait Claims: Send + Sync {
    /// What a claim says of its size now.
    fn size<'a>(&'a self, claim: &'a ClaimOfVolume) -> ClaimAnswer<'a>;

    /// Changes the status of a claim, which said `before`. Returns what it says after that.
    fn change<'a>(
        &'a self,
        claim: &'a ClaimOfVolume,
        before: &'a ClaimSize,
        change: &'a SizeChange,
    ) -> ClaimAnswer<'a>;

    /// Reports an event of a pod, and of the claim as well if it is of both.
    fn tell(&self, pod: &Pod, claim: Option<&ClaimOfVolume>, event: Event);
}

/// The claim of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimOfVolume {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What has to be known of a persistent volume that may grow.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    pub(crate) claim: ClaimOfVolume,
    /// The claim's capacity as the pod's objects have it.
    pub(crate) claimed: Option<Quantity>,
    /// The volume's capacity.
    pub(crate) capacity: Option<Quantity>,
    /// The secrets of the call; `None` where they are not known.
    pub(crate) secrets: Option<Secrets>,
}

/// The failures of a volume's expansion.
#[derive(Debug, Clone, Default)]
struct Failed {
    /// The size that was asked for, in bytes.
    size: i64,
    /// When the next try is due; `None` where the node has given up.
    next: Option<Instant>,
    tries: u32,
    /// Whether a failure was final, of whatever size.
    finally: bool,
}

/// The volumes whose expansion has failed, by their keys.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeMap<String, Failed>>);

impl Failures {
    /// Whether a call for that size is due. A mount has pauses of its own.
    fn is_due(&self, key: &str, size: i64, mounting: bool) -> bool {
        let failed = lock(&self.0);
        let Some(failed) = failed.get(key).filter(|failed| failed.size == size) else { return true };
        failed.next.is_some_and(|next| mounting || next <= Instant::now())
    }

    fn has_failed_finally(&self, key: &str) -> bool {
        lock(&self.0).get(key).is_some_and(|failed| failed.finally)
    }

    fn note(&self, key: &str, size: i64, gives_up: bool, finally: bool) {
        let mut all = lock(&self.0);
        let failed = all.entry(key.to_owned()).or_default();
        if failed.size != size {
            *failed = Failed { size, finally: failed.finally, ..Failed::default() };
        }
        failed.tries = failed.tries.saturating_add(1);
        failed.next = (!gives_up).then(|| Instant::now() + backoff(failed.tries, PAUSES.0, PAUSES.1));
        failed.finally |= finally;
    }

    /// Forgets a volume that has grown, or that the node has no more.
    pub(super) fn forget(&self, key: &str) {
        lock(&self.0).remove(key);
    }
}

impl Volumes {
    fn has_published(&self, paths: &CsiPaths, pod: &Pod) -> std::io::Result<bool> {
        let state = self.csi_state(paths, &pod.uid)?;
        Ok(state.published.get(&pod.uid) == Some(&Progress::Done))
    }

    /// Expands a volume that the pod has, if it has grown. `mounting`: as part of the pod's mount.
    pub(crate) fn expand_csi(&self, spec: &CsiVolumeSpec, pod: &Pod, mounting: bool) -> Result<(), Error> {
        let Some(inner) = &self.csi.0 else { return Ok(()) };
        let Some(control_plane) = &inner.control_plane else { return Ok(()) };
        let Some(growth @ Growth { capacity: Some(capacity), .. }) = &spec.growth else { return Ok(()) };
        let paths = self.csi_paths(spec);
        let failed = Error::io("store the size of", &paths.staging);
        if !self.has_published(&paths, pod).map_err(Error::io("read the state of", &paths.staging))? {
            return Ok(());
        }
        let Some(known) = paths.size().or(growth.claimed.as_ref().map(Quantity::units)) else {
            return Ok(());
        };
        if capacity.units() <= known {
            return if paths.size().is_none() { paths.set_size(known).map_err(failed) } else { Ok(()) };
        }
        if !inner.failures.is_due(&paths.key, capacity.units(), mounting) {
            return Ok(());
        }
        if spec.read_only {
            inner.failures.note(&paths.key, capacity.units(), true, false);
            let text = format!(
                "MountVolume.NodeExpandVolume failed for volume {:?} requested read-only file system",
                spec.name
            );
            control_plane.claims.tell(
                pod,
                Some(&growth.claim),
                Event::warning("FileSystemResizeFailed", text),
            );
            return Ok(());
        }
        let claim = match inner.runtime.block_on(control_plane.claims.size(&growth.claim)) {
            Ok(claim) if claim.uid == growth.claim.uid => claim,
            // Another claim of that name: the pod's own is gone.
            Ok(_) => return Ok(()),
            Err(error) => {
                // The pod may use what it has. The next refresh asks again.
                tracing::warn!(
                    volume = spec.name,
                    error,
                    "cannot ask for the claim of a volume that has grown"
                );
                return Ok(());
            }
        };
        match expansion(&claim, capacity) {
            Expansion::Wait => Ok(()),
            Expansion::Done(size) => paths.set_size(size.units().max(known)).map_err(failed),
            Expansion::Call(call) if call.size.units() <= known => Ok(()),
            Expansion::Call(call) => {
                let expanded = self.expand_one(spec, growth, (&paths, known), pod, claim, &call);
                expanded.map_err(|text| Error::Expansion { text, mounting })
            }
        }
    }

    /// Calls the driver, and tells the claim's status before and after it.
    fn expand_one(
        &self,
        spec: &CsiVolumeSpec,
        growth: &Growth,
        (paths, known): (&CsiPaths, i64),
        pod: &Pod,
        mut claim: ClaimSize,
        call: &ExpansionCall,
    ) -> Result<(), String> {
        let text = |e: Error| e.message();
        let Some(inner) = &self.csi.0 else { return Ok(()) };
        let Some(control_plane) = &inner.control_plane else { return Ok(()) };
        let change = |claim: &ClaimSize, change: &SizeChange| {
            inner.runtime.block_on(control_plane.claims.change(&growth.claim, claim, change))
        };
        let driver = self.csi.driver(&spec.driver, "Expander.NodeExpand").map_err(text)?;
        let busy = Error::Busy { driver: spec.driver.clone(), handle: spec.handle.clone() };
        let turn = self.csi.lock(&paths.key).ok_or_else(|| busy.message())?;
        if paths.size().is_some_and(|size| size > known) {
            // Another pod's thread has done it.
            return Ok(());
        }
        if !self.has_published(paths, pod).map_err(|e| e.to_string())? {
            return Ok(());
        }
        if call.tells && call.recovers {
            claim = change(&claim, &SizeChange::InProgress)?;
        }
        let result = self.call_expand(spec, growth, paths, pod, &driver, call);
        drop(turn);
        let bytes = call.size.units();
        let (failure, why) = match result {
            Ok(()) => {
                inner.failures.forget(&paths.key);
                paths.set_size(bytes).map_err(|e| Chain(&e).to_string())?;
                let text =
                    format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {}", spec.name, pod.node);
                tracing::info!(pod = %pod.key, volume = spec.name, size = call.size.as_str(), "volume expanded");
                control_plane.claims.tell(
                    pod,
                    Some(&growth.claim),
                    Event::normal("FileSystemResizeSuccessful", text),
                );
                return self.tell_finished(growth, paths, &claim, call);
            }
            Err(failed) => failed,
        };
        let (next, changed) =
            after_failure(&claim, call, failure, inner.failures.has_failed_finally(&paths.key));
        if next == AfterFailure::Done {
            return paths.set_size(bytes).map_err(|e| Chain(&e).to_string());
        }
        if let Some(changed) = changed
            && let Err(error) = change(&claim, &changed(why.clone()))
        {
            tracing::warn!(volume = spec.name, error, "cannot tell the claim of a failed expansion");
        }
        let gives_up = next == AfterFailure::GiveUp;
        inner.failures.note(&paths.key, bytes, gives_up, failure != ExpandFailure::Uncertain);
        if gives_up {
            tracing::warn!(pod = %pod.key, volume = spec.name, why, "the volume is not expanded while it is mounted");
            return Ok(());
        }
        Err(why)
    }

    /// Tells the claim that the volume has its size. The claim may have changed meanwhile.
    fn tell_finished(
        &self,
        growth: &Growth,
        paths: &CsiPaths,
        claim: &ClaimSize,
        call: &ExpansionCall,
    ) -> Result<(), String> {
        let Some(inner) = &self.csi.0 else { return Ok(()) };
        let Some(control_plane) = inner.control_plane.as_ref().filter(|_| call.tells) else { return Ok(()) };
        let claims = &control_plane.claims;
        let finished = SizeChange::Finished(call.size.clone());
        let told = inner.runtime.block_on(async {
            match claims.change(&growth.claim, claim, &finished).await {
                Ok(claim) => Ok(claim),
                Err(_changed) => {
                    let claim = claims.size(&growth.claim).await?;
                    claims.change(&growth.claim, &claim, &finished).await
                }
            }
        });
        told.map(drop).map_err(|error| {
            // The driver finds nothing left to do when it is asked again.
            match paths.forget_size() {
                Ok(()) => format!("cannot update the status of the claim: {error}"),
                Err(e) => format!("cannot update the status of the claim: {error}; {e}"),
            }
        })
    }

    fn call_expand(
        &self,
        spec: &CsiVolumeSpec,
        growth: &Growth,
        paths: &CsiPaths,
        pod: &Pod,
        driver: &CallableDriver,
        call: &ExpansionCall,
    ) -> Result<(), (ExpandFailure, String)> {
        if !driver.capabilities.expand {
            let text = format!("NodeExpand is not supported by the CSI driver {}", spec.driver);
            return Err((ExpandFailure::NotSupported, text));
        }
        let unknown = || (ExpandFailure::Uncertain, "the secret of the call is not known".to_owned());
        let request = Expand {
            volume: spec.id().map_err(|e| (ExpandFailure::Uncertain, e.message()))?,
            volume_path: paths.target(&self.pod_dir(&pod.uid), &pod.uid),
            required_bytes: u64::try_from(call.size.units()).unwrap_or_default(),
            staging_target_path: driver.capabilities.stage_unstage.then(|| paths.staging.clone()),
            capability: spec.capability(driver),
            secrets: growth.secrets.clone().ok_or_else(unknown)?,
        };
        let result = step("csi-expand", || driver.call(driver.driver.expand(&request)));
        result.map(drop).map_err(|error| (failure(&error), Chain(&error).to_string()))
    }
}

/// What an error of the call means (`pkg/volume/csi/expander.go`).
fn failure(error: &berth_csi_client::Error) -> ExpandFailure {
    match error.code() {
        Some(Code::FailedPrecondition) => ExpandFailure::InUse,
        Some(Code::InvalidArgument | Code::OutOfRange | Code::NotFound) => ExpandFailure::Infeasible,
        _ if error.is_final() => ExpandFailure::Final,
        _ => ExpandFailure::Uncertain,
    }
}
