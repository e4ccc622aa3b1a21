//! A node that consists of the hooks: pins, a cgroup, network namespaces.

use berth_core::sync::lock;
use berth_ebpf_abi::{Client, Config, Prefix, V4, V6, client};
use berth_ebpf_decide::testing::Sample;
use berth_ebpf_loader::{Access, Datapath, OBJECT, Pins, attach, ensure_bpffs, load};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard},
    thread,
};

/// Held by each test: the hooks apply to the whole process, so only one test runs at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Loaded and attached hooks, removed on drop.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    home: PathBuf,
    pub(crate) maps: Datapath,
    _one: MutexGuard<'static, ()>,
}

impl Node {
    /// Loads and attaches the hooks, and moves this process into the cgroup.
    pub(crate) fn new() -> Node {
        let one = lock(&ONE);
        let dir = tempfile::Builder::new().prefix("berth-hooks-").tempdir().unwrap();
        let pins = Pins::new(dir.path().join("bpf/berth"));
        ensure_bpffs(&pins).unwrap();
        // `BERTH_OBJECT` names an object to test instead of the committed one.
        let object = std::env::var_os("BERTH_OBJECT").map(|path| fs::read(path).unwrap());
        load(&pins, object.as_deref().unwrap_or(OBJECT), |_| {}).unwrap();
        let maps = Datapath::open(&pins, Access::Write).unwrap();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = PathBuf::from(mounts.find(|fields| fields[2] == "cgroup2").unwrap()[1]);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let home = root.join(own);
        let cgroup = root.join(format!("berth-hooks-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let node = Node { dir, cgroup, home, maps, _one: one };
        let config = Config {
            service4: [V4::range(), Prefix::default()],
            service6: [V6::range(), Prefix::default()],
            ..Config::default()
        };
        node.maps.config.put(&0, &config).unwrap();
        attach(&pins, &node.cgroup).unwrap();
        enter(&node.cgroup);
        node
    }

    /// Detaches one hook.
    pub(crate) fn detach(&self, hook: &str) {
        fs::remove_file(self.dir.path().join("bpf/berth/links").join(hook)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        enter(&self.home);
        // The unmount removes the pins and with them the links.
        umount2(&self.dir.path().join("bpf"), MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// Runs `work` on a thread in a new network namespace in which every address is local.
pub(crate) fn in_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for line in
            ["link set lo up", "-4 route add local default dev lo", "-6 route add local default dev lo"]
        {
            let out = Command::new("ip").args(line.split(' ')).output().unwrap();
            assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
        }
        // Without this setting no IPv6 address can be bound where every address is local.
        fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
        work()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl Node {
    /// Makes the calling thread's network namespace the host's.
    pub(crate) fn host_here(&self) {
        let host = Client { flags: client::HOST, ..Client::default() };
        self.maps.client.put(&cookie(), &host).unwrap();
    }
}

/// Cookie of the calling thread's network namespace.
pub(crate) fn cookie() -> u64 {
    berth_ebpf_loader::netns_cookie(fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap()
}

/// An IPv4 address of the maps as a socket address.
pub(crate) fn v4(addr: V4, port: u16) -> SocketAddr {
    (Ipv4Addr::from(addr.to_ne_bytes()), u16::from_be(port)).into()
}

/// The same, mapped into IPv6.
pub(crate) fn mapped(addr: V4, port: u16) -> SocketAddr {
    (Ipv4Addr::from(addr.to_ne_bytes()).to_ipv6_mapped(), u16::from_be(port)).into()
}

/// An IPv6 address of the maps as a socket address.
pub(crate) fn v6(addr: V6, port: u16) -> SocketAddr {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_mut(4).zip(addr) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    (Ipv6Addr::from(bytes), u16::from_be(port)).into()
}
