//! The directory of a volume whose files change all at once, like the kubelet's atomic writer.
//!
//! ```text
//! ..2026_01_02_03_04_05.1/key     one version
//! ..data -> ..2026_01_02_03_04_05.1
//! key -> ..data/key
//! ```
//!
//! A new version is written beside the old one and becomes visible by one rename of `..data`. Leftovers of a crash (an
//! unused version, `..data_tmp`) are removed by the next write. All paths start at the descriptor of the volume's root,
//! and no link is followed but `..data`, whose target must be a version in the same directory.

use crate::{
    Error, os,
    payload::{PayloadFile, VolumeFiles},
};
use berth_sys::{failpoint::step, fs::reopen_regular};
use rustix::{
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

const DATA: &CStr = c"..data";
const DATA_TMP: &CStr = c"..data_tmp";
/// Mode of the directories of a version.
const VERSION_DIR: u32 = 0o755;
/// Mode bits added with `fsGroup`.
const GROUP_FILE: u32 = 0o440;
const GROUP_DIR: u32 = 0o2550;

/// Writes the files of a volume as one version. Returns whether anything changed. `gid` as for [`write`].
pub(crate) fn write_files(dir: &Path, files: &VolumeFiles, gid: Option<u32>) -> Result<bool, Error> {
    write(dir, files, gid).map_err(Error::io("write the files of", dir))
}

/// Makes `payload` the content of the directory. Returns whether anything was written. `gid` is the group that may read
/// the files.
pub(crate) fn write(dir: &Path, payload: &VolumeFiles, gid: Option<u32>) -> io::Result<bool> {
    let root = os::open_dir(dir)?;
    let root = root.as_fd();
    let mut current = current_version(root)?;
    let changed = match &current {
        Some(name) => !holds(root, name, payload)?,
        None => true,
    };
    if changed {
        let name = new_version(root)?;
        let filled = step("fill-version", || {
            os::open_dir_at(root, name.as_c_str()).and_then(|dir| fill(dir, payload, gid))
        });
        if let Err(e) = filled.and_then(|()| publish(root, dir, &name)) {
            // If this fails too, the next write removes the version.
            drop(os::remove_entry(root, dir, &name));
            return Err(e);
        }
        current = Some(name);
    }
    let shown: BTreeSet<&[u8]> =
        payload.keys().filter_map(|p| p.components().next()).map(|c| c.as_os_str().as_bytes()).collect();
    for name in &shown {
        show(root, dir, name)?;
    }
    tidy(root, dir, &shown, current.as_deref())?;
    Ok(changed)
}

/// Whether the directory has a published version.
pub(crate) fn is_set_up(dir: &Path) -> bool {
    os::open_dir(dir).and_then(|root| current_version(root.as_fd())).is_ok_and(|v| v.is_some())
}

/// The version to which `..data` links, if that is a version of this directory.
fn current_version(root: BorrowedFd<'_>) -> io::Result<Option<CString>> {
    match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(target) if is_version(target.to_bytes()) => Ok(Some(target)),
        Ok(_) | Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_version(name: &[u8]) -> bool {
    name.len() > 2
        && name.starts_with(b"..")
        && !name.contains(&b'/')
        && name != DATA.to_bytes()
        && name != DATA_TMP.to_bytes()
}

fn new_version(root: BorrowedFd<'_>) -> io::Result<CString> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    for n in 0..1000u32 {
        let name = CString::new(format!("{stamp}.{}{n}", now.subsec_nanosecond().unsigned_abs()))?;
        match step("make-version", || rustix::fs::mkdirat(root, &name, Mode::from_raw_mode(0o700))) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::EXIST.into())
}

fn fill(version: OwnedFd, payload: &VolumeFiles, gid: Option<u32>) -> io::Result<()> {
    let dir_mode = VERSION_DIR | gid.map_or(0, |_| GROUP_DIR);
    let seal = |fd: &OwnedFd| os::set_group(fd, gid).and_then(|()| os::set_mode(fd, dir_mode));
    seal(&version)?;
    for (path, file) in payload {
        let mut dir = version.try_clone()?;
        let mut names = path.components().map(|c| c.as_os_str()).peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                write_file(&dir, name, file, gid)?;
                break;
            }
            let made = rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700));
            dir = os::open_dir_at(&dir, name)?;
            match made {
                Ok(()) => seal(&dir)?,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn write_file(dir: &OwnedFd, name: &OsStr, file: &PayloadFile, gid: Option<u32>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut out = File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    out.write_all(&file.bytes)?;
    os::set_owner(&out, file.owner, gid)?;
    os::set_mode(&out, file.mode | gid.map_or(0, |_| GROUP_FILE))
}

fn publish(root: BorrowedFd<'_>, dir: &Path, version: &CStr) -> io::Result<()> {
    os::remove_entry(root, dir, DATA_TMP)?;
    rustix::fs::symlinkat(version, root, DATA_TMP)?;
    match step("publish-version", || rustix::fs::renameat(root, DATA_TMP, root, DATA)) {
        // The pod has put a directory in its place.
        Err(Errno::ISDIR | Errno::NOTEMPTY) => {
            os::remove_entry(root, dir, DATA)?;
            Ok(rustix::fs::renameat(root, DATA_TMP, root, DATA)?)
        }
        other => Ok(other?),
    }
}

fn link_target(name: &[u8]) -> Vec<u8> {
    [DATA.to_bytes(), b"/", name].concat()
}

/// Makes `name` a link into the current version. A directory of that name is a mount point for another volume and stays.
fn show(root: BorrowedFd<'_>, dir: &Path, name: &[u8]) -> io::Result<()> {
    let wanted = link_target(name);
    let name = OsStr::from_bytes(name);
    match rustix::fs::readlinkat(root, name, Vec::new()) {
        Ok(found) if found.to_bytes() == wanted => return Ok(()),
        Ok(_) => os::remove_entry(root, dir, &CString::new(name.as_bytes())?)?,
        Err(Errno::INVAL) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(step("show-file", || rustix::fs::symlinkat(OsStr::from_bytes(&wanted), root, name))?)
}

/// Removes links to keys that are gone, old versions and leftovers of a crash.
fn tidy(root: BorrowedFd<'_>, dir: &Path, shown: &BTreeSet<&[u8]>, current: Option<&CStr>) -> io::Result<()> {
    for name in os::entries(root)? {
        let bytes = name.to_bytes();
        let gone = if bytes == DATA.to_bytes() || Some(name.as_c_str()) == current {
            false
        } else if bytes == DATA_TMP.to_bytes() || is_version(bytes) {
            true
        } else if shown.contains(bytes) {
            false
        } else {
            matches!(rustix::fs::readlinkat(root, &name, Vec::new()), Ok(t) if t.to_bytes() == link_target(bytes))
        };
        if gone {
            step("tidy-version", || os::remove_entry(root, dir, &name))?;
        }
    }
    Ok(())
}

/// Whether the version has exactly these files with these contents.
fn holds(root: BorrowedFd<'_>, version: &CStr, payload: &VolumeFiles) -> io::Result<bool> {
    let dir = match os::open_dir_at(root, version) {
        Ok(dir) => dir,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    let mut left: BTreeMap<&Path, &PayloadFile> = payload.iter().map(|(p, f)| (p.as_path(), f)).collect();
    Ok(same(&dir, Path::new(""), &mut left)? && left.is_empty())
}

fn same(dir: &OwnedFd, at: &Path, left: &mut BTreeMap<&Path, &PayloadFile>) -> io::Result<bool> {
    for name in os::entries(dir)? {
        let path: PathBuf = at.join(OsStr::from_bytes(name.to_bytes()));
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let matches = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = left.keys().any(|p| p.starts_with(&path));
                below && same(&os::open_dir_at(dir, &name)?, &path, left)?
            }
            FileType::RegularFile => match left.remove(path.as_path()) {
                Some(file) => {
                    u64::try_from(stat.st_size).ok() == u64::try_from(file.bytes.len()).ok()
                        && read_file(dir, &name, file.bytes.len())? == file.bytes
                }
                None => false,
            },
            _ => false,
        };
        if !matches {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The content of a file that should have that length; a byte more tells that it is longer.
fn read_file(dir: &OwnedFd, name: &CStr, length: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = reopen_regular(rustix::fs::openat(dir, name, flags, Mode::empty())?, OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    // It may grow without end.
    file.take(u64::try_from(length).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
