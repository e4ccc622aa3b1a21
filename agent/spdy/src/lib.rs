//! SPDY/3.1 as Kubernetes' streaming clients speak it: frames, header compression and the state of a server's
//! connection, without IO.
//!
//! [`Decoder`] turns received bytes into [`Frame`]s, [`encode`] makes the bytes of frames, [`Connection`] is the
//! server's table of streams. The rules are those of the SPDY/3.1 draft as far as moby/spdystream, the only
//! client, uses them: SETTINGS and WINDOW_UPDATE have no meaning, so there is no flow control, and a reader has
//! to bound its own queues.
//!
//! Invariants: no input makes the crate panic. What it holds is bounded by [`Limits`]: one control frame, the
//! header history (32 KiB) and one table row per stream. Payloads of data frames are handed on in the pieces in
//! which they arrive. After an error the connection is unusable, because the header compression has a state.
#![forbid(unsafe_code)]

mod connection;
mod decoder;
mod dictionary;
pub mod encode;
mod frame;
mod headers;
mod inflate;

pub use connection::{Connection, Event};
pub use decoder::Decoder;
pub use frame::{Frame, ResetStatus, StreamId};
pub use headers::Headers;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload of a control frame, in bytes.
    pub control: usize,
    /// The longest header block after decompression, in bytes.
    pub headers: usize,
    /// Streams that are open at once. Further ones are refused.
    pub streams: usize,
}

impl Limits {
    /// Bounds for the few short headers of Kubernetes' streams.
    pub const DEFAULT: Limits = Limits { control: 16 * 1024, headers: 16 * 1024, streams: 4096 };
}

/// Reasons that end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A control frame is of another version.
    #[error("cannot read a frame of SPDY version {0}")]
    Version(u16),
    /// A control frame's type is unknown.
    #[error("cannot read a control frame of type {0}")]
    Type(u16),
    /// A control frame is longer than [`Limits::control`].
    #[error("cannot read a control frame of {length} bytes: at most {limit} are allowed")]
    TooLong {
        /// The frame's length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A control frame's length or content contradicts its type.
    #[error("cannot read a control frame: {0}")]
    Malformed(&'static str),
    /// A header block cannot be decompressed.
    #[error("cannot decompress a header block: {0}")]
    Compression(&'static str),
    /// A header block is not a list of names and values.
    #[error("cannot read a header block: {0}")]
    Headers(&'static str),
}
