//! Attached readers of a container's output: each gets a copy of what is read from the FIFOs, through a FIFO of its own.
//!
//! That FIFO is the reader's bound: a reader for which it is full loses its place, and the container never waits. An
//! attached reader sees output from the attachment on, and the end of its FIFO when the container's output is finished,
//! when it was too slow, or when another logd takes over.

use super::{Logd, batch::PIPE_SIZE, container::Fifo};
use crate::error::Error;
use berth_api::logd::attach_fifo;
use berth_core::ids::ContainerId;
use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{io, path::Path};

/// The most readers of one stream. Further ones are refused.
const READERS: usize = 32;

/// Opens a FIFO whose reader has its end open.
fn open_writer(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a fifo"));
    }
    // The usual capacity is used where a megabyte is not permitted.
    let _smaller = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_SIZE);
    Ok(fd)
}

impl Logd {
    /// Adds a reader to each output stream of a container. Its FIFOs are in the container's directory of FIFOs.
    pub(super) fn attach(&mut self, id: &ContainerId, session: &str) -> Result<(), Error> {
        let refused = |reason| Error::Attach { id: id.clone(), reason };
        if session.is_empty() || session.len() > 64 || !session.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(refused("the name of the attachment is not letters and digits"));
        }
        let container = self.containers.get_mut(id).ok_or_else(|| refused("its output is not registered"))?;
        let dir = self.cfg.roots.fifo_dir(id);
        let mut opened = Vec::new();
        for fifo in &container.fifos {
            if fifo.readers.len() >= READERS {
                return Err(refused("too many readers are attached"));
            }
            let path = dir.join(attach_fifo(session, fifo.stream.name()));
            opened.push(open_writer(&path).map_err(|source| Error::Fifo { path, source })?);
        }
        for (fifo, reader) in container.fifos.iter_mut().zip(opened) {
            fifo.readers.push(reader);
        }
        Ok(())
    }

    /// Drops logd's hold of a container's standard input, which ends once every other writer is gone.
    pub(super) fn close_stdin(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stdin = None;
        }
    }
}

impl Fifo {
    /// Copies bytes to the attached readers.
    pub(super) fn copy_to_readers(readers: &mut Vec<OwnedFd>, bytes: &[u8]) {
        readers.retain(|reader| {
            loop {
                match rustix::io::write(reader, bytes) {
                    Ok(written) => return written == bytes.len(),
                    Err(Errno::INTR) => {}
                    // Full, or its reader is gone.
                    Err(_) => return false,
                }
            }
        });
    }
}
