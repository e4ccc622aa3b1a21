//! The controllers of a control plane that Berth plays itself where there is none.
//!
//! - [`cluster_ips`] gives ClusterIPs and node ports to Services whose manifest names none, as the API
//!   server's allocators do.
//! - [`endpoint_slices`] makes EndpointSlices of Services and the pods they select, as the EndpointSlice
//!   controller does.
//! - [`volume_binder`] binds claims to persistent volumes, as the persistent volume controller does.

pub mod cluster_ips;
pub mod endpoint_slices;
pub mod volume_binder;
