//! Output of the commands: the `-o` options, and writes to standard output and standard error. A
//! closed standard output (`berth pods | head -1`) ends the command quietly.

use crate::{error::Error, table::Table};
use clap::{Args, ValueEnum};
use std::{
    io::{self, Write},
    os::fd::BorrowedFd,
};

/// Output format of most commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Output format of commands that list pods or containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PodOutput {
    /// A table for people.
    Table,
    /// A table with more columns.
    Wide,
    /// JSON for programs.
    Json,
    /// Names only, one a line.
    Name,
}

/// Options of commands that have no others.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// The terminal's width in columns; `None` where standard output is no terminal, so that programs
/// get whole cells.
pub(crate) fn columns() -> Option<usize> {
    columns_of(rustix::stdio::stdout())
}

/// The same of standard error.
pub(crate) fn error_columns() -> Option<usize> {
    columns_of(rustix::stdio::stderr())
}

fn columns_of(stream: BorrowedFd<'_>) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Writes progress to standard error.
pub(crate) fn progress(text: &str) {
    let mut err = io::stderr().lock();
    // Progress that cannot be shown is no failure of the command.
    err.write_all(text.as_bytes()).and_then(|()| err.flush()).ok();
}

/// Writes text to standard output and flushes it.
pub(crate) fn put(text: &str) -> Result<(), Error> {
    put_bytes(text.as_bytes())
}

/// Writes bytes to standard output and flushes them.
pub(crate) fn put_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Error::output)
}

/// Writes a table, fitted to the terminal. An empty table writes `none` to standard error instead.
pub(crate) fn put_table(mut table: Table, none: &str) -> Result<(), Error> {
    if table.len() == 0 {
        notice(none);
        return Ok(());
    }
    table.fit(columns());
    put(&table.take())
}

/// Writes indented JSON with a newline at its end.
pub(crate) fn put_json(value: &serde_json::Value) -> Result<(), Error> {
    put(&pretty(value)?)
}

/// Indented JSON with a newline at its end.
pub(crate) fn pretty(value: &serde_json::Value) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

/// Writes a line to standard error.
pub(crate) fn notice(line: &str) {
    let mut err = io::stderr().lock();
    // A closed standard error leaves no place to report that it is closed.
    writeln!(err, "{line}").ok();
}
