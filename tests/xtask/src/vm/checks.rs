//! Checks of a VM: scripts in `tests/vm/checks`, run in the VM one after the other.
//!
//! Each line `PASS <name>` of a script, or `FAIL <name>` with a tab and the reason, is the result of one
//! test. Other output is printed. A script that does not reach its end counts as a failed test of its own.

use super::machine::Machine;
use crate::{
    out,
    test::tally::{Outcome, Tally},
};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Steps in the VM, in this order.
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

/// Time limit of a script.
const LIMIT: Duration = Duration::from_secs(420);

/// Time limit of a shutdown: the graceful end of pods and systemd's own work, on an emulated processor.
/// systemd itself waits 90 s for a unit that does not stop.
const SHUTDOWN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Run this script.
    Script(&'static str),
    /// Run a script, then reboot.
    Reboot {
        /// Name of the script.
        before: &'static str,
    },
}

/// Runs the steps whose name contains `filter`; all steps without a filter.
///
/// # Errors
/// The connection to the VM is lost.
pub(super) fn run(machine: &mut Machine, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    for step in STEPS {
        let (Step::Script(name) | Step::Reboot { before: name }) = step;
        if filter.is_some_and(|f| !name.contains(f)) {
            continue;
        }
        script(machine, name, LIMIT, tally)?;
        if let Step::Reboot { .. } = step {
            reboot(machine, "shutdown", SHUTDOWN, tally)?;
        }
    }
    Ok(())
}

/// Runs a script; each of its checks counts as a test.
///
/// # Errors
/// The connection to the VM is lost.
pub(super) fn script(machine: &mut Machine, name: &str, limit: Duration, tally: &mut Tally) -> Result<()> {
    script_with(machine, name, "", limit, tally)
}

/// The same with assignments of variables before it.
///
/// # Errors
/// The connection to the VM is lost.
pub(super) fn script_with(
    machine: &mut Machine,
    name: &str,
    variables: &str,
    limit: Duration,
    tally: &mut Tally,
) -> Result<()> {
    out::line(&format!("… {name}"));
    let begun = Instant::now();
    let mut last = Instant::now();
    let (mut ended, mut rest) = (false, Vec::new());
    let script = format!("{variables}\ncd /root/checks && . ./lib.sh && . ./{name}.sh && echo END");
    let code = machine.run(&script, limit, |line| {
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

/// Reboots the VM and checks that the shutdown takes no longer than `limit`.
///
/// # Errors
/// The connection to the VM is lost.
pub(super) fn reboot(machine: &mut Machine, name: &str, limit: Duration, tally: &mut Tally) -> Result<()> {
    let boot = machine.must("read the boot's id", "cat /proc/sys/kernel/random/boot_id", LIMIT)?;
    let begun = Instant::now();
    machine.must("reboot", "systemctl reboot", LIMIT)?;
    machine.wait(Some(boot.trim()))?;
    let up = machine.must("read how long the VM is up", "cut -d' ' -f1 /proc/uptime", LIMIT)?;
    let up = Duration::from_secs_f64(up.trim().parse().unwrap_or(0.0));
    let took = begun.elapsed().saturating_sub(up);
    let name = format!("vm {name}: the machine is down within {} s", limit.as_secs());
    let outcome = if took <= limit {
        out::line(&format!("✓ {name} ({:.0} s)", took.as_secs_f64()));
        Outcome::Passed
    } else {
        Outcome::Failed(format!("it took {:.0} s", took.as_secs_f64()))
    };
    tally.add(&name, outcome, took);
    Ok(())
}
