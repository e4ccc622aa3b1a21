//! Loader of the eBPF programs: loads and pins maps and programs, attaches them, and gives typed handles of
//! the maps.
//!
//! The crate owns everything below the pin directory (`Roots::bpf_pins`):
//! - `<schema>/maps/<NAME>`, `<schema>/programs/<name>`: the maps and programs of one version of the abi
//!   crate.
//! - `<schema>/iterators/<NAME>-<version>`: the iterators over the socket storage of a map
//!   ([`SocketRecords`]).
//! - `<schema>/object`: a dangling symbolic link whose target is the SHA-256 of the object that the programs
//!   were loaded from. The link is written last and removed first, so its presence means that the directory
//!   is complete.
//! - `links/<hook>` and `links/tcx-<ifindex>-<place>`: the attachments. They lie outside of the schema
//!   directories because a program of another schema replaces its predecessor in the same link, without a
//!   gap.
//!
//! The agent calls [`prepare`] first (maps and programs; work that is needed runs in a child process), then
//! fills the maps of [`Datapath::open`], then calls [`attach`] (hooks and devices switch to the prepared
//! programs; other schemas are removed) and [`attach_device`] for each device. No program is attached before
//! the tables are full, and no program is swapped before its successor is pinned. With [`begin`] the hooks of
//! sockets are attached ([`attach_sockets`]) while the programs for packets are still loaded.
//!
//! No task and no lock outlives a call, except the loading child's lock on the pin directory. Calls block for
//! microseconds, with these exceptions: [`prepare`] blocks up to its deadline; [`attach_device`] of a device
//! without links waits an RCU grace period for each of the two links, about 27 ms, and the kernel's RTNL lock
//! makes parallel calls wait for each other; [`destroy_sockets`] and [`destroy_translated`] block in
//! proportion to the number of sockets.
//!
//! Invariants: a pinned map is used only if kind, key size, value size and flags are the wanted ones. A
//! loader killed at any point leaves a state that the next loader completes. Programs in use stay in use
//! until their successors replace them.
//!
//! On failure nothing that was attached is detached, and the error names the operation and its object.
#![allow(unsafe_code, reason = "bpf(2) and the bytes of map values: in sys and plain alone")]

mod attach;
mod bpffs;
mod child;
mod datapath;
mod device;
mod error;
mod flows;
mod load;
mod map;
mod netns;
mod object;
mod pins;
mod plain;
mod records;
mod report;
mod run;
mod sizes;
mod sockets;
mod sys;
#[cfg(test)]
mod tests;
mod verify;

pub use attach::{Attached, attach, attach_sockets, detach};
pub use bpffs::ensure_bpffs;
pub use child::{Loading, Prepared, ROLE, begin, child_main, prepare};
pub use datapath::{Access, Datapath};
pub use device::{DeviceLink, DeviceRole, Place, attach_device, detach_device, device_link, devices};
pub use error::{Error, Result};
pub use flows::{Collected, collect_flows};
pub use load::{Step, check_pinned_maps, load, load_sized, program_names};
pub use map::{CounterMap, Map};
pub use netns::netns_cookie;
pub use object::{OBJECT, SocketHook, digest};
pub use pins::Pins;
pub use plain::Plain;
pub use records::{Frontend, SocketRecords, StalePeer};
pub use report::{
    FunctionReport, LinkReport, MapReport, ProgramReport, Report, StatsGuard, enable_stats, functions, report,
};
pub use run::PacketProgram;
pub use sizes::Sizes;
pub use sockets::{Proto, destroy_sockets, destroy_translated};
pub use sys::TestRunAnswer;
