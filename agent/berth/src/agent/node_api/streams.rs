//! The [`StreamBackend`] of the node's API: commands by the exec helper or containerd's exec, attachments by logd, ports
//! by the pods' network namespaces.

mod attach;
mod exec;

use super::super::local_api::LocalApi;
use berth_core::{model::Container, roots::Roots};
use berth_nodeapi::{
    Boxed, PodState, Process, RunningContainer, StreamBackend, StreamRefusal, WantedStreams,
};
use berth_sys::ns::{self, NsKind};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::spawn_blocking,
    time::timeout,
};

/// Longest wait for a connection to a pod's own loopback device, which answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(10);

/// The agent behind the streams.
pub(super) struct Streams {
    pub(super) roots: Roots,
    pub(super) api: LocalApi,
}

impl StreamBackend for Streams {
    fn container(&self, pod: &PodState, name: &str) -> Result<RunningContainer, StreamRefusal> {
        let missing = || StreamRefusal::Failed(format!("container not found ({name:?})"));
        let spec = specification(pod, name).ok_or_else(missing)?;
        let published = self.api.cache.pod(&pod.pod.uid).ok_or_else(missing)?;
        let running = published.view.containers.iter().find(|container| container.name.as_str() == name);
        let running = running.ok_or_else(missing)?;
        Ok(RunningContainer {
            id: running.id.clone(),
            pid: running.pid,
            start_time: running.start_time,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
        })
    }

    fn exec(
        &self,
        container: RunningContainer,
        command: Vec<String>,
        wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>> {
        Box::pin(exec::start(&self.api, container, command, wanted))
    }

    fn attach(
        &self,
        container: RunningContainer,
        wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>> {
        Box::pin(attach::start(&self.roots, &self.api, container, wanted))
    }

    fn connect<'a>(&'a self, pod: &'a PodState, port: u16) -> Boxed<'a, Result<TcpStream, String>> {
        let host = pod.pod.namespaces.host_network;
        let pin = self.roots.sandbox_dir(&pod.pod.uid).join(NsKind::Net.file_name());
        Box::pin(async move {
            let pin = (!host).then_some(pin);
            let v4 = connect(pin.clone(), IpAddr::V4(Ipv4Addr::LOCALHOST), port).await;
            match v4 {
                Ok(socket) => Ok(socket),
                Err(v4) => connect(pin, IpAddr::V6(Ipv6Addr::LOCALHOST), port)
                    .await
                    .map_err(|v6| format!("failed to connect to localhost:{port} inside the pod's network namespace, IPv4: {v4}, IPv6: {v6}")),
            }
        })
    }
}

fn specification<'a>(pod: &'a PodState, name: &str) -> Option<&'a Container> {
    pod.pod.all_containers().find(|container| container.name.as_str() == name)
}

/// Connects a socket that belongs to the network namespace of this pin, or to the node's.
async fn connect(pin: Option<PathBuf>, address: IpAddr, port: u16) -> Result<TcpStream, String> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let make = move || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        socket(family, SockType::Stream, flags, None).map_err(|e| e.to_string())
    };
    let made = match pin {
        Some(pin) => {
            let made = spawn_blocking(move || ns::in_net_ns(&pin, make)).await;
            made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?
        }
        None => make(),
    };
    let socket = TcpSocket::from_std_stream(made?.into());
    match timeout(CONNECT, socket.connect(SocketAddr::new(address, port))).await {
        Ok(connected) => connected.map_err(|e| e.to_string()),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}
