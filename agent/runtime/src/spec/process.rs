//! The container's process: command line, environment, working directory and capabilities.

use super::{HostFacts, ImageConfig, SpecError};
use berth_core::model::ContainerSecurity;
use oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit,
        PosixRlimitBuilder, PosixRlimitType,
    },
};
use std::collections::HashMap;

/// Default capabilities of a container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line. `command` replaces the image's entry point and, with it, the image's arguments; `args`
/// alone replaces only the arguments.
pub(super) fn arguments(
    command: &[String],
    args: &[String],
    image: &ImageConfig,
) -> Result<Vec<String>, SpecError> {
    let mut line: Vec<String> = command.to_vec();
    let mut rest = args;
    if command.is_empty() {
        if rest.is_empty() {
            rest = &image.cmd;
        }
        // An entry point of one empty text means that the image has none.
        if image.entrypoint.len() != 1 || image.entrypoint.first().is_some_and(|e| !e.is_empty()) {
            line = image.entrypoint.clone();
        }
    }
    line.extend_from_slice(rest);
    if line.is_empty() {
        return Err(SpecError::NoCommand);
    }
    if line.iter().any(|a| a.contains('\0')) {
        return Err(SpecError::NulByte { what: "command" });
    }
    Ok(line)
}

/// Merges environment entries. Later entries replace earlier ones in place; an image entry without `=`
/// removes.
fn merge(into: &mut Vec<String>, entries: impl Iterator<Item = String>) {
    let name = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
    let at: HashMap<String, usize> = into.iter().enumerate().map(|(i, e)| (name(e), i)).collect();
    for entry in entries {
        let key = name(&entry);
        match (at.get(&key).copied(), entry.contains('=')) {
            (Some(i), true) => {
                if let Some(slot) = into.get_mut(i) {
                    *slot = entry;
                }
            }
            (Some(i), false) => {
                if let Some(slot) = into.get_mut(i) {
                    slot.clear();
                }
            }
            // A name in both image and pod appears twice: runc lets the last one win.
            (None, true) => into.push(entry),
            (None, false) => {}
        }
    }
    into.retain(|e| !e.is_empty());
}

/// The environment: `PATH`, `TERM` with a terminal, `HOSTNAME`, the image's, the pod's.
pub(super) fn environment(
    image: &ImageConfig,
    pod: &[(String, String)],
    hostname: &str,
    tty: bool,
) -> Result<Vec<String>, SpecError> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    merge(&mut env, std::iter::once(format!("HOSTNAME={hostname}")));
    merge(
        &mut env,
        image.env.iter().cloned().chain(pod.iter().map(|(name, value)| format!("{name}={value}"))),
    );
    if env.iter().any(|e| e.contains('\0')) {
        return Err(SpecError::NulByte { what: "environment" });
    }
    Ok(env)
}

/// The working directory: the pod's, the image's or the root.
pub(super) fn directory(pod: Option<&str>, image: &ImageConfig) -> Result<String, SpecError> {
    let asked = pod.filter(|d| !d.is_empty()).unwrap_or(&image.working_dir);
    if asked.is_empty() {
        return Ok("/".to_owned());
    }
    // runc refuses a relative path of the pod: then the run fails. As a configuration error, the kubelet
    // would retry for ever.
    if !asked.starts_with('/') && pod.is_none_or(str::is_empty) {
        return Err(SpecError::RelativePath { what: "workingDir", path: asked.to_owned() });
    }
    if asked.contains('\0') {
        return Err(SpecError::NulByte { what: "workingDir" });
    }
    // A directory reached through an open descriptor may lie outside the container (CVE-2024-21626).
    let plain = super::mounts::clean(asked);
    let mut parts = plain.split('/').skip(1);
    if parts.next() == Some("proc") && parts.nth(1) == Some("fd") {
        return Err(SpecError::DescriptorDirectory(asked.to_owned()));
    }
    Ok(asked.to_owned())
}

/// The bounding set in order, with the prefix `CAP_`.
pub(super) fn bounding(security: &ContainerSecurity, host: &HostFacts) -> Vec<String> {
    if security.privileged {
        return host.capabilities.clone();
    }
    let is_all = |c: &String| c == "ALL";
    let full = |c: &String| format!("CAP_{}", c.to_ascii_uppercase());
    let mut set: Vec<String> = DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    if security.capabilities_add.iter().any(is_all) {
        set = host.capabilities.clone();
    }
    if security.capabilities_drop.iter().any(is_all) {
        set.clear();
    }
    for capability in security.capabilities_add.iter().filter(|c| !is_all(c)).map(full) {
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    for capability in security.capabilities_drop.iter().filter(|c| !is_all(c)).map(full) {
        set.retain(|c| *c != capability);
    }
    set
}

/// The sets of the process: bounding, permitted and effective are equal, inheritable and ambient are empty.
pub(super) fn capabilities(bounding: &[String]) -> Result<LinuxCapabilities, SpecError> {
    let set = bounding
        .iter()
        .map(|name| {
            name.trim_start_matches("CAP_")
                .parse::<Capability>()
                .map_err(|_unknown| SpecError::UnknownCapability(name.clone()))
        })
        .collect::<Result<Capabilities, SpecError>>()?;
    let built: Result<LinuxCapabilities, OciSpecError> = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .permitted(set.clone())
        .effective(set)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build();
    Ok(built?)
}
/// A limit of open files.
pub(super) fn open_files(soft: u64, hard: u64) -> Result<PosixRlimit, OciSpecError> {
    PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard).build()
}
