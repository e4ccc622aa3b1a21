//! The Service tables in the kernel as people see them, for `berth services`, `backends`, `trace`
//! and `bpf`.
//!
//! The tables are read from their pins, read-only. Names of Services come from the file that the
//! agent writes, names of pods from the agent or from its status files. So everything works while
//! the agent is dead. `list`, `check`, `trace` and `bpf` are pure: they turn what was read into
//! text or JSON.
//!
//! On failure: missing pins are an error; without names, ids and addresses are shown instead.

pub(crate) mod bpf;
pub(crate) mod check;
pub(crate) mod family;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden;
pub(crate) mod known;
pub(crate) mod list;
pub(crate) mod names;
mod pinned;
pub(crate) mod ports;
pub(crate) mod trace;

use crate::{error::Error, output, state};
use berth_api::{
    services::{self as file, ServicesFile},
    view::PodView,
};
use berth_core::{error::Chain, roots::Roots};
use berth_ebpf_abi::{V4, V6};
use berth_ebpf_loader::{Datapath, Pins};
use names::Names;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use ports::Port;
use std::path::Path;

/// The pin directory of the Service tables.
///
/// # Errors
/// [`Error::NoTables`] where nothing is pinned.
pub(crate) fn pins(roots: &Roots) -> Result<Pins, Error> {
    let none = |why| Error::NoTables { path: roots.bpf_pins.clone(), why };
    let parent = roots.bpf_pins.parent().unwrap_or(Path::new("/"));
    match statfs(parent) {
        Err(nix::errno::Errno::ENOENT) => return Err(none("no such directory")),
        Err(e) => return Err(Error::io(format!("examine {}", parent.display()))(e.into())),
        Ok(found) if found.filesystem_type() != BPF_FS_MAGIC => {
            return Err(none("it is on no BPF file system"));
        }
        Ok(_) => {}
    }
    let exists = roots.bpf_pins.try_exists();
    if !exists.map_err(Error::io(format!("examine {}", roots.bpf_pins.display())))? {
        return Err(none("nothing is pinned; no agent has loaded the programs"));
    }
    Ok(Pins::new(&roots.bpf_pins))
}

/// The file with the Services' names; `None`, with a line on standard error, where it cannot be
/// read.
fn services_file(roots: &Roots) -> Option<ServicesFile> {
    match file::read(roots) {
        Ok(Some(file)) => Some(file),
        Ok(None) => {
            output::notice("berth: Services are shown without names: the agent has left none");
            None
        }
        Err(e) => {
            output::notice(&format!("berth: Services are shown without names: {}", Chain(&e)));
            None
        }
    }
}

/// Names of Services and, where wanted, of pods; and these pods.
pub(crate) async fn names(roots: &Roots, with_pods: bool) -> (Names, Vec<PodView>) {
    let pods = match with_pods {
        false => Vec::new(),
        true => match state::read(roots, false).await {
            Ok(state) => {
                if let Some(offline) = &state.offline {
                    output::notice(&format!("berth: {}", offline.banner()));
                }
                state.pods
            }
            Err(e) => {
                output::notice(&format!("berth: pods are shown without names: {}", Chain(&e)));
                Vec::new()
            }
        },
    };
    (Names::new(services_file(roots), &pods), pods)
}

/// The Service ports of both families.
pub(crate) fn ports(datapath: &Datapath) -> Result<Vec<Port>, Error> {
    let mut ports = ports::ports(&family::read::<V4>(datapath)?);
    ports.extend(ports::ports(&family::read::<V6>(datapath)?));
    Ok(ports)
}
