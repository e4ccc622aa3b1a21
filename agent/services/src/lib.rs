//! Services as the kernel's tables have them.
//!
//! - [`compile`] is pure: one Service and its EndpointSlices become what this node wants of it, with kube-proxy's choice
//!   of endpoints.
//! - [`Allocator`] owns ids, generations and conflicts, and turns changes of what is wanted into the fewest writes, in an
//!   order in which no reader ever meets a mixed or missing set. It keeps a mirror of the tables in memory.
//! - [`veth_pair`] finds the devices that join a pod to the host.
//! - [`Tables`] is what it needs of the kernel; the agent fills it with the loader's maps, tests with hash maps.
//!
//! No task and no channel lives here: whoever owns the [`Allocator`] calls it. After a failed write the mirror counts for
//! nothing: the next [`Allocator::sync`] reads the tables anew and goes on from what is really there.
#![forbid(unsafe_code)]

mod allocator;
mod choose;
mod compile;
mod kernel;
mod net;
mod tables;
mod veth;
mod wanted;

pub use allocator::{Allocator, Change, Difference, Named, Outcome, REST, Stale};
pub use compile::compile;
pub use net::Net;
pub use tables::{FamilyTables, Table, TableError, Tables};
pub use veth::{VethError, VethPair, veth_pair};
pub use wanted::{NodeFacts, Notice, Transport, Wanted, WantedPort, Why};
