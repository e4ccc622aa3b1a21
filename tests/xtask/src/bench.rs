//! `cargo xtask bench`: figures, each beside its yardstick.

use anyhow::{Result, bail};
use std::path::PathBuf;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure: pod-start, idle.
    name: String,
    /// Write the figures there, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures; `Ok(false)` where a figure is over its bound.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let _ = &args.json;
    bail!("there is no bench {}", args.name)
}
