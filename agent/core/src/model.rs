//! Model of a pod as the node needs it: checked, in types that say what they hold. Sources build these values
//! from Kubernetes API objects; the raw objects stay in the source.

mod affinity;
mod container;
mod node_info;
mod objects;
mod pod;
mod probe;
mod qos;
mod resources;
mod security;
mod service;
mod storage;
mod taint;
mod token;
mod variable;
mod volume;

pub use affinity::*;
pub use container::*;
pub use node_info::*;
pub use objects::*;
pub use pod::*;
pub use probe::*;
pub use qos::*;
pub use resources::*;
pub use security::*;
pub use service::*;
pub use storage::*;
pub use taint::*;
pub use token::*;
pub use variable::*;
pub use volume::*;
