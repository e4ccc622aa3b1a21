//! The pods of the suites that disturb a cluster, by the parts that they play.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    image::BUSYBOX,
    rng::Rng,
    wait::{self, PATIENCE},
};
use std::fs;

/// Web servers behind a Service, to which nothing happens.
pub(super) const STEADY: &str = "steady";
/// Pods of no controller, each with a ConfigMap of its own, to which nothing happens.
pub(super) const OWN: &str = "own";
/// Web servers behind a Service that are not ready while their file is missing.
pub(super) const PROBED: &str = "probed";
/// Pods whose container fails while its file is missing.
pub(super) const CRASHING: &str = "crashing";
/// Pods of a Deployment that are deleted one by one.
pub(super) const CHURN: &str = "churn";

/// Number of pods of each part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) steady: usize,
    pub(super) own: usize,
    pub(super) probed: usize,
    pub(super) crashing: usize,
    pub(super) churn: usize,
}

/// Fifty pods.
pub(super) const FIFTY: Sizes = Sizes { steady: 28, own: 8, probed: 3, crashing: 3, churn: 8 };

impl Sizes {
    fn of(self) -> [(&'static str, usize); 5] {
        [
            (STEADY, self.steady),
            (OWN, self.own),
            (PROBED, self.probed),
            (CRASHING, self.crashing),
            (CHURN, self.churn),
        ]
    }
}

/// The pods on a cluster.
#[derive(Debug)]
pub(super) struct Load<'a> {
    cluster: &'a Cluster,
    sizes: Sizes,
}

impl<'a> Load<'a> {
    /// Makes the pods and waits until all of them are ready.
    pub(super) fn start(cluster: &'a Cluster, sizes: Sizes) -> Result<Load<'a>> {
        let load = Load { cluster, sizes };
        let mut all = vec![deployment(STEADY, sizes.steady), deployment(CHURN, sizes.churn)];
        all.extend((0..sizes.own).map(own));
        for (part, number) in [(PROBED, sizes.probed), (CRASHING, sizes.crashing)] {
            for n in 0..number {
                let dir = cluster.file(&format!("touched/{part}-{n}"));
                fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
                load.touch(part, n, true)?;
                let text = if part == PROBED { probed } else { crashing };
                all.push(text(n, &dir.to_string_lossy()));
            }
        }
        all.push(service(PROBED));
        cluster.apply("load", &all.join("---\n"))?;
        load.ready()?;
        Ok(load)
    }

    /// Makes or removes the file of a pod that is [`PROBED`] or [`CRASHING`].
    pub(super) fn touch(&self, part: &str, n: usize, there: bool) -> Result<()> {
        let path = self.cluster.file(&format!("touched/{part}-{n}/index.html"));
        let done = if there { fs::write(&path, "there\n") } else { fs::remove_file(&path) };
        done.with_context(|| format!("cannot change {}", path.display()))
    }

    /// Waits until every pod is there and ready and none is being deleted.
    pub(super) fn ready(&self) -> Result<()> {
        wait::ok("all pods are ready", 3 * PATIENCE, || {
            let look = self.cluster.look()?;
            for (part, number) in self.sizes.of() {
                let there = look.of(part).count();
                ensure!(there == number, "{there} of {number} pods are {part}");
            }
            if let Some(pod) = look.pods.values().find(|pod| pod.deleting || !pod.ready) {
                let what = if pod.deleting { "is being deleted" } else { "is not ready" };
                anyhow::bail!("pod {} {what}", pod.name);
            }
            Ok(())
        })
    }

    /// Deletes one of the pods of [`CHURN`], if there is one that is not being deleted.
    pub(super) fn churn(&self, rng: &mut Rng) -> Result<()> {
        let look = self.cluster.look()?;
        let all: Vec<_> = look.of(CHURN).filter(|pod| !pod.deleting).collect();
        let at = usize::try_from(rng.below(u64::try_from(all.len())?))?;
        let Some(pod) = all.get(at) else { return Ok(()) };
        self.cluster.kubectl(&["delete", "pod", &pod.name, "--wait=false"]).map(drop)
    }
}

/// A container that serves `/www` on port 80 and ends on SIGTERM, with this command before.
fn web(before: &str, extra: &str) -> String {
    format!(
        "  - name: web\n    image: {BUSYBOX}\n    imagePullPolicy: Never\n    command: [sh, -c, \"trap 'exit 0' TERM; {before} httpd -f -p 80 -h /www & \
         while :; do wait $!; done\"]\n    readinessProbe: {{httpGet: {{path: /index.html, port: 80}}, periodSeconds: 2, failureThreshold: 2}}\n{extra}"
    )
}

/// A Deployment of web servers that answer with their name, with its Service.
pub(super) fn deployment(part: &str, replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {part}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{part: {part}}}}}\n  \
         template:\n    metadata: {{labels: {{part: {part}}}}}\n    spec:\n      terminationGracePeriodSeconds: 5\n      containers:\n{}---\n{}",
        indent(&web("mkdir -p /www; hostname > /www/index.html;", "")),
        service(part)
    )
}

/// A Service with a node port before the web servers of a part.
fn service(part: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {part}, labels: {{part: {part}}}}}\nspec:\n  type: NodePort\n  selector: {{part: {part}}}\n  \
         ports: [{{port: 80}}]\n"
    )
}

fn pod(name: &str, part: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{part: {part}}}}}\nspec:\n  terminationGracePeriodSeconds: 5\n{spec}"
    )
}

fn own(n: usize) -> String {
    let name = format!("{OWN}-{n}");
    let mounts = "    volumeMounts: [{name: text, mountPath: /www}]\n";
    let volumes = format!("  volumes: [{{name: text, configMap: {{name: {name}}}}}]\n");
    let spec = format!("  containers:\n{}{volumes}", web("", mounts));
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{index.html: {name}}}\n---\n{}",
        pod(&name, OWN, &spec)
    )
}

fn host_path(dir: &str) -> String {
    format!("  volumes: [{{name: touched, hostPath: {{path: \"{dir}\"}}}}]\n")
}

fn probed(n: usize, dir: &str) -> String {
    let mounts = "    volumeMounts: [{name: touched, mountPath: /www}]\n";
    pod(&format!("{PROBED}-{n}"), PROBED, &format!("  containers:\n{}{}", web("", mounts), host_path(dir)))
}

fn crashing(n: usize, dir: &str) -> String {
    let container = format!(
        "  containers:\n  - name: app\n    image: {BUSYBOX}\n    imagePullPolicy: Never\n    command: [sh, -c, \"while test -e /touched/index.html; do sleep 1; \
         done; exit 1\"]\n    volumeMounts: [{{name: touched, mountPath: /touched}}]\n"
    );
    pod(&format!("{CRASHING}-{n}"), CRASHING, &(container + &host_path(dir)))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
