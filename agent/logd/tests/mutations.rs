//! Mutation tests of records and log files: torn, with NUL bytes, with lines of any length, and
//! damaged compressed files. Nothing panics, nothing hangs, and every readable part of a file is
//! read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use berth_core::{
    ids::{Attempt, ContainerName, Namespace, NodeName, PodKey, PodName, PodUid},
    roots::Roots,
    time::Wall,
};
use berth_harness::{
    mutate::{Bytes, Reached, bytes, dir, run},
    rng::Rng,
};
use berth_logd::{
    format::{MAX_LINE, OVERHEAD, Piece, Record, Splitter, Stamp, Stream, encode, parse},
    reader::{LogSet, ReadFrom},
};
use flate2::{Compression, write::GzEncoder};
use std::{fs, io::Write, path::PathBuf};

/// The longest line that the reader keeps. Longer ones are no records.
const LINE_MAX: usize = MAX_LINE + OVERHEAD + 256;

const LINES: [&str; 7] = [
    "2016-10-06T00:17:09.669794202Z stdout F log content 1\n",
    "2016-10-06T00:17:09.669794203Z stderr P first part, \n",
    "2016-10-06T00:17:10.113242941Z stderr F second part\n",
    "2023-11-14T22:13:20.000000042+02:00 stdout P:x:y tagged\n",
    "2023-11-14T22:13:20.000000043Z stdout F \n",
    "2023-11-14T22:13:21Z stdout F\n",
    "2023-11-14T22:13:22.5Z stderr F {\"json\": \"ä\u{1F600}\", \"n\": [1, 2]}\r\n",
];

const PIECES: &[&[u8]] = &[
    b" ",
    b"\n",
    b"\r\n",
    b"\0",
    b"stdout",
    b"stderr",
    b" F ",
    b" P ",
    b":",
    b"Z",
    b"T",
    b"+99:99",
    b"9999",
    b"-262144-01-01T00:00:00Z",
    b"2262-04-11T23:47:16.854775808Z",
    b"60",
    b".",
    b"\xff\xfe",
    b"\x1b[31m",
];

fn line(rng: &mut Rng, long: u64) -> Vec<u8> {
    let mut line = rng.pick(&LINES).as_bytes().to_vec();
    if rng.below(long) == 0 {
        // Lengths around the limit of a record, and far beyond it.
        let fill = *rng.pick(&[MAX_LINE - 1, MAX_LINE, LINE_MAX, 200_000]) + rng.index(3);
        let at = line.len() - 1;
        line.splice(at..at, vec![b'x'; fill]);
    }
    line
}

/// Mutations of the text, of one of the words before it, or anywhere.
fn changed(mut line: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    const WORDS: [&str; 14] = [
        "stdout",
        "stderr",
        "F",
        "P",
        "P:a:b",
        "F:",
        "",
        "1970-01-01T00:00:00Z",
        "2262-04-11T23:47:16.854775807Z",
        "2262-04-11T23:47:16.854775808Z",
        "-009999-01-01T00:00:00Z",
        "2016-12-31T23:59:60Z",
        "2024-02-30T00:00:00Z",
        "2016-10-06T00:17:09.123456789123456789+14:00",
    ];
    match rng.below(5) {
        0 => bytes(rng, &mut line, PIECES),
        1 | 2 => {
            let mut words: Vec<&[u8]> = line.splitn(4, |b| *b == b' ').collect();
            let at = rng.index(words.len());
            words[at] = rng.pick(&WORDS).as_bytes();
            line = words.join(&b' ');
        }
        _ => {
            let words: Vec<&[u8]> = line.splitn(4, |b| *b == b' ').collect();
            let mut text = words.get(3).map(|t| t.to_vec()).unwrap_or_default();
            bytes(rng, &mut text, PIECES);
            line = [words.get(..3).unwrap_or_default().join(&b' '), text].join(&b' ');
        }
    }
    line
}

#[test]
fn mutated_records() {
    for line in LINES {
        parse(line.as_bytes()).unwrap();
    }
    let make = |rng: &mut Rng| (Bytes(changed(line(rng, 100), rng)), rng.draw());
    run("records", make, |(line, cuts)| {
        comes_back(line, &mut Rng::new(*cuts));
        let Some(record) = parse(line) else { return Reached::Syntax };
        assert!(record.text.len() < line.len());
        let mut again = Vec::new();
        let piece = Piece { partial: record.partial, text: record.text };
        encode(&mut again, &Stamp::new(record.time), record.stream, piece);
        assert_eq!(parse(&again), Some(record));
        Reached::Taken
    });
}

