//! Reading log files, without logd or the agent.
//!
//! A container's log is the chain of its rotated files, some of them compressed, and the current
//! file. All of them are opened below the log root without following links, and only if they are
//! regular files.

mod changes;
mod follow;
mod records;

pub use changes::{DirChanges, LogChanges};
pub use follow::Follow;

use crate::{dirs, error::Error, format::Record, rotated::Rotated};
use berth_api::logd::log_name;
use berth_core::{
    ids::{Attempt, ContainerName, Namespace, PodKey, PodName, PodUid},
    roots::Roots,
    time::Wall,
};
use records::RecordReader;
use rustix::fd::OwnedFd;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The oldest record that is left.
    Start,
    /// The last so many lines. The parts of a line count as one line, and so does text after the
    /// last newline.
    Tail(u64),
    /// The first record of this time or later.
    Since(Wall),
    /// The next record that is written.
    End,
}

/// The log files of one attempt of one container.
#[derive(Debug)]
pub struct LogSet {
    dir: OwnedFd,
    path: PathBuf,
    attempt: Attempt,
}

fn missing_is_none<T: Default>(path: &std::path::Path, result: io::Result<T>) -> Result<T, Error> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(source) => Err(Error::LogFile { path: path.to_owned(), source }),
        Ok(value) => Ok(value),
    }
}

/// The pods that have a log directory, sorted. Directories with other names are left out.
pub fn pods(roots: &Roots) -> Result<Vec<(PodKey, PodUid)>, Error> {
    let names = dirs::open_root(&roots.pod_logs).and_then(dirs::names);
    let mut pods: Vec<_> =
        missing_is_none(&roots.pod_logs, names)?.iter().filter_map(|name| parse_pod_dir(name)).collect();
    pods.sort();
    Ok(pods)
}

fn parse_pod_dir(name: &str) -> Option<(PodKey, PodUid)> {
    let mut parts = name.splitn(3, '_');
    let namespace = Namespace::new(parts.next()?).ok()?;
    let name = PodName::new(parts.next()?).ok()?;
    Some((PodKey { namespace, name }, PodUid::new(parts.next()?).ok()?))
}

/// The containers of a pod that have a log directory, sorted.
pub fn containers(roots: &Roots, key: &PodKey, uid: &PodUid) -> Result<Vec<ContainerName>, Error> {
    let names = dirs::open_root(&roots.pod_logs)
        .and_then(|root| dirs::open_dir(root, &[&Roots::pod_log_dir_name(key, uid)]))
        .and_then(dirs::names);
    let names = missing_is_none(&roots.pod_log_dir(key, uid), names)?;
    let mut containers: Vec<_> = names.into_iter().filter_map(|name| ContainerName::new(name).ok()).collect();
    containers.sort();
    Ok(containers)
}

/// The attempts of a container that have a current log file, oldest first.
pub fn attempts(
    roots: &Roots,
    key: &PodKey,
    uid: &PodUid,
    container: &ContainerName,
) -> Result<Vec<Attempt>, Error> {
    let names = dirs::open_root(&roots.pod_logs)
        .and_then(|root| dirs::open_dir(root, &[&Roots::pod_log_dir_name(key, uid), container.as_str()]))
        .and_then(dirs::names);
    let names = missing_is_none(&roots.pod_log_dir(key, uid).join(container.as_str()), names)?;
    let attempt = |name: &String| name.strip_suffix(".log")?.parse().ok().map(Attempt);
    let mut attempts: Vec<_> = names.iter().filter_map(attempt).collect();
    attempts.sort();
    Ok(attempts)
}

impl LogSet {
    /// Opens the container's log directory. An error of the kind `NotFound` means that the
    /// container never had output here.
    pub fn open(
        roots: &Roots,
        key: &PodKey,
        uid: &PodUid,
        container: &ContainerName,
        attempt: Attempt,
    ) -> Result<LogSet, Error> {
        let path = roots.pod_log_dir(key, uid).join(container.as_str());
        let dir = dirs::open_root(&roots.pod_logs)
            .and_then(|root| dirs::open_dir(root, &[&Roots::pod_log_dir_name(key, uid), container.as_str()]))
            .map_err(|source| Error::LogFile { path: path.clone(), source })?;
        Ok(LogSet { dir, path, attempt })
    }

