//! Mutations of a valid corpus, as YAML and as JSON: the parser never panics or hangs, and an accepted object
//! parses to itself again. The mutations are seeded; `BERTH_MUTATIONS` sets the number of each kind, and a
//! failure prints the text and its number.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_core::{ids::NodeName, time::Wall};
use berth_harness::rng::Rng;
use berth_source::manifest::{ManifestContext, Mode, parse_file};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

/// A tenth of the number that the long form runs with `BERTH_MUTATIONS=100000`.
const DEFAULT_COUNT: u64 = 10_000;

fn corpus() -> Vec<Value> {
    let small: Vec<Value> = serde_json::from_str(include_str!("corpus/small.json")).unwrap();
    let octal = serde_saphyr::options! { legacy_octal_numbers: true };
    let full: Vec<Value> =
        serde_saphyr::from_multiple_with_options(include_str!("corpus/full.yaml"), octal).unwrap();
    // Small documents come up more often: their mutations are cheaper, and more often hit a field with an
    // effect.
    small.iter().cycle().take(small.len() * 4).cloned().chain(full).collect()
}

fn odd(rng: &mut Rng) -> Value {
    let pool = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(65536),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!("x"),
        json!(".."),
        json!("../../etc"),
        json!("/"),
        json!("-1"),
        json!("1Ei"),
        json!("99999999999999999999999999Ei"),
        json!("1e-999"),
        json!("\u{0}"),
        json!("ä\u{202e}\u{1F600}"),
        json!("a\nb: [c"),
        json!("$(X)"),
        json!("Always"),
        json!("None"),
        json!("x".repeat(300)),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"name": "x"}),
        json!([null]),
        json!(["ALL", 1]),
        json!("2024-01-01T00:00:00Z"),
    ];
    rng.pick(&pool).clone()
}

/// A random place in the value.
fn place<'v>(value: &'v mut Value, rng: &mut Rng) -> &'v mut Value {
    let inner = match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if inner == 0 || rng.index(6) == 0 {
        return value;
    }
    let index = rng.index(inner);
    match value {
        Value::Object(map) => place(map.values_mut().nth(index).unwrap(), rng),
        Value::Array(list) => place(&mut list[index], rng),
        other => other,
    }
}

fn mutate(value: &mut Value, all: &[Value], rng: &mut Rng) {
    let mut other = rng.pick(all).clone();
    let spot = place(value, rng);
    match (rng.index(8), spot) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(rng.index(map.len())).unwrap().clone();
            map.remove(&key);
        }
        (1, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(rng.index(map.len())).unwrap().clone();
            let taken = map.remove(&key).unwrap();
            let renamed = [key.to_uppercase(), format!("{key}s"), String::new(), format!("{key}\n")];
            map.insert(rng.pick(&renamed).clone(), taken);
        }
        (2, Value::Array(list)) if !list.is_empty() => {
            let again = rng.pick(list).clone();
            list.push(again);
        }
        (3, Value::Array(list)) if !list.is_empty() => {
            list.remove(rng.index(list.len()));
        }
        (4, Value::Object(map)) => {
            let donor = place(&mut other, rng).clone();
            if let Value::Object(donor) = donor {
                map.extend(donor);
            }
        }
        (5, spot) => *spot = place(&mut other, rng).clone(),
        (6, spot) => {
            *spot = match spot.take() {
                Value::String(s) => s.parse::<i64>().map_or_else(|_| json!([s]), Value::from),
                Value::Number(n) => n.to_string().into(),
                Value::Array(list) => list.into_iter().next().unwrap_or(Value::Null),
                Value::Object(map) => map.into_iter().map(|(_, v)| v).collect::<Vec<_>>().into(),
                other => json!([other]),
            };
        }
        (_, spot) => *spot = odd(rng),
    }
}

fn damage(text: String, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    for _ in 0..=rng.index(2) {
        let len = bytes.len();
        let at = rng.index(len);
        let until = (at + 1 + rng.index(12)).min(len);
        match rng.index(6) {
            0 if len > 0 => bytes[at] ^= 1 << rng.index(8),
            1 => {
                bytes.drain(at..until);
            }
            2 => {
                let again = bytes[at..until].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let pieces = [
                    ": ", "\n- ", "\n---\n", "&a ", "*a", "<<: ", "!!int ", "|\n", "\t", "#", "{", "]", "? ",
                    "'", "\"", "0",
                ];
                bytes.splice(at..at, rng.pick(&pieces).bytes());
            }
            4 if rng.index(4) == 0 => bytes.truncate(at),
            _ if len > 0 => bytes[at] = b"0123456789abcXYZ-_./:,[]{}#&*!|>'\"%@` \n"[rng.index(39)],
            _ => {}
        }
    }
    bytes
}

