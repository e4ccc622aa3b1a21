//! Manifests and checks that the suites share.
#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]

use anyhow::{Context, ensure};
use berth_csi_client::testing::{TestDriver, TestRegistration};
use berth_harness::{cgroup, process::Process, wait};
use berth_harness::{
    machine::{Machine, Scope},
    node::{Node, TestNode},
    tools::Build,
};
use std::{collections::BTreeMap, ffi::OsStr, process::Command, time::Duration};

/// Image of the test pods: busybox and the `berth-test` program.
pub const IMAGE: &str = "berth.test/test:1";

/// Whether the suites run in full instead of a tenth (`BERTH_SCALE=full`).
pub fn full() -> bool {
    std::env::var_os("BERTH_SCALE").as_deref() == Some(OsStr::new("full"))
}

/// Introduces a driver to the node's agent, for as long as the value lives.
pub fn register(node: &TestNode, driver: &TestDriver) -> anyhow::Result<TestRegistration> {
    let registry = node.roots.pod_state.join("plugins_registry");
    std::fs::create_dir_all(&registry)?;
    let (socket, endpoint) = (registry.join("test.sock"), driver.endpoint());
    Ok(TestRegistration::start(&socket, "CSIPlugin", "test.csi.example", &endpoint, &["1.0.0"])?)
}

/// Runs a test on a node of its own. Fails if the machine differs afterwards.
pub fn on_a_node(build: Build, test: impl FnOnce(&mut TestNode) -> anyhow::Result<()>) {
    on_a_prepared_node(build, |_node| Ok(()), test);
}

/// The same; `prepare` acts on the node before its agent starts.
pub fn on_a_prepared_node(
    build: Build,
    prepare: impl FnOnce(&mut TestNode) -> anyhow::Result<()>,
    test: impl FnOnce(&mut TestNode) -> anyhow::Result<()>,
) {
    let before = Machine::now(&Scope::of_node(Vec::new())).unwrap();
    let mut node = TestNode::prepare(build).unwrap();
    let scope = Scope::of_node(node.marks());
    let run = |node: &mut TestNode| {
        prepare(node)?;
        node.start_agent()?;
        test(node)
    };
    if let Err(error) = run(&mut node) {
        panic!("{error:?}");
    }
    node.end().unwrap();
    before.assert_as_before(&scope).unwrap();
}

/// Manifest of a pod with one container that runs a shell script.
pub fn shell(name: &str, extra: &str, script: &str) -> String {
    pod(name, extra, &container("main", script, ""))
}

/// Manifest of a pod. `extra` holds more lines of the spec, `containers` the entries of the list of
/// containers.
pub fn pod(name: &str, extra: &str, containers: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 2\n{}  \
         containers:\n{containers}",
        indent(extra, 2)
    )
}

/// Entry of a list of containers. `extra` holds more lines of the entry.
pub fn container(name: &str, script: &str, extra: &str) -> String {
    format!(
        "  - name: {name}\n    image: {IMAGE}\n    command:\n    - sh\n    - -c\n    - |\n{}{}",
        indent(script, 6),
        indent(extra, 4)
    )
}

fn indent(text: &str, by: usize) -> String {
    text.lines().map(|l| format!("{:by$}{l}\n", "")).collect()
}

/// Writes a manifest file with the pod's name.
pub fn apply(node: &Node, name: &str, text: &str) -> anyhow::Result<()> {
    node.apply(&format!("{name}.yaml"), text)
}

/// Number of rounds: `all`, or a tenth of them.
pub fn rounds(all: u64) -> u64 {
    if full() { all } else { all.div_ceil(10) }
}

/// Applies the pods that no fault may disturb: a writer of numbered lines, and a pod with every probe and a
/// sidecar.
pub fn apply_stable(node: &Node, lines_per_second: u64) -> anyhow::Result<()> {
    let rate = lines_per_second * 100;
    let writer = format!(
        "  - name: main\n    image: {IMAGE}\n    command: [/bin/berth-test, write, \"0\", \"{rate}\", \"100\"]\n"
    );
    apply(node, "writer", &pod("writer", "", &writer))?;
    let side = container("side", "exec sleep infinity", "restartPolicy: Always");
    let web = container(
        "main",
        "mkdir /www; echo ok > /www/index.html; exec httpd -f -p 80 -h /www",
        "startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}\nreadinessProbe: {httpGet: {port: 80}, periodSeconds: 1, \
         timeoutSeconds: 5}\nlivenessProbe: {exec: {command: [test, -e, /www]}, periodSeconds: 1, timeoutSeconds: 5}",
    );
    apply(node, "web", &pod("web", &format!("initContainers:\n{side}"), &web))
}

