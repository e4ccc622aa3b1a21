//! `cargo xtask peers`: builds the programs of a real cluster, in the versions that `tests/peers` pins.
//!
//! The programs lie in `berth/peers/bin` of the user's cache directory. Each has a file `NAME.made` beside it
//! that says what it was made from; a program is built again only where that changed.

use crate::{
    apt::{self, Suite},
    out,
    setup::succeed,
};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::tools;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Options of `cargo xtask peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Programs to build; all where none is named. `etcd` stands for every program that begins with `etcd-`.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// A program and its source.
struct Peer {
    name: &'static str,
    from: Source,
}

/// Where a program comes from.
enum Source {
    /// A main package of the Go module in this directory of `tests/peers`.
    Go { module: &'static str, package: &'static str },
    /// The tests of a package of that module.
    GoTests { module: &'static str, package: &'static str },
    /// A file of a Debian package. The package is unpacked, not installed.
    Debian { package: &'static str, file: &'static str },
}

/// The module of Kubernetes' own programs.
const KUBERNETES: &str = ".";

/// Debian's suite whose etcd is too old for streaming lists (etcd 3.4.23).
const SUITE: &str = "bookworm";

const fn kubernetes(name: &'static str, package: &'static str) -> Peer {
    Peer { name, from: Source::Go { module: KUBERNETES, package } }
}

const fn sidecar(name: &'static str, package: &'static str) -> Peer {
    Peer { name, from: Source::Go { module: "csi-sidecars", package } }
}

/// All programs. The first of Kubernetes' compiles what the others share.
const PEERS: [Peer; 19] = [
    Peer { name: "etcd-3.4", from: Source::Debian { package: "etcd-server", file: "usr/bin/etcd" } },
    Peer { name: "etcd-3.6", from: Source::Go { module: "etcd", package: "go.etcd.io/etcd/server/v3" } },
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    // Its streams are SPDY; later ones try WebSockets first.
    Peer {
        name: "kubectl-1.29",
        from: Source::Go { module: "kubectl-1.29", package: "k8s.io/kubernetes/cmd/kubectl" },
    },
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    Peer { name: "coredns", from: Source::Go { module: "coredns", package: "github.com/coredns/coredns" } },
    Peer {
        name: "metrics-server",
        from: Source::Go {
            module: "metrics-server",
            package: "sigs.k8s.io/metrics-server/cmd/metrics-server",
        },
    },
    Peer {
        name: "promtool",
        from: Source::Go { module: "promtool", package: "github.com/prometheus/prometheus/cmd/promtool" },
    },
    Peer {
        name: "csi-sanity",
        from: Source::Go {
            module: "csi-sanity",
            package: "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        },
    },
    sidecar("csi-provisioner", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
    sidecar("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
    sidecar("csi-snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"),
    sidecar(
        "snapshot-controller",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
    ),
    kubernetes("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    Peer {
        name: "e2e.test",
        from: Source::GoTests { module: KUBERNETES, package: "k8s.io/kubernetes/test/e2e" },
    },
];

/// Builds the named programs and says where they are.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let bin = get(&wanted(&args.names)?)?;
    out::line(&format!("peers: in {}", bin.display()));
    Ok(true)
}

/// The programs of these names.
fn wanted(names: &[String]) -> Result<Vec<&'static str>> {
    let all = || PEERS.iter().map(|p| p.name);
    let mut wanted = Vec::new();
    for name in names {
        let before = wanted.len();
        wanted
            .extend(all().filter(|n| n == name || n.strip_prefix(name).is_some_and(|r| r.starts_with('-'))));
        ensure!(
            wanted.len() > before,
            "there is no program {name:?}; there are: {}",
            all().collect::<Vec<_>>().join(", ")
        );
    }
    if names.is_empty() {
        wanted.extend(all());
    }
    Ok(wanted)
}

/// Directory of the programs, with these of them built.
///
/// # Errors
/// A program does not build, or its package is unreachable.
pub(crate) fn get(names: &[&str]) -> Result<PathBuf> {
    let dir = tools::cache()?.join("peers");
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    // A second call waits here and then finds everything built.
    let lock = File::create(dir.join("lock")).context("cannot open the lock of the peers")?;
    lock.lock().context("cannot lock the peers")?;
    let mut missing = Vec::new();
    for peer in PEERS.iter().filter(|p| names.contains(&p.name)) {
        let made_from = peer.made_from()?;
        if !is_built(&bin, peer.name, &made_from) {
            missing.push((peer, made_from));
        }
    }
    let count = missing.len();
    for (at, (peer, made_from)) in missing.into_iter().enumerate() {
        let work = match peer.from {
            Source::Debian { .. } => "unpack Debian's",
            Source::Go { .. } | Source::GoTests { .. } => "build, minutes the first time,",
        };
        let what = format!("{work} {} ({} of {count})", peer.name, at + 1);
        out::timed(&what, || peer.build(&dir, &bin, &made_from))?;
    }
    Ok(bin)
}

/// Directory of the sources of a Go module that another one, in a directory of `tests/peers`, requires.
///
/// # Errors
/// Go is missing, or cannot load the module.
pub(crate) fn module_dir(of: &str, module: &str) -> Result<PathBuf> {
    let mut list = Command::new("go");
    list.args(["mod", "download", "-json", module]).current_dir(directory(of));
    let told: serde_json::Value =
        serde_json::from_str(&output(&mut list)?).context("cannot read Go's answer")?;
    told["Dir"].as_str().map(PathBuf::from).with_context(|| format!("{module} has no directory"))
}

fn made(bin: &Path, name: &str) -> PathBuf {
    bin.join(format!("{name}.made"))
}

fn is_built(bin: &Path, name: &str, made_from: &str) -> bool {
    bin.join(name).is_file() && fs::read_to_string(made(bin, name)).is_ok_and(|text| text == made_from)
}

impl Peer {
    /// Everything that decides what is built: the command, the versions of the modules, and Go's own.
    fn made_from(&self) -> Result<String> {
        let (module, build) = match &self.from {
            Source::Debian { package, file } => return Ok(format!("{file} of {package} in {SUITE}\n")),
            Source::Go { module, .. } | Source::GoTests { module, .. } => {
                (directory(module), self.go(Path::new(self.name), module)?)
            }
        };
        let go = output(Command::new("go").arg("version"))?;
        let words: Vec<_> = build.get_args().map(|a| a.to_string_lossy()).collect();
        let mut text = format!("{go}go {}\n", words.join(" "));
        for file in ["go.mod", "go.sum"] {
            text.push_str(&read(&module.join(file))?);
        }
        Ok(text)
    }

    fn build(&self, dir: &Path, bin: &Path, made_from: &str) -> Result<()> {
        let path = bin.join(self.name);
        let new = bin.join(format!(".{}.new", self.name));
        match &self.from {
            Source::Debian { package, file } => {
                let archive = apt::archive()?;
                let suite = Suite::open(&dir.join("apt"), &archive, SUITE)?;
                let unpacked = dir.join("unpacked");
                suite.unpack(&[(*package).to_owned()], &unpacked)?;
                let from = unpacked.join(file);
                fs::copy(&from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
                fs::remove_dir_all(&unpacked).context("cannot remove the unpacked package")?;
            }
            Source::Go { module, .. } | Source::GoTests { module, .. } => {
                succeed(&mut self.go(&new, module)?)?
            }
        }
        // Running programs keep the old file.
        fs::rename(&new, &path).with_context(|| format!("cannot put {} in place", path.display()))?;
        let record = made(bin, self.name);
        fs::write(&record, made_from).with_context(|| format!("cannot write {}", record.display()))
    }

    /// The command of Go that writes the program to `out`.
    fn go(&self, out: &Path, module: &str) -> Result<Command> {
        let mut go = Command::new("go");
        match &self.from {
            Source::Go { .. } => go.arg("build"),
            Source::GoTests { .. } => go.args(["test", "-c"]),
            Source::Debian { package, .. } => bail!("Debian's package {package} is not built"),
        };
        go.args(["-trimpath", "-ldflags", &ldflags(module)?, "-o"]).arg(out);
        if let Source::Go { package, .. } | Source::GoTests { package, .. } = &self.from {
            go.arg(package);
        }
        go.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly").current_dir(directory(module));
        Ok(go)
    }
}

fn directory(module: &str) -> PathBuf {
    crate::root().join("tests/peers").join(module)
}

/// Options of Go's linker: no symbols, and the version that Kubernetes' programs tell.
fn ldflags(module: &str) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    if let Ok(version) = version(&read(&directory(module).join("go.mod"))?, "k8s.io/kubernetes") {
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            for (name, value) in [("gitVersion", version.as_str()), ("gitMajor", major), ("gitMinor", minor)]
            {
                flags.push_str(&format!(" -X {package}.{name}={value}"));
            }
        }
    }
    Ok(flags)
}

/// Version of a required module, from the text of a `go.mod`.
fn version(text: &str, module: &str) -> Result<String> {
    let found = text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    });
    found.map(str::to_owned).with_context(|| format!("go.mod requires no {module}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| {
        format!("cannot run {}: the peers take Go (https://go.dev/dl)", command.get_program().display())
    })?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_itself_and_for_its_versions() {
        let names = |given: &[&str]| wanted(&given.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["kubectl", "etcd"]).unwrap(), ["kubectl", "kubectl-1.29", "etcd-3.4", "etcd-3.6"]);
        assert_eq!(names(&[]).unwrap().len(), PEERS.len());
        let error = names(&["kubeadm"]).unwrap_err().to_string();
        assert!(error.contains("kube-apiserver"), "{error}");
    }

    #[test]
    fn the_version_is_that_of_the_module() {
        assert_eq!(version("module x\n\nrequire a/b v1.2.3\n", "a/b").unwrap(), "v1.2.3");
        assert_eq!(
            version("require (\n\ta/b/c v1.0.0\n\ta/b v1.2.3 // indirect\n)\n", "a/b").unwrap(),
            "v1.2.3"
        );
        assert!(version("require a/b/c v1.0.0\n", "a/b").is_err());
        for (module, wanted) in
            [(KUBERNETES, "version.gitVersion=v1."), ("kubectl-1.29", "gitVersion=v1.29.")]
        {
            let flags = ldflags(module).unwrap();
            assert!(flags.contains(wanted), "{flags}");
        }
        assert_eq!(ldflags("etcd").unwrap(), "-s -w");
    }

    #[test]
    fn a_program_is_built_again_only_where_its_sources_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_built(dir.path(), "x", "from a"));
        fs::write(dir.path().join("x"), "").unwrap();
        assert!(!is_built(dir.path(), "x", "from a"));
        fs::write(made(dir.path(), "x"), "from a").unwrap();
        assert!(is_built(dir.path(), "x", "from a"));
        assert!(!is_built(dir.path(), "x", "from b"));
    }

    #[test]
    fn every_program_of_go_is_pinned() {
        for peer in &PEERS {
            let (Source::Go { module, package } | Source::GoTests { module, package }) = peer.from else {
                continue;
            };
            let dir = directory(module);
            let pins = [dir.join("go.mod"), dir.join("tools/tools.go")]
                .map(|f| fs::read_to_string(f).unwrap_or_default());
            assert!(pins.iter().any(|text| text.contains(package)), "{} is not pinned", peer.name);
        }
    }
}
