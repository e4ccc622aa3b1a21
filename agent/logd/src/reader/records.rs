//! Records of one log file, compressed or not.

use crate::format::{MAX_LINE, OVERHEAD, Record, parse};
use berth_core::time::Wall;
use flate2::read::MultiGzDecoder;
use rustix::fs::Stat;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// The longest record in bytes, with tags and foreign times. Longer lines are left out.
const LINE_MAX: usize = MAX_LINE + OVERHEAD + 256;

#[derive(Debug)]
enum Source {
    Plain(File),
    Gz(Box<MultiGzDecoder<File>>),
}

/// Reader of the records of one file.
#[derive(Debug)]
pub(super) struct RecordReader {
    source: Source,
    stat: Stat,
    /// The unfinished line, at most the length of a record.
    line: Vec<u8>,
    chunk: Vec<u8>,
    skip_lines: u64,
    since: Option<Wall>,
    /// The compressed data cannot be decoded any further.
    damaged: bool,
}

impl RecordReader {
    pub(super) fn plain(file: File) -> io::Result<RecordReader> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(RecordReader {
            source: Source::Plain(file),
            stat,
            line: Vec::new(),
            chunk: Vec::new(),
            skip_lines: 0,
            since: None,
            damaged: false,
        })
    }

    pub(super) fn gz(file: File) -> io::Result<RecordReader> {
        let mut reader = RecordReader::plain(file.try_clone()?)?;
        reader.source = Source::Gz(Box::new(MultiGzDecoder::new(file)));
        Ok(reader)
    }

    fn file(&self) -> &File {
        match &self.source {
            Source::Plain(file) => file,
            Source::Gz(decoder) => decoder.get_ref(),
        }
    }

    /// Whether both are the same file, whatever their names.
    pub(super) fn same_file(&self, other: &RecordReader) -> bool {
        self.is(&other.stat)
    }

    /// Whether this is the file with that status.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        self.stat.st_ino == stat.st_ino && self.stat.st_dev == stat.st_dev
    }

    /// The modification time in seconds and nanoseconds. Compression keeps it.
    pub(super) fn modified(&self) -> io::Result<(i64, u64)> {
        let stat = rustix::fs::fstat(self.file())?;
        Ok((stat.st_mtime, stat.st_mtime_nsec))
    }

    /// Skips the next so many lines.
    pub(super) fn skip_lines(&mut self, lines: u64) {
        self.skip_lines = lines;
    }

    /// Skips records before `time`.
    pub(super) fn skip_until(&mut self, time: Wall) {
        self.since = Some(time);
    }

    /// Goes back to the beginning.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.line.clear();
        self.damaged = false;
        let mut file = self.file().try_clone()?;
        file.rewind()?;
        self.source = match self.source {
            Source::Plain(_) => Source::Plain(file),
            Source::Gz(_) => Source::Gz(Box::new(MultiGzDecoder::new(file))),
        };
        Ok(())
    }

    /// Goes to the end. Only for files that are not compressed.
    pub(super) fn seek_to_end(&mut self) -> io::Result<()> {
        if let Source::Plain(file) = &mut self.source {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    /// Gives back the memory of reads.
    pub(super) fn release(&mut self) {
        self.chunk = Vec::new();
    }

    /// Reads the next chunk and emits its records. False at the current end of the file.
    pub(super) fn read_chunk(&mut self, emit: &mut dyn FnMut(Record<'_>)) -> io::Result<bool> {
        if self.chunk.is_empty() {
            self.chunk = vec![0; CHUNK];
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let read = loop {
            let read = match &mut self.source {
                Source::Plain(file) => file.read(&mut chunk),
                Source::Gz(_) if self.damaged => Ok(0),
                Source::Gz(decoder) => decoder.read(&mut chunk),
            };
            match read {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The decoder's own errors have no error number: then the data is damaged, and
                // reading the file works.
                Err(error) if matches!(self.source, Source::Gz(_)) && error.raw_os_error().is_none() => {
                    tracing::warn!(inode = self.stat.st_ino, %error, "a compressed log is damaged; its rest is left out");
                    self.damaged = true;
                }
                read => break read,
            }
        };
        if let Ok(n) = &read {
            let mut rest = chunk.get(..*n).unwrap_or_default();
            while let Some(end) = memchr::memchr(b'\n', rest) {
                let (head, tail) = rest.split_at(end.saturating_add(1).min(rest.len()));
                if self.line.is_empty() {
                    self.emit_line(head, emit);
                } else {
                    self.keep(head);
                    let line = std::mem::take(&mut self.line);
                    self.emit_line(&line, emit);
                    self.line = line;
                    self.line.clear();
                }
                rest = tail;
            }
            self.keep(rest);
        }
        self.chunk = chunk;
        Ok(read? > 0)
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One byte beyond the limit marks the line as too long.
        let room = LINE_MAX.saturating_add(1).saturating_sub(self.line.len());
        self.line.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    fn emit_line(&mut self, line: &[u8], emit: &mut dyn FnMut(Record<'_>)) {
        if line.len() > LINE_MAX {
            return;
        }
        let Some(record) = parse(line) else { return };
        if self.skip_lines > 0 {
            self.skip_lines = self.skip_lines.saturating_sub(u64::from(!record.partial));
            return;
        }
        if self.since.is_none_or(|since| record.time >= since) {
            emit(record);
        }
    }
}
