//! Errors of volumes and files. Their texts reach the pod's events, and are the kubelet's where it has the same error.

use crate::fields::FieldError;
use berth_core::{
    error::Chain,
    event::Event,
    ids::{ContainerName, VolumeName},
    model::ObjectKind,
    value::Why,
    volume::ResolveError,
};
use std::{io, path::PathBuf};

/// An operation on a pod's volumes or files that failed, and its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A volume of a kind that is not supported yet. A retry does not help.
    #[error("volumes of kind {kind} are not supported yet")]
    NotYet {
        /// The volume.
        volume: VolumeName,
        /// The kind as the API names it.
        kind: String,
    },
    /// A ConfigMap or Secret that is not optional does not exist (yet).
    #[error("{kind} {name:?} not found")]
    MissingObject {
        /// The volume that needs it.
        volume: VolumeName,
        /// The kind of the object.
        kind: ObjectKind,
        /// The object's name in the pod's namespace.
        name: String,
    },
    /// A kind of volume that Kubernetes has given up or moved to CSI drivers.
    #[error("volume type {kind} is no longer supported by Kubernetes: use {alternative}")]
    GivenUp {
        /// The volume.
        volume: VolumeName,
        /// The field's name in the API.
        kind: String,
        /// What to use in its place.
        alternative: &'static str,
    },
    /// The claim of a volume does not lead to a persistent volume that the pod may use.
    #[error("{error}")]
    Claim {
        /// The volume.
        volume: VolumeName,
        /// What is wrong with the claim, its volume or its attachment.
        error: Box<ResolveError>,
    },
    /// The path of a local volume cannot be used.
    #[error("path {:?} {reason}", path.display())]
    LocalPath {
        /// The volume.
        volume: VolumeName,
        /// The path on the node.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The size of the pages of a volume of huge pages is not known.
    #[error("{reason}")]
    HugePages {
        /// The volume.
        volume: VolumeName,
        /// What the pod requests, or does not.
        reason: String,
    },
    /// A directory of an NFS server cannot be mounted.
    #[error("cannot mount {source_name}: {reason}")]
    Nfs {
        /// The server and the directory.
        source_name: String,
        /// What the kernel said.
        reason: String,
    },
    /// A driver of the volume is not registered with this node.
    #[error(
        "kubernetes.io/csi: {step} failed: driver name {driver} not found in the list of registered CSI drivers"
    )]
    NoDriver {
        /// The driver.
        driver: String,
        /// What needed the driver.
        step: &'static str,
    },
    /// A call of a volume's driver has failed.
    #[error("{text}")]
    Csi {
        /// What needed the call.
        step: &'static str,
        /// The call's error with its causes; it names driver, call and volume.
        text: String,
    },
    /// A failure in a persistent volume.
    #[error("{}", error.message())]
    Persistent {
        /// The persistent volume.
        persistent: String,
        /// The failure.
        error: Box<Error>,
    },
    /// A volume of a driver cannot be used as the pod wants.
    #[error("{reason}")]
    CsiUse {
        /// What is wrong.
        reason: String,
    },
    /// Another operation on the same volume has not ended.
    #[error("an operation on volume {handle:?} of driver {driver} is still running")]
    Busy {
        /// The driver.
        driver: String,
        /// The volume's id.
        handle: String,
    },
    /// The Node's status does not list the volume yet, which a control plane attaches.
    #[error("Volume has not been added to the list of VolumesInUse in the node's volume status")]
    NotListed {
        /// The volume's name in the Node's status.
        volume: String,
    },
    /// A volume that has grown could not be expanded on the node.
    #[error("{text}")]
    Expansion {
        /// The driver's refusal, or what else keeps the file system from its new size.
        text: String,
        /// Whether the pod was mounting it.
        mounting: bool,
    },
    /// Another pod has the volume, which one pod alone may have.
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    /// Persistent volumes of a pod are not mounted, as the kubelet tells it.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[{}], failed to process volumes=[{}]: {}",
        list(unmounted),
        list(unattached),
        list(failed),
        error.message()
    )]
    Unmounted {
        /// The volumes that are not mounted.
        unmounted: Vec<VolumeName>,
        /// Those that are not attached to the node.
        unattached: Vec<VolumeName>,
        /// Those whose claims cannot be used.
        failed: Vec<VolumeName>,
        /// The first one's error.
        error: Box<Error>,
    },
    /// A ConfigMap or Secret that may exist is unknown. The caller waits for such objects, so that users meet this error
    /// only where the API server refuses the object to the node.
    #[error("{kind} {name:?} is {why}")]
    UnknownObject {
        /// The volume.
        volume: VolumeName,
        /// The kind of the object.
        kind: ObjectKind,
        /// The object's name in the pod's namespace.
        name: String,
        /// Why it is unknown.
        why: Why,
    },
    /// An object lacks a key that the volume names.
    #[error("{kind} {name:?} has no key {key:?}")]
    MissingKey {
        /// The volume that needs it.
        volume: VolumeName,
        /// The kind of the object.
        kind: ObjectKind,
        /// The object's name in the pod's namespace.
        name: String,
        /// The key.
        key: String,
    },
    /// The file at a hostPath is not of the `type` that the volume wants.
    #[error("hostPath type check failed: {} is not {wanted}", path.display())]
    HostPathType {
        /// The volume.
        volume: VolumeName,
        /// The node's path.
        path: PathBuf,
        /// The wanted type, with its article.
        wanted: &'static str,
    },
    /// A key or `path` cannot become a file of the volume.
    #[error("file path {path:?} {reason}")]
    FilePath {
        /// The volume.
        volume: VolumeName,
        /// The path, relative to the volume.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A downward API file has no value.
    #[error("downward API file {path:?} has no value")]
    Downward {
        /// The volume.
        volume: VolumeName,
        /// The file, relative to the volume.
        path: PathBuf,
        /// Why the field has no value.
        #[source]
        source: FieldError,
    },
    /// A failed file operation while a volume was set up.
    #[error("cannot {action} {}", path.display())]
    SetUp {
        /// The volume.
        volume: VolumeName,
        /// The operation that failed.
        action: &'static str,
        /// The node's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A failed file operation for the pod as a whole.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The node's path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A container mounts a volume that the pod does not have.
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    UnknownVolume {
        /// The volume as named by the mount.
        volume: VolumeName,
        /// The container.
        container: ContainerName,
    },
    /// A container mounts a volume that has not been set up.
    #[error("volume \"{volume}\" of container \"{container}\" is not set up")]
    NotSetUp {
        /// The volume.
        volume: VolumeName,
        /// The container.
        container: ContainerName,
    },
    /// `subPathExpr` names variables that are unset or empty.
    #[error("missing value for {}", names.join(", "))]
    SubPathEnv {
        /// The variables, sorted.
        names: Vec<String>,
    },
    /// A sub-path whose text could lead out of its volume.
    #[error("subPath {sub_path:?} of volume \"{volume}\" {reason}")]
    SubPathText {
        /// The volume.
        volume: VolumeName,
        /// The path, variables expanded.
        sub_path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory of a sub-path could not be made inside the volume. The cause is for the log only: it may reveal
    /// the node's files.
    #[error("failed to create subPath directory for volumeMount \"{volume}\" of container \"{container}\"")]
    SubPathCreate {
        /// The volume.
        volume: VolumeName,
        /// The container.
        container: ContainerName,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A sub-path could not be bound. The cause is for the log only, as above.
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\"")]
    SubPathPrepare {
        /// The volume.
        volume: VolumeName,
        /// The container.
        container: ContainerName,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The options of one mount exclude each other.
    #[error("mount of volume \"{volume}\" in container \"{container}\" {reason}")]
    MountOptions {
        /// The volume.
        volume: VolumeName,
        /// The container.
        container: ContainerName,
        /// The options that exclude each other, and why.
        reason: &'static str,
    },
    /// A name or option of the pod cannot be written into a line of its hosts or resolver file.
    #[error("{field} {text:?} {reason}")]
    PodText {
        /// The field of the pod.
        field: &'static str,
        /// Its value.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A directory for a `VOLUME` of the image could not be created.
    #[error("cannot create a directory for the VOLUME {volume:?} of the image")]
    ImageVolume {
        /// The absolute path in the container.
        volume: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A file system is out of sight, and the kernel has not stored at its server yet what was written to it.
    #[error("cannot unmount {} of {source_name}: the server does not answer, and what is unwritten waits for it", path.display())]
    Unmounting {
        /// Where it was mounted.
        path: PathBuf,
        /// What was mounted.
        source_name: String,
    },
    /// A mount below the pod's directory could not be unmounted, so the directory is kept.
    #[error("{} is still mounted", path.display())]
    StillMounted {
        /// One of the mount points.
        path: PathBuf,
    },
}

/// The kubelet's name of staging, and of publishing (`pkg/volume/csi`).
pub(crate) const STAGE: &str = "attacher.MountDevice";
pub(crate) const PUBLISH: &str = "mounter.SetUpAt";
/// The kubelet's name of unpublishing, and of unstaging.
pub(crate) const UNPUBLISH: &str = "Unmounter.TearDownAt";
pub(crate) const UNSTAGE: &str = "attacher.UnmountDevice";

fn list(names: &[VolumeName]) -> String {
    names.iter().map(VolumeName::as_str).collect::<Vec<_>>().join(" ")
}

impl Error {
    /// Names the persistent volume in which the error is, as the kubelet does in its events.
    pub(crate) fn in_persistent(self, persistent: Option<&str>) -> Error {
        match (self, persistent) {
            (e @ (Error::Claim { .. } | Error::UnknownObject { .. }), _) | (e, None) => e,
            (e, Some(persistent)) => {
                Error::Persistent { persistent: persistent.to_owned(), error: Box::new(e) }
            }
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Names the volume that was being set up.
    pub(crate) fn in_volume(self, name: &VolumeName) -> Error {
        match self {
            Error::Io { action, path, source } => Error::SetUp { volume: name.clone(), action, path, source },
            other => other,
        }
    }

    /// The kubelet's name of the operation that failed.
    fn operation(&self) -> &'static str {
        match self {
            Error::Csi { step, .. } | Error::NoDriver { step, .. } if *step == STAGE => {
                "MountVolume.MountDevice"
            }
            _ => "MountVolume.SetUp",
        }
    }

    /// The name of the volume that the Node's status has to list first, if that is the error.
    pub(crate) fn not_listed(&self) -> Option<&str> {
        match self {
            Error::NotListed { volume } => Some(volume),
            Error::Persistent { error, .. } => error.not_listed(),
            _ => None,
        }
    }

    /// The volume that the error is about, if it is a single one.
    pub fn volume(&self) -> Option<&VolumeName> {
        match self {
            Error::NotYet { volume, .. }
            | Error::GivenUp { volume, .. }
            | Error::Claim { volume, .. }
            | Error::LocalPath { volume, .. }
            | Error::HugePages { volume, .. }
            | Error::MissingObject { volume, .. }
            | Error::UnknownObject { volume, .. }
            | Error::MissingKey { volume, .. }
            | Error::HostPathType { volume, .. }
            | Error::FilePath { volume, .. }
            | Error::Downward { volume, .. }
            | Error::SetUp { volume, .. }
            | Error::UnknownVolume { volume, .. }
            | Error::NotSetUp { volume, .. }
            | Error::SubPathText { volume, .. }
            | Error::SubPathCreate { volume, .. }
            | Error::SubPathPrepare { volume, .. }
            | Error::MountOptions { volume, .. } => Some(volume),
            Error::Persistent { error, .. } => error.volume(),
            Error::Io { .. }
            | Error::Nfs { .. }
            | Error::NoDriver { .. }
            | Error::Csi { .. }
            | Error::CsiUse { .. }
            | Error::Busy { .. }
            | Error::NotListed { .. }
            | Error::Expansion { .. }
            | Error::InUse
            | Error::Unmounted { .. }
            | Error::ImageVolume { .. }
            | Error::SubPathEnv { .. }
            | Error::PodText { .. }
            | Error::Unmounting { .. }
            | Error::StillMounted { .. } => None,
        }
    }

    /// The error and its causes as one line, for people. Causes of sub-path errors are left out, since they may reveal
    /// the node's own files.
    pub fn message(&self) -> String {
        match self {
            // The text of these has its cause already.
            Error::SubPathCreate { .. }
            | Error::SubPathPrepare { .. }
            | Error::Claim { .. }
            | Error::Unmounted { .. } => self.to_string(),
            _ => Chain(self).to_string(),
        }
    }

    /// The `FailedMount` event of a [`Volumes::mount`](crate::Volumes::mount) that failed; of the expansion of a mounted
    /// volume `VolumeResizeFailed`.
    pub fn event(&self) -> Event {
        // The text of these says all.
        if let Error::Claim { .. } | Error::Unmounted { .. } = self {
            return Event::warning("FailedMount", self.message());
        }
        if let Error::Persistent { persistent, error } = self {
            if let Error::Expansion { text, mounting } = &**error {
                let (reason, operation) = match mounting {
                    true => ("FailedMount", "MountVolume.Setup failed while expanding volume"),
                    false => ("VolumeResizeFailed", "NodeExpandVolume.NodeExpandVolume failed"),
                };
                return Event::warning(reason, format!("{operation} for volume \"{persistent}\" : {text}"));
            }
            let message =
                format!("{} failed for volume \"{persistent}\" : {}", error.operation(), self.message());
            return Event::warning("FailedMount", message);
        }
        let message = match self.volume() {
            Some(volume) => {
                format!("{} failed for volume \"{volume}\" : {}", self.operation(), self.message())
            }
            None => self.message(),
        };
        Event::warning("FailedMount", message)
    }
}
