//! Volumes of CSI drivers, persistent ones and those of a single pod.

use super::VolumePlugin;
use crate::{
    ClaimOfVolume, Error, Volumes,
    csi::{CsiVolumeSpec, Growth},
    inputs::VolumeInputs,
};
use berth_core::{
    ids::{Namespace, VolumeName},
    model::{
        AccessMode, CsiDriver, CsiEphemeral, FsGroupPolicy, ObjectKind, Objects, PersistentVolumeSource, Pod,
        SecretRef, TokenRef, Volume, VolumeMode,
    },
    value::Value,
    volume::PersistentSource,
};
use berth_csi_client::Secrets;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The key of the tokens of a pod's service account.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A volume of a CSI driver.
pub(super) struct Csi<'a> {
    volumes: &'a Volumes,
    /// What is known without the pod's objects.
    spec: CsiVolumeSpec,
    object: Option<Arc<CsiDriver>>,
    stage_secret: Option<SecretRef>,
    publish_secret: Option<SecretRef>,
    expand_secret: Option<SecretRef>,
    pod: berth_core::ids::PodUid,
}

impl<'a> Csi<'a> {
    /// A persistent volume.
    pub(super) fn persistent(
        volumes: &'a Volumes,
        pod: &Pod,
        source: &PersistentSource,
    ) -> Result<Csi<'a>, Error> {
        let PersistentVolumeSource::Csi(csi) = &source.volume.source else {
            return Err(Error::CsiUse { reason: "the volume is of no CSI driver".to_owned() });
        };
        if source.driver.as_ref().is_some_and(|driver| !driver.persistent) {
            return Err(not_supported("Persistent", &csi.driver));
        }
        let attachment = source.attachment.as_deref();
        let access = source.volume.access_modes.first().copied().unwrap_or(AccessMode::ReadWriteOnce);
        let single =
            |mode: &AccessMode| matches!(mode, AccessMode::ReadWriteOnce | AccessMode::ReadWriteOncePod);
        let by_one = source.volume.access_modes.iter().any(single);
        let spec = CsiVolumeSpec {
            name: source.volume.name.clone(),
            driver: csi.driver.clone(),
            handle: csi.handle.clone(),
            mode: source.volume.mode,
            access,
            fs_type: csi.fs_type.clone(),
            mount_options: source.volume.mount_options.clone(),
            read_only: source.read_only,
            ephemeral: false,
            publish_context: attachment.map(|a| a.metadata.clone()).unwrap_or_default(),
            attachment: attachment.map(|a| a.name.clone()).unwrap_or_default(),
            attributes: csi.attributes.clone(),
            publish_attributes: BTreeMap::new(),
            stage_secrets: Secrets::default(),
            publish_secrets: Secrets::default(),
            pod_group: pod.security.fs_group,
            one_pod: source.is_for_one_pod(),
            fs_group: fs_group(
                pod,
                source.driver.as_deref(),
                csi.fs_type.as_deref(),
                by_one,
                source.read_only,
            ),
            growth: Some(Growth {
                claim: ClaimOfVolume {
                    namespace: source.claim.namespace.clone(),
                    name: source.claim.name.clone(),
                    uid: source.claim.uid.clone(),
                },
                claimed: source.claim.capacity.clone(),
                capacity: source.volume.capacity.clone(),
                secrets: None,
            }),
        };
        Ok(Csi {
            volumes,
            spec,
            object: source.driver.clone(),
            stage_secret: csi.stage_secret.clone(),
            publish_secret: csi.publish_secret.clone(),
            expand_secret: csi.expand_secret.clone(),
            pod: pod.uid.clone(),
        })
    }

    /// A volume that lives as long as its pod.
    pub(super) fn ephemeral(
        volumes: &'a Volumes,
        pod: &Pod,
        volume: &Volume,
        csi: &CsiEphemeral,
        objects: &Objects,
    ) -> Result<Csi<'a>, Error> {
        let object = match objects.csi_driver(&csi.driver) {
            Value::Known(driver) if driver.ephemeral => Some(Arc::clone(driver)),
            Value::Known(_) => return Err(not_supported("Ephemeral", &csi.driver)),
            // A node without a control plane has no such objects.
            Value::Absent if objects.is_listed() => None,
            Value::Absent => return Err(not_supported("Ephemeral", &csi.driver)),
            Value::Unknown(why) => {
                let (volume, name) = (volume.name.clone(), csi.driver.clone());
                return Err(Error::UnknownObject { volume, kind: ObjectKind::CsiDriver, name, why });
            }
        };
        let spec = CsiVolumeSpec {
            name: volume.name.to_string(),
            driver: csi.driver.clone(),
            handle: ephemeral_handle(pod, volume),
            mode: VolumeMode::Filesystem,
            access: AccessMode::ReadWriteOnce,
            fs_type: csi.fs_type.clone(),
            mount_options: Vec::new(),
            read_only: csi.read_only,
            ephemeral: true,
            publish_context: BTreeMap::new(),
            attachment: String::new(),
            attributes: csi.attributes.clone(),
            publish_attributes: BTreeMap::new(),
            stage_secrets: Secrets::default(),
            publish_secrets: Secrets::default(),
            pod_group: pod.security.fs_group,
            one_pod: false,
            fs_group: fs_group(pod, object.as_deref(), csi.fs_type.as_deref(), true, csi.read_only),
            growth: None,
        };
        let namespace = pod.key.namespace.clone();
        let publish_secret = csi.publish_secret.clone().map(|name| SecretRef { namespace, name });
        let pod = pod.uid.clone();
        Ok(Csi { volumes, spec, object, stage_secret: None, publish_secret, expand_secret: None, pod })
    }

    /// The specification with the secrets of an expansion, as far as they are known.
    fn growing_spec(&self, inputs: &VolumeInputs<'_>) -> CsiVolumeSpec {
        let mut spec = self.spec.clone();
        if let Some(growth) = &mut spec.growth {
            growth.secrets = secrets(inputs, self.expand_secret.as_ref()).ok();
        }
        spec
    }

    /// The specification with what the pod's objects say.
    fn full_spec(&self, inputs: &VolumeInputs<'_>) -> Result<CsiVolumeSpec, Error> {
        let mut spec = self.growing_spec(inputs);
        spec.stage_secrets = secrets(inputs, self.stage_secret.as_ref())?;
        spec.publish_secrets = secrets(inputs, self.publish_secret.as_ref())?;
        spec.publish_attributes = spec.attributes.clone();
        let Some(object) = &self.object else { return Ok(spec) };
        if object.pod_info_on_mount {
            spec.publish_attributes.extend(pod_info(inputs.pod, spec.ephemeral));
        }
        if !object.token_requests.is_empty() {
            let tokens = tokens(inputs, object)?;
            match object.tokens_are_secrets {
                true => spec.publish_secrets = spec.publish_secrets.with(TOKENS, tokens),
                false => drop(spec.publish_attributes.insert(TOKENS.to_owned(), tokens)),
            }
        }
        Ok(spec)
    }
}

