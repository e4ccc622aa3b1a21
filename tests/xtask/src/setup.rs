//! `cargo xtask setup`: installs what building and testing need, from Debian and Go's module proxy.
//! A second run finds everything there and changes nothing.

use crate::{cargo, out};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::tools;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Debian packages, each with files that prove its installation: a file test is faster than dpkg.
const PACKAGES: [(&str, &[&str]); 8] = [
    ("gcc", &["/usr/bin/gcc"]),
    ("libc6-dev", &["/usr/include/stdlib.h"]),
    ("protobuf-compiler", &["/usr/bin/protoc", "/usr/local/bin/protoc"]),
    ("pkg-config", &["/usr/bin/pkg-config"]),
    ("libseccomp-dev", &["/usr/include/seccomp.h"]),
    ("nftables", &["/usr/sbin/nft", "/sbin/nft"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    ("busybox-static", &["/bin/busybox"]),
];

/// Oldest containerd that has the services used by Berth.
const CONTAINERD_FLOOR: [u32; 3] = [2, 0, 0];
/// Containerd version to build where none is installed.
const CONTAINERD: &str = "v2.4.2";
/// Oldest patch of each runc minor version in which the container escapes are fixed; newer minor versions are
/// fine.
const RUNC_FLOORS: [[u32; 3]; 3] = [[1, 2, 8], [1, 3, 3], [1, 4, 3]];
/// Runc version to build where none is installed.
const RUNC: &str = "v1.5.2";

/// Version of the standard CNI plugins, with which the agent is tested.
const CNI_PLUGINS: &str = "v1.9.1";

/// Version of the check of dependencies.
const CARGO_DENY: &str = "0.20.2";

/// Installs everything that is missing.
pub(crate) fn run() -> Result<()> {
    packages(&PACKAGES)?;
    containerd()?;
    runc()?;
    cni_plugins()?;
    out::line("setup: everything is there");
    Ok(())
}

/// Packages for making and running a VM.
const VM_PACKAGES: [(&str, &[&str]); 8] = [
    ("qemu-system-x86", &["/usr/bin/qemu-system-x86_64"]),
    ("qemu-utils", &["/usr/bin/qemu-img"]),
    ("debootstrap", &["/usr/sbin/debootstrap"]),
    ("debian-archive-keyring", &["/usr/share/keyrings/debian-archive-keyring.gpg"]),
    ("cpio", &["/usr/bin/cpio"]),
    ("e2fsprogs", &["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"]),
    ("xz-utils", &["/usr/bin/xz"]),
    ("zstd", &["/usr/bin/zstd"]),
];

/// Installs the packages for VMs.
pub(crate) fn for_vm() -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "a VM is started on x86_64 only so far; this machine is {}",
        std::env::consts::ARCH
    );
    packages(&VM_PACKAGES)
}

