//! Container output: from the FIFOs that a shim writes to CRI-format files, in a process of its own that outlives the
//! agent.
//!
//! [`server`] is the main loop of `berth logd`: one thread, no runtime. [`client`] is the agent's side of its socket.
//! [`spawn`] starts it and keeps it running. [`format`](mod@format) is the pure record format. [`reader`] reads the
//! files and needs nothing running.
//!
//! # Who holds what
//! A FIFO keeps its content as long as anybody has it open. logd holds both ends of each, the shim holds both of
//! those it writes, and the agent's [`client::Client`] holds a third pair for the time in which logd is away and the
//! shim ends: data is lost only if logd and the agent are both gone when the shim goes.
//!
//! # What a death costs
//! - The agent's: nothing. logd keeps its table of streams in `<runtime_state>/logd/streams/<id>.json`.
//! - logd's by SIGKILL: nothing is lost. Output is first copied out of the FIFO by tee(2), written to the file, and
//!   only then taken out of the FIFO, so that what was under way is written again: at most one read,
//!   [`server::READ_SIZE`] bytes of one stream, and a record torn in mid-write is ended by a newline. The begun line
//!   of a stream, taken out of the FIFO and not yet written, is in `<runtime_state>/logd/carry`.
//! - A writer is blocked while nobody reads and its FIFO (1 MiB where permitted) is full.
//! - A replacement by a new logd: nothing is lost or repeated; see [`server`].
#![forbid(unsafe_code)]

pub mod client;
mod dirs;
mod error;
pub mod format;
mod proto;
pub mod reader;
pub mod server;
pub mod spawn;
mod spec;

pub use error::Error;
pub use proto::{FinishReport, Hello, StreamStatus};
pub use spawn::{ensure_running, spawn_detached, spawn_detached_to, supervise};
pub use spec::{Rotated, StreamPaths, StreamSpec, fifo_dir};
