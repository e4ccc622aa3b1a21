//! The sending side of a connection's streams: chunks of bytes, framed by the stream that sends them, in one bounded
//! queue to the connection's writer.

use super::websocket::{
    self, Opcode,
    channels::{self, Codec},
};
use berth_core::sync::lock;
use berth_spdy::{Connection as Table, ResetStatus, StreamId, encode};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Chunks that wait for the writer. Full, it holds the processes that write.
pub(super) const QUEUE: usize = 4;

/// The most bytes of one chunk.
pub(super) const CHUNK: usize = 32 * 1024;

/// Room in front of a chunk's bytes for the heads of its frames.
const ROOM: usize = 32;

const _: () = assert!(encode::DATA_HEAD + websocket::HEAD_MAX < ROOM);

/// The connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Bytes for the client, with room for heads in front of them.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// A chunk without bytes, with capacity for this many.
    pub(super) fn with_capacity(capacity: usize) -> Chunk {
        let mut bytes = Vec::with_capacity(ROOM.saturating_add(capacity));
        bytes.resize(ROOM, 0);
        Chunk { bytes, start: ROOM }
    }

    /// A chunk of these bytes.
    pub(super) fn of(bytes: &[u8]) -> Chunk {
        let mut chunk = Chunk::with_capacity(bytes.len());
        chunk.bytes.extend_from_slice(bytes);
        chunk
    }

    /// The buffer, to which bytes may be appended.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes, with the heads so far.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Puts a head in front.
    pub(super) fn prepend(&mut self, head: &[u8]) {
        let start = self.start.saturating_sub(head.len());
        if let Some(room) = self.bytes.get_mut(start..self.start)
            && room.len() == head.len()
        {
            room.copy_from_slice(head);
            self.start = start;
        }
    }
}

/// Work of a connection's writer.
#[derive(Debug)]
pub(super) enum Item {
    /// A frame to send.
    Frame(Chunk),
    /// The end: what was queued before is sent, then these bytes, and the connection is closed.
    Last(Vec<u8>),
}

/// How the chunks of a stream are framed.
#[derive(Debug, Clone)]
enum Framing {
    Spdy { stream: StreamId, table: Arc<Mutex<Table>>, tunnelled: bool },
    Channel { number: u8, codec: Codec },
}

/// The sending side of one stream.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    framing: Framing,
    to: mpsc::Sender<Item>,
}

impl Outlet {
    /// The sending side of a SPDY stream. In a tunnel each frame is a message of a WebSocket.
    pub(super) fn spdy(
        stream: StreamId,
        table: Arc<Mutex<Table>>,
        tunnelled: bool,
        to: mpsc::Sender<Item>,
    ) -> Outlet {
        Outlet { framing: Framing::Spdy { stream, table, tunnelled }, to }
    }

    /// The sending side of a WebSocket's channel.
    pub(super) fn channel(number: u8, codec: Codec, to: mpsc::Sender<Item>) -> Outlet {
        Outlet { framing: Framing::Channel { number, codec }, to }
    }

    /// Sends bytes; waits while the client does not read.
    pub(super) async fn send(&self, mut chunk: Chunk) -> Result<(), Gone> {
        match &self.framing {
            Framing::Spdy { stream, .. } => {
                let head = encode::data_head(*stream, chunk.bytes().len(), false);
                chunk.prepend(&head);
                return self.queue(chunk).await;
            }
            Framing::Channel { number, codec: Codec::Base64 } => {
                let text = channels::base64_message(*number, chunk.bytes());
                chunk = Chunk::of(text.as_bytes());
                prepend_head(&mut chunk, Opcode::Text);
            }
            Framing::Channel { number, codec: Codec::Binary | Codec::BinaryWithEnd } => {
                chunk.prepend(&[*number]);
                prepend_head(&mut chunk, Opcode::Binary);
            }
        }
        self.queue(chunk).await
    }

    /// Ends the stream in this direction. Channels have no such end.
    pub(super) async fn finish(&self) -> Result<(), Gone> {
        let Framing::Spdy { stream, table, .. } = &self.framing else { return Ok(()) };
        if !lock(table).local_finished(*stream) {
            return Ok(());
        }
        self.queue(Chunk::of(&encode::data_head(*stream, 0, true))).await
    }

    /// Ends the stream in both directions. Channels have no such end.
    pub(super) async fn reset(&self) -> Result<(), Gone> {
        let Framing::Spdy { stream, table, .. } = &self.framing else { return Ok(()) };
        let mut frame = Vec::new();
        lock(table).reset(*stream, ResetStatus::Cancel, &mut frame);
        if frame.is_empty() { Ok(()) } else { self.queue(Chunk::of(&frame)).await }
    }

    /// Asks the writer to end the connection after what was queued.
    pub(super) async fn end_connection(&self) -> Result<(), Gone> {
        let farewell = match &self.framing {
            Framing::Channel { .. } => websocket::close(),
            Framing::Spdy { table, tunnelled, .. } => {
                let mut bytes = Vec::new();
                lock(table).go_away(&mut bytes);
                let mut bytes = framed(bytes, *tunnelled);
                if *tunnelled {
                    bytes.extend(websocket::close());
                }
                bytes
            }
        };
        self.to.send(Item::Last(farewell)).await.map_err(|_ended| Gone)
    }

    async fn queue(&self, mut chunk: Chunk) -> Result<(), Gone> {
        if matches!(self.framing, Framing::Spdy { tunnelled: true, .. }) {
            prepend_head(&mut chunk, Opcode::Binary);
        }
        self.to.send(Item::Frame(chunk)).await.map_err(|_ended| Gone)
    }
}

/// SPDY frames as they go to the socket.
pub(super) fn framed(frames: Vec<u8>, tunnelled: bool) -> Vec<u8> {
    if !tunnelled {
        return frames;
    }
    let mut chunk = Chunk::of(&frames);
    prepend_head(&mut chunk, Opcode::Binary);
    chunk.bytes().to_vec()
}

/// Puts a WebSocket's head in front of a message.
fn prepend_head(chunk: &mut Chunk, opcode: Opcode) {
    let (head, length) = websocket::head(opcode, chunk.bytes().len());
    chunk.prepend(head.get(..length).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_framed_by_their_stream() {
        let (to, mut items) = mpsc::channel(8);
        let mut sent = || match items.try_recv().unwrap() {
            Item::Frame(chunk) => chunk.bytes().to_vec(),
            Item::Last(_) => panic!("the end"),
        };
        let channel = |codec| Outlet::channel(1, codec, to.clone());
        channel(Codec::Binary).send(Chunk::of(b"ab")).await.unwrap();
        assert_eq!(sent(), [0x82, 3, 1, b'a', b'b']);
        channel(Codec::Base64).send(Chunk::of(b"ab")).await.unwrap();
        assert_eq!(sent(), b"\x81\x051YWI=");
        channel(Codec::BinaryWithEnd).finish().await.unwrap();
        let table = Arc::new(Mutex::new(Table::new(berth_spdy::Limits::DEFAULT)));
        let stream = Outlet::spdy(3, table, false, to.clone());
        stream.send(Chunk::of(b"ab")).await.unwrap();
        assert_eq!(sent(), [0, 0, 0, 3, 0, 0, 0, 2, b'a', b'b']);
        // The stream is not in the table: it has ended, and nothing more is sent.
        stream.finish().await.unwrap();
        stream.reset().await.unwrap();
        stream.end_connection().await.unwrap();
        assert!(matches!(items.try_recv(), Ok(Item::Last(_))));
    }
}
