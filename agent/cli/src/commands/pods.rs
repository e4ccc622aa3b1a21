//! `berth pods`: the list of pods. `--watch` is in [`watch`](super::watch).

use super::{read_state, select, watch};
use crate::{
    error::Error,
    output::{self, PodOutput},
    render::{self, pods},
};
use berth_core::roots::Roots;
use berth_sys::clock;
use clap::Args;

/// Options of `pods`.
#[derive(Debug, Args)]
pub struct PodsArgs {
    /// Watch for changes after listing.
    #[arg(short, long)]
    watch: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: PodOutput,
    /// Only this pod: namespace/pod, or less where that is unique.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &PodsArgs) -> Result<(), Error> {
    if args.watch {
        return watch::run(roots, args.output, args.name.as_deref()).await;
    }
    let (shown, _) = select(read_state(roots, false).await?.pods, args.name.as_deref())?;
    let form = if args.output == PodOutput::Wide { pods::Form::Wide } else { pods::Form::Table };
    match args.output {
        PodOutput::Table | PodOutput::Wide => {
            let mut table = pods::table(form);
            let now = clock::wall();
            shown.iter().for_each(|view| pods::row(&mut table, form, view, now));
            output::put_table(table, "No pods.")
        }
        PodOutput::Name => output::put(&shown.iter().map(|v| format!("{}\n", v.key)).collect::<String>()),
        PodOutput::Json => {
            let mut objects: Vec<_> = shown.into_iter().map(|v| v.object).collect();
            match (args.name.is_some(), objects.pop()) {
                (true, Some(one)) => output::put_json(&one),
                (_, last) => {
                    objects.extend(last);
                    output::put_json(&render::list(objects))
                }
            }
        }
    }
}
