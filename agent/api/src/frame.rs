//! Frames: a length (u32, little endian), then that many bytes of JSON.

use crate::Error;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Limit of a request's length in bytes.
pub const REQUEST_MAX: usize = 256 << 10;

/// Limit of a reply's length in bytes.
pub const REPLY_MAX: usize = 16 << 20;

/// Size of the length prefix in bytes.
const HEAD: usize = 4;

/// Encodes a message as a frame.
///
/// # Errors
/// The message cannot be encoded, or is longer than `limit`.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message).map_err(Error::Encode)?;
    seal(frame, limit)
}

/// Encodes a frame from parts of JSON text.
///
/// # Errors
/// The text is longer than `limit`.
pub fn of_parts(parts: &[&[u8]], limit: usize) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEAD];
    for part in parts {
        frame.extend_from_slice(part);
    }
    seal(frame, limit)
}

fn seal(mut frame: Vec<u8>, limit: usize) -> Result<Vec<u8>, Error> {
    let length = frame.len().saturating_sub(HEAD);
    let head = u32::try_from(length).ok().filter(|_| length <= limit);
    let Some(head) = head else { return Err(Error::TooLong { length, limit }) };
    for (to, from) in frame.iter_mut().zip(head.to_le_bytes()) {
        *to = from;
    }
    Ok(frame)
}

/// Reader of frames. A read may be dropped and repeated: received bytes are kept.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: Vec<u8>,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of frames of at most `limit` bytes.
    pub fn new(from: R, limit: usize) -> FrameReader<R> {
        FrameReader { from, buffer: Vec::new(), limit }
    }

    /// The next frame's bytes; `None` at the end of the connection, even in the middle of a frame.
    pub async fn bytes(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some((head, _)) = self.buffer.split_first_chunk::<HEAD>() {
                let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
                if length > self.limit {
                    return Err(Error::TooLong { length, limit: self.limit });
                }
                let end = length.saturating_add(HEAD);
                if let Some(frame) = self.buffer.get(HEAD..end) {
                    let frame = frame.to_vec();
                    self.buffer.drain(..end);
                    return Ok(Some(frame));
                }
            }
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(source) => return Err(Error::Io { what: "read from", source }),
            }
        }
    }

    /// The next message; `None` at the end of the connection.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        match self.bytes().await? {
            Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Error::Decode),
            None => Ok(None),
        }
    }
}

/// Writes an encoded frame.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), Error> {
    to.write_all(frame).await.map_err(|source| Error::Io { what: "write to", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, Option<Error>) {
        let mut reader = FrameReader::new(bytes, limit);
        let mut frames = Vec::new();
        loop {
            match reader.bytes().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(e) => return (frames, Some(e)),
            }
        }
    }

    #[tokio::test]
    async fn whole_frames_are_read_and_a_torn_one_ends_the_connection() {
        let mut bytes = encode(&"one", 100).unwrap();
        bytes.extend(of_parts(&[b"{\"a\":", b"1}"], 100).unwrap());
        bytes.extend([200, 0, 0, 0, b'x']);
        let (frames, error) = read_all(&bytes, 300).await;
        assert_eq!(frames, [b"\"one\"".to_vec(), b"{\"a\":1}".to_vec()]);
        assert!(error.is_none());
    }

    #[tokio::test]
    async fn a_frame_above_the_limit_is_neither_sent_nor_read() {
        assert!(matches!(encode(&"x".repeat(99), 100), Err(Error::TooLong { length: 101, limit: 100 })));
        let (frames, error) = read_all(&[0xff; 20], 100).await;
        assert!(frames.is_empty());
        assert!(matches!(error, Some(Error::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_dropped_read_loses_no_bytes() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(theirs, 100);
        let frame = encode(&"abc", 100).unwrap();
        for byte in frame {
            tokio::select! {
                biased;
                done = reader.bytes() => panic!("{done:?} before all was sent"),
                () = tokio::task::yield_now() => {}
            }
            ours.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(reader.message::<String>().await.unwrap().unwrap(), "abc");
    }
}
