//! Test binaries: built by cargo and run by crate, with the time of each test.

use super::tally::{Outcome, Tally};
use crate::{cargo, out};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Name: `crate` for unit tests, `crate/target` for others.
    name: String,
    /// Directory of the crate, the working directory of its tests.
    dir: PathBuf,
    /// Path of the program.
    program: PathBuf,
}

impl Binary {
    /// Path of the program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Name of the crate.
    pub(crate) fn package(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// Builds tests and returns their binaries, ordered by crate.
pub(crate) fn build(args: &[&str]) -> Result<Vec<Binary>> {
    let mut command = cargo::command(&["test", "--no-run", "--quiet", "--locked", "--message-format=json"]);
    let out = command.args(args).stderr(Stdio::inherit()).output().context("run cargo test")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let told: Vec<String> = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .filter(|m| m["message"]["level"] == "error")
            .filter_map(|m| m["message"]["rendered"].as_str().map(str::to_owned))
            .collect();
        bail!("the tests do not build\n{}", told.join("\n"));
    }
    let mut found: Vec<Binary> = text.lines().filter_map(binary).collect();
    found.sort_by(|a, b| (a.package(), &a.name).cmp(&(b.package(), &b.name)));
    found.dedup();
    Ok(found)
}

/// The test binary in one line of cargo's JSON messages.
fn binary(line: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let program = PathBuf::from(message["executable"].as_str()?);
    let dir = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let target = message["target"]["name"].as_str()?.replace('_', "-");
    // `path+file:///…/agent/core#berth-core@0.0.0`; the name is absent where it equals the directory's name.
    let id = message["package_id"].as_str()?;
    let after = id.rsplit_once('#').map(|(_, after)| after)?;
    let package = match after.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => dir.file_name()?.to_string_lossy().into_owned(),
    };
    let name = if target == package { package } else { format!("{package}/{target}") };
    Some(Binary { name, dir, program })
}

/// Options for running binaries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How<'a> {
    /// Run only tests whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// Environment variables in addition to the tally's.
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// Time limit of one binary.
    pub(crate) deadline: Duration,
    /// Number of crates at the same time. Binaries of one crate run one after the other, because they share
    /// resources.
    pub(crate) crates: usize,
}

/// Runs all binaries and adds their tests to the tally.
pub(crate) fn run(binaries: &[&Binary], how: How<'_>, tally: &mut Tally) -> Result<()> {
    let crates: Vec<&[&Binary]> = binaries.chunk_by(|a, b| a.package() == b.package()).collect();
    let next = AtomicUsize::new(0);
    let empty = tally.part();
    let lane = || -> Result<Vec<Tally>> {
        let mut parts = Vec::new();
        while let Some(binaries) = crates.get(next.fetch_add(1, Ordering::Relaxed)) {
            for binary in *binaries {
                let mut part = empty.part();
                run_one(binary, how, &mut part)?;
                parts.push(part);
            }
        }
        Ok(parts)
    };
    let ended: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..how.crates.max(1)).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(ScopedJoinHandle::join).collect()
    });
    for lane in ended {
        let parts = lane.map_err(|_panic| anyhow!("the thread that runs tests panicked"))??;
        parts.into_iter().for_each(|part| tally.join(part));
    }
    Ok(())
}

