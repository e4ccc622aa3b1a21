//! `berth ps`: the list of containers.

use super::{read_state, select};
use crate::{
    error::Error,
    output::{self, PodOutput, put_table},
    render::ps,
};
use berth_core::roots::Roots;
use berth_sys::clock;
use clap::Args;

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: PodOutput,
    /// Only the containers of this pod (namespace/pod), or only this one (namespace/pod/container);
    /// less where that is unique.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &PsArgs) -> Result<(), Error> {
    let (shown, resolved) = select(read_state(roots, false).await?.pods, args.name.as_deref())?;
    let only = resolved.and_then(|r| r.container);
    let only = only.as_deref();
    match args.output {
        PodOutput::Table => put_table(ps::table(&shown, only, false, clock::wall()), "No containers."),
        PodOutput::Wide => put_table(ps::table(&shown, only, true, clock::wall()), "No containers."),
        PodOutput::Json => output::put_json(&ps::json(&shown, only)),
        PodOutput::Name => output::put(&ps::names(&shown, only)),
    }
}
