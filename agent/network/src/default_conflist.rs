//! The configuration of `berth-cni`, for nodes that have none of another network.

use crate::{Error, conflist};
use ipnet::IpNet;
use serde_json::json;
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

const NAME: &str = "10-berth.conflist";

/// Writes `10-berth.conflist` with pods' addresses from `subnets` (one of each family) and returns its path; `None`
/// where the directory holds another's configuration, which then stays in force. The file appears whole or not at all.
/// The journal lies where the plugin keeps it by default, `/var/lib/berth/cni`.
pub fn write_default_conflist(dir: &Path, subnets: &[IpNet]) -> Result<Option<PathBuf>, Error> {
    write(dir, subnets, None)
}

/// The same for a node whose state lies elsewhere: `data_dir` (absolute) is where the plugin keeps its journal. Two
/// nodes of one machine must not share it.
pub fn write_default_conflist_with(
    dir: &Path,
    subnets: &[IpNet],
    data_dir: &Path,
) -> Result<Option<PathBuf>, Error> {
    write(dir, subnets, Some(data_dir))
}

fn write(dir: &Path, subnets: &[IpNet], data_dir: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    let path = dir.join(NAME);
    match conflist::first_file(dir) {
        Ok(first) if first != path => return Ok(None),
        Ok(_) | Err(Error::NoConflist { .. }) => {}
        Err(e) => return Err(e),
    }
    let mut plugin = json!({ "type": "berth-cni", "subnets": subnets });
    if let Some(data_dir) = data_dir {
        plugin["dataDir"] = json!(data_dir);
    }
    let text = json!({ "cniVersion": "1.1.0", "name": "berth", "plugins": [plugin] });
    let bytes = format!("{text:#}\n");
    match fs::read(&path) {
        // Rewriting what is there would wake everyone who watches it.
        Ok(there) if there == bytes.as_bytes() => return Ok(Some(path)),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::file("read", &path)(e)),
    }
    // Its name ends in neither .conflist, .conf nor .json: no runtime reads it.
    let new = dir.join(".10-berth.conflist.new");
    let written = fs::File::create(&new).and_then(|mut f| {
        f.write_all(bytes.as_bytes())?;
        f.sync_all()
    });
    written.map_err(Error::file("write", &new))?;
    fs::rename(&new, &path).map_err(Error::file("rename", &new))?;
    Ok(Some(path))
}
