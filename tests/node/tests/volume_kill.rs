//! Kills of the agent before and after every step that sets a pod's volumes up, brings them up to date and takes them down.
//! The next agent leads to the same end: the same mounts and files once each, no volume staged twice, nothing left over.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, Result, ensure};
use berth_csi_client::{
    Call,
    testing::{Options, Outcome, TestDriver, TestRegistration},
};
use berth_harness::{
    node::TestNode,
    rng,
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use support::{assert_nothing_left, on_a_node, pod};

/// The steps of setting up, each with how often it is passed.
const MOUNT: &[(&str, u32)] = &[
    ("save-bindings", 1),
    ("make-root", 2),
    ("place-root", 2),
    ("mount-tmpfs", 2),
    ("mount-shm", 1),
    ("make-version", 2),
    ("fill-version", 2),
    ("publish-version", 2),
    ("show-file", 2),
    ("bind-local", 1),
    ("make-sub-path-directory", 2),
    ("make-sub-path", 2),
    ("bind-sub-path", 2),
    ("write-record", 2),
    ("write-mark", 4),
    ("csi-stage", 1),
    ("csi-publish", 1),
];

/// The steps of an update of the files of a ConfigMap and a Secret.
const UPDATE: &[(&str, u32)] = &[
    ("make-version", 2),
    ("fill-version", 2),
    ("publish-version", 2),
    ("show-file", 2),
    ("tidy-version", 2),
];

/// The steps of taking down.
const UNMOUNT: &[(&str, u32)] = &[
    ("unmount", 6),
    ("write-mark", 2),
    ("csi-unpublish", 1),
    ("remove-record", 2),
    ("remove-mark", 2),
    ("csi-unstage", 1),
    ("remove-pod-directory", 1),
    ("save-bindings", 1),
];

/// Directories whose content is the pod's own.
const CONTENT: &[&str] = &[
    "kubernetes.io~empty-dir/disk",
    "kubernetes.io~empty-dir/mem",
    "kubernetes.io~local-volume/local",
    "kubernetes.io~csi/csi/mount",
    "volume-subpaths/disk/main/6",
    "volume-subpaths/local/main/7",
];

/// The failpoints of steps, in the form of `BERTH_FAILPOINT`.
fn points(steps: &[(&str, u32)]) -> Vec<String> {
    let of = |(step, times): &(&str, u32)| {
        let step = (*step).to_owned();
        (1..=*times)
            .flat_map(move |n| ["before", "after"].map(|side| format!("{side}:{step}:{n}")))
            .collect::<Vec<_>>()
    };
    steps.iter().flat_map(of).collect()
}

/// The node's objects that outlive a pod: volumes with data, and a claim for each.
fn storage(data: &Path) -> String {
    let one = |name: &str, source: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
             accessModes: [ReadWriteOnce]\n  storageClassName: ''\n  {source}\n---\napiVersion: v1\n\
             kind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  \
             storageClassName: ''\n  volumeName: {name}\n  resources: {{requests: {{storage: 1Mi}}}}\n---\n"
        )
    };
    let local = one("local", &format!("local: {{path: {}}}", data.display()));
    local + &one("csi", "csi: {driver: test.csi.example, volumeHandle: one}")
}

/// Its ConfigMap and its Secret; the second version has a key more.
fn objects(version: u32) -> String {
    let more = if version > 1 { format!(", k{version}: more") } else { String::new() };
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: conf}}\ndata: {{k: v{version}{more}}}\n---\napiVersion: v1\n\
         kind: Secret\nmetadata: {{name: secret}}\nstringData: {{k: v{version}{more}}}\n"
    )
}

/// A pod with every kind of volume that the node sets up by steps.
fn manifest(name: &str) -> String {
    let volumes = "volumes:\n- {name: mem, emptyDir: {medium: Memory}}\n- {name: disk, emptyDir: {}}\n\
                   - {name: conf, configMap: {name: conf}}\n- {name: secret, secret: {secretName: secret}}\n\
                   - {name: local, persistentVolumeClaim: {claimName: local}}\n\
                   - {name: csi, persistentVolumeClaim: {claimName: csi}}";
    let mounts = "volumeMounts:\n- {name: mem, mountPath: /mem}\n- {name: disk, mountPath: /disk}\n\
                  - {name: conf, mountPath: /conf}\n- {name: secret, mountPath: /secret}\n\
                  - {name: local, mountPath: /local}\n- {name: csi, mountPath: /csi}\n\
                  - {name: disk, mountPath: /sub, subPath: a/b}\n- {name: local, mountPath: /sub-of-local, subPath: sub}";
    let script = format!(
        "trap 'exit 0' TERM; for d in local csi sub-of-local; do echo {name} >> /$d/all; done; touch /mem/m /disk/d /sub/s\n\
         sleep infinity & wait"
    );
    pod(name, volumes, &support::container("main", &script, mounts))
}

