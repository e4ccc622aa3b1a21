//! Pods: one worker task each, which feeds `plan` and carries out its actions through the adapters.
//!
//! [`run`] is the manager's task; it owns the workers. [`node`] fills [`Executor`], the small trait by which a worker
//! reaches the world, with containerd, the network, volumes, cgroups, logd and probes. What workers have to tell goes
//! to [`Reports`].

mod executor;
mod failpoint;
mod manager;
mod names;
pub mod node;
mod pod_cache;
mod probes;
mod refs;
mod report;
mod store;
#[cfg(test)]
mod testing;
mod waiting;
mod worker;

pub use executor::{ActionResult, Change, Context, Executor, PodSnapshot, Process};
pub use manager::{DesiredSet, Found, ManagerConfig, NodeEvent, run};
pub use report::{ActionRecord, PodReport, Reports};
pub use store::{Kept, Store, StoreError};
pub use worker::{PlanRecord, WorkerMessage};
