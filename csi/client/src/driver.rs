//! A driver: one method for each call of the node.

use crate::{
    Call, Create, Created, Delete, DriverName, Error, Expand, GetVolumeStats, NodeCapabilities, NodeInfo,
    PluginInfo, Publish, Stage, Unpublish, Unstage, VolumeCapability, VolumeId, VolumeStats, answer,
    error::Subject,
    transport::{self, Connection, ask},
};
use berth_csi_proto::csi::{
    self, controller_client::ControllerClient, identity_client::IdentityClient, node_client::NodeClient,
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Code, Request, Response, Status};

/// How long the node waits for a driver's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Of create, delete, stage, unstage, publish, unpublish and expand: 2 minutes, as the kubelet's.
    pub volume: Duration,
    /// Of the calls that only tell something about the driver and the node: 1 minute. Some drivers ask their cloud.
    pub info: Duration,
    /// Of statistics: 10 seconds.
    pub stats: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        let seconds = Duration::from_secs;
        Deadlines { volume: seconds(120), info: seconds(60), stats: seconds(10) }
    }
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedCall<'a> {
    /// The driver.
    pub driver: &'a DriverName,
    /// The call.
    pub call: Call,
    /// Its code, [`Error::counted_as`] of a failure.
    pub code: Code,
    /// How long it took.
    pub took: Duration,
}

