//! The images of the recordings, rebuilt from their recorded configurations.

use anyhow::{Context, Result};
use berth_harness::{
    node::Node,
    oci::{self, Entry, Image},
};
use serde_json::Value;
use std::{fs, path::Path};

/// Contents of the node's seccomp profile that one of the shapes names.
pub(crate) const LOCALHOST_PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;

/// Builds all images and imports them into containerd.
pub(crate) fn import(node: &Node, recorded: &Path) -> Result<()> {
    let text = fs::read(recorded).with_context(|| format!("read {}", recorded.display()))?;
    let recorded: Value = serde_json::from_slice(&text)?;
    let mut base = Image::busybox("base")?;
    base.layers.push(vec![
        Entry::dir("work", 0o1777),
        Entry::dir("data", 0o755),
        file(&recorded, "passwd")?,
        file(&recorded, "group")?,
    ]);
    let configs = recorded["configs"].as_object().context("no images on record")?;
    let images: Vec<Image> = configs.iter().map(|(name, c)| base.variant(name, c.clone())).collect();
    let archive = node.dir.join("shapes.tar");
    oci::write_archive(&archive, &images)?;
    node.containerd.import(&archive)?;
    fs::remove_file(&archive).context("remove the archive")
}

fn file(recorded: &Value, name: &str) -> Result<Entry> {
    let text = recorded[name].as_str().with_context(|| format!("no {name} on record"))?;
    Ok(Entry::file(&format!("etc/{name}"), 0o644, text))
}
