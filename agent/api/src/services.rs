//! The names of what the kernel's Service tables hold, for commands that work with the agent dead:
//! `<runtime_state>/services.json`, replaced as a whole when they change. The tables themselves are read from their pins.

use crate::Error;
use berth_core::{ids::PodKey, roots::Roots, time::Wall};
use serde::{Deserialize, Serialize};
use std::{fs, io, net::SocketAddr, path::PathBuf};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServicesFile {
    /// When it was written.
    pub as_of: Wall,
    /// Every Service port that has an id in the tables.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
    /// What Services could not have, for people: conflicts, what is not carried.
    #[serde(default)]
    pub notices: Vec<String>,
}

/// What an id in the tables stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// The id in the tables of its family.
    pub id: u32,
    /// Whether it is in the IPv6 tables.
    pub v6: bool,
    /// The Service.
    pub service: PodKey,
    /// The port's name, empty where a Service has one unnamed port.
    pub port: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The frontends: address (unspecified for a NodePort) and port.
    #[serde(rename = "fronts")]
    pub frontends: Vec<SocketAddr>,
}

/// Where it lies.
pub fn file(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("services.json")
}

/// What was published; `None` where nothing was.
///
/// # Errors
/// The file cannot be read, or is not what an agent writes.
pub fn read(roots: &Roots) -> Result<Option<ServicesFile>, Error> {
    let path = file(roots);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(file) => Ok(Some(file)),
            Err(e) => Err(Error::File { path, source: e.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path, source }),
    }
}
