//! `kubectl logs`: its options, and following over rotations.

use super::{OLD, Stage, TWICE, of_version, pod, running};
use crate::cluster::Node;
use anyhow::{Context, Result, ensure};
use berth_harness::wait::PATIENCE;
use std::{fmt::Write as _, process::Command};

/// Parts of the long output, each larger than a log file may get (10 MiB).
const PARTS: usize = 7;
/// Lines of a part.
const LINES: usize = 11_000;
/// Bytes of a line besides its numbers.
const PAD: usize = 1000;

/// What the writer's script writes.
fn expected() -> Vec<u8> {
    let pad = "x".repeat(PAD);
    let mut text = String::with_capacity(PARTS * LINES * (PAD + 12));
    for part in 1..=PARTS {
        for line in 0..LINES {
            // Writing to a string cannot fail.
            writeln!(text, "{part}-{line}-{pad}").ok();
        }
    }
    text.into_bytes()
}

/// Follows seven parts of 11 MB from before the first to the end, byte by byte.
pub(super) fn rotations(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    // The kubelet looks each ten seconds whether a file is too large.
    let pause = if stage.node == Node::Kubelet { 12 } else { 1 };
    let name = of_version("writer", kubectl);
    let script = format!(
        "until [ -e /go ]; do sleep 0.1; done\npad=$(printf '%{PAD}s' | tr ' ' x)\n\
         for p in $(seq {PARTS}); do\nawk -v p=$p -v pad=$pad \
         'BEGIN {{ for (i = 0; i < {LINES}; i++) print p \"-\" i \"-\" pad }}'\nsleep {pause}\ndone"
    );
    stage.cluster.apply(&name, &pod(&name, "  restartPolicy: Never\n", "", &script))?;
    running(stage, &name)?;
    let client = stage.kubectl(kubectl);
    let follow = client.start(&["logs", "-f", &name])?;
    client.ok(&["exec", &name, "--", "touch", "/go"])?;
    let (code, got) = follow.end(4 * PATIENCE)?;
    let wanted = expected();
    ensure!(code == 0, "logs -f ends with {code}");
    if got != wanted {
        let at = got.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or(got.len().min(wanted.len()));
        let from = at.saturating_sub(60);
        let near = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes.get(from..bytes.len().min(at + 60)).unwrap_or_default())
                .into_owned()
        };
        anyhow::bail!(
            "{} bytes of {}, other from byte {at} on: {:?}, not {:?}",
            got.len(),
            wanted.len(),
            near(&got),
            near(&wanted)
        );
    }
    let files = log_files(stage, &name)?;
    ensure!(files > 1, "the log was never rotated");
    client.ok(&["delete", "pod", &name, "--now"])?;
    Ok(format!("{} bytes byte by byte; {files} files are left of the log", got.len()))
}

/// Number of the files of a pod's log.
fn log_files(stage: &Stage<'_>, pod: &str) -> Result<usize> {
    let mut find = Command::new("find");
    find.arg(stage.cluster.file("")).args([
        "-type",
        "f",
        "-path",
        &format!("*default_{pod}_*"),
        "-name",
        "0.log*",
    ]);
    let out = find.output().context("cannot run find")?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().count())
}

/// `--previous`, `--tail`, `--limit-bytes`, `--since`, `--since-time`, `--timestamps`, and names that do not exist.
pub(super) fn options(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    let of = |args: &[&str]| -> Result<String> { Ok(client.ok(&[&["logs", TWICE], args].concat())?.text()) };
    let first = "first 1\nfirst 2\nfirst 3\n";
    for (args, wanted) in [
        (&[][..], "second\n"),
        (&["--previous"], first),
        (&["--previous", "--tail=2"], "first 2\nfirst 3\n"),
        (&["--previous", "--tail=0"], ""),
        (&["--previous", "--tail=-1"], first),
        (&["--previous", "--limit-bytes=10"], "first 1\nfi"),
        (&["--previous", "--tail=2", "--limit-bytes=3"], "fir"),
        (&["--previous", "--since=1h"], first),
        (&["--previous", "--since-time=2020-01-01T00:00:00Z"], first),
        (&["--previous", "--since-time=2999-01-01T00:00:00Z"], ""),
        (&["-c", "main", "-p"], first),
    ] {
        let got = of(args)?;
        ensure!(got == wanted, "logs {args:?}: {got:?}, not {wanted:?}");
    }
    let stamped = of(&["--previous", "--timestamps"])?;
    let lines: Vec<(&str, &str)> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
    let texts: Vec<&str> = lines.iter().map(|(_, text)| *text).collect();
    ensure!(texts.join("\n") + "\n" == first, "{stamped:?}");
    let second = lines.get(1).map(|(time, _)| *time).unwrap_or_default();
    let rest = of(&["--previous", &format!("--since-time={second}")])?;
    // A time is sent without its fraction.
    ensure!(rest == first, "since {second}: {rest:?}");
    let none = client.run(&["logs", TWICE, "-c", "none"], None)?;
    ensure!(
        none.code == 1 && none.err.contains("container none is not valid for pod twice"),
        "a container that does not exist: {} {:?}",
        none.code,
        none.err
    );
    let none = client.run(&["logs", "web", "--previous"], None)?;
    ensure!(
        none.code == 1
            && none.err.contains("previous terminated container \"main\" in pod \"web\" not found"),
        "a first run has no previous one: {} {:?}",
        none.code,
        none.err
    );
    Ok(format!("14 forms{}", if kubectl == OLD { " over HTTP" } else { "" }))
}
