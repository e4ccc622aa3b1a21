//! Frames of SPDY/3.1 and their numbers.

use crate::Headers;
use bytes::Bytes;

/// Number of a stream, 31 bits. Those that a client opens are odd.
pub type StreamId = u32;

/// The version in control frames.
pub(crate) const VERSION: u16 = 3;

/// Flag of the last frame of one side of a stream.
pub(crate) const FLAG_FIN: u8 = 1;

/// Flag of a stream on which the receiver sends nothing.
pub(crate) const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Length of every frame's head, in bytes.
pub(crate) const HEAD: usize = 8;

/// Types of control frames.
pub(crate) mod kind {
    pub(crate) const SYN_STREAM: u16 = 1;
    pub(crate) const SYN_REPLY: u16 = 2;
    pub(crate) const RST_STREAM: u16 = 3;
    pub(crate) const SETTINGS: u16 = 4;
    pub(crate) const PING: u16 = 6;
    pub(crate) const GOAWAY: u16 = 7;
    pub(crate) const HEADERS: u16 = 8;
    pub(crate) const WINDOW_UPDATE: u16 = 9;
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The client opens a stream.
    SynStream {
        /// The stream.
        stream: StreamId,
        /// Whether the client sends nothing on it.
        fin: bool,
        /// Whether the client expects nothing on it.
        unidirectional: bool,
        /// The stream's headers.
        headers: Headers,
    },
    /// The peer accepts a stream.
    SynReply {
        /// The stream.
        stream: StreamId,
        /// Whether the peer sends nothing on it.
        fin: bool,
        /// Headers of the answer.
        headers: Headers,
    },
    /// The peer ends a stream in both directions.
    RstStream {
        /// The stream.
        stream: StreamId,
        /// The reason; see [`ResetStatus`].
        status: u32,
    },
    /// Settings, which have no meaning here.
    Settings,
    /// A sign of life, which the other side repeats.
    Ping {
        /// Its number: odd ones are the client's.
        id: u32,
    },
    /// The peer ends the connection.
    GoAway {
        /// The last stream that it accepted.
        last: StreamId,
        /// The reason.
        status: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// The stream.
        stream: StreamId,
        /// Whether they are the peer's last frame on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// A window, which has no meaning here.
    WindowUpdate,
    /// A part of a data frame, or a whole one.
    Data {
        /// The stream.
        stream: StreamId,
        /// The bytes.
        payload: Bytes,
        /// Whether they are the peer's last on the stream.
        fin: bool,
    },
}

/// Reasons of RST_STREAM that a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetStatus {
    /// The peer broke the protocol.
    ProtocolError = 1,
    /// The stream was not looked at.
    RefusedStream = 3,
    /// The stream is not wanted any more.
    Cancel = 5,
    /// The server failed.
    InternalError = 6,
}
