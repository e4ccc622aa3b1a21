//! `cargo xtask vm` and the suite of the same name: Berth on a machine as users have it.
//!
//! The VM runs Debian 13 with a stock kernel, systemd and cgroup version 2 only. Its processor is emulated,
//! so any machine can run the VM. Berth is installed by README's "By hand", word for word, and uses its
//! default roots. The VM's parts lie in the user's cache directory. After the command no process runs and
//! nothing stays mounted.

mod by_hand;
mod cache;
mod checks;
pub(crate) mod csi;
mod image;
mod kernel;
mod machine;
mod payload;
mod record;
mod root;

use crate::{out, setup, test::tally::Tally};
use anyhow::{Context, Result, bail, ensure};
use cache::Cache;
use machine::{Machine, Start};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Directory of a running VM, in the cache.
const RUN: &str = "run";

const LEFT_RUNNING: &str = "a VM was left running: end it by `cargo xtask vm --down`";

/// Time limit of a command given by hand.
const BY_HAND: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kernel: `stable` (Debian 13's own), `oldest` (the oldest that Debian offers and Berth supports),
    /// `newest`, or the beginning of a release.
    #[arg(long, value_name = "KERNEL", default_value = "stable")]
    kernel: String,
    /// Use the optimised build, as README does; building takes minutes.
    #[arg(long)]
    release: bool,
    /// Leave the VM running; the next call runs its command in that VM.
    #[arg(long)]
    keep: bool,
    /// End the VM that was left running.
    #[arg(long, conflicts_with_all = ["keep", "command"])]
    down: bool,
    /// Record the shapes of tests/shapes with the real kubelet, in a VM without Berth, into tests/golden/v2.
    #[arg(long, conflicts_with_all = ["keep", "release", "down", "command"])]
    record: bool,
    /// With --record: only these shapes, separated by commas.
    #[arg(long, value_name = "SHAPES", requires = "record")]
    only: Option<String>,
    /// With --record: only these kinds of recordings (spec, status, events, output, cgroup), separated by
    /// commas.
    #[arg(long, value_name = "KINDS", requires = "record")]
    kinds: Option<String>,
    /// Run this bash command in the VM.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Boots the VM, runs the command and ends the VM. Returns the command's exit code.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let cache = Cache::open()?;
    let dir = cache.dir(RUN)?;
    if args.record {
        ensure!(Machine::running(&dir).is_none(), LEFT_RUNNING);
        record::run(&cache, &args.kernel, args.only.as_deref(), args.kinds.as_deref())?;
        return Ok(0);
    }
    let mut machine = match Machine::running(&dir) {
        Some(machine) if args.down => {
            machine.end()?;
            cache.empty_dir(RUN)?;
            return Ok(0);
        }
        None if args.down => bail!("no VM was left running"),
        Some(machine) => machine,
        None => boot(&cache, &args.kernel, args.release, args.keep, &[])?,
    };
    // A VM that was already running stays up.
    let stays = args.keep || !machine.is_ours();
    let mut code = 0;
    if !args.command.is_empty() {
        code = machine.run(&args.command.join(" "), BY_HAND, out::line)?;
    }
    if stays {
        machine.leave();
        out::line(
            "the VM runs on: `cargo xtask vm -- COMMAND` runs a command in it, `cargo xtask vm --down` ends it",
        );
    } else {
        machine.end()?;
        cache.empty_dir(RUN)?;
    }
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Runs the checks in a VM with this kernel. Each check counts as a test of the tally.
///
/// # Errors
/// No VM can be started.
pub(crate) fn suite(kernel: &str, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let cache = Cache::open()?;
    ensure!(Machine::running(&cache.dir(RUN)?).is_none(), LEFT_RUNNING);
    let mut machine = boot(&cache, kernel, false, false, &[])?;
    let (_, before) = tally.counts();
    let done = checks::run(&mut machine, filter, tally);
    if done.is_err() || tally.counts().1 > before {
        let kept = keep_logs(&cache, &mut machine)?;
        out::line(&format!("the VM's logs are in {}", kept.display()));
    }
    machine.end()?;
    cache.empty_dir(RUN)?;
    done
}

/// A VM with Berth installed and running, and with further programs.
fn boot(cache: &Cache, wanted: &str, release: bool, stay: bool, more: &[(&str, &Path)]) -> Result<Machine> {
    let start_with = Start { stay, options: "" };
    let mut machine = start(cache, wanted, start_with, |dir| payload::make(dir, release, more))?;
    let installed = by_hand::script().and_then(|script| {
        out::timed("install Berth as README's \"By hand\" says", || {
            machine.must("start containerd", "systemctl enable --now containerd", Duration::from_secs(60))?;
            machine.must("install Berth by hand", &script, Duration::from_secs(180))
        })
    });
    match installed {
        Ok(_) => Ok(machine),
        Err(error) => Err(with_logs(cache, machine, error)),
    }
}

/// A VM into which the disk made by `payload` is unpacked.
fn start(
    cache: &Cache,
    wanted: &str,
    how: Start<'_>,
    payload: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<Machine> {
    setup::for_vm()?;
    let kernel = kernel::get(cache, wanted)?;
    let root = root::get(cache)?;
    let image = image::get(cache, &root, &kernel)?;
    let dir = cache.empty_dir(RUN)?;
    let payload = payload(&dir)?;
    let mut machine = Machine::start(&dir, &kernel, &image, &payload, how)?;
    let ready = out::timed(&format!("boot Debian with the kernel {}", kernel.release), || {
        machine.wait(None)?;
        machine.must("unpack the second disk", payload::UNPACK, Duration::from_secs(180))
    });
    match ready {
        Ok(_) => Ok(machine),
        Err(error) => Err(with_logs(cache, machine, error)),
    }
}

/// Ends a VM after a failure and adds the location of its logs to the error.
fn with_logs(cache: &Cache, mut machine: Machine, error: anyhow::Error) -> anyhow::Error {
    let kept = match keep_logs(cache, &mut machine) {
        Ok(kept) => format!("the VM's logs are in {}", kept.display()),
        Err(also) => format!("the VM's logs are not kept: {also:#}"),
    };
    match machine.end() {
        Ok(()) => error.context(kept),
        Err(also) => error.context(kept).context(format!("the VM is not ended: {also:#}")),
    }
}

/// Saves the VM's diagnostics: the console, the journals of all boots and the output of Berth's commands.
fn keep_logs(cache: &Cache, machine: &mut Machine) -> Result<PathBuf> {
    let to = crate::root().join("target/vm");
    std::fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let console = cache.dir(RUN)?.join(machine::CONSOLE);
    if console.is_file() {
        std::fs::copy(&console, to.join(machine::CONSOLE)).context("cannot keep the console's log")?;
    }
    for (name, script) in [
        (
            "journal.log",
            "for boot in $(journalctl --list-boots -q | awk '{print $1}'); do echo \"boot $boot\"; journalctl --no-pager -b \"$boot\" -o short-monotonic; done",
        ),
        (
            "berth.log",
            "berth status; berth pods; berth ps; berth events; berth services; berth bpf; ip address; ip route; nft list ruleset; cat /run/berth/*.out",
        ),
    ] {
        let mut text = String::new();
        let asked = machine.run(script, Duration::from_secs(90), |line| {
            text.push_str(line);
            text.push('\n');
        });
        if let Err(error) = asked {
            text.push_str(&format!("\n{error:#}\n"));
        }
        std::fs::write(to.join(name), text).with_context(|| format!("cannot keep {name}"))?;
    }
    Ok(to)
}
