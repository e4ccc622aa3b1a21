//! The CRI log format, without any IO: raw output is split into lines, lines become records, and
//! records are parsed again.
//!
//! A record is `<RFC 3339 time, nine digits> <stdout|stderr> <F|P> <text>
//! `. The tag `F` ends a line. The tag `P` means that the line continues in the stream's next
//! record. A line of more than [`MAX_LINE`] bytes is cut into `P` records of exactly that size.
//! Text after a stream's last newline becomes a `P` record when the stream ends. So the texts, each
//! followed by a newline where the tag is `F`, give back the raw bytes, with one exception: a
//! carriage return before a newline is dropped, as the CRI plugin does, so that lines from a
//! terminal read like other lines.
//!
//! Invariant: how the raw bytes were cut into reads has no influence on the records.

use berth_core::time::Wall;
use memchr::memchr;
use serde::{Deserialize, Serialize};

/// The longest text of a record in bytes: 16 KiB, as in the CRI plugin.
pub const MAX_LINE: usize = 16 * 1024;

/// Bytes of a record around its text: time, stream, tag, three blanks and the newline.
pub const OVERHEAD: usize = STAMP_LEN + 11;

/// Bytes of a formatted time, `2026-01-02T03:04:05.000000006Z`.
pub const STAMP_LEN: usize = 30;

/// One of a container's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output. With a terminal, all output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The stream's name in a record and of its FIFO. Both names have six letters.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// A line or a part of a line, without its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The line continues in the next piece.
    pub partial: bool,
    /// Text of at most [`MAX_LINE`] bytes.
    pub text: &'a [u8],
}

impl Piece<'_> {
    /// A piece of this text; a carriage return is dropped if the line is complete.
    fn of(text: &[u8], partial: bool) -> Piece<'_> {
        let line = text.strip_suffix(b"\r").filter(|_| !partial);
        Piece { partial, text: line.unwrap_or(text) }
    }
}

/// Splitter of one stream into pieces. Keeps the unfinished line, at most [`MAX_LINE`] bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Splitter {
    carry: Vec<u8>,
}

impl Splitter {
    /// Returns a splitter that continues an unfinished line. Bytes beyond [`MAX_LINE`] are dropped.
    pub fn resume(mut carry: Vec<u8>) -> Splitter {
        carry.truncate(MAX_LINE);
        Splitter { carry }
    }

    /// The unfinished line so far.
    pub fn carry(&self) -> &[u8] {
        &self.carry
    }

    /// Takes more output and emits every complete piece.
    pub fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MAX_LINE.saturating_sub(self.carry.len());
            // One byte more than fits decides whether the line ends here or is cut.
            let window = rest.get(..room.saturating_add(1)).unwrap_or(rest);
            let (text, partial, skip) = match memchr(b'\n', window) {
                Some(end) => (rest.get(..end), false, end.saturating_add(1)),
                None if rest.len() > room => (rest.get(..room), true, room),
                None => {
                    self.carry.extend_from_slice(rest);
                    return;
                }
            };
            let text = text.unwrap_or_default();
            if self.carry.is_empty() {
                emit(Piece::of(text, partial));
            } else {
                self.carry.extend_from_slice(text);
                emit(Piece::of(&self.carry, partial));
                self.carry.clear();
            }
            rest = rest.get(skip..).unwrap_or_default();
        }
    }

    /// Ends the stream: text without a newline is emitted as a partial line.
    pub fn finish(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        if !self.carry.is_empty() {
            emit(Piece { partial: true, text: &self.carry });
            self.carry = Vec::new();
        }
    }
}

/// A formatted time, shared by all records of one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(String);

impl Stamp {
    /// Formats a time as UTC with nine digits, so that the texts sort as the times do.
    pub fn new(wall: Wall) -> Stamp {
        let time = jiff::Timestamp::from_nanosecond(i128::from(wall.0)).unwrap_or_default();
        Stamp(format!("{time:.9}"))
    }

    /// The text as it stands in a record.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Appends one record.
pub fn encode(out: &mut Vec<u8>, stamp: &Stamp, stream: Stream, piece: Piece<'_>) {
    out.reserve(piece.text.len().saturating_add(OVERHEAD));
    out.extend_from_slice(stamp.0.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if piece.partial { b" P " } else { b" F " });
    out.extend_from_slice(piece.text);
    out.push(b'\n');
}

/// A parsed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Time at which logd read the text from the container.
    pub time: Wall,
    /// Stream of the text.
    pub stream: Stream,
    /// The line continues in this stream's next record.
    pub partial: bool,
    /// Text without its newline.
    pub text: &'a [u8],
}

