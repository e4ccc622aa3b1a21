//! The Service tables in user space: how a Service port becomes entries of the kernel's maps, and how entries
//! become a Service port again.
//!
//! - [`Net`] converts addresses between the tables and the standard library.
//! - [`PublishedPort`] encodes: the value of each frontend, the chunks and the members of a port.
//! - [`Contents`] decodes: one reading of a family's tables, and the backends of a value in it.
//! - [`inconsistencies`] checks a reading in itself, and [`differences`] compares it with the wanted entries.
//!
//! `agent/services` writes and adopts the tables by this crate, and `agent/cli` reads them by it. The crate is
//! pure: it opens no map. Keys and values stand in `berth-ebpf-abi`.
#![forbid(unsafe_code)]

mod check;
mod contents;
mod encode;
mod net;

pub use check::{Difference, Inconsistency, differences, inconsistencies};
pub use contents::{Contents, Sets, chunk_keys};
pub use encode::{PublishedPort, address_value, serving_members};
pub use net::{Net, TableNames, socket};
