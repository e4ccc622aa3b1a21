//! Debian packages of a suite other than this machine's, downloaded by a separate apt configuration.
//!
//! The archive is the one in the machine's own apt sources. The system's own apt state stays unchanged.

use crate::setup::succeed;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Keyring of Debian's suites (package `debian-archive-keyring`).
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// URL of Debian's archive in this machine's apt sources.
///
/// # Errors
/// apt is missing, or its sources name no Debian archive.
pub(crate) fn archive() -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let format = ["indextargets", "--format", "$(REPO_URI)"];
        let of_debian = ["Identifier: Packages", "Origin: Debian", "Label: Debian"];
        let out = Command::new("apt-get").args(format).args(of_debian).stdin(Stdio::null()).output();
        let out = out.context("run apt-get")?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned))
    };
    if let Some(uri) = ask()? {
        return Ok(uri);
    }
    // The origin of an archive is known only from its package lists, which a fresh machine does not have yet.
    succeed(Command::new("apt-get").args(["-q", "update"]))?;
    ask()?.context("apt's sources on this machine name no archive of Debian's")
}

/// Packages of one suite.
#[derive(Debug)]
pub(crate) struct Suite {
    name: String,
    config: PathBuf,
}

impl Suite {
    /// Downloads the suite's package lists; all of the suite's state lies below `dir`.
    ///
    /// # Errors
    /// The archive has no such suite, or the archive is unreachable.
    pub(crate) fn open(dir: &Path, archive: &str, name: &str) -> Result<Suite> {
        let dir = dir.join(name);
        for below in ["lists/partial", "cache/archives/partial", "preferences"] {
            let path = dir.join(below);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let shown = dir.display();
        let sources =
            format!("Types: deb\nURIs: {archive}\nSuites: {name}\nComponents: main\nSigned-By: {KEYRING}\n");
        let config = format!(
            "Dir::Etc::sourcelist \"{shown}/debian.sources\";\nDir::Etc::sourceparts \"{shown}/preferences\";\n\
             Dir::Etc::preferencesparts \"{shown}/preferences\";\nDir::State::lists \"{shown}/lists\";\n\
             Dir::Cache \"{shown}/cache\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        for (file, text) in [("debian.sources", sources), ("apt.conf", config)] {
            let path = dir.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let suite = Suite { name: name.to_owned(), config: dir.join("apt.conf") };
        succeed(suite.command("apt-get").args(["-q", "update"]))
            .with_context(|| format!("cannot fetch the lists of Debian's suite {name}"))?;
        Ok(suite)
    }

    /// Name of the suite.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).stdin(Stdio::null());
        command
    }

    /// Names of the packages that match a regular expression.
    ///
    /// # Errors
    /// apt fails.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = read(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Names of the packages on which a package depends, the first of each alternative.
    ///
    /// # Errors
    /// The suite has no such package.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = read(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Depends:")).unwrap_or_default();
        Ok(line.split(',').filter_map(|d| d.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads packages, unpacks each below `to` and deletes the package files.
    ///
    /// # Errors
    /// A package is missing or cannot be downloaded.
    pub(crate) fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        let scratch = to.with_extension("debs");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        succeed(self.command("apt-get").args(["-q", "download"]).args(packages).current_dir(&scratch))?;
        let mut count = 0;
        for entry in fs::read_dir(&scratch).context("cannot list the packages")? {
            let file = entry.context("cannot list the packages")?.path();
            succeed(Command::new("dpkg-deb").arg("-x").arg(&file).arg(to))?;
            count += 1;
        }
        ensure!(count == packages.len(), "{count} packages came, {} were asked for", packages.len());
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
    }
}

fn read(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
