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
        pod_dir_name(&self.key, &self.uid)
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
        let dir = fifo_dir(roots, &self.id);
        StreamPaths {
            stdin: self.stdin.then(|| dir.join("stdin")),
            stdout: dir.join("stdout"),
            stderr: (!self.tty).then(|| dir.join("stderr")),
            log: self.log_path(roots),
        }
    }
}

/// Name of a pod's log directory, `<namespace>_<pod>_<uid>`.
pub(crate) fn pod_dir_name(key: &PodKey, uid: &PodUid) -> String {
    format!("{}_{}_{}", key.namespace, key.name, uid)
}

/// Name of a log file, `<attempt>.log`.
pub(crate) fn log_name(attempt: Attempt) -> String {
    format!("{attempt}.log")
}

/// Directory of a container's FIFOs.
pub fn fifo_dir(roots: &Roots, id: &ContainerId) -> PathBuf {
    roots.runtime_state.join("fifo").join(id.as_str())
}

/// Directory of the state that logd needs after a restart.
pub(crate) fn state_dir(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("logd")
}

/// Name of a rotated file: `<attempt>.log.<YYYYMMDD-hhmmss>[-NNN][.gz]`. The number is there only
/// if several files were rotated within one second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    /// Time of the rotation, UTC.
    pub stamp: String,
    /// Count within one second, from 0.
    pub serial: u32,
    /// The file is compressed.
    pub gz: bool,
}

impl Rotated {
    /// Parses a file name. Returns None if it is not a rotated file of this attempt.
    pub fn parse(attempt: Attempt, name: &str) -> Option<Rotated> {
        let rest = name.strip_prefix(&log_name(attempt))?.strip_prefix('.')?;
        let (rest, gz) = rest.strip_suffix(".gz").map_or((rest, false), |r| (r, true));
        let (stamp, serial) = rest.split_at_checked(15)?;
        let ok = stamp.bytes().enumerate().all(|(i, b)| if i == 8 { b == b'-' } else { b.is_ascii_digit() });
        let serial = match serial.strip_prefix('-') {
            Some(n) if n.len() >= 3 && n.bytes().all(|b| b.is_ascii_digit()) => n.parse().ok()?,
            None if serial.is_empty() => 0,
            _ => return None,
        };
        ok.then(|| Rotated { stamp: stamp.to_owned(), serial, gz })
    }

    /// The file name.
    pub fn name(&self, attempt: Attempt) -> String {
        let serial = if self.serial == 0 { String::new() } else { format!("-{:03}", self.serial) };
        let gz = if self.gz { ".gz" } else { "" };
        format!("{attempt}.log.{}{serial}{gz}", self.stamp)
    }

    /// The name for a file that is rotated now. It always sorts after `last`, even if the clock was
    /// set back.
    pub fn next(now: berth_core::time::Wall, last: Option<&Rotated>) -> Rotated {
        let time = jiff::Timestamp::from_second(now.seconds()).unwrap_or_default();
        let stamp = time.strftime("%Y%m%d-%H%M%S").to_string();
        match last {
            Some(last) if last.stamp >= stamp => {
                Rotated { stamp: last.stamp.clone(), serial: last.serial.saturating_add(1), gz: false }
            }
            _ => Rotated { stamp, serial: 0, gz: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{ids::*, time::Wall};

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
    fn names_are_the_contract() {
        let s = spec("web");
        let roots = Roots::defaults(NodeName::new("n").unwrap());
        assert_eq!(s.log_path(&roots), PathBuf::from("/var/log/pods/ns_web_u-1/app/2.log"));
        assert_eq!(s.link_name(), format!("web_ns_app-{}.log", s.id));
        let long = spec(&vec!["a".repeat(60); 4].join(".")).link_name();
        assert_eq!((long.len(), long.ends_with(".log")), (255, true));
    }

    #[test]
    fn rotated_names_come_back_and_only_grow() {
        let now = Wall(1_700_000_000_000_000_000);
        let a = Rotated::next(now, None);
        assert_eq!(a.name(Attempt(2)), "2.log.20231114-221320");
        let b = Rotated::next(now, Some(&a));
        assert_eq!(b.name(Attempt(2)), "2.log.20231114-221320-001");
        let c = Rotated::next(Wall(0), Some(&b));
        assert!(a < b && b < c, "a clock set back must not reorder");
        for r in [&a, &b, &c, &Rotated { gz: true, ..c.clone() }] {
            assert_eq!(Rotated::parse(Attempt(2), &r.name(Attempt(2))).as_ref(), Some(r));
        }
        for other in [
            "2.log",
            "2.log.20231114-221320.gz.tmp",
            "12.log.20231114-221320",
            "2.log.x",
            "2.log.20231114-221320-1",
            "2.log.2023111422-1320",
        ] {
            assert_eq!(Rotated::parse(Attempt(2), other), None, "{other}");
        }
    }
}
