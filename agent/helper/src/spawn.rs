//! Starting a helper as a process that outlives the agent.

use crate::Error;
use berth_sys::service;
use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    process::Stdio,
};

/// A helper's file of messages is truncated when it exceeds this many bytes.
const OUTPUT_MAX: u64 = 1024 * 1024;

/// Starts a program that outlives the agent: no open files but the standard ones, working directory
/// `/`, messages appended to the file `output`, whose directory is created. The program makes its
/// own session. Must be called in a tokio runtime, which reaps the process if it ends before the
/// agent. Returns the process id.
///
/// # Errors
/// The program cannot be started, or `output` cannot be opened.
pub fn spawn_detached(
    output: &Path,
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<u32, Error> {
    let start = || {
        if let Some(dir) = output.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let output = OpenOptions::new().create(true).append(true).mode(0o640).open(output)?;
        if output.metadata()?.len() > OUTPUT_MAX {
            output.set_len(0)?;
        }
        run(output, program, args)
    };
    start().map_err(|source| Error::Spawn { program: program.to_owned(), source })
}

fn run(output: File, program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<u32> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).current_dir("/").kill_on_drop(false).env_remove(service::NOTIFY_SOCKET);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let child = command.spawn()?;
    child.id().ok_or_else(|| io::Error::other("it ended at once"))
}

/// Truncates the file `output` if it is too long and is this process's standard error. For a helper
/// that runs for a long time. Failures are ignored: the next call tries again.
pub fn truncate_own_output(output: &Path) {
    let (stderr, file) = (io::stderr(), std::fs::metadata(output));
    let (Ok(stat), Ok(file)) = (rustix::fs::fstat(&stderr), file) else { return };
    let same = stat.st_ino == file.ino() && stat.st_dev == file.dev();
    if same && file.len() > OUTPUT_MAX {
        let _retried = rustix::fs::ftruncate(&stderr, 0);
    }
}
