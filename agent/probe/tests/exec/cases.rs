//! The test cases.

use crate::fixture::{self, Container, Runc, prober, process, runtime, until};
use berth_core::probe::ProbeResult;
use berth_probe::{Endpoint, ExecOutcome, ExecTarget, Host, Prober, ProberConfig, ResolvedAction};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, Instant},
};

pub(crate) type Case = (&'static str, fn());

pub(crate) const ALL: &[Case] = &[
    ("outcomes", outcomes),
    ("identity_of_root", identity_of_root),
    ("identity_of_another_user", identity_of_another_user),
    ("ambient_capabilities", ambient_capabilities),
    ("surroundings", surroundings),
    ("namespaces_and_cgroups", namespaces_and_cgroups),
    ("timeout_kills_the_tree", timeout_kills_the_tree),
    ("orderly_end_kills_what_is_left", orderly_end_kills_what_is_left),
    ("output_is_bounded_and_drained", output_is_bounded_and_drained),
    ("without_cgroup_kill", without_cgroup_kill),
    ("frozen_container_delays_only_itself", frozen_container_delays_only_itself),
    ("gone_container_is_unknown", gone_container_is_unknown),
    ("killed_helper_is_unknown_and_cleaned_up_after", killed_helper_is_unknown_and_cleaned_up_after),
    ("dropped_question_ends_its_command", dropped_question_ends_its_command),
    ("seccomp_is_unsupported", seccomp_is_unsupported),
    ("no_descriptors_is_unknown", no_descriptors_is_unknown),
    ("program_file_is_read_only", program_file_is_read_only),
    ("same_as_runc_exec", same_as_runc_exec),
    ("many_leave_nothing", many_leave_nothing),
];

const LONG: Duration = Duration::from_secs(10);

/// The outcome of a command as a probe result.
async fn ask(prober: &Prober, target: &ExecTarget) -> ProbeResult {
    match prober.exec(target, LONG).await {
        Ok(outcome) => outcome.into_result(&target.command, LONG),
        Err(unsupported) => ProbeResult::Unknown(unsupported.0),
    }
}

/// Runs one command, which must exit with 0, in a new container by a new helper. Returns its
/// output.
fn output(process: &serde_json::Value, script: &str) -> (Container, String) {
    let container = Container::start();
    let outcome = runtime()
        .block_on(async { prober(&container).exec(&container.shell(process, script), LONG).await.unwrap() });
    match outcome {
        ExecOutcome::Exited { code: 0, output } => (container, output),
        other => panic!("{other:?}"),
    }
}

fn outcomes() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let ask = |command: &[&str]| {
            let target = container.target(&process(), command);
            let prober = prober.clone();
            async move { ask(&prober, &target).await }
        };
        assert_eq!(ask(&["true"]).await, ProbeResult::Success);
        assert_eq!(ask(&["/bin/true"]).await, ProbeResult::Success);
        assert_eq!(ask(&["false"]).await, ProbeResult::Failure(String::new()));
        assert_eq!(ask(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await, ProbeResult::Failure("out\nerr\n".into()));
        assert_eq!(ask(&["script"]).await, ProbeResult::Failure(String::new()));
        assert!(matches!(ask(&["sh", "-c", "kill -9 $$"]).await, ProbeResult::Failure(text) if text.contains("signal 9")));
        for missing in ["nonesuch", "/bin/nonesuch", "forbidden", "/bin", ""] {
            let answer = ask(&[missing]).await;
            assert!(matches!(answer, ProbeResult::Unknown(_)), "{missing:?}: {answer:?}");
        }
        let mut nowhere = process();
        nowhere["cwd"] = json!("/nonesuch");
        let outcome = prober.exec(&container.target(&nowhere, &["true"]), LONG).await.unwrap();
        assert!(matches!(&outcome, ExecOutcome::NotRun(why) if why.contains("working directory")), "{outcome:?}");
    });
    until("nothing is left", || container.clean());
}

fn fields(status: &str) -> BTreeMap<&str, String> {
    let words = |v: &str| v.split_whitespace().collect::<Vec<_>>().join(" ");
    status.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, words(v))).collect()
}

fn check_fields(status: &str, wanted: &[(&str, &str)]) {
    let fields = fields(status);
    for (name, value) in wanted {
        assert_eq!(fields.get(name).map(String::as_str), Some(*value), "{name} in\n{status}");
    }
}

fn identity_of_root() {
    let (_container, status) = output(&process(), "exec cat /proc/self/status");
    check_fields(
        &status,
        &[
            ("Uid", "0 0 0 0"),
            ("Gid", "0 0 0 0"),
            ("Groups", "0 10"),
            ("CapInh", "0000000000000000"),
            ("CapPrm", "00000000a80425fb"),
            ("CapEff", "00000000a80425fb"),
            ("CapBnd", "00000000a80425fb"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "0"),
            ("Seccomp", "0"),
            ("SigBlk", "0000000000000000"),
            ("SigIgn", "0000000000000000"),
            ("Umask", "0022"),
        ],
    );
}

