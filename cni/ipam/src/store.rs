//! The journal file: the shell around [`State`].

use crate::{Exhausted, Key, Planned, RangeSet, Record, State};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    time::{ClockId, clock_gettime},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A failed allocation or release.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Creating the directory.
    #[error("cannot create address directory {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Opening, reading, writing or replacing a file of the directory.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Another process held the lock longer than the deadline.
    #[error("cannot lock {} within {waited:?}: another process holds the lock", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The deadline.
        waited: Duration,
    },
    /// No address is left.
    #[error("cannot allocate an address for {key}")]
    Exhausted {
        /// The key.
        key: Key,
        /// The exhausted set.
        #[source]
        source: Exhausted,
    },
    /// A write failed half way and could not be undone. The next [`Store::open`] repairs the
    /// journal.
    #[error("cannot append to address journal {}: it ends in a half-written record", path.display())]
    Broken {
        /// The journal.
        path: PathBuf,
    },
}

/// Damage that was found in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The last record was cut off, as by a process killed while writing: its operation never
    /// returned.
    Torn {
        /// The file with the cut-off bytes.
        kept: PathBuf,
    },
    /// Other records were damaged or contradicted each other.
    Corrupt {
        /// The copy of the whole file.
        kept: PathBuf,
        /// Number of invalid records.
        records: usize,
    },
}

/// Options of [`Store::open`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The current boot's id.
    pub boot: String,
    /// How long a released address is in quarantine.
    pub quarantine: Duration,
    /// How long to wait for another process's lock.
    pub lock_wait: Duration,
}

impl Options {
    /// 60 s of quarantine, 10 s of waiting for the lock.
    pub fn new(boot: impl Into<String>) -> Options {
        Options { boot: boot.into(), quarantine: Duration::from_secs(60), lock_wait: Duration::from_secs(10) }
    }
}

/// The allocations of one network, locked as long as this value lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    length: u64,
    records: usize,
    state: State,
    options: Options,
    damage: Option<Damage>,
    broken: bool,
    // The lock is the last field, so that the file is closed before other processes get the lock.
    _lock: Flock<File>,
}

/// The boot id of the running kernel.
pub fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).map_err(file_error("read boot id", Path::new(path)))?;
    Ok(text.trim().to_owned())
}

/// Milliseconds on `CLOCK_BOOTTIME`.
pub fn now() -> u64 {
    // The clock exists on every supported kernel; 0 would only prolong a quarantine.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec() / 1_000_000).unwrap_or(0)
    })
}

