//! Ending of sockets to stale backends, and the record of the backends still to be handled.
//!
//! Pinned iterators of the loading child show through which Service a socket reached its backend. Without
//! them all sockets to a stale backend are ended, whatever their Service: a socket of another Service only
//! has to connect again, which is better than a socket that stays with a backend that is gone.

use crate::Cause;
use berth_core::error::Chain;
use berth_ebpf_loader::{self as loader, Error, Frontend, Pins, Proto, SocketRecords, StalePeer};
use std::{
    collections::HashSet,
    fs::{self, File},
    io, mem,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Ends connected UDP sockets in these network namespaces. Returns the number of ended sockets. `blind` holds
/// whether the log already says that the Services of sockets cannot be read.
pub(super) fn end_sockets(
    pins: &Pins,
    dead: &HashSet<StalePeer>,
    namespaces: &[PathBuf],
    blind: &mut bool,
) -> usize {
    let lost: Vec<StalePeer> = dead.iter().copied().collect();
    let backends: HashSet<SocketAddr> = lost.iter().map(|l| l.backend).collect();
    let mut warn_once = |error: &Error| {
        if !mem::replace(blind, true) {
            tracing::warn!(
                error = %Chain(error),
                "cannot read the records of sockets: all sockets to stale backends are ended"
            );
        }
    };
    let mut records = SocketRecords::open(pins).inspect_err(&mut warn_once).ok();
    let mut ended: usize = 0;
    for netns in namespaces {
        // The pod has no network of its own, or is gone.
        let Ok(file) = File::open(netns) else { continue };
        let mut done = match &records {
            Some(records) => loader::destroy_translated(&file, Proto::Udp, &lost, records),
            None => loader::destroy_sockets(&file, Proto::Udp, &backends),
        };
        if let Err(error @ Error::Map { .. }) = &done {
            warn_once(error);
            records = None;
            done = loader::destroy_sockets(&file, Proto::Udp, &backends);
        }
        match done {
            Ok(count) => ended = ended.saturating_add(count),
            Err(error) => {
                tracing::warn!(netns = %netns.display(), error = %Chain(&error), "sockets to backends that are gone may be left");
            }
        }
    }
    if records.is_some() {
        *blind = false;
    }
    ended
}

/// Writes the record of stale backends. An empty set removes the file.
pub(super) fn note(path: &Path, dead: &HashSet<StalePeer>) -> Result<(), Cause> {
    if dead.is_empty() {
        return Ok(berth_sys::fs::remove_if_there(path)?);
    }
    let lines: String = dead.iter().map(line).collect();
    Ok(berth_sys::fs::write_atomic(path, lines.as_bytes(), 0o600)?)
}

/// Reads the record of stale backends.
pub(super) fn noted(path: &Path) -> io::Result<HashSet<StalePeer>> {
    match fs::read_to_string(path) {
        // The file is written by one rename, so a malformed line is not from Berth and is skipped.
        Ok(text) => Ok(text.lines().filter_map(parse).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

/// Line of the record: the backend, and the frontend that clients dialled, which is `*` and the port for a
/// node port.
fn line(lost: &StalePeer) -> String {
    let backend = lost.backend;
    match lost.frontend {
        Some(Frontend { address: Some(address), port }) => {
            format!("{backend} {}\n", SocketAddr::new(address, port))
        }
        Some(Frontend { address: None, port }) => format!("{backend} *:{port}\n"),
        None => format!("{backend}\n"),
    }
}

/// Parses a line. A backend without a readable frontend is stale for all frontends, because earlier builds
/// recorded no frontend.
fn parse(line: &str) -> Option<StalePeer> {
    let (backend, frontend) = line.split_once(' ').unwrap_or((line, ""));
    let frontend = match frontend.strip_prefix("*:") {
        Some(port) => port.parse().ok().map(|port| Frontend { address: None, port }),
        None => {
            frontend.parse().ok().map(|at: SocketAddr| Frontend { address: Some(at.ip()), port: at.port() })
        }
    };
    Some(StalePeer { backend: backend.parse().ok()?, frontend })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use berth_harness::netns;
    use std::net::UdpSocket;

    #[test]
    fn without_the_iterators_all_sockets_to_a_backend_are_ended() {
        let inside = || {
            let connected = |to: &str| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(to).unwrap();
                socket
            };
            let (gone, other) = (connected("127.0.0.2:5353"), connected("127.0.0.3:5353"));
            let frontend = Some(Frontend { address: Some("10.96.0.1".parse().unwrap()), port: 53 });
            let dead = HashSet::from([StalePeer { backend: "127.0.0.2:5353".parse().unwrap(), frontend }]);
            let dir = tempfile::tempdir().unwrap();
            let (pins, mut blind) = (Pins::new(dir.path()), false);
            let here = [dir.path().join("no-namespace"), "/proc/thread-self/ns/net".into()];
            assert_eq!(end_sockets(&pins, &dead, &here, &mut blind), 1);
            assert!(blind, "it was said");
            assert!(gone.peer_addr().is_err() && other.peer_addr().is_ok());
            assert_eq!(end_sockets(&pins, &dead, &here, &mut blind), 0);
        };
        netns::in_new(inside).unwrap();
    }

    #[test]
    fn a_note_says_what_was_written_down() {
        let backend: SocketAddr = "10.0.0.9:53".parse().unwrap();
        let six: SocketAddr = "[fd00::9]:53".parse().unwrap();
        let dead = HashSet::from([
            StalePeer {
                backend,
                frontend: Some(Frontend { address: Some("10.96.0.1".parse().unwrap()), port: 53 }),
            },
            StalePeer { backend, frontend: Some(Frontend { address: None, port: 30053 }) },
            StalePeer {
                backend: six,
                frontend: Some(Frontend { address: Some("fd00:96::1".parse().unwrap()), port: 53 }),
            },
        ]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-backends");
        assert_eq!(noted(&path).unwrap(), HashSet::new());
        note(&path, &dead).unwrap();
        assert_eq!(noted(&path).unwrap(), dead);
        note(&path, &HashSet::new()).unwrap();
        assert!(!path.exists());

        // Lines of earlier builds, and malformed lines.
        fs::write(&path, "10.0.0.9:53\n10.0.0.9 *:7\n[fd00::9]:53 *:none\n\n").unwrap();
        let any = [backend, six].map(|backend| StalePeer { backend, frontend: None });
        assert_eq!(noted(&path).unwrap(), any.into());
    }
}
