//! The unfinished line of one stream, saved so that it survives logd's death.
//!
//! An unfinished line has been removed from the FIFO and is not in the log file yet. It is saved
//! together with the number of bytes that are about to be removed and a checksum of them. A logd
//! that was killed between the two steps compares them with the FIFO's content and so knows whether
//! the bytes are still to be removed.
//!
//! Layout, little endian: checksum of the line u64, checksum of the read u64, bytes to remove u32,
//! length of the line u32, the line. A torn file fails its checksum and counts as "no unfinished
//! line".

use crate::format::MAX_LINE;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

const HEAD: usize = 24;
const TAKE_AT: u64 = 16;

/// The carry file of one stream. It is created when the stream first has an unfinished line to
/// save.
#[derive(Debug)]
pub(super) struct CarryFile {
    path: PathBuf,
    file: Option<File>,
    /// The file contains an unfinished line or a pending removal.
    dirty: bool,
    warned: bool,
}

/// Content of a carry file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    /// The unfinished line.
    pub(super) carry: Vec<u8>,
    /// Number of bytes that are already in the log, if they are still at the head of the FIFO.
    pub(super) take: usize,
    /// [`checksum`] of these bytes.
    pub(super) check: u64,
}

impl CarryFile {
    /// Returns the carry file at `path`, which need not exist.
    pub(super) fn new(path: PathBuf) -> CarryFile {
        CarryFile { path, file: None, dirty: false, warned: false }
    }

    /// Reads the content that an earlier logd left.
    pub(super) fn load(&mut self) -> Option<Saved> {
        self.dirty = true;
        match std::fs::read(&self.path) {
            Ok(bytes) => parse(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.dirty = false;
                None
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the unfinished line of a stream");
                None
            }
        }
    }

    /// Saves the state before `read` is removed from the FIFO; `carry` is the unfinished line after
    /// it. Returns whether [`CarryFile::taken`] must follow.
    pub(super) fn save(&mut self, carry: &[u8], read: &[u8]) -> bool {
        if carry.is_empty() && !self.dirty {
            return false;
        }
        let mut bytes = Vec::with_capacity(carry.len().saturating_add(HEAD));
        bytes.extend_from_slice(&checksum(carry).to_le_bytes());
        bytes.extend_from_slice(&checksum(read).to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(read.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(carry.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(carry);
        let done = self.write(&bytes, 0);
        self.dirty = true;
        done
    }

    /// Records that the bytes have been removed from the FIFO.
    pub(super) fn taken(&mut self, carry: &[u8]) {
        if self.write(&[0; 4], TAKE_AT) {
            self.dirty = !carry.is_empty();
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> bool {
        let file = match &self.file {
            Some(file) => Ok(file),
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path)
                .map(|file| &*self.file.insert(file)),
        };
        match file.and_then(|file| file.write_all_at(bytes, at)) {
            Ok(()) => true,
            Err(error) => {
                if !self.warned {
                    tracing::warn!(path = %self.path.display(), %error, "cannot save the unfinished line of a stream");
                    self.warned = true;
                }
                false
            }
        }
    }

    /// Removes the file.
    pub(super) fn remove(&self) -> io::Result<()> {
        berth_sys::fs::remove_if_there(&self.path)
    }
}

fn parse(bytes: &[u8]) -> Option<Saved> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let len = usize::try_from(u32_at(20)?).ok().filter(|n| *n <= MAX_LINE)?;
    let carry = bytes.get(HEAD..HEAD.checked_add(len)?)?.to_vec();
    (checksum(&carry) == u64_at(0)?).then_some(())?;
    Some(Saved { carry, take: usize::try_from(u32_at(16)?).ok()?, check: u64_at(8)? })
}

/// FNV-1a over the length and the first and last 512 bytes. Enough to tell reads apart and to
/// detect torn files.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    const EDGE: usize = 512;
    let head = bytes.get(..EDGE.min(bytes.len())).unwrap_or_default();
    let tail = bytes.get(bytes.len().saturating_sub(EDGE)..).unwrap_or_default();
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let len = bytes.len().to_le_bytes();
    len.iter().chain(head).chain(tail).fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_line_is_loaded_and_a_torn_carry_file_counts_as_none() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("c");
        let mut file = CarryFile::new(path.clone());
        assert_eq!(file.load(), None);
        assert!(!file.save(b"", b"a\n"), "a stream of whole lines needs no file");
        assert!(!path.exists());
        assert!(file.save(b"begun", b"a\nbegun"));
        let saved = CarryFile::new(path.clone()).load().unwrap();
        assert_eq!(saved, Saved { carry: b"begun".to_vec(), take: 7, check: checksum(b"a\nbegun") });
        file.taken(b"begun");
        assert_eq!(CarryFile::new(path.clone()).load().unwrap().take, 0);
        assert!(file.save(b"", b" end\n"), "an emptied line must be saved as such");
        file.taken(b"");
        assert!(!file.save(b"", b"x\n"));
        assert_eq!(CarryFile::new(path.clone()).load().unwrap().carry, b"");
        for torn in [&b"short"[..], &[9; 30], &[0xff; 100]] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(CarryFile::new(path.clone()).load(), None);
        }
    }
}
