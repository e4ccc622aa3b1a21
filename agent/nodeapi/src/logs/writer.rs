//! From records to the bytes of the answer. Pure.

use super::options::LogOptions;
use crate::LogRecord;
use berth_core::time::Wall;

/// Writer of the answer.
#[derive(Debug)]
pub(crate) struct LogWriter {
    timestamps: bool,
    since: Option<Wall>,
    /// Bytes that may still be written.
    left: u64,
    /// The last record did not end its line.
    inside_line: bool,
    buffer: Vec<u8>,
}

impl LogWriter {
    pub(crate) fn new(options: &LogOptions) -> LogWriter {
        LogWriter {
            timestamps: options.timestamps,
            since: options.since,
            left: options.limit.unwrap_or(u64::MAX),
            inside_line: false,
            buffer: Vec::new(),
        }
    }

    /// Adds a record. The text of a record that continues a line follows without a time of its own.
    pub(crate) fn take(&mut self, record: LogRecord<'_>) {
        let continues = std::mem::replace(&mut self.inside_line, record.partial);
        if self.since.is_some_and(|since| record.time < since) {
            return;
        }
        if self.timestamps && !continues {
            let time = jiff::Timestamp::from_nanosecond(i128::from(record.time.0)).unwrap_or_default();
            self.put(format!("{time:.9} ").as_bytes());
        }
        self.put(record.text);
        if !record.partial {
            self.put(b"\n");
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.buffer.extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.left = self.left.saturating_sub(room as u64);
    }

    /// Whether the limit of bytes is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The bytes since the last call.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(options: &LogOptions, records: &[(i64, bool, &str)]) -> String {
        let mut writer = LogWriter::new(options);
        for (time, partial, text) in records {
            writer.take(LogRecord { time: Wall(*time), partial: *partial, text: text.as_bytes() });
        }
        String::from_utf8(writer.bytes()).unwrap()
    }

    #[test]
    fn lines_are_as_the_container_wrote_them() {
        let records = [(1, false, "a"), (2, true, "b"), (3, false, "c"), (4, true, "end")];
        assert_eq!(written(&LogOptions::default(), &records), "a\nbc\nend");
        let timed = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(
            written(&timed, &records),
            "1970-01-01T00:00:00.000000001Z a\n1970-01-01T00:00:00.000000002Z bc\n1970-01-01T00:00:00.000000004Z end"
        );
        let since = LogOptions { since: Some(Wall(3)), ..LogOptions::default() };
        assert_eq!(written(&since, &records), "c\nend");
    }

    #[test]
    fn the_limit_counts_bytes_and_cuts_a_line() {
        let limited = |limit| LogOptions { limit: Some(limit), ..LogOptions::default() };
        let records = [(1, false, "abc"), (2, false, "def")];
        assert_eq!(written(&limited(5), &records), "abc\nd");
        assert_eq!(written(&limited(4), &records), "abc\n");
        assert_eq!(written(&limited(100), &records), "abc\ndef\n");
        let mut writer = LogWriter::new(&limited(2));
        writer.take(LogRecord { time: Wall(1), partial: false, text: b"abc" });
        assert!(writer.is_full());
    }
}