/// Runs one binary and adds its tests. A binary that reports no tests counts as one test.
fn run_one(binary: &Binary, how: How<'_>, tally: &mut Tally) -> Result<()> {
    let begun = Instant::now();
    let mut child = Command::new(&binary.program)
        .args(["-Zunstable-options", "--format=json", "--report-time"])
        .args(tally.show.then_some("--show-output"))
        .args(how.filter)
        // libtest reports times only with unstable options, which this variable permits. The reader ignores
        // unknown fields.
        .env("RUSTC_BOOTSTRAP", "1")
        .envs(tally.env.iter().map(|(name, value)| (name, value)))
        .envs(how.env.iter().copied())
        .current_dir(&binary.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", binary.program.display()))?;
    let (lines, told) = mpsc::channel();
    let stdout = child.stdout.take().context("no standard output")?;
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut stderr = child.stderr.take().context("no standard error")?;
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        // A read error ends the text; the part read so far is kept.
        stderr.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    });
    let (mut last, mut finished, mut listed, mut other) = (begun, true, false, String::new());
    loop {
        let left = how.deadline.saturating_sub(begun.elapsed());
        match told.recv_timeout(left) {
            Ok(line) => match event(&line, last.elapsed()) {
                Some((name, outcome, took)) => {
                    listed = true;
                    last = Instant::now();
                    if tally.is_empty() {
                        out::line(&format!("… {}", binary.name));
                    }
                    if tally.show && outcome == Outcome::Passed {
                        out::line(printed(&line).trim_end());
                    }
                    tally.add(&format!("{}::{name}", binary.name), outcome, took);
                }
                None => {
                    listed |= line.contains(r#""type": "suite""#) || line.contains("test result:");
                    other.push_str(&line);
                    other.push('\n');
                }
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                finished = false;
                child.kill().context("end a test")?;
                break;
            }
        }
    }
    let status = child.wait().context("wait for a test")?;
    let took = begun.elapsed();
    let (_, failed) = tally.counts();
    if !finished {
        tally.add(&binary.name, Outcome::Failed(format!("ended after {} s", how.deadline.as_secs())), took);
    } else if !status.success() && failed == 0 {
        // Joined only in this case: a grandchild may keep the pipe open.
        let text = errors.join().unwrap_or_default();
        tally.add(&binary.name, Outcome::Failed(format!("{status}\n{other}{text}")), took);
    } else if status.success() && !listed {
        tally.add(&binary.name, Outcome::Passed, took);
    }
    let (passed, failed) = tally.counts();
    if passed + failed > 0 {
        let mark = if failed == 0 { "✓" } else { "✗" };
        out::line(&format!(
            "{mark} {}: {passed} passed, {failed} failed ({:.1} s)",
            binary.name,
            took.as_secs_f64()
        ));
    }
    Ok(())
}

/// Output of a test, from the JSON line that reports the test's end.
fn printed(line: &str) -> String {
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    message["stdout"].as_str().unwrap_or_default().to_owned()
}

/// Result of a test from a line of output: libtest's JSON, or `test <name> ... ok` with the time since the
/// last result.
fn event(line: &str, since: Duration) -> Option<(String, Outcome, Duration)> {
    if let Ok(message) = serde_json::from_str::<Value>(line) {
        if message["type"] != "test" {
            return None;
        }
        let name = message["name"].as_str()?.to_owned();
        let took = Duration::from_secs_f64(message["exec_time"].as_f64().unwrap_or(0.0));
        let outcome = match message["event"].as_str()? {
            "ok" => Outcome::Passed,
            "failed" => Outcome::Failed(message["stdout"].as_str().unwrap_or_default().to_owned()),
            "timeout" => return None,
            "ignored" => Outcome::Skipped(message["message"].as_str().unwrap_or("ignored").to_owned()),
            _ => return None,
        };
        return Some((name, outcome, took));
    }
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let outcome = match end.trim() {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed(String::new()),
        "ignored" => Outcome::Skipped("ignored".into()),
        _ => return None,
    };
    Some((name.to_owned(), outcome, since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_output_are_read() {
        let json = r#"{ "type": "test", "name": "a::b", "event": "ok", "exec_time": 0.25 }"#;
        assert_eq!(
            event(json, Duration::ZERO),
            Some(("a::b".into(), Outcome::Passed, Duration::from_millis(250)))
        );
        let failed = r#"{ "type": "test", "event": "failed", "name": "x", "stdout": "why\n" }"#;
        assert_eq!(event(failed, Duration::ZERO).unwrap().1, Outcome::Failed("why\n".into()));
        let ignored = r#"{ "type": "test", "event": "ignored", "name": "x", "message": "slow" }"#;
        assert_eq!(event(ignored, Duration::ZERO).unwrap().1, Outcome::Skipped("slow".into()));
        assert_eq!(event(r#"{ "type": "test", "event": "started", "name": "x" }"#, Duration::ZERO), None);
        let plain = event("test exec::a ... FAILED", Duration::from_secs(2)).unwrap();
        assert_eq!(plain, ("exec::a".into(), Outcome::Failed(String::new()), Duration::from_secs(2)));
        assert_eq!(event("testing 1 2 3", Duration::ZERO), None);
    }

    #[test]
    fn only_tests_among_what_was_built_are_binaries() {
        let line = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/agent/core#berth-core@0.0.0","manifest_path":"/w/agent/core/Cargo.toml","target":{{"name":"histories"}},"profile":{{"test":{test}}},"executable":"/w/target/debug/deps/histories-1"}}"#
            )
        };
        let found = binary(&line(true)).unwrap();
        assert_eq!(
            (found.name.as_str(), found.dir.to_str().unwrap()),
            ("berth-core/histories", "/w/agent/core")
        );
        assert_eq!(binary(&line(false)), None);
    }
}
