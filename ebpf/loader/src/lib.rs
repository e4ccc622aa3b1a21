//! Brings the eBPF programs into the kernel, keeps them there, and gives typed handles of their maps.
//!
//! Owns everything below the pin directory (`Roots::bpf_pins`):
//! - `<schema>/maps/<NAME>`, `<schema>/programs/<name>`: the maps and programs of one version of the abi crate.
//! - `<schema>/iterators/<NAME>-<version>`: what reads the sockets' own storage of a map ([`SocketRecords`]).
//! - `<schema>/object`: a symbolic link to nowhere whose target is the SHA-256 of the object that those programs came
//!   from. It is written last and removed first, so where it stands the directory is complete.
//! - `links/<hook>` and `links/tcx-<ifindex>-<place>`: the attachments, outside of the schema directories: a program of
//!   another schema takes its predecessor's place in the same link, without a moment between.
//!
//! The way in, for the agent: [`prepare`] (maps and programs; a child process where work is to be done), fill the maps
//! of [`Datapath::open`], then [`attach`] (hooks and devices go over to the prepared programs; other schemas go away)
//! and [`attach_device`] for each device. Nothing is attached before the tables are full, nothing is swapped before
//! its successor is pinned.
//!
//! No task and no lock outlives a call, but for the loading child's lock on the pin directory. All calls block for
//! microseconds, but for [`prepare`] (its deadline), [`attach_device`] of a device that has no links yet (an RCU grace
//! period for each of the two, about 27 ms; the kernel's RTNL lock makes parallel calls wait for each other), and
//! [`destroy_sockets`] and [`destroy_translated`] (the number of sockets).
//!
//! Invariants: pinned maps are used only if kind, sizes of keys and values, and flags are the wanted ones; a loader that was
//! killed anywhere leaves what the next one completes; programs in use stay in use until their successors take over.
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

pub use attach::{Attached, attach, detach};
pub use bpffs::ensure_bpffs;
pub use child::{Prepared, ROLE, child_main, prepare};
pub use datapath::{Access, Datapath};
pub use device::{DeviceLink, Place, Role, attach_device, detach_device, devices};
pub use error::{Error, Result};
pub use flows::{Collected, collect_flows};
pub use load::{Step, check_pinned_maps, load, load_sized, program_names};
pub use map::{CounterMap, Map};
pub use netns::netns_cookie;
pub use object::{Hook, OBJECT, digest};
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
