//! The recordings as files: what containerd's CRI plugin made of each shape, on each kind of machine.

use berth_runtime::spec::{HostFacts, ImageConfig, UserFiles};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
pub(crate) struct Recording {
    pub(crate) containers: BTreeMap<String, Recorded>,
    /// Sysctls of the sandbox; `None` if no sandbox was created.
    pub(crate) sysctls: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
pub(crate) struct Recorded {
    pub(crate) image: String,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) args: Option<Vec<String>>,
    pub(crate) env: Option<Vec<(String, String)>>,
    pub(crate) mounts: Vec<RecordedMount>,
    pub(crate) spec: Value,
}

#[derive(Deserialize)]
pub(crate) struct RecordedMount {
    pub(crate) container_path: String,
    pub(crate) host_path: PathBuf,
    pub(crate) readonly: bool,
}

#[derive(Deserialize)]
pub(crate) struct Difference {
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Prefixes of difference lines, `<shape>/<container>/<place>`, for values of single shapes. Empty for a
    /// general difference.
    #[serde(default)]
    pub(crate) lines: Vec<String>,
}

/// Recordings of one kind of machine: those of cgroup v1, with the files of `golden/v2` in place of theirs
/// for cgroup v2.
pub(crate) struct Golden {
    pub(crate) base: PathBuf,
    pub(crate) overlay: Option<PathBuf>,
}

impl Golden {
    pub(crate) fn v1() -> Golden {
        Golden { base: tests_dir().join("golden"), overlay: None }
    }

    pub(crate) fn v2() -> Golden {
        let base = tests_dir().join("golden");
        Golden { overlay: Some(base.join("v2")), base }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let over = self.overlay.as_ref().map(|dir| dir.join(name)).filter(|path| path.exists());
        over.unwrap_or_else(|| self.base.join(name))
    }

    /// Whether the shape's specs were recorded on this kind of machine. Every spec differs on cgroup v2, so a
    /// shape without a file in `golden/v2` was not recorded there.
    pub(crate) fn has_spec(&self, shape: &str) -> bool {
        self.overlay.as_ref().is_none_or(|dir| dir.join("spec").join(format!("{shape}.json")).exists())
    }

    pub(crate) fn of_shape(&self, kind: &str, shape: &str) -> PathBuf {
        self.file(&format!("{kind}/{shape}.json"))
    }
}

pub(crate) struct Node {
    pub(crate) facts: HostFacts,
    pub(crate) images: Value,
}

pub(crate) fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_str(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Node {
    pub(crate) fn load(golden: &Golden) -> Node {
        Node { facts: json(&golden.file("host.json")), images: json(&golden.file("images.json")) }
    }

    pub(crate) fn image(&self, name: &str) -> ImageConfig {
        let config = self.images["configs"].get(name).unwrap_or_else(|| panic!("image {name} not recorded"));
        ImageConfig::parse(serde_json::json!({ "config": config }).to_string().as_bytes()).unwrap()
    }

    pub(crate) fn users(&self) -> UserFiles<'_> {
        UserFiles { passwd: self.images["passwd"].as_str(), group: self.images["group"].as_str() }
    }
}
