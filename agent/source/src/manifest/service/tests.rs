use crate::ServiceRanges;
use crate::manifest::{ManifestContext, Mode, ParsedFile, parse_file};
use berth_core::{model::*, time::Wall};
use std::path::Path;

fn read(text: &str) -> Result<ParsedFile, String> {
    let ctx =
        ManifestContext { node: "n1".parse().unwrap(), mode: Mode::Manifests, now: Wall(7), services: None };
    parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx).map_err(|e| e.to_string())
}

fn service(spec: &str) -> Result<Service, String> {
    let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}");
    read(&text).map(|mut p| p.services.remove(0).service)
}

#[test]
fn every_field_of_a_service_reaches_the_model() {
    let text = r#"
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: prod
  uid: 11111111-2222-3333-4444-555555555555
  creationTimestamp: "2024-01-01T00:00:00Z"
  labels: {service.kubernetes.io/service-proxy-name: other}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:96::7"]
  externalIPs: [192.0.2.1]
  loadBalancerSourceRanges: [" 198.51.100.0/24 ", "2001:db8::/32"]
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  publishNotReadyAddresses: true
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP}
status:
  loadBalancer:
    ingress:
    - {ip: 203.0.113.1}
    - {ip: 203.0.113.2, ipMode: Proxy}
    - {ip: 203.0.113.3, ipMode: VIP}
    - {hostname: lb.example.org}