fn identity_of_another_user() {
    let mut process = process();
    process["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [2000, 3000], "umask": 0o77});
    process["noNewPrivileges"] = json!(true);
    let (_container, status) =
        output(&process, "cat /proc/self/status; echo again >/dev/stderr || echo unwritable");
    check_fields(
        &status,
        &[
            ("Uid", "1000 1000 1000 1000"),
            ("Gid", "2000 2000 2000 2000"),
            ("Groups", "2000 3000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapBnd", "00000000a80425fb"),
            ("NoNewPrivs", "1"),
            ("Umask", "0077"),
        ],
    );
}

fn ambient_capabilities() {
    let mut process = process();
    process["user"] = json!({"uid": 1000, "gid": 1000});
    let bind = json!(["CAP_NET_BIND_SERVICE"]);
    for set in ["inheritable", "ambient"] {
        process["capabilities"][set] = bind.clone();
    }
    let (_container, status) = output(&process, "cat /proc/self/status");
    check_fields(
        &status,
        &[
            ("Groups", ""),
            ("CapInh", "0000000000000400"),
            ("CapPrm", "0000000000000400"),
            ("CapEff", "0000000000000400"),
            ("CapAmb", "0000000000000400"),
        ],
    );
}

fn surroundings() {
    let mut process = process();
    process["user"] = json!({"uid": 1000, "gid": 1000});
    process["cwd"] = json!("/srv/data");
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}]);
    process["oomScoreAdj"] = json!(987);
    let script = "env; pwd; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; ls /proc/self/fd; set -- $(cut -d' ' -f1,6 /proc/$$/stat); [ $1 = $2 ] && echo own session; readlink /proc/self/fd/0";
    let (_container, text) = output(&process, script);
    let lines: Vec<&str> = text.lines().collect();
    for line in [
        "HELLO=a b",
        "PATH=/usr/bin:/bin",
        "HOME=/home/web",
        "/srv/data",
        "111",
        "222",
        "987",
        "own session",
        "/dev/null",
    ] {
        assert!(lines.contains(&line), "{line} in\n{text}");
    }
    // `ls` itself holds the directory that it lists.
    let fds: Vec<_> = lines.iter().filter(|l| l.parse::<u32>().is_ok_and(|n| n < 100)).collect();
    assert_eq!(fds, [&"0", &"1", &"2", &"3"], "{text}");
    let known = ["HELLO", "PATH", "HOME", "PWD", "SHLVL", "OLDPWD", "_"];
    let names = lines.iter().filter_map(|l| l.split_once('=')).map(|(name, _)| name);
    assert_eq!(
        names.filter(|n| !known.contains(n)).count(),
        0,
        "nothing of the helper's environment: {text}"
    );
}

fn namespaces_and_cgroups() {
    let script =
        "for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
    let (container, text) = output(&process(), script);
    let mut lines = text.lines();
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
        let theirs = fs::read_link(format!("/proc/{}/ns/{kind}", container.pid)).unwrap();
        assert_eq!(lines.next(), theirs.to_str(), "{kind}");
    }
    let own = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    let mut below = 0;
    for (ours, theirs) in lines.zip(own.lines()) {
        let rest = ours.strip_prefix(theirs).unwrap_or_else(|| panic!("{ours} is not below {theirs}"));
        below += usize::from(rest.starts_with("/berth-exec-"));
        assert!(rest.is_empty() || rest.starts_with("/berth-exec-"), "{ours}");
    }
    assert_eq!(below, 1, "one group of its own:\n{text}");
}

const FORKS: &str = "sleep 1000 & sleep 1000 & (sleep 1000 & sleep 1000) & ";

fn timeout_kills_the_tree() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let started = Instant::now();
        let target = container.shell(&process(), &format!("{FORKS} echo there; sleep 1000"));
        let outcome = prober.exec(&target, Duration::from_millis(300)).await.unwrap();
        assert_eq!(outcome, ExecOutcome::TimedOut { output: "there\n".into() });
        assert!(started.elapsed() < Duration::from_secs(2));
    });
    until("nothing is left", || container.clean());
}

fn orderly_end_kills_what_is_left() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let target = container.shell(&process(), &format!("{FORKS} exit 0"));
        let outcome = prober.exec(&target, LONG).await.unwrap();
        assert_eq!(outcome, ExecOutcome::Exited { code: 0, output: String::new() });
        until("nothing is left", || container.clean());
    });
}

