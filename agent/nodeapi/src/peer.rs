//! The socket of a client, which ends when the client has vanished.
//!
//! TCP finds out by itself that an idle client is gone, but it goes on for a quarter of an hour while bytes are on their
//! way to it. Every client that is alive acknowledges something at least every two minutes: a byte, a sign of life, or
//! the question whether it has room again. So one that is silent for longer has vanished, while one that only does not
//! read is left alone.

use berth_sys::tcp;
use std::{
    io,
    os::fd::AsFd as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// Silence after which a client has vanished; the kernel asks for room at least every two minutes.
const VANISHED: Duration = Duration::from_secs(180);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(30);

/// The socket.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: TcpStream,
    vanished: Duration,
    look: Pin<Box<Sleep>>,
}

impl Peer {
    /// Watches over a socket.
    pub(crate) fn new(socket: TcpStream) -> Peer {
        Peer { socket, vanished: VANISHED, look: Box::pin(sleep(PAUSE)) }
    }

    /// Ready once the client has vanished; looked at with each operation, and when it is time. Reads and writes are
    /// polled by one task, whose waker this keeps.
    fn poll_vanished(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.look.as_mut().poll(context));
            if tcp::silence(self.socket.as_fd()).is_ok_and(|silence| silence >= self.vanished) {
                return Poll::Ready(io::Error::from(io::ErrorKind::TimedOut));
            }
            self.look.as_mut().reset(Instant::now() + PAUSE);
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_vanished(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_read(context, into)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_vanished(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_vanished(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    #[tokio::test]
    async fn a_silent_client_ends_its_socket_and_one_that_answers_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let mut peer = Peer::new(socket);
        peer.vanished = Duration::from_millis(500);
        peer.look = Box::pin(sleep(Duration::from_millis(100)));
        // It has just connected.
        assert!(timeout(Duration::from_millis(300), peer.read_u8()).await.is_err());
        client.write_all(b"x").await.unwrap();
        assert_eq!(peer.read_u8().await.unwrap(), b'x');
        tokio::time::sleep(Duration::from_millis(600)).await;
        peer.look = Box::pin(sleep(Duration::from_millis(100)));
        let error = timeout(Duration::from_secs(20), peer.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
