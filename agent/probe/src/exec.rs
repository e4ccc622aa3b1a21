//! Commands in containers. The helper runs them ([`crate::exec_helper`]).

pub(crate) mod client;
mod process;
pub(crate) mod session;

pub use berth_api::exec::{ExecOutcome, ExecProcess, ExecTarget, MAX_OUTPUT, Rlimit};
pub use process::process_of_spec;
pub use session::{Session, SessionError, Stdio};

/// The helper cannot run this command exactly as containerd would, for the reason given. Callers go
/// through containerd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// Whether the helper can run this command exactly as containerd would.
pub(crate) fn supported(target: &ExecTarget) -> Result<(), Unsupported> {
    if target.process.seccomp.is_some() {
        return Err(Unsupported("the container has a seccomp filter".to_owned()));
    }
    if target.cgroup_dirs.is_empty() {
        return Err(Unsupported("the container's cgroups are not known".to_owned()));
    }
    Ok(())
}
