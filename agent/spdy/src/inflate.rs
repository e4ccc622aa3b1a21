//! Decompression of header blocks: one zlib stream for the whole connection, which begins with the protocol's
//! dictionary and is flushed at the end of each block.
//!
//! The history is what a block may refer to: at first the dictionary, later the last 32 KiB. The buffer has the
//! size that the blocks so far needed.

use crate::{Error, dictionary};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{
        DecompressorOxide, decompress,
        inflate_flags::{TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF},
    },
};

/// The farthest that deflate refers back, in bytes.
const WINDOW: usize = 32 * 1024;

/// Flag in zlib's second byte: the stream begins with a dictionary, whose checksum follows.
const DICTIONARY: u8 = 0x20;

/// The decompressor of one connection.
pub(crate) struct Inflater {
    state: Option<Box<DecompressorOxide>>,
    history: Vec<u8>,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("history", &self.history.len()).finish_non_exhaustive()
    }
}

impl Inflater {
    /// A decompressor before its first block.
    pub(crate) fn new() -> Inflater {
        Inflater { state: None, history: Vec::new() }
    }

    /// Decompresses a block of at most `limit` bytes. Every byte of `block` belongs to it.
    ///
    /// # Errors
    /// The block is no part of a zlib stream with the protocol's dictionary, or is longer than `limit`.
    pub(crate) fn block(&mut self, block: &[u8], limit: usize) -> Result<&[u8], Error> {
        let (mut state, block) = match self.state.take() {
            Some(state) => (state, block),
            None => {
                let rest = self.begin(block)?;
                (Box::default(), rest)
            }
        };
        self.forget();
        let start = self.history.len();
        // One byte more than the limit, so that a longer block is told from one that ends there.
        self.history.resize(start.saturating_add(limit).saturating_add(1), 0);
        let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, read, written) = decompress(&mut state, block, &mut self.history, start, flags);
        self.history.truncate(start.saturating_add(written));
        // A small block must not keep the room of the longest possible one.
        self.history.shrink_to(self.history.len().saturating_mul(2));
        match status {
            TINFLStatus::NeedsMoreInput if written <= limit && read == block.len() => {}
            TINFLStatus::HasMoreOutput | TINFLStatus::NeedsMoreInput => {
                return Err(Error::Compression("it is longer than allowed"));
            }
            TINFLStatus::Done => return Err(Error::Compression("the stream ends")),
            _ => return Err(Error::Compression("it is damaged")),
        }
        self.state = Some(state);
        Ok(self.history.get(start..).unwrap_or_default())
    }

    /// Reads the zlib header in front of the first block.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let ([method, flags], rest) =
            block.split_first_chunk::<2>().ok_or(Error::Compression("it has no zlib header"))?;
        let sum = u32::from(*method).wrapping_mul(256).wrapping_add(u32::from(*flags));
        if method & 0x0f != 8 || method >> 4 > 7 || !sum.is_multiple_of(31) {
            return Err(Error::Compression("its zlib header is damaged"));
        }
        self.history = dictionary::bytes();
        if flags & DICTIONARY == 0 {
            return Ok(rest);
        }
        let (named, rest) =
            rest.split_first_chunk::<4>().ok_or(Error::Compression("its zlib header is cut"))?;
        if u32::from_be_bytes(*named) != dictionary::ADLER32 {
            return Err(Error::Compression("it has another dictionary"));
        }
        Ok(rest)
    }

    /// Drops what no block can refer to any more.
    fn forget(&mut self) {
        let old = self.history.len().saturating_sub(WINDOW);
        self.history.drain(..old);
    }
}
