//! Persistent volumes of a node without a control plane: claims, volumes and classes as manifests, a directory of the
//! node as a volume, and a CSI driver that dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, ensure};
use berth_csi_client::{
    Call,
    testing::{Options, Outcome, TestDriver},
};
use berth_harness::{
    node::Node,
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{fs, time::Duration};
use support::{apply, on_a_node, register, shell};

/// A volume with that source, and a claim for it.
fn storage(name: &str, class: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
         accessModes: [ReadWriteOnce]\n  storageClassName: {class}\n  {source}\n---\napiVersion: v1\n\
         kind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  \
         storageClassName: {class}\n  resources: {{requests: {{storage: 1Mi}}}}\n"
    )
}

/// A pod that mounts a claim at `/data`.
fn claiming(name: &str, claim: &str, more: &str, script: &str) -> String {
    let extra = format!("{more}\nvolumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]");
    let pod = shell(name, extra.trim_start(), script);
    format!("{pod}    volumeMounts: [{{name: data, mountPath: /data}}]\n")
}

/// Waits until the pod has written its line.
fn wrote(node: &Node, file: &std::path::Path, line: &str) -> anyhow::Result<()> {
    wait::until("the pod has written its line", PATIENCE, || {
        fs::read_to_string(file).is_ok_and(|text| text.lines().any(|l| l == line))
    })
    .with_context(|| node.last_words())
}

#[test]
fn a_claim_is_bound_by_its_first_pod_and_its_data_outlives_pods_and_agents() {
    on_a_node(Build::Plain, |node| {
        let data = node.dir.join("data");
        fs::create_dir(&data)?;
        let class = "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: local}\n\
                     provisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\n";
        node.apply("class.yaml", class)?;
        apply(node, "first", &claiming("first", "data", "", "echo first >> /data/all; exec sleep infinity"))?;
        // The pod waits for its claim, and says so.
        wait::until("the pod says that its claim is missing", PATIENCE, || {
            let text = node
                .berth(&["describe", "pod", "first"])
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            text.is_ok_and(|text| text.contains("persistentvolumeclaims \"data\" not found"))
        })?;
        let source = format!("local: {{path: {}}}", data.display());
        node.apply("storage.yaml", &storage("data", "local", &source))?;
        wrote(node, &data.join("all"), "first")?;
        let before = node.ready("default/first")?.processes();
        node.kill_agent()?;
        node.start_agent()?;
        ensure!(node.ready("default/first")?.processes() == before, "the pod was disturbed");
        node.remove("first.yaml")?;
        node.gone("default/first", PATIENCE)?;
        // Another user, by the group that the volume's files get.
        let group = "securityContext: {runAsUser: 4711, runAsGroup: 4711, fsGroup: 4711}";
        let script = "cat /data/all >> /data/copy && echo second >> /data/all; exec sleep infinity";
        apply(node, "second", &claiming("second", "data", group, script))?;
        wrote(node, &data.join("all"), "second")?;
        ensure!(fs::read_to_string(data.join("copy"))? == "first\n");
        node.remove("second.yaml")?;
        node.gone("default/second", PATIENCE)?;
        ensure!(fs::read_to_string(data.join("all"))? == "first\nsecond\n", "the data is whole");
        Ok(())
    });
}

#[test]
fn a_driver_that_dies_holds_up_its_own_pods_alone_and_stages_once() {
    let dir = tempfile::Builder::new().prefix("berth-csi-").tempdir().unwrap();
    let mut driver = TestDriver::start(dir.path(), Options { mounts: true, ..Options::default() }).unwrap();
    on_a_node(Build::Plain, |node| {
        let registration = register(node, &driver)?;
        let source = "csi: {driver: test.csi.example, volumeHandle: one}";
        node.apply("storage.yaml", &storage("one", "''", source))?;
        let file = driver.data("one").join("all");
        for name in ["first", "second"] {
            let script = format!("echo {name} >> /data/all; exec sleep infinity");
            apply(node, name, &claiming(name, "one", "", &script))?;
            wrote(node, &file, name)?;
        }
        node.kill_agent()?;
        node.start_agent()?;
        node.ready("default/second")?;
        node.remove("first.yaml")?;
        node.gone("default/first", PATIENCE)?;
        driver.kill();
        node.remove("second.yaml")?;
        wait::until("the pod says why it does not end", PATIENCE, || {
            let text = node
                .berth(&["describe", "pod", "second"])
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            text.is_ok_and(|text| text.contains("cannot unpublish volume one by driver test.csi.example"))
        })?;
        // Another pod starts meanwhile.
        apply(node, "other", &shell("other", "", "exec sleep infinity"))?;
        node.ready("default/other")?;
        driver.restart()?;
        node.gone("default/second", PATIENCE + Duration::from_secs(120))?;
        wait::until("the volume is unstaged", PATIENCE, || driver.staged().is_empty())?;
        let journal = driver.journal();
        let count = |call| journal.iter().filter(|e| e.call == call && e.outcome == Outcome::Done).count();
        ensure!(count(Call::NodeStageVolume) == 1 && count(Call::NodePublishVolume) == 2, "{journal:#?}");
        ensure!(count(Call::NodeUnpublishVolume) == 2 && count(Call::NodeUnstageVolume) == 1, "{journal:#?}");
        ensure!(fs::read_to_string(&file)? == "first\nsecond\n", "the data is whole");
        drop(registration);
        Ok(())
    });
}

