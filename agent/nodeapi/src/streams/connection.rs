//! One upgraded connection: a reader and a writer over its socket, and the session that uses its streams.
//!
//! All three run in the task of the connection. The reader hands received bytes to a bounded queue of their stream and
//! waits while it is full, or while all queues of the connection hold [`WAITING`] bytes, so that a client is held by the
//! process that does not read; meanwhile it sends signs of life, because only a failed write tells that the client is
//! gone. The writer takes frames from one bounded queue. Answers of the protocol itself go past that queue and are
//! bounded too: from a client that asks for answers and does not read them nothing more is read.
//!
//! When the client is gone, the session is dropped with everything that it holds. When the session ends, what it has
//! queued is sent; then the rest of the client's bytes is read for a moment, because a socket that is closed with
//! unread bytes loses the last sent ones.

use super::outlet::{Gone, Item};
use bytes::{Bytes, BytesMut};
use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};

/// After this long without a byte in either direction the connection ends, as with the kubelet.
pub(super) const IDLE: Duration = Duration::from_secs(4 * 3600);

/// Time in which a client has to open its streams.
pub(super) const CREATION: Duration = Duration::from_secs(30);

/// Received pieces of one stream that wait for its reader; a piece is at most [`READ_MAX`] long.
pub(super) const INBOX: usize = 16;

/// Received bytes that wait for the readers of all streams of a connection. A short piece counts as [`READ_MIN`] bytes,
/// because it keeps the buffer into which it was read.
const WAITING: usize = 128 * 1024;

/// Answers of the protocol that wait for the writer.
pub(super) const ANSWERS: usize = 64;

/// Pause between signs of life while a stream's queue is full.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Longest wait for the client to close after the end of a session.
const LINGER: Duration = Duration::from_secs(2);

/// Sizes of one read: the first, and the largest, to which reads grow while they are filled.
const READ_MIN: usize = 2 * 1024;
const READ_MAX: usize = 32 * 1024;

/// Received bytes of a stream. Ends when the client has finished the stream.
pub(super) type Inbox = mpsc::Receiver<Bytes>;

/// Time of the last byte, in milliseconds since the connection's beginning.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Activity {
        Activity { began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Ends once there was no byte for so long.
    async fn ceased(&self, idle: Duration) {
        loop {
            let last = self.last.load(Ordering::Relaxed);
            sleep_until(self.began + Duration::from_millis(last) + idle).await;
            if self.last.load(Ordering::Relaxed) == last {
                return;
            }
        }
    }
}

/// What a connection's reader makes of the received bytes.
pub(super) trait Protocol: Send {
    /// Takes what is whole off the received bytes.
    ///
    /// # Errors
    /// The client ended the connection, or broke the protocol.
    fn read(&mut self, received: &mut BytesMut) -> impl Future<Output = io::Result<()>> + Send;
}

/// The way of received bytes to the readers of a connection's streams.
#[derive(Debug)]
pub(super) struct Delivery {
    waiting: Arc<Semaphore>,
    answers: mpsc::Sender<Vec<u8>>,
}

/// Bytes that count as waiting until their reader has dropped them.
struct Waiting {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Delivery {
    /// The way to streams of which nothing waits yet, and of answers.
    pub(super) fn new(answers: mpsc::Sender<Vec<u8>>) -> Delivery {
        Delivery { waiting: Arc::new(Semaphore::new(WAITING)), answers }
    }

    /// Hands a piece to a stream, and sends signs of life while there is no room for it. A stream whose reader is gone
    /// drops it.
    pub(super) async fn deliver(
        &self,
        inbox: &mpsc::Sender<Bytes>,
        bytes: Bytes,
        sign_of_life: impl Fn() -> Vec<u8>,
    ) -> io::Result<()> {
        let size = u32::try_from(bytes.len().clamp(READ_MIN, READ_MAX)).unwrap_or_default();
        let mut send = pin!(async {
            tokio::select! {
                room = Arc::clone(&self.waiting).acquire_many_owned(size) => {
                    let room = room.map_err(io::Error::other)?;
                    // A failure means that the stream is not read any more.
                    let _sent = inbox.send(Bytes::from_owner(Waiting { bytes, _room: room })).await;
                    Ok(())
                }
                () = inbox.closed() => Ok(()),
            }
        });
        loop {
            tokio::select! {
                sent = &mut send => return sent,
                // Where answers wait already, the writer learns by itself that the client is gone.
                () = sleep(KEEP_ALIVE) => drop(self.answers.try_send(sign_of_life())),
            }
        }
    }

