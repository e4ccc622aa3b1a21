//! `berth services`: the Service ports in the kernel's tables, and `--check` of the tables.

use crate::{
    error::{self, Error},
    output::{self, Output},
    services::{
        self,
        check::{self, Findings},
        family,
        known::Known,
        list,
        names::Names,
    },
    table::plain,
};
use berth_api::services as file;
use berth_core::{error::Chain, roots::Roots};
use berth_ebpf_abi::{V4, V6};
use berth_ebpf_loader::{self as loader, Access, Datapath, OBJECT, Pins};
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// Pause before the second reading of inconsistent tables; longer than replaced chunks stay.
const SECOND_READING: Duration = Duration::from_millis(300);

/// Most notices that are printed below the table.
const NOTICES: usize = 10;

/// Options of `services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// Check that the tables are consistent, agree with the Services' names, the node and its pods,
    /// that the programs use them, and that no Service lacks anything. Exits with 1 where not.
    #[arg(long, conflicts_with = "name")]
    check: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only this Service: namespace/service, less where that is unique, or an address.
    name: Option<String>,
}

pub(crate) async fn run(roots: &Roots, args: &ServicesArgs) -> Result<u8, Error> {
    let pins = services::pins(roots)?;
    if args.check {
        return check(roots, &pins, args.output).await;
    }
    let (names, _) = services::names(roots, false).await;
    let ports = services::ports(&Datapath::open(&pins, Access::Read)?)?;
    let ports = names.select(ports, args.name.as_deref())?;
    match args.output {
        Output::Table => {
            output::put_table(list::services(&ports, &names), "No Services.")?;
            let old = names.notices.len().saturating_sub(NOTICES);
            for notice in names.notices.iter().skip(old) {
                output::notice(&format!("berth: {}", plain(notice)));
            }
        }
        Output::Json => output::put_json(&list::services_json(&ports, &names))?,
    }
    Ok(error::OK)
}

async fn check(roots: &Roots, pins: &Pins, output: Output) -> Result<u8, Error> {
    let (mut found, mut entries) = findings(roots, pins, &Known::read(roots).await)?;
    if !found.is_empty() {
        // The agent may have been writing during the first reading.
        tokio::time::sleep(SECOND_READING).await;
        let (again, now) = findings(roots, pins, &Known::read(roots).await)?;
        found.retain(|line| again.contains(line));
        entries = now;
    }
    match output {
        Output::Json => output::put_json(&json!({
            "apiVersion": "berth/v1", "kind": "ServiceCheck", "entries": entries, "problems": found,
        }))?,
        Output::Table if found.is_empty() => output::put(&format!("{entries} entries, no problems.\n"))?,
        Output::Table => output::put(&found.iter().map(|line| format!("{line}\n")).collect::<String>())?,
    }
    Ok(if found.is_empty() { error::OK } else { error::PROBLEM })
}

/// Findings of one reading of the tables, programs and names, and the number of Service entries
/// read.
fn findings(roots: &Roots, pins: &Pins, known: &Known) -> Result<(Findings, usize), Error> {
    // Other commands work without the file; for the check its absence is a finding.
    let (file, mut found) = match file::read(roots) {
        Ok(Some(file)) => (Some(file), Findings::new()),
        Ok(None) => (None, Findings::from(["services.json: missing, so Services have no names".to_owned()])),
        Err(e) => (None, Findings::from([format!("services.json: {}", Chain(&e))])),
    };
    let names = Names::new(file, &[]);
    // A notice to a Service's owner says that the tables do not carry what the Service asks for.
    found.extend(names.notices.iter().map(|notice| plain(notice)));
    found.extend(check::programs(&loader::report(pins, false)?, &loader::program_names(OBJECT)?));
    if let Err(e) = loader::check_pinned_maps(pins, OBJECT) {
        found.insert(Chain(&Error::from(e)).to_string());
    }
    let mut entries = 0;
    match Datapath::open(pins, Access::Read) {
        Ok(datapath) => {
            let (v4, v6) = (family::read::<V4>(&datapath)?, family::read::<V6>(&datapath)?);
            entries = v4.services.len().saturating_add(v6.services.len());
            found.extend(check::tables(&v4, &names));
            found.extend(check::tables(&v6, &names));
            let clients = datapath.client.entries()?;
            found.extend(known.check::<V4>(&datapath, &clients)?);
            found.extend(known.check::<V6>(&datapath, &clients)?);
        }
        Err(e) => drop(found.insert(Chain(&Error::from(e)).to_string())),
    }
    Ok((found, entries))
}