    /// Emits all records from there on, oldest first. Torn and foreign lines are left out. So is
    /// the rest of a compressed file after the place where it is damaged, because one damaged file
    /// must not hide the files after it.
    pub fn read(&self, from: ReadFrom, emit: &mut dyn FnMut(Record<'_>)) -> Result<(), Error> {
        for mut reader in self.from(from)? {
            while self.with_path(reader.read_chunk(emit))? {}
        }
        Ok(())
    }

    /// Follows the log from there on.
    pub fn follow(self, from: ReadFrom) -> Result<Follow, Error> {
        Follow::start(self, from)
    }

    /// Follows the log from there on, for a caller that waits for changes by [`LogChanges`].
    pub fn follow_by(self, from: ReadFrom) -> Result<Follow, Error> {
        Follow::with(self, from, None)
    }

    fn with_path<T>(&self, result: io::Result<T>) -> Result<T, Error> {
        result.map_err(|source| Error::LogFile { path: self.path.join(log_name(self.attempt)), source })
    }

    /// The files to read from there on, the current one last.
    fn from(&self, from: ReadFrom) -> Result<Vec<RecordReader>, Error> {
        let mut files = self.with_path(self.open_all())?;
        match from {
            ReadFrom::Start => {}
            ReadFrom::Since(time) => {
                for file in &mut files {
                    file.skip_until(time);
                }
            }
            ReadFrom::End | ReadFrom::Tail(0) => {
                if let Some(mut last) = files.pop() {
                    self.with_path(last.seek_to_end())?;
                    files = vec![last];
                }
            }
            ReadFrom::Tail(wanted) => self.with_path(tail(&mut files, wanted))?,
        }
        Ok(files)
    }

    /// Opens all files, oldest first. The current file is opened first, so that a rotation
    /// meanwhile shows as one file under two names and not as a gap.
    fn open_all(&self) -> io::Result<Vec<RecordReader>> {
        let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let current = match dirs::open_read(&self.dir, &log_name(self.attempt)) {
            Ok(file) => Some(RecordReader::plain(file)?),
            Err(e) if absent(&e) => None,
            Err(e) => return Err(e),
        };
        let mut rotated: Vec<Rotated> =
            dirs::names(&self.dir)?.iter().filter_map(|n| Rotated::parse(self.attempt, n)).collect();
        rotated.sort();
        // During compression a file exists both plain and compressed.
        rotated.dedup_by(|later, kept| later.stamp == kept.stamp && later.serial == kept.serial);
        let mut files = Vec::new();
        for name in rotated {
            let opened = match dirs::open_read(&self.dir, &name.name(self.attempt)) {
                Ok(file) if name.gz => RecordReader::gz(file),
                Ok(file) => RecordReader::plain(file),
                Err(e) if absent(&e) => {
                    let gz = Rotated { gz: true, ..name };
                    dirs::open_read(&self.dir, &gz.name(self.attempt)).and_then(RecordReader::gz)
                }
                Err(e) => Err(e),
            };
            match opened {
                Ok(reader) if current.as_ref().is_some_and(|c| c.same_file(&reader)) => {}
                Ok(reader) => files.push(reader),
                // The limit of files removed it.
                Err(e) if absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        files.extend(current);
        Ok(files)
    }
}

/// Skips all but the last so many lines.
fn tail(files: &mut Vec<RecordReader>, wanted: u64) -> io::Result<()> {
    let mut found: u64 = 0;
    // Streams whose last record was seen. It is in the newest file that has records of the stream.
    let mut ended = BTreeSet::new();
    for index in (0..files.len()).rev() {
        let Some(file) = files.get_mut(index) else { break };
        let mut lines: u64 = 0;
        let mut unfinished = BTreeMap::new();
        while file.read_chunk(&mut |r| {
            lines = lines.saturating_add(u64::from(!r.partial));
            unfinished.insert(r.stream, r.partial);
        })? {}
        for (stream, unfinished) in unfinished {
            if ended.insert(stream) && unfinished {
                lines = lines.saturating_add(1);
            }
        }
        file.rewind()?;
        found = found.saturating_add(lines);
        if found >= wanted {
            file.skip_lines(found.saturating_sub(wanted));
            files.drain(..index);
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;
    use std::path::PathBuf;

    /// The logs of one container, in a directory that ends with the value.
    struct Logs {
        _dir: tempfile::TempDir,
        roots: Roots,
        path: PathBuf,
    }

    impl Logs {
        fn new() -> Logs {
            let dir = tempfile::tempdir().unwrap();
            let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "t");
            let (key, uid) = Logs::pod();
            let path = roots.pod_log_dir(&key, &uid).join("c");
            std::fs::create_dir_all(&path).unwrap();
            Logs { _dir: dir, roots, path }
        }

        fn pod() -> (PodKey, PodUid) {
            let key = PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new("p").unwrap() };
            (key, PodUid::new("u").unwrap())
        }

        fn open(&self) -> LogSet {
            let (key, uid) = Logs::pod();
            LogSet::open(&self.roots, &key, &uid, &ContainerName::new("c").unwrap(), Attempt(0)).unwrap()
        }
    }

    #[test]
    fn text_after_the_last_newline_is_a_line_of_the_tail() {
        let logs = Logs::new();
        let path = &logs.path;
        let tail = |records: &str, lines: u64| {
            let record = |line: &str| format!("2026-01-02T03:04:05.000000006Z {line}\n");
            std::fs::write(path.join("0.log"), records.lines().map(record).collect::<String>()).unwrap();
            let set = logs.open();
            let mut texts = Vec::new();
            set.read(ReadFrom::Tail(lines), &mut |r| texts.push(String::from_utf8(r.text.to_vec()).unwrap()))
                .unwrap();
            texts.join(",")
        };
        let unfinished = "stdout F one\nstdout F two\nstdout P three";
        assert_eq!(tail(unfinished, 0), "");
        assert_eq!(tail(unfinished, 1), "three");
        assert_eq!(tail(unfinished, 2), "two,three");
        assert_eq!(tail(unfinished, 9), "one,two,three");
        let long = "stdout F one\nstdout P thr\nstdout F ee";
        assert_eq!(tail(long, 1), "thr,ee");
        let both = "stdout F one\nstdout P two\nstderr P three";
        assert_eq!(tail(both, 2), "two,three");
    }

    #[test]
    fn a_log_is_read_over_a_rotation_without_waiting() {
        let logs = Logs::new();
        let path = &logs.path;
        let current = path.join("0.log");
        let record = |text: &str| format!("2026-01-02T03:04:05.000000006Z stdout F {text}\n");
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&current).unwrap();
            std::io::Write::write_all(&mut file, record(text).as_bytes()).unwrap();
        };
        append("one");
        let set = logs.open();
        let mut follow = set.follow(ReadFrom::Start).unwrap();
        let mut read = || {
            let mut texts = Vec::new();
            while follow.read(&mut |r| texts.push(String::from_utf8(r.text.to_vec()).unwrap())).unwrap() {}
            texts.join(",")
        };
        assert_eq!((read(), read()), ("one".into(), String::new()));
        append("two");
        std::fs::rename(&current, path.join("0.log.20260102-030405")).unwrap();
        append("three");
        assert_eq!((read(), read()), ("two,three".into(), String::new()));
        append("four");
        assert_eq!(read(), "four");
    }

    #[tokio::test]
    async fn many_readers_wait_by_one_instance() {
        let instances = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("anon_inode:inotify")))
                .count()
        };
        let (one, other) = (Logs::new(), Logs::new());
        let changes = LogChanges::start().unwrap();
        let before = instances();
        let mut readers: Vec<_> = (0..300)
            .map(|n| {
                let follow = if n % 2 == 0 { one.open() } else { other.open() }.follow_by(ReadFrom::Start);
                let follow = follow.unwrap();
                (changes.of(&follow).unwrap(), follow)
            })
            .collect();
        assert!(instances() <= before, "the readers have instances of their own");
        let soon = std::time::Duration::from_secs(20);
        let record = "2026-01-02T03:04:05.000000006Z stdout F text\n";
        std::fs::write(one.path.join("0.log"), record).unwrap();
        for (n, (changes, follow)) in readers.iter_mut().enumerate() {
            if n % 2 == 0 {
                tokio::time::timeout(soon, changes.changed()).await.expect("a change was missed");
                changes.forget();
                let mut read = 0;
                while follow.read(&mut |_| read += 1).unwrap() {}
                assert_eq!(read, 1);
            }
            let again = tokio::time::timeout(std::time::Duration::from_millis(1), changes.changed());
            assert!(n > 4 || again.await.is_err(), "another directory has changed");
        }
        // A reader that goes takes nothing from the others; the last one takes the watch away.
        readers.truncate(1);
        std::fs::write(one.path.join("0.log.x"), "").unwrap();
        tokio::time::timeout(soon, readers[0].0.changed()).await.unwrap();
        readers.clear();
        let follow = one.open().follow_by(ReadFrom::Start).unwrap();
        let mut changes = changes.of(&follow).unwrap();
        std::fs::write(one.path.join("0.log"), record).unwrap();
        tokio::time::timeout(soon, changes.changed()).await.unwrap();
    }
}
