//! Log rotation: one container's log file. Complete records are appended, the file is rotated before
//! it would grow too large, and a full disk costs records but blocks no writer.
//!
//! Invariants: no record is split over two files. No file is larger than the limit unless one
//! record is. While writing fails, records are counted and dropped. Once writing works again, a
//! half-written record is completed first, then one record says how many are missing.

use super::batch::{Batch, FLUSH_SIZE};
use crate::{
    dirs,
    error::Error,
    format::{OVERHEAD, Piece, Stream, encode},
    rotated::{Rotated, RotatedFile},
};
use berth_api::logd::{StreamSpec, log_name};
use berth_core::{ids::Attempt, roots::Roots};
use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Pause between two tries to write a failing file.
const RETRY: Duration = Duration::from_millis(250);

/// Limits of rotation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of one file.
    pub(super) size: u64,
    /// Number of files, including the current one.
    pub(super) files: u32,
}

#[derive(Debug)]
struct Loss {
    why: String,
    /// Lost records that the log file does not mention yet.
    records: u64,
    retry_at: Instant,
}

/// The current log file of one attempt.
#[derive(Debug)]
pub(super) struct LogFile {
    root: PathBuf,
    dir: [String; 2],
    attempt: Attempt,
    notice: Stream,
    limits: Limits,
    file: Option<File>,
    len: u64,
    rotate_at: u64,
    /// The missing part of a half-written record.
    torn: Vec<u8>,
    loss: Option<Loss>,
    /// Records lost since the file was opened.
    lost: u64,
}

impl LogFile {
    /// Opens the file, creates it and its directories if they do not exist, and ends a torn last
    /// line.
    pub(super) fn open(roots: &Roots, spec: &StreamSpec, limits: Limits) -> Result<LogFile, Error> {
        let mut log = LogFile::closed(roots, spec, limits);
        log.reopen().map_err(|source| Error::LogFile { path: log.path(), source })?;
        Ok(log)
    }

    /// Like [`LogFile::open`], but an error only starts dropping records. For a container that runs
    /// already.
    pub(super) fn open_or_lose(roots: &Roots, spec: &StreamSpec, limits: Limits) -> LogFile {
        let mut log = LogFile::closed(roots, spec, limits);
        if let Err(error) = log.reopen() {
            tracing::warn!(log = %log.path().display(), %error, "cannot open a container log; its output is dropped until it can be opened");
            log.loss = Some(Loss { why: error.to_string(), records: 0, retry_at: Instant::now() });
        }
        log
    }

    fn closed(roots: &Roots, spec: &StreamSpec, limits: Limits) -> LogFile {
        LogFile {
            root: roots.pod_logs.clone(),
            dir: [spec.pod_dir_name(), spec.container.to_string()],
            attempt: spec.attempt,
            notice: if spec.tty { Stream::Stdout } else { Stream::Stderr },
            limits,
            file: None,
            len: 0,
            rotate_at: limits.size,
            torn: Vec::new(),
            loss: None,
            lost: 0,
        }
    }

    fn path(&self) -> PathBuf {
        let [pod, container] = &self.dir;
        self.root.join(pod).join(container).join(log_name(self.attempt))
    }

