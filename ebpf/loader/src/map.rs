//! Typed handles of pinned maps.

use crate::{
    Error, Plain, Result,
    plain::{bytes, bytes_mut},
    sys::{MapFd, Progress, fdinfo, obj_get},
};
use std::{io, marker::PhantomData, path::Path, thread};

/// Entries that one system call reads or writes.
const BATCH: usize = 4096;
/// Attempts at an allocation. The kernel refills the allocator of maps without preallocation from an
/// interrupt, and a batch can outrun the refill.
const ALLOCATION_ATTEMPTS: u32 = 64;
/// `BPF_ANY`: an update creates a key or replaces its value.
const ANY: u64 = 0;

/// An open map from `K` to `V`. Each call is one or a few system calls; none waits.
#[derive(Debug)]
pub struct Map<K, V> {
    name: &'static str,
    fd: MapFd,
    kinds: PhantomData<fn(K) -> V>,
}

/// Opens a map whose keys and values must have these sizes.
fn open(dir: &Path, name: &'static str, read_only: bool, key: usize, value: usize) -> Result<MapFd> {
    let path = dir.join(name);
    let failed = |source| Error::OpenPin { path: path.clone(), source };
    let fd = MapFd::new(obj_get(&path, read_only).map_err(failed)?, possible_cpus()?).map_err(failed)?;
    for (field, want, found) in
        [("key size", key, fd.info().key_size), ("value size", value, fd.info().value_size)]
    {
        let want = u32::try_from(want).map_err(|e| failed(io::Error::other(e)))?;
        if want != found {
            return Err(Error::MapMismatch { map: name.to_owned(), field, want, found });
        }
    }
    Ok(fd)
}

