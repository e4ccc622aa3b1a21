//! Opening of FIFOs at both ends, by logd and by the agent.

use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{io, path::Path};

/// Creates a FIFO if it does not exist, and opens both its ends.
pub(crate) fn open_fifo(path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::from_raw_mode(0o600)) {
        Ok(()) | Err(Errno::EXIST) => hold_fifo(path),
        Err(e) => Err(e.into()),
    }
}

/// Opens both ends of an existing FIFO.
pub(crate) fn hold_fifo(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::Fifo {
        Ok(fd)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a fifo"))
    }
}
