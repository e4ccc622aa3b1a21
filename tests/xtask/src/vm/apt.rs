//! Debian packages of a suite that this machine does not have: fetched beside the system's own apt, which is not touched.
//!
//! The archive is the one that the machine's own sources name.

use crate::setup::succeed;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The keys that Debian signs its suites with (package `debian-archive-keyring`).
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The address of Debian's archive, as this machine's apt has it.
///
/// # Errors
/// apt is not there, or knows no archive of Debian's.
pub(super) fn archive() -> Result<String> {
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
    // Whose an archive is stands in its lists, which a fresh machine has not got yet.
    succeed(Command::new("apt-get").args(["-q", "update"]))?;
    ask()?.context("apt's sources on this machine name no archive of Debian's")
}

/// The packages of one suite.
#[derive(Debug)]
pub(super) struct Suite {
    name: String,
    config: PathBuf,
}

impl Suite {
    /// Fetches the suite's lists; everything of it lies below `dir`.
    ///
    /// # Errors
    /// There is no such suite, or the archive is not reached.
    pub(super) fn open(dir: &Path, archive: &str, name: &str) -> Result<Suite> {
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

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).stdin(Stdio::null());
        command
    }

    /// The names of the packages that match a regular expression.
    ///
    /// # Errors
    /// apt fails.
    pub(super) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = read(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The names that a package depends on, the first of each choice.
    ///
    /// # Errors
    /// There is no such package.
    pub(super) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = read(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Depends:")).unwrap_or_default();
        Ok(line.split(',').filter_map(|d| d.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Fetches packages, unpacks each below `to` and forgets the files.
    ///
    /// # Errors
    /// One is not there or does not come.
    pub(super) fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
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
