//! Retired pairs: pairs that DEL has taken out of use, and whose devices the kernel deletes a moment later.
//!
//! To delete one device takes the kernel 20 to 40 ms, for which it holds the lock of all devices (RTNL): it waits until
//! no processor uses the device any more. It waits only once for devices that are deleted together. So DEL takes the host
//! end down, which ends its routes and all traffic of the pair, and puts it into the device group [`GROUP`]. A process of
//! its own then deletes the group: one waits while another deletes, and deletes all that were retired meanwhile.
//!
//! A retired pair needs nothing of the journal, so its address is given back at once. Where the process is killed, the
//! devices stay down until the next DEL or GC, or go with the pod's network namespace.

use crate::{error::Error, netlink::Netlink};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

/// The device group (`ip link show group`) of retired host ends: the letters "rthc". Nobody else's devices are in it, for
/// groups are numbers that administrators give, from 0 on.
pub(crate) const GROUP: u32 = 0x7274_6863;

/// The plugin's first argument in the process that deletes the group. The second is the directory of the locks.
pub(crate) const ARGUMENT: &str = "delete-retired";

/// Takes a host end out of use. `false` if it does not exist.
pub(crate) fn retire(host: &mut Netlink, host_end: &str) -> Result<bool, Error> {
    let mut message = LinkMessage::default();
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(host_end.to_owned()), LinkAttribute::Group(GROUP)];
    match host.request(RouteNetlinkMessage::SetLink(message), 0) {
        Ok(_) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(source) => {
            Err(Error::Netlink { operation: "take out of use", subject: host_end.to_owned(), source })
        }
    }
}

/// Deletes all retired pairs.
pub(crate) fn delete(host: &mut Netlink) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(GROUP)];
    match host.request(RouteNetlinkMessage::DelLink(message), 0) {
        Ok(_) => Ok(()),
        Err(e) if is_absent(&e) => Ok(()),
        Err(source) => {
            Err(Error::Netlink { operation: "delete", subject: "retired devices".to_owned(), source })
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Starts the process that deletes the retired pairs. It outlives the caller, and holds none of its files.
pub(crate) fn delete_soon(locks: &Path) -> io::Result<()> {
    Command::new(std::env::current_exe()?)
        .arg(ARGUMENT)
        .arg(locks)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map(drop)
}

/// The work of that process.
pub(crate) fn delete_in_turn(locks: &Path) -> io::Result<()> {
    // Who waits has deleted nothing yet, and will also delete what this process was started for.
    let Some(waiting) = lock(&locks.join("waiting"), FlockArg::LockExclusiveNonblock)? else { return Ok(()) };
    let _turn = lock(&locks.join("deleting"), FlockArg::LockExclusive)?;
    drop(waiting);
    delete(&mut Netlink::open()?).map_err(io::Error::other)
}

/// `None` where another process has the lock and `how` does not wait for it.
fn lock(path: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match Flock::lock(file, how) {
        Ok(locked) => Ok(Some(locked)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}
