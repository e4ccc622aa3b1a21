//! Pods whose cgroups are compared with those of the real kubelet in a VM: the recordings in
//! `tests/golden/v2/cgroup` of pods with resources that keep running.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};

/// Image of these pods.
pub(super) const IMAGE: &str = "berth.test/busybox:1";

/// Writes each pod's manifest and expected cgroup values below `to`.
///
/// # Errors
/// No recording fits, or a recording cannot be parsed.
pub(super) fn put(to: &Path) -> Result<()> {
    let tests = crate::root().join("tests");
    let recordings = tests.join("golden/v2/cgroup");
    let all = fs::read_dir(&recordings).with_context(|| format!("cannot list {}", recordings.display()))?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut count = 0;
    for entry in all {
        let path = entry.context("cannot list the recordings")?.path();
        let shape = path.file_stem().context("a recording has no name")?.to_string_lossy().into_owned();
        let manifest = tests.join("shapes").join(format!("{shape}.yaml"));
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        if !is_telling(&text) {
            continue;
        }
        let recording =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = lines(&recording).with_context(|| format!("{} is not understood", path.display()))?;
        let put = |kind: &str, text: &str| {
            let file = to.join(format!("{shape}.{kind}"));
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        put("yaml", &text)?;
        put("txt", &lines)?;
        count += 1;
    }
    ensure!(count > 0, "{} holds no pods with resources", recordings.display());
    Ok(())
}

/// Whether a shape has resources, keeps running and needs no other image.
fn is_telling(manifest: &str) -> bool {
    let image = |line: &&str| line.trim_start().trim_start_matches("- ").starts_with("image:");
    manifest.contains("resources:")
        && manifest.contains("# settle: phase=Running ready=true\n")
        && manifest.lines().filter(image).all(|line| line.ends_with(IMAGE))
}

/// A recording as lines `<container, or . for the pod> <file> <value>`.
fn lines(recording: &str) -> Result<String> {
    let recording: Value = serde_json::from_str(recording)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a value is no text");
    let mut out = format!(". parent {}\n", text(&recording["parent"])?);
    let mut add = |container: &str, group: &Value| -> Result<()> {
        for (file, value) in group.as_object().context("a group is no object")? {
            out.push_str(&format!("{container} {file} {}\n", text(value)?));
        }
        Ok(())
    };
    add(".", &recording["pod"])?;
    for (name, group) in recording["containers"].as_object().context("no containers")? {
        add(name, group)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_told_in_lines() {
        let recording = r#"{"parent": "kubepods/burstable", "pod": {"cpu.max": "max 100000"},
            "containers": {"a": {"cpuset.cpus": "", "pids.max": "max"}}}"#;
        let want = ". parent kubepods/burstable\n. cpu.max max 100000\na cpuset.cpus \na pids.max max\n";
        assert_eq!(lines(recording).unwrap(), want);
        assert!(lines(r#"{"parent": "kubepods", "pod": [], "containers": {}}"#).is_err());
    }

    #[test]
    fn pods_with_resources_that_run_on_are_telling() {
        let settle = "# settle: phase=Running ready=true\n";
        let ours = format!("{settle}    image: {IMAGE}\n  - image: {IMAGE}\n    resources: {{}}\n");
        assert!(is_telling(&ours));
        assert!(!is_telling(&ours.replace("resources", "env")));
        assert!(!is_telling(&ours.replace("busybox", "none")));
        assert!(!is_telling(&ours.replace("Running", "Failed")));
    }
}
