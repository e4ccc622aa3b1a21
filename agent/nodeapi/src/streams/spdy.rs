//! The reader of a SPDY connection, plain or in the messages of a WebSocket: streams as the client opens them, and
//! their received bytes.

use super::{
    connection::{ANSWERS, Delivery, INBOX, Inbox, Protocol, Queues},
    outlet::{Item, Outlet, QUEUE, framed},
    websocket::{self, Part},
};
use berth_core::sync::lock;
use berth_spdy::{Connection as Table, Event, Headers, Limits, ResetStatus, StreamId, encode};
use bytes::{Bytes, BytesMut};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};
use tokio::sync::{mpsc, oneshot};

/// Opened streams that wait for the session.
const OPENED: usize = 16;

/// Number of the server's signs of life, which is even.
const PING: u32 = 2;

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct NewStream {
    /// Its number.
    pub(super) id: StreamId,
    /// Its headers.
    pub(super) headers: Headers,
    /// What the client sends on it.
    pub(super) inbox: Inbox,
    /// Resolves, by an error, when the client resets the stream.
    pub(super) reset: oneshot::Receiver<()>,
    /// The sending side.
    pub(super) outlet: Outlet,
}

/// The reader's ends of a stream.
#[derive(Debug)]
struct Ends {
    /// `None` once the client has finished the stream.
    inbox: Option<mpsc::Sender<Bytes>>,
    /// Dropped when the client resets the stream.
    reset: oneshot::Sender<()>,
}

/// The messages of a WebSocket in which SPDY's frames are sent.
#[derive(Debug, Default)]
struct Tunnel {
    decoder: websocket::Decoder,
    /// The bytes of a frame that has not arrived whole.
    frames: BytesMut,
}

/// Whether a stream with these headers is wanted.
pub(super) type Admit = fn(&Headers) -> bool;

/// The reader.
#[derive(Debug)]
pub(super) struct Spdy {
    table: Arc<Mutex<Table>>,
    streams: HashMap<StreamId, Ends>,
    admit: Admit,
    opened: mpsc::Sender<NewStream>,
    delivery: Delivery,
    items: mpsc::Sender<Item>,
    tunnelled: bool,
    /// The tunnel; `None` also while it is being read, and after an error in it.
    tunnel: Option<Tunnel>,
    /// Rows at which the streams are looked through for those that have ended here.
    prune_at: usize,
}

/// A connection's reader with its queues, and the streams as they are opened.
pub(super) fn connection(admit: Admit, tunnelled: bool) -> (Spdy, Queues, mpsc::Receiver<NewStream>) {
    let (answers, answers_to_send) = mpsc::channel(ANSWERS);
    let (items, items_to_send) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(OPENED);
    let spdy = Spdy {
        table: Arc::new(Mutex::new(Table::new(Limits::DEFAULT))),
        streams: HashMap::new(),
        admit,
        opened,
        delivery: Delivery::new(answers),
        items,
        tunnelled,
        tunnel: tunnelled.then(Tunnel::default),
        prune_at: 64,
    };
    (spdy, Queues { answers: answers_to_send, items: items_to_send }, streams)
}

impl Protocol for Spdy {
    async fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        let Some(mut tunnel) = self.tunnel.take() else { return self.frames(received).await };
        while let Some(part) = tunnel.decoder.next(received).map_err(io::Error::other)? {
            match part {
                Part::Data { payload, .. } => {
                    tunnel.frames.extend_from_slice(&payload);
                    self.frames(&mut tunnel.frames).await?;
                }
                Part::Ping(payload) => self.delivery.answer(websocket::pong(&payload)).await?,
                Part::Close => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        self.tunnel = Some(tunnel);
        Ok(())
    }
}

impl Spdy {
    /// Takes every frame that is there whole, and every piece of a data frame.
    async fn frames(&mut self, received: &mut BytesMut) -> io::Result<()> {
        loop {
            let mut due = Vec::new();
            let event = lock(&self.table).next(received, &mut due).map_err(io::Error::other)?;
            if !due.is_empty() {
                self.delivery.answer(framed(due, self.tunnelled)).await?;
            }
            match event {
                Some(event) => self.take(event).await?,
                None => return Ok(()),
            }
        }
    }

    async fn take(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Opened { stream, headers } => self.open(stream, headers).await,
            Event::Data { stream, payload } => {
                let inbox = self.streams.get(&stream).and_then(|ends| ends.inbox.as_ref());
                let Some(inbox) = inbox else { return Ok(()) };
                let tunnelled = self.tunnelled;
                let sign_of_life = || {
                    let mut ping = Vec::new();
                    encode::ping(&mut ping, PING);
                    framed(ping, tunnelled)
                };
                self.delivery.deliver(inbox, payload, sign_of_life).await
            }
            Event::Finished { stream } => {
                if let Some(ends) = self.streams.get_mut(&stream) {
                    ends.inbox = None;
                }
                Ok(())
            }
            Event::Reset { stream } => {
                self.streams.remove(&stream);
                Ok(())
            }
            Event::GoneAway => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    async fn open(&mut self, id: StreamId, headers: Headers) -> io::Result<()> {
        let mut frame = Vec::new();
        if !(self.admit)(&headers) {
            lock(&self.table).reset(id, ResetStatus::Cancel, &mut frame);
            return self.delivery.answer(framed(frame, self.tunnelled)).await;
        }
        lock(&self.table).accept(id, &mut frame);
        self.delivery.answer(framed(frame, self.tunnelled)).await?;
        if self.streams.len() >= self.prune_at {
            self.streams.retain(|_, ends| !ends.reset.is_closed());
            self.prune_at = self.streams.len().saturating_mul(2).max(64);
        }
        let (inbox_to, inbox) = mpsc::channel(INBOX);
        let (reset_to, reset) = oneshot::channel();
        let outlet = Outlet::spdy(id, self.table.clone(), self.tunnelled, self.items.clone());
        self.streams.insert(id, Ends { inbox: Some(inbox_to), reset: reset_to });
        // Where the session takes no more streams, the ends just made are dropped.
        let _taken = self.opened.send(NewStream { id, headers, inbox, reset, outlet }).await;
        Ok(())
    }
}