"#;
    let entry = read(text).unwrap().services.remove(0);
    let s = entry.service;
    assert_eq!(s.key.to_string(), "prod/web");
    assert_eq!(&*s.uid, "11111111-2222-3333-4444-555555555555");
    assert_eq!((s.created.seconds(), entry.created_given), (1_704_067_200, true));
    assert_eq!(s.kind, ServiceType::LoadBalancer);
    let ips = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ips(&s.cluster_ips), ["10.96.0.7", "fd00:96::7"]);
    assert_eq!(ips(&s.external_ips), ["192.0.2.1"]);
    assert_eq!(ips(&s.load_balancer_ips), ["203.0.113.1", "203.0.113.3"], "a proxy answers itself");
    assert_eq!(s.source_ranges.iter().map(|r| r.len).collect::<Vec<_>>(), [24, 32]);
    assert_eq!(s.affinity_s, Some(60));
    assert_eq!((s.internal_policy, s.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(s.health_check_node_port, Some(31_000));
    assert!(s.publish_not_ready && s.foreign && !s.headless);
    assert_eq!(s.selector, [("app".into(), "web".into())]);
    assert_eq!(s.ports[0].target, PortRef::Name("web".into()));
    assert_eq!((s.ports[0].node_port, s.ports[1].node_port), (Some(30_080), None));
    assert_eq!((s.ports[1].protocol, &s.ports[1].target), (Protocol::Udp, &PortRef::Number(53)));
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let s = service("ports: [{port: 80}]").unwrap();
    assert_eq!((s.kind, s.affinity_s, s.created), (ServiceType::ClusterIp, None, Wall(7)));
    assert!(s.cluster_ips.is_empty() && !s.headless && !s.foreign && !s.publish_not_ready);
    assert_eq!(s.uid, service("ports: [{port: 81}]").unwrap().uid, "a function of the name");
    assert_eq!(service("sessionAffinity: ClientIP, ports: [{port: 80}]").unwrap().affinity_s, Some(10_800));
    assert!(service("clusterIP: None").unwrap().headless);
    let named = service("type: ExternalName, externalName: example.org.").unwrap();
    assert_eq!(named.external_name.as_deref(), Some("example.org"));
}

#[test]
fn an_invalid_service_is_rejected_at_its_field() {
    for (spec, field) in [
        ("ports: [{port: 80}], clusterIP: 127.0.0.1", "spec.clusterIP"),
        ("ports: [{port: 80}], clusterIPs: [10.0.0.1, 10.0.0.2]", "spec.clusterIPs"),
        ("ports: [{port: 80}], clusterIPs: [None, 10.0.0.2]", "spec.clusterIPs"),
        ("ports: [{port: 80}], clusterIP: 10.0.0.2, clusterIPs: [10.0.0.1]", "spec.clusterIPs"),
        ("ports: [{port: 80}], clusterIP: None, type: NodePort", "spec.clusterIP"),
        ("ports: [{port: 80}], externalIPs: [10.0.0.1, x]", "spec.externalIPs[1]"),
        ("ports: [{port: 80}], externalIPs: [169.254.1.1]", "spec.externalIPs[0]"),
        ("ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/33]", "spec.loadBalancerSourceRanges[0]"),
        ("ports: [{port: 80}], sessionAffinity: Sometimes", "spec.sessionAffinity"),
        (
            "ports: [{port: 80}], sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            "spec.sessionAffinityConfig",
        ),
        ("ports: [{port: 80}], internalTrafficPolicy: Global", "spec.internalTrafficPolicy"),
        ("ports: [{port: 80, nodePort: 70000}]", "spec.ports[0].nodePort"),
        (
            "ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}]",
            "spec.ports[1].nodePort",
        ),
        ("ports: [{name: a, port: 80}, {name: a, port: 81}]", "spec.ports[1].name"),
        ("type: ExternalName, externalName: -x", "spec.externalName"),
        ("type: ExternalName, externalName: a.b, clusterIP: 10.0.0.1", "spec.clusterIP"),
        ("ports: [{port: 80, targetPort: 0}]", "spec.ports[0].targetPort"),
    ] {
        let error = service(spec).unwrap_err();
        assert!(error.starts_with(&format!("f.yaml: {field}: ")), "{spec}: {error}");
    }
}

#[test]
fn fields_that_depend_on_a_missing_one_are_rejected() {
    for (spec, field) in [
        ("ports: [{port: 80, nodePort: 31999}]", "spec.ports[0].nodePort"),
        ("type: ClusterIP, ports: [{port: 80}, {port: 81, name: b, nodePort: 31999}]", "spec.ports[0].name"),
        (
            "ports: [{port: 80}], sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            "spec.sessionAffinityConfig",
        ),
        ("ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/8]", "spec.loadBalancerSourceRanges"),
        ("ports: [{port: 80}], allocateLoadBalancerNodePorts: true", "spec.allocateLoadBalancerNodePorts"),
        ("ports: [{port: 80}], externalTrafficPolicy: Local", "spec.externalTrafficPolicy"),
        ("type: NodePort, ports: [{port: 80}], healthCheckNodePort: 32100", "spec.healthCheckNodePort"),
        ("ports: [{port: 80}], ipFamilies: [IPv4, IPv4]", "spec.ipFamilies[1]"),
        ("ports: [{port: 80}], ipFamilies: [ipv4]", "spec.ipFamilies[0]"),
        ("ports: [{port: 80}], ipFamilyPolicy: Both", "spec.ipFamilyPolicy"),
        ("ports: [{port: 80}], ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]", "spec.ipFamilyPolicy"),
        ("ports: [{port: 80}], ipFamilies: [IPv6], clusterIP: 10.78.3.3", "spec.ipFamilies"),
        ("type: ExternalName, externalName: a.b, ipFamilies: [IPv4]", "spec.ipFamilies"),
    ] {
        let error = service(spec).unwrap_err();
        assert!(error.starts_with(&format!("f.yaml: {field}: ")), "{spec}: {error}");
    }
    let digit = "{apiVersion: v1, kind: Service, metadata: {name: 9bad}, spec: {ports: [{port: 80}]}}";
    assert!(read(digit).unwrap_err().contains("must begin with a letter"));
    for good in [
        "ports: [{port: 80}], externalIPs: [192.0.2.1], externalTrafficPolicy: Local",
        "type: LoadBalancer, ports: [{port: 80}], externalTrafficPolicy: Local, healthCheckNodePort: 32100",
        "ports: [{port: 80}], clusterIPs: [\"fd00::1\", 10.0.0.1], ipFamilies: [IPv6, IPv4]",
    ] {
        service(good).unwrap();
    }
}

#[test]
fn addresses_and_node_ports_outside_of_the_ranges_are_rejected() {
    let on = |networks: &[(&str, u8)], spec: &str| {
        let ranges = ServiceRanges {
            networks: networks.iter().map(|(net, len)| (net.parse().unwrap(), *len)).collect(),
            node_ports: 30_000..=32_767,
            reserved: Vec::new(),
        };
        let services = Some(std::sync::Arc::new(ranges));
        let ctx =
            ManifestContext { node: "n1".parse().unwrap(), mode: Mode::Manifests, now: Wall(7), services };
        let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}");
        parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx).map_err(|e| e.to_string())
    };
    let (v4, both) = (&[("10.78.0.0", 16)][..], &[("10.78.0.0", 16), ("fd78::", 112)][..]);
    for (networks, spec, field) in [
        (
            v4,
            "type: NodePort, ports: [{port: 80, nodePort: 2222}]",
            "spec.ports[0].nodePort: 2222 must be 30000 to 32767",
        ),
        (
            v4,
            "ports: [{port: 80}], clusterIP: 10.99.0.1",
            "spec.clusterIP: 10.99.0.1 is no address of the Services'",
        ),
        (v4, "ports: [{port: 80}], clusterIP: 198.18.77.1", "spec.clusterIP: "),
        (both, "ports: [{port: 80}], clusterIPs: [10.78.0.9, \"fd00::1\"]", "spec.clusterIP: fd00::1 "),
        (
            v4,
            "ports: [{port: 80}], ipFamilies: [IPv6]",
            "spec.ipFamilies[0]: IPv6 is not configured on this node",
        ),
        (v4, "ports: [{port: 80}], ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy: "),
    ] {
        let error = on(networks, spec).unwrap_err();
        assert!(error.starts_with(&format!("f.yaml: {field}")), "{spec}: {error}");
    }
    for (networks, spec) in [
        (v4, "type: NodePort, ports: [{port: 80, nodePort: 30000}], clusterIP: 10.78.255.254"),
        (v4, "ports: [{port: 80}], ipFamilyPolicy: PreferDualStack"),
        (v4, "ports: [{port: 80}], clusterIP: None, ipFamilies: [IPv6]"),
        (both, "ports: [{port: 80}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]"),
    ] {
        on(networks, spec).unwrap();
    }
}

