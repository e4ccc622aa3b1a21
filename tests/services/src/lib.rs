//! What the Service suites and `service-bench` share: network namespaces, cgroups and pins of their own, pods attached
//! by a CNI plugin, programs that load and answer, and Services by the thousand.
//!
//! Everything here is made by a value and removed when that value goes, also after an error; nothing that stood on the
//! machine before is touched. No task outlives the value that started it.

pub mod group;
pub mod load;
pub mod netns;
pub mod objects;
pub mod plane;
pub mod plugin;
