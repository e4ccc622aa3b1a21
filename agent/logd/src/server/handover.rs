//! Messages with descriptors between an old and a new logd. Blocking, each with a deadline.

use crate::proto::{REPLY_MAX, Reply, Request, decode, encode, length};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};
use serde::de::DeserializeOwned;
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// The old logd resumes its work if it has not been released by then, so that no writer waits
/// longer.
pub(super) const OLD_WAITS: Duration = Duration::from_millis(900);

/// One message carries at most the lock and the listening socket, or one container's FIFOs.
const FDS_MAX: usize = 3;

/// One side of the exchange.
#[derive(Debug)]
pub(super) struct Peer<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
}

impl<'a> Peer<'a> {
    /// Talks over `stream` until the deadline, if there is one.
    pub(super) fn new(stream: &'a UnixStream, within: Option<Duration>) -> io::Result<Peer<'a>> {
        stream.set_nonblocking(false)?;
        let until = within.and_then(|d| Instant::now().checked_add(d));
        Ok(Peer { stream, until })
    }

    /// Removes the deadline.
    pub(super) fn wait_for_ever(&mut self) {
        self.until = None;
    }

    fn arm(&self) -> io::Result<()> {
        let left = match self.until {
            None => None,
            Some(until) => match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                left => Some(left),
            },
        };
        self.stream.set_read_timeout(left)?;
        self.stream.set_write_timeout(left)
    }

    /// Sends a request.
    pub(super) fn ask(&self, request: Request) -> io::Result<()> {
        self.arm()?;
        let mut stream = self.stream;
        stream.write_all(&encode(0, request)?)
    }

    /// Sends a reply with descriptors, which travel with the length.
    pub(super) fn send(&self, seq: u64, reply: Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.arm()?;
        let frame = encode(seq, reply)?;
        let (head, body) =
            frame.split_at_checked(4).ok_or_else(|| io::Error::other("message without length"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let sent =
            rustix::net::sendmsg(self.stream, &[IoSlice::new(head)], &mut control, SendFlags::NOSIGNAL)?;
        let mut stream = self.stream;
        stream.write_all(head.get(sent..).unwrap_or_default())?;
        stream.write_all(body)
    }

    /// Reads the next message and its descriptors.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        self.arm()?;
        let mut head = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            self.stream.as_fd(),
            &mut [IoSliceMut::new(&mut head)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let mut stream = self.stream;
        stream.read_exact(head.get_mut(got..).unwrap_or_default())?;
        let mut json = vec![0; length(head, REPLY_MAX)?];
        self.arm()?;
        stream.read_exact(&mut json)?;
        Ok((decode(&json)?.body, fds))
    }
}
