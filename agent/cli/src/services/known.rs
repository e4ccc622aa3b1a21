//! Facts about the node and its pods from outside of the maps, for `berth services --check`.

use super::{check::Findings, family::MapFamily};
use crate::{error::Error, state, v1};
use berth_core::roots::Roots;
use berth_ebpf_abi::{Client, maps};
use berth_ebpf_loader::Datapath;
use std::net::IpAddr;

/// The node's and the pods' addresses. Empty lists, which are not checked, where neither agent nor
/// status files have them.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The node IPs.
    node_ips: Vec<IpAddr>,
    /// The addresses of running pods that have a network of their own, with the pods' names.
    pods: Vec<(IpAddr, String)>,
}

impl Known {
    /// Reads the facts from the agent or its status files.
    pub(crate) async fn read(roots: &Roots) -> Known {
        let node = state::node(roots).await.ok().and_then(|(node, _silent)| node);
        let pods = state::read(roots, false).await.map(|state| state.pods).unwrap_or_default();
        let of_pods = pods.iter().filter(|view| !view.terminating && !view.gone).flat_map(|view| {
            let own =
                view.object.pointer("/spec/hostNetwork").and_then(serde_json::Value::as_bool) != Some(true);
            let pod = v1::Pod::of(view);
            let running = own && pod.status.phase == "Running";
            let ips = view.object.pointer("/status/podIPs").and_then(serde_json::Value::as_array);
            let ips = ips.filter(|_| running).into_iter().flatten();
            let ips = ips.filter_map(|ip| ip.get("ip")?.as_str()?.parse().ok());
            ips.map(|ip| (ip, view.key.to_string())).collect::<Vec<_>>()
        });
        let addresses = node.and_then(|node| node.addresses);
        Known { node_ips: addresses.map(|a| a.node_ips).unwrap_or_default(), pods: of_pods.collect() }
    }

    /// Checks that the maps of the node and of pods have these addresses.
    pub(crate) fn check<A: MapFamily>(
        &self,
        datapath: &Datapath,
        clients: &[(u64, Client)],
    ) -> Result<Findings, Error> {
        let mut found = Findings::new();
        let node = A::maps(datapath).node;
        for ip in &self.node_ips {
            let Some(addr) = A::of(*ip) else { continue };
            if node.get(&addr)?.is_none_or(|entry| entry.node_ports == 0) {
                found.insert(format!("{} {ip}: missing, so node ports do not answer there", A::MAPS.node));
            }
        }
        for (ip, pod) in &self.pods {
            let Some(addr) = A::of(*ip) else { continue };
            if clients.iter().all(|(_, client)| A::of_client(client) != addr) {
                found.insert(format!("{} {ip}: missing, so pod {pod} counts as the node", maps::CLIENT));
            }
        }
        // A pod without a veth has no entry, nor has any pod of a network without veths. So a
        // missing entry is a problem only where another pod has one.
        let pods = A::maps(datapath).pod;
        let lacking: Vec<_> = {
            let mut lacking = Vec::new();
            for (ip, pod) in &self.pods {
                if let Some(addr) = A::of(*ip)
                    && pods.get(&addr)?.is_none()
                {
                    lacking.push((ip, pod));
                }
            }
            lacking
        };
        if lacking.len() < self.pods.iter().filter(|(ip, _)| A::of(*ip).is_some()).count() {
            for (ip, pod) in lacking {
                found.insert(format!(
                    "{} {ip}: missing, so packets to pod {pod} take the long way",
                    A::MAPS.pod
                ));
            }
        }
        Ok(found)
    }
}