    /// Queues an answer of the protocol. Waits while the client does not read.
    pub(super) async fn answer(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.answers.send(bytes).await.map_err(|_ended| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// The queues of a connection.
#[derive(Debug)]
pub(super) struct Queues {
    /// Answers of the protocol, framed.
    pub(super) answers: mpsc::Receiver<Vec<u8>>,
    /// Frames of the streams.
    pub(super) items: mpsc::Receiver<Item>,
}

/// Serves a connection until its session has ended and everything was sent, or until the client is gone. A session that
/// succeeds has asked the writer for the end.
///
/// # Errors
/// The client broke the protocol, or was silent for too long.
pub(super) async fn serve<S>(
    socket: S,
    mut protocol: impl Protocol,
    queues: Queues,
    session: impl Future<Output = Result<(), Gone>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity::new();
    let (reader, writer) = tokio::io::split(socket);
    let mut reading = pin!(read(reader, &mut protocol, &activity));
    let mut writing = pin!(write(writer, queues, &activity));
    let mut session = pin!(session);
    let mut working = true;
    loop {
        tokio::select! {
            // Ends by an error only.
            ended = &mut reading => return ended,
            written = &mut writing => {
                written?;
                break;
            }
            ended = &mut session, if working => match ended {
                Ok(()) => working = false,
                Err(Gone) => return Err(io::Error::other("the streams were not opened in time, or their client is gone")),
            },
            () = activity.ceased(IDLE) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }
    // The client closes when it has read the end; whether it does is its own matter.
    let _closed = timeout(LINGER, reading).await;
    Ok(())
}

async fn read<R: AsyncRead + Unpin>(
    mut from: R,
    protocol: &mut impl Protocol,
    activity: &Activity,
) -> io::Result<()> {
    let (mut received, mut size) = (BytesMut::new(), READ_MIN);
    loop {
        received.reserve(size);
        let room = received.capacity().saturating_sub(received.len());
        let count = from.read_buf(&mut received).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        activity.touch();
        size = if count >= room { size.saturating_mul(2).min(READ_MAX) } else { count.clamp(READ_MIN, size) };
        protocol.read(&mut received).await?;
        if received.is_empty() {
            // The buffer belongs to the pieces that were handed on; a silent connection holds none.
            received = BytesMut::new();
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(mut to: W, mut queues: Queues, activity: &Activity) -> io::Result<()> {
    let farewell = loop {
        tokio::select! {
            biased;
            Some(answer) = queues.answers.recv() => to.write_all(&answer).await?,
            item = queues.items.recv() => match item {
                Some(Item::Frame(chunk)) => to.write_all(chunk.bytes()).await?,
                Some(Item::Last(farewell)) => break farewell,
                None => break Vec::new(),
            },
        }
        if queues.answers.is_empty() && queues.items.is_empty() {
            to.flush().await?;
        }
        activity.touch();
    };
    to.write_all(&farewell).await?;
    to.flush().await?;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_streams_of_a_connection_share_the_room_of_what_waits() {
        let (answers, _queued) = mpsc::channel(ANSWERS);
        let delivery = Delivery::new(answers);
        let (inboxes, mut readers): (Vec<_>, Vec<_>) = (0..8).map(|_| mpsc::channel(INBOX)).unzip();
        let piece = || Bytes::from(vec![7; READ_MAX]);
        let mut taken = 0;
        for inbox in &inboxes {
            let sent = delivery.deliver(inbox, piece(), Vec::new);
            if timeout(Duration::from_millis(100), sent).await.is_ok() {
                taken += 1;
            }
        }
        assert_eq!(taken, WAITING / READ_MAX);
        // What is read makes room, and a stream that nobody reads any more needs none.
        assert_eq!(readers[0].recv().await.unwrap().len(), READ_MAX);
        timeout(LINGER, delivery.deliver(&inboxes[7], piece(), Vec::new)).await.unwrap().unwrap();
        readers.remove(6);
        timeout(LINGER, delivery.deliver(&inboxes[6], piece(), Vec::new)).await.unwrap().unwrap();
    }
}
