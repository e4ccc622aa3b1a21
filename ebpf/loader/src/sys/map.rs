//! Map commands of bpf(2), with checked buffer sizes.

use super::{MapInfo, address, bpf, info, invalid, number, size};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const LOOKUP_BATCH: u32 = 24;
const UPDATE_BATCH: u32 = 26;
const DELETE_BATCH: u32 = 27;

/// Map kinds with one value for each possible processor.
const PER_CPU: [u32; 3] = [5, 6, 10];

/// An open map, with the sizes that the kernel reads and writes.
#[derive(Debug)]
pub(crate) struct MapFd {
    fd: OwnedFd,
    info: MapInfo,
    value_bytes: usize,
}

#[repr(C)]
struct Element {
    map: u32,
    room: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Number of entries that a batch processed, and the error that stopped it.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) stopped: Option<io::Error>,
}

impl MapFd {
    pub(crate) fn new(fd: OwnedFd, possible_cpus: usize) -> io::Result<MapFd> {
        let info: MapInfo = info(fd.as_fd())?;
        let value = usize::try_from(info.value_size).map_err(io::Error::other)?;
        let value_bytes =
            if PER_CPU.contains(&info.kind) { value.next_multiple_of(8) * possible_cpus } else { value };
        Ok(MapFd { fd, info, value_bytes })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Size of one value in bytes; of a per-CPU map, the values of all processors.
    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    fn key_bytes(&self) -> io::Result<usize> {
        usize::try_from(self.info.key_size).map_err(io::Error::other)
    }

    fn element(&self, key: &[u8], value: u64, flags: u64) -> io::Result<Element> {
        if key.len() != self.key_bytes()? {
            return Err(invalid());
        }
        Ok(Element { map: number(self.fd()), room: 0, key: address(key.as_ptr()), value, flags })
    }

    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        if value.len() != self.value_bytes {
            return Err(invalid());
        }
        let mut attr = self.element(key, address(value.as_mut_ptr()), 0)?;
        // SAFETY: key and value are as long as this map's, and live through the call.
        unsafe { bpf(LOOKUP, &mut attr).map(drop) }
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if value.len() != self.value_bytes {
            return Err(invalid());
        }
        let mut attr = self.element(key, address(value.as_ptr()), flags)?;
        // SAFETY: key and value are as long as this map's, and live through the call.
        unsafe { bpf(UPDATE, &mut attr).map(drop) }
    }

    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        let mut attr = self.element(key, 0, 0)?;
        // SAFETY: the key is as long as this map's, and lives through the call.
        unsafe { bpf(DELETE, &mut attr).map(drop) }
    }

    fn count(&self, keys: &[u8], values: Option<usize>) -> io::Result<u32> {
        let key = self.key_bytes()?;
        let count = keys.len().checked_div(key).ok_or_else(invalid)?;
        if count * key != keys.len() || values.is_some_and(|len| len != count * self.value_bytes) {
            return Err(invalid());
        }
        size(count)
    }

    fn batch(&self, keys: u64, values: u64, count: u32) -> Batch {
        let map = number(self.fd());
        Batch { in_batch: 0, out_batch: 0, keys, values, count, map, element_flags: 0, flags: 0 }
    }

    pub(crate) fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<Progress> {
        let count = self.count(keys, Some(values.len()))?;
        let mut attr = self.batch(address(keys.as_ptr()), address(values.as_ptr()), count);
        // SAFETY: `count` keys and values of this map's sizes live through the call.
        let stopped = unsafe { bpf(UPDATE_BATCH, &mut attr) }.err();
        progress(&attr, count, stopped)
    }

    pub(crate) fn delete_batch(&self, keys: &[u8]) -> io::Result<Progress> {
        let count = self.count(keys, None)?;
        let mut attr = self.batch(address(keys.as_ptr()), 0, count);
        // SAFETY: `count` keys of this map's size live through the call.
        let stopped = unsafe { bpf(DELETE_BATCH, &mut attr) }.err();
        progress(&attr, count, stopped)
    }

    /// Reads the next batch after `from` (from the start where `None`); `token` receives the position for the
    /// next call. The error is ENOENT after the last entry, and ENOSPC where a bucket of the map holds more
    /// entries than the buffers.
    pub(crate) fn lookup_batch(
        &self,
        from: Option<&[u8]>,
        token: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<Progress> {
        let count = self.count(keys, Some(values.len()))?;
        let room = self.key_bytes()?.max(4);
        if token.len() < room || from.is_some_and(|from| from.len() < room) {
            return Err(invalid());
        }
        let mut attr = self.batch(address(keys.as_mut_ptr()), address(values.as_mut_ptr()), count);
        attr.in_batch = from.map_or(0, |from| address(from.as_ptr()));
        attr.out_batch = address(token.as_mut_ptr());
        // SAFETY: there is room for `count` keys and values of this map's sizes, and for the tokens.
        let stopped = unsafe { bpf(LOOKUP_BATCH, &mut attr) }.err();
        progress(&attr, count, stopped)
    }
}

impl MapFd {
    /// Number of entries of a hash. Reads the whole map.
    pub(crate) fn count_all(&self) -> io::Result<usize> {
        let limit = usize::try_from(self.info.max_entries).map_err(io::Error::other)?.max(1);
        let (mut room, mut count) = (limit.min(4096), 0);
        let mut token = vec![0; self.key_bytes()?.max(4)];
        let mut from: Option<Vec<u8>> = None;
        loop {
            let mut keys = vec![0; room * self.key_bytes()?];
            let mut values = vec![0; room * self.value_bytes];
            let Progress { done, stopped } =
                self.lookup_batch(from.as_deref(), &mut token, &mut keys, &mut values)?;
            count += done;
            match stopped {
                None => {}
                Some(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
                // One bucket of the hash holds more entries than the buffers.
                Some(e) if e.raw_os_error() == Some(libc::ENOSPC) && done == 0 && room < limit => {
                    room = limit.min(room * 2);
                    continue;
                }
                Some(e) => return Err(e),
            }
            from = Some(token.clone());
        }
    }
}

/// Progress of a batch. The kernel writes the processed count, except where it refuses the whole call: then
/// `count` is unchanged.
fn progress(attr: &Batch, count: u32, stopped: Option<io::Error>) -> io::Result<Progress> {
    let done = match &stopped {
        Some(e) if attr.count == count && e.raw_os_error() != Some(libc::ENOENT) => 0,
        _ => attr.count.min(count),
    };
    Ok(Progress { done: usize::try_from(done).map_err(io::Error::other)?, stopped })
}

#[cfg(test)]
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Makes a map.
#[cfg(test)]
pub(crate) fn create_map(
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Create { kind, key_size, value_size, max_entries, flags };
    // SAFETY: the command takes numbers only; the answer is a new descriptor.
    unsafe { bpf(0, &mut attr).map(|fd| super::owned(fd)) }
}
