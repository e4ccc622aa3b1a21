//! `berth describe`: the details of one object.

use super::{read_state, select};
use crate::{
    error::Error,
    output::{self, Output},
    render::describe,
    state::State,
};
use berth_core::roots::Roots;
use berth_sys::clock;
use clap::{Args, Subcommand};

/// Kinds of objects that can be described.
#[derive(Debug, Subcommand)]
pub enum Describe {
    /// A pod: its containers, conditions, volumes and events, and the last actions on it.
    #[command(visible_alias = "pods", alias = "po")]
    Pod(NamedArgs),
}

/// Options of commands about one pod.
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// namespace/pod, or less where that is unique.
    name: String,
}

pub(crate) async fn run(roots: &Roots, args: &NamedArgs) -> Result<(), Error> {
    let State { pods, offline, events } = read_state(roots, true).await?;
    let (mut shown, _) = select(pods, Some(&args.name))?;
    let Some(view) = shown.pop() else { return Err(Error::no_pod(&args.name)) };
    let events: Vec<_> = events.into_iter().filter(|e| e.involved.is_pod(&view.uid)).collect();
    match args.output {
        Output::Table => output::put(&describe::page(&view, &events, offline.as_ref(), clock::wall())),
        Output::Json => {
            let mut whole = serde_json::to_value(&view)?;
            if let Some(fields) = whole.as_object_mut() {
                fields.insert("events".to_owned(), serde_json::to_value(&events)?);
            }
            output::put_json(&whole)
        }
    }
}
