//! The loopback device of a sandbox. Runtimes call the `loopback` plugin for it; one netlink
//! message does the same.

use berth_sys::netlink::route_request;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use nix::sched::{CloneFlags, setns};
use std::{fs::File, io, path::Path};

/// Deadline of a netlink request in seconds. The kernel answers at once.
const DEADLINE_S: i64 = 10;

/// Sets `lo` up in the network namespace at that path. Blocks; enters the namespace on its own
/// thread.
pub(crate) fn set_up(netns: &Path) -> io::Result<()> {
    let file = File::open(netns)?;
    let thread = std::thread::Builder::new().name("berth-lo".into()).spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        set_up_here()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

fn set_up_here() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::IfName("lo".into()));
    route_request(RouteNetlinkMessage::SetLink(link), 0, DEADLINE_S).map(drop)
}