/// Packages for a cluster.
const CLUSTER_PACKAGES: [(&str, &[&str]); 5] = [
    ("openssl", &["/usr/bin/openssl"]),
    ("util-linux", &["/usr/bin/unshare"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    ("nftables", &["/usr/sbin/nft", "/sbin/nft"]),
    ("busybox-static", &["/bin/busybox"]),
];

/// Installs the packages for clusters.
pub(crate) fn for_cluster() -> Result<()> {
    packages(&CLUSTER_PACKAGES)
}

/// Installs `iptables`, which kube-proxy runs in the mode of that name.
///
/// # Errors
/// The machine has none, and no means to install it.
pub(crate) fn for_iptables() -> Result<()> {
    packages(&[("iptables", &["/usr/sbin/iptables"])])
}

/// Packages whose programs are in the images of Kubernetes' end-to-end tests.
const CONFORMANCE_PACKAGES: [(&str, &[&str]); 5] = [
    ("bash", &["/usr/bin/bash"]),
    ("curl", &["/usr/bin/curl"]),
    ("netcat-openbsd", &["/bin/nc.openbsd"]),
    ("bind9-dnsutils", &["/usr/bin/dig"]),
    ("libc-bin", &["/usr/bin/ldd"]),
];

/// Installs the packages for Kubernetes' end-to-end tests.
pub(crate) fn for_conformance() -> Result<()> {
    packages(&CONFORMANCE_PACKAGES)
}

/// Path of `cargo-deny`, of any version in PATH or of ours in the cache. Installs ours where there is neither: without
/// optimisation and without the parts that ask the network, in one minute of two processors instead of several.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    let root = tools::cache()?.join("tools/cargo-deny");
    let own = root.join("bin/cargo-deny");
    if let Some(there) = [own.clone(), "cargo-deny".into()].into_iter().find(|p| version_of(p).is_some()) {
        return Ok(there);
    }
    out::timed("cargo install cargo-deny, a minute the first time", || {
        let mut command = cargo::command(&["install", "--locked", "--debug", "--no-default-features"]);
        succeed(command.args(["cargo-deny", "--version", CARGO_DENY, "--root"]).arg(&root))
    })?;
    Ok(own)
}

fn packages(wanted: &[(&'static str, &[&str])]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(_, files)| !files.iter().any(|f| Path::new(f).exists()))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        out::line("setup: the Debian packages are there");
        return Ok(());
    }
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "missing: {}; this machine has no apt-get, install them by its own means",
        missing.join(", ")
    );
    out::line(&format!("setup: installing {}", missing.join(", ")));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"]).args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        out::timed(&format!("apt-get {}", args.join(" ")), || succeed(&mut command))
    };
    // The package lists may be missing or outdated. They are refreshed once, only when a package must be
    // downloaded.
    apt(&["update"])?;
    let mut args = vec!["install", "--no-install-recommends"];
    args.extend(&missing);
    apt(&args)
}

fn containerd() -> Result<()> {
    let mut why = String::from("not there");
    for dir in search()? {
        let all =
            ["containerd", "containerd-shim-runc-v2", "ctr"].iter().all(|name| dir.join(name).is_file());
        if !all {
            continue;
        }
        let version = version_of(&dir.join("containerd"));
        if version.is_some_and(|v| v >= CONTAINERD_FLOOR) {
            out::line(&format!("setup: containerd {} in {}", show(version), dir.display()));
            return Ok(());
        }
        why = format!("{} in {} is too old", show(version), dir.display());
    }
    out::line(&format!("setup: containerd: {why}; building {CONTAINERD}"));
    let base = "github.com/containerd/containerd/v2";
    let programs =
        ["containerd", "containerd-shim-runc-v2", "ctr"].map(|p| format!("{base}/cmd/{p}@{CONTAINERD}"));
    let version = format!("-X {base}/version.Version={}", CONTAINERD.trim_start_matches('v'));
    go_install(&programs, &["-ldflags", &version], "0")
}

fn runc() -> Result<()> {
    let mut why = String::from("not there");
    for dir in search()? {
        let program = dir.join("runc");
        if !program.is_file() {
            continue;
        }
        let version = version_of(&program);
        if version.is_some_and(runc_is_safe) {
            out::line(&format!("setup: runc {} in {}", show(version), dir.display()));
            return Ok(());
        }
        why = format!("{} in {} is below the security floor", show(version), dir.display());
    }
    out::line(&format!("setup: runc: {why}; building {RUNC}"));
    let version = format!("-X main.version={}", RUNC.trim_start_matches('v'));
    go_install(
        &[format!("github.com/opencontainers/runc@{RUNC}")],
        &["-tags", "seccomp", "-ldflags", &version],
        "1",
    )
}

fn cni_plugins() -> Result<()> {
    let wanted = ["main/bridge", "main/ptp", "main/loopback", "ipam/host-local", "meta/portmap"];
    // Programs from PATH do not count: iproute2 installs a `bridge` too.
    let dir = tools::dir()?;
    let there = |path: &str| path.rsplit('/').next().is_some_and(|name| dir.join(name).is_file());
    let missing: Vec<String> = wanted
        .iter()
        .filter(|path| !there(path))
        .map(|path| format!("github.com/containernetworking/plugins/plugins/{path}@{CNI_PLUGINS}"))
        .collect();
    if missing.is_empty() {
        out::line("setup: the CNI plugins that are tested with are there");
        return Ok(());
    }
    go_install(&missing, &[], "0")
}

