//! The driver for NFS on a real control plane, with the standard sidecars external-provisioner, external-resizer and
//! external-snapshotter: a StatefulSet with claims, expansion, clones, snapshots, and every policy of deletion.
//!
//! The node is Berth's or the real kubelet, in the cluster's namespaces; the driver has a local directory in the server's
//! place, because this machine's kernel may have no NFS.

use crate::{
    cluster::{self, Audit, Cluster, Etcd, NODE, Node, Options},
    out, peers,
    test::tally::{Outcome, Tally},
};
use anyhow::{Context, Result, ensure};
use berth_harness::{
    image::BUSYBOX,
    tools,
    wait::{self, PATIENCE},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// The sidecars, and the controller of snapshots that a cluster has once.
const SIDECARS: [&str; 4] = ["csi-provisioner", "csi-resizer", "csi-snapshotter", "snapshot-controller"];

/// Name of the driver.
const DRIVER: &str = "nfs.csi.berth.dev";

/// Runs the suite on that kind of node. Each step counts as a test; the steps after one that failed do not run.
///
/// # Errors
/// The cluster does not start or does not end, or the kind of node has no pods.
pub(crate) fn suite(node: Node, tally: &mut Tally) -> Result<()> {
    ensure!(node != Node::None, "the suite csi-cluster needs a node");
    let sidecars = peers::get(&SIDECARS)?;
    let crds = peers::module_dir("csi-sidecars", "github.com/kubernetes-csi/external-snapshotter/client/v8")?;
    let driver = out::timed("build berth-csi-nfs", tools::csi_nfs)?;
    let dir = tools::cache()?.join("suite");
    let options = Options::new(node, Etcd::New, Audit::OfNodes);
    let cluster = out::timed("start a cluster", || cluster::start(&dir, &options))?;
    let (_, failed) = tally.counts();
    let world = World {
        cluster: &cluster,
        registry: match node {
            Node::Berth => cluster.node_state()?,
            _ => cluster.file("kubelet"),
        }
        .join("plugins_registry"),
        shares: cluster.file("shares"),
        socket: cluster.file("csi/driver@csi.sock"),
    };
    world.steps(&sidecars, &crds.join("config/crd"), &driver, tally);
    if tally.counts().1 > failed {
        let kept = crate::root().join("target/cluster");
        cluster.keep_logs(&kept)?;
        out::line(&format!("the cluster's logs are in {}", kept.display()));
    }
    cluster.end()
}

/// A StorageClass with that policy.
fn class(name: &str, on_delete: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: {DRIVER}\n\
         allowVolumeExpansion: true\nparameters: {{server: test.invalid, share: /export, onDelete: {on_delete}}}\n---\n"
    )
}

/// A claim, as a copy of something if wanted.
fn claim(name: &str, class: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteMany]\n  \
         storageClassName: {class}\n  resources: {{requests: {{storage: 1Mi}}}}\n{source}---\n"
    )
}

/// Three pods with a claim each, which write their name.
fn stateful_set() -> String {
    format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n  serviceName: web\n  \
         podManagementPolicy: Parallel\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
         metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      \
         - name: app\n        image: {BUSYBOX}\n        imagePullPolicy: Never\n        \
         command: [sh, -c, \"hostname >> /data/name; exec sleep infinity\"]\n        \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec:\n      \
         accessModes: [ReadWriteOnce]\n      storageClassName: deleted\n      resources: {{requests: {{storage: 1Mi}}}}\n"
    )
}

struct World<'a> {
    cluster: &'a Cluster,
    /// Where the node looks for sockets of plugins.
    registry: PathBuf,
    shares: PathBuf,
    socket: PathBuf,
}

