//! One file a sandbox: what it was attached with, and what came of it.

use crate::{Attachment, Conflist, Error, PluginConfig, conflist};
use berth_core::ids::{BootId, PodKey, PodUid};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
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
        match serde_json::from_slice::<Record>(&bytes) {
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

    /// Replaces a sandbox's file. Not synced: after a loss of power the sandbox is gone too, and addresses that our
    /// own plugin keeps do not outlive the boot.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.sandbox)?;
        let new = path.with_extension("json.new");
        let bytes = serde_json::to_vec(record).map_err(|e| Error::file("write", &new)(e.into()))?;
        fs::write(&new, bytes).map_err(Error::file("write", &new))?;
        fs::rename(&new, &path).map_err(Error::file("rename", &new))
    }

    /// Removes a sandbox's file; none is fine.
    pub(crate) fn remove(&self, sandbox: &str) -> Result<(), Error> {
        let path = self.path(sandbox)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(e)),
            _ => Ok(()),
        }
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

/// The inode of the namespace that a path names.
pub(crate) fn netns_inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|m| m.ino())
}
