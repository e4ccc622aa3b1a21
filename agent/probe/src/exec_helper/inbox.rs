//! What the helper receives: bytes, and the descriptors that came with them, in the order of their frames.

use rustix::{
    io::{Errno, IoSliceMut},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg},
};
use std::{collections::VecDeque, fs::File, io, mem::MaybeUninit, os::fd::OwnedFd};

/// Descriptors of one message at most.
const DESCRIPTORS: usize = 3;

/// Input of the helper's socket.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Reads what is there. False if the agent has closed the socket.
    ///
    /// # Errors
    /// The socket fails, or a descriptor was lost because this process has too many: no later one could be told from
    /// it.
    pub(super) fn read(&mut self, socket: &File) -> io::Result<bool> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let read = match recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut rights, flags) {
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(false),
                Err(e) => return Err(e.into()),
            };
            for message in rights.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if read.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::other("a descriptor from the agent was lost"));
            }
            if read.bytes == 0 {
                return Ok(false);
            }
            self.bytes.extend_from_slice(chunk.get(..read.bytes).unwrap_or_default());
        }
    }

    /// The bytes, from whose front frames are taken.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes the descriptors of a frame.
    ///
    /// # Errors
    /// They did not come with it.
    pub(super) fn take(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        if self.descriptors.len() < count {
            return Err(io::Error::other("a request came without its descriptors"));
        }
        Ok(self.descriptors.drain(..count).collect())
    }
}
