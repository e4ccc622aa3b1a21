//! Attachment files, one a sandbox: the configuration that the sandbox was attached with, and the
//! result.
//!
//! A file has a line of JSON before ADD runs and, once ADD has succeeded, a second line with the
//! result. The last line that can be parsed counts, so a line cut short by a full disk loses only
//! itself.

use crate::{Attachment, Conflist, Error, PluginConfig, conflist};
use berth_core::ids::{BootId, PodKey, PodUid};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Record of an attachment: everything that DEL, CHECK and adoption need, even if the configuration
/// has changed since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The boot in which the sandbox was attached.
    pub(crate) boot: BootId,
    /// `CNI_CONTAINERID`.
    pub(crate) sandbox: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// Path at which the network namespace is pinned.
    pub(crate) netns: PathBuf,
    /// Inode of the network namespace, because the path may name another one later.
    pub(crate) netns_inode: u64,
    /// The pod's UID.
    pub(crate) uid: PodUid,
    /// The pod's namespace and name.
    pub(crate) key: PodKey,
    /// The pod's labels at ADD.
    pub(crate) labels: BTreeMap<String, String>,
    /// `name` of the configuration list.
    pub(crate) network: String,
    /// The CNI version used with the plugins.
    pub(crate) version: String,
    /// `disableCheck`.
    pub(crate) disable_check: bool,
    /// The plugins' configuration objects, in order.
    pub(crate) plugins: Vec<Map<String, Value>>,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// Capability arguments by capability, for `runtimeConfig`.
    pub(crate) capabilities: Map<String, Value>,
    /// The last plugin's result; None until ADD has succeeded.
    pub(crate) result: Option<Value>,
}

impl Record {
    /// The configuration list that the sandbox was attached with.
    pub(crate) fn conflist(&self, path: &Path) -> Result<Conflist, Error> {
        let wrong = |field: &str, reason: &str| Error::ConflistField {
            path: path.to_owned(),
            field: field.into(),
            reason: reason.into(),
        };
        let known = conflist::VERSIONS.into_iter().find(|v| *v == self.version);
        if !conflist::is_name(&self.network) {
            return Err(wrong("network", "is not a name"));
        }
        let plugin = |(i, raw): (usize, &Map<String, Value>)| {
            PluginConfig::parse(path, &format!("plugins[{i}]"), &Value::Object(raw.clone()))
        };
        Ok(Conflist {
            path: path.to_owned(),
            name: self.network.clone(),
            version: known.ok_or_else(|| wrong("version", "is not a supported one"))?,
            disable_check: self.disable_check,
            disable_gc: true,
            plugins: self.plugins.iter().enumerate().map(plugin).collect::<Result<_, _>>()?,
        })
    }

    /// The attachment, if ADD has succeeded.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        Attachment::of("in the attachment file", self.result.clone()?).ok()
    }

    /// Names of the pod's capability arguments that no plugin of the list accepts (`capabilities`
    /// of a plugin's object). What they ask for is not provided.
    pub(crate) fn unserved(&self) -> Vec<String> {
        let names = self.capabilities.keys();
        names.filter(|name| !self.plugins.iter().any(|p| conflist::wants(p, name))).cloned().collect()
    }
}

/// The directory of attachment files.
#[derive(Debug, Clone)]
pub(crate) struct Attachments {
    dir: PathBuf,
}

impl Attachments {
    pub(crate) fn open(dir: PathBuf) -> Result<Attachments, Error> {
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        // The directory is private, because the files repeat the plugins' configurations, which may
        // contain tokens.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(Error::file("set the mode of", &dir))?;
        Ok(Attachments { dir })
    }

    /// Path of a sandbox's file.
    pub(crate) fn path(&self, sandbox: &str) -> Result<PathBuf, Error> {
        if !conflist::is_name(sandbox) {
            return Err(Error::SandboxId(sandbox.chars().take(150).collect()));
        }
        Ok(self.dir.join(format!("{sandbox}.json")))
    }

