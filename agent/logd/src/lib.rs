//! Container output: from the FIFOs that a shim writes to CRI-format files, in a process that
//! outlives the agent.
//!
//! [`server`] is the main loop of `berth logd`: one thread, no async runtime. [`client`] is the
//! agent's client of its socket. [`supervise`] keeps logd running. [`format`](mod@format)
//! is the pure record format. [`reader`] reads the files and needs no running process.
//!
//! # Holders of a FIFO
//! A FIFO keeps its content as long as a process has it open. logd holds both ends of each FIFO,
//! the shim holds both ends of those that it writes, and the agent's [`client::Client`] holds a
//! third pair for the time in which logd is down and the shim ends. Output is lost only if logd and
//! the agent are both down when the shim ends.
//!
//! # Cost of a death
//! - The agent's death: nothing. logd keeps its table of streams in
//!   `<runtime_state>/logd/streams/<id>.json`.
//! - logd's death by SIGKILL: nothing is lost. Output is first copied out of the FIFO by tee(2),
//!   then written to the file, and only then removed from the FIFO. So output in flight is written
//!   again: at most one read, [`server::READ_SIZE`] bytes of one stream. A record torn in the
//!   middle of a write is ended by a newline. The unfinished line of a stream, removed from the
//!   FIFO and not yet written, is in `<runtime_state>/logd/carry`.
//! - A writer blocks while no process reads and its FIFO (1 MiB where permitted) is full.
//! - A replacement by a new logd: nothing is lost or repeated; see [`server`].
#![forbid(unsafe_code)]

pub mod client;
mod dirs;
mod error;
mod fifo;
pub mod format;
pub mod reader;
mod rotated;
pub mod server;
mod supervise;

pub use berth_api::logd::{FinishReport, Hello, StreamPaths, StreamSpec, StreamStatus};
pub use error::Error;
pub use rotated::Rotated;
pub use supervise::supervise;
