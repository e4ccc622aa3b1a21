//! Termination messages: a file per attempt, which the container writes and the node reads.
//!
//! The container may write anything of any size; only the end of the file is read.

use crate::{Error, Volumes, layout::NODE_DIR, layout::TERMINATION_PREFIX, os};
use berth_core::{
    ids::Attempt,
    model::{Container, Pod},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// Limit of a message in bytes: the end of a longer file counts.
const MAX_MESSAGE: usize = 4096;
/// Mode of the file: any user in the container may write it.
const MODE: u32 = 0o666;

impl Volumes {
    /// The file of an attempt's message on the node, created if missing. Files of attempts before the
    /// previous one are removed.
    pub fn termination_file(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: Attempt,
    ) -> Result<PathBuf, Error> {
        let dir = self.container_dir(&pod.uid, &container.name);
        os::make_dirs(&dir, NODE_DIR).map_err(Error::io("create", &dir))?;
        let path = self.termination_path(&pod.uid, &container.name, attempt);
        let make = || {
            let file = os::open_or_make(&path, OFlags::WRONLY, MODE)?;
            os::set_mode(file, MODE)
        };
        make().map_err(Error::io("create", &path))?;
        remove_older(&dir, attempt).map_err(Error::io("remove old termination messages in", &dir))?;
        Ok(path)
    }

    /// The termination message of an attempt: at most 4096 bytes of the file's end, as text. `None` if the
    /// file is empty or missing.
    pub fn termination_message(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: Attempt,
    ) -> Result<Option<String>, Error> {
        let path = self.termination_path(&pod.uid, &container.name, attempt);
        let bytes = read_end(&path).map_err(Error::io("read", &path))?;
        Ok(bytes.map(|b| message(&b)).filter(|m| !m.is_empty()))
    }
}

/// The end of the file, with up to three bytes more than a message has, so that a cut character is
/// recognized.
fn read_end(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // A container with the directory mounted may have put a link, a FIFO or a device in place of the file.
    let name = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, name, Mode::empty()) {
        Ok(found) => berth_sys::fs::reopen_regular(found, OFlags::RDONLY)?,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let found = file.metadata()?;
    let max = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX).saturating_add(3);
    let start = found.len().saturating_sub(max);
    let mut bytes = Vec::new();
    // The read is bounded even if the file grows meanwhile.
    At { file: &file, offset: start }.take(max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.offset)?;
        self.offset = self.offset.saturating_add(u64::try_from(n).unwrap_or(0));
        Ok(n)
    }
}

/// The end of `bytes` as text of at most [`MAX_MESSAGE`] bytes, without cut characters. Invalid bytes become
/// U+FFFD.
fn message(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut start = text.len().saturating_sub(MAX_MESSAGE);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default().to_owned()
}

fn remove_older(dir: &Path, attempt: Attempt) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix(TERMINATION_PREFIX))
            .and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|n| n.saturating_add(1) < attempt.0) {
            berth_sys::fs::remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
