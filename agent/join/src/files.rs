//! The files of a joined node: their paths, their text, and what of them is there.
//!
//! Paths of Kubernetes are kubeadm's (`/etc/kubernetes`), so that its tools find them. Everything is below
//! one directory of configuration, `/etc` by default, and the agent's directory of certificates.

use crate::{Error, defaults::Defaults};
use berth_core::{error::Chain, roots::Roots};
use berth_sys::fs::{remove_if_there, write_atomic};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Paths of a joined node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// The kubeconfig with the token, written by the join.
    pub(crate) bootstrap: PathBuf,
    /// The node's kubeconfig, written by the agent.
    pub(crate) kubeconfig: PathBuf,
    /// The cluster's CA.
    pub(crate) ca: PathBuf,
    /// Options of the agent.
    pub(crate) options: PathBuf,
    /// The unit of the service manager.
    pub(crate) unit: PathBuf,
    /// The node's certificates and keys.
    pki: PathBuf,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) mode: u32,
}

impl Files {
    /// The paths below a directory of configuration.
    pub(crate) fn below(etc: &Path, roots: &Roots) -> Files {
        Files {
            bootstrap: etc.join("kubernetes/bootstrap-kubelet.conf"),
            kubeconfig: etc.join("kubernetes/kubelet.conf"),
            ca: etc.join("kubernetes/pki/ca.crt"),
            options: etc.join("berth/berth.env"),
            unit: etc.join("systemd/system/berth.service"),
            pki: roots.pki_dir(),
        }
    }

    /// What is there of an earlier join.
    pub(crate) fn present(&self) -> Vec<PathBuf> {
        let all = [&self.bootstrap, &self.kubeconfig, &self.ca, &self.options, &self.unit];
        // A CA beside its key is a control plane's own, and no file of a node.
        let is_control_plane = self.ca.with_extension("key").exists();
        let of_node = |path: &&&PathBuf| path.exists() && !(is_control_plane && **path == &self.ca);
        let mut found: Vec<PathBuf> = all.iter().filter(of_node).map(|path| (*path).clone()).collect();
        found.extend(self.certificates());
        found
    }

    /// Whether a join of this program made this node, and not another agent's.
    pub(crate) fn is_ours(&self) -> bool {
        self.options.exists() || self.unit.exists()
    }

    /// The files of the node's certificates, with keys of requests that are not answered.
    fn certificates(&self) -> Vec<PathBuf> {
        let ours = ["kubelet-client", "kubelet-server"];
        let entries = fs::read_dir(&self.pki).into_iter().flatten().flatten();
        let names = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            ours.iter().any(|begin| name.starts_with(begin))
                && (name.ends_with(".pem") || name.ends_with(".key.tmp"))
        });
        let mut found: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    /// Removes a file that is there no more or was one of [`Files::present`].
    pub(crate) fn remove(path: &Path) -> Result<(), Error> {
        remove_if_there(path).map_err(|e| Error::File {
            what: "remove",
            path: path.into(),
            reason: e.to_string(),
        })
    }
}

impl NewFile {
    /// Writes the file, with the directories above it.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let failed = |reason: String| Error::File { what: "write", path: self.path.clone(), reason };
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
        }
        write_atomic(&self.path, self.text.as_bytes(), self.mode).map_err(|e| failed(Chain(&e).to_string()))
    }
}

/// What the agent is started with.
#[derive(Debug, Clone)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) roots: Option<&'a Path>,
    pub(crate) files: &'a Files,
    pub(crate) defaults: &'a Defaults,
    /// Options by hand, after all others.
    pub(crate) more: &'a [String],
}

