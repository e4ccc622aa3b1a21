//! Volumes of pods as the node carries them out: which persistent volume stands behind a volume of a pod
//! ([`resolve`]), the steps that mount and unmount a volume of a CSI driver ([`steps`]), and, where no control plane does
//! it, the binding of claims to volumes ([`bind`]) and the making of volumes ([`provision`]). Pure.

mod attachable;
pub mod bind;
mod claimed;
mod describe;
pub mod expand;
mod groups;
pub mod in_use;
pub mod provision;
mod resolve;
pub mod steps;

pub use attachable::{attachable, unique_name};
pub use claimed::claimed_volume;
pub use describe::{VolumeDescription, describe};
pub use groups::with_volume_groups;
pub use resolve::{PersistentSource, ResolveError, Resolved, resolve, wants_expansion, wants_republish};
