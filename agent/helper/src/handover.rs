//! Handover from the active process of a helper to its successor: frames with descriptors
//! (SCM_RIGHTS), which travel with a frame's first byte.
//!
//! [`Peer`] is one side of a blocking exchange with a deadline. [`send`] and [`receive`] are for a
//! tokio runtime, where the caller sets the deadline.

use berth_api::frame;
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// One side of a blocking exchange over a connection.
#[derive(Debug)]
pub struct Peer<'a> {
    stream: &'a std::os::unix::net::UnixStream,
    until: Option<Instant>,
}

impl<'a> Peer<'a> {
    /// Makes the connection blocking, with this deadline for the whole exchange, if any.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(stream: &'a std::os::unix::net::UnixStream, within: Option<Duration>) -> io::Result<Peer<'a>> {
        stream.set_nonblocking(false)?;
        let until = within.and_then(|d| Instant::now().checked_add(d));
        Ok(Peer { stream, until })
    }

    /// Removes the deadline.
    pub fn wait_for_ever(&mut self) {
        self.until = None;
    }

    /// Limits the next read or write by the rest of the deadline.
    fn arm(&self) -> io::Result<()> {
        let left = match self.until {
            None => None,
            Some(until) => match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(io::ErrorKind::TimedOut.into()),
                left => Some(left),
            },
        };
        self.stream.set_read_timeout(left)?;
        self.stream.set_write_timeout(left)
    }

    /// Sends a frame with descriptors.
    ///
    /// # Errors
    /// The deadline is over, the connection is broken, or the descriptors are too many.
    pub fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.arm()?;
        let sent = send_some(self.stream, frame, fds)?;
        let mut stream = self.stream;
        stream.write_all(frame.get(sent..).unwrap_or_default())
    }

    /// Receives the JSON of the next frame, of at most `limit` bytes, and its descriptors.
    ///
    /// # Errors
    /// The deadline is over, the connection is broken or at its end, or the frame is too long.
    pub fn receive(&self, limit: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.arm()?;
        let mut head = [0; frame::HEAD];
        let (got, fds) = receive_some(self.stream, &mut head)?;
        let mut stream = self.stream;
        stream.read_exact(head.get_mut(got..).unwrap_or_default())?;
        let mut json = vec![0; frame::length(head, limit)?];
        self.arm()?;
        stream.read_exact(&mut json)?;
        Ok((json, fds))
    }
}

/// Sends a frame with descriptors.
///
/// # Errors
/// The connection is broken, or the descriptors are too many.
pub async fn send(to: &mut tokio::net::UnixStream, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = to.async_io(Interest::WRITABLE, || send_some(&*to, frame, fds)).await?;
    to.write_all(frame.get(sent..).unwrap_or_default()).await
}

/// Receives the JSON of the next frame, of at most `limit` bytes, and its descriptors.
///
/// # Errors
/// The connection is broken or at its end, or the frame is too long.
pub async fn receive(from: &mut tokio::net::UnixStream, limit: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut head = [0; frame::HEAD];
    let (got, fds) = from.async_io(Interest::READABLE, || receive_some(&*from, &mut head)).await?;
    from.read_exact(head.get_mut(got..).unwrap_or_default()).await?;
    Ok((frame::read_rest(head, from, limit).await?, fds))
}

/// Sends some bytes, at least one, and all descriptors. Returns the number of bytes.
fn send_some(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("cannot send {} descriptors in one message", fds.len())));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives some bytes, at least one, and the descriptors that came with them.
fn receive_some(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(into)];
    let got = rustix::net::recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((got, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn inode(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[tokio::test]
    async fn descriptors_travel_with_their_frame_between_blocking_and_async_sides() {
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        let old = Peer::new(&ours, Some(Duration::from_secs(10))).unwrap();
        old.send(&frame::encode(&"one", 100).unwrap(), &[file.as_fd(), other.as_fd()]).unwrap();
        old.send(&frame::encode(&"two", 100).unwrap(), &[]).unwrap();
        let (json, fds) = receive(&mut theirs, 100).await.unwrap();
        assert_eq!((json.as_slice(), fds.len()), (b"\"one\"".as_slice(), 2));
        assert_eq!((inode(&fds[0]), inode(&fds[1])), (inode(&file), inode(&other)));
        assert_eq!(receive(&mut theirs, 100).await.unwrap().0, b"\"two\"");
        send(&mut theirs, &frame::encode(&"three", 100).unwrap(), &[fds[1].as_fd()]).await.unwrap();
        let (json, back) = old.receive(100).unwrap();
        assert_eq!((json.as_slice(), back.len()), (b"\"three\"".as_slice(), 1));
        assert_eq!(inode(&back[0]), inode(&other));
        drop(theirs);
        assert_eq!(old.receive(100).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_silent_peer_ends_the_exchange_at_its_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::new(&ours, Some(Duration::from_millis(20))).unwrap();
        let kind = peer.receive(100).unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{kind:?}");
        assert_eq!(peer.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
