//! Kills of the agent, logd and containerd at random moments. No container may restart, readiness may not
//! flap, no line of output may be lost or repeated, and no object may be left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, Result, bail, ensure};
use berth_core::plan::Action;
use berth_harness::{
    cgroup, logs,
    node::{Node, TestNode},
    process::Process,
    rng::{self, Rng},
    socket::{Change, Pod, Socket},
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use support::{
    STABLE, apply, apply_stable, assert_nothing_left, assert_stable, container, on_a_node, pod, rounds,
    shell, stable_processes,
};

/// Thread that watches the stable pods over the agent's socket, and reconnects after each death of the agent.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

impl Watcher {
    fn start(node: &Node) -> Watcher {
        let (socket, stop) = (node.roots.agent_socket(), Arc::new(AtomicBool::new(false)));
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut seen, mut wrong) = (0, Vec::new());
            while !ends.load(Ordering::Relaxed) {
                let Ok(mut watch) = Socket::connect(&socket).and_then(Socket::watch) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                while let Ok(change) = watch.next(Instant::now() + Duration::from_millis(200)) {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Some(Change::Pod(pod)) = change
                        && STABLE.contains(&pod.name().as_str())
                    {
                        seen += 1;
                        if pod.condition("Ready") == "False" || pod.condition("ContainersReady") == "False" {
                            wrong.push(format!(
                                "{} is not Ready: {} {}",
                                pod.name(),
                                pod.waiting_for(),
                                pod.status()
                            ));
                        }
                    }
                }
            }
            (seen, wrong)
        });
        Watcher { stop, thread }
    }

    /// Stops the thread. Fails if a pod was not Ready, or if fewer than `at_least` statuses arrived.
    fn end(self, at_least: u64) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok((seen, wrong)) = self.thread.join() else { bail!("the watcher failed") };
        ensure!(wrong.is_empty(), "readiness flapped:\n{}", wrong.join("\n"));
        ensure!(seen >= at_least, "the watcher saw the pods {seen} times only");
        Ok(())
    }
}

/// Source of pods that are created and deleted during the kills, at most five at a time.
struct Churn {
    rng: Rng,
    next: u32,
    there: Vec<String>,
}

impl Churn {
    fn step(&mut self, node: &Node) -> Result<()> {
        if self.there.len() >= 4 || (!self.there.is_empty() && self.rng.below(3) == 0) {
            let at = usize::try_from(self.rng.below(self.there.len() as u64))?;
            let name = self.there.swap_remove(at);
            return node.remove(&format!("{name}.yaml"));
        }
        self.next += 1;
        let name = format!("churn-{}", self.next);
        let text = match self.rng.below(4) {
            0 => shell(&name, "restartPolicy: Never", "exit 2"),
            1 => shell(&name, "terminationGracePeriodSeconds: 1", "trap '' TERM; while :; do sleep 1; done"),
            2 => pod(
                &name,
                &format!(
                    "volumes: [{{name: v, emptyDir: {{}}}}]\ninitContainers:\n{}",
                    container("init", "exit 0", "")
                ),
                &container("main", "exec sleep infinity", HOOKS),
            ),
            _ => shell(&name, "", "exit 1"),
        };
        apply(
            node,
            &name,
            &text.replacen(
                "  terminationGracePeriodSeconds: 2\n  terminationGracePeriodSeconds",
                "  terminationGracePeriodSeconds",
                1,
            ),
        )?;
        self.there.push(name);
        Ok(())
    }
}

const HOOKS: &str = "volumeMounts: [{name: v, mountPath: /v}]\nlifecycle: {postStart: {exec: {command: [touch, /v/p]}}, \
                     preStop: {exec: {command: [touch, /v/q]}}}";

