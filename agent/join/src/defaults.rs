//! What the cluster says of the settings of its nodes: kubeadm's ConfigMaps `kubelet-config` and
//! `kubeadm-config`. A cluster without them, or whose token may not read them, leaves the settings to the
//! options; what is there and cannot be read is told.

use berth_core::error::Chain;
use berth_kube::{pool::Pool, request::Request};
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};

const ANSWER: Duration = Duration::from_secs(10);

/// Settings of a node; empty where nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) cluster_dns: Vec<String>,
    pub(crate) cluster_domain: String,
    pub(crate) service_cidrs: Vec<String>,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) server_tls_bootstrap: bool,
}

#[derive(Debug, Default, Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kubelet {
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<String>,
    cluster_domain: String,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kubeadm {
    networking: Networking,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Networking {
    service_subnet: String,
    pod_subnet: String,
}

/// Reads the settings, and says why a part of them is not known though the cluster has it. That part is empty.
pub(crate) async fn read(pool: &Pool) -> (Defaults, Vec<String>) {
    let kubelet = field(pool, "kubelet-config", "kubelet").await;
    let kubeadm = field(pool, "kubeadm-config", "ClusterConfiguration").await;
    of(kubelet, kubeadm)
}

/// A field of a ConfigMap; empty where the cluster has no such ConfigMap or field.
async fn field(pool: &Pool, name: &str, field: &str) -> Result<String, String> {
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{name}");
    match pool.send(&Request::get(path).within(ANSWER)).await {
        Ok(answer) => of_object(&answer.body, field),
        // Not every cluster is kubeadm's.
        Err(error) if error.refusal().is_some_and(|refusal| refusal.is_not_found()) => Ok(String::new()),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

fn of_object(body: &[u8], field: &str) -> Result<String, String> {
    let mut map: ConfigMap = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(map.data.remove(field).unwrap_or_default())
}

fn of(kubelet: Result<String, String>, kubeadm: Result<String, String>) -> (Defaults, Vec<String>) {
    let mut problems = Vec::new();
    let kubelet: Kubelet = known("kubelet-config", kubelet.and_then(yaml), &mut problems);
    let kubeadm: Kubeadm = known("kubeadm-config", kubeadm.and_then(yaml), &mut problems);
    let Networking { service_subnet, pod_subnet } = kubeadm.networking;
    let list =
        |text: &str| text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
    let defaults = Defaults {
        cluster_dns: kubelet.cluster_dns,
        cluster_domain: kubelet.cluster_domain,
        service_cidrs: list(&service_subnet),
        pod_cidrs: list(&pod_subnet),
        server_tls_bootstrap: kubelet.server_tls_bootstrap,
    };
    (defaults, problems)
}

/// The settings of a ConfigMap. Where they are not known they are empty, and the reason is one of the problems.
fn known<T: Default>(name: &str, read: Result<T, String>, problems: &mut Vec<String>) -> T {
    read.unwrap_or_else(|reason| {
        problems.push(format!("cannot read the cluster's ConfigMap kube-system/{name}: {reason}"));
        T::default()
    })
}

fn yaml<T: Default + for<'de> Deserialize<'de>>(text: String) -> Result<T, String> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    // The first line of the reason says what and where; the rest shows the place.
    serde_saphyr::from_str(&text)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_config_maps_are_read_and_others_leave_nothing() {
        let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nclusterDNS:\n- 10.96.0.10\nclusterDomain: \
                       cluster.local\nserverTLSBootstrap: true\nrotateCertificates: true\n";
        let kubeadm = "networking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16\n  \
                       serviceSubnet: 10.96.0.0/16, fd00:1::/108\n";
        let ok = |text: &str| Ok(text.to_owned());
        let (found, problems) = of(ok(kubelet), ok(kubeadm));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(found.cluster_dns, ["10.96.0.10"]);
        assert_eq!((found.cluster_domain.as_str(), found.server_tls_bootstrap), ("cluster.local", true));
        assert_eq!(found.service_cidrs, ["10.96.0.0/16", "fd00:1::/108"]);
        assert_eq!(found.pod_cidrs, ["10.244.0.0/16"]);
        assert_eq!(of(ok(""), ok("")), (Defaults::default(), Vec::new()));
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_told() {
        let ok = |text: &str| Ok(text.to_owned());
        for (kubelet, kubeadm, want) in [
            (ok("clusterDNS: 10.96.0.10"), ok(""), "kubelet-config"),
            (ok("{"), ok(""), "kubelet-config"),
            (ok(""), ok("networking: 7"), "kubeadm-config"),
            (ok(""), Err("403 Forbidden".to_owned()), "kubeadm-config: 403 Forbidden"),
            (of_object(b"{\"data\":7}", "kubelet"), ok(""), "kubelet-config"),
        ] {
            let (defaults, problems) = of(kubelet, kubeadm);
            assert_eq!(defaults, Defaults::default());
            let [problem] = &problems[..] else { panic!("{problems:?}") };
            assert!(problem.contains(want) && !problem.contains('\n'), "{problem}");
        }
        // What the other ConfigMap says holds.
        let (defaults, problems) = of(ok("{"), ok("networking: {podSubnet: 10.244.0.0/16}"));
        assert_eq!((defaults.pod_cidrs.len(), problems.len()), (1, 1));
    }
}
