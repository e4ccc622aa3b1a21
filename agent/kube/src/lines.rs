//! Splitting of a byte stream into lines, with a bound on the memory of one stream.
//!
//! A watch answers with one JSON object per line. The API server's objects have at most about 1.5 MiB (etcd's
//! limit of a request), so a line longer than [`MAX_LINE`] is a fault of the stream.

use std::mem;

/// The longest line in bytes, without its newline.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// Capacity in bytes above which an empty buffer is freed. A node has a stream for each ConfigMap and Secret
/// in use, and most of these streams are silent for hours.
const KEPT: usize = 4 * 1024;

/// A line is longer than the stream's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of the answer is longer than {limit} bytes")]
pub struct LineTooLong {
    /// The limit in bytes.
    pub limit: usize,
}

/// The bytes of a stream that have not been taken as lines yet.
///
/// The caller pushes each piece of the stream by [`Lines::push`], and then calls [`Lines::next_line`] until
/// it returns `None`. The buffer then holds less than one line.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Start of the first line that was not taken yet.
    start: usize,
    /// No byte between `start` and this position is a newline.
    searched: usize,
    limit: usize,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines::new(MAX_LINE)
    }
}

impl Lines {
    /// A splitter for lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Lines {
        Lines { buffer: Vec::new(), start: 0, searched: 0, limit }
    }

    /// Appends the next piece of the stream.
    ///
    /// # Errors
    /// The bytes before the next newline exceed the limit. The stream is useless from here on, and its buffer
    /// has been freed.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), LineTooLong> {
        self.release();
        self.buffer.extend_from_slice(piece);
        let end = memchr::memchr(b'\n', self.buffer.get(self.searched..).unwrap_or_default());
        let line = end.map_or(self.buffer.len(), |at| self.searched.saturating_add(at));
        if line.saturating_sub(self.start) > self.limit {
            *self = Lines::new(self.limit);
            return Err(LineTooLong { limit: self.limit });
        }
        Ok(())
    }

    /// The next whole line without its newline, or `None` until more bytes are pushed. Lines within one
    /// piece may be longer than the limit by at most the piece's length.
    pub fn next_line(&mut self) -> Option<&[u8]> {
        let Some(at) = memchr::memchr(b'\n', self.buffer.get(self.searched..)?) else {
            self.searched = self.buffer.len();
            self.release();
            return None;
        };
        let end = self.searched.saturating_add(at);
        let start = mem::replace(&mut self.start, end.saturating_add(1));
        self.searched = self.start;
        self.buffer.get(start..end)
    }

    /// Number of bytes that wait for their newline.
    pub fn waiting(&self) -> usize {
        self.buffer.len().saturating_sub(self.start)
    }

    /// Number of bytes of memory that the splitter holds.
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Drops the lines that were taken, and frees the memory if no bytes are left.
    fn release(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start.min(self.buffer.len()));
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(lines: &mut Lines, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for piece in pieces {
            lines.push(piece).unwrap();
            while let Some(line) = lines.next_line() {
                out.push(line.to_vec());
            }
        }
        out
    }

    #[test]
    fn a_line_longer_than_the_limit_is_an_error_and_frees_the_buffer() {
        let mut lines = Lines::new(10);
        assert_eq!(all(&mut lines, &[b"0123456789", b"\n"]), [b"0123456789"]);
        lines.push(b"01234567").unwrap();
        assert_eq!(lines.next_line(), None);
        assert_eq!(lines.push(b"890\n"), Err(LineTooLong { limit: 10 }));
        assert_eq!((lines.held(), lines.waiting(), lines.next_line()), (0, 0, None));
    }

    #[test]
    fn an_empty_splitter_holds_no_large_buffer() {
        let mut lines = Lines::default();
        let long = [vec![b'x'; 300_000], vec![b'\n']].concat();
        assert_eq!(all(&mut lines, &[&long]).len(), 1);
        assert_eq!(lines.held(), 0);
        all(&mut lines, &[b"rest"]);
        assert!(lines.held() <= KEPT && lines.waiting() == 4, "{}", lines.held());
    }

    proptest! {
        #[test]
        fn however_a_text_is_cut_the_lines_are_the_same(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cuts in proptest::collection::vec(0usize..60, 0..40),
        ) {
            let mut expected: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            let rest = expected.pop().unwrap_or_default();
            let (mut lines, mut pieces, mut left) = (Lines::default(), Vec::new(), text.as_slice());
            for cut in cuts {
                let (piece, tail) = left.split_at(cut.min(left.len()));
                pieces.push(piece);
                left = tail;
            }
            pieces.push(left);
            prop_assert_eq!(all(&mut lines, &pieces), expected);
            prop_assert_eq!(lines.waiting(), rest.len());
        }

        #[test]
        fn memory_stays_within_the_limit_and_one_piece(
            pieces in proptest::collection::vec(proptest::collection::vec(
                prop_oneof![1 => Just(b'\n'), 30 => Just(b'x')], 0..100), 0..60),
        ) {
            let mut lines = Lines::new(150);
            for piece in pieces {
                if lines.push(&piece).is_ok() {
                    while let Some(line) = lines.next_line() {
                        prop_assert!(line.len() <= 150 + 100);
                    }
                }
                // Vec grows by doubling.
                prop_assert!(lines.held() <= KEPT.max(2 * (150 + 100)), "{}", lines.held());
                prop_assert!(lines.waiting() <= 150);
            }
        }
    }
}
