//! The program inside the test image, compiled statically from one file by rustc alone.

use crate::tools;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::{fs, path::PathBuf, process::Command};

const SOURCE: &str = include_str!("../programs/berth-test.rs");

/// Bytes of the program, built once per version of the source.
///
/// # Errors
/// The program does not build.
pub fn test_program() -> Result<Vec<u8>> {
    let path = built()?;
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

fn built() -> Result<PathBuf> {
    let digest: String = Sha256::digest(SOURCE).iter().take(8).map(|b| format!("{b:02x}")).collect();
    let dir = tools::cache()?.join("programs");
    let path = dir.join(format!("berth-test-{digest}"));
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let scratch = tempfile::tempdir_in(&dir)?;
    let source = scratch.path().join("berth-test.rs");
    fs::write(&source, SOURCE)?;
    let out = scratch.path().join("berth-test");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let done = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(&out)
        .arg(&source)
        .env_remove("RUSTC_BOOTSTRAP")
        .status()
        .context("run rustc")?;
    ensure!(done.success(), "the test program does not build");
    fs::rename(&out, &path)?;
    Ok(path)
}
