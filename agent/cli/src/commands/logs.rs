//! `berth logs`: reads the log files, with or without agent and logd. The agent, or the state that
//! it left, says which attempt is the last and whether its process still runs.

use crate::{
    error::Error,
    names::{self, Candidate, Resolved},
    output, state, time,
};
use berth_core::{
    ids::{Attempt, ContainerName},
    roots::Roots,
    time::Wall,
};
use berth_logd::{
    format::{Record, Stamp, Stream},
    reader::{self, LogSet, ReadFrom},
};
use berth_sys::{clock, process};
use std::{collections::BTreeMap, fs, time::Duration};

/// Interval between two checks whether a followed container still runs.
const STILL_RUNS: Duration = Duration::from_secs(1);

/// Longest wait for output that is still on its way through FIFO and logd after the container has
/// ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Options of `logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// namespace/pod/container, or less where that is unique.
    name: String,
    /// Print the output of this container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Follow the output until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// Print the output of the previous attempt.
    #[arg(short, long)]
    previous: bool,
    /// Print only the last LINES lines; all where negative.
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Print only newer lines: a duration such as 10m, or a time such as 2026-01-02T03:04:05Z.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Print the time of each line.
    #[arg(long)]
    timestamps: bool,
}

pub(crate) async fn run(roots: &Roots, args: LogsArgs) -> Result<(), Error> {
    let since = args.since.as_deref().map(since).transpose()?;
    // Without any state of an agent, the directories' names identify the pods.
    let known = state::read(roots, false).await.map(|s| s.pods).unwrap_or_default();
    let mut among = with_output(roots, &known)?;
    let resolved = names::resolve(&args.name, &among)?;
    let pod = among.swap_remove(resolved.pod);
    let container = container(&args, &resolved, &pod)?;
    let attempts = reader::attempts(roots, &pod.key, &pod.uid, &container)?;
    let which = if args.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
    let Some(attempt) = which.copied() else {
        let what = if args.previous { "previous attempt" } else { "output" };
        return Err(Error::NotFound(format!("container {container} of pod {} has no {what}", pod.key)));
    };
    let view = known.iter().find(|v| v.uid == pod.uid);
    let runs = view.map(|v| v.containers.iter().find(|c| c.name == container && c.attempt == attempt.0));
    let process = runs.map(|r| r.map(|c| (c.pid, c.start_time)));
    let set = LogSet::open(roots, &pod.key, &pod.uid, &container, attempt)?;
    // The read blocks this thread; nothing else runs on it.
    print(roots, &args, set, since, &Target { pod, container, attempt, process })
}

/// The attempt whose output is printed.
struct Target {
    pod: Candidate,
    container: ContainerName,
    attempt: Attempt,
    /// Process id and start time. `Some(None)`: the attempt does not run. `None`: not known.
    process: Option<Option<(u32, u64)>>,
}

fn print(
    roots: &Roots,
    args: &LogsArgs,
    set: LogSet,
    since: Option<Wall>,
    target: &Target,
) -> Result<(), Error> {
    let tail = args.tail.and_then(|lines| u64::try_from(lines).ok());
    let from = match (tail, since) {
        (Some(lines), _) => ReadFrom::Tail(lines),
        (None, Some(time)) => ReadFrom::Since(time),
        (None, None) => ReadFrom::Start,
    };
    let mut printer = Printer { timestamps: args.timestamps, since, ..Printer::default() };
    if !args.follow {
        set.read(from, &mut |record| printer.take(record))?;
        return printer.end();
    }
    let mut follow = set.follow(from)?;
    loop {
        let any = follow.next(STILL_RUNS, &mut |record| printer.take(record))?;
        printer.flush()?;
        if any {
            continue;
        }
        if follow.removed() || is_over(roots, target)? {
            while follow.next(LAST_WORDS, &mut |record| printer.take(record))? {
                printer.flush()?;
            }
            if follow.missed() > 0 {
                output::notice(
                    "berth: output was lost: the oldest log file was rotated away before it was read",
                );
            }
            return printer.end();
        }
    }
}

/// Whether the attempt can write nothing more: a later one has begun, or its process has ended.
fn is_over(roots: &Roots, target: &Target) -> Result<bool, Error> {
    let attempts = reader::attempts(roots, &target.pod.key, &target.pod.uid, &target.container)?;
    if attempts.last().is_some_and(|last| *last > target.attempt) {
        return Ok(true);
    }
    Ok(match target.process {
        Some(Some((pid, start))) => !process::alive(pid, start).unwrap_or(true),
        Some(None) => true,
        None => false,
    })
}