    /// Reads a sandbox's file. A file that cannot be parsed is renamed, and None is returned.
    pub(crate) fn read(&self, sandbox: &str) -> Result<Option<Record>, Error> {
        let path = self.path(sandbox)?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file("read", &path)(e)),
        };
        match last_record(&bytes) {
            Ok(record) if record.sandbox == sandbox => Ok(Some(record)),
            read => {
                let reason = read.err().map_or_else(|| "names another sandbox".to_owned(), |e| e.to_string());
                let aside = path.with_extension("json.torn");
                fs::rename(&path, &aside).map_err(Error::file("rename", &path))?;
                tracing::warn!(path = %aside.display(), reason, "cannot parse a network attachment; the file is renamed");
                Ok(None)
            }
        }
    }

    /// Writes a sandbox's record. Before ADD the record replaces the file; after ADD it is
    /// appended, because replacing the file a second time costs the disk more than all the rest.
    /// The file is not synced: after a loss of power the sandbox is gone too, and the addresses of
    /// our own plugin are valid for one boot only.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.sandbox)?;
        let line = serde_json::to_vec(record).map_err(|e| Error::file("write", &path)(e.into()))?;
        if record.result.is_some() {
            let mut file = fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)
                .map_err(Error::file("open", &path))?;
            // A newline comes first, because an earlier line may have been cut short.
            let line = [b"\n", line.as_slice(), b"\n"].concat();
            return file.write_all(&line).map_err(Error::file("write", &path));
        }
        berth_sys::fs::write_atomic(&path, &line, 0o600).map_err(|source| Error::State { source })
    }

    /// Removes a sandbox's file. A missing file is no error.
    pub(crate) fn remove(&self, sandbox: &str) -> Result<(), Error> {
        let path = self.path(sandbox)?;
        berth_sys::fs::remove_if_there(&path).map_err(Error::file("remove", &path))
    }

    /// The sandboxes that have a file.
    pub(crate) fn list(&self) -> Result<BTreeSet<String>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(Error::file("list", &self.dir))?;
        let mut found = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(Error::file("list", &self.dir))?.file_name();
            found.extend(name.to_str().and_then(|n| n.strip_suffix(".json")).map(str::to_owned));
        }
        Ok(found)
    }
}

/// Parses the last valid line. If no line is valid, returns the error of the last line.
fn last_record(bytes: &[u8]) -> Result<Record, serde_json::Error> {
    let mut lines = bytes.trim_ascii_end().rsplit(|b| *b == b'\n');
    let last = serde_json::from_slice(lines.next().unwrap_or_default());
    last.or_else(|e| lines.find_map(|line| serde_json::from_slice(line).ok()).ok_or(e))
}

/// Inode of the network namespace at this path.
pub(crate) fn netns_inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|m| m.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::{Namespace, PodName};
    use serde_json::json;

    fn record(result: Option<Value>) -> Record {
        Record {
            boot: BootId::new("b").unwrap(),
            sandbox: "s1".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/s1".into(),
            netns_inode: 1,
            uid: PodUid::new("u").unwrap(),
            key: PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("p").unwrap() },
            labels: BTreeMap::new(),
            network: "net".into(),
            version: "1.1.0".into(),
            disable_check: false,
            plugins: Vec::new(),
            args: String::new(),
            capabilities: Map::new(),
            result,
        }
    }

    #[test]
    fn the_last_line_that_can_be_read_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = Attachments::open(dir.path().join("attachments")).unwrap();
        let (begun, done) = (record(None), record(Some(json!({"ips": []}))));
        files.write(&begun).unwrap();
        assert_eq!(files.read("s1").unwrap().unwrap(), begun);
        files.write(&done).unwrap();
        assert_eq!(files.read("s1").unwrap().unwrap(), done);
        assert_eq!(files.list().unwrap(), BTreeSet::from(["s1".to_owned()]));

        let path = files.path("s1").unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, whole.get(..length).unwrap()).unwrap();
            let read = files.read("s1").unwrap();
            let first = serde_json::to_vec(&begun).unwrap().len();
            assert_eq!(read.is_some(), length >= first, "cut at {length}");
            // A record after a truncated line is not lost with it.
            fs::write(&path, whole.get(..length).unwrap()).unwrap();
            files.write(&done).unwrap();
            assert_eq!(files.read("s1").unwrap().unwrap(), done, "cut at {length}");
        }

        files.write(&begun).unwrap();
        assert_eq!(files.read("s1").unwrap().unwrap(), begun, "what came before is of another attachment");
        files.remove("s1").unwrap();
        assert_eq!(files.read("s1").unwrap(), None);
    }

    #[test]
    fn the_configuration_of_plugins_is_readable_to_root_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        // The directory as an earlier version created it.
        let old = dir.path().join("attachments");
        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
        let files = Attachments::open(old.clone()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&old), 0o700);
        files.write(&record(None)).unwrap();
        assert_eq!(mode(&files.path("s1").unwrap()), 0o600, "before ADD");
        let done = Record { sandbox: "s2".into(), ..record(Some(json!({}))) };
        files.write(&done).unwrap();
        assert_eq!(mode(&files.path("s2").unwrap()), 0o600, "after ADD");
    }
}
