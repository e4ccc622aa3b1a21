//! Status files, for commands while no agent runs: `<runtime_state>/status/pod-<uid>.json` for each
//! pod and `<runtime_state>/status/node.json`, each replaced as a whole. They are on a tmpfs and
//! end with the boot, as the pods do.

use crate::{
    Error,
    view::{NodeView, PodView},
};
use berth_core::{event::EventRecord, ids::PodUid, roots::Roots, time::Wall};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Name of the node's file; the names of pods' files begin with `pod-`.
const NODE: &str = "node.json";

/// Interval in which the agent touches the node's file, and so the precision of [`last_alive`].
pub const ALIVE: Duration = Duration::from_secs(30);

/// Contents of a pod's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodFile {
    /// The pod.
    pub pod: PodView,
    /// The pod's events, oldest first.
    #[serde(default)]
    pub events: Vec<EventRecord>,
}

/// The path of the node's file.
pub fn node_file(roots: &Roots) -> PathBuf {
    roots.status_dir().join(NODE)
}

/// The path of a pod's file.
pub fn pod_file(roots: &Roots, uid: &PodUid) -> PathBuf {
    roots.status_dir().join(format!("pod-{uid}.json"))
}

/// The UID of the pod whose file has this name; `None` for other files.
pub fn uid_of(name: &OsStr) -> Option<PodUid> {
    PodUid::new(name.to_str()?.strip_prefix("pod-")?.strip_suffix(".json")?).ok()
}

/// Reads the node's file; `None` where there is none.
pub fn read_node(roots: &Roots) -> Result<Option<NodeView>, Error> {
    let path = node_file(roots);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(view) => Ok(Some(view)),
            Err(e) => Err(Error::File { path, source: e.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path, source }),
    }
}

/// The last time that an agent touched the node's file, which it does at least every [`ALIVE`];
/// `None` without the file.
pub fn last_alive(roots: &Roots) -> Option<Wall> {
    let modified = fs::metadata(node_file(roots)).and_then(|m| m.modified()).ok()?;
    let since_1970 = modified.duration_since(UNIX_EPOCH).ok()?;
    Some(Wall(i64::try_from(since_1970.as_nanos()).ok()?))
}

/// Touches the node's file; see [`last_alive`].
pub fn touch(roots: &Roots) -> Result<(), Error> {
    let path = node_file(roots);
    let touched = File::options().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
    touched.map_err(|source| Error::File { path, source })
}

/// Reads the files of all pods, sorted by name; and the errors of unreadable files.
pub fn read_pods(roots: &Roots) -> Result<(Vec<PodFile>, Vec<Error>), Error> {
    let dir = roots.status_dir();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(source) => return Err(Error::File { path: dir, source }),
    };
    let (mut pods, mut bad) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(|source| Error::File { path: dir.clone(), source })?;
        if uid_of(&entry.file_name()).is_none() {
            continue;
        }
        match read_pod(&entry.path()) {
            Ok(Some(file)) => pods.push(file),
            // Removed since the directory was listed.
            Ok(None) => {}
            Err(e) => bad.push(e),
        }
    }
    pods.sort_by(|a, b| (&a.pod.key, &a.pod.uid).cmp(&(&b.pod.key, &b.pod.uid)));
    Ok((pods, bad))
}

fn read_pod(path: &Path) -> Result<Option<PodFile>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;

    #[test]
    fn a_torn_status_file_hides_no_other_pod() {
        let tmp = tempfile::tempdir().unwrap();
        let roots = Roots::below(tmp.path(), NodeName::new("n").unwrap(), "x");
        assert_eq!(read_pods(&roots).unwrap().0, []);
        assert!(read_node(&roots).unwrap().is_none());
        fs::create_dir_all(roots.status_dir()).unwrap();
        let uid = PodUid::new("node").unwrap();
        let good = r#"{"pod":{"uid":"node","key":{"namespace":"d","name":"p"},"object":{}}}"#;
        fs::write(pod_file(&roots, &uid), good).unwrap();
        fs::write(pod_file(&roots, &PodUid::new("u2").unwrap()), "{\"pod\":").unwrap();
        fs::write(roots.status_dir().join(".pod-u3.json.1.tmp"), "").unwrap();
        let (pods, bad) = read_pods(&roots).unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!(pods.first().unwrap().pod.uid, uid);
        assert_eq!(bad.len(), 1);
        assert!(last_alive(&roots).is_none() && touch(&roots).is_err());
        fs::write(node_file(&roots), "{}").unwrap();
        File::options().write(true).open(node_file(&roots)).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert_eq!(last_alive(&roots), Some(Wall(0)));
        touch(&roots).unwrap();
        assert!(last_alive(&roots).unwrap() > Wall(0));
        assert!(bad.first().unwrap().to_string().contains("pod-u2.json"));
    }
}
