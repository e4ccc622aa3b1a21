//! Shared parts of the Service suites and of `service-bench`: network namespaces, cgroups and pins, pods
//! attached by a CNI plugin, programs that load and answer, and Services by the thousand.
//!
//! Every object is owned by a value and removed when the value is dropped, also after an error. Objects that
//! were on the machine before are left alone. No task outlives the value that started it.

pub mod group;
pub mod load;
pub mod netns;
pub mod objects;
pub mod plane;
pub mod plugin;
