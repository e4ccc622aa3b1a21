//! The names of the Service ports in the kernel's tables: `<runtime_state>/services.json`, replaced
//! as a whole at each change. Commands read it while no agent runs, and the tables themselves from
//! their pins.

use crate::Error;
use berth_core::{ids::PodKey, roots::Roots, time::Wall};
use serde::{Deserialize, Serialize};
use std::{fs, io, net::SocketAddr};

/// Contents of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServicesFile {
    /// The time of the write.
    pub as_of: Wall,
    /// Every Service port that has an id in the tables.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
    /// Facts about Services that the tables do not carry, for people: conflicts and unsupported parts.
    #[serde(default)]
    pub notices: Vec<String>,
    /// The next free id, where the next agent continues; 0 in a file without it.
    #[serde(default)]
    pub next_id: u32,
}

/// The name of an id in the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// The id in the tables of its family.
    pub id: u32,
    /// Whether the id is of the IPv6 tables.
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

/// Reads the file; `None` where no agent has written one.
///
/// # Errors
/// The file cannot be read, or is not what an agent writes.
pub fn read(roots: &Roots) -> Result<Option<ServicesFile>, Error> {
    let path = roots.services_file();
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(file) => Ok(Some(file)),
            Err(e) => Err(Error::File { path, source: e.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path, source }),
    }
}
