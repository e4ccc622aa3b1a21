//! `/configz`: the node's configuration in the form of the kubelet's (`kubelet.config.k8s.io/v1beta1`), as far as this node
//! has what a field says. Pure.

use super::super::args::AgentArgs;
use berth_core::{image::go_duration, resources::OOM_AGENT, roots::Roots};
use serde_json::{Value, json};
use std::path::Path;

/// The document of `/configz`.
pub(super) fn configuration(all: &AgentArgs, roots: &Roots) -> Value {
    let args = &all.node_api;
    let mut authentication = json!({
        "anonymous": { "enabled": args.anonymous_auth },
        "webhook": { "enabled": true, "cacheTTL": "2m0s" },
        "x509": {},
    });
    if let Some(file) = &args.client_ca_file {
        authentication["x509"]["clientCAFile"] = json!(file);
    }
    let mut configuration = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": args.address,
        "port": args.port,
        "healthzPort": args.healthz_port,
        "healthzBindAddress": args.healthz_bind_address,
        "authentication": authentication,
        "authorization": {
            "mode": "Webhook",
            "webhook": { "cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s" },
        },
        "enableServer": true,
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": true,
        "enableSystemLogQuery": false,
        "enableProfilingHandler": false,
        "enableDebugFlagsHandler": false,
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "maxPods": 110,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "cgroupRoot": Path::new("/").join(roots.cgroup_root.parent().unwrap_or(&roots.cgroup_root)),
        "registerNode": true,
        "podPidsLimit": all.pod_pids_limit.unwrap_or(-1),
        "oomScoreAdj": OOM_AGENT,
        "resolvConf": roots.resolv_conf,
        "cpuCFSQuota": true,
        "cpuCFSQuotaPeriod": "100ms",
        "cpuManagerPolicy": "none",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 5,
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "crashLoopBackOff": { "maxContainerRestartPeriod": "5m0s" },
        "rotateCertificates": all.rotate_certificates,
        "serverTLSBootstrap": all.rotate_server_certificates,
        "podLogsDir": roots.pod_logs,
        "containerRuntimeEndpoint": format!("unix://{}", roots.containerd_socket.display()),
        "failSwapOn": false,
        "featureGates": {},
    });
    let images = all.images.policy();
    configuration["imageGCHighThresholdPercent"] = json!(images.high_percent);
    configuration["imageGCLowThresholdPercent"] = json!(images.low_percent);
    configuration["imageMinimumGCAge"] = json!(go_duration(images.minimum_age));
    configuration["imageMaximumGCAge"] = json!(go_duration(images.maximum_age));
    if let Ok(policy) = all.images.verification() {
        configuration["imagePullCredentialsVerificationPolicy"] = json!(policy.name());
    }
    if !all.images.allowlist().is_empty() {
        configuration["preloadedImagesVerificationAllowlist"] = json!(all.images.allowlist());
    }
    if !all.cluster_dns.is_empty() {
        configuration["clusterDNS"] = json!(all.cluster_dns);
    }
    if let Some(domain) = &all.cluster_domain {
        configuration["clusterDomain"] = json!(domain);
    }
    if let Some(dir) = &all.static_pods {
        configuration["staticPodPath"] = json!(dir);
    }
    if let (Some(certificate), Some(key)) = (&args.tls_cert_file, &args.tls_private_key_file) {
        configuration["tlsCertFile"] = json!(certificate);
        configuration["tlsPrivateKeyFile"] = json!(key);
    }
    json!({ "kubeletconfig": configuration })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::args::parse;
    use berth_core::ids::NodeName;

    #[test]
    fn the_values_are_those_of_the_options() {
        let roots = Roots::below(Path::new("/r"), NodeName::new("n1").unwrap(), "c");
        let of =
            |arguments: &[&str]| configuration(&parse(arguments).unwrap(), &roots)["kubeletconfig"].take();
        let plain = of(&["--kubeconfig=k"]);
        assert_eq!(plain["cgroupRoot"], "/c");
        assert_eq!((&plain["podPidsLimit"], &plain["clusterDNS"]), (&json!(-1), &Value::Null));
        assert_eq!(plain["rotateCertificates"], true);
        let all = of(&[
            "--kubeconfig=k",
            "--cluster-dns=10.96.0.10",
            "--cluster-domain=cluster.local",
            "--static-pods=/s",
            "--pod-pids-limit=7",
            "--rotate-server-certificates",
        ]);
        assert_eq!(all["clusterDNS"], json!(["10.96.0.10"]));
        assert_eq!(all["clusterDomain"], "cluster.local");
        assert_eq!((&all["staticPodPath"], &all["podPidsLimit"]), (&json!("/s"), &json!(7)));
        assert_eq!(all["serverTLSBootstrap"], true);
    }
}
