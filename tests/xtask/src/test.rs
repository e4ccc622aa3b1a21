//! `cargo xtask test`: runs everything, says what ran, what was skipped and why, and what took longest.

mod binaries;
mod skips;
pub(crate) mod tally;

use crate::{cargo, out, setup};
use anyhow::{Context, Result};
use berth_harness::tools::{self, Build};
use binaries::{Binary, How};
use skips::Skips;
use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tally::{Outcome, Tally};

/// The crate whose tests are the suites of a real node.
const NODE: &str = "berth-tests-node";

/// The crate whose tests are the suites of Services under load.
const SERVICES: &str = "berth-tests-services";

/// The least time that a test binary may take before it is ended.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this suite: fmt, clippy, deny, ebpf, arrows, docs, crates, plan (a million histories), mutations (a hundred thousand
    /// of each kind of input), services (five minutes of churn, two nodes), node (all of them), or one of the node's:
    /// demo, lifecycle, output, kill, parity; or vm (Debian in a VM). A suite that is asked for by name runs in full.
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Of a suite asked for by name, only what the default run does of it.
    #[arg(long)]
    quick: bool,
    /// Of the suite vm: the kernel, `stable` (Debian 13's own), `oldest`, `newest` or the beginning of a release.
    #[arg(long, value_name = "KERNEL", default_value = "stable")]
    kernel: String,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// The crate whose tests take longest, which begin first so that nothing waits for them at the end.
const LONGEST: &str = "berth-ebpf-loader";

/// Of how many crates the tests run at a time: most wait more than they work.
const LANES: usize = 2;

/// What a run is made of.
struct Run {
    tally: Tally,
    filter: Option<String>,
    /// The test binaries of the whole workspace, once they are built.
    whole: Option<Vec<Binary>>,
}

/// Runs; `Ok(false)` where something failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let begun = Instant::now();
    setup::run()?;
    let skips = Skips::read(&crate::root().join("tests/skips.toml"))?;
    let mut run = Run { tally: Tally::default(), filter: args.filter.clone(), whole: None };
    match args.suite.as_deref() {
        None => run.default()?,
        Some("fmt") => run.fmt()?,
        Some("clippy") => run.clippy()?,
        Some("deny") => run.deny()?,
        Some("ebpf") => run.object()?,
        Some("arrows") => run.step("arrows", || crate::arrows::check().map(|()| true))?,
        Some("docs") => run.step("docs", || crate::docs::check().map(|()| true))?,
        Some("crates") => run.crates()?,
        Some("plan") => run.plan()?,
        Some("mutations") => run.mutations()?,
        Some("vm") => crate::vm::suite(&args.kernel, args.filter.as_deref(), &mut run.tally)?,
        Some("services") => run.suites(SERVICES, None, !args.quick)?,
        Some("node") => run.suites(NODE, None, !args.quick)?,
        Some(name) => run.suites(NODE, Some(name), !args.quick)?,
    }
    let whole = args.suite.is_none() && args.filter.is_none();
    Ok(run.tally.report(&skips, whole, begun.elapsed()))
}

impl Run {
    fn default(&mut self) -> Result<()> {
        self.fmt()?;
        self.deny()?;
        self.step("arrows", || crate::arrows::check().map(|()| true))?;
        self.step("docs", || crate::docs::check().map(|()| true))?;
        self.clippy()?;
        self.object()?;
        // All at once: a crate of its own gets its dependencies with fewer features, which is to say built once more.
        let built = out::timed("build the tests", || binaries::build(&["--workspace"]));
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        self.whole = Some(all);
        self.crates()?;
        self.suites(NODE, None, false)?;
        self.suites(SERVICES, None, false)
    }