fn output_is_bounded_and_drained() {
    let container = Container::start();
    let outcome = runtime().block_on(async {
        prober(&container)
            .exec(&container.shell(&process(), "yes | head -c 3000000; exit 7"), LONG)
            .await
            .unwrap()
    });
    let ExecOutcome::Exited { code: 7, output } = outcome else { panic!("{outcome:?}") };
    assert_eq!(output.len(), 10 * 1024);
}

fn without_cgroup_kill() {
    let mut container = Container::start();
    let all = container.cgroups.clone();
    container.cgroups.retain(|dir| !dir.join("cgroup.kill").exists());
    // On a machine with only the unified hierarchy there is no other way.
    if !container.cgroups.is_empty() {
        let rt = runtime();
        rt.block_on(async {
            let prober = prober(&container);
            let bomb = "f() { while :; do sleep 1000 & done; }; f & f & sleep 1000";
            let outcome =
                prober.exec(&container.shell(&process(), bomb), Duration::from_millis(150)).await.unwrap();
            assert!(matches!(outcome, ExecOutcome::TimedOut { .. }), "{outcome:?}");
            until("nothing is left", || container.clean());
        });
    }
    container.cgroups = all;
}

fn frozen_container_delays_only_itself() {
    let (frozen, other) = (Container::start(), Container::start());
    let switch = frozen.cgroups.iter().find_map(|dir| {
        let v1 = dir.join("freezer.state");
        let v2 = dir.join("cgroup.freeze");
        if v1.exists() { Some((v1, "FROZEN", "THAWED")) } else { v2.exists().then_some((v2, "1", "0")) }
    });
    let (file, freeze, thaw) = switch.unwrap();
    fs::write(&file, freeze).unwrap();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&frozen);
        let stuck = frozen.target(&process(), &["true"]);
        let stuck = {
            let prober = prober.clone();
            async move { prober.exec(&stuck, Duration::from_millis(500)).await.unwrap() }
        };
        let fast = async {
            let started = Instant::now();
            for _ in 0..10 {
                let outcome = prober.exec(&other.target(&process(), &["true"]), LONG).await.unwrap();
                assert_eq!(outcome, ExecOutcome::Exited { code: 0, output: String::new() });
            }
            started.elapsed()
        };
        let (stuck, took) = tokio::join!(stuck, fast);
        assert!(matches!(stuck, ExecOutcome::NotRun(_)), "it never started: {stuck:?}");
        assert!(took < Duration::from_millis(400), "{took:?}");
        fs::write(&file, thaw).unwrap();
        until("nothing is left", || frozen.clean() && other.clean());
    });
}

fn gone_container_is_unknown() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let mut recycled = container.target(&process(), &["true"]);
        recycled.start_time += 1;
        let outcome = prober.exec(&recycled, LONG).await.unwrap();
        assert_eq!(outcome, ExecOutcome::NotRun("the container has ended".into()));
        let target = container.target(&process(), &["true"]);
        assert!(Command::new("kill").args(["-9", &container.pid.to_string()]).status().unwrap().success());
        until("it is gone", || fs::read_link(format!("/proc/{}/ns/pid", container.pid)).is_err());
        let answer = ask(&prober, &target).await;
        assert!(matches!(answer, ProbeResult::Unknown(_)), "{answer:?}");
    });
}

fn killed_helper_is_unknown_and_cleaned_up_after() {
    let container = Container::start();
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    rt.block_on(async {
        let prober = prober(&container);
        let target = container.shell(&process(), "setsid sleep 1000 & sleep 1000 & sleep 1000");
        let asked = tokio::spawn({
            let prober = prober.clone();
            async move { prober.exec(&target, LONG).await.unwrap() }
        });
        until("the command runs", || container.others().len() >= 3);
        let helper = fixture::helper().unwrap();
        assert!(Command::new("kill").args(["-9", &helper.to_string()]).status().unwrap().success());
        let outcome = asked.await.unwrap();
        assert!(matches!(outcome, ExecOutcome::NotRun(_)), "{outcome:?}");
        let again = container.target(&process(), &["true"]);
        until("a new helper answers", || {
            let outcome = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(prober.exec(&again, LONG)).unwrap()
            });
            matches!(outcome, ExecOutcome::Exited { code: 0, .. })
        });
        until("nothing is left", || container.clean());
    });
}

fn dropped_question_ends_its_command() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let target = container.shell(&process(), &format!("{FORKS} sleep 1000"));
        let dropped = tokio::time::timeout(Duration::from_millis(200), prober.exec(&target, LONG)).await;
        assert!(dropped.is_err());
        let end = Instant::now() + Duration::from_secs(5);
        while !container.clean() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(container.clean());
    });
}

