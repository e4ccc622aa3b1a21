//! Pods: one worker task for each pod, which feeds `plan` and has its actions carried out.
//!
//! [`run`] is the manager's task, which owns the workers. A worker acts on the node through the small trait
//! [`Executor`]; `berth-executor` implements it on a real node. Workers send their status and events to
//! [`Reports`].

mod executor;
mod manager;
pub mod metrics;
mod names;
mod pod_cache;
mod probes;
mod refs;
mod report;
mod store;
#[cfg(test)]
mod testing;
mod waiting;
mod worker;

pub use executor::{ActionResult, Context, Executor, NodeProcess, ObservedChange, PodSnapshot};
pub use manager::{DesiredSet, FoundPod, ManagerConfig, NodeEvent, run};
pub use report::{ActionRecord, PodReport, Reports};
pub use store::{MemoryStore, StoreError, StoredPod};
pub use worker::WorkerMessage;
