//! File systems that are mounted at no path (fsmount(2)). Such a mount lives as long as its descriptor: other
//! processes do not see it, and a process that dies leaves none behind.

use crate::{
    Error, Result,
    mount::{BindOpts, clone_tree},
};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{CWD, Mode, OFlags, open},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};
use std::{io, path::Path};

/// Root of the file system that `mount -t KIND -o OPTIONS SOURCE` would mount, read-only, without devices,
/// setuid programs or execution. Bind mounts are supported.
///
/// # Errors
/// [`Error::Mount`] with the source: the kernel refuses. A kernel before 6.7 takes at most about fourteen
/// layers of an overlay.
pub fn read_only(kind: &str, source: &str, options: &[String]) -> Result<OwnedFd> {
    let mounted = if options.iter().any(|o| matches!(o.as_str(), "bind" | "rbind")) {
        let opts = BindOpts { read_only: true, ..BindOpts::default() };
        clone_tree(CWD, Path::new(source), OpenTreeFlags::empty(), opts)
    } else {
        match new(kind, source, options, true) {
            Err(Errno::INVAL) if kind == "overlay" => new(kind, source, options, false),
            other => other,
        }
        .map_err(io::Error::from)
    };
    mounted.map_err(|e| Error::Mount { what: "mount out of sight what is", path: source.into(), source: e })
}

/// Mounts the file system. With `one_by_one` each layer is passed by a call of its own, which overlayfs
/// supports since Linux 6.7.
fn new(kind: &str, source: &str, options: &[String], one_by_one: bool) -> Result<OwnedFd, Errno> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", source)?;
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) if kind == "overlay" => lower_layers(&fs, layers, one_by_one)?,
            Some((name, value)) => fsconfig_set_string(fs.as_fd(), name, value)?,
            // The mount is made read-only below.
            None if matches!(option.as_str(), "ro" | "rw") => {}
            None => fsconfig_set_flag(fs.as_fd(), option.as_str())?,
        }
    }
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Sets the lower layers of an overlay. fsconfig(2) takes 255 bytes at a time, and the paths of a few layers
/// exceed that. Where layers cannot be passed one by one, each is opened and named by its descriptor, which
/// is shorter.
fn lower_layers(fs: &OwnedFd, layers: &str, one_by_one: bool) -> Result<(), Errno> {
    let layers = layers.split(':');
    if one_by_one {
        return layers.into_iter().try_for_each(|l| fsconfig_set_string(fs.as_fd(), "lowerdir+", l));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open: Vec<OwnedFd> =
        layers.map(|layer| open(layer, flags, Mode::empty())).collect::<Result<_, _>>()?;
    let names: Vec<String> = open.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    fsconfig_set_string(fs.as_fd(), "lowerdir", names.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Read, path::PathBuf};

    fn text(root: &OwnedFd, path: &str) -> Option<String> {
        let fd = crate::fs::open_in_root(root, Path::new(path), OFlags::RDONLY).ok()?;
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text).unwrap();
        Some(text)
    }

    fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|n| {
                let layer = dir.join(format!("a-layer-with-a-name-of-some-length-{n}"));
                fs::create_dir_all(layer.join("d")).unwrap();
                fs::write(layer.join("d/all"), n.to_string()).unwrap();
                fs::write(layer.join(format!("d/{n}")), n.to_string()).unwrap();
                layer
            })
            .collect()
    }

    fn lowerdir(layers: &[PathBuf]) -> String {
        let names: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
        format!("lowerdir={}", names.join(":"))
    }

    #[test]
    fn layers_are_one_tree_that_is_at_no_place() {
        let dir = tempfile::tempdir().unwrap();
        // Many more than fit into one string of fsconfig.
        let all = layers(dir.path(), 40);
        let options = ["index=off".to_owned(), lowerdir(&all)];
        let root = read_only("overlay", "overlay", &options).unwrap();
        assert_eq!(text(&root, "d/all").as_deref(), Some("0"), "the first is the topmost");
        assert_eq!(text(&root, "d/39").as_deref(), Some("39"));
        assert!(crate::fs::open_beneath(&root, Path::new("new"), OFlags::CREATE | OFlags::WRONLY).is_err());
        let seen = crate::mount::mounts().unwrap();
        assert!(!seen.iter().any(|m| m.super_options.contains("some-length-39")), "{seen:?}");

        let few = layers(dir.path(), 10);
        let root = new("overlay", "overlay", &[lowerdir(&few)], false).unwrap();
        assert_eq!(text(&root, "d/all").as_deref(), Some("0"));
        assert_eq!(text(&root, "d/9").as_deref(), Some("9"));
    }

    #[test]
    fn a_single_layer_is_a_bind() {
        let dir = tempfile::tempdir().unwrap();
        let layer = layers(dir.path(), 1).remove(0);
        let options = ["ro".to_owned(), "rbind".to_owned()];
        let root = read_only("bind", &layer.display().to_string(), &options).unwrap();
        assert_eq!(text(&root, "d/0").as_deref(), Some("0"));
        assert!(crate::fs::open_beneath(&root, Path::new("new"), OFlags::CREATE | OFlags::WRONLY).is_err());
        assert!(matches!(read_only("bind", "/nowhere/at/all", &options), Err(Error::Mount { .. })));
        assert!(matches!(read_only("nosuchfs", "none", &[]), Err(Error::Mount { .. })));
    }

    #[test]
    fn in_a_root_links_lead_to_that_root() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("etc")).unwrap();
        fs::write(inside.join("etc/passwd"), "of the image").unwrap();
        fs::write(dir.path().join("secret"), "of the node").unwrap();
        for (name, to) in [
            ("absolute", "/etc/passwd"),
            ("up", "../../../../etc/passwd"),
            ("node", "../secret"),
            ("magic", "/proc/self/root/etc/passwd"),
        ] {
            std::os::unix::fs::symlink(to, inside.join(name)).unwrap();
        }
        let root = OwnedFd::from(fs::File::open(&inside).unwrap());
        for path in ["absolute", "up", "/etc/passwd", "../../etc/passwd"] {
            assert_eq!(text(&root, path).as_deref(), Some("of the image"), "{path}");
        }
        for path in ["node", "magic", "../secret"] {
            assert_eq!(text(&root, path), None, "{path}");
        }
    }
}
