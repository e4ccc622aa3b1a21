//! Strategic merge patches of statuses. Pure.
//!
//! A status is reported as the difference between the status that the API server has and the status that the node
//! wants. Fields, conditions and resources of other writers are not in the difference, so they stay as they are, also
//! those that this version does not know. A status that the API server has already gives no patch.
//!
//! The body is sent to the object's `status` with the content type [`CONTENT_TYPE`]. `metadata.uid` is in the body of a
//! pod, so that the API server refuses a patch for a pod that was replaced by another of the same name.
//!
//! The merge is the API server's (`k8s.io/apimachinery` `pkg/util/strategicpatch`): an object is merged member by
//! member, `null` removes a member, and a list is replaced as a whole, except lists with a merge key. Of those, an
//! element is merged with the element of the same key, `{"$patch": "delete"}` removes one, and
//! `$setElementOrder/<list>` gives the order; `{"$patch": "replace"}` among the elements replaces such a list after all.

mod diff;
mod fields;
mod node;
mod pod;
mod time;

pub use node::{Heartbeat, node_status};
pub use pod::{IllegalTransition, PodUpdate, pod_status};

/// The content type of a strategic merge patch.
pub const CONTENT_TYPE: &str = "application/strategic-merge-patch+json";