impl VolumePlugin for Csi<'_> {
    fn root(&self, pod_dir: &Path, _name: &VolumeName) -> PathBuf {
        self.volumes.csi_paths(&self.spec).target(pod_dir, &self.pod)
    }

    fn set_up(&self, _root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        self.volumes.mount_csi(&self.full_spec(inputs)?, inputs.pod)
    }

    fn keep(&self, _root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        if self.object.as_ref().is_some_and(|object| object.requires_republish) {
            self.volumes.republish_csi(&self.full_spec(inputs)?, inputs.pod)?;
        }
        self.volumes.expand_csi(&self.growing_spec(inputs), inputs.pod, false)
    }

    fn device(&self, pod_dir: &Path) -> Result<Option<PathBuf>, Error> {
        let block = self.spec.mode == VolumeMode::Block;
        Ok(block.then(|| self.volumes.csi_paths(&self.spec).target(pod_dir, &self.pod)))
    }

    fn persistent(&self) -> Option<&str> {
        Some(&self.spec.name)
    }

    fn read_only(&self) -> bool {
        self.spec.read_only
    }
}

fn not_supported(mode: &str, driver: &str) -> Error {
    Error::CsiUse { reason: format!("volume mode {mode:?} not supported by driver {driver}") }
}

/// The id of a pod's own volume (`makeVolumeHandle`, `pkg/volume/csi/csi_mounter.go`).
pub fn ephemeral_handle(pod: &Pod, volume: &Volume) -> String {
    let mut hash = Sha256::new();
    hash.update(pod.uid.as_str());
    hash.update(volume.name.as_str());
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// The group for the volume's files (`supportsFSGroup`, `pkg/volume/csi/csi_mounter.go`).
fn fs_group(
    pod: &Pod,
    driver: Option<&CsiDriver>,
    fs_type: Option<&str>,
    by_one_node: bool,
    read_only: bool,
) -> Option<u32> {
    let group = pod.security.fs_group.filter(|_| !read_only)?;
    let wanted = match driver.map(|d| d.fs_group).unwrap_or_default() {
        FsGroupPolicy::None => false,
        FsGroupPolicy::File => true,
        FsGroupPolicy::ReadWriteOnceWithFsType => by_one_node && fs_type.is_some_and(|t| !t.is_empty()),
    };
    wanted.then_some(group)
}

/// What a driver is told of the pod (`getPodInfoAttrs`, `pkg/volume/csi/csi_util.go`).
fn pod_info(pod: &Pod, ephemeral: bool) -> BTreeMap<String, String> {
    let entry = |key: &str, value: String| (format!("csi.storage.k8s.io/{key}"), value);
    BTreeMap::from([
        entry("pod.name", pod.key.name.to_string()),
        entry("pod.namespace", pod.key.namespace.to_string()),
        entry("pod.uid", pod.uid.to_string()),
        entry("serviceAccount.name", pod.service_account.clone()),
        entry("ephemeral", ephemeral.to_string()),
    ])
}

/// The tokens that a driver asks for, by their audiences, as JSON.
fn tokens(inputs: &VolumeInputs<'_>, driver: &CsiDriver) -> Result<String, Error> {
    let mut tokens = serde_json::Map::new();
    for request in &driver.token_requests {
        let audience = Some(request.audience.as_str()).filter(|audience| !audience.is_empty());
        let token = TokenRef::new(inputs.pod, audience, request.expiration_seconds);
        match inputs.objects.token(&token) {
            Value::Known(token) => {
                let expires = jiff::Timestamp::from_nanosecond(token.expires.0.into())
                    .map_err(|e| Error::CsiUse { reason: format!("cannot tell the end of a token: {e}") })?;
                let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                tokens.insert(
                    request.audience.clone(),
                    json!({ "token": token.text, "expirationTimestamp": expires }),
                );
            }
            Value::Absent => {
                return Err(Error::CsiUse {
                    reason: "the node has no control plane to give tokens".to_owned(),
                });
            }
            Value::Unknown(why) => {
                let (volume, name) = (inputs.volume.name.clone(), inputs.pod.service_account.clone());
                return Err(Error::UnknownObject { volume, kind: ObjectKind::ServiceAccount, name, why });
            }
        }
    }
    Ok(serde_json::Value::Object(tokens).to_string())
}

/// The data of a Secret.
fn secrets(inputs: &VolumeInputs<'_>, of: Option<&SecretRef>) -> Result<Secrets, Error> {
    let Some(SecretRef { namespace, name }) = of else { return Ok(Secrets::default()) };
    let (volume, kind): (_, ObjectKind) = (inputs.volume.name.clone(), ObjectKind::Secret);
    let namespace: &Namespace = namespace;
    match inputs.objects.get(kind, namespace, name) {
        Value::Known(secret) => {
            let bad = |key| Error::CsiUse { reason: format!("key {key:?} of secret {name:?} is not UTF-8") };
            secret.texts().map(Secrets::new).map_err(bad)
        }
        Value::Absent => Err(Error::MissingObject { volume, kind, name: name.clone() }),
        Value::Unknown(why) => Err(Error::UnknownObject { volume, kind, name: name.clone(), why }),
    }
}
