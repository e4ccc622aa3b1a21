//! Kernels for a VM: Debian's cloud kernels, from the suites that the archive offers.

use super::cache::Cache;
use crate::{
    apt::{self, Suite},
    out,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Debian suites to search: backports of the release before, the root's release, its backports, and unstable.
const SUITES: [&str; 4] = ["bookworm-backports", super::root::RELEASE, "trixie-backports", "sid"];

/// Oldest kernel version that Berth supports.
const FLOOR: [u32; 3] = [6, 6, 0];

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Kernel release, as in `uname -r`.
    pub(super) release: String,
    /// Directory of the unpacked packages.
    dir: PathBuf,
}

impl Kernel {
    /// Path of the bootable image.
    pub(super) fn image(&self) -> PathBuf {
        // Newer packages place the image beside the modules; the installing machine copies it to /boot.
        let beside = self.modules().join("vmlinuz");
        let boot = self.dir.join("boot").join(format!("vmlinuz-{}", self.release));
        if beside.is_file() { beside } else { boot }
    }

    /// Directory of the modules.
    pub(super) fn modules(&self) -> PathBuf {
        // The path depends on whether the package follows the merge of /lib into /usr.
        let [new, old] = ["usr/lib/modules", "lib/modules"].map(|d| self.dir.join(d).join(&self.release));
        if new.is_dir() { new } else { old }
    }
}

/// Returns the kernel that `wanted` names: `stable` (of the root's release), `oldest` (at or above
/// [`FLOOR`]), `newest`, or the beginning of a release. Downloads the kernel where the cache has none. The
/// suites are searched only where the cache does not know the meaning of `wanted`.
///
/// # Errors
/// No suite has such a kernel, or the archive is unreachable.
pub(super) fn get(cache: &Cache, wanted: &str) -> Result<Kernel> {
    let kernels = cache.dir("kernels")?;
    let known = kernels.join(format!("{wanted}.name"));
    if let Ok(release) = fs::read_to_string(&known) {
        let kernel = Kernel { dir: kernels.join(&release), release };
        if kernel.image().is_file() {
            return Ok(kernel);
        }
    }
    let (suite, release) =
        out::timed(&format!("look for the kernel \"{wanted}\" in Debian's suites"), || find(cache, wanted))?;
    let dir = kernels.join(&release);
    let kernel = Kernel { dir: dir.clone(), release };
    if !kernel.image().is_file() {
        out::timed(&format!("fetch the kernel {} of {}", kernel.release, suite.name()), || {
            fetch(&suite, &kernel.release, &dir)
        })?;
    }
    fs::write(&known, &kernel.release).with_context(|| format!("cannot write {}", known.display()))?;
    Ok(kernel)
}

fn find(cache: &Cache, wanted: &str) -> Result<(Suite, String)> {
    let (dir, archive) = (cache.dir("apt")?, apt::archive()?);
    let stable = wanted == "stable";
    let mut all = Vec::new();
    for name in SUITES.iter().filter(|s| !stable || **s == super::root::RELEASE) {
        let suite = match Suite::open(&dir, &archive, name) {
            Ok(suite) => suite,
            // A mirror may lack a suite.
            Err(error) if !stable => {
                out::line(&format!("{name} is left out: {error:#}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let releases = suite.names(&format!("^{PREFIX}[0-9].*{SUFFIX}$"))?;
        all.push((suite, releases));
    }
    let found = all.iter().enumerate().flat_map(|(n, (_, names))| names.iter().map(move |name| (n, name)));
    let releases: Vec<(usize, &str)> =
        found.filter_map(|(n, name)| Some((n, name.strip_prefix(PREFIX)?))).collect();
    let (n, release) = choose(&releases, wanted)
        .with_context(|| format!("no suite has a kernel \"{wanted}\"; there are {releases:?}"))?;
    let release = release.to_owned();
    Ok((all.swap_remove(n).0, release))
}

/// Chooses a release. Each release comes with the index of its suite.
fn choose<'a>(releases: &[(usize, &'a str)], wanted: &str) -> Option<(usize, &'a str)> {
    let fit = releases.iter().copied().filter(|(_, r)| version(r) >= FLOOR);
    match wanted {
        "oldest" => fit.min_by_key(|(_, r)| version(r)),
        "newest" | "stable" => fit.max_by_key(|(_, r)| version(r)),
        start => fit.filter(|(_, r)| r.starts_with(start)).max_by_key(|(_, r)| version(r)),
    }
}

/// The three numbers at the beginning of a release.
fn version(release: &str) -> [u32; 3] {
    let mut numbers = release.split(['.', '+', '-']).map(|n| n.parse().unwrap_or(0));
    [(); 3].map(|()| numbers.next().unwrap_or(0))
}

fn fetch(suite: &Suite, release: &str, dir: &Path) -> Result<()> {
    let image = format!("{PREFIX}{release}");
    // Newer kernels are split into several packages of the same release.
    let mut packages = suite.depends(&image)?;
    packages.retain(|name| name.starts_with("linux-") && name.ends_with(release));
    packages.push(image);
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    suite.unpack(&packages, &new)?;
    let kernel = Kernel { release: release.to_owned(), dir: new.clone() };
    ensure!(kernel.image().is_file(), "{packages:?} hold no {}", kernel.image().display());
    ensure!(kernel.modules().is_dir(), "{packages:?} hold no modules");
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::rename(&new, dir).with_context(|| format!("cannot put {} in place", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_their_numbers() {
        let all = [
            (0, "6.1.0-40-cloud-amd64"),
            (0, "6.12.43+deb12-cloud-amd64"),
            (1, "6.12.117+deb13-cloud-amd64"),
            (2, "6.16.3+deb13-cloud-amd64"),
            (2, "7.3.4+deb13-cloud-amd64"),
            (3, "7.2.13+deb14-cloud-amd64"),
        ];
        assert_eq!(choose(&all, "oldest"), Some((0, "6.12.43+deb12-cloud-amd64")));
        assert_eq!(choose(&all, "newest"), Some((2, "7.3.4+deb13-cloud-amd64")));
        assert_eq!(choose(&all[2..3], "stable"), Some((1, "6.12.117+deb13-cloud-amd64")));
        assert_eq!(choose(&all, "6.12"), Some((1, "6.12.117+deb13-cloud-amd64")));
        assert_eq!(choose(&all, "6.1."), None, "below the floor");
        assert_eq!(choose(&all, "5"), None);
    }
}
