//! `berth logs`: reads the files; needs neither agent nor logd. Where one of them is there, or has left its state, it
//! tells which run is the last and when it is over.

use crate::{
    error::Error,
    names::{self, Candidate, Meant},
    out, state, time,
};
use berth_core::{
    ids::{Attempt, ContainerName},
    roots::Roots,
    time::Wall,
};
use berth_logd::{
    format::{Record, Stamp, Stream},
    reader::{self, From, LogSet},
};
use berth_sys::{clock, process};
use std::{collections::BTreeMap, fs, time::Duration};

/// Between two looks whether the container still runs.
const STILL_RUNS: Duration = Duration::from_secs(1);

/// What may still come of a container that has ended, through its FIFO and logd.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Options.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// namespace/pod/container, or less where that is enough.
    name: String,
    /// The container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on as more is written, until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// Of the run before the last.
    #[arg(short, long)]
    previous: bool,
    /// Only the last so many lines; all where it is negative.
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is newer: a span such as 10m, or a time such as 2026-01-02T03:04:05Z.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Show the time of each line.
    #[arg(long)]
    timestamps: bool,
}

/// Runs the command.
pub(crate) async fn run(roots: &Roots, args: LogsArgs) -> Result<(), Error> {
    let since = args.since.as_deref().map(since).transpose()?;
    // Without an agent and without its state the names of the directories do.
    let known = state::read(roots, false).await.map(|s| s.pods).unwrap_or_default();
    let mut among = with_output(roots, &known)?;
    let meant = names::resolve(&args.name, &among)?;
    let pod = among.swap_remove(meant.pod);
    let container = container(&args, &meant, &pod)?;
    let attempts = reader::attempts(roots, &pod.key, &pod.uid, &container)?;
    let which = if args.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
    let Some(attempt) = which.copied() else {
        let what = if args.previous { "run before the last" } else { "output" };
        return Err(Error::NotFound(format!(
            "there is no {what} of container {container} of pod {}",
            pod.key
        )));
    };
    let view = known.iter().find(|v| v.uid == pod.uid);
    let runs = view.map(|v| v.containers.iter().find(|c| c.name == container && c.attempt == attempt.0));
    let process = runs.map(|r| r.map(|c| (c.pid, c.start_time)));
    let set = LogSet::open(roots, &pod.key, &pod.uid, &container, attempt)?;
    // Reading blocks; nothing else happens on this thread.
    read(roots, &args, set, since, &Followed { pod, container, attempt, process })
}

struct Followed {
    pod: Candidate,
    container: ContainerName,
    attempt: Attempt,
    /// `None` where nothing is known, `Some(None)` where it is known not to run.
    process: Option<Option<(u32, u64)>>,
}

fn read(
    roots: &Roots,
    args: &LogsArgs,
    set: LogSet,
    since: Option<Wall>,
    of: &Followed,
) -> Result<(), Error> {
    let tail = args.tail.and_then(|lines| u64::try_from(lines).ok());
    let from = match (tail, since) {
        (Some(lines), _) => From::Tail(lines),
        (None, Some(time)) => From::Since(time),
        (None, None) => From::Start,
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
        if follow.gone() || over(roots, of)? {
            while follow.next(LAST_WORDS, &mut |record| printer.take(record))? {
                printer.flush()?;
            }
            if follow.missed() > 0 {
                out::tell("berth: output was removed by the limit of files before it was read");
            }
            return printer.end();
        }
    }
}

/// Whether nothing more can come of that run.
fn over(roots: &Roots, of: &Followed) -> Result<bool, Error> {
    let attempts = reader::attempts(roots, &of.pod.key, &of.pod.uid, &of.container)?;
    if attempts.last().is_some_and(|last| *last > of.attempt) {
        return Ok(true);
    }
    Ok(match of.process {
        Some(Some((pid, start))) => !process::alive(pid, start).unwrap_or(true),
        Some(None) => true,
        None => false,
    })
}

/// The pods that have output, with what else is known of them. Of several of one name the one that is known comes
/// first, else the newest; the others only answer to their UIDs.
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
        // In the order of the specification where that is known: the first is shown where none is named.
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
    // An older life of a pod: its name is taken, its UID is not.
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

fn container(args: &LogsArgs, meant: &Meant, pod: &Candidate) -> Result<ContainerName, Error> {
    let named = args.container.as_ref().or(meant.container.as_ref());
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
            return Err(Error::Usage(format!("which container of pod {}? {}", pod.key, names.join(", "))));
        }
    };
    name.parse().map_err(|e: berth_core::ids::IdError| Error::Usage(e.to_string()))
}

fn since(text: &str) -> Result<Wall, Error> {
    if let Some(span) = time::span(text) {
        let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        return Ok(Wall(clock::wall().0.saturating_sub(nanos)));
    }
    time::parse(text).ok_or_else(|| Error::Usage(format!("{text:?} is neither a span (10m) nor a time")))
}

/// Output that is gathered before it is written.
const GATHER: usize = 64 << 10;

/// Turns records back into what the container wrote.
#[derive(Debug, Default)]
struct Printer {
    timestamps: bool,
    since: Option<Wall>,
    buffer: Vec<u8>,
    /// The stream whose line is begun.
    begun: Option<Stream>,
    failed: Option<Error>,
}

impl Printer {
    fn take(&mut self, record: Record<'_>) {
        if self.failed.is_some() || self.since.is_some_and(|s| record.time < s) {
            return;
        }
        let begun = self.begun == Some(record.stream);
        if !begun && self.begun.is_some() {
            // The other stream's line is begun: two lines are not mixed into one.
            self.buffer.push(b'\n');
        }
        if self.timestamps && !begun {
            self.buffer.extend_from_slice(Stamp::new(record.time).as_str().as_bytes());
            self.buffer.push(b' ');
        }
        self.buffer.extend_from_slice(record.text);
        if !record.partial {
            self.buffer.push(b'\n');
        }
        self.begun = record.partial.then_some(record.stream);
        if self.buffer.len() >= GATHER {
            self.write();
        }
    }

    fn write(&mut self) {
        if let Err(e) = out::put_bytes(&self.buffer) {
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
    fn lines_come_back_as_they_were_written() {
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
    fn since_is_a_span_or_a_time() {
        assert_eq!(since("1970-01-01T00:00:01Z").unwrap(), Wall(1_000_000_000));
        assert!(since("10m").unwrap() < clock::wall());
        assert!(matches!(since("yesterday"), Err(Error::Usage(_))));
    }
}
