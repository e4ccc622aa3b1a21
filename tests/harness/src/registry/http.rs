//! HTTP/1.1 as far as a registry's clients need it: requests with small bodies, answers with a known length.

use std::io::{self, BufRead, Read, Write};

/// The longest line of a request.
const MAX_LINE: u64 = 16 << 10;
/// The largest body of a request.
const MAX_BODY: usize = 64 << 10;

/// A request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(super) method: String,
    /// Path without the query.
    pub(super) path: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The value of a header; `name` is in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of a range that goes to the end.
    pub(super) fn range(&self) -> Option<u64> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.0.parse().ok()
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(bytes).map_err(|_bytes| io::ErrorKind::InvalidData)?;
    Ok(Some(text.trim_end().to_owned()))
}

/// Reads a request; `None` at the end of the connection.
pub(super) fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(first) = line(reader)? else { return Ok(None) };
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let mut request = Request { method, path, ..Request::default() };
    while let Some(header) = line(reader)?.filter(|l| !l.is_empty()) {
        if let Some((key, value)) = header.split_once(':') {
            request.headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let length: usize = request.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    request.body = vec![0; length.min(MAX_BODY)];
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Writes the head of an answer.
pub(super) fn head(
    writer: &mut impl Write,
    status: u16,
    headers: &[(&str, String)],
    length: u64,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Test\r\nContent-Length: {length}\r\n");
    for (key, value) in headers {
        text.push_str(&format!("{key}: {value}\r\n"));
    }
    text.push_str("\r\n");
    writer.write_all(text.as_bytes())
}