/// Sleeps for this long, in steps of a millisecond.
fn pause(millis: u64) {
    let until = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Number of lines that the writer has written. Fails unless each line is there once and in order over all
/// log files.
fn assert_lines(node: &Node) -> Result<u64> {
    let pods = node.pods()?;
    let writer = pods.get("default/writer").context("no writer")?;
    let (first, last) = logs::numbered_from(&logs::text(&node.log_dir(writer, "main"), 0, "stdout")?)?;
    ensure!(first == 1, "the first line is {first}: the files were rotated away");
    Ok(last)
}

#[test]
fn the_agent_is_killed_at_any_moment() {
    on_a_node(Build::Failpoints, |node| {
        let kills = rounds(200);
        let seed = rng::seed();
        // The rate makes the log rotate at least once, but not so often that the oldest file is deleted.
        apply_stable(node, if support::full() { 1_000 } else { 5_000 })?;
        let before = stable_processes(node)?;
        let watcher = Watcher::start(node);
        let mut churn = Churn { rng: Rng::new(seed), next: 0, there: Vec::new() };
        let mut rng = Rng::new(seed ^ 0xb0a7);
        for kill in 0..kills {
            for _ in 0..=rng.below(2) {
                churn.step(node)?;
            }
            let agent = node.spawn_agent()?;
            // A third of the kills hits the first 60 ms of the agent's start, the others its work.
            let longest = if rng.below(3) == 0 { 60 } else { 1_200 };
            pause(rng.below(longest));
            ensure!(
                agent.alive(),
                "kill {kill}, seed {seed}: the agent ended by itself:\n{}",
                node.last_words()
            );
            agent.kill()?;
            if kill % 20 == 19 {
                node.start_agent()?;
                assert_stable(node, &before).with_context(|| format!("after kill {kill}, seed {seed}"))?;
            }
        }
        node.start_agent()?;
        assert_stable(node, &before).with_context(|| format!("seed {seed}"))?;
        watcher.end(kills / 4)?;
        let lines = assert_lines(node)?;
        ensure!(lines > 100, "only {lines} lines");
        assert_nothing_left(node).with_context(|| format!("seed {seed}"))
    });
}

/// Manifest of a pod that causes every kind of action during its life.
fn exercise(name: &str) -> String {
    let crash = container("crash", "exit 1", "");
    let main = container("main", "trap '' TERM; while :; do sleep 1; done", HOOKS);
    let init = container("init", "exit 0", "");
    pod(
        name,
        &format!("volumes: [{{name: v, emptyDir: {{}}}}]\ninitContainers:\n{init}"),
        &format!("{main}{crash}"),
    )
    .replace("terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 1")
}

/// Container processes that run now and must survive the agent.
fn running(node: &Node) -> BTreeMap<PathBuf, BTreeSet<Process>> {
    let mut all = cgroup::containers(&node.cgroup);
    all.values_mut().for_each(|processes| processes.retain(runs_a_program));
    all.retain(|_, processes| !processes.is_empty());
    all
}

/// False for a process that is still `runc init`: containerd takes back a start whose client died, and the
/// next agent starts the container again.
fn runs_a_program(process: &Process) -> bool {
    match process.command_line().as_slice() {
        [] => false,
        [program, word] => !(word == "init" && program.ends_with("runc")),
        _ => true,
    }
}

#[test]
fn the_agent_is_killed_before_and_after_every_kind_of_action() {
    on_a_node(Build::Failpoints, |node| {
        apply_stable(node, 1_000)?;
        let before = stable_processes(node)?;
        let watcher = Watcher::start(node);
        let mut points: Vec<(String, &str)> = Action::KINDS
            .iter()
            .flat_map(|kind| ["before", "after"].map(|side| (format!("{side}:{kind}"), *kind)))
            .collect();
        if !support::full() {
            // A tenth of the points; the seed chooses which tenth.
            let (step, first) = (10, usize::try_from(rng::seed() % 10)?);
            points = points.into_iter().skip(first).step_by(step).collect();
        }
        for (n, (point, kind)) in points.iter().enumerate() {
            at_failpoint(node, point, kind, n).with_context(|| format!("killed {point}"))?;
            assert_stable(node, &before).with_context(|| format!("killed {point}"))?;
        }
        watcher.end(1)?;
        assert_lines(node)?;
        assert_nothing_left(node)
    });
}

/// Kills the agent at the point during a pod's life, starts the next agent, and follows the pod to its
/// removal.
fn at_failpoint(node: &mut TestNode, point: &str, kind: &str, n: usize) -> Result<()> {
    let name = format!("exercise-{n}");
    let (file, full) = (format!("{name}.yaml"), format!("default/{name}"));
    let works = |p: &Pod| {
        p.container("main")["ready"] == true
            && p.restarts("crash") >= 1
            && p.container("init")["state"]["terminated"]["exitCode"] == 0
    };
    let while_ending =
        ["PreStop", "Signal", "Kill", "TeardownSandbox", "UnmountVolumes", "RemovePod"].contains(&kind);
    // A pod with a UID of its own stays the same pod when its resources change.
    let resize = kind == "ResizePod";
    let manifest = |cpu: &str| {
        let text = exercise(&name)
            .replace(&format!("{{name: {name}}}"), &format!("{{name: {name}, uid: {name}-1}}"));
        text.replacen("    image:", &format!("    resources: {{requests: {{cpu: {cpu}}}}}\n    image:"), 3)
    };
    if resize {
        apply(node, &name, &manifest("10m"))?;
        node.pod("works", &full, PATIENCE, works)?;
    } else if while_ending || kind == "EnsurePause" {
        apply(node, &name, &exercise(&name))?;
        node.pod("works", &full, PATIENCE, works)?;
    }
    node.stop_agent()?;
    node.agent_env.insert("BERTH_FAILPOINT".into(), format!("{point}:1"));
    let agent = node.spawn_agent()?;
    node.agent_env.clear();
    if kind == "EnsurePause" {
        let uid = wait::ok("the agent answers", PATIENCE, || {
            node.pods()?.get(&full).map(Pod::uid).context("the pod is not there")
        })?;
        cgroup::pauses(&node.cgroup).get(&uid).context("the pod has no pause")?.kill()?;
    } else if while_ending {
        node.remove(&file)?;
    } else if resize {
        apply(node, &name, &manifest("20m"))?;
    } else {
        apply(node, &name, &exercise(&name))?;
    }
    agent.gone(PATIENCE).with_context(|| format!("the place is never passed:\n{}", node.last_words()))?;
    let at_death = running(node);
    node.start_agent()?;
    if !while_ending {
        node.pod("works", &full, PATIENCE, works)?;
        let now = running(node);
        for (group, processes) in &at_death {
            // The init container and the crashing container may have ended by themselves; all others must be
            // the same processes.
            ensure!(
                !now.contains_key(group)
                    || now.get(group).is_some_and(|n| n.is_superset(&mains(processes, n))),
                "{} was restarted",
                group.display()
            );
        }
        node.remove(&file)?;
    }
    node.gone(&full, PATIENCE)
}

/// The oldest process of a container, which is the container's main process. Younger ones (a loop's `sleep
/// 1`) may have ended by themselves. Empty if the container runs no process now.
fn mains(before: &BTreeSet<Process>, now: &BTreeSet<Process>) -> BTreeSet<Process> {
    let oldest = before.iter().min_by_key(|p| (p.start, p.pid)).copied();
    oldest.into_iter().filter(|_| !now.is_empty()).collect()
}

#[test]
fn containerd_is_killed_and_a_shim_stopped() {
    on_a_node(Build::Failpoints, |node| {
        apply_stable(node, 1_000)?;
        let before = stable_processes(node)?;
        let watcher = Watcher::start(node);
        let mut rng = Rng::new(rng::seed());
        for round in 0..rounds(20) {
            node.containerd.kill()?;
            pause(rng.below(1_500));
            node.containerd.start()?;
            let name = format!("after-{round}");
            apply(node, &name, &shell(&name, "", "exec sleep infinity"))?;
            node.ready(&format!("default/{name}"))?;
            node.remove(&format!("{name}.yaml"))?;
            assert_stable(node, &before)?;
        }
        // A stopped shim of the writer must not hold up other pods.
        let writer = before["default/writer"]["main"];
        let shim = wait::some("the writer's shim is found", PATIENCE, || parent(writer))?;
        ensure!(node.containerd.shims().contains(&shim), "{shim:?} is no shim");
        shim.signal(nix::libc::SIGSTOP)?;
        let served = (|| -> Result<()> {
            for n in 0..3 {
                let name = format!("beside-{n}");
                apply(node, &name, &shell(&name, "", "exec sleep infinity"))?;
                node.ready(&format!("default/{name}"))?;
            }
            Ok(())
        })();
        shim.signal(nix::libc::SIGCONT)?;
        served?;
        assert_stable(node, &before)?;
        watcher.end(1)?;
        assert_lines(node)?;
        assert_nothing_left(node)
    });
}

fn parent(process: Process) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    let parent = text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    Process::of(parent)
}

