//! `cargo xtask test`: runs every check and test, and reports passes, failures, skips with reasons and the
//! slowest tests.

mod binaries;
mod skips;
pub(crate) mod tally;

use crate::{cargo, cluster::Node, out, setup};
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

/// Crate with the suites of a real node.
const NODE: &str = "berth-tests-node";

/// Crate with the suites of Services under load.
const SERVICES: &str = "berth-tests-services";

/// Time limit of a test binary. Slower binaries are killed.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The same for the suite of attacks: a hundred thousand mounts and more, each with a grace period of the kernel.
const DEADLINE_OF_ATTACKS: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only this suite: fmt, clippy, deny, ebpf, arrows, docs, crates, plan (a million histories),
    /// mutations (a hundred thousand of each kind of input), attack (a hundred thousand rounds of each attack on volumes
    /// and logs), services (five minutes of churn, two nodes),
    /// csi (the CSI crates, and csi-sanity against the driver for NFS), csi-cluster (that
    /// driver on a real control plane, with the standard sidecars; --node kubelet for the real kubelet), nfs (it with a real server, and NFS volumes of a
    /// node's pods, in VMs), node (all node suites), one of the node suites (demo, lifecycle, output, pulls, kill, parity), cluster
    /// (one outage of a real control plane), or vm (Debian in a VM). A suite named here runs in full.
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// With --suite: run only the part that the default run has of this suite.
    #[arg(long)]
    quick: bool,
    /// With the suites vm and nfs: the kernel, `stable` (Debian 13's own), `oldest`, `newest` or the beginning of a
    /// release.
    #[arg(long, value_name = "KERNEL", default_value = "stable")]
    kernel: String,
    /// With the suite nfs: for how long the server is away, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    away: u64,
    /// With the suite csi-cluster: what runs the pods, berth or kubelet.
    #[arg(long, value_enum, default_value = "berth")]
    node: Node,
    /// Run only tests whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// Crate with the slowest tests. Its tests start first, so that they do not prolong the end of the run.
const LONGEST: &str = "berth-ebpf-loader";

/// Number of crates whose tests run at the same time. Most tests wait more than they compute.
const LANES: usize = 2;

/// Whether the default run has the suite `cluster`. Building the programs of a control plane takes ten minutes, once.
const CLUSTER_BY_DEFAULT: bool = false;

/// State of a run.
struct Run {
    tally: Tally,
    filter: Option<String>,
    /// Test binaries of the whole workspace; `None` until they are built.
    whole: Option<Vec<Binary>>,
}

