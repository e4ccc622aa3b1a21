//! CNI configuration lists: selection of the file, and parsing.

use crate::Error;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The supported versions of the CNI specification, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The largest configuration file in bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// Configuration of one plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// `type`: the name of the plugin's binary.
    pub kind: String,
    /// The object as in the file.
    pub raw: Map<String, Value>,
}

/// A CNI network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// The file.
    pub path: PathBuf,
    /// `name`.
    pub name: String,
    /// The newest version that both the list and this crate support (`cniVersion`, `cniVersions`).
    pub version: &'static str,
    /// `disableCheck`.
    pub disable_check: bool,
    /// `disableGC`.
    pub disable_gc: bool,
    /// `plugins`, in order.
    pub plugins: Vec<PluginConfig>,
}

impl Conflist {
    /// Loads the active configuration: the first file of the directory by name that ends in
    /// `.conflist`, `.conf` or `.json`. An invalid first file is an error; the next file is not
    /// tried.
    pub fn load(dir: &Path) -> Result<Conflist, Error> {
        let path = first_file(dir)?;
        let length = fs::metadata(&path).map_err(Error::file("look at", &path))?.len();
        if length > LARGEST_FILE {
            let reason = format!("is longer than {LARGEST_FILE} bytes");
            return Err(Error::ConflistField { path, field: "the file".into(), reason });
        }
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let mut list = Conflist::parse(&path, &bytes)?;
        if !inlined_only(&bytes) {
            list.add_from(&dir.join(&list.name))?;
        }
        Ok(list)
    }