/// What a pod has on the node, without what is different from pod to pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    files: BTreeSet<String>,
    mounts: Vec<String>,
    marks: BTreeSet<String>,
    staging: BTreeSet<String>,
}

/// The paths below a directory. Versions of files have one name, and what is mounted from elsewhere is not entered.
fn paths(dir: &Path, foreign: &[&str]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(entries) = fs::read_dir(&path) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let rel = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            let parts = rel.split('/').map(|part| if part.starts_with("..2") { "..version" } else { part });
            let rel = parts.collect::<Vec<_>>().join("/");
            if entry.file_type().is_ok_and(|t| t.is_dir()) && !foreign.iter().any(|f| rel.ends_with(f)) {
                left.push(path);
            }
            all.insert(rel);
        }
    }
    all
}

struct World<'a> {
    node: &'a mut TestNode,
    driver: TestDriver,
    _registration: TestRegistration,
    data: PathBuf,
    /// How many calls the driver's journal had when the pod's life began.
    begun: usize,
}

impl World<'_> {
    /// What a pod that runs has.
    fn state(&self, uid: &str) -> Result<State> {
        let pod_state = &self.node.roots.pod_state;
        let dir = pod_state.join("pods").join(uid);
        let mounts = berth_sys::mount::mounts_below(pod_state)?;
        let mut mounts: Vec<String> = mounts
            .iter()
            .filter(|m| m.mount_point != *pod_state)
            .map(|m| m.mount_point.display().to_string().replace(uid, "UID"))
            .collect();
        mounts.sort();
        Ok(State {
            files: paths(&dir, CONTENT),
            mounts,
            marks: self.left("volumes", &self.node.roots.runtime_state, uid),
            staging: self.left("plugins/kubernetes.io/csi", pod_state, uid),
        })
    }

    fn left(&self, part: &str, of: &Path, uid: &str) -> BTreeSet<String> {
        paths(&of.join(part), &["globalmount"]).into_iter().map(|p| p.replace(uid, "UID")).collect()
    }

    /// How often the driver has done a call during the pod's life.
    fn done(&self, call: Call) -> usize {
        let journal = self.driver.journal();
        journal.iter().skip(self.begun).filter(|e| e.call == call && e.outcome == Outcome::Done).count()
    }

    fn refused(&self) -> Vec<String> {
        let journal = self.driver.journal();
        let bad = |o| matches!(o, Outcome::Refused | Outcome::AtOnce);
        journal.iter().skip(self.begun).filter(|e| bad(e.outcome)).map(|e| format!("{e:?}")).collect()
    }

    /// The journal of which claim has which volume.
    fn journal(&self) -> PathBuf {
        self.node.roots.source_state("manifests").join("volume-bindings.json")
    }

    /// Starts an agent that ends at that place, acts, and starts the next agent after its end.
    fn killed(&mut self, point: Option<&str>, act: impl FnOnce(&TestNode) -> Result<()>) -> Result<()> {
        let Some(point) = point else { return act(self.node) };
        self.node.stop_agent()?;
        self.node.agent_env.insert("BERTH_FAILPOINT".into(), point.into());
        let agent = self.node.start_agent();
        self.node.agent_env.clear();
        let agent = agent?;
        act(self.node)?;
        agent
            .gone(PATIENCE)
            .with_context(|| format!("{point} is never passed:\n{}", self.node.last_words()))?;
        self.node.start_agent().map(drop)
    }

    /// One life of a pod, with a kill in each of its parts. Returns what it had while it ran.
    fn life(&mut self, n: usize, [mount, update, unmount]: [Option<&str>; 3]) -> Result<State> {
        let name = format!("pod-{n}");
        let full = format!("default/{name}");
        self.begun = self.driver.journal().len();
        let storage = storage(&self.data);
        self.killed(mount, |node| {
            node.apply("objects.yaml", &objects(1))?;
            node.apply("storage.yaml", &storage)?;
            node.apply("pod.yaml", &manifest(&name))
        })
        .with_context(|| format!("setting up, {mount:?}"))?;
        let uid = self.node.ready(&full).with_context(|| format!("set up, {mount:?}"))?.uid();
        self.is_whole(&full, 1).with_context(|| format!("set up, {mount:?}"))?;
        let state = self.state(&uid)?;
        self.killed(update, |node| node.apply("objects.yaml", &objects(2)))
            .with_context(|| format!("updating, {update:?}"))?;
        self.is_whole(&full, 2).with_context(|| format!("updated, {update:?}"))?;
        let updated = self.state(&uid)?;
        ensure!(updated.mounts == state.mounts, "updated, {update:?}: {updated:#?} instead of {state:#?}");
        let more = |s: &State| s.files.iter().filter(|f| f.contains("..version")).count();
        ensure!(
            more(&updated) == more(&state) + 2,
            "updated, {update:?}: {updated:#?} instead of {state:#?}"
        );
        self.killed(unmount, |node| {
            node.remove("pod.yaml")?;
            // The claims go with the pod, so that the next pod's are bound anew.
            node.remove("storage.yaml")
        })
        .with_context(|| format!("taking down, {unmount:?}"))?;
        self.node.gone(&full, PATIENCE).with_context(|| format!("taken down, {unmount:?}"))?;
        self.is_free(&uid).with_context(|| format!("taken down, {unmount:?}"))?;
        for (dir, file) in
            [(&self.data, "all"), (&self.data.join("sub"), "all"), (&self.driver.data("one"), "all")]
        {
            let text = fs::read_to_string(dir.join(file))?;
            let lines = text.lines().filter(|l| **l == name).count();
            ensure!(lines == 1, "{}: {name} wrote {lines} times", dir.display());
        }
        Ok(state)
    }

    /// The pod's files are of that version, and its volume was staged and published once.
    fn is_whole(&self, full: &str, version: u32) -> Result<()> {
        let wanted = format!("v{version}");
        for volume in ["conf", "secret"] {
            wait::ok("the pod sees the version", PATIENCE, || {
                let seen = self.node.exec(&format!("{full}/main"), &["cat", &format!("/{volume}/k")])?;
                ensure!(seen.trim() == wanted, "{volume} has {seen}");
                Ok(())
            })?;
        }
        let counts = [Call::NodeStageVolume, Call::NodePublishVolume].map(|call| self.done(call));
        ensure!(counts == [1, 1], "stage and publish were done {counts:?} times");
        self.sub_paths_are_open(full)?;
        ensure!(self.refused().is_empty(), "{:?}", self.refused());
        Ok(())
    }

    /// The directories that the node made for a sub-path have their volume's mode.
    fn sub_paths_are_open(&self, full: &str) -> Result<()> {
        let modes = self
            .node
            .exec(&format!("{full}/main"), &["stat", "-c", "%a", "/disk", "/disk/a", "/disk/a/b"])?;
        ensure!(modes.split_whitespace().eq(["777"; 3]), "modes of a volume and its sub-path: {modes}");
        Ok(())
    }

    /// Nothing is left of the pod but its data.
    fn is_free(&self, uid: &str) -> Result<()> {
        // The node looks for volumes that nobody has once a minute.
        wait::ok("nothing is left", PATIENCE * 3, || {
            let mut left = self.state(uid)?;
            // The directories of all drivers and of all volumes.
            left.staging.retain(|p| !matches!(p.as_str(), "test.csi.example"));
            ensure!(left == State::default(), "{left:#?}");
            let counts = [Call::NodeUnpublishVolume, Call::NodeUnstageVolume].map(|call| self.done(call));
            ensure!(counts == [1, 1], "unpublish and unstage were done {counts:?} times");
            ensure!(self.driver.staged().is_empty() && self.driver.published().is_empty());
            let journal = fs::read_to_string(self.journal())?;
            ensure!(!journal.contains("\"csi\"") && !journal.contains("\"local\""), "{journal}");
            Ok(())
        })
    }
}

