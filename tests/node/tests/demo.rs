//! `cargo xtask demo` as a user runs it, twice, and a check that `--down` leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use berth_harness::{
    cgroup,
    machine::{Machine, Scope},
    node,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Path of the `xtask` program, which holds the demo: `BERTH_XTASK`, or the build beside this test.
fn xtask() -> PathBuf {
    if let Some(program) = std::env::var_os("BERTH_XTASK").map(PathBuf::from) {
        assert!(program.is_file(), "BERTH_XTASK: {} is no file", program.display());
        return program;
    }
    let here = std::env::current_exe().unwrap();
    let program = here.parent().and_then(Path::parent).unwrap().join("xtask");
    assert!(program.is_file(), "build it first: cargo build -p xtask");
    program
}

/// Guard that ends the demo in this directory, also when the test fails.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        demo(self.0, &["--down"]);
    }
}

fn demo(dir: &Path, more: &[&str]) -> (bool, String) {
    let out = Command::new(xtask())
        .arg("demo")
        .arg("--dir")
        .arg(dir.join("berth-demo-test"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .args(more)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), text)
}

#[test]
fn the_demo_shows_everything_twice_and_leaves_nothing() {
    let dir = tempfile::Builder::new().prefix("berth-demo-").tempdir_in("/tmp").unwrap();
    let mark = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut marks = node::marks("berth-demo-test");
    marks.push(mark);
    let mut scope = Scope::of_node(marks);
    scope.dirs.push(dir.path().into());
    let before = Machine::now(&scope).unwrap();
    let down = Down(dir.path());

    let (ok, first) = demo(dir.path(), &[]);
    assert!(ok, "{first}");
    for seen in
        ["get Ready", "fetch from both", "killed and started again", "reaches both", "held back", "says why"]
    {
        assert!(first.lines().any(|l| l.starts_with('✓') && l.contains(seen)), "not seen: {seen}\n{first}");
    }
    let containers = cgroup::containers("berth-demo-test/kubepods");
    assert!(containers.len() >= 6, "{containers:?}");
    // The comparison at the end proves something only if the snapshot of the machine shows the demo's
    // objects.
    let during = Machine::now(&scope).unwrap();
    for kind in ["processes", "mounts", "network namespaces", "links", "cgroups", "files"] {
        assert!(during.counts()[kind] > before.counts()[kind], "the picture does not show the demo's {kind}");
    }

    let (ok, second) = demo(dir.path(), &[]);
    assert!(ok && second.contains("runs already"), "{second}");
    let alive = containers.values().flatten().filter(|p| p.alive()).count();
    assert!(alive >= 6, "only {alive} processes of the first run are alive after the second");

    drop(down);
    before.assert_as_before(&scope).unwrap();
    let (ok, again) = demo(dir.path(), &["--down"]);
    assert!(ok && again.contains("no demo"), "{again}");
}
