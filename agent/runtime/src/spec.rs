//! The OCI spec of a container: a pure function of the pod, the image and facts of the node.
//!
//! The module produces the spec parts that containerd's CRI plugin would produce for the same pod:
//! capabilities, masked and read-only paths, fixed mounts, devices, seccomp, namespaces, limits, user.
//! `tests/golden_spec/main.rs` compares with recordings of the plugin; `tests/golden/differences.json` lists each
//! difference with its reason.
//!
//! Invariants: no IO, no clock; the same input gives the same spec; no panic on any input. Labels of an image
//! and annotations of a pod never become part of a spec. A feature that this build lacks (AppArmor profiles)
//! is a [`SpecError::NotYet`], never a container with less confinement than requested.
//!
//! Outside of this module: sysctls belong to the pod's namespaces, and the namespaces' creator sets them
//! ([`sandbox_sysctls`] lists them). The mounts' creator makes and resolves the sources of bind mounts and
//! checks them for shared propagation.

mod container;
mod device;
mod host;
mod image;
mod mounts;
#[cfg(test)]
mod mutations;
mod process;
mod seccomp;
mod sysctls;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod user;

pub use container::{ContainerInput, ContainerSpecError, build_container};
pub use device::DeviceSpec;
pub use host::{HostFacts, HostFactsError};
pub use image::{ImageConfig, ImageConfigError, MAX_CONFIG_BYTES};
pub use mounts::{MountOrigin, MountSpec, image_volumes};
pub use sysctls::{SysctlError, sandbox_sysctls};
pub use user::{MAX_USER_FILE_BYTES, ResolvedUser, UserError, UserFiles, resolve_user};

