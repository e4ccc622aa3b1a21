//! Work inside a network namespace, on a thread that ends with the work.

use crate::{Error, Result, sys};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

/// The cookie of a network namespace (`SO_NETNS_COOKIE`), as the socket hooks see it. A cookie is never
/// reused in a boot.
///
/// # Errors
/// `netns` is no network namespace, or the kernel refuses.
pub fn netns_cookie(netns: impl AsFd) -> Result<u64> {
    within(netns.as_fd(), || {
        let failed = |source| Error::Netns { op: "ask for the cookie", source };
        let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        sys::netns_cookie(made.map_err(|e| failed(e.into()))?).map_err(failed)
    })
}

/// Runs `work` in this network namespace, on a thread of its own; the caller's thread stays in its namespace.
pub(crate) fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = thread::Builder::new().name("berth-netns".into()).spawn_scoped(scope, move || {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::Netns { op: "arrive", source: e.into() })?;
            work()
        });
        let inside = inside.map_err(|source| Error::Netns { op: "start a thread", source })?;
        let ended = || Error::Netns { op: "work", source: io::Error::other("the thread panicked") };
        inside.join().map_err(|_panic| ended())?
    })
}
