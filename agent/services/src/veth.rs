//! Veth pair that joins a pod to the host, read from the kernel, whatever plugin created it.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::libc;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Deadline of a netlink request in seconds. The kernel answers within the call, so the deadline only bounds
/// a defect.
const PATIENCE_S: i64 = 5;

/// Prefix of the alias that `berth-cni` gives the host's end.
const ALIAS: &str = "berth-cni/";

/// Failure to look up a pod's veth pair.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct VethError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A pod's veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPair {
    /// Index of the host's end, in the caller's namespace.
    pub host_index: u32,
    /// The hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// The hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Whether `berth-cni` created the pair, which the alias of the host's end shows.
    pub ours: bool,
}

/// Properties of a device that the lookup needs.
struct Device {
    mac: [u8; 6],
    /// The device's alias, as `ip link show` prints it.
    alias: Option<String>,
    /// Index of a veth's other end.
    peer: Option<u32>,
}

/// The veth pair of the pod's `eth0` in that network namespace; `None` where the pod has no such device or
/// one of another kind. Blocks for some 100 microseconds.
///
/// # Errors
/// The namespace cannot be entered, or the kernel rejects a request.
pub fn veth_pair(netns: &Path) -> Result<Option<VethPair>, VethError> {
    let failed = |operation| move |source| VethError { operation, path: netns.to_owned(), source };
    let eth0 = || find(|l| l.attributes.push(LinkAttribute::IfName("eth0".into())));
    let inside = berth_sys::ns::in_net_ns(netns, eth0).map_err(io::Error::other);
    let Some(pod) = inside.and_then(|found| found).map_err(failed("look for the pod's device in"))? else {
        return Ok(None);
    };
    let Some(host_index) = pod.peer else { return Ok(None) };
    let host =
        find(|l| l.header.index = host_index).map_err(failed("look for the device that is joined to"))?;
    // The peer may be in another namespace, where its index can equal that of an unrelated device here. Only
    // a veth counts.
    let pair = host.filter(|host| host.peer.is_some());
    Ok(pair.map(|host| VethPair {
        host_index,
        host_mac: host.mac,
        pod_mac: pod.mac,
        ours: host.alias.is_some_and(|alias| alias.starts_with(ALIAS)),
    }))
}

/// The device that the request names, in the namespace of the calling thread.
fn find(name: impl FnOnce(&mut LinkMessage)) -> io::Result<Option<Device>> {
    let mut link = LinkMessage::default();
    name(&mut link);
    match berth_sys::netlink::route_request(RouteNetlinkMessage::GetLink(link), 0, PATIENCE_S) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => device(link),
            _ => None,
        })),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The properties of a device; `None` for a device without an Ethernet address.
fn device(link: &LinkMessage) -> Option<Device> {
    let (mut mac, mut alias) = (None, None);
    let (mut peer, mut veth) = (None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(address) => mac = <[u8; 6]>::try_from(address.as_slice()).ok(),
            LinkAttribute::IfAlias(text) => alias = Some(text.clone()),
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                veth = infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    Some(Device { mac: mac?, alias, peer: peer.filter(|_| veth) })
}
