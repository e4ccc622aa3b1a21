//! The journal as a file: the shell around [`State`].

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

/// Why an address could not be given or taken back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory could not be made.
    #[error("create address directory {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the directory could not be opened, read, written or replaced.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock for too long.
    #[error("address directory {} is locked by another process for more than {waited:?}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No address is left.
    #[error("allocate an address for {key}")]
    Exhausted {
        /// For whom.
        key: Key,
        /// Of which set.
        #[source]
        source: Exhausted,
    },
    /// A write failed half way and could not be undone; the next [`Store::open`] repairs it.
    #[error("address journal {} ends in a half-written record", path.display())]
    Broken {
        /// The journal.
        path: PathBuf,
    },
}

/// What was wrong with the journal that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// Its last record was cut off, as by a process killed in writing: the record's operation never returned.
    Torn {
        /// Where the cut-off bytes are kept.
        kept: PathBuf,
    },
    /// Records within it were damaged or contradict each other.
    Corrupt {
        /// Where the whole file is kept.
        kept: PathBuf,
        /// How many records were left out.
        records: usize,
    },
}

/// How to open a [`Store`].
#[derive(Debug, Clone)]
pub struct Options {
    /// This boot's id.
    pub boot: String,
    /// How long an address rests after it was given back.
    pub quarantine: Duration,
    /// How long to wait for another process's lock.
    pub lock_wait: Duration,
}

impl Options {
    /// 60 s of quarantine, 10 s of patience for the lock.
    pub fn new(boot: impl Into<String>) -> Options {
        Options { boot: boot.into(), quarantine: Duration::from_secs(60), lock_wait: Duration::from_secs(10) }
    }
}

/// One network's allocations, locked for as long as this value lives.
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
    // Last, so that the file is closed before others are let in.
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
    // The clock exists on every kernel that runs this; 0 would only prolong a quarantine.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec() / 1_000_000).unwrap_or(0)
    })
}

impl Store {
    /// Makes the directory where needed, waits for the lock, and reads the journal. `survivors` is asked, only where
    /// the journal is damaged other than at its end, which allocations can still be seen in the kernel: those join
    /// what could be read.
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
                    // An address that is another key's by the journal stays with that key.
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

    /// What was wrong with the journal when it was opened.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// The allocations.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Gives the key one address of each set; those it has already, if any. `now` is [`now`].
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

    /// Takes the key's addresses back, into quarantine. Returns them; none where it had none. `now` is [`now`].
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
        // The first test is cheap and the second exact: what rests counts too, but is not worth counting each time.
        if self.records > 256 + 2 * self.state.allocations().count()
            && self.records > 256 + 2 * self.state.to_records(now, self.options.quarantine).len()
        {
            // The record is written already: a journal that could not be shortened is merely long.
            drop(self.rewrite(now));
        }
        Ok(())
    }

    /// Replaces the journal by the shortest one that says the same: written beside it, then renamed over it.
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
                // flock(2) has no deadline of its own, and the holder needs microseconds.
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

/// What the bytes of a journal say.
struct Reading {
    state: State,
    boot: Option<String>,
    /// Whole records, the header aside.
    records: usize,
    /// Lines that are no records, or that contradict the ones before.
    damaged: usize,
    /// How many bytes there are up to and with the last line feed.
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
