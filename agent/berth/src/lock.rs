//! One agent a node: an exclusive lock for as long as the process lives.

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

/// Takes the lock, or says who has it.
pub(crate) fn take(runtime_state: &Path) -> anyhow::Result<Flock<File>> {
    let path = runtime_state.join("agent.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| write!(lock, "{}", std::process::id()))
                .with_context(|| format!("write {}", path.display()))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // Who holds it is a courtesy of the message.
            file.read_to_string(&mut holder).ok();
            bail!("another agent (process {holder}) runs this node: {} is locked", path.display());
        }
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}
