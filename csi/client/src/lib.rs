//! The node's client of drivers of the Container Storage Interface.
//!
//! A [`Driver`] is a driver behind its Unix socket, with one method for each call of the node service; a node without a
//! control plane also has it make and delete volumes. The answers and
//! requests are types of this crate: nothing of the generated messages, and nothing of Kubernetes, crosses its border.
//!
//! Plugins introduce themselves to the node in a directory of sockets: [`registration`] follows it and has the node's
//! drivers.
//!
//! Owns: the tasks of the registration. A [`Driver`] has no task and no state but the address. Each call has a
//! connection of its own, as the kubelet's have: a call that hangs holds up no other, and a driver that was replaced is
//! reached by the next call.
//!
//! Invariants: every call ends at its deadline; an answer has at most [`ANSWER_MAX`] bytes; no secret is in a `Debug`
//! or in an error of this crate. Whatever the driver sends is an answer or an [`Error`], and
//! [`Error::is_final`] tells whether the state of the volume is known after it.

mod answer;
mod capability;
mod driver;
mod error;
mod names;
pub mod registration;
mod request;
mod secrets;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;

pub use answer::{Condition, Created, NodeCapabilities, NodeInfo, PluginInfo, Usage, VolumeStats};
pub use capability::{AccessMode, AccessType, MountVolume, VolumeCapability};
pub use driver::{Deadlines, Driver, EndedCall, Observer};
pub use error::{Call, Error, Subject};
pub use names::{DriverName, InvalidName, VolumeId};
pub use request::{Create, Delete, Expand, GetVolumeStats, Publish, Stage, Unpublish, Unstage};
pub use secrets::Secrets;
pub use tonic::Code;
pub use transport::ANSWER_MAX;
