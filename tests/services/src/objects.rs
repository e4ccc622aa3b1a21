//! Services and EndpointSlices by the thousand, in the form in which a source delivers them.

use anyhow::{Context, Result};
use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{Endpoint, EndpointPort, EndpointSlice, PortRef, Protocol, Service, ServicePort, ServiceType},
    shared::Changes,
};
use berth_services::TableReconciler;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Port of all Services.
pub const PORT: u16 = 80;
/// Port of all endpoints.
pub const TARGET: u16 = 8080;

/// A Service and its only slice.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The Service.
    pub service: Arc<Service>,
    /// The slice of the Service.
    pub slice: Arc<EndpointSlice>,
}

impl Pair {
    /// The slice with other endpoints.
    pub fn with(&self, endpoints: &[Ipv4Addr]) -> Arc<EndpointSlice> {
        let endpoints = endpoints.iter().copied().map(endpoint).collect();
        Arc::new(EndpointSlice { endpoints, ..EndpointSlice::clone(&self.slice) })
    }
}

/// Passes new or changed objects to the reconciler.
pub fn put(reconciler: &mut TableReconciler, pairs: &[Pair]) {
    let (services, slices) = both(pairs);
    reconciler.change_services(Changes { now: services, ..Changes::default() });
    reconciler.change_slices(Changes { now: slices, ..Changes::default() });
}

/// Removes objects from the reconciler.
pub fn remove(reconciler: &mut TableReconciler, pairs: &[Pair]) {
    let (services, slices) = both(pairs);
    reconciler.change_slices(Changes { gone: slices, ..Changes::default() });
    reconciler.change_services(Changes { gone: services, ..Changes::default() });
}

fn both(pairs: &[Pair]) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    pairs.iter().map(|pair| (Arc::clone(&pair.service), Arc::clone(&pair.slice))).unzip()
}

fn key(name: String) -> Result<PodKey> {
    Ok(PodKey { namespace: Namespace::new("bench")?, name: PodName::new(name)? })
}

fn endpoint(address: Ipv4Addr) -> Endpoint {
    Endpoint { node: Some("elsewhere".into()), ..Endpoint::new(IpAddr::V4(address)) }
}

/// A Service of TCP port [`PORT`] with these endpoints at [`TARGET`].
///
/// # Errors
/// The name is invalid.
pub fn pair(name: &str, address: Ipv4Addr, node_port: Option<u16>, endpoints: &[Ipv4Addr]) -> Result<Pair> {
    let service = Service {
        kind: if node_port.is_some() { ServiceType::NodePort } else { ServiceType::ClusterIp },
        cluster_ips: vec![IpAddr::V4(address)],
        headless: false,
        ports: vec![ServicePort {
            target: PortRef::Number(TARGET),
            node_port,
            ..ServicePort::new("", Protocol::Tcp, PORT)
        }],
        ..Service::new(key(name.to_owned())?, name)
    };
    let slice = EndpointSlice {
        key: key(format!("{name}-0"))?,
        service: service.key.clone(),
        v6: false,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: TARGET }],
        endpoints: endpoints.iter().copied().map(endpoint).collect(),
        triggered: None,
    };
    Ok(Pair { service: Arc::new(service), slice: Arc::new(slice) })
}

/// Builds `services` Services with `endpoints` each. Their addresses start at 10.96.0.1; the endpoints'
/// addresses lie in 10.128.0.0/9.
///
/// # Errors
/// The addresses do not suffice.
pub fn many(services: u32, endpoints: u32) -> Result<Vec<Pair>> {
    (0..services)
        .map(|n| {
            let at: Vec<Ipv4Addr> = (0..endpoints).map(|e| at(n * endpoints + e)).collect();
            let address = Ipv4Addr::from_bits(0x0a60_0001 + n);
            anyhow::ensure!(n < 60_000, "more Services than addresses");
            pair(&format!("service-{n}"), address, None, &at).context("a Service")
        })
        .collect()
}

/// Address of endpoint number `n`.
pub fn at(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0000 | (n & 0x007f_ffff))
}
