//! The control plane: etcd, API server, controller manager and scheduler.

use super::{
    Options,
    audit::AUDIT,
    place::{PODS, Place, SERVICES},
    world::World,
};
use crate::out;
use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Which etcd keeps the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Etcd {
    /// 3.4: the API server refuses streaming lists.
    Old,
    /// 3.6: streaming lists work.
    New,
}

impl Etcd {
    /// Name of the program.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Etcd::Old => "etcd-3.4",
            Etcd::New => "etcd-3.6",
        }
    }
}

/// Programs of the control plane, without etcd.
pub(super) const PROGRAMS: [&str; 4] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

/// Names of the daemons, in the order of their start.
pub(super) const DAEMONS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// The API server's flag for [`Options::goaway_chance`].
pub(super) const GOAWAY: &str = "goaway-chance";

/// The controllers' flag for the life of the certificates that they sign.
pub(super) const SIGNING: &str = "cluster-signing-duration";

/// Starts the control plane and waits until the API server is ready.
///
/// # Errors
/// A program does not start or does not get ready.
pub(super) fn start(world: &World, place: &Place, bin: &Path, options: &Options) -> Result<()> {
    let etcd = options.etcd;
    let kubectl = Kubectl::new(place, bin);
    out::timed(&format!("start {} and the API server", etcd.program()), || {
        world.spawn("etcd", &bin.join(etcd.program()), &etcd_args(place))?;
        place.write("audit.yaml", &options.audit.policy())?;
        let api_server = bin.join("kube-apiserver");
        world.spawn("kube-apiserver", &api_server, &api_server_args(place, options.goaway_chance))?;
        world.ready("kube-apiserver", || kubectl.run(&["get", "--raw", "/readyz"]).map(drop))
    })?;
    out::timed("start the controller manager and the scheduler", || {
        for (name, args) in [
            ("kube-controller-manager", controller_manager_args(place)),
            ("kube-scheduler", component_args(place, "scheduler")),
        ] {
            world.spawn(name, &bin.join(name), &args)?;
        }
        // The controller manager makes the account that every pod of the namespace needs.
        world
            .ready("kube-controller-manager", || kubectl.run(&["get", "serviceaccount", "default"]).map(drop))
    })
}

fn flags<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn shown(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

fn etcd_args(place: &Place) -> Vec<String> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    flags([
        ("data-dir", shown(place.dir.join("etcd"))),
        ("listen-client-urls", url(2379)),
        ("advertise-client-urls", url(2379)),
        ("listen-peer-urls", url(2380)),
        ("initial-advertise-peer-urls", url(2380)),
        ("initial-cluster", format!("default={}", url(2380))),
        // The objects end with the cluster.
        ("unsafe-no-fsync", "true".into()),
    ])
}

fn api_server_args(place: &Place, goaway_chance: f64) -> Vec<String> {
    let pki = |file: &str| shown(place.pki(file));
    flags([
        ("etcd-servers", "http://127.0.0.1:2379".into()),
        ("advertise-address", place.address.clone()),
        ("secure-port", "6443".into()),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("client-ca-file", pki("ca.crt")),
        ("kubelet-certificate-authority", pki("ca.crt")),
        ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
        ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
        // No DNS knows the node's name.
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
        ("service-account-key-file", pki("service-account.pub")),
        ("service-account-signing-key-file", pki("service-account.key")),
        ("service-cluster-ip-range", SERVICES.into()),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("enable-bootstrap-token-auth", "true".into()),
        ("allow-privileged", "true".into()),
        ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client".into()),
        ("requestheader-username-headers", "X-Remote-User".into()),
        ("requestheader-group-headers", "X-Remote-Group".into()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
        ("proxy-client-cert-file", pki("front-proxy-client.crt")),
        ("proxy-client-key-file", pki("front-proxy-client.key")),
        (GOAWAY, goaway_chance.to_string()),
        ("audit-policy-file", shown(place.dir.join("audit.yaml"))),
        ("audit-log-path", shown(place.dir.join(AUDIT))),
        // One file, because readers follow it.
        ("audit-log-maxsize", "100000".into()),
    ])
}

fn controller_manager_args(place: &Place) -> Vec<String> {
    let pki = |file: &str| shown(place.pki(file));
    let mut args = component_args(place, "controller-manager");
    args.extend(flags([
        ("controllers", "*,bootstrapsigner,tokencleaner".into()),
        ("use-service-account-credentials", "true".into()),
        ("service-account-private-key-file", pki("service-account.key")),
        ("root-ca-file", pki("ca.crt")),
        ("cluster-signing-cert-file", pki("ca.crt")),
        ("cluster-signing-key-file", pki("ca.key")),
        (SIGNING, "8760h".into()),
        ("allocate-node-cidrs", "true".into()),
        ("cluster-cidr", PODS.into()),
        ("service-cluster-ip-range", SERVICES.into()),
    ]));
    args
}

/// Arguments of a program that is a client of the API server: its identity, and that it is the only one of its kind.
fn component_args(place: &Place, user: &str) -> Vec<String> {
    let kubeconfig = shown(place.kubeconfig(user));
    flags([
        ("kubeconfig", kubeconfig.clone()),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("bind-address", "127.0.0.1".into()),
        ("leader-elect", "false".into()),
    ])
}

/// kubectl as the cluster's administrator.
#[derive(Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// kubectl of the cluster in this place.
    pub(super) fn new(place: &Place, bin: &Path) -> Kubectl {
        Kubectl { program: bin.join("kubectl"), kubeconfig: place.kubeconfig("admin") }
    }

    /// Command line for a user's shell.
    pub(super) fn shown(&self) -> String {
        format!("{} --kubeconfig {}", self.program.display(), self.kubeconfig.display())
    }

    /// Runs kubectl and returns its standard output.
    ///
    /// # Errors
    /// kubectl fails, or a request takes longer than ten seconds.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=10s").args(args);
        let out = command.stdin(Stdio::null()).output().context("cannot run kubectl")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "kubectl {}: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Starts `kubectl proxy` on a free port. Its output is the caller's.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn proxy(&self) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["proxy", "--port=0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start kubectl proxy")
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub(super) fn apply(&self, manifest: &Path) -> Result<()> {
        self.run(&["apply", "-f", &manifest.to_string_lossy()]).map(drop)
    }
}