fn seccomp_is_unsupported() {
    let container = Container::start();
    let mut target = container.target(&process(), &["true"]);
    target.process.seccomp = Some(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    let prober = prober(&container);
    assert!(runtime().block_on(prober.exec(&target, LONG)).is_err());
    let answer = runtime().block_on(ask(&prober, &target));
    assert!(matches!(answer, ProbeResult::Unknown(_)));
}

fn no_descriptors_is_unknown() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let rt = runtime();
    let container = Container::start();
    rt.block_on(async {
        let prober = prober(&container);
        let at = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = at.local_addr().unwrap().port();
        let host = Host::Address("127.0.0.1".parse().unwrap());
        let tcp = ResolvedAction::Tcp(Endpoint { host, port, node_local: true });
        let exec = container.target(&process(), &["true"]);
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
        let answers = [prober.ask(&tcp, LONG).await, ask(&prober, &exec).await];
        setrlimit(Resource::Nofile, before).unwrap();
        for answer in answers {
            assert!(matches!(answer, ProbeResult::Unknown(_)), "{answer:?}");
        }
        assert_eq!(prober.ask(&tcp, LONG).await, ProbeResult::Success);
    });
}

/// A container that may trace reaches the program's file through a process that is entering it. The
/// container must not be able to change the file.
fn program_file_is_read_only() {
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        prober.exec(&container.target(&process(), &["true"]), LONG).await.unwrap();
        let file = format!("/proc/{}/exe", fixture::helper().unwrap());
        // The program runs, so writing would be refused anyway at this moment: the mount itself is
        // checked.
        let flags = rustix::fs::statvfs(&file).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
        let own = rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag;
        assert!(!own.contains(rustix::fs::StatVfsMountFlags::RDONLY), "it would prove nothing");
    });
}

/// Prints the command's own attributes without those that differ from run to run. Ignored signals have a case
/// of their own: runc is started here by the C library's posix_spawn, which leaves its two internal signals
/// ignored.
pub(crate) const LOOK: &str = "grep -vE '^(Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|Ngid|Vm|Rss|Huge|.*ctxt|SigQ|SigIgn|THP|State|PPid)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj; env | sort; pwd; umask; ls -1 /proc/self/fd
for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done";

fn same_as_runc_exec() {
    let container = Runc::start();
    let spec: serde_json::Value =
        serde_json::from_slice(&fs::read(container.bundle.path().join("config.json")).unwrap()).unwrap();
    let rt = runtime();
    rt.block_on(async {
        let prober = Prober::new(ProberConfig::new(std::env::current_exe().unwrap(), vec![])).unwrap();
        for user in [json!({"uid": 0, "gid": 0, "additionalGids": [0, 10]}), json!({"uid": 1000, "gid": 7})] {
            for privileged in [false, true] {
                let mut process = spec["process"].clone();
                process["user"] = user.clone();
                process["noNewPrivileges"] = json!(!privileged);
                if privileged {
                    let all = fixture::held_capabilities();
                    process["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
                }
                process["args"] = json!(["sh", "-c", LOOK]);
                let theirs = container.exec(&process);
                let ours = prober.exec(&container.target(&process), LONG).await.unwrap();
                assert!(theirs.contains("CapEff") && theirs.contains("pid:["), "{theirs}");
                assert_eq!(ours, ExecOutcome::Exited { code: 0, output: theirs }, "{user} {privileged}");
            }
        }
    });
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    after.split_whitespace().skip(11).take(4).map(|n| n.parse::<u64>().unwrap()).sum()
}

fn many_leave_nothing() {
    const ROUNDS: u32 = 200;
    let container = Container::start();
    let rt = runtime();
    rt.block_on(async {
        let prober = prober(&container);
        let target = container.target(&process(), &["true"]);
        let good = ExecOutcome::Exited { code: 0, output: String::new() };
        assert_eq!(prober.exec(&target, LONG).await.unwrap(), good);
        let helper = fixture::helper().unwrap();
        let count = |dir: String| fs::read_dir(dir).unwrap().count();
        until("the first is gone", || container.clean());
        let fds = || (count(format!("/proc/{helper}/fd")), count("/proc/self/fd".into()));
        let (before, ticks, started) = (fds(), cpu_ticks(helper), Instant::now());
        for _ in 0..ROUNDS {
            assert_eq!(prober.exec(&target, LONG).await.unwrap(), good);
        }
        let wall = started.elapsed();
        until("nothing is left", || container.clean());
        until("descriptors are as before", || fds() == before);
        let ticks = cpu_ticks(helper) - ticks;
        println!(
            "exec of `true`: {} us wall, {} us CPU (helper and its children, clock of 10 ms), {ROUNDS} rounds",
            wall.as_micros() / u128::from(ROUNDS),
            ticks * 10_000 / u64::from(ROUNDS)
        );
        let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
        assert_eq!(children.trim(), "", "no child is left unreaped");
    });
}
