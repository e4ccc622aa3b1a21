//! What the routes ask of the rest of the agent. The wiring implements these traits; every implementation gives its
//! calls a deadline, and a dropped call leaves nothing behind.

use berth_core::{
    ids::{ContainerId, ContainerName, PodKey, PodUid},
    model::Pod,
    status::PodStatus,
    time::Wall,
};
use bytes::Bytes;
use std::{future::Future, pin::Pin, sync::Arc};

/// A future of a trait object's method.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A part of the agent cannot answer; the text is the body of a 500.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// A pod of this node, and its status as the node has it.
#[derive(Debug, Clone)]
pub struct PodState {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The status.
    pub status: Arc<PodStatus>,
}

/// A run of a container, whose output is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRun {
    /// Namespace and name of the pod.
    pub key: PodKey,
    /// UID of the pod.
    pub pod: PodUid,
    /// Name of the container.
    pub container: ContainerName,
    /// Id of the run.
    pub id: ContainerId,
    /// The run's attempt by the pod's status, for a run whose id another node agent has given.
    pub attempt_by_status: u32,
}

/// Where reading a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// At the oldest record.
    Beginning,
    /// At the last so many lines.
    Tail(u64),
    /// At the first record of this time or later.
    Since(Wall),
}

/// A record of a log: a line, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// When the text was read from the container.
    pub time: Wall,
    /// The line goes on in the next record of its stream.
    pub partial: bool,
    /// The text without a newline.
    pub text: &'a [u8],
}

/// Reader of the log of one run, over rotations.
pub trait LogReader: Send + 'static {
    /// Reads on, some 64 KiB at most, and tells whether there was anything; blocks on the disk, never for new output.
    fn read(&mut self, emit: &mut dyn FnMut(LogRecord<'_>)) -> Result<bool, Unavailable>;

    /// Waits until there may be more to read. May be dropped and called again.
    fn changed(&mut self) -> Boxed<'_, ()>;
}

/// The node behind the routes.
pub trait NodeBackend: Send + Sync + 'static {
    /// The node's name in the API server.
    fn name(&self) -> &str;

    /// The pod of this name; `None` where the node has none.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodState>;

    /// Whether the pod's status shows the run as running.
    fn runs(&self, run: &LogRun) -> bool;

    /// Waits until the run has ended and all of its output is in the log.
    fn output_closed<'a>(&'a self, run: &'a LogRun) -> Boxed<'a, ()>;

    /// Opens the log of a run.
    fn open_log<'a>(
        &'a self,
        run: &'a LogRun,
        from: LogStart,
    ) -> Boxed<'a, Result<Box<dyn LogReader>, Unavailable>>;

    /// Whether the manager of pods works (`/healthz/syncloop`); the reason if not.
    fn sync_loop(&self) -> Result<(), String>;

    /// All pods of the node with their statuses: a `v1.PodList` in JSON.
    fn pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// The pods with a running container, as the runtime has them: a `v1.PodList` in JSON.
    fn running_pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// The node's configuration: a `kubelet.config.k8s.io/v1beta1` `KubeletConfiguration` in JSON.
    fn configuration(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// `/flagz`: a line for each flag of the agent, its name and its value.
    fn flags(&self) -> String;

    /// `/statusz`: when the agent started, and its version.
    fn status_page(&self) -> String;
}

/// The node's statistics, read when they are asked for.
pub trait Statistics: Send + Sync + 'static {
    /// `/stats/summary`: `stats.k8s.io/v1alpha1` `Summary` in JSON.
    fn summary(&self, only_cpu_and_memory: bool) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// `/metrics`: the agent's own metrics in Prometheus' text format.
    fn metrics(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// `/metrics/cadvisor`: metrics of containers and of the machine in Prometheus' text format.
    fn cadvisor(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// `/metrics/resource`: CPU and memory of node, pods and containers in Prometheus' text format.
    fn resource(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;

    /// `/metrics/probes`: results of probes in Prometheus' text format.
    fn probes(&self) -> Boxed<'_, Result<Bytes, Unavailable>>;
}
