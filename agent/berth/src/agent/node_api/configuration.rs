//! `/configz`: the node's configuration in the form of the kubelet's (`kubelet.config.k8s.io/v1beta1`), as far as this node
//! has what a field says. Pure.

use super::NodeApiArgs;
use berth_core::roots::Roots;
use serde_json::{Value, json};

/// The document of `/configz`.
pub(super) fn configuration(args: &NodeApiArgs, roots: &Roots) -> Value {
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
        "podLogsDir": roots.pod_logs,
        "containerRuntimeEndpoint": format!("unix://{}", roots.containerd_socket.display()),
        "failSwapOn": false,
        "featureGates": {},
    });
    if let (Some(certificate), Some(key)) = (&args.tls_cert_file, &args.tls_private_key_file) {
        configuration["tlsCertFile"] = json!(certificate);
        configuration["tlsPrivateKeyFile"] = json!(key);
    }
    json!({ "kubeletconfig": configuration })
}
