//! Tests of the pause program on a real kernel, started as the agent starts it. Need root.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a test that cannot go on fails; tidying up may"
)]

use berth_pause::PAUSE;
use berth_sys::{
    ns::{self, NsKind},
    pause::{PauseProcess, PauseSpec, prepare_rootfs, start},
    process::{self, PidFd, Signal},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(10);

/// The program, written once before any test forks. A child between fork and exec inherits the descriptors
/// that other threads have open for writing, and the kernel does not execute a file that is open for writing.
static PROGRAM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    prepare_rootfs(dir.path(), PAUSE).unwrap();
    let file = dir.path().join("pause");
    (dir, file)
});

/// A test's own sandbox; the drop removes all of it.
struct Sandbox {
    dir: tempfile::TempDir,
    cgroups: Vec<PathBuf>,
    started: Vec<u32>,
}

impl Sandbox {
    fn new() -> Sandbox {
        LazyLock::force(&PROGRAM);
        Sandbox { dir: tempfile::tempdir().unwrap(), cgroups: Vec::new(), started: Vec::new() }
    }

    fn spec(&self, kinds: &[NsKind]) -> PauseSpec {
        let rootfs = self.dir.path().join("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        // The link exists already for a second spec of the same sandbox.
        let _ = fs::hard_link(&PROGRAM.1, rootfs.join("pause"));
        prepare_rootfs(&rootfs, PAUSE).unwrap();
        PauseSpec {
            rootfs,
            sandbox_dir: self.dir.path().join("ns"),
            kinds: kinds.to_vec(),
            share_pid: false,
            cgroup_dirs: self.cgroups.clone(),
            oom_score_adj: 500,
            label: "berth-pause default/test".into(),
        }
    }

    fn start(&mut self, spec: &PauseSpec) -> PauseProcess {
        let process = start(spec).unwrap();
        self.started.push(process.pid);
        process
    }

    /// Makes one new group in every hierarchy that takes processes.
    fn make_cgroups(&mut self, name: &str) {
        for mount in berth_sys::mount::mounts().unwrap() {
            if !matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2") {
                continue;
            }
            let dir = mount.mount_point.join(format!("berth-pause-test-{}-{name}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(mount.mount_point.join(file))
                    && dir.join(file).exists()
                    && mount.fs_type == "cgroup"
                {
                    fs::write(dir.join(file), value.trim()).unwrap();
                }
            }
            self.cgroups.push(dir);
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for pid in &self.started {
            if let Ok(Some(fd)) = PidFd::open(*pid) {
                let _ = fd.signal(Signal::KILL);
                let _ = fd.poll_exited(DEADLINE);
            }
        }
        let _ = ns::unpin(&self.dir.path().join("ns"));
        for dir in &self.cgroups {
            let _ = eventually(|| fs::remove_dir(dir).is_ok().then_some(()));
        }
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status(pid: u32) -> BTreeMap<String, String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(k, v)| (k.to_owned(), v.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn ns_of(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|p| p.parse().unwrap()).collect()
}

#[test]
fn the_program_is_small_and_static() {
    assert!(PAUSE.len() < 16 << 10, "{} bytes", PAUSE.len());
    assert_eq!(PAUSE.get(..4), Some(&b"\x7fELF"[..]));
    let interpreter = PAUSE.windows(4).any(|w| w == b"/ld-");
    assert!(!interpreter, "it must need no loader");
}

#[test]
fn runs_with_nothing_but_what_it_was_given() {
    let mut sandbox = Sandbox::new();
    sandbox.make_cgroups("given");
    let kinds = [NsKind::Net, NsKind::Ipc, NsKind::Uts];
    let spec = sandbox.spec(&kinds);
    ns::create_pinned(&spec.sandbox_dir, &kinds, Some("pod-name"), &[]).unwrap();
    // A descriptor that was opened without close-on-exec.
    let leak = rustix::io::dup(fs::File::open("/dev/null").unwrap()).unwrap();
    let p = sandbox.start(&spec);
    let pid = p.pid.to_string();
    assert!(process::alive(p.pid, p.start_time).unwrap());

    let status = status(p.pid);
    for (key, want) in [
        ("Name", "pause"),
        ("Uid", "65535 65535 65535 65535"),
        ("Gid", "65535 65535 65535 65535"),
        ("Groups", ""),
        ("NoNewPrivs", "1"),
        ("Threads", "1"),
    ] {
        assert_eq!(status[key], want, "{key}");
    }
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[key], "0000000000000000", "{key}");
    }
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"berth-pause default/test\0");
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "500\n");
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), own_oom_score());

    let mut fds: Vec<(String, PathBuf)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read_link(e.path()).unwrap()))
        .collect();
    fds.sort();
    let null = || PathBuf::from("/dev/null");
    assert_eq!(fds, [("0".into(), null()), ("1".into(), null()), ("2".into(), null())]);

    for kind in kinds {
        let name = kind.file_name();
        assert_ne!(ns_of(&pid, name), ns_of("self", name));
        let pinned = fs::metadata(spec.sandbox_dir.join(name)).unwrap();
        let joined = fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&pinned),
            std::os::unix::fs::MetadataExt::ino(&joined)
        );
    }
    assert_ne!(ns_of(&pid, "mnt"), ns_of("self", "mnt"));
    assert_eq!(ns_of(&pid, "pid"), ns_of("self", "pid"));

    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["pause"]);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let options = mounts.split(' ').nth(3).unwrap();
    assert!(options.starts_with("ro,nosuid,nodev"), "{options}");

    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let name = sandbox.cgroups[0].file_name().unwrap().to_str().unwrap();
    assert!(cgroups.lines().count() >= sandbox.cgroups.len());
    for line in cgroups.lines() {
        assert!(line.ends_with(&format!(":/{name}")), "{cgroups}");
    }

    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_ne!(fields[1], std::process::id().to_string(), "its parent is not this process");
    assert_eq!(fields[3], pid, "it leads a session");
    assert_eq!(own_children(), "");
    drop(leak);
}