/// Runs the tests; `Ok(false)` where a test failed.
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
        Some("attack") => run.attack()?,
        Some("csi") => run.csi()?,
        Some("csi-cluster") => crate::csi::cluster::suite(args.node, &mut run.tally)?,
        Some("cluster") => crate::outage::suite(&mut run.tally)?,
        Some("nfs") => run.nfs(&args.kernel, Duration::from_secs(args.away))?,
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
        // One build for the whole workspace: building a crate alone selects fewer features and compiles its
        // dependencies again.
        let built = out::timed("build the tests", || binaries::build(&["--workspace"]));
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        self.whole = Some(all);
        self.crates()?;
        self.suites(NODE, None, false)?;
        self.suites(SERVICES, None, false)?;
        if CLUSTER_BY_DEFAULT && self.filter.is_none() {
            crate::outage::suite(&mut self.tally)?;
        }
        Ok(())
    }

    /// Runs a check that passes or fails as a whole.
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
        self.step("fmt", || {
            succeeds(&mut cargo::command(&["fmt", "--all", "--check"]))?;
            // The eBPF programs are a workspace of their own.
            succeeds(&mut cargo::command(&["fmt", "--manifest-path", "ebpf/programs/Cargo.toml", "--check"]))
        })
    }

    fn clippy(&mut self) -> Result<()> {
        self.step("clippy", || {
            let mut all = cargo::command(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked"]);
            succeeds(all.args(["--", "-D", "warnings"]))
        })
    }

    /// Checks that the committed eBPF object equals the one built from the sources. Skipped where the tools
    /// for the build are missing and cannot be installed.
    fn object(&mut self) -> Result<()> {
        if let Err(lack) = crate::ebpf::tools() {
            self.tally.add("ebpf", Outcome::Skipped(format!("{lack:#}")), Duration::ZERO);
            return Ok(());
        }
        self.step("ebpf", crate::ebpf::check)
    }

    /// Checks licences, sources and versions of the dependencies by `deny.toml`. The check of advisories needs the
    /// network, which a test run may not have: run `cargo deny check` for it.
    fn deny(&mut self) -> Result<()> {
        self.step("deny", || {
            let mut check = Command::new(setup::cargo_deny()?);
            check.args(["--locked", "check", "bans", "licenses", "sources"]).current_dir(crate::root());
            succeeds(check.stdin(Stdio::null()))
        })
    }

    /// Unit and integration tests of all crates without the node's and Services' suites, and the examples in
    /// the documentation.
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
                // The output is shown only on failure: most crates have no examples.
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

    /// A million random histories of `plan`.
    fn plan(&mut self) -> Result<()> {
        let built = binaries::build(&["--package", "berth-core", "--test", "histories"]);
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        self.binaries(&all.iter().collect::<Vec<_>>(), &[("BERTH_HISTORIES", "1000000")], 1)
    }

    /// A hundred thousand nearly valid inputs for every test named after mutations. Passing tests print their
    /// shares.
    fn mutations(&mut self) -> Result<()> {
        self.filter.get_or_insert_with(|| "mutat".to_owned());
        self.tally.show = true;
        // The harness has only the mutator's own tests, and xtask has no mutation tests.
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
        // The printed shares are read as one text, so one crate runs at a time.
        self.binaries(&all.iter().collect::<Vec<_>>(), &[("BERTH_MUTATIONS", "100000")], 1)
    }

    /// A hundred thousand rounds of every test named after an attack. Passing tests print what happened in them.
    fn attack(&mut self) -> Result<()> {
        self.filter.get_or_insert_with(|| "attack".to_owned());
        self.tally.show = true;
        let packages =
            ["--package", "berth-volumes", "--package", "berth-csi-nfs", "--package", "berth-logd"];
        let built = out::timed("build the tests of volumes and of logs", || binaries::build(&packages));
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        let all: Vec<&Binary> = all.iter().collect();
        let env = [("BERTH_ATTACKS", "100000")];
        let how = How { filter: self.filter.as_deref(), env: &env, deadline: DEADLINE_OF_ATTACKS, crates: 1 };
        binaries::run(&all, how, &mut self.tally)
    }

    /// The tests of the crates in `csi`, and csi-sanity.
    fn csi(&mut self) -> Result<()> {
        let packages =
            ["--package", "berth-csi-proto", "--package", "berth-csi-client", "--package", "berth-csi-nfs"];
        let built = out::timed("build the tests of csi", || binaries::build(&packages));
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        self.binaries(&all.iter().collect::<Vec<_>>(), &[], 1)?;
        if self.filter.is_none() {
            crate::csi::sanity(&mut self.tally)?;
        }
        Ok(())
    }

    /// The driver for NFS with a real server, in a VM, and NFS volumes of the agent in another. With the filter `driver` or
    /// `agent` one of them.
    fn nfs(&mut self, kernel: &str, away: Duration) -> Result<()> {
        let only = self.filter.clone().unwrap_or_default();
        if "driver".contains(&only) {
            self.nfs_driver(kernel)?;
        }
        if "agent".contains(&only) {
            crate::vm::csi::agent_suite(kernel, away, &mut self.tally)?;
        }
        Ok(())
    }

    fn nfs_driver(&mut self, kernel: &str) -> Result<()> {
        let built = out::timed("build the tests of berth-csi-nfs", || {
            binaries::build(&["--package", "berth-csi-nfs", "--test", "driver"])
        });
        let Some(all) = self.built("build", built)? else { return Ok(()) };
        let tests = all.first().context("berth-csi-nfs has no tests of calls")?;
        crate::vm::csi::suite(kernel, tests.program(), &mut self.tally)
    }

    /// The suites of a crate, or one of them: in full with `full`, otherwise a tenth of the repetitions.
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
        // One test at a time: these suites compare the machine before and after, and take measurements.
        let env = [("BERTH_SCALE", scale), ("RUST_TEST_THREADS", "1")];
        self.binaries(&all.iter().collect::<Vec<_>>(), &env, 1)
    }

    /// Builds the programs under test once and passes their paths to the suites.
    fn programs(&mut self, failpoints: bool) -> Result<()> {
        let mut builds = vec![(Build::Plain, "BERTH_BIN")];
        if failpoints {
            // The build with failpoints comes first, so that the plain build stays in the target directory.
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

/// Path of this program. The kernel appends ` (deleted)` to the path of a program that was rebuilt since its
/// start; the new file serves as well.
fn this_program() -> Result<PathBuf> {
    let path = env::current_exe().context("find this program")?;
    let now = path.to_str().and_then(|p| p.strip_suffix(" (deleted)")).map(PathBuf::from);
    let path = now.unwrap_or(path);
    anyhow::ensure!(path.is_file(), "{} is gone: build xtask anew", path.display());
    Ok(path)
}

/// Whether a command succeeds. The command writes to the standard output and error of xtask.
fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("run {:?}", command.get_program()))?.success())
}