#[test]
fn an_agent_before_containerd_and_a_second_agent() {
    on_a_node(Build::Plain, |node| {
        node.stop_agent()?;
        node.containerd.stop()?;
        let agent = node.start_agent()?;
        apply(node, "early", &shell("early", "", "exec sleep infinity"))?;
        let waiting =
            node.pod("says what it waits for", "default/early", PATIENCE, |p| !p.waiting_for().is_empty())?;
        ensure!(!waiting.ready());
        node.containerd.start()?;
        node.ready("default/early")?;
        ensure!(node.agent() == Some(agent), "the agent was restarted");
        let manifests = node.manifests();
        let second = node.berth(&["agent", "--standalone", "--manifests", &manifests.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        ensure!(!second.status.success() && said.contains(&agent.pid.to_string()), "{said}");
        ensure!(agent.alive());
        node.ready("default/early").map(drop)
    });
}

#[test]
fn after_a_reboot_all_comes_back_and_no_address_is_lost() {
    on_a_node(Build::Plain, |node| {
        // The subnet has fewer addresses than three boots of these pods would take if a reboot lost
        // addresses.
        let conflist = node.roots.cni_conf.join("10-berth.conflist");
        let (v4, _) = node.subnets();
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&conflist)?)?;
        list["plugins"][0]["subnets"] = serde_json::json!([v4.replace(".0/24", ".0/29")]);
        fs::write(&conflist, list.to_string())?;
        let boot_id = node.dir.join("boot-id");
        fs::write(&boot_id, "00000000-0000-4000-8000-000000000000\n")?;
        node.stop_agent()?;
        for helper in node.helpers("logd") {
            helper.kill()?;
        }
        reset(node)?;
        node.roots.boot_id = boot_id.clone();
        node.write_roots()?;
        node.start_agent()?;
        let names = ["one", "two", "three"];
        for name in names {
            apply(node, name, &shell(name, "", "exec sleep infinity"))?;
        }
        for boot in 1..=3 {
            let mut ips = BTreeSet::new();
            for name in names {
                ips.insert(node.ready(&format!("default/{name}"))?.ip().to_owned());
            }
            ensure!(ips.len() == names.len(), "boot {boot}: {ips:?}");
            let old = running(node);
            reboot(node)?;
            fs::write(&boot_id, format!("00000000-0000-4000-8000-00000000000{boot}\n"))?;
            ensure!(old.values().flatten().all(|p| !p.alive()), "the reboot left processes");
            node.containerd.start()?;
            node.start_agent()?;
        }
        for name in names {
            let pod = node.ready(&format!("default/{name}"))?;
            ensure!(pod.processes().values().all(Process::alive));
        }
        assert_nothing_left(node)
    });
}

/// Removes the agent's sysctls, rules and programs, as a new kernel has none of them. Otherwise the next
/// agent, which sees another boot id, would take the settings of the agent before for the machine's own.
fn reset(node: &Node) -> Result<()> {
    let done = node.berth(&["reset"])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Removes what a reboot removes: processes, namespaces, mounts, files on a tmpfs and settings of the kernel.
fn reboot(node: &Node) -> Result<()> {
    node.kill_agent()?;
    for role in ["logd", "probe-exec"] {
        for helper in node.helpers(role) {
            helper.kill()?;
        }
    }
    reset(node)?;
    node.containerd.kill()?;
    node.containerd.stop()?;
    cgroup::remove(&node.cgroup)?;
    for dir in [&node.roots.runtime_state, &node.dir] {
        for mount in berth_sys::mount::mounts_below(dir)?.iter().rev() {
            berth_sys::mount::unmount(&mount.mount_point)?;
        }
    }
    for dir in
        [node.roots.runtime_state.clone(), node.dir.join("containerd/state"), node.dir.join("containerd/s")]
    {
        if dir.exists() {
            berth_sys::mount::remove_tree_no_xdev(&dir)?;
        }
    }
    fs::create_dir_all(&node.roots.runtime_state)?;
    Ok(())
}
