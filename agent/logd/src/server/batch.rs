//! Buffers shared by all streams, used for one read at a time.

use crate::{error::Error, format::Stamp, rotated::RotatedFile};
use berth_core::time::Wall;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags},
};
use std::{
    fs::File,
    io::{self, Read},
    time::{Instant, SystemTime},
};

/// The most bytes of one read, and so the most that is repeated after logd is killed.
pub const READ_SIZE: usize = 64 * 1024;

/// Encoded records are written when they reach this many bytes.
pub(super) const FLUSH_SIZE: usize = 256 * 1024;

/// Capacity that is requested for a FIFO, in bytes.
pub(super) const PIPE_SIZE: usize = 1024 * 1024;

/// The records of one read.
#[derive(Debug)]
pub(super) struct Batch {
    /// Encoded records that are not yet written.
    pub(super) out: Vec<u8>,
    /// Time of all records, formatted.
    pub(super) stamp: Stamp,
    /// Time of all records.
    pub(super) wall: Wall,
    /// Time of all records on the monotonic clock, for retries.
    pub(super) mono: Instant,
    /// Rotated files that may be compressed.
    pub(super) rotated: Vec<RotatedFile>,
}

impl Batch {
    /// Reads the clocks.
    pub(super) fn start(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.wall = Wall(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        self.stamp = Stamp::new(self.wall);
        self.mono = Instant::now();
    }
}

/// A private pipe and a buffer, to read a FIFO without emptying it.
#[derive(Debug)]
pub(super) struct Scratch {
    read: File,
    write: OwnedFd,
    null: OwnedFd,
    buf: Vec<u8>,
    /// The records of the read.
    pub(super) batch: Batch,
}

impl Scratch {
    /// Creates the pipe and the buffers.
    pub(super) fn new() -> Result<Scratch, Error> {
        let fail = |what| move |e: Errno| Error::Kernel { what, source: e.into() };
        let (read, write) = pipe().map_err(fail("make a pipe"))?;
        let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(fail("open /dev/null"))?;
        let wall = Wall(0);
        let batch = Batch {
            out: Vec::with_capacity(READ_SIZE),
            stamp: Stamp::new(wall),
            wall,
            mono: Instant::now(),
            rotated: Vec::new(),
        };
        Ok(Scratch { read, write, null, buf: vec![0; READ_SIZE], batch })
    }

    /// Copies at most `max` bytes (and at most [`READ_SIZE`]) from the head of a FIFO, which keeps
    /// them. Returns 0 if the FIFO is empty.
    pub(super) fn peek(&mut self, fifo: impl AsFd, max: usize) -> io::Result<usize> {
        let n = loop {
            match rustix::pipe::tee(&fifo, &self.write, max.min(READ_SIZE), SpliceFlags::NONBLOCK) {
                Ok(n) => break n,
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let space =
            self.buf.get_mut(..n).ok_or_else(|| io::Error::other("tee gave more than was asked for"))?;
        if let Err(e) = self.read.read_exact(space) {
            // Bytes left in the pipe would be taken for the next stream's.
            (self.read, self.write) = pipe()?;
            return Err(e);
        }
        Ok(n)
    }

    /// The bytes that [`Scratch::peek`] copied, and the batch for their records.
    pub(super) fn parts(&mut self, n: usize) -> (&[u8], &mut Batch) {
        (self.buf.get(..n).unwrap_or_default(), &mut self.batch)
    }

    /// Removes `n` bytes from the head of a FIFO.
    pub(super) fn discard(&self, fifo: impl AsFd, mut n: usize) -> io::Result<()> {
        while n > 0 {
            match rustix::pipe::splice(&fifo, None, &self.null, None, n, SpliceFlags::NONBLOCK) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(done) => n = n.saturating_sub(done),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn pipe() -> Result<(File, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller pipe only means more and smaller reads.
    let _smaller = rustix::pipe::fcntl_setpipe_size(&write, PIPE_SIZE);
    Ok((File::from(read), write))
}