impl Start<'_> {
    /// The options that differ from node to node, as the file of options has them.
    fn options(&self) -> Vec<String> {
        let Defaults { cluster_dns, cluster_domain, service_cidrs, pod_cidrs, server_tls_bootstrap } =
            self.defaults;
        let each = |name: &str, values: &[String]| {
            values.iter().map(|value| format!("--{name}={value}")).collect::<Vec<_>>()
        };
        let mut options = each("cluster-dns", cluster_dns);
        options.extend((!cluster_domain.is_empty()).then(|| format!("--cluster-domain={cluster_domain}")));
        options.extend(each("service-cidr", service_cidrs));
        if !pod_cidrs.is_empty() {
            options.push("--masquerade".to_owned());
            options.extend(each("non-masquerade-cidr", pod_cidrs));
        }
        options.extend(server_tls_bootstrap.then(|| "--rotate-server-certificates".to_owned()));
        options.extend_from_slice(self.more);
        options
    }

    fn fixed(&self) -> Vec<String> {
        let mut words = vec![self.program.display().to_string()];
        words.extend(self.roots.map(|path| format!("--roots={}", path.display())));
        words.push("agent".to_owned());
        words.push(format!("--kubeconfig={}", self.files.kubeconfig.display()));
        words.push(format!("--bootstrap-kubeconfig={}", self.files.bootstrap.display()));
        words.push(format!("--client-ca-file={}", self.files.ca.display()));
        words
    }

    /// The command line of the agent, for a person.
    pub(crate) fn command(&self) -> String {
        [self.fixed(), self.options()].concat().join(" ")
    }

    /// The file of options and the unit that reads it.
    pub(crate) fn unit(&self) -> [NewFile; 2] {
        let options = self.options().join(" ");
        let env = format!(
            "# Options of `berth agent`, written by `berth join`. After a change: systemctl restart berth\n\
             BERTH_AGENT_OPTIONS={options}\n"
        );
        let unit = format!(
            "# Written by `berth join`.\n\
             [Unit]\n\
             Description=Berth, the node agent\n\
             Wants=network-online.target containerd.service\n\
             After=network-online.target containerd.service\n\
             \n\
             [Service]\n\
             Type=notify\n\
             EnvironmentFile={}\n\
             ExecStart={} $BERTH_AGENT_OPTIONS\n\
             # The pods' shims and what else outlives the agent is not ended with it.\n\
             KillMode=process\n\
             Delegate=yes\n\
             Restart=always\n\
             RestartSec=1\n\
             OOMScoreAdjust=-999\n\
             TasksMax=infinity\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            self.files.options.display(),
            self.fixed().join(" "),
        );
        [
            NewFile { path: self.files.options.clone(), text: env, mode: 0o644 },
            NewFile { path: self.files.unit.clone(), text: unit, mode: 0o644 },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;

    fn files(dir: &Path) -> Files {
        let roots = Roots::below(&dir.join("node"), NodeName::new("n1").unwrap(), "c");
        Files::below(&dir.join("etc"), &roots)
    }

    #[test]
    fn only_files_of_a_join_count_as_present() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        assert_eq!(files.present(), Vec::<PathBuf>::new());
        let pki = dir.path().join("node/kubelet/pki");
        for (path, mode) in [
            (files.kubeconfig.clone(), 0o600),
            (files.unit.clone(), 0o644),
            (pki.join("kubelet-client-current.pem"), 0o600),
            (pki.join("kubelet-client.key.tmp"), 0o600),
            (pki.join("kubelet.crt"), 0o644),
            (dir.path().join("etc/kubernetes/admin.conf"), 0o600),
        ] {
            NewFile { path, text: String::new(), mode }.write().unwrap();
        }
        let want = [
            files.kubeconfig.clone(),
            files.unit.clone(),
            pki.join("kubelet-client-current.pem"),
            pki.join("kubelet-client.key.tmp"),
        ];
        assert_eq!(files.present(), want);
        for path in files.present() {
            Files::remove(&path).unwrap();
            Files::remove(&path).unwrap();
        }
        assert_eq!(files.present(), Vec::<PathBuf>::new());
        assert!(pki.join("kubelet.crt").exists());
    }

    #[test]
    fn the_ca_of_a_control_plane_is_no_file_of_a_node() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        NewFile { path: files.ca.clone(), text: String::new(), mode: 0o644 }.write().unwrap();
        assert_eq!((files.present().len(), files.is_ours()), (1, false));
        NewFile { path: files.ca.with_extension("key"), text: String::new(), mode: 0o600 }.write().unwrap();
        assert_eq!(files.present().len(), 0);
        NewFile { path: files.options.clone(), text: String::new(), mode: 0o644 }.write().unwrap();
        assert!(files.is_ours());
    }

    #[test]
    fn the_agent_is_started_with_what_the_cluster_says() {
        let files = files(Path::new("/x"));
        let defaults = Defaults {
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            service_cidrs: vec!["10.96.0.0/16".into()],
            pod_cidrs: vec!["10.244.0.0/16".into()],
            server_tls_bootstrap: true,
        };
        let more = ["--uplink=eth0".to_owned()];
        let start = Start {
            program: Path::new("/usr/local/bin/berth"),
            roots: None,
            files: &files,
            defaults: &defaults,
            more: &more,
        };
        let options = "--cluster-dns=10.96.0.10 --cluster-domain=cluster.local --service-cidr=10.96.0.0/16 --masquerade \
                       --non-masquerade-cidr=10.244.0.0/16 --rotate-server-certificates --uplink=eth0";
        let fixed = "/usr/local/bin/berth agent --kubeconfig=/x/etc/kubernetes/kubelet.conf \
                     --bootstrap-kubeconfig=/x/etc/kubernetes/bootstrap-kubelet.conf \
                     --client-ca-file=/x/etc/kubernetes/pki/ca.crt";
        assert_eq!(start.command(), format!("{fixed} {options}"));
        let [env, unit] = start.unit();
        assert!(env.text.ends_with(&format!("\nBERTH_AGENT_OPTIONS={options}\n")), "{}", env.text);
        assert!(unit.text.contains(&format!("\nExecStart={fixed} $BERTH_AGENT_OPTIONS\n")), "{}", unit.text);
        assert!(unit.text.contains("\nEnvironmentFile=/x/etc/berth/berth.env\n"), "{}", unit.text);
        let roots =
            Start { roots: Some(Path::new("/r.json")), defaults: &Defaults::default(), more: &[], ..start };
        assert!(roots.command().starts_with("/usr/local/bin/berth --roots=/r.json agent --kubeconfig="));
    }
}
