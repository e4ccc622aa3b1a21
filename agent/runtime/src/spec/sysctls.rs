//! Sysctls of a pod's namespaces. They are not part of a container's spec: the creator of the namespaces
//! writes them once, before any process runs.

use berth_core::model::Pod;
use std::collections::BTreeMap;

/// Sysctls that are namespaced and do not affect other pods; any other is refused. Source:
/// `pkg/kubelet/sysctl/safe_sysctls.go`. The supported kernels have all of them.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Sysctls of every pod's network namespace: any user may listen on any port and send echo requests.
const DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Reason for refusing a pod's sysctl; the pod fails with reason `SysctlForbidden`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// The sysctl is not on the list of safe ones.
    #[error("forbidden sysctl: {0:?} not allowlisted")]
    NotAllowed(String),
    /// The sysctl would change the node's own namespace.
    #[error("forbidden sysctl: {name:?} not allowed with host {namespace} enabled")]
    OfHost {
        /// The sysctl.
        name: String,
        /// `net` or `ipc`.
        namespace: &'static str,
    },
    /// The value contains a control character and could hold more than one value.
    #[error("value of sysctl {0:?} holds a control character")]
    Value(String),
}

/// The sysctls to set in the pod's own namespaces, by name with dots.
pub fn sandbox_sysctls(pod: &Pod) -> Result<BTreeMap<String, String>, SysctlError> {
    let mut all = BTreeMap::new();
    if !pod.namespaces.host_network {
        all.extend(DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    for (name, value) in &pod.security.sysctls {
        if !SAFE.contains(&name.as_str()) {
            return Err(SysctlError::NotAllowed(name.clone()));
        }
        let (of_host, namespace) = if name.starts_with("net.") {
            (pod.namespaces.host_network, "net")
        } else {
            (pod.namespaces.host_ipc, "ipc")
        };
        if of_host {
            return Err(SysctlError::OfHost { name: name.clone(), namespace });
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(SysctlError::Value(name.clone()));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;

    fn of(name: &str, value: &str, change: impl FnOnce(&mut Pod)) -> Result<usize, SysctlError> {
        let mut pod = pod();
        pod.security.sysctls = vec![(name.to_owned(), value.to_owned())];
        change(&mut pod);
        sandbox_sysctls(&pod).map(|all| all.len())
    }

    #[test]
    fn only_safe_ones_of_the_pods_own_namespaces_pass() {
        assert_eq!(of("net.ipv4.tcp_syncookies", "1", |_| {}), Ok(3));
        assert_eq!(of("net.ipv4.ping_group_range", "5 6", |_| {}), Ok(2));
        assert_eq!(of("kernel.shm_rmid_forced", "1", |p| p.namespaces.host_network = true), Ok(1));
        for name in
            ["kernel.core_pattern", "net.ipv4.ip_forward", "net/ipv4/tcp_rmem", "net.ipv4.tcp_rmem+x", ""]
        {
            assert_eq!(of(name, "1", |_| {}), Err(SysctlError::NotAllowed(name.to_owned())));
        }
        let net = of("net.ipv4.tcp_rmem", "1", |p| p.namespaces.host_network = true);
        assert!(matches!(net, Err(SysctlError::OfHost { namespace: "net", .. })));
        let ipc = of("kernel.shm_rmid_forced", "1", |p| p.namespaces.host_ipc = true);
        assert!(matches!(ipc, Err(SysctlError::OfHost { namespace: "ipc", .. })));
        assert!(matches!(of("net.ipv4.tcp_rmem", "1\n2", |_| {}), Err(SysctlError::Value(_))));
    }
}
