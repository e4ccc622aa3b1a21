//! The calls that make and delete a volume.

use berth_core::{
    error::Chain,
    model::{AccessMode, ObjectKind, Objects, VolumeMode},
    value::Value,
    volume::provision::{MadeVolume, ProvisionRequest, ProvisionStep, Provisioning},
};
use berth_csi_client::{
    AccessMode as CsiAccessMode, AccessType, Create, Delete, Error, MountVolume, Secrets, VolumeCapability,
    VolumeId, registration::RegisteredDriver,
};

/// What a call has done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// The volume is there.
    Made(MadeVolume),
    /// The volume is gone.
    Deleted,
}

/// A call that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CannotCall {
    /// Why, for people.
    pub(super) text: String,
    /// Whether the call had no effect.
    pub(super) is_final: bool,
}

impl From<Error> for CannotCall {
    fn from(error: Error) -> CannotCall {
        let text = match error.code() {
            Some(berth_csi_client::Code::Unimplemented) => {
                format!("{}; does the driver run its controller service?", Chain(&error))
            }
            _ => Chain(&error).to_string(),
        };
        CannotCall { text, is_final: error.is_final() }
    }
}

/// Makes the call of a step.
pub(super) async fn call(
    step: ProvisionStep,
    entry: &Provisioning,
    registered: &RegisteredDriver,
    objects: &Objects,
) -> Result<Called, CannotCall> {
    // Nothing was sent.
    let refuse = |text: String| CannotCall { text, is_final: true };
    let secrets = secrets(&entry.request, objects).map_err(refuse)?;
    let driver = &registered.driver;
    match (step, &entry.made) {
        (ProvisionStep::Create, _) => {
            let request = create(&entry.request, registered, secrets).map_err(refuse)?;
            let made = driver.create(&request).await?;
            let handle = made.volume.to_string();
            Ok(Called::Made(MadeVolume { handle, attributes: made.context, bytes: made.bytes }))
        }
        (ProvisionStep::Delete, Some(made)) => {
            let volume = VolumeId::new(&made.handle).map_err(|e| refuse(e.to_string()))?;
            driver.delete(&Delete { volume, secrets }).await?;
            Ok(Called::Deleted)
        }
        (ProvisionStep::Delete | ProvisionStep::Forget, _) => Ok(Called::Deleted),
    }
}

fn create(
    request: &ProvisionRequest,
    registered: &RegisteredDriver,
    secrets: Secrets,
) -> Result<Create, String> {
    let (claim, class) = (&request.claim, &request.class);
    for purpose in ["node-stage", "node-publish", "node-expand"] {
        // A volume with such a secret could never be mounted.
        request.secret(purpose)?;
    }
    let capability = |mode: &AccessMode| VolumeCapability {
        access_mode: match mode {
            AccessMode::ReadWriteOnce => CsiAccessMode::SingleNodeWriter,
            AccessMode::ReadWriteOncePod if registered.capabilities.single_node_multi_writer => {
                CsiAccessMode::SingleNodeSingleWriter
            }
            AccessMode::ReadWriteOncePod => CsiAccessMode::SingleNodeWriter,
            AccessMode::ReadOnlyMany => CsiAccessMode::MultiNodeReaderOnly,
            AccessMode::ReadWriteMany => CsiAccessMode::MultiNodeMultiWriter,
        },
        access_type: match claim.mode {
            VolumeMode::Block => AccessType::Block,
            VolumeMode::Filesystem => AccessType::Mount(MountVolume {
                fs_type: request.fs_type().unwrap_or_default(),
                mount_flags: class.mount_options.clone(),
                volume_mount_group: None,
            }),
        },
    };
    Ok(Create {
        name: request.name(),
        required_bytes: claim.request.as_ref().and_then(|size| u64::try_from(size.units()).ok()),
        capabilities: claim.access_modes.iter().map(capability).collect(),
        parameters: request.parameters(),
        secrets,
        topology: registered.info.topology.clone(),
    })
}

/// The Secret that the class names for making and deleting volumes.
fn secrets(request: &ProvisionRequest, objects: &Objects) -> Result<Secrets, String> {
    let Some(of) = request.secret("provisioner")? else { return Ok(Secrets::default()) };
    let Value::Known(secret) = objects.get(ObjectKind::Secret, &of.namespace, &of.name) else {
        return Err(format!("secret \"{}/{}\" not found", of.namespace, of.name));
    };
    let bad = |key| format!("key {key:?} of secret {:?} is not UTF-8", of.name);
    secret.texts().map(Secrets::new).map_err(bad)
}
