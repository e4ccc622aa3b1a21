//! `berth events`: the list of events.

use super::{read_state, select};
use crate::{
    error::Error,
    output::{self, Output},
    render::{self, events},
    state::State,
};
use berth_core::{event::EventRecord, roots::Roots};
use berth_sys::clock;
use clap::Args;

/// Options of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only the events of this pod or Service.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &EventsArgs) -> Result<(), Error> {
    let State { pods, mut events, .. } = read_state(roots, true).await?;
    if let Some(name) = &args.name {
        let of_service = |e: &EventRecord| events::is_of_service(e, name);
        let has_service = events.iter().any(of_service);
        let shown = match select(pods, Some(name)) {
            Ok((shown, _)) => shown,
            Err(Error::NotFound(_)) if has_service => Vec::new(),
            Err(e) => return Err(e),
        };
        events.retain(|e| of_service(e) || shown.iter().any(|p| e.involved.is_pod(&p.uid)));
    }
    match args.output {
        Output::Table => output::put_table(events::table(&events, clock::wall()), "No events."),
        Output::Json => output::put_json(&render::list(events::json(&events))),
    }
}
