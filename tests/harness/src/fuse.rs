//! A file system of a test's own, by FUSE: it answers as the test says, wrongly if wanted, or not at all. So it stands for a
//! hostile server and for one that is away.
//!
//! Owns a mount and a thread, which end with the value, also while nothing is answered.

mod wire;

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The node of the root.
pub const ROOT: u64 = 1;

/// What a file system answers.
pub trait Answers: Send + 'static {
    /// The attributes of a node.
    fn attributes(&mut self, node: u64) -> Attributes;
    /// The node of a name, if there is one.
    fn lookup(&mut self, dir: u64, name: &[u8]) -> Option<u64>;
    /// The entries of a directory from that one on.
    fn entries(&mut self, dir: u64, from: u64) -> Vec<Entry>;
    /// The target of a link.
    fn link(&mut self, _node: u64) -> Vec<u8> {
        Vec::new()
    }
    /// The content of a file from that byte on.
    fn read(&mut self, _node: u64, _from: u64, _size: u32) -> Vec<u8> {
        Vec::new()
    }
    /// Removes an entry. Returns whether there was one.
    fn remove(&mut self, _dir: u64, _name: &[u8]) -> bool {
        false
    }
}

/// What is said of a node.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Kind and permissions as of stat(2).
    pub mode: u32,
    /// Length of the content in bytes.
    pub size: u64,
    /// Number of names that the node has.
    pub links: u32,
    /// The inode's number.
    pub inode: u64,
}

/// An entry of a directory as a listing has it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Any bytes.
    pub name: Vec<u8>,
    /// The kind that the listing tells, as of `d_type`.
    pub kind: u8,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Fuse {
    at: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    done: AtomicBool,
    silent: AtomicBool,
    answered: AtomicU64,
}

impl Fuse {
    /// Mounts a file system at a directory.
    ///
    /// # Errors
    /// The kernel has no FUSE, or refuses.
    pub fn mount(at: &Path, answers: impl Answers) -> Result<Fuse> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
        let device = options.open("/dev/fuse").context("open /dev/fuse")?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("berth-test"), at, Some("fuse"), flags, Some(data.as_str())).context("mount by FUSE")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("fuse".into()).spawn(move || serve(device, answers, &theirs));
        Ok(Fuse { at: at.to_owned(), shared, thread: Some(thread.context("start a thread")?) })
    }

    /// Answers nothing until it is told to again.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Relaxed);
    }

    /// The number of requests that were answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.shared.done.store(true, Relaxed);
        // The test may have unmounted it.
        umount2(&self.at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

/// Answers until the end. The device is closed then, and what still waits fails.
fn serve(mut device: File, mut answers: impl Answers, shared: &Shared) {
    let mut request = vec![0; 1 << 20];
    while !shared.done.load(Relaxed) {
        if shared.silent.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, PollTimeout::from(20u8)), Ok(ready) if ready > 0) {
            continue;
        }
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // Unmounted and used by nobody any more.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => return,
            // The request was taken back meanwhile.
            Err(_) => continue,
        };
        if let Some(reply) = request.get(..length).and_then(|r| wire::answer(r, &mut answers)) {
            // One whose caller is gone is refused.
            device.write_all(&reply).unwrap_or_default();
            shared.answered.fetch_add(1, Relaxed);
        }
    }
}

/// Files that are what they seem to be: one directory with files.
#[derive(Debug, Clone, Default)]
pub struct PlainFiles(pub std::collections::BTreeMap<String, String>);

impl PlainFiles {
    fn at(&self, node: u64) -> Option<&String> {
        self.0.values().nth(usize::try_from(node.checked_sub(ROOT + 1)?).ok()?)
    }
}

impl Answers for PlainFiles {
    fn attributes(&mut self, node: u64) -> Attributes {
        let (mode, size) = match self.at(node) {
            Some(text) => (0o100_644, text.len() as u64),
            None => (0o040_755, 0),
        };
        Attributes { mode, size, links: 1, inode: node }
    }

    fn lookup(&mut self, _dir: u64, name: &[u8]) -> Option<u64> {
        let at = self.0.keys().position(|n| n.as_bytes() == name)?;
        Some(at as u64 + ROOT + 1)
    }

    fn entries(&mut self, _dir: u64, from: u64) -> Vec<Entry> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.0.keys().skip(from).map(|name| Entry { name: name.clone().into_bytes(), kind: 8 }).collect()
    }

    fn read(&mut self, node: u64, from: u64, _size: u32) -> Vec<u8> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.at(node).and_then(|text| text.as_bytes().get(from..)).unwrap_or_default().to_vec()
    }

    fn remove(&mut self, _dir: u64, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.0.remove(name).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_read_and_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let files = PlainFiles([("a".into(), "one".into()), ("b".into(), "two".into())].into());
        let fuse = Fuse::mount(dir.path(), files).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(std::fs::read_to_string(dir.path().join("b")).unwrap(), "two");
        assert!(std::fs::metadata(dir.path().join("c")).is_err());
        fuse.set_silent(true);
        let path = dir.path().join("a");
        let waits = std::thread::spawn(move || std::fs::read_to_string(path));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        fuse.set_silent(false);
        assert_eq!(waits.join().unwrap().unwrap(), "one");
        fuse.set_silent(true);
        drop(fuse);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
