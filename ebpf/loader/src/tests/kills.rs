//! Kills of a loader at every step, and before changes of its pins and links.

use super::{
    Cgroup, Scratch, client,
    load::assert_whole,
    other_build, sockets,
    trace::{Traced, wait_for_tracer},
};
use crate::{Access, Datapath, OBJECT, Pins, Step, attach, digest, load};
use berth_ebpf_abi::{Client, SCHEMA};
use nix::sys::signal::{Signal, raise};
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command},
};

/// Kills of each kind of upgrade.
const KILLS: usize = 8;

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
        "load" => load(&pins, OBJECT, |step| {
            if step == Step::Sockets {
                println!("sockets");
            }
        })
        .unwrap(),
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
            let (schema, build) = at.split_once(':').unwrap();
            let pins = pins.with_schema(SCHEMA + schema.parse::<u32>().unwrap());
            wait_for_tracer();
            load(&pins, &other_build(build.parse().unwrap()), |_| {}).unwrap();
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

/// A replacement of builds, for the role `upgrade`.
#[derive(Clone, Copy)]
struct Upgrade {
    /// Added to [`SCHEMA`].
    schema: u32,
    build: u8,
}

impl Upgrade {
    /// The next build with the same schema.
    fn of_build(self) -> Upgrade {
        Upgrade { build: self.build % 2 + 1, ..self }
    }

    /// The next build with another schema.
    fn of_schema(self) -> Upgrade {
        Upgrade { schema: 1 - self.schema, ..self.of_build() }
    }

    fn start(self, pins: &Pins, cgroup: &Path) -> Traced {
        let role = format!("upgrade:{}:{}", self.schema, self.build);
        Traced::start(Command::new("/bin/sh").args(["-c", &as_role(&role, pins, Some(cgroup))]))
    }
}

/// Kills spread evenly over all changes that an upgrade makes to pins and links, with the same schema and with
/// another one.
#[test]
fn an_upgrade_killed_at_any_instant_is_completed_by_the_next() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    attach(&pins, cgroup.path()).unwrap();
    let mut last = Upgrade { schema: 0, build: 1 };
    assert!(last.start(&pins, cgroup.path()).run(None).1.success());
    for next in [Upgrade::of_build, Upgrade::of_schema] {
        last = next(last);
        let (changes, ended) = last.start(&pins, cgroup.path()).run(None);
        assert!(ended.success());
        assert!(changes > 2 * KILLS, "{changes} changes");
        for kill in 0..KILLS {
            last = next(last);
            // The last kill is before the last change.
            let at = (kill + 1) * changes / KILLS - 1;
            let (made, ended) = last.start(&pins, cgroup.path()).run(Some(at));
            assert_eq!((made, ended.signal()), (at, Some(9)), "kill before change {at} of {changes}");
            let target = pins.clone().with_schema(SCHEMA + last.schema);
            load(&target, &other_build(last.build), |_| {}).unwrap();
            attach(&target, cgroup.path()).unwrap();
            assert_whole(&target, &other_build(last.build));
        }
    }
}