/// The children that this thread made, ended ones too.
fn own_children() -> String {
    fs::read_to_string("/proc/thread-self/children").unwrap()
}

fn own_oom_score() -> String {
    fs::read_to_string("/proc/thread-self/oom_score_adj").unwrap().trim().to_owned()
}

#[test]
fn ends_on_term_and_int_and_ignores_the_rest() {
    for (signal, ends) in [(Signal::TERM, true), (Signal::INT, true)] {
        let mut sandbox = Sandbox::new();
        let spec = sandbox.spec(&[]);
        let p = sandbox.start(&spec);
        let fd = PidFd::open(p.pid).unwrap().unwrap();
        for harmless in [Signal::HUP, Signal::USR1, Signal::CHILD, Signal::PIPE] {
            assert!(fd.signal(harmless).unwrap());
        }
        assert!(fd.signal(signal).unwrap());
        assert_eq!(fd.poll_exited(DEADLINE).unwrap(), ends);
    }
    let mut sandbox = Sandbox::new();
    let spec = sandbox.spec(&[]);
    let p = sandbox.start(&spec);
    let fd = PidFd::open(p.pid).unwrap().unwrap();
    fd.signal(Signal::HUP).unwrap();
    assert!(!fd.poll_exited(Duration::from_millis(50)).unwrap());
}

