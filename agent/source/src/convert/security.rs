//! Security contexts.

use super::{
    check::{self, choice},
    context::{IgnoredValues, PodContext},
    field::{FieldError, FieldPath, shorten},
};
use berth_core::model::{AppArmor, CAPABILITIES, ContainerSecurity, PodNamespaces, PodSecurity, Seccomp};
use k8s_openapi::api::core::v1 as api;

/// `spec.securityContext`.
pub(super) fn pod(
    at: &FieldPath<'_>,
    s: &api::PodSecurityContext,
    namespaces: PodNamespaces,
    ignored: &IgnoredValues,
) -> Result<PodSecurity, FieldError> {
    selinux(at, s.se_linux_options.as_ref(), ignored)?;
    if s.windows_options.is_some() {
        ignored.ignore(at.key("windowsOptions").error("this is a Linux node"))?;
    }
    if let Some(policy) = s.se_linux_change_policy.as_deref().filter(|p| !p.is_empty()) {
        let at = at.key("seLinuxChangePolicy");
        ignored.ignore(at.error(format!("{:?} is not supported yet", shorten(policy))))?;
    }
    let mut groups = Vec::new();
    for (index, group) in s.supplemental_groups.iter().flatten().enumerate() {
        groups.push(id(&at.key("supplementalGroups").index(index), *group)?);
    }
    Ok(PodSecurity {
        run_as_user: optional_id(&at.key("runAsUser"), s.run_as_user)?,
        run_as_group: optional_id(&at.key("runAsGroup"), s.run_as_group)?,
        run_as_non_root: s.run_as_non_root,
        fs_group: optional_id(&at.key("fsGroup"), s.fs_group)?,
        fs_group_on_root_mismatch: choice(
            &at.key("fsGroupChangePolicy"),
            s.fs_group_change_policy.as_deref(),
            &[("Always", false), ("OnRootMismatch", true)],
        )?,
        supplemental_groups: groups,
        supplemental_groups_strict: choice(
            &at.key("supplementalGroupsPolicy"),
            s.supplemental_groups_policy.as_deref(),
            &[("Merge", false), ("Strict", true)],
        )?,
        sysctls: sysctls(
            &at.key("sysctls"),
            s.sysctls.as_deref().unwrap_or_default(),
            namespaces.host_network,
            namespaces.host_ipc,
        )?,
        seccomp: seccomp(&at.key("seccompProfile"), s.seccomp_profile.as_ref())?,
        app_armor: app_armor(&at.key("appArmorProfile"), s.app_armor_profile.as_ref())?,
    })
}

/// `containers[].securityContext`.
pub(super) fn container(
    at: &FieldPath<'_>,
    s: &api::SecurityContext,
    pod: &PodContext,
) -> Result<ContainerSecurity, FieldError> {
    selinux(at, s.se_linux_options.as_ref(), &pod.ignored)?;
    if s.windows_options.is_some() {
        pod.ignored.ignore(at.key("windowsOptions").error("this is a Linux node"))?;
    }
    let capabilities = s.capabilities.clone().unwrap_or_default();
    let caps_at = &at.key("capabilities");
    let add = capability_list(&caps_at.key("add"), capabilities.add.as_deref().unwrap_or_default(), pod)?;
    let drop = capability_list(&caps_at.key("drop"), capabilities.drop.as_deref().unwrap_or_default(), pod)?;
    let privileged = s.privileged.unwrap_or(false);
    if s.allow_privilege_escalation == Some(false) {
        let at = at.key("allowPrivilegeEscalation");
        if privileged {
            return Err(at.error("cannot be false where privileged is true"));
        }
        if add.iter().any(|c| c == "SYS_ADMIN") {
            return Err(at.error("cannot be false where capabilities.add holds SYS_ADMIN"));
        }
    }
    if choice(&at.key("procMount"), s.proc_mount.as_deref(), &[("Default", false), ("Unmasked", true)])? {
        // The API server lets it through only with a user namespace, which is refused elsewhere for now.
        return Err(at.key("procMount").error("Unmasked needs hostUsers: false, which is not supported yet"));
    }
    Ok(ContainerSecurity {
        run_as_user: optional_id(&at.key("runAsUser"), s.run_as_user)?,
        run_as_group: optional_id(&at.key("runAsGroup"), s.run_as_group)?,
        run_as_non_root: s.run_as_non_root,
        privileged,
        allow_privilege_escalation: s.allow_privilege_escalation,
        read_only_root: s.read_only_root_filesystem.unwrap_or(false),
        capabilities_add: add,
        capabilities_drop: drop,
        proc_mount_unmasked: false,
        seccomp: seccomp(&at.key("seccompProfile"), s.seccomp_profile.as_ref())?,
        app_armor: app_armor(&at.key("appArmorProfile"), s.app_armor_profile.as_ref())?,
    })
}

/// The kubelet ignores labels on a machine without SELinux.
fn selinux(
    at: &FieldPath<'_>,
    options: Option<&api::SELinuxOptions>,
    ignored: &IgnoredValues,
) -> Result<(), FieldError> {
    match options {
        Some(o) if *o != api::SELinuxOptions::default() => {
            ignored.ignore(at.key("seLinuxOptions").error("SELinux labels are not supported yet"))
        }
        _ => Ok(()),
    }
}

fn id(at: &FieldPath<'_>, value: i64) -> Result<u32, FieldError> {
    check::amount(at, value)
}

