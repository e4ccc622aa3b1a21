//! Disk and initial RAM disk of a VM.

use super::{cache::Cache, kernel::Kernel};
use crate::{out, setup::succeed};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Size of the disk. The file is sparse: unused blocks take no space.
const SIZE: u64 = 6 << 30;

/// Modules that the kernel needs to mount its root, where they are not built in.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Enabled units: Debian's and the guest's own.
const ENABLED: [&str; 3] = ["systemd-networkd", "systemd-resolved", "vm-command"];

/// Units that do not start with the machine: those of NFS, which one suite starts.
const DISABLED: [&str; 6] = [
    "nfs-server.service",
    "nfs-blkmap.service",
    "nfs-client.target",
    "rpcbind.service",
    "rpcbind.socket",
    "rpc-statd-notify.service",
];

/// Masked units: those that need the network or run long periodic jobs.
const MASKED: [&str; 6] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "man-db.timer",
    "systemd-networkd-wait-online.service",
];

/// Files from which a VM starts.
#[derive(Debug)]
pub(super) struct Image {
    /// The disk. Only read: a running VM writes to an overlay.
    pub(super) disk: PathBuf,
    /// The initial RAM disk.
    pub(super) initrd: PathBuf,
}

/// Returns the disk with this kernel's modules. Built where the cache has none of the same parts.
///
/// # Errors
/// The disk or the initial RAM disk cannot be made.
pub(super) fn get(cache: &Cache, root: &Path, kernel: &Kernel) -> Result<Image> {
    let images = cache.dir("images")?;
    let image = Image {
        disk: images.join(format!("{}.img", kernel.release)),
        initrd: images.join(format!("{}.initrd", kernel.release)),
    };
    let guest = crate::root().join("tests/vm/guest");
    let stamp = images.join(format!("{}.parts", kernel.release));
    let parts = parts(root, &guest)?;
    if fs::read(&stamp).is_ok_and(|made_of| made_of == parts)
        && image.disk.is_file()
        && image.initrd.is_file()
    {
        return Ok(image);
    }
    if stamp.exists() {
        fs::remove_file(&stamp).with_context(|| format!("cannot remove {}", stamp.display()))?;
    }
    out::timed(&format!("make a disk for the kernel {}", kernel.release), || {
        let stage = cache.empty_dir("stage")?;
        fs::remove_dir(&stage).context("cannot empty the stage")?;
        // The stage hard-links the root's files, so no file may be modified in place.
        succeed(Command::new("cp").args(["-a", "--link"]).args([root, &stage]))?;
        furnish(&stage, &guest, kernel)?;
        initrd(cache, &stage, kernel, &image.initrd)?;
        let disk = fs::File::create(&image.disk).context("cannot make the disk")?;
        disk.set_len(SIZE).context("cannot make the disk")?;
        succeed(
            Command::new("mkfs.ext4").args(["-q", "-F", "-L", "root", "-d"]).args([&stage, &image.disk]),
        )?;
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))
    })?;
    fs::write(&stamp, parts).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(image)
}

/// Fingerprint of a disk's parts without the kernel: the root's packages, the lists of units and modules, and
/// the guest's files.
fn parts(root: &Path, guest: &Path) -> Result<Vec<u8>> {
    let made = root.with_extension("packages");
    let mut parts = fs::read(&made).with_context(|| format!("cannot read {}", made.display()))?;
    parts.extend(
        [ENABLED.join(","), DISABLED.join(","), MASKED.join(","), MODULES.join(",")].concat().into_bytes(),
    );
    let mut files = vec![guest.to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
            let mut names = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
            names.sort();
            files.extend(names);
        } else {
            parts.extend(path.strip_prefix(guest)?.to_string_lossy().as_bytes());
            parts.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(parts)
}

fn furnish(stage: &Path, guest: &Path, kernel: &Kernel) -> Result<()> {
    let modules = stage.join("usr/lib/modules");
    fs::create_dir_all(&modules).context("cannot make the directory of modules")?;
    succeed(Command::new("cp").args(["-a", "--link"]).args([&kernel.modules(), &modules]))?;
    // depmod rewrites these files; copies keep the hard-linked originals in the cache unchanged.
    for file in fs::read_dir(modules.join(&kernel.release)).context("cannot list the modules")? {
        let path = file.context("cannot list the modules")?.path();
        let rewritten = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("modules."));
        if rewritten && path.is_file() {
            let bytes = fs::read(&path).context("cannot read a list of modules")?;
            fs::remove_file(&path).context("cannot remove a list of modules")?;
            fs::write(&path, bytes).context("cannot write a list of modules")?;
        }
    }
    let chroot = |args: &[&str]| succeed(Command::new("chroot").arg(stage).args(args));
    chroot(&["depmod", &kernel.release])?;
    let from = guest.join("root/.");
    succeed(
        Command::new("cp").args(["-r", "--preserve=mode", "--remove-destination"]).arg(&from).arg(stage),
    )?;
    let files: [(&str, &str); 4] = [
        ("etc/hostname", "vm\n"),
        ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 vm\n"),
        ("etc/fstab", "/dev/vda / ext4 defaults 0 1\n"),
        // Without a machine id, systemd treats the boot as the first one and enables every unit.
        ("etc/machine-id", "5c1b6b0e2f7d4c1f9b1d1f2f3a4b5c6d\n"),
    ];
    for (name, text) in files {
        put(&stage.join(name), text.as_bytes(), 0o644)?;
    }
    let resolv = stage.join("etc/resolv.conf");
    gone(&resolv)?;
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &resolv)
        .context("cannot link resolv.conf")?;
    chroot(&[&["systemctl", "-q", "mask"], &MASKED[..]].concat())?;
    chroot(&[&["systemctl", "-q", "disable"], &DISABLED[..]].concat())?;
    chroot(&[&["systemctl", "-q", "enable"], &ENABLED[..]].concat())
}