/// The pods that have log files. Of several pods with one name, the one known to the agent owns the
/// name, else the newest; the others are found by `name.uid`.
fn with_output(roots: &Roots, known: &[berth_api::view::PodView]) -> Result<Vec<Candidate>, Error> {
    let known_candidates = state::candidates(known);
    let mut newest: BTreeMap<_, (bool, std::time::SystemTime, Candidate)> = BTreeMap::new();
    let mut all = Vec::new();
    for (key, uid) in reader::pods(roots)? {
        let of = known_candidates.iter().find(|c| c.uid == uid);
        let ids = |name: &str| {
            of.and_then(|c| c.containers.iter().find(|(n, _)| n == name)).map(|(_, ids)| ids.clone())
        };
        let containers = reader::containers(roots, &key, &uid)?
            .into_iter()
            .map(|name| (name.to_string(), ids(name.as_str()).unwrap_or_default()))
            .collect();
        // In the specification's order where that is known, so that the first container is the
        // default.
        let candidate = Candidate { key: key.clone(), uid: uid.clone(), containers: sorted(containers, of) };
        let modified = fs::metadata(roots.pod_log_dir(&key, &uid)).and_then(|m| m.modified());
        let rank = (of.is_some(), modified.unwrap_or(std::time::UNIX_EPOCH));
        match newest.get(&key) {
            Some((k, m, _)) if (*k, *m) >= rank => all.push(candidate),
            _ => {
                if let Some((_, _, before)) = newest.insert(key, (rank.0, rank.1, candidate)) {
                    all.push(before);
                }
            }
        }
    }
    let mut named: Vec<Candidate> = newest.into_values().map(|(_, _, c)| c).collect();
    // An older pod of the same name is named by its UID too.
    for mut old in all {
        if let Ok(name) = format!("{}.{}", old.key.name, old.uid.as_str().to_ascii_lowercase()).parse() {
            old.key.name = name;
        }
        named.push(old);
    }
    Ok(named)
}

fn sorted(mut containers: Vec<(String, Vec<String>)>, of: Option<&Candidate>) -> Vec<(String, Vec<String>)> {
    let place = |name: &str| of.and_then(|c| c.containers.iter().position(|(n, _)| n == name));
    containers.sort_by_key(|(name, _)| (place(name).unwrap_or(usize::MAX), name.clone()));
    containers
}

fn container(args: &LogsArgs, resolved: &Resolved, pod: &Candidate) -> Result<ContainerName, Error> {
    let named = args.container.as_ref().or(resolved.container.as_ref());
    let name = match (named, pod.containers.as_slice()) {
        (Some(name), all) if all.iter().any(|(n, _)| n == name) => name.clone(),
        (Some(name), _) => {
            let text = format!("container {name} of pod {} has no output", pod.key);
            return Err(Error::NotFound(text));
        }
        (None, [(only, _)]) => only.clone(),
        (None, []) => return Err(Error::NotFound(format!("pod {} has no output", pod.key))),
        (None, all) => {
            let names: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
            return Err(Error::Usage(format!(
                "pod {} has several containers: choose one of {} with --container",
                pod.key,
                names.join(", ")
            )));
        }
    };
    name.parse().map_err(|e: berth_core::ids::IdError| Error::Usage(e.to_string()))
}

fn since(text: &str) -> Result<Wall, Error> {
    if let Some(span) = time::span(text) {
        let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        return Ok(Wall(clock::wall().0.saturating_sub(nanos)));
    }
    time::parse(text).ok_or_else(|| {
        Error::Usage(format!(
            "{text:?} is neither a duration such as 10m nor a time such as 2026-01-02T03:04:05Z"
        ))
    })
}

/// Bytes that are gathered before they are written.
const GATHER: usize = 64 << 10;

/// Printer of log records as the container wrote them.
#[derive(Debug, Default)]
struct Printer {
    timestamps: bool,
    since: Option<Wall>,
    buffer: Vec<u8>,
    /// The stream of the last record, where that record did not end its line.
    open_line: Option<Stream>,
    /// The first failed write; later records are dropped.
    failed: Option<Error>,
}

impl Printer {
    fn take(&mut self, record: Record<'_>) {
        if self.failed.is_some() || self.since.is_some_and(|s| record.time < s) {
            return;
        }
        let continues = self.open_line == Some(record.stream);
        if !continues && self.open_line.is_some() {
            // The other stream's line is still open: it is ended here, so that two lines do not
            // mix.
            self.buffer.push(b'\n');
        }
        if self.timestamps && !continues {
            self.buffer.extend_from_slice(Stamp::new(record.time).as_str().as_bytes());
            self.buffer.push(b' ');
        }
        self.buffer.extend_from_slice(record.text);
        if !record.partial {
            self.buffer.push(b'\n');
        }
        self.open_line = record.partial.then_some(record.stream);
        if self.buffer.len() >= GATHER {
            self.write();
        }
    }

    fn write(&mut self) {
        if let Err(e) = output::put_bytes(&self.buffer) {
            self.failed = Some(e);
        }
        self.buffer.clear();
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            self.write();
        }
        match self.failed.take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn end(mut self) -> Result<(), Error> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_printed_as_the_container_wrote_them() {
        let mut p = Printer::default();
        let record = |stream, partial, text: &'static [u8]| Record { time: Wall(5), stream, partial, text };
        p.take(record(Stream::Stdout, true, b"a"));
        p.take(record(Stream::Stdout, false, b"b"));
        p.take(record(Stream::Stdout, true, b"begun "));
        p.take(record(Stream::Stderr, false, b"other"));
        p.take(record(Stream::Stdout, false, b"ended"));
        assert_eq!(String::from_utf8_lossy(&p.buffer), "ab\nbegun \nother\nended\n");
        let mut p = Printer { timestamps: true, since: Some(Wall(2)), ..Printer::default() };
        p.take(Record { time: Wall(1), ..record(Stream::Stdout, false, b"old") });
        p.take(record(Stream::Stdout, true, b"a"));
        p.take(record(Stream::Stdout, false, b"b"));
        assert_eq!(String::from_utf8_lossy(&p.buffer), "1970-01-01T00:00:00.000000005Z ab\n");
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        assert_eq!(since("1970-01-01T00:00:01Z").unwrap(), Wall(1_000_000_000));
        assert!(since("10m").unwrap() < clock::wall());
        assert!(matches!(since("yesterday"), Err(Error::Usage(_))));
    }
}