#[test]
fn reaps_orphans_of_a_shared_pid_namespace() {
    let mut sandbox = Sandbox::new();
    let spec = PauseSpec { share_pid: true, ..sandbox.spec(&[]) };
    fs::create_dir(&spec.sandbox_dir).unwrap();
    let p = sandbox.start(&spec);
    assert_eq!(status(p.pid)["NSpid"], format!("{} 1", p.pid));
    assert!(ns::is_pinned(&spec.sandbox_dir, NsKind::Pid).unwrap());

    let pin = spec.sandbox_dir.join("pid");
    for _ in 0..3 {
        let mut command = Command::new("nsenter");
        command.arg(format!("--pid={}", pin.display())).args(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"]);
        assert!(command.status().unwrap().success());
    }
    let orphans =
        eventually(|| Some(children(p.pid)).filter(|c| c.len() == 3)).expect("orphans come to pause");
    for orphan in orphans {
        PidFd::open(orphan).unwrap().unwrap().signal(Signal::KILL).unwrap();
        let gone = eventually(|| (!Path::new(&format!("/proc/{orphan}")).exists()).then_some(()));
        assert!(gone.is_some(), "{orphan} is not reaped");
    }
    // A new pause replaces the pin of a pause that died.
    let fd = PidFd::open(p.pid).unwrap().unwrap();
    fd.signal(Signal::TERM).unwrap();
    assert!(fd.poll_exited(DEADLINE).unwrap());
    let second = sandbox.start(&spec);
    let pinned = fs::metadata(&pin).unwrap();
    let joined = fs::metadata(format!("/proc/{}/ns/pid", second.pid)).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&pinned), std::os::unix::fs::MetadataExt::ino(&joined));
}

#[test]
fn a_failed_start_names_its_step_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let good = sandbox.spec(&[]);
    let step = |spec: &PauseSpec| start(spec).unwrap_err().to_string();

    assert_eq!(
        step(&PauseSpec { rootfs: sandbox.dir.path().join("none"), ..good.clone() }),
        "cannot start pause: change the root directory"
    );
    let empty = sandbox.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(
        step(&PauseSpec { rootfs: empty, share_pid: true, ..good.clone() }),
        "cannot start pause: run the program"
    );
    fs::create_dir(&good.sandbox_dir).unwrap();
    fs::write(good.sandbox_dir.join("net"), "").unwrap();
    let unpinned = PauseSpec { kinds: vec![NsKind::Net], ..good.clone() };
    assert!(step(&unpinned).ends_with("net is no pinned namespace"), "{}", step(&unpinned));
    let cgroup = PauseSpec { cgroup_dirs: vec![sandbox.dir.path().join("cg")], ..good.clone() };
    assert!(step(&cgroup).ends_with("cg/cgroup.procs"));
    assert!(step(&PauseSpec { oom_score_adj: 5000, ..good }).ends_with("write oom_score_adj"));
    assert_eq!(own_children(), "");
}

#[test]
fn many_threads_start_many_at_once() {
    let mut sandboxes: Vec<Sandbox> = (0..8).map(|_| Sandbox::new()).collect();
    std::thread::scope(|scope| {
        for sandbox in &mut sandboxes {
            scope.spawn(|| {
                let spec = PauseSpec { share_pid: true, ..sandbox.spec(&[NsKind::Uts]) };
                for round in 0..10 {
                    ns::create_pinned(&spec.sandbox_dir, &[NsKind::Uts], Some("x"), &[]).unwrap();
                    let p = sandbox.start(&spec);
                    assert_eq!(status(p.pid)["NSpid"], format!("{} 1", p.pid), "{round}");
                    assert_eq!(own_children(), "");
                }
            });
        }
    });
    let pids: std::collections::BTreeSet<u32> = sandboxes.iter().flat_map(|s| s.started.clone()).collect();
    assert_eq!(pids.len(), 80);
}

/// Prints the time of one start. The bound is large, so that a busy machine does not fail the test.
#[test]
fn starts_in_about_a_millisecond() {
    let mut sandbox = Sandbox::new();
    sandbox.make_cgroups("time");
    let kinds = [NsKind::Net, NsKind::Ipc, NsKind::Uts];
    let spec = sandbox.spec(&kinds);
    let begun = Instant::now();
    ns::create_pinned(&spec.sandbox_dir, &kinds, Some("pod-name"), &[]).unwrap();
    println!("namespaces: {:?}", begun.elapsed());
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        sandbox.start(&spec);
        times.push(begun.elapsed());
    }
    times.sort();
    println!("pause, {} cgroups: best {:?}, median {:?}", spec.cgroup_dirs.len(), times[0], times[10]);
    assert!(times[10] < Duration::from_millis(100), "{times:?}");
}