fn optional_id(at: &FieldPath<'_>, value: Option<i64>) -> Result<Option<u32>, FieldError> {
    value.map(|v| id(at, v)).transpose()
}

/// Capabilities in upper case. Runtimes ignore names that the kernel does not know, and so does a static pod
/// here.
fn capability_list(at: &FieldPath<'_>, list: &[String], pod: &PodContext) -> Result<Vec<String>, FieldError> {
    let mut found = Vec::new();
    for (index, name) in list.iter().enumerate() {
        let upper = name.to_ascii_uppercase();
        if upper != "ALL" && !CAPABILITIES.contains(&upper.as_str()) {
            let hint = if upper.starts_with("CAP_") { " (names go without CAP_)" } else { "" };
            let error = at.index(index).error(format!("{:?} is no capability{hint}", shorten(name)));
            pod.ignored.ignore(error)?;
            continue;
        }
        found.push(upper);
    }
    Ok(found)
}

fn seccomp(at: &FieldPath<'_>, p: Option<&api::SeccompProfile>) -> Result<Option<Seccomp>, FieldError> {
    let Some(p) = p else { return Ok(None) };
    let profile_at = &at.key("localhostProfile");
    match (p.type_.as_str(), p.localhost_profile.as_deref()) {
        ("Localhost", None | Some("")) => Err(profile_at.error("is required for type Localhost")),
        ("Localhost", Some(profile)) => {
            check::path_below(profile_at, profile)?;
            Ok(Some(Seccomp::Localhost(profile.to_owned())))
        }
        (_, Some(profile)) if !profile.is_empty() => {
            Err(profile_at.error("may be set only for type Localhost"))
        }
        ("Unconfined", _) => Ok(Some(Seccomp::Unconfined)),
        ("RuntimeDefault", _) => Ok(Some(Seccomp::RuntimeDefault)),
        (other, _) => Err(at.key("type").error(profile_type(other))),
    }
}

fn app_armor(at: &FieldPath<'_>, p: Option<&api::AppArmorProfile>) -> Result<Option<AppArmor>, FieldError> {
    let Some(p) = p else { return Ok(None) };
    let profile_at = &at.key("localhostProfile");
    match (p.type_.as_str(), p.localhost_profile.as_deref()) {
        ("Localhost", None) => Err(profile_at.error("is required for type Localhost")),
        ("Localhost", Some(profile)) => {
            if profile.trim().is_empty() || profile.trim() != profile || profile.len() > 4095 {
                return Err(profile_at.error("must be 1 to 4095 characters without blanks around them"));
            }
            Ok(Some(AppArmor::Localhost(profile.to_owned())))
        }
        (_, Some(_)) => Err(profile_at.error("may be set only for type Localhost")),
        ("Unconfined", None) => Ok(Some(AppArmor::Unconfined)),
        ("RuntimeDefault", None) => Ok(Some(AppArmor::RuntimeDefault)),
        (other, None) => Err(at.key("type").error(profile_type(other))),
    }
}

fn profile_type(given: &str) -> String {
    if given.is_empty() {
        "is required".to_owned()
    } else {
        format!("{:?} must be one of Localhost, RuntimeDefault, Unconfined", shorten(given))
    }
}

/// A profile from the annotation that preceded the field `appArmorProfile`.
pub(super) fn app_armor_annotation(at: &FieldPath<'_>, value: &str) -> Result<AppArmor, FieldError> {
    match (value, value.strip_prefix("localhost/")) {
        ("runtime/default", _) => Ok(AppArmor::RuntimeDefault),
        ("unconfined", _) => Ok(AppArmor::Unconfined),
        (_, Some(profile)) if !profile.trim().is_empty() => Ok(AppArmor::Localhost(profile.to_owned())),
        _ => Err(at.error(format!(
            "{:?} must be runtime/default, unconfined or localhost/<profile>",
            shorten(value)
        ))),
    }
}

fn sysctls(
    at: &FieldPath<'_>,
    list: &[api::Sysctl],
    host_network: bool,
    host_ipc: bool,
) -> Result<Vec<(String, String)>, FieldError> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (index, sysctl) in list.iter().enumerate() {
        let at = &at.index(index);
        let at = &at.key("name");
        if !sysctl_name(&sysctl.name) {
            return Err(at.error(format!("{:?} is no sysctl name", shorten(&sysctl.name))));
        }
        let name = dotted(&sysctl.name);
        if found.iter().any(|(n, _)| *n == name) {
            return Err(at.error(format!("{:?} is there twice", shorten(&name))));
        }
        if host_network && name.starts_with("net.") {
            return Err(at.error(format!("{name:?} cannot be set with hostNetwork")));
        }
        let ipc = name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name.starts_with("fs.mqueue.")
            || name == "kernel.sem";
        if host_ipc && ipc {
            return Err(at.error(format!("{name:?} cannot be set with hostIPC")));
        }
        found.push((name, sysctl.value.clone()));
    }
    Ok(found)
}

/// Segments of lower-case letters, digits, `-` and `_`, joined by `.` or `/`.
fn sysctl_name(name: &str) -> bool {
    let alnum = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            alnum(part.bytes().next())
                && alnum(part.bytes().last())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        })
}

/// The form with dots. Where the first separator is a slash, dots within segments
/// (`net/ipv4/conf/eth0.1/...`) become slashes, as `sysctl(8)` has it.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}
