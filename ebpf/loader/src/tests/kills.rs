//! Kills of a loader, at every step and at any instant.

use super::{Cgroup, Scratch, client, load::assert_whole, other_build, sockets};
use crate::{Access, Datapath, OBJECT, Pins, attach, digest, load};
use berth_ebpf_abi::{Client, SCHEMA};
use nix::sys::signal::{Signal, raise};
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

/// Environment variable that gives the test binary a role instead of running tests.
const ROLE: &str = "BERTH_LOADER_TEST_ROLE";
const TEST: &str = "tests::kills::a_loader_killed_at_any_step_is_completed_by_the_next";

/// A shell command that runs the test binary in a role.
pub(super) fn as_role(role: &str, pins: &Pins, cgroup: Option<&Path>) -> String {
    format!(
        "{ROLE}={role} PINS={} CGROUP={} exec {} --exact {TEST} --nocapture",
        pins.root().display(),
        cgroup.unwrap_or(Path::new("")).display(),
        env::current_exe().unwrap().display(),
    )
}

pub(super) fn start(role: &str, pins: &Pins, cgroup: &Path) -> Child {
    Command::new("/bin/sh").args(["-c", &as_role(role, pins, Some(cgroup))]).spawn().unwrap()
}

/// Runs the role from the environment; returns false where the variable is not set.
fn play() -> bool {
    let Ok(role) = env::var(ROLE) else { return false };
    let pins = Pins::new(env::var("PINS").unwrap());
    let cgroup = env::var("CGROUP").unwrap();
    let (role, at) = role.split_once(':').unwrap_or((&role, ""));
    match role {
        "load" => load(&pins, OBJECT, |_| {}).unwrap(),
        // Loads the other build and dies at a step.
        "die" => {
            let mut left: usize = at.parse().unwrap();
            let to = builds().into_iter().find(|to| !is_loaded(&pins, to)).unwrap();
            let step = |_| {
                if left == 0 {
                    raise(Signal::SIGKILL).unwrap();
                }
                left -= 1;
            };
            load(&pins, &to, step).unwrap();
        }
        // Loads and attaches another build with another schema.
        "upgrade" => {
            let pins = pins.with_schema(SCHEMA + at.parse::<u32>().unwrap());
            load(&pins, &other_build(2), |_| {}).unwrap();
            attach(&pins, Path::new(&cgroup)).unwrap();
        }
        "client" => client::run(Path::new(&cgroup)),
        "dial" => sockets::dial(&pins, Path::new(&cgroup)),
        other => panic!("no role {other}"),
    }
    true
}

/// Two builds, each of which replaces the other.
fn builds() -> [Vec<u8>; 2] {
    [OBJECT.to_vec(), other_build(1)]
}

fn is_loaded(pins: &Pins, build: &[u8]) -> bool {
    pins.loaded_digest().unwrap() == Some(digest(build))
}

#[test]
fn a_loader_killed_at_any_step_is_completed_by_the_next() {
    if play() {
        return;
    }
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    let mut steps = 0;
    load(&pins, OBJECT, |_| steps += 1).unwrap();
    assert!(steps > 8, "one a program at least");
    Datapath::open(&pins, Access::Write).unwrap().client.put(&7, &Client::default()).unwrap();
    attach(&pins, cgroup.path()).unwrap();
    for step in 0..steps {
        let to = builds().into_iter().find(|to| !is_loaded(&pins, to)).unwrap();
        let ended = start(&format!("die:{step}"), &pins, cgroup.path()).wait().unwrap();
        assert_eq!(ended.signal(), Some(9), "step {step}");
        // The attachments survive.
        assert_eq!(fs::read_dir(pins.links()).unwrap().count(), 8);
        load(&pins, &to, |_| {}).unwrap();
        attach(&pins, cgroup.path()).unwrap();
        assert_whole(&pins, &to);
        assert!(Datapath::open(&pins, Access::Read).unwrap().client.get(&7).unwrap().is_some());
    }
}

#[test]
fn an_upgrade_killed_at_any_instant_is_completed_by_the_next() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    attach(&pins, cgroup.path()).unwrap();
    let start_of_whole = Instant::now();
    assert!(start("upgrade:0", &pins, cgroup.path()).wait().unwrap().success());
    let whole = start_of_whole.elapsed();
    let rounds = 24;
    let mut killed = 0;
    for round in 0..rounds {
        // Loads another build, alternately with another schema.
        let schema = round % 2;
        let target = pins.clone().with_schema(SCHEMA + schema);
        let mut child = start(&format!("upgrade:{schema}"), &pins, cgroup.path());
        let patience = whole * round / rounds;
        let started = Instant::now();
        while started.elapsed() < patience && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        load(&target, &other_build(2), |_| {}).unwrap();
        attach(&target, cgroup.path()).unwrap();
        assert_whole(&target, &other_build(2));
    }
    assert!(killed >= rounds / 3, "killed {killed} of {rounds}");
}
