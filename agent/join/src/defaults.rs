//! What the cluster says of the settings of its nodes: kubeadm's ConfigMaps `kubelet-config` and
//! `kubeadm-config`. A cluster without them, or whose token may not read them, leaves the settings to the
//! options.

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

/// Reads the settings. What cannot be read is left empty.
pub(crate) async fn read(pool: &Pool) -> Defaults {
    let kubelet = config_map(pool, "kubelet-config").await;
    let kubeadm = config_map(pool, "kubeadm-config").await;
    of(
        kubelet.get("kubelet").map_or("", String::as_str),
        kubeadm.get("ClusterConfiguration").map_or("", String::as_str),
    )
}

async fn config_map(pool: &Pool, name: &str) -> BTreeMap<String, String> {
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{name}");
    // Without an answer the options say it.
    let Ok(answer) = pool.send(&Request::get(path).within(ANSWER)).await else { return BTreeMap::new() };
    serde_json::from_slice::<ConfigMap>(&answer.body).unwrap_or_default().data
}

fn of(kubelet: &str, kubeadm: &str) -> Defaults {
    let kubelet: Kubelet = yaml(kubelet);
    let Networking { service_subnet, pod_subnet } = yaml::<Kubeadm>(kubeadm).networking;
    let list =
        |text: &str| text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
    Defaults {
        cluster_dns: kubelet.cluster_dns,
        cluster_domain: kubelet.cluster_domain,
        service_cidrs: list(&service_subnet),
        pod_cidrs: list(&pod_subnet),
        server_tls_bootstrap: kubelet.server_tls_bootstrap,
    }
}

fn yaml<T: Default + for<'de> Deserialize<'de>>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_default()
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
        let found = of(kubelet, kubeadm);
        assert_eq!(found.cluster_dns, ["10.96.0.10"]);
        assert_eq!((found.cluster_domain.as_str(), found.server_tls_bootstrap), ("cluster.local", true));
        assert_eq!(found.service_cidrs, ["10.96.0.0/16", "fd00:1::/108"]);
        assert_eq!(found.pod_cidrs, ["10.244.0.0/16"]);
        assert_eq!(of("", "networking: 7"), Defaults::default());
        assert_eq!(of("{", "- a"), Defaults::default());
    }
}
