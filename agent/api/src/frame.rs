//! Frames of all local protocols: a length (u32, little endian), then that many bytes of JSON.
//!
//! The agent's own protocol reads by [`FrameReader`], whose reads may be dropped and repeated. The
//! helpers' protocols read a frame at once by [`read`], or take it from a buffer by [`take`].

use crate::Error;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Limit of a request's length in bytes, in the agent's own protocol.
pub const REQUEST_MAX: usize = 256 << 10;

/// Limit of a reply's length in bytes, in the agent's own protocol.
pub const REPLY_MAX: usize = 16 << 20;

/// Size of the length prefix in bytes.
pub const HEAD: usize = 4;

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

/// Decodes the JSON of a frame.
///
/// # Errors
/// The JSON is not such a message.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(Error::Decode)
}

/// The length at the start of a frame.
///
/// # Errors
/// The length exceeds `limit`.
pub fn length(head: [u8; HEAD], limit: usize) -> Result<usize, Error> {
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > limit { Err(Error::TooLong { length, limit }) } else { Ok(length) }
}

/// Takes the JSON of the first frame off the front of `buffer`. None if the frame is incomplete.
///
/// # Errors
/// The frame is longer than `limit`.
pub fn take(buffer: &mut Vec<u8>, limit: usize) -> Result<Option<Vec<u8>>, Error> {
    let Some((head, _)) = buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
    let end = length(*head, limit)?.saturating_add(HEAD);
    let Some(json) = buffer.get(HEAD..end) else { return Ok(None) };
    let json = json.to_vec();
    buffer.drain(..end);
    Ok(Some(json))
}

/// Reads the JSON of one frame. A dropped future leaves the connection in the middle of a frame.
///
/// # Errors
/// The connection is broken or at its end, or the frame is longer than `limit`.
pub async fn read(from: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await?;
    read_rest(head, from, limit).await
}

/// Reads the JSON of a frame whose length was read already.
///
/// # Errors
/// As for [`read`].
pub async fn read_rest(
    head: [u8; HEAD],
    from: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Vec<u8>> {
    let mut json = vec![0; length(head, limit)?];
    from.read_exact(&mut json).await?;
    Ok(json)
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
            if let Some(frame) = take(&mut self.buffer, self.limit)? {
                return Ok(Some(frame));
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
            Some(bytes) => decode(&bytes).map(Some),
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
