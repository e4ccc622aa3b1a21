//! One file a sandbox: what it was attached with, and what came of it.
//!
//! A file is a line of JSON for what is about to be attached and, once that has succeeded, a second one with the
//! result. The last line that can be read counts: a line cut short by a full disk loses only itself.

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

/// All that DEL, CHECK and adoption need, whatever became of the configuration since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The boot that the sandbox belongs to.
    pub(crate) boot: BootId,
    /// `CNI_CONTAINERID`.
    pub(crate) sandbox: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// `CNI_NETNS`.
    pub(crate) netns: PathBuf,
    /// The namespace itself: a path may come to name another one.
    pub(crate) netns_inode: u64,
    /// The pod.
    pub(crate) uid: PodUid,
    /// Its names.
    pub(crate) key: PodKey,
    /// Its labels at that time.
    pub(crate) labels: BTreeMap<String, String>,
    /// The list's `name`.
    pub(crate) network: String,
    /// The version spoken with the plugins.
    pub(crate) version: String,
    /// `disableCheck`.
    pub(crate) disable_check: bool,
    /// The plugins' objects, in order.
    pub(crate) plugins: Vec<Map<String, Value>>,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// Arguments by capability, for `runtimeConfig`.
    pub(crate) capabilities: Map<String, Value>,
    /// The last plugin's result; absent until ADD has succeeded.
    pub(crate) result: Option<Value>,
}

impl Record {
    /// The list that the sandbox was attached with.
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

    /// The attachment, where ADD has succeeded.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        Attachment::of("in the attachment file", self.result.clone()?).ok()
    }

    /// The capability arguments of the pod that no plugin of the list asks for (`capabilities` of a plugin's object),
    /// by their names: what they ask for is not given.
    pub(crate) fn unserved(&self) -> Vec<String> {
        let names = self.capabilities.keys();
        names.filter(|name| !self.plugins.iter().any(|p| conflist::wants(p, name))).cloned().collect()
    }
}

/// The directory of the files.
#[derive(Debug, Clone)]
pub(crate) struct Attachments {
    dir: PathBuf,
}

impl Attachments {
    pub(crate) fn open(lasting_state: &Path) -> Result<Attachments, Error> {
        let dir = lasting_state.join("attachments");
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        // The files repeat the plugins' configurations, which may hold tokens and lie in files of mode 0600.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(Error::file("protect", &dir))?;
        Ok(Attachments { dir })
    }

    /// The file of a sandbox.
    pub(crate) fn path(&self, sandbox: &str) -> Result<PathBuf, Error> {
        if !conflist::is_name(sandbox) {
            return Err(Error::SandboxId(sandbox.chars().take(150).collect()));
        }
        Ok(self.dir.join(format!("{sandbox}.json")))
    }

    /// Reads a sandbox's file. One that cannot be understood is set aside, and there is none.
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
                fs::rename(&path, &aside).map_err(Error::file("set aside", &path))?;
                tracing::warn!(path = %aside.display(), reason, "set aside a damaged network attachment");
                Ok(None)
            }
        }
    }

    /// Writes a sandbox's record: in place of all before it where ADD is yet to come, after that one where it has
    /// succeeded (a second file a pod, put in the place of the first, costs a disk more than the rest of both). Not
    /// synced: after a loss of power the sandbox is gone too, and addresses that our own plugin keeps do not outlive
    /// the boot.
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
            // A line of its own, also where an earlier one was cut short.
            let line = [b"\n", line.as_slice(), b"\n"].concat();
            return file.write_all(&line).map_err(Error::file("write", &path));
        }
        berth_sys::fs::write_atomic(&path, &line, 0o600).map_err(|source| Error::State { source })
    }

    /// Removes a sandbox's file; none is fine.
    pub(crate) fn remove(&self, sandbox: &str) -> Result<(), Error> {
        let path = self.path(sandbox)?;
        berth_sys::fs::remove_if_there(&path).map_err(Error::file("remove", &path))
    }

    /// Every sandbox that has a file.
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

/// The last line that is a record; where there is none, why the last is not.
fn last_record(bytes: &[u8]) -> Result<Record, serde_json::Error> {
    let mut lines = bytes.trim_ascii_end().rsplit(|b| *b == b'\n');
    let last = serde_json::from_slice(lines.next().unwrap_or_default());
    last.or_else(|e| lines.find_map(|line| serde_json::from_slice(line).ok()).ok_or(e))
}

/// The inode of the namespace that a path names.
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
        let files = Attachments::open(dir.path()).unwrap();
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
            // What comes after a line that was cut is not lost with it.
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
        // As an earlier version made it.
        let old = dir.path().join("attachments");
        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
        let files = Attachments::open(dir.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&old), 0o700);
        files.write(&record(None)).unwrap();
        assert_eq!(mode(&files.path("s1").unwrap()), 0o600, "before ADD");
        let done = Record { sandbox: "s2".into(), ..record(Some(json!({}))) };
        files.write(&done).unwrap();
        assert_eq!(mode(&files.path("s2").unwrap()), 0o600, "after ADD");
    }
}