/// PATH with the tools directory first.
fn search() -> Result<Vec<PathBuf>> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(std::iter::once(tools::dir()?).chain(env::split_paths(&path)).collect())
}

/// The first version `x.y.z` in the output of `--version`.
fn version_of(program: &Path) -> Option<[u32; 3]> {
    let out = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&out.stdout))
}

fn parse_version(text: &str) -> Option<[u32; 3]> {
    text.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        // The part after a dash or plus (pre-release, distribution's mark) is ignored.
        let word = word.split(['-', '+', '~']).next().unwrap_or(word);
        let mut numbers = word.split('.').map(str::parse::<u32>);
        match (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()) {
            (Ok(a), Ok(b), Ok(c), None) => Some([a, b, c]),
            _ => None,
        }
    })
}

fn runc_is_safe(version: [u32; 3]) -> bool {
    let minor = |v: [u32; 3]| [v[0], v[1]];
    match RUNC_FLOORS.iter().find(|floor| minor(**floor) == minor(version)) {
        Some(floor) => version >= *floor,
        None => RUNC_FLOORS.iter().all(|floor| version > *floor),
    }
}

fn show(version: Option<[u32; 3]>) -> String {
    version.map_or_else(|| "of unknown version".into(), |[a, b, c]| format!("{a}.{b}.{c}"))
}

fn go_install(packages: &[String], flags: &[&str], cgo: &str) -> Result<()> {
    let go = Command::new("go").arg("version").stdin(Stdio::null()).output();
    if !go.is_ok_and(|o| o.status.success()) {
        bail!("this takes Go (https://go.dev/dl), and there is no `go` in PATH");
    }
    let dir = tools::dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    for package in packages {
        let name = package.rsplit('/').next().unwrap_or(package);
        out::timed(&format!("go install {name}, a few minutes the first time"), || {
            let mut command = Command::new("go");
            command.arg("install").arg("-trimpath").args(flags).arg(package);
            command.env("GOBIN", &dir).env("GOFLAGS", "").env("CGO_ENABLED", cgo);
            succeed(&mut command)
        })?;
    }
    Ok(())
}

/// Runs a command and prints the captured output only where the command fails.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("run {:?}", command.get_program()))?;
    if out.status.success() {
        return Ok(());
    }
    out::line(&String::from_utf8_lossy(&out.stdout));
    out::line(&String::from_utf8_lossy(&out.stderr));
    bail!("{command:?}: {}", out.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        let containerd = "containerd github.com/containerd/containerd/v2 2.4.2 abc\n";
        assert_eq!(parse_version(containerd), Some([2, 4, 2]));
        assert_eq!(
            parse_version("containerd github.com/containerd/containerd 1.6.20~ds1 x"),
            Some([1, 6, 20])
        );
        assert_eq!(parse_version("runc version 1.5.2\nspec: 1.3.0\ngo: go1.26.8"), Some([1, 5, 2]));
        assert_eq!(parse_version("runc version 1.4.0-rc.1+dev"), Some([1, 4, 0]));
        assert_eq!(parse_version("hello"), None);
    }

    #[test]
    fn runc_has_a_floor_for_each_minor_version() {
        for bad in [[1, 1, 5], [1, 1, 99], [1, 2, 7], [1, 3, 2], [1, 4, 2], [0, 9, 9]] {
            assert!(!runc_is_safe(bad), "{bad:?}");
        }
        for good in [[1, 2, 8], [1, 2, 20], [1, 3, 3], [1, 4, 3], [1, 5, 0], [2, 0, 0]] {
            assert!(runc_is_safe(good), "{good:?}");
        }
    }
}
