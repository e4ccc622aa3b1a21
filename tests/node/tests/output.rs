//! Container output while the agent is down, and while logd is killed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, ensure};
use berth_harness::{
    logs, rng,
    socket::Pod,
    tools::Build,
    wait::{self, PATIENCE},
};
use std::time::{Duration, Instant};
use support::{IMAGE, apply, full, on_a_node, pod, rounds};

/// Bytes of a line of the writer.
const WIDTH: u64 = 128;
/// Size of logd's read buffer in bytes: each kill of logd may lose or repeat at most this much of each
/// stream.
const READ_BUFFER: u64 = 64 << 10;
/// Bytes that a container may write before log rotation deletes the oldest file.
const KEPT: u64 = 30_000_000;

fn writer(name: &str, lines: u64, rate: u64) -> String {
    let main = format!(
        "  - name: main\n    image: {IMAGE}\n    command: [/bin/berth-test, write, \"{lines}\", \"{rate}\", \"{WIDTH}\"]\n"
    );
    pod(name, "restartPolicy: Never", &main)
}

/// Time of the slowest write in microseconds, from the line that the writer prints at its end.
fn slowest(errors: &str) -> anyhow::Result<u64> {
    let told = errors.lines().find_map(|l| l.strip_prefix("slowest "));
    told.and_then(|n| n.trim().parse().ok()).with_context(|| format!("the writer tells nothing: {errors:?}"))
}

#[test]
fn a_container_writes_on_while_the_agent_is_away() {
    on_a_node(Build::Plain, |node| {
        let seconds = if full() { 60 } else { 6 };
        let rate = 5_000_000;
        let lines = rate * seconds / WIDTH;
        apply(node, "writer", &writer("writer", lines, rate))?;
        let pod = node.pod("runs", "default/writer", PATIENCE, |p| {
            p.container("main")["state"]["running"].is_object()
        })?;
        let process = *pod.processes().get("main").context("no process")?;
        node.kill_agent()?;
        let begun = Instant::now();
        // The process ends by itself: no agent runs that could be asked.
        process.gone(Duration::from_secs(seconds * 3 + 30))?;
        ensure!(begun.elapsed() >= Duration::from_secs(seconds / 2), "it ended after {:?}", begun.elapsed());
        let dir = node.log_dir(&pod, "main");
        let end = format!("{lines} ");
        wait::until("its last line is in its file", PATIENCE, || {
            logs::text(&dir, 0, "stdout").is_ok_and(|t| t.lines().last().is_some_and(|l| l.starts_with(&end)))
        })?;
        let (first, last) = logs::numbered_from(&logs::text(&dir, 0, "stdout")?)?;
        ensure!(last == lines && (first == 1 || full()), "lines {first} to {last} of {lines}");
        let took = slowest(&logs::text(&dir, 0, "stderr")?)?;
        ensure!(took <= 100_000, "the slowest write took {took} µs");
        node.start_agent()?;
        let ended =
            node.pod("is Succeeded", "default/writer", PATIENCE, |p: &Pod| p.phase() == "Succeeded")?;
        ensure!(ended.restarts("main") == 0 && ended.exit_code("main") == Some(0), "{}", ended.status());
        Ok(())
    });
}

#[test]
fn a_killed_logd_loses_a_buffer_at_most_and_holds_nobody_up() {
    on_a_node(Build::Plain, |node| {
        let kills = rounds(50);
        let mut rng = rng::Rng::new(rng::seed());
        // The writer must outlast all kills without the oldest file being deleted. Four files of 10 MiB are
        // kept beside the open one, and a line in a log file is a third longer than the written line.
        let seconds = kills * 2 + 5;
        let rate = (KEPT / seconds).min(500_000);
        let lines = rate * seconds / WIDTH;
        apply(node, "writer", &writer("writer", lines, rate))?;
        let pod = node.pod("runs", "default/writer", PATIENCE, |p| {
            p.container("main")["state"]["running"].is_object()
        })?;
        let process = *pod.processes().get("main").context("no process")?;
        let mut killed = 0;
        while killed < kills && process.alive() {
            let logd = wait::some("logd runs", PATIENCE, || node.logd())?;
            let until = Instant::now() + Duration::from_millis(200 + rng.below(1300));
            wait::until("the next moment", PATIENCE, || Instant::now() >= until)?;
            logd.kill()?;
            killed += 1;
        }
        ensure!(killed == kills, "the writer ended after {killed} kills of logd");
        let pod = node.pod("is Succeeded", "default/writer", Duration::from_secs(seconds * 3 + 60), |p| {
            p.phase() == "Succeeded"
        })?;
        ensure!(pod.restarts("main") == 0);
        let dir = node.log_dir(&pod, "main");
        let (missing, again) = logs::damage(&logs::text(&dir, 0, "stdout")?, WIDTH);
        let bound = kills * READ_BUFFER;
        ensure!(
            missing <= bound && again <= bound,
            "{missing} bytes missing, {again} again after {kills} kills"
        );
        let took = slowest(&logs::text(&dir, 0, "stderr")?)?;
        ensure!(took <= 1_000_000, "the slowest write took {took} µs");
        Ok(())
    });
}
