//! Writing to the user. A reader who has gone (`berth pods | head -1`) ends the command quietly.

use crate::error::Error;
use std::io::{self, Write};

/// How many columns the screen has; `None` where the output is no terminal, so that programs get all there is.
pub(crate) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Writes to standard output at once.
pub(crate) fn put(text: &str) -> Result<(), Error> {
    put_bytes(text.as_bytes())
}

/// Writes bytes to standard output at once.
pub(crate) fn put_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Error::output)
}

/// JSON for people and programs: indented, a newline at the end.
pub(crate) fn put_json(value: &serde_json::Value) -> Result<(), Error> {
    put(&pretty(value)?)
}

/// The same as text.
pub(crate) fn pretty(value: &serde_json::Value) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

/// A line on standard error. Where that is closed there is nobody to tell.
pub(crate) fn tell(line: &str) {
    let mut err = io::stderr().lock();
    writeln!(err, "{line}").ok();
}
