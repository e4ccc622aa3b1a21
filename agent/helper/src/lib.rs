//! Helper processes of the agent, such as `berth logd` and `berth dns`: programs that outlive it.
//!
//! - [`spawn`] starts a helper so that it outlives the agent.
//! - [`supervise`] keeps a helper running: starts it when its socket is silent or closes.
//! - [`lock`] makes one process of a helper the active one.
//! - [`socket`] binds a helper's local socket and watches it for its end.
//! - [`handover`] moves descriptors from the active process to its successor by SCM_RIGHTS.
//!
//! The messages on the sockets are in `berth_api`, one module a helper.
#![forbid(unsafe_code)]

pub mod handover;
pub mod lock;
pub mod socket;
pub mod spawn;
pub mod supervise;

pub use spawn::spawn_detached;
pub use supervise::{Helper, Unanswered, ensure_running, supervise};

use std::{io, path::PathBuf, time::Duration};

/// A helper that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Starting the program, or opening the file for its messages.
    #[error("cannot start {program:?}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// The helper did not answer within the deadline.
    #[error("cannot start {helper}: no answer on its socket within {after:?}; its messages say why")]
    Silent {
        /// Name of the helper.
        helper: &'static str,
        /// The deadline.
        after: Duration,
    },
}
