//! A value made of files, made anew when one of them changes.
//!
//! The files are looked at when the value is used, so nothing watches and nothing polls. While the new content cannot be
//! used, the last good value counts, and the reason is logged once.

use crate::Error;
use berth_core::sync::lock;
use std::{fmt, fs, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Mutex};

/// What shows that a file was changed: device, inode, size, modification and change times. `None`: not there.
type Stamp = Option<[i64; 7]>;

type Make<T> = fn(&[Vec<u8>]) -> Result<T, String>;

pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    state: Mutex<(Vec<Stamp>, T)>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<T: Clone> Watched<T> {
    /// Reads the files and makes the value of their contents.
    pub(super) fn open(paths: Vec<PathBuf>, make: Make<T>) -> Result<Watched<T>, Error> {
        let stamps = stamps(&paths);
        let value = read(&paths, make)?;
        Ok(Watched { paths, make, state: Mutex::new((stamps, value)) })
    }

    /// The value.
    pub(super) fn get(&self) -> T {
        let now = stamps(&self.paths);
        let mut state = lock(&self.state);
        if state.0 != now {
            state.0 = now;
            match read(&self.paths, self.make) {
                Ok(value) => state.1 = value,
                Err(error) => tracing::warn!("{}; the last one counts", berth_core::error::Chain(&error)),
            }
        }
        state.1.clone()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Some([
            number(m.dev()),
            number(m.ino()),
            number(m.size()),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
        ])
    };
    paths.iter().map(stamp).collect()
}

fn read<T>(paths: &[PathBuf], make: Make<T>) -> Result<T, Error> {
    let mut texts = Vec::with_capacity(paths.len());
    for path in paths {
        texts.push(fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?);
    }
    make(&texts).map_err(|reason| Error::Use { path: paths.first().cloned().unwrap_or_default(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_counts_at_once_and_a_bad_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let replace = |text: &str| {
            fs::write(dir.path().join("new"), text).unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        };
        let make: Make<u32> =
            |texts| String::from_utf8_lossy(&texts[0]).parse().map_err(|_bad| "is no number".into());
        replace("x");
        let error = Watched::open(vec![path.clone()], make).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot use {}: is no number", path.display()));
        replace("1");
        let file = Watched::open(vec![path.clone()], make).unwrap();
        assert_eq!(file.get(), 1);
        replace("22");
        assert_eq!(file.get(), 22);
        replace("bad");
        assert_eq!(file.get(), 22);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.get(), 22);
        replace("3");
        assert_eq!(file.get(), 3);
    }
}
