//! `berth volumes`: the list of volumes.

use super::{read_state, select};
use crate::{
    error::Error,
    output::{self, Output},
    render::{self, volumes},
};
use berth_core::roots::Roots;
use clap::Args;

/// Options of `volumes`.
#[derive(Debug, Args)]
pub struct VolumesArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Also the volumes whose data is the pod's own or the node's: emptyDir, configMap, secret, projected and the like.
    #[arg(short, long)]
    all: bool,
    /// Only the volumes of this pod: namespace/pod, or less where that is unique.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &VolumesArgs) -> Result<(), Error> {
    let (shown, _) = select(read_state(roots, false).await?.pods, args.name.as_deref())?;
    let rows = volumes::rows(&shown, args.all || args.name.is_some(), |uid| roots.pod_dir(uid));
    match args.output {
        Output::Table => output::put_table(volumes::table(&rows), "No volumes."),
        Output::Json => output::put_json(&render::list(volumes::json(&rows))),
    }
}