fn gone(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Replaces a file by a new one. Other hard links keep the old content.
fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    gone(path)?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

fn initrd(cache: &Cache, stage: &Path, kernel: &Kernel, to: &Path) -> Result<()> {
    let dir = cache.empty_dir("initrd")?;
    for name in ["bin", "dev", "new"] {
        fs::create_dir(dir.join(name)).context("cannot make the initial RAM disk")?;
    }
    let busybox = fs::read(stage.join("usr/bin/busybox")).context("cannot read the root's busybox")?;
    put(&dir.join("bin/busybox"), &busybox, 0o755)?;
    let init =
        fs::read(crate::root().join("tests/vm/guest/init")).context("cannot read tests/vm/guest/init")?;
    put(&dir.join("init"), &init, 0o755)?;
    let modules = stage.join("usr/lib/modules").join(&kernel.release);
    let list = fs::read_to_string(modules.join("modules.dep")).context("cannot read modules.dep")?;
    let mut order = String::new();
    for (n, file) in needed(&list, &MODULES).iter().enumerate() {
        let name = format!("{n:02}.ko");
        put(&dir.join(&name), &plain(&modules.join(file))?, 0o644)?;
        order.push_str(&name);
        order.push('\n');
    }
    put(&dir.join("modules"), order.as_bytes(), 0o644)?;
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc | gzip -1 > \"$0\""]).arg(to).current_dir(&dir);
    succeed(&mut pack)?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Module files by `modules.dep`, each after its dependencies. A built-in module has no file.
fn needed<'a>(list: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut order: Vec<&str> = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        let is_it = |file: &str| {
            let base = file.rsplit('/').next().and_then(|f| f.split('.').next());
            base.is_some_and(|b| b.replace('-', "_") == *name)
        };
        let Some((file, depends)) = list.lines().filter_map(|l| l.split_once(':')).find(|(f, _)| is_it(f))
        else {
            continue;
        };
        let depends: Vec<&str> = depends.split_whitespace().collect();
        order.extend(depends.into_iter().rev().chain([file]).filter(|f| seen.insert(*f)));
    }
    order
}

/// Content of a module, decompressed.
fn plain(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("ko") => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        _ => bail!("{} is no module that is understood", path.display()),
    };
    let out = Command::new(program)
        .args(["-d", "-c"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(out.status.success(), "{program} cannot unpack {}", path.display());
    Ok(out.stdout)
}

/// Packs a directory's content into a tar file that the VM reads as its second disk.
///
/// # Errors
/// tar fails or the file cannot be padded.
pub(super) fn tar(dir: &Path, to: &Path) -> Result<()> {
    succeed(Command::new("tar").arg("-C").arg(dir).args(["--owner=0", "--group=0", "-cf"]).arg(to).arg("."))?;
    // A disk consists of whole sectors.
    let mut file = fs::OpenOptions::new().append(true).open(to).context("cannot open the second disk")?;
    let odd = file.metadata().context("cannot look at the second disk")?.len() % 4096;
    if odd > 0 {
        let fill = usize::try_from(4096 - odd).unwrap_or(0);
        file.write_all(&vec![0; fill]).context("cannot fill the second disk")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_those_they_need_and_once() {
        let list = "kernel/drivers/virtio/virtio_pci.ko.xz: kernel/b/virtio_ring.ko.xz kernel/a/virtio.ko.xz\n\
                    kernel/drivers/block/virtio_blk.ko.xz: kernel/b/virtio_ring.ko.xz kernel/a/virtio.ko.xz\n\
                    kernel/b/virtio_ring.ko.xz: kernel/a/virtio.ko.xz\nkernel/a/virtio.ko.xz:\n";
        assert_eq!(
            needed(list, &["virtio_pci", "virtio_blk", "ext4"]),
            [
                "kernel/a/virtio.ko.xz",
                "kernel/b/virtio_ring.ko.xz",
                "kernel/drivers/virtio/virtio_pci.ko.xz",
                "kernel/drivers/block/virtio_blk.ko.xz",
            ]
        );
    }
}