/// Number of processors that the kernel keeps values for, present or not.
fn possible_cpus() -> Result<usize> {
    let path = Path::new("/sys/devices/system/cpu/possible");
    let failed = |source| Error::File { op: "read", path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens `dir/name`.
    ///
    /// # Errors
    /// The map is missing, or its keys or values have other sizes.
    pub(crate) fn open(dir: &Path, name: &'static str, read_only: bool) -> Result<Self> {
        let fd = open(dir, name, read_only, size_of::<K>(), size_of::<V>())?;
        Ok(Map { name, fd, kinds: PhantomData })
    }

    /// The map's name in [`berth_ebpf_abi::maps`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Maximum number of entries.
    pub fn max_entries(&self) -> u32 {
        self.fd.info().max_entries
    }

    /// Kernel memory of the map in bytes (`memlock` of its fdinfo).
    ///
    /// # Errors
    /// The kernel does not report it.
    pub fn memory(&self) -> Result<u64> {
        fdinfo(self.fd.fd(), "memlock").map_err(self.failed("read the memory of"))
    }

    fn failed(&self, op: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::Map { op, map: self.name.to_owned(), source }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::default();
        let found = self
            .fd
            .lookup(bytes(std::slice::from_ref(key)), bytes_mut(std::slice::from_mut(&mut value)))
            .map(|()| true)
            .or_else(absent)
            .map_err(self.failed("look up in"))?;
        Ok(found.then_some(value))
    }

    /// Sets a key's value. A reader of the entry sees the old or the new value, never a mixture.
    ///
    /// # Errors
    /// The map is full, or there is no memory.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        let key = bytes(std::slice::from_ref(key));
        let value = bytes(std::slice::from_ref(value));
        patiently(|| self.fd.update(key, value, ANY)).map_err(self.failed("write to"))
    }

    /// Removes a key. Returns whether the key existed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete(&self, key: &K) -> Result<bool> {
        let key = bytes(std::slice::from_ref(key));
        self.fd.delete(key).map(|()| true).or_else(absent).map_err(self.failed("delete from"))
    }

    /// Sets the values of many keys in this order, each one atomically.
    ///
    /// # Errors
    /// The map is full, or there is no memory; the entries before the failing one are written.
    pub fn put_all(&self, entries: &[(K, V)]) -> Result<()> {
        for part in entries.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = part.iter().copied().unzip();
            let (mut from, mut attempts) = (0, 0);
            while from < keys.len() {
                let progress = self.fd.update_batch(bytes(&keys[from..]), bytes(&values[from..]));
                let Progress { done, stopped } = progress.map_err(self.failed("write to"))?;
                from += done;
                attempts = if done == 0 { attempts + 1 } else { 0 };
                match stopped {
                    Some(e) if !exhausted(&e) || attempts >= ALLOCATION_ATTEMPTS => {
                        return Err(self.failed("write to")(e));
                    }
                    Some(_) => thread::yield_now(),
                    None if done == 0 => {
                        return Err(self.failed("write to")(io::ErrorKind::WriteZero.into()));
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Removes many keys in this order. Returns how many existed.
    ///
    /// # Errors
    /// The kernel refuses; the keys before the failing one are removed.
    pub fn delete_all(&self, keys: &[K]) -> Result<usize> {
        let (mut from, mut removed) = (0, 0);
        while from < keys.len() {
            let to = keys.len().min(from + BATCH);
            let progress = self.fd.delete_batch(bytes(&keys[from..to]));
            let Progress { done, stopped } = progress.map_err(self.failed("delete from"))?;
            removed += done;
            from += done;
            match stopped {
                // The kernel stops a batch at an absent key.
                Some(e) if e.raw_os_error() == Some(libc::ENOENT) => from += 1,
                Some(e) => return Err(self.failed("delete from")(e)),
                None if done == 0 => return Err(self.failed("delete from")(io::ErrorKind::WriteZero.into())),
                None => {}
            }
        }
        Ok(removed)
    }

    /// Passes all entries to `see` in parts. Entries written in the meantime may be missing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn visit(&self, mut see: impl FnMut(&[K], &[V])) -> Result<()> {
        let failed = self.failed("read");
        let limit = usize::try_from(self.max_entries()).map_err(|e| failed(io::Error::other(e)))?.max(1);
        let mut room = BATCH.min(limit);
        let mut keys = vec![K::default(); room];
        let mut values = vec![V::default(); room];
        let mut from: Option<Vec<u8>> = None;
        let mut token = vec![0; size_of::<K>().max(4)];
        loop {
            let Progress { done, stopped } = self
                .fd
                .lookup_batch(from.as_deref(), &mut token, bytes_mut(&mut keys), bytes_mut(&mut values))
                .map_err(&failed)?;
            see(&keys[..done], &values[..done]);
            match stopped.as_ref().map(io::Error::raw_os_error) {
                None => {}
                Some(Some(libc::ENOENT)) => return Ok(()),
                // One bucket of the hash holds more entries than the buffers.
                Some(Some(libc::ENOSPC)) if done == 0 && room < limit => {
                    room = limit.min(room * 2);
                    keys.resize(room, K::default());
                    values.resize(room, V::default());
                    continue;
                }
                Some(_) => return Err(failed(stopped.unwrap_or_else(|| io::ErrorKind::Other.into()))),
            }
            from = Some(std::mem::replace(&mut token, vec![0; size_of::<K>().max(4)]));
        }
    }

    /// All entries, read as in [`Map::visit`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.visit(|keys, values| all.extend(keys.iter().copied().zip(values.iter().copied())))?;
        Ok(all)
    }

    /// Number of entries. Reads the whole map.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn count(&self) -> Result<usize> {
        let mut count = 0;
        self.visit(|keys, _| count += keys.len())?;
        Ok(count)
    }
}

/// A per-CPU array of counters.
#[derive(Debug)]
pub struct CounterMap {
    name: &'static str,
    fd: MapFd,
}

impl CounterMap {
    pub(crate) fn open(dir: &Path, name: &'static str, read_only: bool) -> Result<Self> {
        Ok(CounterMap { name, fd: open(dir, name, read_only, size_of::<u32>(), size_of::<u64>())? })
    }

    #[cfg(test)]
    pub(crate) fn cpus(&self) -> usize {
        self.fd.value_bytes() / size_of::<u64>()
    }

    /// The counters, each summed over the processors.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sums(&self) -> Result<Vec<u64>> {
        let failed = |source| Error::Map { op: "look up in", map: self.name.to_owned(), source };
        let mut cells = vec![0_u64; self.fd.value_bytes() / size_of::<u64>()];
        (0..self.fd.info().max_entries)
            .map(|index| {
                self.fd.lookup(bytes(&[index]), bytes_mut(&mut cells)).map_err(failed)?;
                Ok(cells.iter().sum())
            })
            .collect()
    }
}

fn absent(e: io::Error) -> io::Result<bool> {
    if e.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(e) }
}

fn exhausted(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EBUSY))
}

fn patiently(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..ALLOCATION_ATTEMPTS {
        match attempt() {
            Err(e) if exhausted(&e) => thread::yield_now(),
            done => return done,
        }
    }
    attempt()
}
