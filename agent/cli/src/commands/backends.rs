//! `berth backends`: the backends of Services.

use crate::{
    error::Error,
    output::{self, Output},
    services::{self, list},
};
use berth_core::roots::Roots;
use berth_ebpf_loader::{Access, Datapath};
use clap::Args;

/// Options of `backends`.
#[derive(Debug, Args)]
pub struct BackendsArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only the backends of this Service: namespace/service, less where that is unique, or an
    /// address.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &BackendsArgs) -> Result<(), Error> {
    let pins = services::pins(roots)?;
    let (names, _) = services::names(roots, true).await;
    let ports = services::ports(&Datapath::open(&pins, Access::Read)?)?;
    let ports = names.select(ports, args.name.as_deref())?;
    match args.output {
        Output::Table => output::put_table(list::backends(&ports, &names), "No backends."),
        Output::Json => output::put_json(&list::backends_json(&ports, &names)),
    }
}