impl Store {
    /// Creates the directory if needed, waits for the lock, and reads the journal. If the journal
    /// is damaged other than at its end, `survivors` is called for the allocations that the kernel
    /// still has; they are added to the valid records.
    pub fn open(
        dir: &Path,
        options: Options,
        survivors: impl FnOnce() -> Vec<(Key, Vec<IpAddr>)>,
    ) -> Result<Store, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| Error::CreateDirectory { path: dir.to_owned(), source })?;
        let lock = lock(&dir.join("lock"), options.lock_wait)?;
        let path = dir.join("journal");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::File { operation: "read", path, source }),
        };
        let mut read = Reading::of(&bytes);
        let same_boot = read.boot.as_deref().is_none_or(|boot| boot == options.boot);
        if !same_boot {
            let mut fresh = State::default();
            for cursor in read.state.cursors() {
                fresh.apply(&cursor);
            }
            read.state = fresh;
        }
        let mut damage = None;
        if same_boot && read.damaged > 0 {
            let kept = dir.join("journal.corrupt");
            fs::write(&kept, &bytes).map_err(file_error("set aside damaged journal as", &kept))?;
            for (key, addresses) in survivors() {
                if read.state.get(&key).is_none() {
                    // An address that belongs to another key in the journal stays with that key.
                    read.state.apply(&Record::Allocate { key, addresses });
                }
            }
            damage = Some(Damage::Corrupt { kept, records: read.damaged });
        } else if same_boot && let Some(torn) = bytes.get(read.whole..).filter(|t| !t.is_empty()) {
            let kept = dir.join("journal.torn");
            fs::write(&kept, torn).map_err(file_error("set aside torn record as", &kept))?;
            damage = Some(Damage::Torn { kept });
        }
        let rewrite = !same_boot || read.boot.is_none() || read.damaged > 0;
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut store = Store {
            file: file.map_err(file_error("open", &path))?,
            path,
            length: read.whole as u64,
            records: read.records,
            state: read.state,
            options,
            damage,
            broken: false,
            _lock: lock,
        };
        if rewrite {
            store.rewrite(now())?;
        } else if read.whole < bytes.len() {
            store.file.set_len(store.length).map_err(file_error("cut torn record off", &store.path))?;
        }
        Ok(store)
    }

    /// Damage that was found when the journal was opened.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// The allocations.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Allocates one address of each set to the key, or returns those that the key already has.
    /// `now` is [`now`].
    pub fn allocate(&mut self, sets: &[RangeSet], key: &Key, now: u64) -> Result<Vec<IpAddr>, Error> {
        let planned = self.state.plan(sets, key, now, self.options.quarantine);
        match planned.map_err(|source| Error::Exhausted { key: key.clone(), source })? {
            Planned::Existing(addresses) => Ok(addresses),
            Planned::New(record) => {
                self.write(&record, now)?;
                Ok(self.state.get(key).unwrap_or_default().to_vec())
            }
        }
    }

    /// Releases the key's addresses into quarantine and returns them; empty if it had none. `now`
    /// is [`now`].
    pub fn release(&mut self, key: &Key, now: u64) -> Result<Vec<IpAddr>, Error> {
        let Some(addresses) = self.state.get(key).map(<[_]>::to_vec) else { return Ok(Vec::new()) };
        self.write(&Record::Release { key: key.clone(), at: now }, now)?;
        Ok(addresses)
    }

    fn write(&mut self, record: &Record, now: u64) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken { path: self.path.clone() });
        }
        let line = record.to_line();
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // A full disk may have taken half of the line: the next record must not follow it.
            self.broken = self.file.set_len(self.length).is_err();
            return Err(Error::File { operation: "append to", path: self.path.clone(), source });
        }
        self.length += line.len() as u64;
        self.records += 1;
        self.state.apply(record);
        // The first test is cheap, the second exact: quarantined addresses count too, but counting
        // them each time is not worth it.
        if self.records > 256 + 2 * self.state.allocations().count()
            && self.records > 256 + 2 * self.state.to_records(now, self.options.quarantine).len()
        {
            // The record is already written: a journal that could not be shortened is only longer.
            drop(self.rewrite(now));
        }
        Ok(())
    }

    /// Replaces the journal by the shortest one with the same state: written beside it, then
    /// renamed over it.
    fn rewrite(&mut self, now: u64) -> Result<(), Error> {
        let new = self.path.with_extension("new");
        let header = Record::Header { boot: self.options.boot.clone() };
        let records = self.state.to_records(now, self.options.quarantine);
        let text: String = std::iter::once(&header).chain(&records).map(Record::to_line).collect();
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let mut file = file.map_err(file_error("create", &new))?;
        file.write_all(text.as_bytes()).map_err(file_error("write", &new))?;
        let file = OpenOptions::new().read(true).append(true).open(&new).map_err(file_error("open", &new))?;
        fs::rename(&new, &self.path).map_err(file_error("replace journal by", &new))?;
        self.file = file;
        self.length = text.len() as u64;
        self.records = records.len();
        Ok(())
    }
}

fn lock(path: &Path, patience: Duration) -> Result<Flock<File>, Error> {
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = open.map_err(file_error("open lock", path))?;
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                if start.elapsed() >= patience {
                    return Err(Error::Locked { path: path.to_owned(), waited: patience });
                }
                file = back;
                // flock(2) has no deadline, and the holder needs microseconds.
                std::thread::sleep(Duration::from_micros(300));
            }
            Err((_, errno)) => return Err(file_error("lock", path)(errno.into())),
        }
    }
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

/// Content of a journal.
struct Reading {
    state: State,
    boot: Option<String>,
    /// Number of complete records, without the header.
    records: usize,
    /// Number of lines that are no records or contradict earlier ones.
    damaged: usize,
    /// Length in bytes up to and including the last line feed.
    whole: usize,
}

impl Reading {
    fn of(bytes: &[u8]) -> Reading {
        let mut read = Reading { state: State::default(), boot: None, records: 0, damaged: 0, whole: 0 };
        for (number, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            let Some(line) = line.strip_suffix(b"\n") else { break };
            read.whole += line.len() + 1;
            match Record::parse(line) {
                Some(Record::Header { boot }) if number == 0 => read.boot = Some(boot),
                Some(Record::Header { .. }) | None => read.damaged += 1,
                Some(record) => {
                    read.records += 1;
                    read.damaged += usize::from(!read.state.apply(&record));
                }
            }
        }
        read
    }
}
