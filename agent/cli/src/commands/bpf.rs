//! `berth bpf`: the eBPF programs, links and maps in the kernel.

use crate::{
    error::{self, Error},
    output::{self, Output},
    services::{self, bpf::Page},
};
use berth_core::{error::Chain, roots::Roots};
use berth_ebpf_loader::{self as loader, Access, Datapath, OBJECT};

pub(crate) fn run(roots: &Roots, output: Output) -> Result<u8, Error> {
    let pins = services::pins(roots)?;
    let opened = Datapath::open(&pins, Access::Read);
    let counters = opened.as_ref().ok().map(|d| d.count.sums()).transpose()?;
    let checked = opened.map(drop).and_then(|()| loader::check_pinned_maps(&pins, OBJECT));
    let page = Page {
        pins: pins.root().display().to_string(),
        object: pins.loaded_digest()?,
        report: loader::report(&pins, true)?,
        counters: counters.unwrap_or_default(),
        unreadable: checked.err().map(|e| Chain(&Error::from(e)).to_string()),
    };
    match output {
        Output::Table => output::put(&page.text())?,
        Output::Json => output::put_json(&page.json())?,
    }
    Ok(if page.problems().is_empty() { error::OK } else { error::PROBLEM })
}
