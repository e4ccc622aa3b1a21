//! The configuration of `berth-cni`, for nodes without another network configuration.

use crate::{Error, conflist};
use ipnet::IpNet;
use serde_json::json;
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

const NAME: &str = "10-berth.conflist";

/// Writes `10-berth.conflist` with the pod addresses `subnets` (one of each family) and returns its
/// path. Returns None if the directory contains another configuration, which then stays active. The
/// file is written atomically. The plugin keeps its journal in its default place,
/// `/var/lib/berth/cni`.
pub fn write_default_conflist(dir: &Path, subnets: &[IpNet]) -> Result<Option<PathBuf>, Error> {
    write(dir, subnets, None)
}

/// Like [`write_default_conflist`], for a node whose state is elsewhere: the plugin keeps its
/// journal in `data_dir` (absolute). Two nodes on one machine must not share it.
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
        // Rewriting an equal file would wake every process that watches it.
        Ok(there) if there == bytes.as_bytes() => return Ok(Some(path)),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::file("read", &path)(e)),
    }
    // The name has none of the suffixes of configuration files, so no runtime reads it.
    let new = dir.join(".10-berth.conflist.new");
    let written = fs::File::create(&new).and_then(|mut f| {
        f.write_all(bytes.as_bytes())?;
        f.sync_all()
    });
    written.map_err(Error::file("write", &new))?;
    fs::rename(&new, &path).map_err(Error::file("rename", &new))?;
    Ok(Some(path))
}