const SLICE: &str = r#"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-x
  namespace: prod
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2024-01-01T00:00:00.5Z"}
addressType: IPv4
ports:
- {name: http, port: 8080}
- {name: dns, port: 5353, protocol: UDP}
- {name: all}
endpoints:
- addresses: [10.1.0.1, 10.1.0.2]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: n1
  zone: z1
  hostname: db-0
  hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}
  targetRef: {kind: Pod, name: web-0, namespace: prod}
- addresses: [10.1.0.3]
"#;

#[test]
fn a_slice_is_read_with_kube_proxys_defaults() {
    let s = read(SLICE).unwrap().slices.remove(0);
    assert_eq!((s.key.to_string(), s.service.to_string()), ("prod/web-x".to_owned(), "prod/web".to_owned()));
    assert_eq!(s.triggered, Some(Wall(1_704_067_200_500_000_000)));
    let ports: Vec<_> = s.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(
        ports,
        [("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353)],
        "one without a number means all"
    );
    let [first, second] = s.endpoints.as_slice() else { panic!("{s:?}") };
    assert_eq!((first.ready, first.serving, first.terminating), (false, true, true));
    assert_eq!((second.ready, second.serving, second.terminating), (true, true, false));
    assert_eq!(first.address.to_string(), "10.1.0.1", "only the first counts");
    assert_eq!((first.node.as_deref(), first.hostname()), (Some("n1"), Some("db-0")));
    assert_eq!((first.zone_hints().len(), first.node_hints().len()), (1, 1));
    assert_eq!(second.details, None);
}

#[test]
fn an_invalid_endpoint_slice_is_rejected_at_its_field() {
    for (from, to, field) in [
        ("discovery.k8s.io/v1", "v1", "apiVersion"),
        ("kubernetes.io/service-name: web", "a: b", "metadata.labels[\"kubernetes.io/service-name\"]"),
        ("addressType: IPv4", "addressType: FQDN", "addressType"),
        ("addressType: IPv4", "addressType: IPv6", "endpoints[0].addresses"),
        ("[10.1.0.3]", "[]", "endpoints[1].addresses"),
        ("[10.1.0.3]", "[127.0.0.1]", "endpoints[1].addresses"),
        ("port: 8080", "port: 0", "ports[0].port"),
        ("hostname: db-0", "hostname: db.0", "endpoints[0].hostname"),
        ("zone: z1", "zones: z1", "endpoints[0].zones"),
    ] {
        let text = SLICE.replacen(from, to, 1);
        assert_ne!(text, SLICE);
        let error = read(&text).unwrap_err();
        assert!(error.starts_with(&format!("f.yaml: {field}: ")), "{to}: {error}");
    }
}