impl World<'_> {
    fn steps(&self, sidecars: &Path, crds: &Path, driver: &Path, tally: &mut Tally) {
        let mut step = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
            let begun = Instant::now();
            let outcome = work().map_or_else(|e| Outcome::Failed(format!("{e:#}")), |()| Outcome::Passed);
            let passed = outcome == Outcome::Passed;
            if passed {
                out::line(&format!("✓ csi-cluster: {name} ({:.1} s)", begun.elapsed().as_secs_f64()));
            }
            tally.add(&format!("csi-cluster/{name}"), outcome, begun.elapsed());
            passed
        };
        let _all_passed = step("the_driver_registers_itself_beside_its_sidecars", &mut || {
            self.begin(sidecars, crds, driver)
        }) && step("a_stateful_set_of_three_has_its_claims", &mut || self.stateful_set())
            && step("a_claim_grows", &mut || self.grows())
            && step("a_clone_has_the_data", &mut || self.clone_of_a_claim())
            && step("a_snapshot_is_restored", &mut || self.snapshot())
            && step("data_is_deleted_retained_or_archived_by_the_class", &mut || self.policies())
            && step("a_snapshot_is_deleted_or_retained", &mut || self.snapshot_policies())
            && step("the_end_of_the_stateful_set_leaves_nothing", &mut || self.end());
    }

    fn begin(&self, sidecars: &Path, crds: &Path, driver: &Path) -> Result<()> {
        fs::create_dir_all(self.export())?;
        fs::create_dir_all(self.socket.parent().context("no directory")?)?;
        for crd in ["volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"] {
            let file = crds.join(format!("snapshot.storage.k8s.io_{crd}.yaml"));
            self.cluster.kubectl(&["apply", "-f", &file.to_string_lossy()])?;
        }
        let socket = self.socket.display();
        let arguments = |list: &[String]| list.to_vec();
        self.cluster.spawn(
            "csi-nfs",
            driver,
            &arguments(&[
                format!("--node-id={NODE}"),
                format!("--endpoint=unix://{socket}"),
                format!("--register-in={}", self.registry.display()),
                format!("--kubelet-registration-path={socket}"),
                format!("--test-shares={}", self.shares.display()),
            ]),
        )?;
        let object = format!(
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {DRIVER}}}\nspec: {{attachRequired: false, fsGroupPolicy: File}}\n---\n"
        );
        let classes =
            class("deleted", "delete") + &class("retained", "retain") + &class("archived", "archive");
        let snapshots: String = [("deleted", "Delete"), ("retained", "Retain")]
            .map(|(name, policy)| format!(
                "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {name}}}\ndriver: {DRIVER}\ndeletionPolicy: {policy}\n---\n"
            ))
            .concat();
        wait::ok("the CRDs are served", PATIENCE, || {
            self.cluster.apply("storage", &(object.clone() + &classes + &snapshots))
        })?;
        let kubeconfig = format!("--kubeconfig={}", self.cluster.admin_kubeconfig().display());
        let address = format!("--csi-address={socket}");
        for name in SIDECARS {
            let mut args = vec![kubeconfig.clone()];
            if name != "snapshot-controller" {
                args.push(address.clone());
            }
            if name == "csi-provisioner" {
                args.push("--extra-create-metadata".to_owned());
            }
            self.cluster.spawn(name, &sidecars.join(name), &args)?;
        }
        wait::ok("the driver is in the CSINode", PATIENCE, || {
            let drivers =
                self.cluster.kubectl(&["get", "csinode", NODE, "-o", "jsonpath={.spec.drivers[*].name}"])?;
            ensure!(drivers.contains(DRIVER), "drivers: {drivers}");
            Ok(())
        })
    }

    fn export(&self) -> PathBuf {
        self.shares.join("export")
    }

    /// A field of an object.
    fn field(&self, object: &str, path: &str) -> Result<String> {
        self.cluster.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    fn until(&self, object: &str, path: &str, wanted: &str) -> Result<()> {
        wait::ok(&format!("{path} of {object} is {wanted}"), 2 * PATIENCE, || {
            let found = self.field(object, path)?;
            ensure!(found == wanted, "it is {found:?}");
            Ok(())
        })
    }

    fn until_gone(&self, object: &str) -> Result<()> {
        wait::ok(&format!("{object} is gone"), 2 * PATIENCE, || {
            let found = self.cluster.kubectl(&["get", object, "--ignore-not-found", "-o", "name"])?;
            ensure!(found.trim().is_empty(), "{found}");
            Ok(())
        })
    }

    /// The directory of a claim's volume on the share.
    fn directory(&self, claim: &str) -> Result<PathBuf> {
        self.until(&format!("pvc/{claim}"), ".status.phase", "Bound")?;
        Ok(self.export().join(self.field(&format!("pvc/{claim}"), ".spec.volumeName")?))
    }

    fn has(&self, claim: &str, file: &str, wanted: &str) -> Result<()> {
        let path = self.directory(claim)?.join(file);
        wait::ok(&format!("{} is {wanted}", path.display()), PATIENCE, || {
            let text = fs::read_to_string(&path)?;
            ensure!(text.trim() == wanted, "it is {text:?}");
            Ok(())
        })
    }

    fn stateful_set(&self) -> Result<()> {
        self.cluster.apply("stateful-set", &stateful_set())?;
        self.until("statefulset/web", ".status.readyReplicas", "3")?;
        for n in 0..3 {
            self.has(&format!("data-web-{n}"), "name", &format!("web-{n}"))?;
        }
        Ok(())
    }

    fn grows(&self) -> Result<()> {
        let patch = "{\"spec\": {\"resources\": {\"requests\": {\"storage\": \"5Mi\"}}}}";
        self.cluster.kubectl(&["patch", "pvc", "data-web-0", "-p", patch])?;
        self.until("pvc/data-web-0", ".status.capacity.storage", "5Mi")?;
        self.has("data-web-0", "name", "web-0")
    }

    fn clone_of_a_claim(&self) -> Result<()> {
        let source = "  dataSource: {kind: PersistentVolumeClaim, name: data-web-1}\n";
        self.cluster.apply("clone", &claim("clone", "deleted", source))?;
        self.has("clone", "name", "web-1")
    }

    /// Takes a snapshot of a claim by that class.
    fn take(&self, name: &str, of: &str, class: &str) -> Result<()> {
        let text = format!(
            "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}}}\nspec:\n  \
             volumeSnapshotClassName: {class}\n  source: {{persistentVolumeClaimName: {of}}}\n"
        );
        self.cluster.apply(name, &text)?;
        self.until(&format!("volumesnapshot/{name}"), ".status.readyToUse", "true")
    }

    fn snapshot(&self) -> Result<()> {
        self.take("taken", "data-web-2", "deleted")?;
        fs::write(self.directory("data-web-2")?.join("name"), "changed")?;
        let source = "  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: taken}\n";
        self.cluster.apply("restored", &claim("restored", "deleted", source))?;
        self.has("restored", "name", "web-2")?;
        self.has("data-web-2", "name", "changed")
    }

    fn policies(&self) -> Result<()> {
        for class in ["deleted", "retained", "archived"] {
            let name = format!("policy-{class}");
            self.cluster.apply(&name, &claim(&name, class, ""))?;
            let dir = self.directory(&name)?;
            fs::write(dir.join("file"), "precious")?;
            let volume = self.field(&format!("pvc/{name}"), ".spec.volumeName")?;
            self.cluster.kubectl(&["delete", "pvc", &name])?;
            self.until_gone(&format!("pv/{volume}"))?;
            let archived = self.export().join(format!("archived-{volume}"));
            let read = |dir: &Path| fs::read_to_string(dir.join("file")).is_ok_and(|text| text == "precious");
            let found = (dir.exists(), read(&dir), read(&archived));
            let wanted = match class {
                "deleted" => (false, false, false),
                "retained" => (true, true, false),
                _ => (false, false, true),
            };
            ensure!(found == wanted, "{class}: directory, its data, archived data: {found:?}");
        }
        Ok(())
    }

    fn snapshot_policies(&self) -> Result<()> {
        self.take("kept", "data-web-1", "retained")?;
        let content = |name: &str| {
            self.field(&format!("volumesnapshot/{name}"), ".status.boundVolumeSnapshotContentName")
        };
        let (deleted, kept) = (content("taken")?, content("kept")?);
        let data = || -> Result<usize> {
            let own = self.export().join(".berth-csi-nfs/snapshots");
            let names = fs::read_dir(own)?.flatten().map(|e| e.file_name());
            Ok(names.filter(|n| n.to_string_lossy().ends_with(".data")).count())
        };
        ensure!(data()? == 2, "{} snapshots have data", data()?);
        self.cluster.kubectl(&["delete", "volumesnapshot", "taken", "kept"])?;
        self.until_gone(&format!("volumesnapshotcontent/{deleted}"))?;
        ensure!(data()? == 1, "{} snapshots have data", data()?);
        self.field(&format!("volumesnapshotcontent/{kept}"), ".metadata.name")?;
        // An administrator deletes what is retained.
        let patch = "{\"spec\": {\"deletionPolicy\": \"Delete\"}}";
        self.cluster.kubectl(&["patch", "volumesnapshotcontent", &kept, "--type=merge", "-p", patch])?;
        self.cluster.kubectl(&["delete", "volumesnapshotcontent", &kept])?;
        self.until_gone(&format!("volumesnapshotcontent/{kept}"))?;
        ensure!(data()? == 0, "{} snapshots have data", data()?);
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "statefulset", "web"])?;
        self.cluster.kubectl(&["delete", "pvc", "--all", "--wait=false"])?;
        wait::ok("no volume is left", 2 * PATIENCE, || {
            let left = self.cluster.kubectl(&["get", "pv", "-o", "name"])?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })?;
        let names =
            fs::read_dir(self.export())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
        ensure!(left.len() == 2, "what was retained and archived is left, and: {left:?}");
        for dir in ["volumes", "snapshots", "copies", "removed"] {
            let entries = fs::read_dir(self.export().join(".berth-csi-nfs").join(dir))?.count();
            ensure!(entries == 0, "{entries} entries are left in {dir}");
        }
        Ok(())
    }
}
