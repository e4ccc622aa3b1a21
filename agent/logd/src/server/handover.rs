//! Messages between an old and a new logd, with descriptors. Blocking, each with a deadline.

use berth_api::logd::{REPLY_MAX, Reply, Request, decode, encode};
use berth_helper::handover::Peer;
use rustix::fd::{BorrowedFd, OwnedFd};
use serde::de::DeserializeOwned;
use std::{io, time::Duration};

/// The old logd resumes its work if it has not been released by then, so that no writer waits
/// longer.
pub(super) const OLD_WAITS: Duration = Duration::from_millis(900);

/// Sends a request.
pub(super) fn request(to: &Peer<'_>, request: Request) -> io::Result<()> {
    to.send(&encode(0, request)?, &[])
}

/// Sends a reply with descriptors.
pub(super) fn reply(to: &Peer<'_>, seq: u64, reply: Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    to.send(&encode(seq, reply)?, fds)
}

/// Receives the next message and its descriptors.
pub(super) fn receive<T: DeserializeOwned>(from: &Peer<'_>) -> io::Result<(T, Vec<OwnedFd>)> {
    let (json, fds) = from.receive(REPLY_MAX)?;
    Ok((decode(&json)?.body, fds))
}
