//! Self-test: whether connections are answered through the hooks of this node, by a Service of the agent's own.
//!
//! The Service is in the tables like any other, at addresses that no host has (RFC 7600, RFC 9780). Its backends are
//! sockets of the agent on the loopback device. A run sends through the hooks as clients do:
//! - a TCP connection of the node's own (`connect`, `getpeername`), and a datagram there and back (`sendmsg`, `recvmsg`);
//! - the first packet of a connection from outside and its answer, over the packet programs that the uplinks run. These two
//!   packets are not on any device: the programs run on them by the kernel's test run, with the tables of all other packets.
//!   So routes, neighbours and packet filters are not tested, and no device is made for it.
//!
//! No task and no thread. A run takes some 100 microseconds where all is well, and its deadline where it is not. Where the
//! hooks are missing, nothing leaves the node: the sockets are bound to the loopback device.

mod packets;
mod sockets;

use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort},
    roots::Roots,
};
use berth_ebpf_loader::Pins;
use sockets::Server;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The Service's addresses: the dummy address of IPv4 (RFC 7600), and one of the dummy prefix of IPv6 (RFC 9780).
const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8))];

/// The Service's port, of both protocols.
const PORT: u16 = 10256;

/// Namespace and name of the Service. No object of Kubernetes has it: names of Services have no dot.
const KEY: (&str, &str) = ("berth", "self.test");

/// The self-test of this node.
#[derive(Debug)]
pub struct SelfTest {
    pins: Pins,
    servers: Vec<Server>,
    /// Whether this process's sockets have the hooks.
    hooked: bool,
}

/// The objects of the self-test's Service.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTestService {
    /// The Service.
    pub service: Arc<Service>,
    /// Its slices, one a family.
    pub slices: Vec<Arc<EndpointSlice>>,
}

impl SelfTest {
    /// Opens the sockets of the backends. A family without a loopback address is not tested.
    ///
    /// # Errors
    /// There is none in either family.
    pub fn open(roots: &Roots) -> io::Result<SelfTest> {
        let opened = ADDRESSES.map(|address| Server::open(address, PORT));
        let (mut servers, mut failed) = (Vec::new(), None);
        for server in opened {
            match server {
                Ok(server) => servers.push(server),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if servers.is_empty() => Err(error),
            _ => Ok(SelfTest { pins: Pins::new(&roots.bpf_pins), servers, hooked: is_hooked(roots) }),
        }
    }

    /// The Service that is to be in the tables. `None` for a name that is none, which cannot be.
    pub fn service(&self) -> Option<SelfTestService> {
        let (namespace, name) = KEY;
        let key = PodKey { namespace: Namespace::new(namespace).ok()?, name: PodName::new(name).ok()? };
        let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let service = Service {
            cluster_ips: self.servers.iter().map(Server::frontend_address).collect(),
            headless: false,
            ports: protocols.map(|(name, protocol)| ServicePort::new(name, protocol, PORT)).into(),
            ..Service::new(key.clone(), format!("{namespace}/{name}"))
        };
        let slices = self.servers.iter().map(|server| {
            let v6 = server.frontend_address().is_ipv6();
            let slice = PodName::new(format!("{name}.{}", if v6 { 6 } else { 4 })).ok()?;
            let port = |(name, protocol): (&str, _)| EndpointPort {
                name: name.into(),
                protocol,
                port: if protocol == Protocol::Tcp { server.tcp_port() } else { server.udp_port() },
            };
            Some(Arc::new(EndpointSlice {
                key: PodKey { namespace: key.namespace.clone(), name: slice },
                service: key.clone(),
                v6,
                ports: protocols.map(port).into(),
                endpoints: vec![Endpoint::new(server.address())],
                triggered: None,
            }))
        });
        Some(SelfTestService { service: Arc::new(service), slices: slices.collect::<Option<_>>()? })
    }

    /// Runs the test; `uplinks` are the devices that must run the programs, by index and name. Returns what fails, one line
    /// each. Blocks for at most a second.
    pub fn run(&self, uplinks: &[(u32, Arc<str>)]) -> Vec<String> {
        let mut failures = Vec::new();
        for server in &self.servers {
            if self.hooked {
                failures.extend(server.connection().err().map(|failure| failure.to_string()));
                failures.extend(server.datagram().err().map(|failure| failure.to_string()));
            }
            if !uplinks.is_empty() {
                failures.extend(packets::test(&self.pins, server).err().map(|failure| failure.to_string()));
            }
        }
        failures.extend(packets::devices(&self.pins, uplinks));
        failures
    }
}

/// Whether this process is in the cgroup whose sockets have the hooks. On a node of its own that is the root's.
fn is_hooked(roots: &Roots) -> bool {
    if roots.cgroup_hooks.as_os_str().is_empty() {
        return true;
    }
    let of_hooks = std::path::Path::new("/").join(&roots.cgroup_hooks);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().any(|line| {
        line.strip_prefix("0::").is_some_and(|own| std::path::Path::new(own).starts_with(&of_hooks))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeFacts, compile};
    use berth_ebpf_abi::backend;

    #[test]
    fn the_service_is_compiled_to_a_port_of_each_protocol_with_a_backend_of_the_host() {
        let test = SelfTest::open(&Roots::defaults("n".parse().unwrap())).unwrap();
        let SelfTestService { service, slices } = test.service().unwrap();
        let wanted = compile(&service, &slices, &NodeFacts::default());
        assert!(wanted.notices.is_empty());
        assert_eq!(wanted.v4.len(), 2);
        for port in wanted.v4 {
            let [backend] = port.cluster[..] else { panic!("{:?}", port.cluster) };
            assert_eq!(backend.addr.to_ne_bytes(), [127, 0, 0, 1]);
            assert_eq!(backend.flags, backend::HOST_NETWORK);
        }
    }
}