/// Writes block YAML. Texts are quoted as in JSON, which YAML reads the same way.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                write!(out, "\n{pad}{}:", json!(key)).unwrap();
                yaml(value, indent + 2, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                write!(out, "\n{pad}-").unwrap();
                yaml(value, indent + 2, out);
            }
        }
        Value::String(s) if s.len() > 5 && s.bytes().all(|b| b.is_ascii_alphabetic()) => {
            write!(out, " {s}").unwrap();
        }
        leaf => write!(out, " {leaf}").unwrap(),
    }
}

fn contexts() -> [ManifestContext; 2] {
    [Mode::Manifests, Mode::StaticPods].map(|mode| ManifestContext {
        node: NodeName::new("n1").unwrap(),
        mode,
        now: Wall(1_700_000_000_000_000_000),
        services: None,
    })
}

fn run(name: &str, file: &str, write: fn(&Value) -> String) {
    let count = std::env::var("BERTH_MUTATIONS").ok().map_or(DEFAULT_COUNT, |n| n.parse().unwrap());
    let (all, contexts) = (corpus(), contexts());
    for value in &all {
        let text = write(value);
        parse_file(Path::new(file), text.as_bytes(), &contexts[0]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
    let started = Instant::now();
    let (mut past, mut accepted, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
    for number in 0..count {
        let mut rng = Rng::new(number);
        let mut value = rng.pick(&all).clone();
        let bytes = if rng.index(3) > 0 {
            for _ in 0..=rng.index(3) {
                mutate(&mut value, &all, &mut rng);
            }
            write(&value).into_bytes()
        } else {
            damage(write(&value), &mut rng)
        };
        let context = &contexts[usize::from(rng.index(5) == 0)];
        let begin = Instant::now();
        let result = std::panic::catch_unwind(|| parse_file(Path::new(file), &bytes, context));
        slowest = slowest.max(begin.elapsed());
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        match result {
            Err(_) => panic!("mutation {number} panics:\n{}", text()),
            Ok(Err(e)) => {
                let syntax = e.reason.starts_with("no valid ") || e.reason.starts_with("is not UTF-8");
                past += u64::from(!syntax);
                assert!(
                    e.to_string().len() < 2_000,
                    "mutation {number}: a message of {} bytes",
                    e.to_string().len()
                );
            }
            Ok(Ok(parsed)) => {
                past += 1;
                accepted += 1;
                for entry in &parsed.pods {
                    assert!(!entry.pod.containers.is_empty(), "mutation {number}");
                    if context.mode == Mode::Manifests && number % 4 == 0 {
                        let again = parse_file(Path::new(""), entry.raw.to_string().as_bytes(), context);
                        let mut again = again.unwrap_or_else(|e| {
                            panic!("mutation {number}: its own object is refused: {e}\n{}", text())
                        });
                        assert_eq!(again.pods.len(), 1, "mutation {number}");
                        let again = again.pods.remove(0);
                        let mut pod = again.pod;
                        pod.origin = entry.pod.origin.clone();
                        assert_eq!(pod, entry.pod, "mutation {number}");
                        assert_eq!(again.raw, entry.raw, "mutation {number}");
                    }
                }
            }
        }
    }
    println!(
        "{name}: {count} mutations, {past} past the syntax, {accepted} accepted, slowest {slowest:?}, {:?} in all",
        started.elapsed()
    );
    assert!(past * 10 >= count * 3, "only {past} of {count} get past the syntax");
    assert!(
        accepted * 100 >= count,
        "only {accepted} of {count} are accepted: the checks behind are hardly reached"
    );
    assert!(slowest < Duration::from_secs(5), "one took {slowest:?}");
}

#[test]
fn json_mutations() {
    run("json", "f.json", Value::to_string);
}

#[test]
fn yaml_mutations() {
    run("yaml", "f.yaml", |value| {
        let mut out = String::from("---");
        yaml(value, 0, &mut out);
        out.push('\n');
        out
    });
}

#[test]
fn arbitrary_text_never_panics() {
    use proptest::{prelude::*, test_runner::TestRunner};
    let context = &contexts()[0];
    let strategy = prop_oneof![
        any::<Vec<u8>>(),
        ".*".prop_map(String::into_bytes),
        "[ \\-:\\[\\]{}&*!|>'\"#a\n]{0,60}".prop_map(String::into_bytes)
    ];
    TestRunner::new(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })
        .run(&strategy, |bytes| {
            for file in ["f.yaml", "f.json"] {
                // Any result will do, as long as the parser returns.
                drop(parse_file(Path::new(file), &bytes, context));
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_emitter_of_this_test_writes_what_it_means() {
    for value in corpus() {
        let mut out = String::from("---");
        yaml(&value, 0, &mut out);
        let back: Value = serde_saphyr::from_str(&out).unwrap();
        assert_eq!(back, value, "{out}");
    }
}