    fn open_dir(&self) -> io::Result<OwnedFd> {
        let [pod, container] = &self.dir;
        dirs::make_dirs(&self.root, &[pod, container])
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = dirs::open_append(self.open_dir()?, &log_name(self.attempt))?;
        self.len = file.metadata()?.len();
        if let Some(last) = self.len.checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, last)?;
            if byte != *b"\n" && self.torn.is_empty() {
                file.write_all(b"\n")?;
                self.len = self.len.saturating_add(1);
            }
        }
        self.rotate_at = self.limits.size;
        self.file = Some(file);
        Ok(())
    }

    /// Records lost since the file was opened.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Lost records that the log file does not mention yet.
    pub(super) fn unreported(&self) -> u64 {
        self.loss.as_ref().map_or(0, |l| l.records)
    }

    /// Takes over lost records that another logd has not written to the file.
    pub(super) fn inherit(&mut self, records: u64) {
        if records > 0 {
            self.lost = self.lost.saturating_add(records);
            let why = "writing failed".to_owned();
            self.loss = Some(Loss { why, records, retry_at: Instant::now() });
        }
    }

    /// Reason why records are being dropped.
    pub(super) fn failing(&self) -> Option<&str> {
        self.loss.as_ref().map(|l| l.why.as_str())
    }

    /// Called before the records of one read: retries where writing failed.
    pub(super) fn begin(&mut self, batch: &mut Batch, retry_now: bool) {
        let Some(loss) = &mut self.loss else { return };
        if !retry_now && batch.mono < loss.retry_at {
            return;
        }
        loss.retry_at = batch.mono.checked_add(RETRY).unwrap_or(batch.mono);
        let (why, records) = (loss.why.clone(), loss.records);
        if self.file.is_none() && self.reopen().is_err() {
            return;
        }
        let mut owed = std::mem::take(&mut self.torn);
        let torn = owed.len();
        if records > 0 {
            let text = format!("berth logd: {records} records of output were lost here: {why}");
            let piece = Piece { partial: false, text: text.as_bytes() };
            encode(&mut owed, &batch.stamp, self.notice, piece);
        }
        let (written, result) = self.append(&owed);
        if written > torn
            && let Some(loss) = &mut self.loss
        {
            // The notice is in the file, or will be when the rest of it is written.
            loss.records = 0;
        }
        match result {
            Ok(()) => {
                tracing::info!(log = %self.path().display(), lost = records, "container log is written again");
                self.loss = None;
            }
            Err(_) if written <= torn => self.torn = owed.drain(written..torn).collect(),
            Err(_) => self.torn = owed.split_off(written),
        }
    }

    /// Adds one record to the batch. Rotates first if it would not fit.
    pub(super) fn record(&mut self, batch: &mut Batch, stream: Stream, piece: Piece<'_>) {
        let pending = u64::try_from(batch.out.len()).unwrap_or(u64::MAX);
        let filled = self.len.saturating_add(pending);
        let need = u64::try_from(piece.text.len().saturating_add(OVERHEAD)).unwrap_or(u64::MAX);
        if self.loss.is_none() && filled > 0 && filled.saturating_add(need) > self.rotate_at {
            self.flush(batch);
            self.rotate(batch);
        }
        if let Some(loss) = &mut self.loss {
            loss.records = loss.records.saturating_add(1);
            self.lost = self.lost.saturating_add(1);
            return;
        }
        encode(&mut batch.out, &batch.stamp, stream, piece);
        if batch.out.len() >= FLUSH_SIZE {
            self.flush(batch);
        }
    }

    /// Writes the batch. Records that cannot be written are dropped and counted.
    pub(super) fn flush(&mut self, batch: &mut Batch) {
        if batch.out.is_empty() {
            return;
        }
        let (written, result) = self.append(&batch.out);
        if let Err(error) = result {
            let rest = batch.out.get(written..).unwrap_or_default();
            let in_record = written > 0 && batch.out.get(written.saturating_sub(1)) != Some(&b'\n');
            let torn = if in_record {
                memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end.saturating_add(1))
            } else {
                0
            };
            self.torn = rest.get(..torn).unwrap_or_default().to_vec();
            let dropped = rest.get(torn..).unwrap_or_default();
            let records = u64::try_from(memchr::memchr_iter(b'\n', dropped).count()).unwrap_or(u64::MAX);
            self.lose(batch, &error, records);
        }
        batch.out.clear();
    }

    fn lose(&mut self, batch: &Batch, error: &io::Error, records: u64) {
        tracing::warn!(log = %self.path().display(), %error, "cannot write a container log; its output is dropped until it can be written");
        self.lost = self.lost.saturating_add(records);
        let retry_at = batch.mono.checked_add(RETRY).unwrap_or(batch.mono);
        self.loss = Some(Loss { why: error.to_string(), records, retry_at });
    }

    /// Appends as much as possible. Returns the number of bytes and the error that stopped it.
    fn append(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let Some(file) = &mut self.file else {
            return (0, Err(io::Error::from(io::ErrorKind::NotFound)));
        };
        let mut written: usize = 0;
        let result = loop {
            match bytes.get(written..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match file.write(rest) {
                    Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                    Ok(n) => written = written.saturating_add(n),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => break Err(e),
                },
            }
        };
        self.len = self.len.saturating_add(u64::try_from(written).unwrap_or(0));
        (written, result)
    }

    /// Renames the file, opens a new one, removes the oldest files beyond the limit and names the
    /// files to compress.
    fn rotate(&mut self, batch: &mut Batch) {
        match self.rename(batch) {
            Ok(()) => {
                self.file = None;
                if let Err(error) = self.reopen() {
                    self.lose(batch, &error, 0);
                }
            }
            Err(error) => {
                tracing::warn!(log = %self.path().display(), %error, "cannot rotate a container log");
                self.rotate_at = self.len.saturating_add(self.limits.size / 10).saturating_add(1);
            }
        }
    }

    fn rename(&self, batch: &mut Batch) -> io::Result<()> {
        let dir = self.open_dir()?;
        let mut old: Vec<Rotated> =
            dirs::names(&dir)?.iter().filter_map(|n| Rotated::parse(self.attempt, n)).collect();
        old.sort();
        let next = Rotated::next(batch.wall, old.last());
        match rustix::fs::renameat(&dir, log_name(self.attempt), &dir, next.name(self.attempt)) {
            // The file was removed by someone else, so there is nothing to keep.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let keep = usize::try_from(self.limits.files.saturating_sub(2)).unwrap_or(usize::MAX);
        let excess = old.len().saturating_sub(keep);
        for rotated in old.drain(..excess) {
            if let Err(error) = dirs::unlink(&dir, &rotated.name(self.attempt)) {
                tracing::warn!(log = %self.path().display(), %error, "cannot remove an old container log");
            }
        }
        for rotated in old.iter().filter(|r| !r.gz) {
            batch.rotated.push(RotatedFile { dir: self.dir.clone(), name: rotated.name(self.attempt) });
        }
        Ok(())
    }
}
