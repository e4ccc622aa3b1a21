//! Output of one attempt of one container: its FIFOs, held open at both ends, and the copying of
//! their bytes into the log file.

use super::{
    batch::{PIPE_SIZE, READ_SIZE, Scratch},
    carry::{CarryFile, checksum},
    logfile::{Limits, LogFile},
};
use crate::{
    error::Error,
    fifo::open_fifo,
    format::{Splitter, Stream},
};
use berth_api::logd::{StreamSpec, StreamStatus};
use berth_core::{ids::ContainerId, roots::Roots};
use rustix::fd::OwnedFd;
use std::{io, os::unix::fs::DirBuilderExt, path::PathBuf};

/// The last drain ends after this many bytes, even if a process still writes.
const LAST_DRAIN_MAX: usize = 8 * PIPE_SIZE;

/// One output stream of the container.
#[derive(Debug)]
pub(super) struct Fifo {
    /// The FIFO, open for reading and writing, so that reads neither block nor see an end of file.
    pub(super) fd: OwnedFd,
    /// The stream.
    pub(super) stream: Stream,
    /// Capacity in bytes.
    pub(super) capacity: usize,
    splitter: Splitter,
    carry: CarryFile,
    /// FIFOs of the attached readers.
    pub(super) readers: Vec<OwnedFd>,
}

/// The FIFOs and the log file of a container.
#[derive(Debug)]
pub(super) struct Container {
    /// The registered specification.
    pub(super) spec: StreamSpec,
    /// Standard output, then standard error unless there is a terminal.
    pub(super) fifos: Vec<Fifo>,
    /// Standard input, only held open.
    pub(super) stdin: Option<OwnedFd>,
    log: LogFile,
    bytes: u64,
}

impl Container {
    /// Prepares a container that does not run yet: creates the FIFOs and the log file, and fails on
    /// any error.
    pub(super) fn register(roots: &Roots, spec: StreamSpec, limits: Limits) -> Result<Container, Error> {
        let fds = open_fifos(roots, &spec)?;
        let log = LogFile::open(roots, &spec, limits)?;
        Ok(Container::build(roots, spec, fds, log))
    }

    /// Prepares a container that may be running, after logd's own restart or from another logd that
    /// stopped in order. `fds` are its FIFOs, standard output first. Without `fds` the FIFOs are
    /// opened by name.
    pub(super) fn resume(
        roots: &Roots,
        spec: StreamSpec,
        fds: Option<Vec<OwnedFd>>,
        limits: Limits,
        scratch: &mut Scratch,
    ) -> Result<Container, Error> {
        let fds = match fds {
            Some(fds) => fds,
            None => open_fifos(roots, &spec)?,
        };
        let log = LogFile::open_or_lose(roots, &spec, limits);
        let mut container = Container::build(roots, spec, fds, log);
        for fifo in &mut container.fifos {
            fifo.restore(scratch);
        }
        Ok(container)
    }

    fn build(roots: &Roots, spec: StreamSpec, fds: Vec<OwnedFd>, log: LogFile) -> Container {
        let mut fds = fds.into_iter();
        let mut fifos = Vec::with_capacity(2);
        for stream in streams(&spec) {
            if let Some(fd) = fds.next() {
                fifos.push(Fifo::new(fd, *stream, carry_path(roots, &spec.id, *stream)));
            }
        }
        let stdin = if spec.stdin { fds.next() } else { None };
        Container { spec, fifos, stdin, log, bytes: 0 }
    }

    /// Copies the content of `fifos[index]` into the log file, at most `reads` times [`READ_SIZE`].
    /// Returns the number of bytes.
    pub(super) fn drain(&mut self, index: usize, reads: usize, scratch: &mut Scratch) -> io::Result<usize> {
        let mut total: usize = 0;
        let Some(fifo) = self.fifos.get_mut(index) else { return Ok(0) };
        for _ in 0..reads {
            let n = fifo.step(&mut self.log, scratch)?;
            total = total.saturating_add(n);
            if n == 0 {
                break;
            }
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(total).unwrap_or(0));
        Ok(total)
    }

