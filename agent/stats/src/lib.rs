//! Statistics of the node: `/stats/summary`, `/metrics`, `/metrics/cadvisor`, `/metrics/resource`,
//! `/metrics/probes`, as functions from readings to bytes, and the readings.
//!
//! Owns: readings of cgroups ([`cgroup`]), network counters ([`network`]), file systems and directories
//! ([`disk`]), and processes ([`process`]); the value of one scrape ([`reading`]); the text format ([`text`]); and
//! the endpoints' texts ([`render`]).
//!
//! The crate starts no task and polls nothing: the kernel's counters are read when somebody asks. Every
//! operation reads a bounded number of files and may block; it belongs on a thread that may.
//!
//! What cannot be read is left out and never shown as 0.

pub mod cgroup;
pub mod disk;
pub mod network;
#[doc(hidden)]
pub mod parity;
pub mod process;
pub mod reading;
pub mod render;
pub mod text;