type Hear = dyn Fn(EndedCall<'_>) + Send + Sync;

/// Hears of the calls that have ended, to count them.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Hear>>);

impl Observer {
    /// One that calls `hear`, which must not block.
    pub fn new(hear: impl Fn(EndedCall<'_>) + Send + Sync + 'static) -> Observer {
        Observer(Some(Arc::new(hear)))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// A driver behind its Unix socket. Cheap to clone; each call dials the socket anew.
#[derive(Debug, Clone)]
pub struct Driver {
    name: DriverName,
    endpoint: Arc<Path>,
    deadlines: Deadlines,
    observer: Observer,
}

impl PartialEq for Driver {
    /// Whether both lead to the same driver in the same way, whoever hears of the calls.
    fn eq(&self, other: &Driver) -> bool {
        (&self.name, &self.endpoint, self.deadlines) == (&other.name, &other.endpoint, other.deadlines)
    }
}

impl Eq for Driver {}

impl Driver {
    /// The driver that serves at `endpoint`, an absolute path. Nothing is dialled.
    pub fn new(name: DriverName, endpoint: &Path) -> Driver {
        let (deadlines, observer) = (Deadlines::default(), Observer::default());
        Driver { name, endpoint: endpoint.into(), deadlines, observer }
    }

    /// The same driver, of whose calls the observer hears.
    #[must_use]
    pub fn observed_by(self, observer: Observer) -> Driver {
        Driver { observer, ..self }
    }

    /// The same driver with other deadlines.
    #[must_use]
    pub fn with_deadlines(self, deadlines: Deadlines) -> Driver {
        Driver { deadlines, ..self }
    }

    /// The driver's name.
    pub fn name(&self) -> &DriverName {
        &self.name
    }

    /// The driver's socket.
    pub fn endpoint(&self) -> &Path {
        &self.endpoint
    }

    /// Asks the driver for its name and version.
    ///
    /// # Errors
    /// As of every call: see [`Error`].
    pub async fn plugin_info(&self) -> Result<PluginInfo, Error> {
        let (request, within) = (csi::GetPluginInfoRequest {}, self.deadlines.info);
        let answer = self
            .ask(Call::GetPluginInfo, None, within, request, ask!(IdentityClient.get_plugin_info))
            .await?;
        Ok(PluginInfo { name: answer.name, vendor_version: answer.vendor_version })
    }

    /// Asks for the node's id, limit and topology.
    ///
    /// # Errors
    /// As of every call; an empty id is an invalid answer.
    pub async fn node_info(&self) -> Result<NodeInfo, Error> {
        let (call, request, within) = (Call::NodeGetInfo, csi::NodeGetInfoRequest {}, self.deadlines.info);
        let answer = self.ask(call, None, within, request, ask!(NodeClient.node_get_info)).await?;
        answer::node_info(answer).map_err(|reason| self.invalid(call, None, reason))
    }

    /// Asks what the node service can do.
    ///
    /// # Errors
    /// As of every call.
    pub async fn node_capabilities(&self) -> Result<NodeCapabilities, Error> {
        let (call, within) = (Call::NodeGetCapabilities, self.deadlines.info);
        let request = csi::NodeGetCapabilitiesRequest {};
        let answer = self.ask(call, None, within, request, ask!(NodeClient.node_get_capabilities)).await?;
        Ok(answer::capabilities(answer))
    }

    /// Has the driver's controller make a volume. A volume that it made by that name before is the answer again.
    ///
    /// # Errors
    /// As of every call; an answer without an id is an invalid one. After one that is not final there may be a volume.
    pub async fn create(&self, create: &Create) -> Result<Created, Error> {
        let call = Call::CreateVolume;
        // The volume has no id yet.
        let volume = VolumeId::new(&create.name).map_err(|e| self.invalid(call, None, e.to_string()))?;
        let required = |bytes: u64| csi::CapacityRange {
            required_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            limit_bytes: 0,
        };
        let reachable = || {
            let topology = csi::Topology { segments: map(&create.topology) };
            csi::TopologyRequirement { requisite: vec![topology.clone()], preferred: vec![topology] }
        };
        let request = csi::CreateVolumeRequest {
            name: create.name.clone(),
            capacity_range: create.required_bytes.map(required),
            volume_capabilities: create.capabilities.iter().map(VolumeCapability::message).collect(),
            parameters: map(&create.parameters),
            secrets: map(create.secrets.reveal()),
            accessibility_requirements: (!create.topology.is_empty()).then(reachable),
            ..csi::CreateVolumeRequest::default()
        };
        let answer = self.change(call, &volume, request, ask!(ControllerClient.create_volume)).await?;
        answer::created(answer).map_err(|reason| self.invalid(call, Some(&volume), reason))
    }

    /// Has the driver's controller delete a volume. Deleting what is not there succeeds.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete(&self, delete: &Delete) -> Result<(), Error> {
        let request = csi::DeleteVolumeRequest {
            volume_id: delete.volume.to_string(),
            secrets: map(delete.secrets.reveal()),
        };
        let ask = ask!(ControllerClient.delete_volume);
        self.change(Call::DeleteVolume, &delete.volume, request, ask).await.map(drop)
    }

    /// Stages the volume. Staging what is staged at the same path in the same way succeeds.
    ///
    /// # Errors
    /// As of every call. After one that is not final the volume has to be unstaged.
    pub async fn stage(&self, stage: &Stage) -> Result<(), Error> {
        let (call, volume) = (Call::NodeStageVolume, &stage.volume);
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.to_string(),
            publish_context: map(&stage.publish_context),
            staging_target_path: self.path(call, volume, &stage.staging_target_path)?,
            volume_capability: Some(stage.capability.message()),
            secrets: map(stage.secrets.reveal()),
            volume_context: map(&stage.volume_context),
        };
        self.change(call, volume, request, ask!(NodeClient.node_stage_volume)).await.map(drop)
    }

    /// Unstages the volume. Unstaging what is not staged succeeds.
    ///
    /// # Errors
    /// As of every call.
    pub async fn unstage(&self, unstage: &Unstage) -> Result<(), Error> {
        let (call, volume) = (Call::NodeUnstageVolume, &unstage.volume);
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.to_string(),
            staging_target_path: self.path(call, volume, &unstage.staging_target_path)?,
        };
        self.change(call, volume, request, ask!(NodeClient.node_unstage_volume)).await.map(drop)
    }

    /// Publishes the volume. Publishing it at the same path in the same way again succeeds.
    ///
    /// # Errors
    /// As of every call. After one that is not final the volume has to be unpublished.
    pub async fn publish(&self, publish: &Publish) -> Result<(), Error> {
        let (call, volume) = (Call::NodePublishVolume, &publish.volume);
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.to_string(),
            publish_context: map(&publish.publish_context),
            staging_target_path: self.optional(call, volume, publish.staging_target_path.as_ref())?,
            target_path: self.path(call, volume, &publish.target_path)?,
            volume_capability: Some(publish.capability.message()),
            readonly: publish.readonly,
            secrets: map(publish.secrets.reveal()),
            volume_context: map(&publish.volume_context),
        };
        self.change(call, volume, request, ask!(NodeClient.node_publish_volume)).await.map(drop)
    }

    /// Unpublishes the volume. Unpublishing what is not published succeeds.
    ///
    /// # Errors
    /// As of every call.
    pub async fn unpublish(&self, unpublish: &Unpublish) -> Result<(), Error> {
        let (call, volume) = (Call::NodeUnpublishVolume, &unpublish.volume);
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.to_string(),
            target_path: self.path(call, volume, &unpublish.target_path)?,
        };
        self.change(call, volume, request, ask!(NodeClient.node_unpublish_volume)).await.map(drop)
    }

    /// Asks how full the volume is, and how it is.
    ///
    /// # Errors
    /// As of every call; an answer that tells nothing is an invalid one.
    pub async fn volume_stats(&self, stats: &GetVolumeStats) -> Result<VolumeStats, Error> {
        let (call, volume) = (Call::NodeGetVolumeStats, &stats.volume);
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.to_string(),
            volume_path: self.path(call, volume, &stats.volume_path)?,
            staging_target_path: self.optional(call, volume, stats.staging_target_path.as_ref())?,
        };
        let (within, ask) = (self.deadlines.stats, ask!(NodeClient.node_get_volume_stats));
        let answer = self.ask(call, Some(volume), within, request, ask).await?;
        answer::volume_stats(answer).map_err(|reason| self.invalid(call, Some(volume), reason))
    }

    /// Expands the volume on the node. Returns its size in bytes, `None` if the driver does not say.
    ///
    /// # Errors
    /// As of every call.
    pub async fn expand(&self, expand: &Expand) -> Result<Option<u64>, Error> {
        let (call, volume) = (Call::NodeExpandVolume, &expand.volume);
        // A size that no message can carry is more than any volume has.
        let required_bytes = i64::try_from(expand.required_bytes).unwrap_or(i64::MAX);
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.to_string(),
            volume_path: self.path(call, volume, &expand.volume_path)?,
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes: 0 }),
            staging_target_path: self.optional(call, volume, expand.staging_target_path.as_ref())?,
            volume_capability: Some(expand.capability.message()),
            secrets: map(expand.secrets.reveal()),
        };
        let answer = self.change(call, volume, request, ask!(NodeClient.node_expand_volume)).await?;
        answer::expanded(&answer).map_err(|reason| self.invalid(call, Some(volume), reason))
    }

    /// A call that changes a volume.
    async fn change<M, T, F>(
        &self,
        call: Call,
        volume: &VolumeId,
        message: M,
        send: impl FnOnce(Connection, Request<M>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask(call, Some(volume), self.deadlines.volume, message, send).await
    }

    async fn ask<M, T, F>(
        &self,
        call: Call,
        volume: Option<&VolumeId>,
        within: Duration,
        message: M,
        send: impl FnOnce(Connection, Request<M>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let connection = Connection::new(&self.endpoint);
        let began = Instant::now();
        let answer = transport::call(connection, within, message, send).await;
        let answer = answer.map_err(|failure| Error::of(self.subject(call, volume), failure));
        if let Some(hear) = &self.observer.0 {
            let code = answer.as_ref().err().map_or(Code::Ok, Error::counted_as);
            hear(EndedCall { driver: &self.name, call, code, took: began.elapsed() });
        }
        answer
    }

    fn subject(&self, call: Call, volume: Option<&VolumeId>) -> Subject {
        Subject { driver: self.name.clone(), call, volume: volume.cloned() }
    }

    fn invalid(&self, call: Call, volume: Option<&VolumeId>, reason: String) -> Error {
        Error::InvalidAnswer { subject: self.subject(call, volume), reason }
    }

    /// A path as text. A message has no other form, and another text would be another path.
    fn path(&self, call: Call, volume: &VolumeId, path: &Path) -> Result<String, Error> {
        let error = || Error::Path { subject: self.subject(call, Some(volume)), path: path.to_owned() };
        path.to_str().map(str::to_owned).ok_or_else(error)
    }

    fn optional(&self, call: Call, volume: &VolumeId, path: Option<&PathBuf>) -> Result<String, Error> {
        path.map_or(Ok(String::new()), |path| self.path(call, volume, path))
    }
}

/// A map as the generated messages have it.
fn map(entries: &BTreeMap<String, String>) -> HashMap<String, String> {
    entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