    /// Parses a list, or a single plugin's configuration as a list of one. `path` appears in
    /// errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Conflist, Error> {
        let object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|source| Error::ConflistSyntax { path: path.to_owned(), source })?;
        let wrong = |field: &str, reason: &str| field_error(path, field, reason);
        let text = |field: &str| match object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(wrong(field, "is not a string")),
        };
        let name = text("name")?.ok_or_else(|| wrong("name", "is missing"))?;
        if !is_name(name) {
            return Err(wrong(
                "name",
                "must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit",
            ));
        }
        let flag = |field: &str| match object.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            // The specification also allows these words.
            Some(Value::String(word)) if word == "true" || word == "false" => Ok(word == "true"),
            Some(_) => Err(wrong(field, "is not true or false")),
        };
        let version = version(path, &object, text("cniVersion")?)?;
        let plugins = plugins(path, &object)?;
        Ok(Conflist {
            path: path.to_owned(),
            name: name.to_owned(),
            version,
            disable_check: flag("disableCheck")?,
            disable_gc: flag("disableGC")?,
            plugins,
        })
    }

    /// Whether the version in use is at least `version`.
    pub fn speaks(&self, version: &str) -> bool {
        let place = |v: &str| VERSIONS.iter().position(|known| *known == v);
        place(self.version) >= place(version)
    }

    /// The subnets of pod addresses, as far as the plugins' usual keys contain them (`subnet`,
    /// `subnets`, `ranges`, in the plugin's object or its `ipam`).
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        let mut found = Vec::new();
        for plugin in &self.plugins {
            let ipam = plugin.raw.get("ipam").and_then(Value::as_object);
            for object in std::iter::once(&plugin.raw).chain(ipam) {
                let single = object.get("subnet");
                let list = object.get("subnets").and_then(Value::as_array).into_iter().flatten();
                let sets = object.get("ranges").and_then(Value::as_array).into_iter().flatten();
                let ranges = sets.filter_map(Value::as_array).flatten().filter_map(|r| r.get("subnet"));
                for text in single.into_iter().chain(list).chain(ranges).filter_map(Value::as_str) {
                    if let Ok(subnet) = text.parse::<IpNet>() {
                        found.push(subnet.trunc());
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// Appends the plugins of `<configuration directory>/<name>/*.conf` (CNI 1.1, unless
    /// `loadOnlyInlinedPlugins`).
    fn add_from(&mut self, dir: &Path) -> Result<(), Error> {
        let mut paths = match list(dir) {
            Ok(paths) => paths,
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        paths.retain(|p| p.extension().is_some_and(|e| e == "conf"));
        for path in paths {
            let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
            let value = serde_json::from_slice(&bytes)
                .map_err(|source| Error::ConflistSyntax { path: path.clone(), source })?;
            self.plugins.push(PluginConfig::parse(&path, "", &value)?);
        }
        Ok(())
    }
}

/// The newest version that the list offers and this crate supports. `single` is `cniVersion`.
fn version(path: &Path, object: &Map<String, Value>, single: Option<&str>) -> Result<&'static str, Error> {
    let mut offered: Vec<&str> = single.into_iter().collect();
    match object.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => {
            for (i, version) in list.iter().enumerate() {
                let wrong = || field_error(path, &format!("cniVersions[{i}]"), "is not a string");
                offered.push(version.as_str().ok_or_else(wrong)?);
            }
        }
        Some(_) => return Err(field_error(path, "cniVersions", "is not a list")),
    }
    VERSIONS.into_iter().rev().find(|v| offered.contains(v)).ok_or_else(|| {
        let all = VERSIONS.join(", ");
        let reason = format!("has none of the supported versions {all}, but {offered:?}");
        field_error(path, "cniVersion", &reason)
    })
}

/// The plugins of a list, or the single plugin that the object configures.
fn plugins(path: &Path, object: &Map<String, Value>) -> Result<Vec<PluginConfig>, Error> {
    let wrong = |reason| Err(field_error(path, "plugins", reason));
    match object.get("plugins") {
        Some(Value::Array(plugins)) if plugins.is_empty() => wrong("is empty"),
        Some(Value::Array(plugins)) if plugins.len() > 64 => wrong("has more than 64"),
        Some(Value::Array(plugins)) => {
            let plugin = |(i, plugin)| PluginConfig::parse(path, &format!("plugins[{i}]"), plugin);
            plugins.iter().enumerate().map(plugin).collect()
        }
        Some(_) => wrong("is not a list"),
        None if object.contains_key("type") => {
            Ok(vec![PluginConfig::parse(path, "", &Value::Object(object.clone()))?])
        }
        None => wrong("is missing"),
    }
}

impl PluginConfig {
    pub(crate) fn parse(path: &Path, field: &str, value: &Value) -> Result<PluginConfig, Error> {
        let at = |key: &str| if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
        let raw = value.as_object().ok_or_else(|| field_error(path, field, "is not an object"))?;
        let kind = match raw.get("type") {
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(field_error(path, &at("type"), "is not a string")),
            None => return Err(field_error(path, &at("type"), "is missing")),
        };
        // The name becomes a path below the plugin directory.
        if !is_name(kind) {
            return Err(field_error(path, &at("type"), "must be the plain name of a binary"));
        }
        for key in ["ipam", "capabilities"] {
            if raw.get(key).is_some_and(|v| !v.is_object() && !v.is_null()) {
                return Err(field_error(path, &at(key), "is not an object"));
            }
        }
        Ok(PluginConfig { kind: kind.clone(), raw: raw.clone() })
    }

    /// Whether the plugin accepts this capability's argument.
    pub(crate) fn wants(&self, capability: &str) -> bool {
        wants(&self.raw, capability)
    }
}

/// Plugins that may stand beside our own in a list whose pods bypass the host's stack. They either
/// do not act on packets there, or translate connections only when they begin.
const PASSIVE_PLUGINS: [&str; 2] = ["portmap", "tuning"];

/// Whether our own plugin is the first of a list, and no other plugin adds rules or queues to the
/// path of packets.
pub(crate) fn bypasses_host_stack(plugins: &[Map<String, Value>]) -> bool {
    let mut kinds =
        plugins.iter().map(|plugin| plugin.get("type").and_then(Value::as_str).unwrap_or_default());
    kinds.next() == Some("berth-cni") && kinds.all(|kind| PASSIVE_PLUGINS.contains(&kind))
}

/// Whether a plugin's object accepts this capability's argument.
pub(crate) fn wants(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|c| c.get(capability)) == Some(&Value::Bool(true))
}

/// Whether a text is a valid name of a network, plugin or sandbox, and so may be a file name.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The first configuration file of the directory, by name.
pub(crate) fn first_file(dir: &Path) -> Result<PathBuf, Error> {
    let paths = match list(dir) {
        Ok(paths) => paths,
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let wanted = |p: &PathBuf| p.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
    paths.into_iter().find(wanted).ok_or_else(|| Error::NoConflist { dir: dir.to_owned() })
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::file("list", dir))?;
    let paths: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(Error::file("list", dir))?;
    paths.retain(|p| p.is_file());
    paths.sort();
    Ok(paths)
}

fn inlined_only(bytes: &[u8]) -> bool {
    let object: Option<Map<String, Value>> = serde_json::from_slice(bytes).ok();
    object.is_some_and(|o| {
        o.get("loadOnlyInlinedPlugins") == Some(&Value::Bool(true)) || !o.contains_key("plugins")
    })
}

fn field_error(path: &Path, field: &str, reason: &str) -> Error {
    let field = if field.is_empty() { "the file" } else { field };
    Error::ConflistField { path: path.to_owned(), field: field.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_plugin_leaves_the_hosts_stack_out() {
        let list = |kinds: &[&str]| {
            let one = |kind: &&str| Map::from_iter([("type".to_owned(), Value::from(*kind))]);
            kinds.iter().map(one).collect::<Vec<_>>()
        };
        for clear in [&["berth-cni"][..], &["berth-cni", "portmap"], &["berth-cni", "tuning", "portmap"]] {
            assert!(bypasses_host_stack(&list(clear)), "{clear:?}");
        }
        for not in [
            &[][..],
            &["bridge"],
            &["portmap"],
            &["berth-cni", "bandwidth"],
            &["berth-cni", "firewall"],
            &["bridge", "berth-cni"],
            &["calico"],
        ] {
            assert!(!bypasses_host_stack(&list(not)), "{not:?}");
        }
        assert!(!bypasses_host_stack(&[Map::new()]));
    }
}
