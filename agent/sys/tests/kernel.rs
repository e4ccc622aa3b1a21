//! Tests of mounts, namespaces and deletion on a real kernel. Need root.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a test that cannot go on fails; tidying up may"
)]

use berth_sys::{
    Error,
    mount::{self, BindOpts, Propagation},
    ns::{self, NsKind},
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::Instant,
};

/// A directory whose drop removes all its mounts and files.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::Builder::new().prefix("berth-sys-").tempdir().unwrap())
    }

    /// Makes a new directory in it.
    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        for m in mount::mounts_below(self.0.path()).unwrap_or_default().iter().rev() {
            let _ = mount::unmount(&m.mount_point);
        }
    }
}

fn mount_at(path: &Path) -> mount::Mount {
    mount::mounts().unwrap().into_iter().rfind(|m| m.mount_point == path).unwrap()
}

#[test]
fn binds_directories_and_files_read_only_or_not() {
    let t = Dir::new();
    let (src, dst) = (t.dir("src"), t.dir("dst"));
    fs::write(src.join("f"), "x").unwrap();
    mount::bind(&src, &dst, BindOpts { read_only: true, ..BindOpts::default() }).unwrap();
    assert!(mount_at(&dst).has_option("ro"));
    let denied = fs::write(dst.join("f"), "y").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    fs::write(src.join("f"), "z").unwrap();
    assert_eq!(fs::read_to_string(dst.join("f")).unwrap(), "z");

    let file = t.path("file");
    fs::write(&file, "").unwrap();
    let fd = fs::File::open(src.join("f")).unwrap();
    mount::bind_fd(&fd, &file, BindOpts::default()).unwrap();
    fs::write(&file, "through").unwrap();
    assert_eq!(fs::read_to_string(src.join("f")).unwrap(), "through");

    assert!(mount::unmount(&file).unwrap());
    assert!(!mount::unmount(&file).unwrap());
    assert!(!mount::unmount(&t.path("none")).unwrap());
    assert!(mount::unmount(&dst).unwrap());
    assert!(matches!(
        mount::bind(&t.path("none"), &dst, BindOpts::default()),
        Err(Error::Mount { path, .. }) if path.ends_with("none")
    ));
    assert!(mount::bind(&src, &file, BindOpts::default()).is_err());
    assert!(!mount::is_mount_point(&dst).unwrap());
}

#[test]
fn a_recursive_bind_takes_what_is_mounted_below_read_only_too() {
    let t = Dir::new();
    let (src, flat, deep) = (t.dir("src"), t.dir("flat"), t.dir("deep"));
    let below = t.dir("src/below");
    mount::tmpfs(&below, None, 0o755).unwrap();
    fs::write(below.join("in"), "").unwrap();
    mount::bind(&src, &flat, BindOpts::default()).unwrap();
    assert!(!flat.join("below/in").exists());
    let opts = BindOpts { read_only: true, recursive: true, propagation: Propagation::Private };
    mount::bind(&src, &deep, opts).unwrap();
    assert!(deep.join("below/in").exists());
    assert!(fs::write(deep.join("below/in"), "x").is_err());
    fs::write(below.join("in"), "x").unwrap();
    assert_eq!(mount_at(&deep.join("below")).shared, None);
}

#[test]
fn a_tmpfs_has_size_and_mode_and_stays_out_of_swap() {
    let t = Dir::new();
    let dst = t.dir("t");
    mount::tmpfs(&dst, Some(1 << 20), 0o1777).unwrap();
    assert_eq!(fs::metadata(&dst).unwrap().mode() & 0o7777, 0o1777);
    let m = mount_at(&dst);
    assert_eq!(m.fs_type, "tmpfs");
    assert!(m.has_super_option("size=1024k"), "{}", m.super_options);
    assert!(fs::write(dst.join("big"), vec![1; 2 << 20]).is_err());
    // Kernels since 6.4 with swap know the option, this machine's among them; kernels without swap use the
    // fall-back.
    let swapless = !Path::new("/proc/swaps").exists();
    assert!(swapless || m.has_super_option("noswap"), "{}", m.super_options);
    assert!(mount::tmpfs(&t.path("none"), None, 0o755).is_err());
}

