//! Tables: what is read how, and what is refused at which field.

use super::*;
use berth_core::model::*;
use std::path::PathBuf;

pub(crate) fn ctx() -> ManifestContext {
    ManifestContext {
        node: NodeName::new("node-1").unwrap(),
        mode: Mode::Manifests,
        now: Wall(1_700_000_000_000_000_000),
        services: None,
    }
}

fn statics() -> ManifestContext {
    ManifestContext { mode: Mode::StaticPods, ..ctx() }
}

const SMALL: &str =
    "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: i}]}}";

/// The small pod with values set at JSON pointers; a pointer's last part `-` appends, `null` takes away.
fn with(changes: &[(&str, &str)]) -> String {
    let mut pod: Value = serde_json::from_str(
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},
            "spec":{"volumes":[{"name":"v","emptyDir":{}}],"containers":[{"name":"c","image":"i"}]}}"#,
    )
    .unwrap();
    for (pointer, text) in changes {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{pointer} {text}: {e}"));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
            Value::Object(map) => {
                map.insert(key.to_owned(), value);
            }
            Value::Array(list) if key == "-" => list.push(value),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            other => panic!("{parent} is {other}"),
        }
    }
    pod.to_string()
}

fn pod(changes: &[(&str, &str)]) -> Pod {
    parse_pod(&with(changes), &ctx()).unwrap_or_else(|e| panic!("{e}")).pod
}

