//! Capability arguments (CNI conventions, "runtimeConfig"): what a pod asks of the network besides
//! an address.

use crate::Error;
use berth_core::{
    model::{ContainerPort, Protocol},
    quantity::Quantity,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The pod's host ports, for `portmap` and similar plugins.
pub(crate) const PORT_MAPPINGS: &str = "portMappings";
/// Rates of the pod's interface, for `bandwidth` and similar plugins.
pub(crate) const BANDWIDTH: &str = "bandwidth";

/// Annotations of a pod that limit its interface, with the argument's keys for rate and burst.
/// Ingress is traffic that the pod receives
/// (`kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins`).
const RATES: [(&str, &str, &str); 2] = [
    ("kubernetes.io/ingress-bandwidth", "ingressRate", "ingressBurst"),
    ("kubernetes.io/egress-bandwidth", "egressRate", "egressBurst"),
];
/// Burst in bits, as in containerd's CRI plugin: only the rate limits.
const BURST: u32 = i32::MAX as u32;
/// Rates that the kubelet accepts, in bits a second (`pkg/util/bandwidth`).
const RATE_RANGE: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;

/// The capability arguments of a pod with these ports and annotations, by capability.
///
/// # Errors
/// An annotation is not a valid rate.
pub(crate) fn arguments(
    ports: &[ContainerPort],
    annotations: &BTreeMap<String, String>,
) -> Result<Map<String, Value>, Error> {
    let mut all = Map::new();
    let mappings: Vec<Value> = ports.iter().filter_map(mapping).collect();
    if !mappings.is_empty() {
        all.insert(PORT_MAPPINGS.into(), mappings.into());
    }
    let mut rates = Map::new();
    for (annotation, rate, burst) in RATES {
        if let Some(text) = annotations.get(annotation) {
            let bits = bits_a_second(text)
                .ok_or_else(|| Error::Bandwidth { annotation, value: text.chars().take(80).collect() })?;
            rates.insert(rate.into(), bits.into());
            rates.insert(burst.into(), BURST.into());
        }
    }
    if !rates.is_empty() {
        all.insert(BANDWIDTH.into(), Value::Object(rates));
    }
    Ok(all)
}

fn bits_a_second(text: &str) -> Option<i64> {
    let rate: Quantity = text.parse().ok()?;
    Some(rate.units()).filter(|bits| RATE_RANGE.contains(bits))
}

fn mapping(port: &ContainerPort) -> Option<Value> {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let host_ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let host_port = port.host_port?;
    Some(json!({"hostPort": host_port, "containerPort": port.port, "protocol": protocol, "hostIP": host_ip}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_rates_in_bits() {
        let asked = |ingress: &str, egress: &str| {
            let all = [("ingress", ingress), ("egress", egress)];
            let of = |(way, rate): (&str, &str)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned());
            arguments(&[], &all.into_iter().filter(|a| !a.1.is_empty()).map(of).collect())
        };
        assert_eq!(Value::Object(asked("", "").unwrap()), json!({}));
        assert_eq!(
            Value::Object(asked("10M", "1.5G").unwrap()),
            json!({"bandwidth": {
                "ingressRate": 10_000_000, "ingressBurst": 2_147_483_647,
                "egressRate": 1_500_000_000, "egressBurst": 2_147_483_647,
            }})
        );
        assert!(asked("", "1M").unwrap()["bandwidth"].get("ingressRate").is_none());
        for wrong in ["fast", "999", "-1M", "2P", "1e99"] {
            let error = asked(wrong, "").unwrap_err().to_string();
            assert!(error.contains("kubernetes.io/ingress-bandwidth"), "{error}");
        }
    }
}