/// Parses one record, with or without its newline. Returns None for a torn or foreign line.
///
/// The format allows further tags after the first, separated by `:`. They are ignored.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (time, rest) = line.split_at_checked(memchr(b' ', line)?)?;
    let rest = rest.get(1..)?;
    let (stream, rest) = rest.split_at_checked(memchr(b' ', rest)?)?;
    let rest = rest.get(1..)?;
    // The blank after the tag may be missing in a record without text.
    let (tags, text) = match memchr(b' ', rest) {
        Some(end) => (rest.get(..end)?, rest.get(end.saturating_add(1)..)?),
        None => (rest, [].as_slice()),
    };
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|b| *b == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    let time: jiff::Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
    let time = Wall(i64::try_from(time.as_nanosecond()).ok()?);
    Some(Record { time, stream, partial, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut splitter = Splitter::default();
        for chunk in chunks {
            splitter.push(chunk, |p| pieces.push((p.partial, p.text.to_vec())));
        }
        splitter.finish(|p| pieces.push((p.partial, p.text.to_vec())));
        pieces
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole_and_one_byte_more_is_cut() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        assert_eq!(split(&[&line]), [(false, vec![b'x'; MAX_LINE])]);
        line.insert(0, b'x');
        assert_eq!(split(&[&line]), [(true, vec![b'x'; MAX_LINE]), (false, b"x".to_vec())]);
    }

    #[test]
    fn empty_lines_carriage_returns_and_a_missing_last_newline_are_kept() {
        assert_eq!(
            split(&[b"\n\r\n", b"a\r", b"\nlast"]),
            [(false, vec![]), (false, vec![]), (false, b"a".to_vec()), (true, b"last".to_vec())]
        );
    }

    #[test]
    fn a_record_looks_as_the_format_says() {
        let mut out = Vec::new();
        let stamp = Stamp::new(Wall(1_700_000_000_000_000_042));
        encode(&mut out, &stamp, Stream::Stderr, Piece { partial: false, text: b"a b" });
        assert_eq!(out, b"2023-11-14T22:13:20.000000042Z stderr F a b\n");
        assert_eq!(out.len(), OVERHEAD + 3);
        assert_eq!(stamp.as_str().len(), STAMP_LEN);
    }

    #[test]
    fn foreign_times_and_tags_are_read_and_torn_lines_are_not() {
        let r = parse(b"2016-10-06T00:17:09.669794202+02:00 stdout P:x:y log").unwrap();
        assert_eq!((r.partial, r.text, r.time.0), (true, b"log".as_slice(), 1_475_705_829_669_794_202));
        assert_eq!(parse(b"2016-10-06T00:17:09Z stderr F").unwrap().text, b"");
        for bad in
            ["", " ", "x stdout F a", "2016-10-06T00:17:09Z std F a", "2016-10-06T00:17:09Z stdout G a"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    /// Lines around the limit, newlines, and arbitrary bytes.
    fn raw() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            3 => proptest::collection::vec(any::<u8>(), 0..200),
            2 => (MAX_LINE - 2..MAX_LINE + 3).prop_map(|n| vec![b'x'; n]),
            1 => (0usize..40_000).prop_map(|n| vec![b'y'; n]),
            2 => Just(b"\n".to_vec()),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_chunking_gives_the_same_pieces(raw in raw(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(raw.len() + 1)).collect();
            at.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for to in at {
                chunks.push(&raw[from..to]);
                from = to;
            }
            chunks.push(&raw[from..]);
            prop_assert_eq!(split(&[&raw]), split(&chunks));
        }

        #[test]
        fn decoding_gives_back_the_raw_bytes_without_carriage_returns_of_newlines(raw in raw(), time in any::<i64>()) {
            let mut out = Vec::new();
            let stamp = Stamp::new(Wall(time));
            for (partial, text) in split(&[&raw]) {
                prop_assert!(text.len() <= MAX_LINE);
                encode(&mut out, &stamp, Stream::Stdout, Piece { partial, text: &text });
            }
            let mut back = Vec::new();
            for line in out.split_inclusive(|b| *b == b'\n') {
                let record = parse(line).unwrap();
                prop_assert_eq!(record.time, Wall(time));
                back.extend_from_slice(record.text);
                if !record.partial {
                    back.push(b'\n');
                }
            }
            let mut wanted = Vec::new();
            for byte in raw {
                if byte == b'\n' && wanted.last() == Some(&b'\r') {
                    wanted.pop();
                }
                wanted.push(byte);
            }
            prop_assert_eq!(back, wanted);
        }

        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(record) = parse(&line) {
                prop_assert!(record.text.len() < line.len());
            }
        }
    }
}