    /// Drains all FIFOs and writes unfinished lines as partial records.
    pub(super) fn end(&mut self, scratch: &mut Scratch) {
        for index in 0..self.fifos.len() {
            if let Err(error) = self.drain(index, LAST_DRAIN_MAX / READ_SIZE, scratch) {
                tracing::warn!(container = %self.spec.id, %error, "cannot read the last output of a container");
            }
        }
        scratch.batch.start();
        self.log.begin(&mut scratch.batch, true);
        for fifo in &mut self.fifos {
            let (log, batch) = (&mut self.log, &mut scratch.batch);
            fifo.splitter.finish(|piece| log.record(batch, fifo.stream, piece));
            self.log.flush(&mut scratch.batch);
            if fifo.carry.save(b"", b"") {
                fifo.carry.taken(b"");
            }
        }
        self.log.begin(&mut scratch.batch, true);
    }

    /// Raw bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lost records, and how many of them the log file does not mention yet.
    pub(super) fn lost(&self) -> (u64, u64) {
        (self.log.lost(), self.log.unreported())
    }

    /// Continues with another logd's counts.
    pub(super) fn inherit(&mut self, bytes: u64, lost: u64) {
        self.bytes = bytes;
        self.log.inherit(lost);
    }

    /// State for the list of streams.
    pub(super) fn status(&self) -> StreamStatus {
        StreamStatus {
            spec: self.spec.clone(),
            bytes: self.bytes,
            lost: self.log.lost(),
            failing: self.log.failing().map(str::to_owned),
        }
    }
}

impl Fifo {
    fn new(fd: OwnedFd, stream: Stream, carry: PathBuf) -> Fifo {
        // The current capacity is used where a megabyte is not permitted.
        let capacity = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_SIZE)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&fd))
            .unwrap_or(READ_SIZE);
        let (splitter, carry) = (Splitter::default(), CarryFile::new(carry));
        Fifo { fd, stream, capacity, splitter, carry, readers: Vec::new() }
    }

    /// Continues where an earlier logd stopped.
    fn restore(&mut self, scratch: &mut Scratch) {
        let Some(saved) = self.carry.load() else { return };
        if saved.take > 0 {
            let written_already = scratch
                .peek(&self.fd, saved.take)
                .is_ok_and(|n| n == saved.take && checksum(scratch.parts(n).0) == saved.check);
            if written_already && let Err(error) = scratch.discard(&self.fd, saved.take) {
                tracing::warn!(%error, "cannot remove written output from its fifo; it is written again");
            }
            self.carry.taken(&saved.carry);
        }
        self.splitter = Splitter::resume(saved.carry);
    }

    /// One read: peek, write, remove from the FIFO.
    fn step(&mut self, log: &mut LogFile, scratch: &mut Scratch) -> io::Result<usize> {
        let n = scratch.peek(&self.fd, READ_SIZE)?;
        if n == 0 {
            return Ok(0);
        }
        scratch.batch.start();
        let (read, batch) = scratch.parts(n);
        Fifo::copy_to_readers(&mut self.readers, read);
        log.begin(batch, false);
        self.splitter.push(read, |piece| log.record(batch, self.stream, piece));
        log.flush(batch);
        let saved = self.carry.save(self.splitter.carry(), read);
        scratch.discard(&self.fd, n)?;
        if saved {
            self.carry.taken(self.splitter.carry());
        }
        Ok(n)
    }
}

/// The output streams of a container.
fn streams(spec: &StreamSpec) -> &'static [Stream] {
    if spec.tty { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] }
}

fn carry_path(roots: &Roots, id: &ContainerId, stream: Stream) -> PathBuf {
    roots.logd_state_dir().join("carry").join(format!("{id}.{}", stream.name()))
}

/// Creates the missing FIFOs and opens all of them: outputs, then standard input.
fn open_fifos(roots: &Roots, spec: &StreamSpec) -> Result<Vec<OwnedFd>, Error> {
    let dir = roots.fifo_dir(&spec.id);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|source| Error::Directory { path: dir.clone(), source })?;
    let stdin = spec.stdin.then_some("stdin");
    streams(spec)
        .iter()
        .map(|s| s.name())
        .chain(stdin)
        .map(|name| {
            let path = dir.join(name);
            open_fifo(&path).map_err(|source| Error::Fifo { path, source })
        })
        .collect()
}

/// Removes the state of a finished container. Failures are logged and otherwise ignored.
pub(super) fn remove_state(roots: &Roots, container: &Container) {
    let id = &container.spec.id;
    for fifo in &container.fifos {
        if let Err(error) = fifo.carry.remove() {
            tracing::warn!(container = %id, %error, "cannot remove the unfinished line of a container");
        }
    }
    let dir = roots.fifo_dir(id);
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        tracing::warn!(container = %id, %error, path = %dir.display(), "cannot remove the fifos of a container");
    }
}