/// Names of the pods of [`apply_stable`].
pub const STABLE: [&str; 2] = ["default/writer", "default/web"];

/// Processes of the stable pods. Waits until the pods are Ready.
pub fn stable_processes(node: &Node) -> anyhow::Result<BTreeMap<String, BTreeMap<String, Process>>> {
    STABLE.iter().map(|name| Ok(((*name).to_owned(), node.ready(name)?.processes()))).collect()
}

/// Fails unless the stable pods are Ready and run in the same processes as before.
pub fn assert_stable(
    node: &Node,
    before: &BTreeMap<String, BTreeMap<String, Process>>,
) -> anyhow::Result<()> {
    let now = stable_processes(node)?;
    ensure!(now == *before, "restarted: before {before:?}, now {now:?}");
    ensure!(before.values().flatten().all(|(_, p)| p.alive()), "not alive: {before:?}");
    for (name, pod) in node.pods()?.iter().filter(|(name, _)| STABLE.contains(&name.as_str())) {
        for container in ["main", "side"] {
            ensure!(
                pod.restarts(container) == 0,
                "{name}/{container} counts {} restarts",
                pod.restarts(container)
            );
        }
    }
    Ok(())
}

/// Removes all pods and fails if the kernel or containerd still lists an object of them.
pub fn assert_nothing_left(node: &Node) -> anyhow::Result<()> {
    node.end_pods()?;
    wait::ok("nothing of the pods is left", Duration::from_secs(60), || {
        let containers = cgroup::containers(&node.cgroup);
        ensure!(containers.is_empty(), "cgroups of containers: {:?}", containers.keys());
        let pods: Vec<_> = cgroup::groups(&node.cgroup)
            .into_iter()
            .filter(|g| g.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pod")))
            .collect();
        ensure!(pods.is_empty(), "cgroups of pods: {pods:?}");
        let listed = node.containerd.ctr(&["containers", "ls", "-q"])?;
        ensure!(listed.trim().is_empty(), "containers: {listed}");
        let tasks = node.containerd.ctr(&["tasks", "ls", "-q"])?;
        ensure!(tasks.trim().is_empty(), "tasks: {tasks}");
        let snapshots = node.containerd.ctr(&["snapshots", "ls"])?;
        ensure!(!snapshots.contains("Active"), "snapshots: {snapshots}");
        let mounts: Vec<_> = berth_sys::mount::mounts_below(&node.roots.runtime_state)?
            .into_iter()
            .chain(berth_sys::mount::mounts_below(&node.roots.pod_state)?)
            .map(|m| m.mount_point)
            .filter(|p| *p != node.roots.runtime_state && *p != node.roots.pod_state)
            .collect();
        ensure!(mounts.is_empty(), "mounts: {mounts:?}");
        let (v4, v6) = node.subnets();
        for (family, subnet) in [("-4", v4), ("-6", v6)] {
            let out = Command::new("ip")
                .args([family, "route", "show", "root", &subnet])
                .output()
                .context("run ip")?;
            let routes = String::from_utf8_lossy(&out.stdout).into_owned();
            ensure!(routes.trim().is_empty(), "routes to pods: {routes}");
        }
        let shims = node.containerd.shims();
        // Shims that are kept ready for the next pods are allowed.
        ensure!(shims.len() <= 2, "shims: {shims:?}");
        let dirs: Vec<_> = std::fs::read_dir(node.roots.pod_state.join("pods"))
            .into_iter()
            .chain(std::fs::read_dir(&node.roots.pod_logs))
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        ensure!(dirs.is_empty(), "directories of pods: {dirs:?}");
        Ok(())
    })
}
