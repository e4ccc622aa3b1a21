//! `cargo xtask vm` and the suite of the same name: the machine that users have.
//!
//! A VM is Debian 13 with a stock kernel, systemd and cgroup version 2 only, on an emulated processor, so that any machine
//! can run it. Berth is installed in it by README's "By hand", word for word, and runs on its default roots. What it is
//! made of lies in the user's cache directory; nothing runs and nothing is mounted when the command is over.

mod apt;
mod by_hand;
mod cache;
mod checks;
mod image;
mod kernel;
mod machine;
mod payload;
mod root;

use crate::{out, setup, test::tally::Tally};
use anyhow::{Context, Result, bail};
use cache::Cache;
use machine::Machine;
use std::{path::PathBuf, time::Duration};

/// The directory of a running VM, in the cache.
const RUN: &str = "run";

/// How long a command that is given by hand may take.
const BY_HAND: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kernel: `stable` (Debian 13's own), `oldest` (that Debian offers and Berth runs on), `newest`, or the
    /// beginning of a release.
    #[arg(long, value_name = "KERNEL", default_value = "stable")]
    kernel: String,
    /// Take the optimised build, as README does; it takes minutes.
    #[arg(long)]
    release: bool,
    /// Leave the VM running; the next call runs its command in it.
    #[arg(long)]
    keep: bool,
    /// End the VM that was left running.
    #[arg(long, conflicts_with_all = ["keep", "command"])]
    down: bool,
    /// Run this by bash in the VM.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Boots, runs the command and ends. Returns the command's exit code.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let cache = Cache::open()?;
    let dir = cache.dir(RUN)?;
    let mut machine = match Machine::running(&dir) {
        Some(machine) if args.down => {
            machine.end()?;
            cache.empty_dir(RUN)?;
            return Ok(0);
        }
        None if args.down => bail!("no VM was left running"),
        Some(machine) => machine,
        None => boot(&cache, &args.kernel, args.release, args.keep)?,
    };
    // Where it ran already it stays, too.
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

/// Runs the checks in a VM with that kernel, each as a test of the tally.
///
/// # Errors
/// There is no VM to check in.
pub(crate) fn suite(kernel: &str, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let cache = Cache::open()?;
    if Machine::running(&cache.dir(RUN)?).is_some() {
        bail!("a VM was left running: end it by `cargo xtask vm --down`");
    }
    let mut machine = boot(&cache, kernel, false, false)?;
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

/// A VM with Berth installed and running.
fn boot(cache: &Cache, wanted: &str, release: bool, stay: bool) -> Result<Machine> {
    setup::for_vm()?;
    let kernel = kernel::get(cache, wanted)?;
    let root = root::get(cache)?;
    let image = image::get(cache, &root, &kernel)?;
    let dir = cache.empty_dir(RUN)?;
    let payload = payload::make(&dir, release)?;
    let mut machine = Machine::start(&dir, &kernel, &image, &payload, stay)?;
    let ready = out::timed(&format!("boot Debian with the kernel {}", kernel.release), || {
        machine.wait(None)?;
        machine.must("unpack the second disk", payload::UNPACK, Duration::from_secs(120))
    });
    let installed = ready.and_then(|_| {
        let script = by_hand::script()?;
        out::timed("install Berth as README's \"By hand\" says", || {
            machine.must("install Berth by hand", &script, Duration::from_secs(180))
        })
    });
    match installed {
        Ok(_) => Ok(machine),
        Err(error) => {
            let kept = keep_logs(cache, &mut machine);
            machine.end()?;
            Err(error).with_context(|| match kept {
                Ok(kept) => format!("the VM's logs are in {}", kept.display()),
                Err(also) => format!("the VM's logs are not kept: {also:#}"),
            })
        }
    }
}

/// Takes what the VM has to say out of it: the console, the journals of all its boots, what Berth shows.
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
