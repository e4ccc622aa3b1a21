//! Errors of this crate, one variant per operation.

use crate::{identity::Wrong, status::Refusal};
use berth_core::error::Chain;
use std::{path::PathBuf, time::Duration};

/// A failed operation with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the kubeconfig.
    #[error("cannot use kubeconfig {}", path.display())]
    KubeconfigFile {
        /// The kubeconfig.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: berth_sys::Error,
    },
    /// Using the kubeconfig.
    #[error("cannot use kubeconfig {}: {wrong}", path.display())]
    Kubeconfig {
        /// The kubeconfig.
        path: PathBuf,
        /// The field and its error.
        wrong: Wrong,
    },
    /// Reading a file that the kubeconfig names.
    #[error("cannot use kubeconfig {}: {field}", kubeconfig.display())]
    IdentityFile {
        /// The kubeconfig.
        kubeconfig: PathBuf,
        /// The field with the file's name.
        field: String,
        /// Cause of the failure.
        #[source]
        source: berth_sys::Error,
    },
    /// Running an exec plugin.
    #[error("cannot get credentials from exec plugin {}: {reason}", command.display())]
    Plugin {
        /// The program.
        command: PathBuf,
        /// Cause of the failure.
        reason: String,
    },
    /// Having a connection to the API server.
    #[error("cannot reach {server}: {reason}")]
    Unreachable {
        /// URL of the server.
        server: String,
        /// Cause of the last failure, and the remedy.
        reason: String,
    },
    /// Sending a request or reading its answer.
    #[error("cannot {method} {path}: {reason}")]
    Broken {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// Cause of the failure.
        reason: String,
        /// Whether the whole connection is gone, and with it other requests.
        connection: bool,
    },
    /// Waiting for the answer.
    #[error("cannot {method} {path}: no answer within {after:?}")]
    Deadline {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// The deadline.
        after: Duration,
    },
    /// Reading an answer that is too large.
    #[error("cannot {method} {path}: the answer is larger than {limit} bytes")]
    TooLarge {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The API server refuses the request.
    #[error("cannot {method} {path}: {refusal}")]
    Refused {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// The answer. The text of a 401 includes the causes that this node can see: an expired certificate,
        /// a wrong clock.
        refusal: Refusal,
    },
    /// Making a request or a task.
    #[error("cannot {what}: {reason}")]
    Setup {
        /// The operation.
        what: &'static str,
        /// Cause of the failure.
        reason: String,
    },
}

impl Error {
    /// The refusal, if the API server answered with one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// The API server's own words, or why there are none.
    pub fn reason(&self) -> String {
        self.refusal().map_or_else(|| Chain(self).to_string(), |refusal| refusal.message.clone())
    }
}
