//! The reader of a WebSocket with channels: the received bytes of the channels that a client may write.

use super::{
    connection::{ANSWERS, Delivery, INBOX, Inbox, Protocol, Queues},
    outlet::{Item, Outlet, QUEUE},
    websocket::{
        self, Part,
        channels::{ChannelEvent, Channels, Codec},
    },
};
use bytes::{Bytes, BytesMut};
use std::{collections::BTreeMap, io};
use tokio::sync::mpsc;

/// The reader.
#[derive(Debug)]
pub(super) struct ChannelReader {
    decoder: websocket::Decoder,
    channels: Channels,
    inboxes: BTreeMap<u8, mpsc::Sender<Bytes>>,
    delivery: Delivery,
}

/// Makes the two sides of channels.
#[derive(Debug)]
pub(super) struct ChannelMaker {
    codec: Codec,
    inboxes: BTreeMap<u8, mpsc::Sender<Bytes>>,
    items: mpsc::Sender<Item>,
    queues: Queues,
    answers: mpsc::Sender<Vec<u8>>,
}

impl ChannelMaker {
    /// A WebSocket without channels.
    pub(super) fn new(codec: Codec) -> ChannelMaker {
        let (answers, answers_to_send) = mpsc::channel(ANSWERS);
        let (items, items_to_send) = mpsc::channel(QUEUE);
        let queues = Queues { answers: answers_to_send, items: items_to_send };
        ChannelMaker { codec, inboxes: BTreeMap::new(), items, queues, answers }
    }

    /// The receiving side of a channel. What comes for any other channel is dropped.
    pub(super) fn inbox(&mut self, number: u8) -> Inbox {
        let (to, inbox) = mpsc::channel(INBOX);
        self.inboxes.insert(number, to);
        inbox
    }

    /// The sending side of a channel.
    pub(super) fn outlet(&self, number: u8) -> Outlet {
        Outlet::channel(number, self.codec, self.items.clone())
    }

    /// The reader and the queues of the connection.
    pub(super) fn connection(self) -> (ChannelReader, Queues) {
        let reader = ChannelReader {
            decoder: websocket::Decoder::default(),
            channels: Channels::new(self.codec),
            inboxes: self.inboxes,
            delivery: Delivery::new(self.answers),
        };
        (reader, self.queues)
    }
}

impl Protocol for ChannelReader {
    async fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        while let Some(part) = self.decoder.next(received).map_err(io::Error::other)? {
            let event = match part {
                Part::Data { payload, last, .. } => {
                    self.channels.read(payload, last).map_err(io::Error::other)?
                }
                Part::Ping(payload) => {
                    self.delivery.answer(websocket::pong(&payload)).await?;
                    None
                }
                Part::Close => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            };
            match event {
                Some(ChannelEvent::Data(channel, bytes)) => {
                    if let Some(inbox) = self.inboxes.get(&channel) {
                        self.delivery.deliver(inbox, bytes, websocket::ping).await?;
                    }
                }
                Some(ChannelEvent::End(channel)) => {
                    self.inboxes.remove(&channel);
                }
                None => {}
            }
        }
        Ok(())
    }
}
