//! The server's side of a connection: the table of streams, and the answers that need nobody else.
//!
//! A stream's row exists until both sides have finished it or one has reset it. Frames for a stream without a
//! row are dropped: the client may have sent them before it learned of the end.

use crate::{
    Decoder, Error, Frame, Headers, Limits, ResetStatus, StreamId,
    encode::{self, HeaderWriter},
};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It opened a stream, which is to be accepted or reset.
    Opened {
        /// The stream.
        stream: StreamId,
        /// The stream's headers.
        headers: Headers,
    },
    /// It sent bytes.
    Data {
        /// The stream.
        stream: StreamId,
        /// The bytes, at least one.
        payload: Bytes,
    },
    /// It sends nothing more on a stream.
    Finished {
        /// The stream.
        stream: StreamId,
    },
    /// It ended a stream in both directions.
    Reset {
        /// The stream.
        stream: StreamId,
    },
    /// It ends the connection.
    GoneAway,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    remote_finished: bool,
    local_finished: bool,
}

/// The state of a server's connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    decoder: Decoder,
    writer: HeaderWriter,
    streams: HashMap<StreamId, Row>,
    /// The last stream that the client opened.
    last: StreamId,
    /// An event that is due before the next frame.
    due: Option<Event>,
}

impl Connection {
    /// A connection before its first frame.
    pub fn new(limits: Limits) -> Connection {
        Connection {
            limits,
            decoder: Decoder::new(limits),
            writer: HeaderWriter::default(),
            streams: HashMap::new(),
            last: 0,
            due: None,
        }
    }

    /// Number of open streams.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Takes the next event off the received bytes; `None` where more have to be received first. Answers that
    /// are due are appended to `answers`.
    ///
    /// # Errors
    /// See [`Decoder::next`].
    pub fn next(&mut self, received: &mut BytesMut, answers: &mut Vec<u8>) -> Result<Option<Event>, Error> {
        if let Some(event) = self.due.take() {
            return Ok(Some(event));
        }
        while let Some(frame) = self.decoder.next(received)? {
            if let Some(event) = self.take(frame, answers) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn take(&mut self, frame: Frame, answers: &mut Vec<u8>) -> Option<Event> {
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers } => {
                self.open(stream, fin, unidirectional, headers, answers)
            }
            Frame::Data { stream, payload, fin } => {
                let known = self.streams.get(&stream).is_some_and(|row| !row.remote_finished);
                let finished = if fin { self.remote_finished(stream) } else { None };
                if !known || payload.is_empty() {
                    return finished;
                }
                self.due = finished;
                Some(Event::Data { stream, payload })
            }
            Frame::Headers { stream, fin: true, .. } | Frame::SynReply { stream, fin: true, .. } => {
                self.remote_finished(stream)
            }
            Frame::RstStream { stream, .. } => {
                self.streams.remove(&stream).map(|_row| Event::Reset { stream })
            }
            // The server's own pings have even numbers; what comes back is their answer.
            Frame::Ping { id } => {
                if id % 2 == 1 {
                    encode::ping(answers, id);
                }
                None
            }
            Frame::GoAway { .. } => Some(Event::GoneAway),
            Frame::Headers { .. } | Frame::SynReply { .. } | Frame::Settings | Frame::WindowUpdate => None,
        }
    }

    fn open(
        &mut self,
        stream: StreamId,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
        answers: &mut Vec<u8>,
    ) -> Option<Event> {
        if stream.is_multiple_of(2) || stream <= self.last {
            encode::reset(answers, stream, ResetStatus::ProtocolError);
            return None;
        }
        self.last = stream;
        if self.streams.len() >= self.limits.streams {
            encode::reset(answers, stream, ResetStatus::RefusedStream);
            return None;
        }
        let row = Row { remote_finished: fin, local_finished: unidirectional };
        if fin {
            self.due = Some(Event::Finished { stream });
        }
        if !(fin && unidirectional) {
            self.streams.insert(stream, row);
        }
        Some(Event::Opened { stream, headers })
    }

    fn remote_finished(&mut self, stream: StreamId) -> Option<Event> {
        let row = self.streams.get_mut(&stream)?;
        if std::mem::replace(&mut row.remote_finished, true) {
            return None;
        }
        if row.local_finished {
            self.streams.remove(&stream);
        }
        Some(Event::Finished { stream })
    }

    /// Appends the acceptance of a stream. Has to be sent before anything else of the stream.
    pub fn accept(&mut self, stream: StreamId, to: &mut Vec<u8>) {
        self.writer.syn_reply(to, stream, &Headers::default());
    }

    /// Appends the end of a stream in both directions, unless it has ended.
    pub fn reset(&mut self, stream: StreamId, status: ResetStatus, to: &mut Vec<u8>) {
        if self.streams.remove(&stream).is_some() {
            encode::reset(to, stream, status);
        }
    }

    /// Records that the server sends nothing more on a stream. False where the stream had ended before, and
    /// nothing may be sent on it.
    pub fn local_finished(&mut self, stream: StreamId) -> bool {
        let Some(row) = self.streams.get_mut(&stream) else { return false };
        let first = !std::mem::replace(&mut row.local_finished, true);
        if row.remote_finished {
            self.streams.remove(&stream);
        }
        first
    }

    /// Appends the end of the connection.
    pub fn go_away(&self, to: &mut Vec<u8>) {
        encode::go_away(to, self.last);
    }
}
