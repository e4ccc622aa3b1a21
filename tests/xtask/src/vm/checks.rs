//! The checks: scripts in `tests/vm/checks`, run in the VM one after the other.
//!
//! Each line `PASS <name>`, or `FAIL <name>`, a tab and why, of a script is a test; what else it prints is told. A script that does
//! not get to its end is a failed test of its own.

use super::machine::Machine;
use crate::{
    out,
    test::tally::{Outcome, Tally},
};
use anyhow::Result;
use std::time::{Duration, Instant};

/// What is done in the VM, in this order.
const STEPS: [Step; 9] = [
    Step::Script("node"),
    Step::Script("pods"),
    Step::Script("cgroups"),
    Step::Script("services"),
    Step::Script("helpers"),
    Step::Script("agent"),
    Step::Script("cni"),
    Step::Reboot { before: "shutdown" },
    Step::Script("booted"),
];

/// How long a script may take.
const LIMIT: Duration = Duration::from_secs(420);

/// How long the end of a boot may take: the graceful end of pods and what systemd needs besides, on an emulated
/// processor. systemd's own patience with what does not end is 90 s.
const SHUTDOWN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// That script.
    Script(&'static str),
    /// A reboot after that script.
    Reboot {
        /// The script.
        before: &'static str,
    },
}

/// Runs those steps whose name contains `filter`, and the first.
///
/// # Errors
/// The VM is lost.
pub(super) fn run(machine: &mut Machine, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    for step in STEPS {
        let (Step::Script(name) | Step::Reboot { before: name }) = step;
        if filter.is_some_and(|f| !name.contains(f)) {
            continue;
        }
        script(machine, name, tally)?;
        if let Step::Reboot { .. } = step {
            reboot(machine, tally)?;
        }
    }
    Ok(())
}

fn script(machine: &mut Machine, name: &str, tally: &mut Tally) -> Result<()> {
    out::line(&format!("… {name}"));
    let begun = Instant::now();
    let mut last = Instant::now();
    let (mut ended, mut rest) = (false, Vec::new());
    let script = format!("cd /root/checks && . ./lib.sh && . ./{name}.sh && echo END");
    let code = machine.run(&script, LIMIT, |line| {
        let (verdict, what) = line.split_once(' ').unwrap_or((line, ""));
        match verdict {
            "PASS" => {
                out::line(&format!("✓ {name}: {what}"));
                tally.add(&format!("vm {name}: {what}"), Outcome::Passed, last.elapsed());
            }
            "FAIL" => {
                let (what, why) = what.split_once('\t').unwrap_or((what, ""));
                tally.add(&format!("vm {name}: {what}"), Outcome::Failed(why.to_owned()), last.elapsed());
            }
            "END" => ended = true,
            _ => {
                out::line(&format!("  {line}"));
                rest.push(line.to_owned());
                return;
            }
        }
        last = Instant::now();
    })?;
    if code != 0 || !ended {
        let why = format!("it ended with {code} before its end:\n{}", rest.join("\n"));
        tally.add(&format!("vm {name}"), Outcome::Failed(why), begun.elapsed());
    }
    Ok(())
}

/// Reboots, and looks how long the end of the old boot took.
fn reboot(machine: &mut Machine, tally: &mut Tally) -> Result<()> {
    let boot = machine.must("read the boot's id", "cat /proc/sys/kernel/random/boot_id", LIMIT)?;
    let begun = Instant::now();
    machine.must("reboot", "systemctl reboot", LIMIT)?;
    machine.wait(Some(boot.trim()))?;
    let up = machine.must("read how long the VM is up", "cut -d' ' -f1 /proc/uptime", LIMIT)?;
    let up = Duration::from_secs_f64(up.trim().parse().unwrap_or(0.0));
    let took = begun.elapsed().saturating_sub(up);
    let name = format!("vm shutdown: the machine is down within {} s", SHUTDOWN.as_secs());
    let outcome = if took <= SHUTDOWN {
        out::line(&format!("✓ {name} ({:.0} s)", took.as_secs_f64()));
        Outcome::Passed
    } else {
        Outcome::Failed(format!("it took {:.0} s", took.as_secs_f64()))
    };
    tally.add(&name, outcome, took);
    Ok(())
}