#[test]
fn a_driver_makes_the_volume_of_a_claim_and_deletes_it_after_the_claim() {
    let dir = tempfile::Builder::new().prefix("berth-csi-").tempdir().unwrap();
    let driver = TestDriver::start(dir.path(), Options { mounts: true, ..Options::default() }).unwrap();
    on_a_node(Build::Plain, |node| {
        let class = "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: made}\n\
                     provisioner: test.csi.example\nvolumeBindingMode: WaitForFirstConsumer\n";
        node.apply("class.yaml", class)?;
        let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec:\n  \
                     accessModes: [ReadWriteOnce]\n  storageClassName: made\n  \
                     resources: {requests: {storage: 1Mi}}\n";
        node.apply("claim.yaml", claim)?;
        let script = "echo first >> /data/all; exec sleep infinity";
        apply(node, "first", &claiming("first", "data", "", script))?;
        // What the claim waits for is told.
        wait::until("the claim says that its driver is missing", PATIENCE, || {
            let text = node.berth(&["volumes"]).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            text.is_ok_and(|text| {
                text.contains("CSI driver test.csi.example is not registered with this node")
            })
        })?;
        let registration = register(node, &driver)?;
        wait::until("the volume is made", PATIENCE, || driver.made().len() == 1)?;
        let id = driver.made().into_values().next().context("the volume")?;
        let file = driver.data(&id).join("all");
        wrote(node, &file, "first")?;
        // With the agent away everything goes, but for the pod.
        node.kill_agent()?;
        node.remove("claim.yaml")?;
        node.start_agent()?;
        node.ready("default/first")?;
        ensure!(file.exists(), "a pod has the volume");
        node.remove("first.yaml")?;
        node.gone("default/first", PATIENCE)?;
        wait::until("the volume is deleted", PATIENCE, || driver.made().is_empty())?;
        ensure!(!driver.data(&id).exists());
        let journal = driver.journal();
        let count = |call| journal.iter().filter(|e| e.call == call).count();
        ensure!(count(Call::CreateVolume) == 1 && count(Call::DeleteVolume) == 1, "{journal:#?}");
        ensure!(journal.iter().all(|e| e.outcome == Outcome::Done), "{journal:#?}");
        drop(registration);
        Ok(())
    });
}

/// A driver for NFS as a process, which ends with this value.
struct NfsDriver(std::process::Child);

impl Drop for NfsDriver {
    fn drop(&mut self) {
        // It has ended already, or ends now.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_driver_for_nfs_serves_the_claims_of_a_node_without_a_control_plane() {
    let program = berth_harness::tools::csi_nfs().unwrap();
    on_a_node(Build::Plain, |node| {
        let registry = node.roots.pod_state.join("plugins_registry");
        let (shares, socket) = (node.dir.join("shares"), node.dir.join("driver@csi.sock"));
        fs::create_dir_all(&registry)?;
        fs::create_dir_all(shares.join("export"))?;
        // A local directory stands for the server.
        let driver = std::process::Command::new(&program)
            .args(["--node-id", "n", "--parameter", "server=test.invalid", "--parameter", "share=/export"])
            .arg("--endpoint")
            .arg(format!("unix://{}", socket.display()))
            .arg("--register-in")
            .arg(&registry)
            .arg("--test-shares")
            .arg(&shares)
            .spawn()?;
        let _driver = NfsDriver(driver);
        for (policy, stays) in [("Delete", false), ("Retain", true)] {
            let name = policy.to_lowercase();
            let class = format!(
                "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\n\
                 provisioner: nfs.csi.berth.dev\nreclaimPolicy: {policy}\n\
                 parameters: {{subDir: '${{pvc.metadata.namespace}}-${{pvc.metadata.name}}'}}\n"
            );
            node.apply(&format!("class-{name}.yaml"), &class)?;
            let claim = format!(
                "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  \
                 accessModes: [ReadWriteMany]\n  storageClassName: {name}\n  \
                 resources: {{requests: {{storage: 1Mi}}}}\n"
            );
            node.apply(&format!("claim-{name}.yaml"), &claim)?;
            let script = "echo written >> /data/all; exec sleep infinity";
            apply(node, &name, &claiming(&name, &name, "", script))?;
            let data = shares.join("export").join(format!("default-{name}"));
            wrote(node, &data.join("all"), "written")?;
            node.remove(&format!("claim-{name}.yaml"))?;
            node.remove(&format!("{name}.yaml"))?;
            node.gone(&format!("default/{name}"), PATIENCE)?;
            if stays {
                // The claim comes back and has its data again.
                node.apply(&format!("claim-{name}.yaml"), &claim)?;
                let script = "cat /data/all > /data/copy; exec sleep infinity";
                apply(node, "again", &claiming("again", &name, "", script))?;
                wrote(node, &data.join("copy"), "written")?;
                node.remove("again.yaml")?;
                node.gone("default/again", PATIENCE)?;
            } else {
                wait::until("the directory is removed", PATIENCE, || !data.exists())?;
            }
        }
        Ok(())
    });
}
