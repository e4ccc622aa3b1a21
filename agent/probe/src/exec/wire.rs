//! Messages between agent and exec helper: frames of a 32-bit length (little endian) and JSON.
//!
//! Both ends are the same program, one started by the other, so there is one version.

use super::{ExecOutcome, ExecTarget};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, path::PathBuf};

/// The longest frame in bytes. An environment and a command line together are shorter.
const MAX_FRAME: usize = 8 * 1024 * 1024;

/// A request to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Remove the cgroups that an earlier helper left below these directories.
    Clean { roots: Vec<PathBuf> },
    /// Run a command.
    Exec { id: u64, timeout_ms: u64, target: Box<ExecTarget> },
    /// Kill a command, because its caller no longer waits.
    Cancel { id: u64 },
}

/// A reply of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) outcome: ExecOutcome,
}

/// Encodes one frame.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len().saturating_sub(4);
    let length = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message is too large"))?;
    frame.splice(..4, length.to_le_bytes());
    Ok(frame)
}

/// Takes one message off the front of `buffer`. None if it is incomplete.
pub(crate) fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too large"));
    }
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let message = serde_json::from_slice(frame)?;
    buffer.drain(..length + 4);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_split_anywhere() {
        let frame = encode(&Request::Cancel { id: 7 }).unwrap();
        let twice = [frame.clone(), frame.clone()].concat();
        for cut in 0..twice.len() {
            let mut buffer = twice[..cut].to_vec();
            let mut seen = 0;
            while let Some(Request::Cancel { id: 7 }) = decode(&mut buffer).unwrap() {
                seen += 1;
            }
            buffer.extend(&twice[cut..]);
            while decode::<Request>(&mut buffer).unwrap().is_some() {
                seen += 1;
            }
            assert_eq!((seen, buffer.len()), (2, 0), "{cut}");
        }
        assert!(decode::<Request>(&mut vec![255; 8]).is_err());
        assert!(decode::<Request>(&mut vec![1, 0, 0, 0, b'x']).is_err());
    }
}
