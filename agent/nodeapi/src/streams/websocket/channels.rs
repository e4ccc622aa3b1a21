//! The channels of Kubernetes' WebSocket protocols: a message is the number of a channel and its bytes, raw or in
//! base64. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};

/// First byte of a message that ends a channel, in version 5.
const END: u8 = 255;

/// Form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streams) enum Codec {
    /// A byte and the bytes.
    Binary,
    /// A digit and base64, as text.
    Base64,
    /// A byte and the bytes; the byte 255 and a channel's number end the channel.
    BinaryWithEnd,
}

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::streams) enum ChannelEvent {
    /// It sent bytes, at least one.
    Data(u8, Bytes),
    /// It sends nothing more on a channel.
    End(u8),
}

/// A message breaks the protocol. The connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a message of channels: {0}")]
pub(in crate::streams) struct ChannelError(&'static str);

/// Where in a message the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the channel's number.
    Start,
    /// In the channel's bytes.
    Channel(u8),
    /// Before the number of a channel that ends.
    End,
    /// Behind it, where nothing may stand.
    Ended(u8),
}

/// The reader of messages.
#[derive(Debug)]
pub(in crate::streams) struct Channels {
    codec: Codec,
    at: At,
    /// The first characters of a group of four that has not arrived whole.
    group: Vec<u8>,
}

impl Channels {
    /// A reader before its first message.
    pub(in crate::streams) fn new(codec: Codec) -> Channels {
        Channels { codec, at: At::Start, group: Vec::new() }
    }

    /// Reads a part of a message.
    ///
    /// # Errors
    /// The message breaks the protocol.
    pub(in crate::streams) fn read(
        &mut self,
        mut payload: Bytes,
        last: bool,
    ) -> Result<Option<ChannelEvent>, ChannelError> {
        while let (At::Start | At::End, Some(byte)) = (self.at, payload.first().copied()) {
            payload.advance(1);
            self.at = match (self.at, self.codec) {
                (At::End, _) => At::Ended(byte),
                (_, Codec::BinaryWithEnd) if byte == END => At::End,
                (_, Codec::Base64) => At::Channel(byte.wrapping_sub(b'0')),
                _ => At::Channel(byte),
            };
        }
        let at = self.at;
        if last {
            self.at = At::Start;
        }
        match at {
            // An empty message means nothing.
            At::Start => Ok(None),
            At::Channel(channel) if self.codec == Codec::Base64 => {
                let bytes = self.decode(&payload, last)?;
                Ok((!bytes.is_empty()).then_some(ChannelEvent::Data(channel, bytes)))
            }
            At::Channel(channel) => Ok((!payload.is_empty()).then_some(ChannelEvent::Data(channel, payload))),
            At::Ended(channel) if payload.is_empty() => Ok(last.then_some(ChannelEvent::End(channel))),
            At::Ended(_) => Err(ChannelError("the end of a channel is longer than two bytes")),
            At::End if last => Err(ChannelError("the end of a channel names none")),
            At::End => Ok(None),
        }
    }

    fn decode(&mut self, text: &[u8], last: bool) -> Result<Bytes, ChannelError> {
        self.group.extend_from_slice(text);
        let rest = if last { 0 } else { self.group.len() % 4 };
        let tail = self.group.split_off(self.group.len().saturating_sub(rest));
        let bytes = STANDARD.decode(&self.group);
        self.group = tail;
        bytes.map(Bytes::from).map_err(|_not_base64| ChannelError("it is not base64"))
    }
}

/// The message of a channel in base64, without its frame.
pub(in crate::streams) fn base64_message(channel: u8, bytes: &[u8]) -> String {
    let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
    STANDARD.encode_string(bytes, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(codec: Codec, parts: &[(&[u8], bool)]) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut channels = Channels::new(codec);
        let mut events = Vec::new();
        for (payload, last) in parts {
            events.extend(channels.read(Bytes::copy_from_slice(payload), *last)?);
        }
        Ok(events)
    }

    fn data(channel: u8, bytes: &'static [u8]) -> ChannelEvent {
        ChannelEvent::Data(channel, Bytes::from_static(bytes))
    }

    #[test]
    fn a_message_is_a_channel_and_its_bytes() {
        let parts: &[(&[u8], bool)] = &[(b"\0ab", true), (b"", true), (b"\x04", false), (b"{}", true)];
        assert_eq!(read(Codec::Binary, parts).unwrap(), [data(0, b"ab"), data(4, b"{}")]);
        assert_eq!(read(Codec::Binary, &[(b"\xff\0", true)]).unwrap(), [data(255, b"\0")]);
    }

    #[test]
    fn a_channel_ends_by_a_message_of_two_bytes() {
        let ends = |parts: &[(&[u8], bool)]| read(Codec::BinaryWithEnd, parts);
        assert_eq!(
            ends(&[(b"\xff\0", true), (b"\0x", true)]).unwrap(),
            [ChannelEvent::End(0), data(0, b"x")]
        );
        assert_eq!(ends(&[(b"\xff", false), (b"\x04", false), (b"", true)]).unwrap(), [ChannelEvent::End(4)]);
        assert!(ends(&[(b"\xff", true)]).is_err() && ends(&[(b"\xff\0\0", true)]).is_err());
    }

    #[test]
    fn base64_is_read_however_it_is_cut() {
        assert_eq!(base64_message(1, b"foo\n"), "1Zm9vCg==");
        let parts: &[(&[u8], bool)] = &[(b"0Zm9v", false), (b"C", false), (b"g==", true), (b"0Zm9v", true)];
        let bytes: Vec<u8> = read(Codec::Base64, parts)
            .unwrap()
            .iter()
            .flat_map(|event| match event {
                ChannelEvent::Data(0, bytes) => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(bytes, b"foo\nfoo");
        assert!(read(Codec::Base64, &[(b"0Zm9", true)]).is_err());
        assert!(read(Codec::Base64, &[(b"0????", true)]).is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_read(parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..9)) {
            for codec in [Codec::Binary, Codec::Base64, Codec::BinaryWithEnd] {
                let parts: Vec<_> = parts.iter().map(|(bytes, last)| (&bytes[..], *last)).collect();
                let _outcome = read(codec, &parts);
            }
        }
    }
}