#[test]
fn unmounting_follows_no_link() {
    let t = Dir::new();
    let dst = t.dir("t");
    mount::tmpfs(&dst, None, 0o755).unwrap();
    symlink(&dst, t.path("link")).unwrap();
    assert!(!mount::unmount(&t.path("link")).unwrap());
    assert!(!mount::is_mount_point(&t.path("link")).unwrap());
    assert!(mount::is_mount_point(&dst).unwrap());
}

#[test]
fn unmounting_beneath_a_directory_enters_no_link() {
    let t = Dir::new();
    let (inside, outside) = (t.dir("pod/a/at"), t.dir("outside/at"));
    for dir in [&inside, &outside] {
        mount::tmpfs(dir, None, 0o755).unwrap();
    }
    let below = t.dir("pod/a/at/deep");
    mount::tmpfs(&below, None, 0o755).unwrap();
    let pod = fs::File::open(t.path("pod")).unwrap();
    let unmount = |rel: &str| mount::unmount_beneath(&pod, Path::new(rel)).unwrap();
    // The directory becomes a link, after the mounts were listed.
    fs::rename(t.path("pod/a"), t.path("pod/b")).unwrap();
    symlink("../outside", t.path("pod/a")).unwrap();
    for rel in ["a/at", "a", "none/at", "../outside/at"] {
        assert!(!unmount(rel), "{rel}");
    }
    assert!(mount::is_mount_point(&outside).unwrap());
    assert!(unmount("b/at/deep") && unmount("b/at") && !unmount("b/at"));
    assert!(mount::unmount_beneath(&pod, Path::new("")).is_err());
}

#[test]
fn what_is_mounted_below_an_rshared_directory_is_shared() {
    let t = Dir::new();
    let outer = t.dir("outer");
    for _ in 0..2 {
        mount::make_rshared(&outer).unwrap();
    }
    assert_eq!(mount::mounts_below(&outer).unwrap().len(), 1, "bound onto itself once");
    assert!(mount_at(&outer).shared.is_some());
    let below = t.dir("outer/below");
    mount::tmpfs(&below, None, 0o755).unwrap();
    assert!(mount_at(&below).shared.is_some());
    let names = mount::mounts_below(&outer).unwrap().into_iter().map(|m| m.mount_point).collect::<Vec<_>>();
    assert_eq!(names, [outer, below]);
    assert!(mount::mounts_below(&t.path("none")).unwrap().is_empty());
    assert!(mount::make_rshared(&t.path("none")).is_err());
}

#[test]
fn on_a_shared_mount_an_rshared_directory_is_no_mount_of_its_own() {
    let t = Dir::new();
    let outer = t.dir("outer");
    mount::make_rshared(&outer).unwrap();
    // A mount that was made private before.
    let old = t.dir("outer/inner/old");
    mount::bind(
        &t.dir("source"),
        &old,
        BindOpts { propagation: Propagation::Private, ..BindOpts::default() },
    )
    .unwrap();
    assert_eq!(mount_at(&old).shared, None);
    let inner = t.path("outer/inner");
    mount::make_rshared(&inner).unwrap();
    assert!(
        !mount::is_mount_point(&inner).unwrap(),
        "a service manager would unmount it before its users end"
    );
    assert!(mount_at(&old).shared.is_some());
    let below = t.dir("outer/inner/below");
    mount::tmpfs(&below, None, 0o755).unwrap();
    assert!(mount_at(&below).shared.is_some());
    assert_eq!(mount::mounts_below(&outer).unwrap().len(), 3, "each is there once");
}

#[test]
fn a_mount_point_with_odd_characters_is_found() {
    let t = Dir::new();
    let dst = t.dir("a b\tc\\d\n#e");
    mount::tmpfs(&dst, None, 0o755).unwrap();
    assert_eq!(mount::mounts_below(&dst).unwrap().len(), 1);
}

