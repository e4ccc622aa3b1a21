//! Locations of external programs and of the project's own builds.

use anyhow::{Context, Result, ensure};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Directory of the programs that `cargo xtask setup` builds: `BERTH_TOOLS`, or `berth/tools/bin` in the
/// cache directory.
///
/// # Errors
/// None of `BERTH_TOOLS`, `XDG_CACHE_HOME` and `HOME` is set.
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("BERTH_TOOLS") {
        return Ok(dir.into());
    }
    Ok(cache()?.join("tools/bin"))
}

/// The project's own cache directory.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("berth"))
}

/// The given directory, or else this one of [`cache`].
///
/// # Errors
/// As [`cache`].
pub fn dir_or_cached(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    given.map_or_else(|| Ok(cache()?.join(name)), |dir| Ok(dir.to_owned()))
}

/// Path of a program in [`dir`], or else in PATH.
///
/// # Errors
/// The program is in neither.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(dir()?)
        .chain(env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| {
            format!(
                "{name} is neither in {} nor in PATH: run `cargo xtask setup`",
                dir().unwrap_or_default().display()
            )
        })
}

/// PATH with the tools directory first.
///
/// # Errors
/// As [`dir`].
pub fn path_env() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(std::iter::once(dir()?).chain(env::split_paths(&path)))?)
}

/// Root of the repository, known from this crate's build.
pub fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(|tests| tests.parent()).map(PathBuf::from).unwrap_or(here)
}

/// A cargo command in the repository's root, with the environment of a plain shell.
///
/// The variables that `cargo run` and libtest set for this process are removed. Build scripts read some of
/// them (`ring` reads `CARGO_MANIFEST_DIR`), and a changed value would rebuild half of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository()).args(args).stdin(Stdio::null());
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_a_run)) {
        command.env_remove(name);
    }
    command
}

/// Whether cargo sets this variable for a program that cargo runs, or this project sets the variable for a
/// test program.
fn is_of_a_run(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| name.starts_with(start))
        || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR", "RUSTC_BOOTSTRAP"]
            .contains(&name)
}

/// Kind of build of the project's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// The default build.
    Plain,
    /// With the failpoints at which the kill suite ends the agent.
    Failpoints,
    /// Optimised, for measurements.
    Release,
    /// Optimised, with the failpoints.
    ReleaseFailpoints,
}

/// The program `berth-load`, built where necessary. A ready directory (`BERTH_BIN`) has it.
///
/// # Errors
/// The build fails.
pub fn load() -> Result<PathBuf> {
    let programs = programs(Build::Plain)?;
    if env::var_os("BERTH_BIN").is_none() {
        let built = cargo(&["build", "--quiet", "--locked", "--package", "berth-load"]).status();
        ensure!(built.context("cannot run cargo")?.success(), "berth-load does not build");
    }
    Ok(programs.join("berth-load"))
}

/// The program `berth-csi-nfs`, built where necessary: a debug build, which has the stand-in for a server.
///
/// # Errors
/// The build fails.
pub fn csi_nfs() -> Result<PathBuf> {
    let built = cargo(&["build", "--quiet", "--locked", "--package", "berth-csi-nfs"]).status();
    ensure!(built.context("cannot run cargo")?.success(), "berth-csi-nfs does not build");
    Ok(target().join("debug/berth-csi-nfs"))
}

/// Cargo's directory of what it builds.
fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Directory of `berth` and `berth-cni`, built where necessary. `BERTH_BIN` (`BERTH_BIN_FAILPOINTS`,
/// `BERTH_BIN_RELEASE`, `BERTH_BIN_RELEASE_FAILPOINTS`) names a ready directory instead.
///
/// # Errors
/// The build fails.
pub fn programs(build: Build) -> Result<PathBuf> {
    let ready = match build {
        Build::Plain => "BERTH_BIN",
        Build::Failpoints => "BERTH_BIN_FAILPOINTS",
        Build::Release => "BERTH_BIN_RELEASE",
        Build::ReleaseFailpoints => "BERTH_BIN_RELEASE_FAILPOINTS",
    };
    if let Some(dir) = env::var_os(ready) {
        return Ok(dir.into());
    }
    let target = target();
    match build {
        Build::Plain => {
            cargo_build(&[])?;
            Ok(target.join("debug"))
        }
        Build::Release => {
            cargo_build(&["--release"])?;
            Ok(target.join("release"))
        }
        Build::Failpoints => aside(&target, "debug", "failpoints", &[]),
        Build::ReleaseFailpoints => aside(&target, "release", "failpoints-release", &["--release"]),
    }
}

/// Keeps a copy of the build with failpoints, because the next plain build overwrites the program in place.
fn aside(target: &Path, built: &str, aside: &str, profile: &[&str]) -> Result<PathBuf> {
    cargo_build(&[profile, &["--features", "berth/failpoints"]].concat())?;
    let aside = target.join(aside);
    std::fs::create_dir_all(&aside).with_context(|| format!("create {}", aside.display()))?;
    for name in ["berth", "berth-cni"] {
        let (from, new) = (target.join(built).join(name), aside.join(format!(".{name}.new")));
        std::fs::copy(&from, &new).with_context(|| format!("copy {}", from.display()))?;
        std::fs::rename(&new, aside.join(name)).context("rename a program")?;
    }
    cargo_build(profile)?;
    Ok(aside)
}

fn cargo_build(extra: &[&str]) -> Result<()> {
    let done = cargo(&["build", "--quiet", "--locked", "--package", "berth", "--package", "berth-cni"])
        .args(extra)
        .status()
        .context("run cargo")?;
    ensure!(done.success(), "berth and berth-cni do not build");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cargo_called_from_here_is_told_nothing_of_this_program() {
        let told: Vec<_> = cargo(&["version"])
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_owned())
            .collect();
        let set = env::vars_os().map(|(name, _)| name).filter(|name| name.to_str().is_some_and(is_of_a_run));
        for name in set {
            assert!(told.contains(&name), "{name:?} is handed on");
        }
        for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "RUSTC_BOOTSTRAP"] {
            assert!(is_of_a_run(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO", "RUSTFLAGS"] {
            assert!(!is_of_a_run(name), "{name}");
        }
    }
}
