//! Specification of the output of one attempt of one container, and the file names that follow from
//! it.

use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, PodKey, PodUid},
    roots::Roots,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Specification of the output of one attempt of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSpec {
    /// The container's id in containerd, unique for each attempt.
    pub id: ContainerId,
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's namespace and name.
    pub key: PodKey,
    /// The container's name.
    pub container: ContainerName,
    /// The attempt, which names the log file.
    pub attempt: Attempt,
    /// The container has a terminal: all output is standard output, and there is no second FIFO.
    #[serde(default)]
    pub tty: bool,
    /// The container reads standard input: its FIFO is created and held open, so that the container
    /// sees no end of file.
    #[serde(default)]
    pub stdin: bool,
    /// Standard input ends with the first attached client. Stored for attach.
    #[serde(default)]
    pub stdin_once: bool,
}

/// Paths of the FIFOs for the task's creation, and of the log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPaths {
    /// Standard input, if the specification has `stdin`.
    pub stdin: Option<PathBuf>,
    /// Standard output.
    pub stdout: PathBuf,
    /// Standard error, unless the container has a terminal.
    pub stderr: Option<PathBuf>,
    /// The log file.
    pub log: PathBuf,
}

/// The longest file name in bytes.
const NAME_MAX: usize = 255;

impl StreamSpec {
    /// Name of the pod's log directory, `<namespace>_<pod>_<uid>`.
    pub fn pod_dir_name(&self) -> String {
        Roots::pod_log_dir_name(&self.key, &self.uid)
    }

    /// Name of the log file, `<attempt>.log`.
    pub fn log_name(&self) -> String {
        log_name(self.attempt)
    }

    /// Path of the log file.
    pub fn log_path(&self, roots: &Roots) -> PathBuf {
        self.log_dir(roots).join(self.log_name())
    }

    /// Directory of the container's log files.
    pub fn log_dir(&self, roots: &Roots) -> PathBuf {
        roots.pod_log_dir(&self.key, &self.uid).join(self.container.as_str())
    }

    /// Name of the link to the log file, `<pod>_<namespace>_<container>-<id>.log`, cut before
    /// `.log` where it would exceed the longest file name.
    pub fn link_name(&self) -> String {
        let mut name = format!("{}_{}_{}-{}", self.key.name, self.key.namespace, self.container, self.id);
        name.truncate(NAME_MAX.saturating_sub(".log".len()));
        name + ".log"
    }

    /// Paths of the FIFOs and of the log file.
    pub fn paths(&self, roots: &Roots) -> StreamPaths {
        let dir = roots.fifo_dir(&self.id);
        StreamPaths {
            stdin: self.stdin.then(|| dir.join("stdin")),
            stdout: dir.join("stdout"),
            stderr: (!self.tty).then(|| dir.join("stderr")),
            log: self.log_path(roots),
        }
    }
}

/// Name of a log file, `<attempt>.log`.
pub fn log_name(attempt: Attempt) -> String {
    format!("{attempt}.log")
}

/// Name of an attached reader's FIFO for one output stream, in the container's directory of FIFOs.
pub fn attach_fifo(session: &str, stream: &str) -> String {
    format!("attach-{session}-{stream}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::*;

    fn spec(pod: &str) -> StreamSpec {
        let uid = PodUid::new("u-1").unwrap();
        let container = ContainerName::new("app").unwrap();
        StreamSpec {
            id: ContainerId::derive(&uid, SandboxAttempt(0), &container, Attempt(0)),
            uid,
            key: PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new(pod).unwrap() },
            container,
            attempt: Attempt(2),
            tty: false,
            stdin: false,
            stdin_once: false,
        }
    }

    #[test]
    fn log_and_link_names_are_those_of_kubernetes() {
        let s = spec("web");
        let roots = Roots::defaults(NodeName::new("n").unwrap());
        assert_eq!(s.log_path(&roots), PathBuf::from("/var/log/pods/ns_web_u-1/app/2.log"));
        assert_eq!(s.link_name(), format!("web_ns_app-{}.log", s.id));
        let long = spec(&vec!["a".repeat(60); 4].join(".")).link_name();
        assert_eq!((long.len(), long.ends_with(".log")), (255, true));
    }
}
