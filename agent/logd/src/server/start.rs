//! How a logd becomes active: with the free lock, or by a handover from the active logd.

use super::handover::{receive, request};
use crate::error::Error;
use berth_api::logd::{Reply, Request, StreamSpec};
use berth_core::{error::Chain, roots::Roots};
use berth_helper::{handover::Peer, lock::Lock, socket};
use rustix::fd::OwnedFd;
use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
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
pub(super) struct Active {
    /// The lock. It is held by the open file, so it moves with the descriptor.
    pub(super) lock: OwnedFd,
    /// The listening socket. It is never closed in between, so that no client is refused.
    pub(super) listener: UnixListener,
    /// The old logd's containers; None if there was no old logd.
    pub(super) handed: Option<Vec<Handed>>,
}

/// Becomes the active logd.
pub(super) fn become_active(roots: &Roots) -> Result<Active, Error> {
    let path = roots.logd_state_dir().join("lock");
    let failed = |source| Error::State { path: path.clone(), source };
    let lock = Lock::open(&path).map_err(failed)?;
    let until = Instant::now().checked_add(PATIENCE);
    loop {
        if lock.try_lock().map_err(failed)? {
            let path = roots.logd_socket();
            let listener = socket::listen(&path).map_err(|source| Error::Listen { path, source })?;
            return Ok(Active { lock: lock.into_fd(), listener, handed: None });
        }
        let failed = match take_over(roots) {
            Ok(charge) => return Ok(charge),
            Err(error) => error,
        };
        if until.is_none_or(|until| Instant::now() >= until) {
            tracing::warn!(error = %Chain(&failed), "the active logd does not hand over");
            return Err(Error::Busy { path });
        }
        // The other logd may be starting, ending, or in another takeover: there is no event to wait
        // for.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks the active logd for everything. Until the commit is sent, giving up leaves the old logd
/// active. After it, only the old logd's reply or its death decides.
fn take_over(roots: &Roots) -> Result<Active, Error> {
    let at = |step| move |source| Error::Takeover { step, source };
    let path = roots.logd_socket();
    let stream = UnixStream::connect(&path).map_err(|source| Error::Socket { path: path.clone(), source })?;
    let mut old = Peer::new(&stream, Some(Duration::from_secs(2))).map_err(at("connect"))?;
    request(&old, Request::Takeover).map_err(at("ask"))?;
    let (reply, fds) = receive::<Reply>(&old).map_err(at("receive the lock and the listener"))?;
    let Reply::Handover { containers } = reply else {
        return Err(at("ask")(io::Error::other("it cannot hand over")));
    };
    let [lock, listener] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
        at("receive the lock and the listener")(io::Error::other(format!(
            "it sent {} descriptors",
            fds.len()
        )))
    })?;
    let mut handed = Vec::new();
    for _ in 0..containers {
        match receive::<Reply>(&old).map_err(at("receive a container"))? {
            (Reply::Handed { spec, bytes, lost }, fds) => handed.push(Handed { spec, bytes, lost, fds }),
            _ => return Err(at("receive a container")(io::Error::other("it sent something else"))),
        }
    }
    request(&old, Request::Commit).map_err(at("commit"))?;
    old.wait_for_ever();
    match receive::<Reply>(&old) {
        Ok((Reply::Released, _)) => {}
        Ok(_) => return Err(at("commit")(io::Error::other("it stayed active"))),
        // The old logd died. Output that it had removed from a FIFO is in the log file or the carry
        // file.
        Err(error) if ended(&error) => {
            tracing::warn!(%error, "the old logd ended before it answered the commit");
        }
        Err(error) => return Err(at("commit")(error)),
    }
    Ok(Active { lock, listener: UnixListener::from(listener), handed: Some(handed) })
}

fn ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
