//! Service environment variables (`pkg/kubelet/envvars` of the kubelet): where the Services are that a pod
//! may use by variables, `WEB_SERVICE_HOST` and what Docker's links had.

use berth_core::model::{Pod, Protocol, Service};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// The variables of a pod: of the Services of its own namespace (unless `enableServiceLinks` is false) and of
/// `default/kubernetes`, where there is one. Only Services with an address count. In order of their names.
pub fn service_env(pod: &Pod, services: &[Arc<Service>]) -> Vec<(String, String)> {
    let mut seen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services.iter().filter(|service| service.primary_cluster_ip().is_some()) {
        let name = service.key.name.as_str();
        if service.key.namespace == pod.key.namespace && pod.enable_service_links {
            seen.insert(name, service);
        } else if service.is_kubernetes() {
            seen.entry(name).or_insert(service);
        }
    }
    let mut out = Vec::new();
    for service in seen.into_values() {
        variables(service, &mut out);
    }
    out
}

fn variables(service: &Service, out: &mut Vec<(String, String)>) {
    let Some(ip) = service.primary_cluster_ip() else { return };
    let Some(first) = service.ports.first() else { return };
    let prefix = variable(service.key.name.as_str());
    out.push((format!("{prefix}_SERVICE_HOST"), ip.to_string()));
    out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for port in service.ports.iter().filter(|p| !p.name.is_empty()) {
        out.push((format!("{prefix}_SERVICE_PORT_{}", variable(&port.name)), port.port.to_string()));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let url = format!("{protocol}://{}", SocketAddr::new(ip, port.port));
        if index == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let link = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
        out.push((link.clone(), url));
        out.push((format!("{link}_PROTO"), protocol.to_owned()));
        out.push((format!("{link}_PORT"), port.port.to_string()));
        out.push((format!("{link}_ADDR"), ip.to_string()));
    }
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{
        ids::{Namespace, PodKey, PodName},
        model::ServicePort,
    };

    fn service(
        namespace: &str,
        name: &str,
        ip: Option<&str>,
        ports: &[(&str, Protocol, u16)],
    ) -> Arc<Service> {
        let port = |(name, protocol, port): &(&str, Protocol, u16)| ServicePort::new(name, *protocol, *port);
        let key = PodKey { namespace: Namespace::new(namespace).unwrap(), name: PodName::new(name).unwrap() };
        Arc::new(Service {
            cluster_ips: ip.iter().map(|ip| ip.parse().unwrap()).collect(),
            headless: ip.is_none(),
            ports: ports.iter().map(port).collect(),
            ..Service::new(key, name)
        })
    }

    fn pod(namespace: &str, links: bool) -> Pod {
        let mut pod = crate::testing::pod("p");
        pod.key.namespace = Namespace::new(namespace).unwrap();
        pod.enable_service_links = links;
        pod
    }

    fn shown(pod: &Pod, services: &[Arc<Service>]) -> Vec<String> {
        service_env(pod, services).into_iter().map(|(n, v)| format!("{n}={v}")).collect()
    }

    #[test]
    fn the_variables_are_the_kubelets() {
        let web = service(
            "shop",
            "my-web",
            Some("10.0.0.7"),
            &[("http-alt", Protocol::Tcp, 80), ("", Protocol::Udp, 53)],
        );
        assert_eq!(
            shown(&pod("shop", true), &[web]),
            [
                "MY_WEB_SERVICE_HOST=10.0.0.7",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_HTTP_ALT=80",
                "MY_WEB_PORT=tcp://10.0.0.7:80",
                "MY_WEB_PORT_80_TCP=tcp://10.0.0.7:80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_ADDR=10.0.0.7",
                "MY_WEB_PORT_53_UDP=udp://10.0.0.7:53",
                "MY_WEB_PORT_53_UDP_PROTO=udp",
                "MY_WEB_PORT_53_UDP_PORT=53",
                "MY_WEB_PORT_53_UDP_ADDR=10.0.0.7",
            ]
        );
        let six = service("shop", "six", Some("fd00::7"), &[("", Protocol::Tcp, 80)]);
        assert!(shown(&pod("shop", true), &[six]).contains(&"SIX_PORT=tcp://[fd00::7]:80".to_owned()));
    }

    #[test]
    fn only_the_own_namespace_and_the_api_servers_service_are_seen() {
        let tcp = &[("", Protocol::Tcp, 443)][..];
        let all = [
            service("shop", "web", Some("10.0.0.1"), tcp),
            service("other", "db", Some("10.0.0.2"), tcp),
            service("shop", "headless", None, tcp),
            service("default", "kubernetes", Some("10.0.0.3"), tcp),
            service("default", "dns", Some("10.0.0.4"), tcp),
        ];
        let hosts = |pod: &Pod| -> Vec<String> {
            shown(pod, &all).into_iter().filter(|v| v.contains("_SERVICE_HOST")).collect()
        };
        assert_eq!(
            hosts(&pod("shop", true)),
            ["KUBERNETES_SERVICE_HOST=10.0.0.3", "WEB_SERVICE_HOST=10.0.0.1"]
        );
        assert_eq!(hosts(&pod("shop", false)), ["KUBERNETES_SERVICE_HOST=10.0.0.3"]);
        assert_eq!(
            hosts(&pod("default", true)),
            ["DNS_SERVICE_HOST=10.0.0.4", "KUBERNETES_SERVICE_HOST=10.0.0.3"]
        );
        // A Service of that name in the pod's own namespace goes before.
        let own = service("shop", "kubernetes", Some("10.0.0.9"), tcp);
        for all in [[own.clone(), all[3].clone()], [all[3].clone(), own.clone()]] {
            let host = shown(&pod("shop", true), &all).into_iter().next();
            assert_eq!(host.as_deref(), Some("KUBERNETES_SERVICE_HOST=10.0.0.9"));
        }
    }
}