#[test]
fn deletes_a_tree_and_nothing_else() {
    let t = Dir::new();
    let tree = t.dir("tree");
    let outside = t.dir("outside");
    fs::write(outside.join("kept"), "").unwrap();
    for n in 0..50 {
        let sub = t.dir(&format!("tree/d{n}/e"));
        fs::write(sub.join("f"), "").unwrap();
    }
    symlink(&outside, tree.join("link")).unwrap();
    symlink("nowhere", tree.join("dangling")).unwrap();
    std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    mount::remove_tree_no_xdev(&tree).unwrap();
    assert!(!tree.exists());
    assert!(outside.join("kept").exists());
    mount::remove_tree_no_xdev(&tree).unwrap();
    // A link in place of the tree is not followed.
    symlink(&outside, &tree).unwrap();
    assert!(mount::remove_tree_no_xdev(&tree).is_err());
    assert!(outside.join("kept").exists());
}

#[test]
fn deletes_a_tree_deeper_than_any_path_and_limit() {
    let t = Dir::new();
    let tree = t.dir("tree");
    // The final path is longer than PATH_MAX, so each level is made from the one above it.
    let mut at = rustix::fs::open(&tree, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    mount::remove_tree_no_xdev(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn deletes_nothing_where_a_mount_lies_below() {
    let t = Dir::new();
    let tree = t.dir("tree");
    let other = t.dir("other");
    fs::write(tree.join("a-first"), "").unwrap();
    fs::write(other.join("kept"), "").unwrap();
    let below = t.dir("tree/x/y");
    // A bind of the same file system, which has the same device number.
    mount::bind(&other, &below, BindOpts::default()).unwrap();
    let refused = mount::remove_tree_no_xdev(&tree).unwrap_err();
    assert!(matches!(&refused, Error::MountBelow { mount, .. } if *mount == below), "{refused}");
    assert!(tree.join("a-first").exists() && other.join("kept").exists());
    // The tree itself is the mount.
    assert!(matches!(mount::remove_tree_no_xdev(&below), Err(Error::MountBelow { .. })));
    assert!(other.join("kept").exists());
    assert!(mount::unmount(&below).unwrap());
    mount::remove_tree_no_xdev(&tree).unwrap();
    assert!(!tree.exists() && other.join("kept").exists());
}

const POD: [NsKind; 3] = [NsKind::Net, NsKind::Ipc, NsKind::Uts];

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn sysctls(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn pinned_namespaces_are_new_set_up_and_stay() {
    let t = Dir::new();
    let dir = t.path("ns");
    let host_port = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let host_shm = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let wanted = sysctls(&[("net.ipv4.ip_unprivileged_port_start", "0"), ("kernel/shm_rmid_forced", "1")]);
    let begun = Instant::now();
    ns::create_pinned(&dir, &POD, Some("pod-0"), &wanted).unwrap();
    println!("create_pinned: {:?}", begun.elapsed());
    let mut inodes = BTreeSet::new();
    for kind in POD {
        assert!(ns::is_pinned(&dir, kind).unwrap());
        let pin = dir.join(kind.file_name());
        assert_ne!(inode(&pin), inode(&Path::new("/proc/self/ns").join(kind.file_name())));
        inodes.insert(inode(&pin));
    }
    assert!(!ns::is_pinned(&dir, NsKind::Pid).unwrap());

    let (lo, port) = ns::in_net_ns(&dir.join("net"), || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = std::net::TcpStream::connect(listener.local_addr().unwrap());
        (there.is_ok(), fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap())
    })
    .unwrap();
    assert!(lo, "lo is up");
    assert_eq!(port, "0\n");
    // A process enters the UTS and IPC namespaces and shows their values; the host's values are unchanged.
    let shown = std::process::Command::new("nsenter")
        .arg(format!("--uts={}", dir.join("uts").display()))
        .arg(format!("--ipc={}", dir.join("ipc").display()))
        .args(["sh", "-c", "cat /proc/sys/kernel/hostname /proc/sys/kernel/shm_rmid_forced"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "pod-0\n1\n");
    let now = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_eq!((now, fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap()), (host_port, host_shm));

    // A second call keeps the same namespaces.
    ns::create_pinned(&dir, &POD, Some("other"), &wanted).unwrap();
    assert_eq!(POD.map(|k| inode(&dir.join(k.file_name()))).into_iter().collect::<BTreeSet<_>>(), inodes);
    ns::unpin(&dir).unwrap();
    assert!(!dir.exists());
    ns::unpin(&dir).unwrap();
    assert!(mount::mounts_below(t.0.path()).unwrap().is_empty());
}

#[test]
fn what_is_half_pinned_is_made_anew() {
    let t = Dir::new();
    let dir = t.path("ns");
    ns::create_pinned(&dir, &POD, None, &[]).unwrap();
    let net = inode(&dir.join("net"));
    assert!(mount::unmount(&dir.join("uts")).unwrap());
    assert!(!ns::is_pinned(&dir, NsKind::Uts).unwrap(), "an empty file is no pin");
    // Two pins mounted on one another, as a crash between two tries may leave them.
    mount::bind(Path::new("/proc/self/ns/ipc"), &dir.join("ipc"), BindOpts::default()).unwrap();
    ns::create_pinned(&dir, &POD, None, &[]).unwrap();
    assert_ne!(inode(&dir.join("net")), net);
    assert_eq!(mount::mounts_below(&dir).unwrap().len(), 3);
    ns::unpin(&dir).unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_sysctl_outside_of_the_pod_is_refused_before_anything_is_made() {
    let t = Dir::new();
    let dir = t.path("ns");
    for (name, kinds) in [
        ("vm.swappiness", &POD[..]),
        ("kernel.pid_max", &POD[..]),
        ("net.ipv4.ip_forward", &POD[1..]),
        ("kernel.msgmax", &[NsKind::Net][..]),
        ("net.ipv4/../../kernel/panic", &POD[..]),
        ("net/../kernel/panic", &POD[..]),
        ("net..x", &POD[..]),
        ("net", &POD[..]),
        ("", &POD[..]),
    ] {
        let refused = ns::create_pinned(&dir, kinds, None, &sysctls(&[(name, "1")])).unwrap_err();
        assert!(matches!(refused, Error::Sysctl { .. }), "{name}: {refused}");
        assert!(!dir.exists(), "{name}");
    }
    // A sysctl that the kernel refuses undoes the namespaces.
    let refused = ns::create_pinned(&dir, &POD, None, &sysctls(&[("net.ipv4.ip_forward", "x")])).unwrap_err();
    assert!(matches!(refused, Error::SysctlWrite { .. }), "{refused}");
    assert!(!dir.exists());
    assert!(ns::create_pinned(&dir, &[NsKind::Pid], None, &[]).is_err());
}

#[test]
fn an_interface_name_with_dots_is_written_with_a_slash() {
    let t = Dir::new();
    let dir = t.path("ns");
    let named = sysctls(&[("net.ipv4.conf.no/such.forwarding", "1")]);
    let refused = ns::create_pinned(&dir, &POD, None, &named).unwrap_err();
    assert!(
        matches!(&refused, Error::SysctlWrite { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );
    ns::create_pinned(&dir, &POD, None, &sysctls(&[("net.ipv4.conf.lo.forwarding", "1")])).unwrap();
    ns::unpin(&dir).unwrap();
}

#[test]
fn unpin_leaves_what_it_does_not_know() {
    let t = Dir::new();
    let dir = t.path("ns");
    ns::create_pinned(&dir, &POD, None, &[]).unwrap();
    fs::write(dir.join("result"), "").unwrap();
    ns::unpin(&dir).unwrap();
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["result"]);
}

#[test]
fn in_net_ns_tells_what_is_no_network_namespace() {
    let t = Dir::new();
    let file = t.path("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(ns::in_net_ns(&t.path("none"), || ()), Err(Error::Open { .. })));
    assert!(matches!(ns::in_net_ns(&file, || ()), Err(Error::Namespace { .. })));
    assert!(ns::in_net_ns(Path::new("/proc/self/ns/uts"), || ()).is_err());
    let panicked =
        std::panic::catch_unwind(|| ns::in_net_ns(Path::new("/proc/self/ns/net"), || panic!("inside")));
    assert!(panicked.is_err());
    assert_eq!(ns::in_net_ns(Path::new("/proc/self/ns/net"), || 7).unwrap(), 7);
}
