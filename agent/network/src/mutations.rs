//! Mutation tests of foreign input: plugins' answers and configuration files. No panic, no hang,
//! and a required share gets past the JSON parser.

use crate::{Attachment, Conflist, result::PluginFailure};
use serde_json::{Map, Value};
use std::path::Path;

const RUNS: usize = 100_000;

/// xorshift64*, with the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const STRINGS: [&str; 18] = [
    "",
    "1.1.0",
    "0.4.0",
    "10.0.0.1/24",
    "10.0.0.1/99",
    "fd00::/129",
    "::",
    "0.0.0.0/0",
    "../../x",
    "a/b",
    "berth-cni",
    "veth0",
    "eth0\u{0}",
    "ünï",
    "\u{1b}[31m",
    "true",
    "plugins",
    "0123456789abcdef0123456789abcdef",
];

fn odd_value(random: &mut Random) -> Value {
    match random.below(10) {
        0 => Value::Null,
        1 => Value::Bool(random.below(2) == 0),
        2 => Value::from(random.next()),
        3 => Value::from(-(random.below(1000) as i64)),
        4 => Value::from(random.below(1000) as f64 / 7.0),
        5 => Value::Array(vec![]),
        6 => Value::Object(Map::new()),
        7 if random.below(50) == 0 => Value::Array(vec![Value::Object(Map::new()); random.below(2000)]),
        _ => Value::from(STRINGS[random.below(STRINGS.len())]),
    }
}

/// Goes to a random place and changes the value there.
fn change(value: &mut Value, random: &mut Random) {
    let deeper = random.below(4) != 0;
    match value {
        Value::Array(list) if !list.is_empty() && deeper => {
            let at = random.below(list.len());
            match random.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.swap(0, at),
                _ => change(&mut list[at], random),
            }
        }
        Value::Object(object) if !object.is_empty() && deeper => {
            let key = object.keys().nth(random.below(object.len())).unwrap().clone();
            match random.below(8) {
                0 => drop(object.remove(&key)),
                1 => {
                    let moved = object.remove(&key).unwrap();
                    object.insert(STRINGS[random.below(STRINGS.len())].into(), moved);
                }
                2 => drop(object.insert(STRINGS[random.below(STRINGS.len())].into(), odd_value(random))),
                _ => change(object.get_mut(&key).unwrap(), random),
            }
        }
        Value::String(text) if deeper => {
            let mut chars: Vec<char> = text.chars().collect();
            for _ in 0..=random.below(3) {
                let at = random.below(chars.len() + 1);
                match random.below(3) {
                    0 if at < chars.len() => drop(chars.remove(at)),
                    1 if at < chars.len() => chars[at] = char::from(random.below(128) as u8),
                    _ => chars.insert(at, ['/', '.', ':', '9', '\u{fffd}'][random.below(5)]),
                }
            }
            *text = chars.into_iter().collect();
        }
        other => *other = odd_value(random),
    }
}

fn mutate(seed: &Value, random: &mut Random) -> Vec<u8> {
    let mut value = seed.clone();
    for _ in 0..=random.below(4) {
        change(&mut value, random);
    }
    let mut bytes = value.to_string().into_bytes();
    // A third is also damaged as bytes.
    if random.below(3) == 0 {
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"{}[]\",:0"[random.below(8)]),
            }
        }
    }
    bytes
}

/// Runs `parse`, which returns whether it accepted the input, and prints and checks the shares.
fn run(what: &str, corpus: &[&str], parse: impl Fn(&[u8]) -> bool) {
    let corpus: Vec<Value> = corpus.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    for seed in &corpus {
        assert!(parse(seed.to_string().as_bytes()), "{seed} is not valid to begin with");
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut past_syntax, mut taken) = (0, 0);
    for _ in 0..RUNS {
        let bytes = mutate(&corpus[random.below(corpus.len())], &mut random);
        past_syntax += usize::from(serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
        taken += usize::from(parse(&bytes));
    }
    let percent = |n: usize| n * 100 / RUNS;
    println!(
        "{what}: {RUNS} mutations, {} % past the JSON stage, {} % taken",
        percent(past_syntax),
        percent(taken)
    );
    assert!(percent(past_syntax) >= 30, "only {} % past the JSON stage", percent(past_syntax));
    assert!((5..95).contains(&percent(taken)), "{} % taken: the mutations miss the parser", percent(taken));
}

#[test]
fn mutated_plugin_output_is_never_more_than_an_error() {
    let corpus = [
        r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth0","mac":"02:00:00:00:00:01","mtu":1400},{"name":"eth0",
        "mac":"02:00:00:00:00:02","sandbox":"/run/x","socketPath":"/s","pciID":"0"}],"ips":[{"interface":1,
        "address":"10.0.0.5/32","gateway":"169.254.1.1"},{"interface":1,"address":"fd00::5/128"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1","mtu":1400,"scope":0}],"dns":{"nameservers":["10.0.0.2"]}}"#,
        r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/x"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.2/16","gateway":"10.1.0.1"}],"dns":{}}"#,
    ];
    run("plugin results", &corpus, |bytes| {
        let parsed = Attachment::parse("p", bytes);
        if let Ok(attachment) = &parsed {
            assert!(attachment.ips.iter().all(|ip| !ip.is_unspecified() && !ip.is_loopback()));
            // An accepted result is accepted again from the attachment file.
            assert!(Attachment::of("p", attachment.result.clone()).unwrap() == *attachment);
        }
        parsed.is_ok()
    });
    run("plugin errors", &[r#"{"cniVersion":"1.1.0","code":11,"msg":"busy","details":"later"}"#], |bytes| {
        let failure = PluginFailure::parse(bytes, "", "exit status: 1");
        assert!(!failure.message.is_empty() && failure.message.chars().count() <= 2048);
        assert!(!failure.message.contains(char::is_control), "{failure}");
        failure.message != "exit status: 1"
    });
}

#[test]
fn mutated_configuration_is_never_more_than_an_error() {
    let corpus = [
        r#"{"cniVersion":"1.1.0","cniVersions":["0.4.0","1.0.0"],"name":"pods","disableCheck":false,"disableGC":"true",
        "plugins":[{"type":"berth-cni","subnets":["10.1.0.0/16","fd00::/64"],"mtu":1400},{"type":"portmap",
        "capabilities":{"portMappings":true}}]}"#,
        r#"{"cniVersion":"1.0.0","name":"ref","plugins":[{"type":"bridge","ipam":{"type":"host-local",
        "ranges":[[{"subnet":"10.2.0.0/16","rangeStart":"10.2.0.5"}]],"subnet":"10.3.0.0/16"}}]}"#,
        r#"{"cniVersion":"0.3.1","name":"single","type":"ptp","ipam":{"type":"host-local","subnet":"10.4.0.0/24"}}"#,
    ];
    run("conflists", &corpus, |bytes| match Conflist::parse(Path::new("/x.conflist"), bytes) {
        Ok(list) => {
            assert!(!list.plugins.is_empty() && list.plugins.iter().all(|p| !p.kind.contains('/')));
            drop(list.pod_cidrs());
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("/x.conflist"), "{error}");
            false
        }
    });
}