use berth_core::{
    ids::ContainerId,
    model::{AppArmor, Container, Pod, Seccomp},
    resources::ContainerResources,
};
use oci_spec::{
    OciSpecError,
    runtime::{
        Linux, LinuxBuilder, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
        LinuxHugepageLimitBuilder, LinuxMemory, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
        LinuxResources, LinuxSeccomp, Process, Root, Spec, User,
    },
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// The version of the runtime specification that the spec follows.
pub const OCI_VERSION: &str = "1.3.0";
/// The annotation that groups containers into one shim.
pub const SHIM_GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";
/// The root file system, relative to the bundle.
const ROOTFS: &str = "rootfs";

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The namespaces a container joins, as pinned files or `/proc/<pid>/ns/…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// The pod's network namespace; `None` is the host's.
    pub net: Option<PathBuf>,
    /// The pod's IPC namespace; `None` is the host's.
    pub ipc: Option<PathBuf>,
    /// The pod's UTS namespace; `None` is the host's (host-network pods).
    pub uts: Option<PathBuf>,
    /// The PID namespace.
    pub pid: PidNamespace,
}

/// The PID namespace of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// A namespace of its own.
    #[default]
    Own,
    /// The namespace at this path: the pod's shared one, or that of the container that an ephemeral container targets.
    Shared(PathBuf),
    /// The host's namespace.
    Host,
}

/// Input of one spec.
#[derive(Debug, Clone, Copy)]
pub struct SpecInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container of the pod that the spec is for.
    pub container: &'a Container,
    /// The id of this attempt.
    pub id: &'a ContainerId,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// The process's user, from [`resolve_user`].
    pub user: &'a ResolvedUser,
    /// The pod's environment, resolved and expanded; the image's environment precedes it.
    pub env: &'a [(String, String)],
    /// `command`, expanded; if empty, the image's entry point applies.
    pub command: &'a [String],
    /// `args`, expanded.
    pub args: &'a [String],
    /// Bind mounts: volumes in the container's order, then the pod's own files, the sandbox's files, the
    /// image's volumes.
    pub mounts: &'a [MountSpec],
    /// Block devices of volumes, beside those of a privileged container.
    pub devices: &'a [DeviceSpec],
    /// The namespaces that the container joins.
    pub namespaces: &'a NamespacePaths,
    /// The container's cgroup, from the root of each hierarchy.
    pub cgroups_path: &'a str,
    /// The container's limits, from [`ContainerResources::of`].
    pub resources: &'a ContainerResources,
    /// The score from [`berth_core::resources::oom_score_adj`]; raised to the node's floor where there is
    /// one.
    pub oom_score_adj: i32,
    /// The host name of the pod, or of the node for host-network pods; becomes `HOSTNAME`.
    pub hostname: &'a str,
    /// The text of the profile that `seccompProfile: Localhost` names; `None` where the file is missing.
    pub seccomp_file: Option<&'a str>,
    /// Facts of the node.
    pub host: &'a HostFacts,
    /// The container's shim group, one for each pod.
    pub shim_group: &'a str,
}

/// Reason why a spec cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither pod nor image names a command.
    #[error("no command specified")]
    NoCommand,
    /// A path is relative where it must be absolute.
    #[error("{what} {path:?} is not an absolute path")]
    RelativePath {
        /// Purpose of the path.
        what: &'static str,
        /// The path as written.
        path: String,
    },
    /// A working directory inside `/proc/<pid>/fd`.
    #[error("workingDir {0:?} leads through an open file descriptor")]
    DescriptorDirectory(String),
    /// A text that the kernel would cut off at its NUL byte.
    #[error("{what} holds a NUL byte")]
    NulByte {
        /// Description of the text.
        what: &'static str,
    },
    /// `mountPropagation: Bidirectional` without `privileged`.
    #[error("mount {0:?}: Bidirectional propagation needs a privileged container")]
    BidirectionalNeedsPrivileged(String),
    /// `recursiveReadOnly` on a mount that is writable or propagates.
    #[error("mount {0:?}: recursiveReadOnly needs readOnly and no mount propagation")]
    RecursiveReadOnly(String),
    /// A capability that the kernel does not have.
    #[error("capability {0:?} is not known")]
    UnknownCapability(String),
    /// `seccompProfile: Localhost` without its file: an unconfined container instead would be a security
    /// hole.
    #[error("seccomp profile {0:?} cannot be read")]
    SeccompMissing(String),
    /// The file of the profile is no valid seccomp profile.
    #[error("seccomp profile {name:?} is not valid")]
    SeccompInvalid {
        /// The profile's name.
        name: String,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// A requested feature that this build does not support yet.
    #[error("{0} is not supported yet")]
    NotYet(&'static str),
    /// A part of the spec cannot be assembled.
    #[error("build OCI spec")]
    Build(#[from] OciSpecError),
}

fn seccomp_of(input: &SpecInput<'_>, bounding: &[String]) -> Result<Option<LinuxSeccomp>, SpecError> {
    let security = &input.container.security;
    if security.privileged {
        return Ok(None);
    }
    match security.seccomp.as_ref().or(input.pod.security.seccomp.as_ref()) {
        None | Some(Seccomp::Unconfined) => Ok(None),
        Some(Seccomp::RuntimeDefault) => Ok(Some(seccomp::default_profile(bounding)?)),
        Some(Seccomp::Localhost(name)) => {
            let text = input.seccomp_file.ok_or_else(|| SpecError::SeccompMissing(name.clone()))?;
            serde_json::from_str(text)
                .map(Some)
                .map_err(|source| SpecError::SeccompInvalid { name: name.clone(), source })
        }
    }
}

fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let own = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let join = |typ, path: &Path| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let joined = input.namespaces;
    let mut list = Vec::new();
    match &joined.pid {
        PidNamespace::Own => list.push(own(Pid)?),
        PidNamespace::Shared(path) => list.push(join(Pid, path)?),
        PidNamespace::Host => {}
    }
    for (typ, path) in [(Ipc, &joined.ipc), (Uts, &joined.uts)] {
        if let Some(path) = path {
            list.push(join(typ, path)?);
        }
    }
    list.push(own(Mount)?);
    if let Some(path) = &joined.net {
        list.push(join(Network, path)?);
    }
    if input.host.unified_cgroups && !input.container.security.privileged {
        list.push(own(Cgroup)?);
    }
    Ok(list)
}

fn device_rule(allow: bool) -> Result<LinuxDeviceCgroup, OciSpecError> {
    let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm").build()?;
    rule.set_typ(None);
    Ok(rule)
}

fn cgroup(input: &SpecInput<'_>) -> Result<LinuxResources, OciSpecError> {
    let wanted = input.resources;
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(wanted.cpu_shares).filter(|s| *s != 0));
    cpu.set_quota(wanted.cpu_quota);
    cpu.set_period(Some(wanted.cpu_period).filter(|p| *p != 0));
    let mut memory = LinuxMemory::default();
    memory.set_limit(wanted.memory_limit);
    memory.set_swap(wanted.memory_swap);
    let mut all = LinuxResources::default();
    let mut rules = vec![device_rule(input.container.security.privileged)?];
    for device in input.devices {
        rules.push(device.rule()?);
    }
    all.set_devices(Some(rules));
    all.set_cpu(Some(cpu));
    all.set_memory(Some(memory));
    if !wanted.hugepages.is_empty() {
        let limits = wanted
            .hugepages
            .iter()
            .map(|(size, limit)| {
                LinuxHugepageLimitBuilder::default().page_size(size.as_str()).limit(*limit).build()
            })
            .collect::<Result<Vec<_>, _>>()?;
        all.set_hugepage_limits(Some(limits));
    }
    if !wanted.unified.is_empty() {
        all.set_unified(Some(wanted.unified.clone().into_iter().collect()));
    }
    Ok(all)
}

fn linux(input: &SpecInput<'_>, bounding: &[String], propagation: Option<&str>) -> Result<Linux, SpecError> {
    let security = &input.container.security;
    let confined_proc = !security.privileged && !security.proc_mount_unmasked;
    let owned = |paths: &[&str]| paths.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let (mut masked, mut read_only) = (Vec::new(), Vec::new());
    if confined_proc {
        masked = owned(&MASKED_PATHS);
        masked.extend(input.host.thermal_throttle.iter().cloned());
        read_only = owned(&READ_ONLY_PATHS);
    }
    let mut linux = LinuxBuilder::default()
        .resources(cgroup(input)?)
        .cgroups_path(input.cgroups_path)
        .namespaces(namespaces(input)?)
        .masked_paths(masked)
        .readonly_paths(read_only)
        .build()?;
    let mut devices = if security.privileged { input.host.devices.clone() } else { Vec::new() };
    for device in input.devices {
        devices.retain(|host| host.path() != Path::new(&device.path));
        devices.push(device.node()?);
    }
    linux.set_devices(Some(devices).filter(|d| !d.is_empty()));
    linux.set_seccomp(seccomp_of(input, bounding)?);
    linux.set_rootfs_propagation(propagation.map(str::to_owned));
    linux.set_net_devices(None);
    linux.set_uid_mappings(None);
    linux.set_gid_mappings(None);
    linux.set_sysctl(None);
    Ok(linux)
}

/// Builds the spec of one attempt of one container.
pub fn build(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let security = &input.container.security;
    let app_armor = security.app_armor.as_ref().or(input.pod.security.app_armor.as_ref());
    if !security.privileged && !matches!(app_armor, None | Some(AppArmor::Unconfined)) {
        return Err(SpecError::NotYet("appArmorProfile other than Unconfined"));
    }
    let bounding = process::bounding(security, input.host);

    let mut user = User::default();
    user.set_uid(input.user.uid);
    user.set_gid(input.user.gid);
    user.set_additional_gids(Some(input.user.additional_gids.clone()).filter(|g| !g.is_empty()));

    let open_files = input.host.open_files.map(|(soft, hard)| process::open_files(soft, hard)).transpose()?;

    let mut process = Process::default();
    process
        .set_terminal(Some(input.container.tty))
        .set_user(user)
        .set_args(Some(process::arguments(input.command, input.args, input.image)?))
        .set_env(Some(process::environment(input.image, input.env, input.hostname, input.container.tty)?))
        .set_cwd(process::directory(input.container.working_dir.as_deref(), input.image)?.into())
        .set_capabilities(Some(process::capabilities(&bounding)?))
        .set_rlimits(open_files.map(|limit| vec![limit]))
        .set_no_new_privileges(Some(security.allow_privilege_escalation == Some(false)))
        .set_oom_score_adj(Some(
            input.host.oom_score_floor.map_or(input.oom_score_adj, |floor| floor.max(input.oom_score_adj)),
        ));

    let (mounts, propagation) =
        mounts::build(input.mounts, input.host, security.privileged, security.read_only_root)?;

    let mut root = Root::default();
    root.set_path(ROOTFS.into()).set_readonly(Some(security.read_only_root));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(None)
        .set_linux(Some(linux(input, &bounding, propagation)?))
        .set_annotations(Some(HashMap::from([(
            SHIM_GROUP_ANNOTATION.to_owned(),
            input.shim_group.to_owned(),
        )])));
    Ok(spec)
}
