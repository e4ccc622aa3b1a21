//! How a logd becomes active: with the free lock, or by a handover from the active logd.

use super::handover::Peer;
use crate::{
    error::Error,
    proto::{Reply, Request},
    spec::{StreamSpec, state_dir},
};
use berth_core::{error::Chain, roots::Roots};
use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{
    io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

/// Time within which a new logd must become active.
const PATIENCE: Duration = Duration::from_secs(5);

/// A container as the old logd hands it over.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) spec: StreamSpec,
    pub(super) bytes: u64,
    pub(super) lost: u64,
    pub(super) fds: Vec<OwnedFd>,
}

/// The resources of the active logd.
#[derive(Debug)]
pub(super) struct Charge {
    /// The lock. It is held by the open file, so it moves with the descriptor.
    pub(super) lock: OwnedFd,
    /// The listening socket. It is never closed in between, so that no client is refused.
    pub(super) listener: UnixListener,
    /// The old logd's containers; None if there was no old logd.
    pub(super) handed: Option<Vec<Handed>>,
}

/// Becomes the active logd.
pub(super) fn take_charge(roots: &Roots) -> Result<Charge, Error> {
    let path = state_dir(roots).join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::State { path: path.clone(), source: e.into() })?;
    let until = Instant::now().checked_add(PATIENCE);
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let listener = listen(roots)?;
                return Ok(Charge { lock, listener, handed: None });
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(Error::State { path, source: e.into() }),
        }
        let failed = match take_over(roots) {
            Ok(charge) => return Ok(charge),
            Err(error) => error,
        };
        if until.is_none_or(|until| Instant::now() >= until) {
            tracing::warn!(error = %Chain(&failed), "the running logd does not yield");
            return Err(Error::Busy { path });
        }
        // The other logd may be starting, ending, or in another takeover: there is no event to wait
        // for.
        thread::sleep(Duration::from_millis(20));
    }
}

fn listen(roots: &Roots) -> Result<UnixListener, Error> {
    let path = roots.logd_socket();
    let bind = || {
        berth_sys::fs::remove_if_there(&path)?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source| Error::Socket { path: path.clone(), source })
}

/// Asks the active logd for everything. Until the commit is sent, giving up leaves the old logd
/// active. After it, only the old logd's reply or its death decides.
fn take_over(roots: &Roots) -> Result<Charge, Error> {
    let at = |step| move |source| Error::Takeover { step, source };
    let path = roots.logd_socket();
    let stream = UnixStream::connect(&path).map_err(|source| Error::Socket { path: path.clone(), source })?;
    let mut old = Peer::new(&stream, Some(Duration::from_secs(2))).map_err(at("connect"))?;
    old.ask(Request::Takeover).map_err(at("ask"))?;
    let (reply, fds) = old.receive::<Reply>().map_err(at("receive the lock and the listener"))?;
    let Reply::Handover { containers } = reply else {
        return Err(at("ask")(io::Error::other("it does not know how to hand over")));
    };
    let [lock, listener] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
        at("receive the lock and the listener")(io::Error::other(format!("{} came", fds.len())))
    })?;
    let mut handed = Vec::new();
    for _ in 0..containers {
        match old.receive::<Reply>().map_err(at("receive a container"))? {
            (Reply::Handed { spec, bytes, lost }, fds) => handed.push(Handed { spec, bytes, lost, fds }),
            _ => return Err(at("receive a container")(io::Error::other("something else came"))),
        }
    }
    old.ask(Request::Commit).map_err(at("commit"))?;
    old.wait_for_ever();
    match old.receive::<Reply>() {
        Ok((Reply::Released, _)) => {}
        Ok(_) => return Err(at("commit")(io::Error::other("it went on with its work"))),
        // The old logd died. Output that it had removed from a FIFO is in the log file or the carry
        // file.
        Err(error) if ended(&error) => {
            tracing::warn!(%error, "the old logd ended before it had answered the commit");
        }
        Err(error) => return Err(at("commit")(error)),
    }
    Ok(Charge { lock, listener: UnixListener::from(listener), handed: Some(handed) })
}

fn ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