/// Arbitrary bytes as a container's output, read in pieces cut anywhere, come back byte for byte,
/// except for the carriage return before a newline.
fn comes_back(raw: &[u8], rng: &mut Rng) {
    let (mut splitter, mut out, mut rest) = (Splitter::default(), Vec::new(), raw);
    let stamp = Stamp::new(Wall(1));
    while !rest.is_empty() {
        let (chunk, left) = rest.split_at(1 + rng.index(rest.len()));
        splitter.push(chunk, |piece| encode(&mut out, &stamp, Stream::Stderr, piece));
        rest = left;
        if rng.below(4) == 0 {
            splitter = Splitter::resume(splitter.carry().to_vec());
        }
    }
    splitter.finish(|piece| encode(&mut out, &stamp, Stream::Stderr, piece));
    let mut back = Vec::new();
    for line in out.split_inclusive(|b| *b == b'\n') {
        let record = parse(line).unwrap();
        back.extend_from_slice(record.text);
        if !record.partial {
            back.push(b'\n');
        }
    }
    let line = |line: &[u8]| match line.strip_suffix(b"\r\n") {
        Some(text) => [text, b"\n"].concat(),
        None => line.to_vec(),
    };
    assert_eq!(back, raw.split_inclusive(|b| *b == b'\n').flat_map(line).collect::<Vec<u8>>());
}

/// A container's log files: rotated ones, perhaps compressed and then damaged, and the current one.
#[derive(Debug)]
struct Files {
    rotated: Bytes,
    gz: Option<Bytes>,
    current: Bytes,
    tail: u64,
    /// The part that is read, besides the whole.
    part: u64,
}

fn file(rng: &mut Rng) -> Bytes {
    let mut raw = Vec::new();
    for _ in 0..rng.below(8) {
        let line = line(rng, 1_000);
        raw.extend(if rng.below(3) == 0 { changed(line, rng) } else { line });
    }
    if rng.below(3) == 0 {
        raw.truncate(rng.index(raw.len()));
    }
    Bytes(raw)
}

fn files(rng: &mut Rng) -> Files {
    let (rotated, current) = (file(rng), file(rng));
    let gz = (rng.below(2) == 0).then(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&rotated).unwrap();
        let mut raw = encoder.finish().unwrap();
        if rng.below(2) == 0 {
            bytes(rng, &mut raw, &[]);
        }
        Bytes(raw)
    });
    Files { rotated, gz, current, tail: *rng.pick(&[0, 1, 5, u64::MAX]), part: rng.below(4) }
}

type Owned = (Wall, Stream, bool, Vec<u8>);

fn owned(record: Record<'_>) -> Owned {
    (record.time, record.stream, record.partial, record.text.to_vec())
}

/// The records of a file's lines by a plain reference implementation. An unfinished line is no
/// record.
fn plainly(raw: &[u8]) -> Vec<Owned> {
    raw.split_inclusive(|b| *b == b'\n')
        .filter(|l| l.ends_with(b"\n") && l.len() <= LINE_MAX)
        .filter_map(parse)
        .map(owned)
        .collect()
}

#[test]
fn mutated_output_files() {
    let dir = dir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-logd-mutations");
    let key = PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new("p").unwrap() };
    let (uid, container) = (PodUid::new("u").unwrap(), ContainerName::new("c").unwrap());
    let at: PathBuf = roots.pod_log_dir(&key, &uid).join("c");
    fs::create_dir_all(&at).unwrap();
    let (plain, gz) = (at.join("0.log.20231114-221320"), at.join("0.log.20231114-221320.gz"));
    run("output files", files, |files| {
        fs::write(at.join("0.log"), &files.current[..]).unwrap();
        let (keep, clear, raw) = match &files.gz {
            Some(raw) => (&gz, &plain, raw),
            None => (&plain, &gz, &files.rotated),
        };
        fs::write(keep, &raw[..]).unwrap();
        if clear.exists() {
            fs::remove_file(clear).unwrap();
        }
        let set = LogSet::open(&roots, &key, &uid, &container, Attempt(0)).unwrap();
        let read = |from: ReadFrom| {
            let mut records = Vec::new();
            set.read(from, &mut |r| records.push(owned(r))).unwrap();
            records
        };
        let (all, current) = (read(ReadFrom::Start), plainly(&files.current));
        let rotated = all.strip_suffix(&current[..]).expect("the current file is read to its end");
        if files.gz.is_none() {
            assert_eq!(rotated, plainly(&files.rotated));
        }
        match files.part {
            0 => assert!(read(ReadFrom::End).is_empty()),
            1 => {
                let since = Wall(1_600_000_000_000_000_000);
                let late: Vec<Owned> = all.iter().filter(|r| r.0 >= since).cloned().collect();
                assert_eq!(read(ReadFrom::Since(since)), late);
            }
            _ => {
                let tail = read(ReadFrom::Tail(files.tail));
                assert!(all.ends_with(&tail));
                assert!(tail.iter().filter(|r| !r.2).count() as u64 <= files.tail);
            }
        }
        // At least half of the existing lines are records.
        let lines = [&files.rotated, &files.current].map(|f| f.split_inclusive(|b| *b == b'\n').count());
        let lines = lines.iter().sum::<usize>();
        match all.len() {
            n if n == lines => Reached::Taken,
            n if n * 2 >= lines => Reached::Checks,
            _ => Reached::Syntax,
        }
    });
}