#[test]
fn the_agent_is_killed_before_and_after_every_step_of_volumes() {
    let dir = tempfile::Builder::new().prefix("berth-csi-").tempdir().unwrap();
    let driver = TestDriver::start(dir.path(), Options { mounts: true, ..Options::default() }).unwrap();
    on_a_node(Build::Failpoints, |node| {
        let registration = support::register(node, &driver)?;
        let data = node.dir.join("data");
        fs::create_dir(&data)?;
        let mut world = World { node, driver, _registration: registration, data, begun: 0 };
        let undisturbed = world.life(0, [None, None, None]).context("a life without a kill")?;
        ensure!(undisturbed.mounts.len() == 8, "{undisturbed:#?}");
        let (mount, update, unmount) = (points(MOUNT), points(UPDATE), points(UNMOUNT));
        let lives = mount.len().max(update.len()).max(unmount.len());
        // A tenth of the lives; the seed chooses which tenth.
        let (first, step) = if support::full() { (0, 1) } else { (usize::try_from(rng::seed())? % 10, 10) };
        for n in (first..lives).step_by(step) {
            let at = |points: &[String]| points.get(n % points.len()).cloned();
            let points = [at(&mount), at(&update), at(&unmount)];
            let state =
                world.life(n + 1, [points[0].as_deref(), points[1].as_deref(), points[2].as_deref()])?;
            ensure!(state == undisturbed, "{points:?}: {state:#?} instead of {undisturbed:#?}");
        }
        assert_nothing_left(world.node)
    });
}