    /// A check that passes or fails as a whole.
    fn step(&mut self, name: &str, check: impl FnOnce() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        let outcome = match check() {
            Ok(true) => Outcome::Passed,
            Ok(false) => Outcome::Failed(String::new()),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        if outcome == Outcome::Passed {
            out::line(&format!("✓ {name} ({:.1} s)", begun.elapsed().as_secs_f64()));
        }
        self.tally.add(name, outcome, begun.elapsed());
        Ok(())
    }

    fn fmt(&mut self) -> Result<()> {
        self.step("fmt", || succeeds(&mut cargo::command(&["fmt", "--all", "--check"])))
    }

    fn clippy(&mut self) -> Result<()> {
        self.step("clippy", || {
            let mut all = cargo::command(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked"]);
            succeeds(all.args(["--", "-D", "warnings"]))
        })
    }

    /// The committed object is what the sources of the kernel's programs make; said to be skipped where that cannot be
    /// built.
    fn object(&mut self) -> Result<()> {
        if let Some(lack) = crate::ebpf::lacking()? {
            self.tally.add("ebpf", Outcome::Skipped(lack), Duration::ZERO);
            return Ok(());
        }
        self.step("ebpf", crate::ebpf::check)
    }

    fn deny(&mut self) -> Result<()> {
        let Some(deny) = cargo_deny()? else {
            self.tally.add("deny", Outcome::Skipped("cargo-deny is not installed".into()), Duration::ZERO);
            return Ok(());
        };
        // Advisories need the net, which a test run may not have; they are checked where it has.
        let mut check = Command::new(deny);
        check.args(["--locked", "check", "bans", "licenses", "sources"]).current_dir(crate::root());
        self.step("deny", || succeeds(check.stdin(Stdio::null())))
    }

    /// Unit and integration tests of all crates but the node's suites, and the examples in the documentation.
    fn crates(&mut self) -> Result<()> {
        self.programs(false)?;
        let all = match &self.whole {
            Some(whole) => {
                whole.iter().filter(|b| ![NODE, SERVICES].contains(&b.package())).cloned().collect()
            }
            None => {
                let built = out::timed("build the tests of all crates", || {
                    binaries::build(&["--workspace", "--exclude", NODE, "--exclude", SERVICES])
                });
                let Some(all) = self.built("build", built)? else { return Ok(()) };
                all
            }
        };
        let (first, others): (Vec<_>, Vec<_>) = all.iter().partition(|b| b.package() == LONGEST);
        self.binaries(&[first, others].concat(), &[], LANES)?;
        if self.filter.is_none() {
            self.step("doc", || {
                let mut examples = cargo::command(&["test", "--quiet", "--workspace", "--doc", "--locked"]);
                let out = examples.output().context("run cargo test --doc")?;
                // Most crates have none: what each says of that is of use to nobody.
                anyhow::ensure!(
                    out.status.success(),
                    "{}{}",
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr)
                );
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// The histories of `plan` by the million.
    fn plan(&mut self) -> Result<()> {
        let built = binaries::build(&["--package", "berth-core", "--test", "histories"]);
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        self.binaries(&all.iter().collect::<Vec<_>>(), &[("BERTH_HISTORIES", "1000000")], 1)
    }

    /// Inputs nearly right by the hundred thousand: every test named after mutations, with the shares that it prints.
    fn mutations(&mut self) -> Result<()> {
        self.filter.get_or_insert_with(|| "mutat".to_owned());
        self.tally.show = true;
        // The harness has the mutator's own tests, and this program none.
        let built = out::timed("build the tests of all crates", || {
            binaries::build(&[
                "--workspace",
                "--exclude",
                NODE,
                "--exclude",
                SERVICES,
                "--exclude",
                "berth-harness",
                "--exclude",
                "xtask",
            ])
        });
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        // What they print is read as one text.
        self.binaries(&all.iter().collect::<Vec<_>>(), &[("BERTH_MUTATIONS", "100000")], 1)
    }

    /// A crate's suites, or one of them; `full` as much as there is, otherwise a tenth.
    fn suites(&mut self, package: &str, suite: Option<&str>, full: bool) -> Result<()> {
        self.programs(true)?;
        let all = match &self.whole {
            Some(whole) => whole.iter().filter(|b| b.package() == package).cloned().collect(),
            None => {
                let built = out::timed(&format!("build {package}"), || {
                    let mut args = vec!["--package", package];
                    if let Some(suite) = suite {
                        args.extend(["--test", suite]);
                    }
                    binaries::build(&args)
                });
                let Some(all) = self.built("build", built)? else { return Ok(()) };
                all
            }
        };
        let scale = if full { "full" } else { "tenth" };
        // One at a time: these compare the machine before and after, and measure.
        let env = [("BERTH_SCALE", scale), ("RUST_TEST_THREADS", "1")];
        self.binaries(&all.iter().collect::<Vec<_>>(), &env, 1)
    }

    /// Builds the programs under test once and tells the suites where they are.
    fn programs(&mut self, failpoints: bool) -> Result<()> {
        let mut builds = vec![(Build::Plain, "BERTH_BIN")];
        if failpoints {
            // First: the plain build comes last and stays.
            builds.insert(0, (Build::Failpoints, "BERTH_BIN_FAILPOINTS"));
        }
        for (build, name) in builds {
            let known = self.tally.env.iter().any(|(there, _)| there == name);
            if env::var_os(name).is_none() && !known {
                let dir = out::timed(&format!("build berth ({build:?})"), || tools::programs(build))?;
                self.tally.env.push((name.to_owned(), dir.into_os_string()));
            }
        }
        self.tally.env.push(("BERTH_XTASK".into(), this_program()?.into_os_string()));
        Ok(())
    }

    fn built(&mut self, name: &str, built: Result<Vec<Binary>>) -> Result<Option<Vec<Binary>>> {
        match built {
            Ok(all) => Ok(Some(all)),
            Err(error) => {
                self.tally.add(name, Outcome::Failed(format!("{error:#}")), Duration::ZERO);
                Ok(None)
            }
        }
    }

    fn binaries(&mut self, all: &[&Binary], env: &[(&str, &str)], crates: usize) -> Result<()> {
        let how = How { filter: self.filter.as_deref(), env, deadline: DEADLINE, crates };
        binaries::run(all, how, &mut self.tally)
    }
}

/// `cargo-deny` from the project's own tools or from PATH, where it is.
fn cargo_deny() -> Result<Option<PathBuf>> {
    let own = tools::cache()?.join("tools/cargo-deny/bin/cargo-deny");
    let all = [own, "cargo-deny".into()];
    let works = |program: &PathBuf| {
        let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        version.is_ok_and(|out| out.status.success())
    };
    Ok(all.into_iter().find(works))
}

/// Where this program lies. The kernel adds a word to the path of one that was built anew since it was started; what
/// lies there now is as good.
fn this_program() -> Result<PathBuf> {
    let path = env::current_exe().context("find this program")?;
    let now = path.to_str().and_then(|p| p.strip_suffix(" (deleted)")).map(PathBuf::from);
    let path = now.unwrap_or(path);
    anyhow::ensure!(path.is_file(), "{} is gone: build xtask anew", path.display());
    Ok(path)
}

/// Whether a command succeeds; its output goes where ours goes.
fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("run {:?}", command.get_program()))?.success())
}