#[test]
fn a_small_pod_gets_the_defaults_of_the_api_server() {
    let entry = parse_pod(SMALL, &ctx()).unwrap();
    let pod = &entry.pod;
    assert_eq!(pod.key.to_string(), "default/web");
    assert_eq!(pod.grace_seconds, 30);
    assert_eq!(pod.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.dns.policy, DnsPolicy::ClusterFirst);
    assert_eq!(pod.service_account, "default");
    assert!(pod.enable_service_links);
    assert_eq!(pod.created, ctx().now);
    let c = &pod.containers[0];
    assert_eq!(c.pull_policy, PullPolicy::Always);
    assert_eq!(c.termination_message_path, "/dev/termination-log");
    assert_eq!(entry.raw["metadata"]["uid"], pod.uid.as_str());
    assert_eq!(entry.raw["metadata"]["namespace"], "default");
    assert_eq!(entry.raw["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(entry.raw["spec"]["nodeName"], "node-1");
    assert_eq!(pod.origin, Origin::Manifest(PathBuf::new()));
}

const C: &str = "/spec/containers/0";

/// What is refused, at which field, with which words. `C` in front of a pointer is the first container.
#[test]
fn refused_as_the_api_server_would() {
    let cases: &[(&str, &str, &str, &str)] = &[
        // metadata
        ("/metadata/name", "null", "metadata.name", "required"),
        ("/metadata/name", "\"Web\"", "metadata.name", "lower-case"),
        ("/metadata/name", "\"a/b\"", "metadata.name", "lower-case"),
        ("/metadata/namespace", "\"a.b\"", "metadata.namespace", "lower-case"),
        ("/metadata/uid", "\"../x\"", "metadata.uid", "letters"),
        ("/metadata/labels", r#"{"a b":"c"}"#, "metadata.labels", "at most 63"),
        ("/metadata/labels", r#"{"a":"c/d"}"#, "metadata.labels.a", "label value"),
        (
            "/metadata/labels",
            r#"{"a":1}"#,
            "metadata.labels.a",
            "must be a string, not the number 1: quote it",
        ),
        ("/metadata/annotations", r#"{"/x":"y"}"#, "metadata.annotations", "prefix"),
        (
            "/metadata/deletionTimestamp",
            "\"2024-01-01T00:00:00Z\"",
            "metadata.deletionTimestamp",
            "take the manifest",
        ),
        ("/metadata/creationTimestamp", "\"yesterday\"", "metadata.creationTimestamp", ""),
        ("/metadata/lables", "{}", "metadata.lables", "unknown field"),
        ("/apiVersion", "\"v2\"", "apiVersion", "not supported"),
        ("/kind", "\"Deployment\"", "kind", "not supported"),
        ("/kind", "7", "kind", "must be a string"),
        ("/extra", "1", "extra", "unknown field"),
        ("/spec", "null", "spec", "required"),
        ("/spec", "[]", "spec", ""),
        // spec
        ("/spec/containers", "[]", "spec.containers", "at least one"),
        ("/spec/containers", "null", "spec.containers", "at least one"),
        ("/spec/container", "[]", "spec.container", "unknown field"),
        ("/spec/restartPolicy", "\"Sometimes\"", "spec.restartPolicy", "one of Always, OnFailure, Never"),
        (
            "/spec/terminationGracePeriodSeconds",
            "1.5",
            "spec.terminationGracePeriodSeconds",
            "a whole number",
        ),
        (
            "/spec/terminationGracePeriodSeconds",
            "5.0",
            "spec.terminationGracePeriodSeconds",
            "a whole number",
        ),
        ("/spec/activeDeadlineSeconds", "0", "spec.activeDeadlineSeconds", "at least 1"),
        ("/spec/nodeName", "\"other\"", "spec.nodeName", "another node"),
        ("/spec/dnsPolicy", "\"Dunno\"", "spec.dnsPolicy", "one of"),
        ("/spec/dnsPolicy", "\"None\"", "spec.dnsConfig.nameservers", "at least one"),
        ("/spec/dnsConfig", r#"{"nameservers":["1","2"]}"#, "spec.dnsConfig.nameservers[0]", "no IP"),
        (
            "/spec/dnsConfig",
            r#"{"nameservers":["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]}"#,
            "spec.dnsConfig.nameservers",
            "3",
        ),
        ("/spec/dnsConfig", r#"{"searches":["a b"]}"#, "spec.dnsConfig.searches[0]", "domain"),
        ("/spec/dnsConfig", r#"{"options":[{"value":"x"}]}"#, "spec.dnsConfig.options[0].name", "required"),
        (
            "/spec/dnsConfig",
            r#"{"options":[{"name":"a\nnameserver 6.6.6.6"}]}"#,
            "spec.dnsConfig.options[0]",
            "line ends",
        ),
        ("/spec/hostname", "\"a.b\"", "spec.hostname", "lower-case"),
        ("/spec/subdomain", "\"A\"", "spec.subdomain", "lower-case"),
        ("/spec/hostAliases", r#"[{"ip":"x","hostnames":["a"]}]"#, "spec.hostAliases[0].ip", "no IP"),
        (
            "/spec/hostAliases",
            r#"[{"ip":"1.1.1.1","hostnames":["a\nb"]}]"#,
            "spec.hostAliases[0].hostnames[0]",
            "",
        ),
        ("/spec/hostUsers", "false", "spec.hostUsers", "not supported yet"),
        ("/spec/hostnameOverride", "\"x\"", "spec.hostnameOverride", "not supported yet"),
        ("/spec/os", r#"{"name":"plan9"}"#, "spec.os.name", "windows"),
        ("/spec/resourceClaims", r#"[{"name":"x"}]"#, "spec.resourceClaims", "not supported yet"),
        ("/spec/ephemeralContainers", r#"[{"name":"x"}]"#, "spec.ephemeralContainers", "new pod"),
        ("/spec/schedulingGates", r#"[{"name":"x"}]"#, "spec.schedulingGates", "gate"),
        (
            "/spec/readinessGates",
            r#"[{"conditionType":"a b"}]"#,
            "spec.readinessGates[0].conditionType",
            "name",
        ),
        ("/spec/overhead", r#"{"cpu":"-1"}"#, "spec.overhead.cpu", "negative"),
        ("/spec/runtimeClassName", "\"A_b\"", "spec.runtimeClassName", "object name"),
        (
            "/spec/resources",
            r#"{"limits":{"ephemeral-storage":"1"}}"#,
            "spec.resources.limits.ephemeral-storage",
            "as a whole",
        ),
        ("/spec/initContainers", r#"[{"name":"c","image":"i"}]"#, "spec.containers[0].name", "twice"),
        (
            "/spec/initContainers",
            r#"[{"name":"d","image":"i","restartPolicy":"Never"}]"#,
            "spec.initContainers[0].restartPolicy",
            "not supported yet",
        ),
        (
            "/spec/initContainers",
            r#"[{"name":"d","image":"i","livenessProbe":{"exec":{"command":["x"]}}}]"#,
            "spec.initContainers[0].livenessProbe",
            "restartPolicy: Always",
        ),
        (
            "/spec/initContainers",
            r#"[{"name":"d","image":"i","lifecycle":{"preStop":{"sleep":{"seconds":1}}}}]"#,
            "spec.initContainers[0].lifecycle",
            "restartPolicy: Always",
        ),
        // volumes
        ("/spec/volumes/-", r#"{"name":"v","emptyDir":{}}"#, "spec.volumes[1].name", "twice"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","emptyDir":{},"hostPath":{"path":"/"}}"#,
            "spec.volumes[1].hostPath",
            "only one source",
        ),
        ("/spec/volumes/-", r#"{"name":"w","emptyDirr":{}}"#, "spec.volumes[1].emptyDirr", "unknown field"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","emptyDir":{"medium":"Disk"}}"#,
            "spec.volumes[1].emptyDir.medium",
            "Memory",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","emptyDir":{"sizeLimit":"-1Mi"}}"#,
            "spec.volumes[1].emptyDir.sizeLimit",
            "negative",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","hostPath":{"path":"/a/../b"}}"#,
            "spec.volumes[1].hostPath.path",
            "\"..\"",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","hostPath":{"path":"a"}}"#,
            "spec.volumes[1].hostPath.path",
            "absolute",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","hostPath":{"path":"/a","type":"Dir"}}"#,
            "spec.volumes[1].hostPath.type",
            "one of",
        ),
        ("/spec/volumes/-", r#"{"name":"w","configMap":{}}"#, "spec.volumes[1].configMap.name", "required"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","configMap":{"name":"m","defaultMode":512}}"#,
            "spec.volumes[1].configMap.defaultMode",
            "0777",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","configMap":{"name":"m","items":[{"key":"k","path":"../x"}]}}"#,
            "spec.volumes[1].configMap.items[0].path",
            "\"..\"",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","configMap":{"name":"m","items":[{"key":"k","path":"..data"}]}}"#,
            "spec.volumes[1].configMap.items[0].path",
            "start with",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","secret":{"secretName":"s","items":[{"key":"k","path":"/x"}]}}"#,
            "spec.volumes[1].secret.items[0].path",
            "relative",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","secret":{"secretName":"s","items":[{"key":"k","path":"x","mode":-1}]}}"#,
            "spec.volumes[1].secret.items[0].mode",
            "0777",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","downwardAPI":{"items":[{"path":"x","fieldRef":{"fieldPath":"spec.nodeName"}}]}}"#,
            "spec.volumes[1].downwardAPI.items[0].fieldRef.fieldPath",
            "cannot be referred",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","downwardAPI":{"items":[{"path":"x","resourceFieldRef":{"resource":"limits.cpu"}}]}}"#,
            "spec.volumes[1].downwardAPI.items[0].resourceFieldRef.containerName",
            "required",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","downwardAPI":{"items":[{"path":"x"}]}}"#,
            "spec.volumes[1].downwardAPI.items[0]",
            "one of",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","projected":{"sources":[{}]}}"#,
            "spec.volumes[1].projected.sources[0]",
            "source",
        ),
        (
            "/spec/volumes/-",
            r#"{"name":"w","projected":{"sources":[{"configMap":{"name":"a","items":[{"key":"k","path":"p"}]}},{"secret":{"name":"a","items":[{"key":"k","path":"p"}]}}]}}"#,
            "spec.volumes[1].projected.sources[1].secret",
            "taken",
        ),
        // containers
        ("C/name", "\"a.b\"", "spec.containers[0].name", "lower-case"),
        ("C/name", "null", "spec.containers[0].name", "required"),
        ("C/image", "null", "spec.containers[0].image", "required"),
        ("C/image", "\" i\"", "spec.containers[0].image", "blanks"),
        ("C/imagePullPolicy", "\"always\"", "spec.containers[0].imagePullPolicy", "one of"),
        ("C/imagepullpolicy", "\"Always\"", "spec.containers[0].imagepullpolicy", "unknown field"),
        ("C/command", "\"sh\"", "spec.containers[0].command", "must be a list, not a string"),
        ("C/args", "[1]", "spec.containers[0].args[0]", "must be a string, not the number 1"),
        ("C/restartPolicy", "\"Always\"", "spec.containers[0].restartPolicy", "not supported yet"),
        (
            "C/restartPolicyRules",
            r#"[{"action":"Restart"}]"#,
            "spec.containers[0].restartPolicyRules",
            "not supported yet",
        ),
        (
            "C/volumeDevices",
            r#"[{"name":"v","devicePath":"/d"}]"#,
            "spec.containers[0].volumeDevices",
            "not supported yet",
        ),
        ("C/terminationMessagePolicy", "\"x\"", "spec.containers[0].terminationMessagePolicy", "one of"),
        (
            "C/lifecycle",
            r#"{"stopSignal":"SIGINT"}"#,
            "spec.containers[0].lifecycle.stopSignal",
            "not supported yet",
        ),
        ("C/lifecycle", r#"{"preStop":{}}"#, "spec.containers[0].lifecycle.preStop", "one of"),
        (
            "C/lifecycle",
            r#"{"preStop":{"sleep":{"seconds":31}}}"#,
            "spec.containers[0].lifecycle.preStop.sleep.seconds",
            "must not exceed",
        ),
        (
            "C/lifecycle",
            r#"{"postStart":{"exec":{"command":[]}}}"#,
            "spec.containers[0].lifecycle.postStart.exec.command",
            "required",
        ),
        (
            "C/lifecycle",
            r#"{"postStart":{"tcpSocket":{"port":1}}}"#,
            "spec.containers[0].lifecycle.postStart.tcpSocket",
            "not supported",
        ),
        // ports
        ("C/ports", r#"[{"containerPort":0}]"#, "spec.containers[0].ports[0].containerPort", "1 to 65535"),
        (
            "C/ports",
            r#"[{"containerPort":80},{"containerPort":65536}]"#,
            "spec.containers[0].ports[1].containerPort",
            "1 to 65535",
        ),
        ("C/ports", r#"[{"containerPort":"80"}]"#, "spec.containers[0].ports[0].containerPort", "must be"),
        (
            "C/ports",
            r#"[{"containerPort":1,"name":"a"},{"containerPort":2,"name":"a"}]"#,
            "spec.containers[0].ports[1].name",
            "twice",
        ),
        (
            "C/ports",
            r#"[{"containerPort":1,"name":"80"}]"#,
            "spec.containers[0].ports[0].name",
            "at least one letter",
        ),
        (
            "C/ports",
            r#"[{"containerPort":1,"name":"sixteen-letters-x"}]"#,
            "spec.containers[0].ports[0].name",
            "at most 15",
        ),
        (
            "C/ports",
            r#"[{"containerPort":1,"protocol":"tcp"}]"#,
            "spec.containers[0].ports[0].protocol",
            "TCP, UDP, SCTP",
        ),
        (
            "C/ports",
            r#"[{"containerPort":1,"hostPort":-1}]"#,
            "spec.containers[0].ports[0].hostPort",
            "1 to 65535",
        ),
        ("C/ports", r#"[{"containerPort":1,"hostIP":"x"}]"#, "spec.containers[0].ports[0].hostIP", "no IP"),
        (
            "C/ports",
            r#"[{"containerPort":1,"hostPort":9},{"containerPort":2,"hostPort":9}]"#,
            "spec.containers[0].ports[1].hostPort",
            "taken",
        ),
        // env
        ("C/env", r#"[{"value":"x"}]"#, "spec.containers[0].env[0].name", "required"),
        ("C/env", r#"[{"name":"a=b"}]"#, "spec.containers[0].env[0].name", "'='"),
        ("C/env", r#"[{"name":"ä"}]"#, "spec.containers[0].env[0].name", "printable"),
        (
            "C/env",
            r#"[{"name":"a","value":1}]"#,
            "spec.containers[0].env[0].value",
            "must be a string, not the number 1",
        ),
        (
            "C/env",
            r#"[{"name":"a","value":"x","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]"#,
            "spec.containers[0].env[0].valueFrom",
            "together",
        ),
        ("C/env", r#"[{"name":"a","valueFrom":{}}]"#, "spec.containers[0].env[0].valueFrom", "one of"),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels"}}}]"#,
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath",
            "cannot be referred",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"secretKeyRef":{"name":"s","key":".."}}}]"#,
            "spec.containers[0].env[0].valueFrom.secretKeyRef.key",
            "no key",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"fileKeyRef":{"volumeName":"v","path":"p","key":"k"}}}]"#,
            "spec.containers[0].env[0].valueFrom.fileKeyRef",
            "not supported yet",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"resourceFieldRef":{"resource":"limits.gpu"}}}]"#,
            "spec.containers[0].env[0].valueFrom.resourceFieldRef.resource",
            "must be",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu","divisor":"3"}}}]"#,
            "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor",
            "one of",
        ),
        ("C/envFrom", r#"[{}]"#, "spec.containers[0].envFrom[0]", "one of"),
        (
            "C/envFrom",
            r#"[{"prefix":"=","configMapRef":{"name":"m"}}]"#,
            "spec.containers[0].envFrom[0].prefix",
            "'='",
        ),
        // resources
        ("C/resources", r#"{"limits":{"cpu":"1x"}}"#, "spec.containers[0].resources.limits.cpu", "quantity"),
        ("C/resources", r#"{"limits":{"cpu":"-1"}}"#, "spec.containers[0].resources.limits.cpu", "negative"),
        (
            "C/resources",
            r#"{"limits":{"cpu":"1"},"requests":{"cpu":"1001m"}}"#,
            "spec.containers[0].resources.requests.cpu",
            "must not exceed",
        ),
        (
            "C/resources",
            r#"{"limits":{"memory":"1Mi"},"requests":{"memory":"1Gi"}}"#,
            "spec.containers[0].resources.requests.memory",
            "must not exceed",
        ),
        (
            "C/resources",
            r#"{"limits":{"gpu":"1"}}"#,
            "spec.containers[0].resources.limits.gpu",
            "no resource",
        ),
        (
            "C/resources",
            r#"{"limits":{"x.io/gpu":"500m"}}"#,
            r#"spec.containers[0].resources.limits["x.io/gpu"]"#,
            "whole",
        ),
        (
            "C/resources",
            r#"{"requests":{"hugepages-2Mi":"4Mi"}}"#,
            "spec.containers[0].resources.requests.hugepages-2Mi",
            "overcommitted",
        ),
        (
            "C/resources",
            r#"{"claims":[{"name":"x"}]}"#,
            "spec.containers[0].resources.claims",
            "not supported yet",
        ),
        // mounts
        (
            "C/volumeMounts",
            r#"[{"name":"w","mountPath":"/x"}]"#,
            "spec.containers[0].volumeMounts[0].name",
            "not in spec.volumes",
        ),
        ("C/volumeMounts", r#"[{"name":"v"}]"#, "spec.containers[0].volumeMounts[0].mountPath", "required"),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x"},{"name":"v","mountPath":"/x"}]"#,
            "spec.containers[0].volumeMounts[1].mountPath",
            "twice",
        ),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x","subPath":"a/../../b"}]"#,
            "spec.containers[0].volumeMounts[0].subPath",
            "\"..\"",
        ),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x","subPath":"/a"}]"#,
            "spec.containers[0].volumeMounts[0].subPath",
            "relative",
        ),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x","subPath":"a","subPathExpr":"b"}]"#,
            "spec.containers[0].volumeMounts[0].subPathExpr",
            "together",
        ),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x","mountPropagation":"Bidirectional"}]"#,
            "spec.containers[0].volumeMounts[0].mountPropagation",
            "privileged",
        ),
        (
            "C/volumeMounts",
            r#"[{"name":"v","mountPath":"/x","recursiveReadOnly":"Enabled"}]"#,
            "spec.containers[0].volumeMounts[0].recursiveReadOnly",
            "readOnly",
        ),
        // probes
        ("C/livenessProbe", "{}", "spec.containers[0].livenessProbe", "one of"),
        (
            "C/livenessProbe",
            r#"{"exec":{"command":["x"]},"tcpSocket":{"port":1}}"#,
            "spec.containers[0].livenessProbe",
            "only one",
        ),
        (
            "C/livenessProbe",
            r#"{"exec":{"command":["x"]},"successThreshold":2}"#,
            "spec.containers[0].livenessProbe.successThreshold",
            "must be 1",
        ),
        (
            "C/startupProbe",
            r#"{"exec":{"command":["x"]},"successThreshold":2}"#,
            "spec.containers[0].startupProbe.successThreshold",
            "must be 1",
        ),
        (
            "C/readinessProbe",
            r#"{"exec":{"command":["x"]},"periodSeconds":-1}"#,
            "spec.containers[0].readinessProbe.periodSeconds",
            "negative",
        ),
        (
            "C/readinessProbe",
            r#"{"exec":{"command":["x"]},"terminationGracePeriodSeconds":1}"#,
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds",
            "readiness",
        ),
        (
            "C/livenessProbe",
            r#"{"exec":{"command":["x"]},"terminationGracePeriodSeconds":0}"#,
            "spec.containers[0].livenessProbe.terminationGracePeriodSeconds",
            "greater",
        ),
        (
            "C/livenessProbe",
            r#"{"httpGet":{"port":0}}"#,
            "spec.containers[0].livenessProbe.httpGet.port",
            "1 to 65535",
        ),
        (
            "C/livenessProbe",
            r#"{"httpGet":{"port":"UP"}}"#,
            "spec.containers[0].livenessProbe.httpGet.port",
            "lower-case",
        ),
        (
            "C/livenessProbe",
            r#"{"httpGet":{"port":1,"scheme":"http"}}"#,
            "spec.containers[0].livenessProbe.httpGet.scheme",
            "HTTP",
        ),
        (
            "C/livenessProbe",
            r#"{"httpGet":{"port":1,"httpHeaders":[{"name":"a b","value":""}]}}"#,
            "spec.containers[0].livenessProbe.httpGet.httpHeaders[0].name",
            "header",
        ),
        (
            "C/livenessProbe",
            r#"{"httpGet":{"port":1,"httpHeaders":[{"name":"a","value":"x\r\ny: z"}]}}"#,
            "spec.containers[0].livenessProbe.httpGet.httpHeaders[0].value",
            "line ends",
        ),
        (
            "C/livenessProbe",
            r#"{"grpc":{"port":70000}}"#,
            "spec.containers[0].livenessProbe.grpc.port",
            "1 to 65535",
        ),
        // security
        ("C/securityContext", r#"{"runAsUser":-1}"#, "spec.containers[0].securityContext.runAsUser", "0 to"),
        (
            "C/securityContext",
            r#"{"runAsUser":2147483648}"#,
            "spec.containers[0].securityContext.runAsUser",
            "0 to",
        ),
        (
            "C/securityContext",
            r#"{"capabilities":{"add":["CAP_NET_ADMIN"]}}"#,
            "spec.containers[0].securityContext.capabilities.add[0]",
            "without CAP_",
        ),
        (
            "C/securityContext",
            r#"{"capabilities":{"drop":["X"]}}"#,
            "spec.containers[0].securityContext.capabilities.drop[0]",
            "no capability",
        ),
        (
            "C/securityContext",
            r#"{"privileged":true,"allowPrivilegeEscalation":false}"#,
            "spec.containers[0].securityContext.allowPrivilegeEscalation",
            "privileged",
        ),
        (
            "C/securityContext",
            r#"{"allowPrivilegeEscalation":false,"capabilities":{"add":["SYS_ADMIN"]}}"#,
            "spec.containers[0].securityContext.allowPrivilegeEscalation",
            "SYS_ADMIN",
        ),
        (
            "C/securityContext",
            r#"{"procMount":"Unmasked"}"#,
            "spec.containers[0].securityContext.procMount",
            "hostUsers",
        ),
        (
            "C/securityContext",
            r#"{"seLinuxOptions":{"level":"s0"}}"#,
            "spec.containers[0].securityContext.seLinuxOptions",
            "not supported yet",
        ),
        (
            "C/securityContext",
            r#"{"windowsOptions":{}}"#,
            "spec.containers[0].securityContext.windowsOptions",
            "Linux",
        ),
        (
            "C/securityContext",
            r#"{"seccompProfile":{"type":"Localhost"}}"#,
            "spec.containers[0].securityContext.seccompProfile.localhostProfile",
            "required",
        ),
        (
            "C/securityContext",
            r#"{"seccompProfile":{"type":"Localhost","localhostProfile":"../x"}}"#,
            "spec.containers[0].securityContext.seccompProfile.localhostProfile",
            "\"..\"",
        ),
        (
            "C/securityContext",
            r#"{"seccompProfile":{"type":"RuntimeDefault","localhostProfile":"x"}}"#,
            "spec.containers[0].securityContext.seccompProfile.localhostProfile",
            "only for",
        ),
        (
            "C/securityContext",
            r#"{"seccompProfile":{"type":"Default"}}"#,
            "spec.containers[0].securityContext.seccompProfile.type",
            "one of",
        ),
        (
            "C/securityContext",
            r#"{"appArmorProfile":{"type":"Localhost","localhostProfile":" x"}}"#,
            "spec.containers[0].securityContext.appArmorProfile.localhostProfile",
            "blanks",
        ),
        (
            "/spec/securityContext",
            r#"{"sysctls":[{"name":"a..b","value":"1"}]}"#,
            "spec.securityContext.sysctls[0].name",
            "no sysctl",
        ),
        (
            "/spec/securityContext",
            r#"{"sysctls":[{"name":"net.a","value":"1"},{"name":"net/a","value":"1"}]}"#,
            "spec.securityContext.sysctls[1].name",
            "twice",
        ),
        (
            "/spec/securityContext",
            r#"{"supplementalGroups":[1,-1]}"#,
            "spec.securityContext.supplementalGroups[1]",
            "0 to",
        ),
        (
            "/spec/securityContext",
            r#"{"fsGroupChangePolicy":"Never"}"#,
            "spec.securityContext.fsGroupChangePolicy",
            "one of",
        ),
        (
            "/spec/securityContext",
            r#"{"seLinuxChangePolicy":"MountOption"}"#,
            "spec.securityContext.seLinuxChangePolicy",
            "not supported yet",
        ),
    ];
    for (pointer, value, field, reason) in cases {
        let pointer = pointer.replacen('C', C, usize::from(pointer.starts_with('C')));
        let text = with(&[(&pointer, value)]);
        match parse_pod(&text, &ctx()) {
            Ok(_) => panic!("{pointer} = {value} is accepted"),
            Err(e) => {
                assert_eq!(e.field.as_deref(), Some(*field), "{pointer} = {value}: {e}");
                assert!(e.reason.contains(reason), "{pointer} = {value}: {e}");
                assert_eq!(e.document, None);
            }
        }
    }
}

#[test]
fn host_namespaces_forbid_what_would_reach_the_host() {
    for (changes, field) in [
        (
            vec![
                ("/spec/hostNetwork", "true"),
                ("/spec/securityContext", r#"{"sysctls":[{"name":"net.x","value":"1"}]}"#),
            ],
            "spec.securityContext.sysctls[0].name",
        ),
        (
            vec![
                ("/spec/hostIPC", "true"),
                ("/spec/securityContext", r#"{"sysctls":[{"name":"kernel.shmmax","value":"1"}]}"#),
            ],
            "spec.securityContext.sysctls[0].name",
        ),
        (
            vec![("/spec/hostPID", "true"), ("/spec/shareProcessNamespace", "true")],
            "spec.shareProcessNamespace",
        ),
        (
            vec![
                ("/spec/hostNetwork", "true"),
                ("/spec/containers/0/ports", r#"[{"containerPort":80,"hostPort":81}]"#),
            ],
            "spec.containers[0].ports[0].hostPort",
        ),
    ] {
        let e = parse_pod(&with(&changes), &ctx()).unwrap_err();
        assert_eq!(e.field.as_deref(), Some(field), "{e}");
    }
    let pod =
        pod(&[("/spec/hostNetwork", "true"), ("/spec/containers/0/ports", r#"[{"containerPort":80}]"#)]);
    assert_eq!(pod.containers[0].ports[0].host_port, Some(80));
}

#[test]
fn every_field_reaches_the_model() {
    let text = include_str!("../../tests/corpus/full.yaml");
    let parsed =
        parse_file(Path::new("full.yaml"), text.as_bytes(), &ctx()).unwrap_or_else(|e| panic!("{e}"));
    let pod = &parsed.pods[0].pod;
    let c = pod.container(&"app".parse().unwrap()).unwrap();
    assert_eq!(c.pull_policy, PullPolicy::IfNotPresent);
    assert_eq!(c.resources.requests["memory"].units(), 64 << 20, "a missing request equals its limit");
    assert_eq!(c.resources.cpu_request_millis(), 100);
    assert_eq!(
        c.liveness.as_ref().unwrap().action,
        ProbeAction::Http(HttpTarget {
            host: None,
            port: PortRef::Name("http".into()),
            path: "/healthz".into(),
            https: false,
            headers: vec![("Host".into(), "web".into())],
        })
    );
    let liveness = c.liveness.as_ref().unwrap();
    assert_eq!((liveness.timeout_seconds, liveness.period_seconds, liveness.failure_threshold), (1, 10, 3));
    assert_eq!(liveness.grace_seconds, Some(5));
    assert_eq!(c.pre_stop, Some(Hook::Sleep(2)));
    assert_eq!(c.env[0].value, EnvValue::Text("$(POD) ok".into()));
    assert_eq!(c.env[1].value, EnvValue::Field("metadata.name".into()));
    assert_eq!(c.security.capabilities_add, ["NET_BIND_SERVICE"]);
    assert_eq!(c.security.app_armor, Some(AppArmor::Unconfined), "from the annotation");
    assert_eq!(c.mounts[1].mount_path, "/relative", "a relative path counts from the root");
    assert!(pod.init_containers[1].sidecar && !pod.init_containers[0].sidecar);
    let source = |name: &str| &pod.volumes.iter().find(|v| v.name.as_str() == name).unwrap().source;
    assert!(
        matches!(source("page"), VolumeSource::ConfigMap(k) if k.default_mode == 0o440 && k.items.len() == 1)
    );
    assert_eq!(*source("claim"), VolumeSource::NotYet { kind: "persistentVolumeClaim".into() });
    assert_eq!(*source("plain"), VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None });
    assert!(matches!(source("all"), VolumeSource::Projected { sources, .. }
        if sources[2] == ProjectedSource::NotYet { kind: "serviceAccountToken".into() }));
    assert_eq!(pod.security.sysctls, [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]);
    assert_eq!(pod.dns.options, [("ndots".to_owned(), Some("2".to_owned()))]);
    assert_eq!(parsed.config_maps[0].data["index.html"], b"<h1>hi</h1>\n");
    assert_eq!(parsed.config_maps[0].binary_data["blob"], [0, 1, 2]);
    assert_eq!(parsed.secrets[0].data["password"], b"stringData wins");
    assert_eq!(parsed.services[0].service.key.to_string(), "prod/web");
    assert_eq!(parsed.services[0].raw["spec"]["ports"][0]["port"], 80);
}

#[test]
fn documents_lists_and_their_numbers() {
    let read = |text: &str| parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx());
    let two =
        format!("# only a comment\n---\n{SMALL}\n---\n# nothing\n---\n{}\n", SMALL.replace("web", "two"));
    let parsed = read(&two).unwrap();
    assert_eq!(parsed.pods.iter().map(|p| p.document).collect::<Vec<_>>(), [1, 3]);
    let e = read(&format!("{SMALL}\n---\na: [\n")).unwrap_err();
    assert_eq!((e.document, e.file.as_path()), (Some(2), Path::new("f.yaml")));
    assert!(e.reason.contains("YAML") && e.reason.contains("line 3"), "{e}");
    let bad = SMALL.replace("web", "WEB");
    let e = read(&format!("{SMALL}\n---\n{bad}")).unwrap_err();
    assert_eq!(e.document, Some(2));
    // Where there is but one, nobody has to count.
    assert_eq!(read(&bad).unwrap_err().document, None);
    assert_eq!(read("a: [").unwrap_err().document, None);
    for empty in ["", "\n\n", "# c\n", "---\n---\n", "null"] {
        assert_eq!(read(empty).unwrap_err().reason, "holds no object", "{empty:?}");
    }
    let list = format!("{{apiVersion: v1, kind: List, items: [{SMALL}]}}");
    assert_eq!(read(&list).unwrap().pods.len(), 1);
    let list = "{apiVersion: v1, kind: PodList, metadata: {}, items: [{metadata: {name: a}, spec: {containers: [{name: c}]}}]}";
    let e = read(list).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("items[0].spec.containers[0].image"));
    let e = read(&list.replace("name: c", "name: c, ports: [{containerPort: x}]")).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("items[0].spec.containers[0].ports[0].containerPort"), "{e}");
    let json = format!("{}{}", with(&[]), with(&[("/metadata/name", "\"two\"")]));
    assert_eq!(parse_file(Path::new("f.json"), json.as_bytes(), &ctx()).unwrap().pods.len(), 2);
    let e = parse_file(Path::new("f.json"), b"{\"a\":1,\"a\":2}", &ctx()).unwrap_err();
    assert!(e.reason.contains("twice"), "{e}");
    assert!(parse_file(Path::new("f.json"), SMALL.as_bytes(), &ctx()).is_err(), "YAML is no JSON");
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let volume = |mode: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes:\n  - name: v\n    configMap: {{name: m, defaultMode: {mode}}}\n  containers:\n  - {{name: c, image: i}}\n"
        );
        match &parse_pod(&text, &ctx()).unwrap_or_else(|e| panic!("{e}")).pod.volumes[0].source {
            VolumeSource::ConfigMap(k) => k.default_mode,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(volume("0644"), 0o644);
    assert_eq!(volume("0o400"), 0o400);
    assert_eq!(volume("420"), 0o644);
    let spec = |extra: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{extra}, ")), &ctx());
    assert!(spec("hostNetwork: yes").unwrap().pod.namespaces.host_network);
    assert!(spec("hostNetwork: yess").is_err());
    assert!(spec("activeDeadlineSeconds: .inf").is_err());
    assert!(spec("hostPID: true, hostPID: false").unwrap_err().reason.contains("twice"));
    let limits = SMALL.replace("image: i", "image: i, resources: {limits: {cpu: 1, memory: 0.5}}");
    assert_eq!(
        parse_pod(&limits, &ctx()).unwrap().raw["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "1"
    );
    let anchors = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - &c {name: c, image: i}\n  - <<: *c\n    name: d\n";
    assert_eq!(parse_pod(anchors, &ctx()).unwrap().pod.containers[1].image, "i");
}

#[test]
fn what_stands_twice_is_an_error_here_and_a_warning_in_a_static_pod() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: c, image: i}]\n  restartPolicy: Never\n  restartPolicy: OnFailure\n";
    let e = parse_pod(text, &ctx()).unwrap_err();
    assert!(e.reason.contains("key \"restartPolicy\" is there twice at line 7, column 3"), "{e}");
    let parsed = parse_file(Path::new("f"), text.as_bytes(), &statics()).unwrap();
    assert_eq!(parsed.pods[0].pod.restart_policy, RestartPolicy::OnFailure, "the last counts");
    assert_eq!(parsed.warnings.len(), 1);
    let caps = with(&[(
        "/spec/containers/0/securityContext",
        r#"{"capabilities":{"add":["CAP_SYS_TIME","NET_RAW"]}}"#,
    )]);
    let e = parse_pod(&caps, &ctx()).unwrap_err();
    assert!(e.reason.contains("without CAP_"), "{e}");
    let parsed = parse_file(Path::new("f"), caps.as_bytes(), &statics()).unwrap();
    assert_eq!(parsed.pods[0].pod.containers[0].security.capabilities_add, ["NET_RAW"]);
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn null_is_nothing_wherever_it_stands() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {a: null, b: ~, c: }, labels: {x: }, creationTimestamp: null}\nspec:\n  hostNetwork: null\n  containers: [{name: c, image: i, args: [a, null], env: [{name: A, value: }], ports: null, resources: {limits: {cpu: null}}}]\n";
    let pod = parse_pod(text, &ctx()).unwrap().pod;
    assert!(["a", "b", "c"].iter().all(|k| pod.annotations[*k].is_empty()));
    assert_eq!(pod.labels["x"], "");
    assert_eq!(pod.containers[0].args, ["a", ""]);
    assert_eq!(pod.containers[0].env[0].value, EnvValue::Text(String::new()));
    assert_eq!(pod.containers[0].resources.cpu_limit_millis(), None);
    let e = parse_pod(&SMALL.replace("{name: c, image: i}", "null"), &ctx()).unwrap_err();
    assert_eq!((e.field.as_deref(), e.reason.as_str()), (Some("spec.containers[0].name"), "is required"));
}

#[test]
fn whole_numbers_may_be_written_as_helm_writes_them() {
    let read = |spec: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{spec}, ")), &ctx());
    let pod = read("securityContext: {runAsUser: 1.00065e+09}, activeDeadlineSeconds: 1e3").unwrap().pod;
    assert_eq!((pod.security.run_as_user, pod.active_deadline_seconds), (Some(1_000_650_000), Some(1000)));
    let e = read("activeDeadlineSeconds: 5.5").unwrap_err();
    assert_eq!(e.reason, "must be a whole number, not the number 5.5");
    assert_eq!(e.field.as_deref(), Some("spec.activeDeadlineSeconds"));
    // JSON is not converted.
    assert!(parse_pod(&with(&[("/spec/activeDeadlineSeconds", "5.0")]), &ctx()).is_err());
}

#[test]
fn graces_are_bounded_not_refused() {
    let grace = |text: &str| pod(&[("/spec/terminationGracePeriodSeconds", text)]).grace_seconds;
    assert_eq!((grace("-5"), grace("0"), grace("7")), (1, 0, 7));
    assert_eq!(grace("100000000000"), 2_147_483_647);
}

#[test]
fn a_name_that_has_no_room_for_its_output_is_refused() {
    let named =
        |length: usize| parse_pod(&with(&[("/metadata/name", &format!("{:?}", "a".repeat(length)))]), &ctx());
    // default_<name>_<36 characters>.
    assert!(named(210).is_ok());
    let e = named(211).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("metadata.name"));
    assert!(e.reason.contains("too long by 1") && e.reason.contains("may have 210"), "{e}");
    assert!(named(253).is_err());
}

#[test]
fn texts_name_the_fault_and_the_way_out() {
    let read =
        |spec: &str| parse_pod(&SMALL.replace("spec: {", &format!("spec: {{{spec}, ")), &ctx()).unwrap_err();
    assert_eq!(
        read("hostname: y").reason,
        "must be a string, not the boolean true: quote it (y, n, yes, no, on and off are booleans too)"
    );
    assert_eq!(read("volumes: {}").reason, "must be a list, not an object");
    assert_eq!(read("securityContext: []").reason, "must be an object, not a list");
    assert_eq!(read("hostNetwork: \"yes\"").reason, "must be true or false, not a string");
    assert!(read("activeDeadlineSeconds: .nan").reason.contains("\".nan\" is no finite number: quote it"));
    let e = parse_file(
        Path::new("f"),
        b"{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {cert: plain text}}",
        &ctx(),
    );
    let e = e.unwrap_err();
    assert_eq!(e.field.as_deref(), Some("data.cert"));
    assert!(e.reason.starts_with("is no base64: ' ' at byte 5; plain text goes into stringData"), "{e}");
}

#[test]
fn binary_data_stands_apart_and_may_be_wrapped() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: \"1\", b: , on: x}\nbinaryData:\n  t: aGk=\n  w: |\n    AAEC\n    AAEC\n";
    let parsed = parse_file(Path::new("f"), text.as_bytes(), &ctx()).unwrap();
    let map = &parsed.config_maps[0];
    let keys = |data: &std::collections::BTreeMap<String, Vec<u8>>| data.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&map.data), ["a", "b", "true"], "`on` is a boolean");
    assert_eq!(map.data["b"], b"");
    assert_eq!(keys(&map.binary_data), ["t", "w"]);
    assert_eq!(map.binary_data["w"], [0, 1, 2, 0, 1, 2]);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: null, b: \"YWJj\\n\"}\nstringData: {c: ~}\n";
    let parsed = parse_file(Path::new("f"), secret.as_bytes(), &ctx()).unwrap();
    let data = &parsed.secrets[0].data;
    assert_eq!((&data["a"][..], &data["b"][..], &data["c"][..]), (&b""[..], &b"abc"[..], &b""[..]));
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let deep = format!("a: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    let deep_block: String = (0..3_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    let deep_json = format!("{}{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    let many = "---\na: 1\n".repeat(20_000);
    let leaves = "x,".repeat(100_000);
    let anchors: String = (0..40).map(|n| format!("&a{n} [")).collect();
    let copies = format!("a: {anchors}{leaves}{}", "]".repeat(40));
    let big = vec![b' '; usize::try_from(MAX_FILE_BYTES).unwrap() + 1];
    for (what, bytes) in [
        ("laughs", laughs.as_bytes()),
        ("deep", deep.as_bytes()),
        ("deep block", deep_block.as_bytes()),
        ("deep json", deep_json.as_bytes()),
        ("documents", many.as_bytes()),
        ("anchors within anchors", copies.as_bytes()),
        ("size", &big),
        ("utf-8", b"a: \xff"),
    ] {
        let bytes = bytes.to_vec();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(parse_file(Path::new("f"), &bytes, &ctx()).is_err()));
        // No more than that it ends: one that is taken in full does not in days.
        let refused = told.recv_timeout(std::time::Duration::from_secs(120));
        assert_eq!(refused, Ok(true), "{what}");
    }
}

#[test]
fn a_uid_follows_the_spec_and_nothing_else() {
    let uid = |changes: &[(&str, &str)]| pod(changes).uid;
    let base = uid(&[]);
    assert_eq!(base.as_str().len(), 36);
    assert_eq!(uid(&[("/metadata/labels", r#"{"a":"b"}"#), ("/metadata/annotations", r#"{"a":"b"}"#)]), base);
    assert_eq!(uid(&[("/spec/hostname", "null")]), base, "null is not given");
    assert_ne!(uid(&[("/spec/hostname", "\"x\"")]), base);
    assert_ne!(uid(&[("/metadata/name", "\"x\"")]), base);
    assert_ne!(uid(&[("/metadata/namespace", "\"x\"")]), base);
    assert_eq!(uid(&[("/metadata/namespace", "\"default\"")]), base);
    assert_eq!(uid(&[("/metadata/uid", "\"my-own\"")]).as_str(), "my-own");
    let yaml = "kind: Pod\napiVersion: v1\nspec:\n  containers:\n  - image: i\n    name: c\n  volumes:\n  - emptyDir: {}\n    name: v\nmetadata: {name: web}\n";
    assert_eq!(parse_pod(yaml, &ctx()).unwrap().pod.uid, base, "order and format do not matter");
}

#[test]
fn static_pods_follow_the_kubelets_rules() {
    let node = |name: &str| ManifestContext { node: NodeName::new(name).unwrap(), ..statics() };
    let read = |file: &str, ctx: &ManifestContext, text: &str| {
        parse_file(Path::new(file), text.as_bytes(), ctx).unwrap_or_else(|e| panic!("{e}"))
    };
    let one = |file: &str, ctx: &ManifestContext, text: &str| read(file, ctx, text).pods.remove(0);
    let base = one("/m/a", &node("n1"), SMALL);
    assert_eq!(base.pod.key.to_string(), "default/web-n1");
    assert_eq!(base.pod.origin, Origin::StaticFile("/m/a".into()));
    assert_eq!(base.raw["metadata"]["name"], "web-n1");
    assert_eq!(base.raw["metadata"]["annotations"]["kubernetes.io/config.hash"], base.pod.uid.as_str());
    assert_eq!(base.raw["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(
        base.raw["spec"]["tolerations"],
        serde_json::json!([{"operator": "Exists", "effect": "NoExecute"}])
    );
    assert_eq!(base.pod.uid.as_str().len(), 32);
    let uid = |file: &str, ctx: &ManifestContext, text: &str| one(file, ctx, text).pod.uid;
    assert_eq!(uid("/m/a", &node("n1"), SMALL), base.pod.uid);
    assert_ne!(uid("/m/b", &node("n1"), SMALL), base.pod.uid, "the path counts");
    assert_ne!(uid("/m/a", &node("n2"), SMALL), base.pod.uid, "the node counts");
    assert_ne!(uid("/m/a", &node("n1"), &SMALL.replace("image: i", "image: j")), base.pod.uid);
    let labelled = SMALL.replace("name: web", "name: web, labels: {a: b}");
    assert_ne!(uid("/m/a", &node("n1"), &labelled), base.pod.uid, "the whole object counts");
    assert_eq!(
        uid("/m/a", &node("n1"), &SMALL.replace("name: web", "name: web, uid: given")).as_str(),
        "given"
    );
    // What the kubelet passes over is warned of.
    let parsed = read("/m/a", &node("n1"), &format!("{SMALL}\n---\n{SMALL}"));
    assert_eq!((parsed.pods.len(), parsed.warnings.len()), (1, 1));
    let parsed = read("/m/a", &node("n1"), &SMALL.replace("spec: {", "spec: {typo: 1, "));
    assert_eq!(parsed.warnings[0].field.as_deref(), Some("spec.typo"));
    let e = parse_pod("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}", &statics()).unwrap_err();
    assert_eq!(e.field.as_deref(), Some("kind"));
}

#[test]
fn static_pods_may_not_refer_to_api_objects() {
    let cases: &[(&str, &str, &str)] = &[
        ("/spec/serviceAccountName", "\"x\"", "spec.serviceAccountName"),
        ("/spec/imagePullSecrets", r#"[{"name":"x"}]"#, "spec.imagePullSecrets"),
        ("/spec/resourceClaims", r#"[{"name":"x"}]"#, "spec.resourceClaims"),
        ("/spec/volumes/-", r#"{"name":"w","configMap":{"name":"x"}}"#, "spec.volumes[1].configMap"),
        ("/spec/volumes/-", r#"{"name":"w","secret":{"secretName":"x"}}"#, "spec.volumes[1].secret"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","persistentVolumeClaim":{"claimName":"x"}}"#,
            "spec.volumes[1].persistentVolumeClaim",
        ),
        ("/spec/volumes/-", r#"{"name":"w","csi":{"driver":"x"}}"#, "spec.volumes[1].csi"),
        (
            "/spec/volumes/-",
            r#"{"name":"w","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}"#,
            "spec.volumes[1].projected.sources[0].serviceAccountToken",
        ),
        (
            "C/env",
            r#"[{"name":"a","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}]"#,
            "spec.containers[0].env[0].valueFrom.secretKeyRef",
        ),
        ("C/envFrom", r#"[{"configMapRef":{"name":"m"}}]"#, "spec.containers[0].envFrom[0].configMapRef"),
    ];
    for (pointer, value, field) in cases {
        let pointer = pointer.replacen('C', C, usize::from(pointer.starts_with('C')));
        let e = parse_pod(&with(&[(&pointer, value)]), &statics()).unwrap_err();
        assert_eq!(e.field.as_deref(), Some(*field), "{e}");
        assert!(e.reason.contains("static pod may not refer"), "{e}");
    }
    let fine = [(
        "/spec/volumes/-",
        r#"{"name":"w","projected":{"sources":[{"downwardAPI":{"items":[{"path":"n","fieldRef":{"fieldPath":"metadata.name"}}]}}]}}"#,
    )];
    assert!(parse_pod(&with(&fine), &statics()).is_ok());
}

#[test]
fn pull_policies_follow_the_tag() {
    for (image, policy) in [
        ("i", PullPolicy::Always),
        ("i:latest", PullPolicy::Always),
        ("i:1", PullPolicy::IfNotPresent),
        ("host:5000/i", PullPolicy::Always),
        ("host:5000/i:1", PullPolicy::IfNotPresent),
        ("i@sha256:00", PullPolicy::IfNotPresent),
        ("i:latest@sha256:00", PullPolicy::Always),
    ] {
        let pod = pod(&[("/spec/containers/0/image", &format!("{image:?}"))]);
        assert_eq!(pod.containers[0].pull_policy, policy, "{image}");
    }
}

#[test]
fn a_pod_says_which_nodes_it_may_run_on() {
    const AFFINITY: &str = "/spec/affinity";
    const WHERE: &str =
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let required = |terms: &str| {
        format!(
            r#"{{"nodeAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{{"nodeSelectorTerms":{terms}}}}}}}"#
        )
    };
    let found = pod(&[
        ("/spec/nodeSelector", r#"{"disk":"ssd"}"#),
        (AFFINITY, &required(r#"[{"matchExpressions":[{"key":"n","operator":"Gt","values":["7"]}]}]"#)),
    ]);
    let labels: NodeLabels = [("disk", "ssd"), ("n", "8")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert!(found.selects_node("n", &labels) && !found.selects_node("n", &NodeLabels::new()));
    let preferred = r#"{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":
        {"matchExpressions":[{"key":"n","operator":"Exists"}]}}]}}"#;
    assert!(pod(&[(AFFINITY, preferred)]).selects_node("n", &NodeLabels::new()));
    for (terms, field, reason) in [
        ("[]", "", "at least one term"),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"in"}]}]"#,
            "[0].matchExpressions[0].operator",
            "one of In",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"In"}]}]"#,
            "[0].matchExpressions[0].values",
            "at least one",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Exists","values":["b"]}]}]"#,
            "[0].matchExpressions[0].values",
            "empty",
        ),
        (
            r#"[{"matchExpressions":[{"key":"a","operator":"Lt","values":["x"]}]}]"#,
            "[0].matchExpressions[0].values[0]",
            "whole number",
        ),
        (
            r#"[{"matchFields":[{"key":"metadata.uid","operator":"In","values":["x"]}]}]"#,
            "[0].matchFields[0].key",
            "metadata.name",
        ),
    ] {
        let e = parse_pod(&with(&[(AFFINITY, &required(terms))]), &ctx()).unwrap_err();
        assert_eq!(e.field, Some(format!("{WHERE}{field}")), "{terms}: {e}");
        assert!(e.reason.contains(reason), "{terms}: {e}");
    }
}

#[test]
fn the_systems_priority_classes_are_known() {
    let class = |name: &str| pod(&[("/spec/priorityClassName", &format!("{name:?}"))]).priority;
    assert_eq!(class("system-node-critical"), 2_000_001_000);
    assert_eq!(class("system-cluster-critical"), 2_000_000_000);
    assert_eq!(class("mine"), 0);
}

#[test]
fn what_stands_first_in_a_file_is_older() {
    let text = format!("{SMALL}\n---\n{}\n", SMALL.replace("web", "two"));
    let parsed = parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx()).unwrap();
    let created: Vec<i64> = parsed.pods.iter().map(|p| p.pod.created.0 - ctx().now.0).collect();
    assert_eq!(created, [0, 1]);
}

#[test]
fn pod_level_requests_default_to_the_containers_or_the_limit() {
    let pod = pod(&[
        ("/spec/resources", r#"{"limits":{"cpu":"2","memory":"1Gi"}}"#),
        ("/spec/containers/0/resources", r#"{"requests":{"cpu":"300m"}}"#),
    ]);
    let r = pod.resources.unwrap();
    assert_eq!((r.cpu_request_millis(), r.memory_request_bytes()), (300, 1 << 30));
    // As the kubelet has it: a sidecar beside a large init container counts, so that 240m are asked for at the worst.
    let init = r#"[{"name":"s","image":"i","restartPolicy":"Always","resources":{"requests":{"cpu":"40m"}}},
        {"name":"big","image":"i","resources":{"requests":{"cpu":"200m"}}}]"#;
    let limits = r#"{"limits":{"cpu":"300m","memory":"100Mi"}}"#;
    let main = r#"{"requests":{"cpu":"20m"}}"#;
    let changes = [("/spec/initContainers", init), ("/spec/containers/0/resources", main)];
    let with_limits = self::pod(&[changes[0], changes[1], ("/spec/resources", limits)]);
    assert_eq!(with_limits.resources.unwrap().cpu_request_millis(), 240);
    // Without limits of the pod nothing is added to what it says.
    let without =
        self::pod(&[changes[0], changes[1], ("/spec/resources", r#"{"requests":{"memory":"1Mi"}}"#)]);
    assert_eq!(without.resources.unwrap().requests.keys().collect::<Vec<_>>(), ["memory"]);
    let e = parse_pod(
        &with(&[
            ("/spec/resources", r#"{"requests":{"cpu":"100m"}}"#),
            ("/spec/containers/0/resources", r#"{"requests":{"cpu":"300m"}}"#),
        ]),
        &ctx(),
    )
    .unwrap_err();
    assert_eq!(e.field.as_deref(), Some("spec.resources.requests.cpu"));
}

#[test]
fn other_objects_are_checked() {
    let read = |text: &str| parse_file(Path::new("f"), text.as_bytes(), &ctx());
    for (text, field) in [
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {'a/b': x}}", r#"data"#),
        (
            "{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {a: x}, binaryData: {a: AA==}}",
            "binaryData.a",
        ),
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, dat: {a: x}}", "dat"),
        ("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, data: {a: 1}}", "data.a"),
        ("{kind: ConfigMap, apiVersion: v1}", "metadata.name"),
        ("{kind: Secret, apiVersion: v1, metadata: {name: a}, data: {a: '%'}}", "data.a"),
        ("{kind: Secret, apiVersion: v1, metadata: {name: A}}", "metadata.name"),
        ("{kind: Service, apiVersion: v1, metadata: {name: a}}", "spec"),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a.b}, spec: {ports: [{port: 1}]}}",
            "metadata.name",
        ),
        ("{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {}}", "spec.ports"),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {ports: [{port: 0}]}}",
            "spec.ports[0].port",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {ports: [{port: 1}, {port: 2}]}}",
            "spec.ports[0].name",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {type: X, ports: [{port: 1}]}}",
            "spec.type",
        ),
        (
            "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: x, ports: [{port: 1}]}}",
            "spec.clusterIP",
        ),
        ("{kind: List, apiVersion: v1, items: [{kind: List, apiVersion: v1}]}", "items[0].kind"),
        ("{kind: List, apiVersion: v1, itmes: []}", "itmes"),
        ("[1]", ""),
    ] {
        let e = read(text).unwrap_err();
        assert_eq!(e.field.as_deref().unwrap_or_default(), field, "{text}: {e}");
    }
    assert!(read("{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: None}}").is_ok());
    assert!(read("{kind: ConfigMap, apiVersion: v1, metadata: {name: a}}").is_ok());
}

#[test]
fn an_error_reads_like_a_sentence() {
    let e = parse_file(Path::new("/m/web.yaml"), with(&[("/spec/containers", "[]")]).as_bytes(), &ctx())
        .unwrap_err();
    assert_eq!(e.to_string(), "/m/web.yaml: spec.containers: must hold at least one container");
}
