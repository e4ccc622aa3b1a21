//! Journals with lines lost, repeated, changed (most of them with a correct checksum), torn and
//! damaged: no address ever belongs to two keys, the store keeps working, and what it returns can
//! be read back.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use berth_cni_ipam::{Damage, Error, Key, Options, Range, RangeSet, Record, Store};
use berth_harness::{
    mutate::{Bytes, Reached, bytes, dir, run},
    rng::Rng,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    time::Duration,
};

fn key(n: usize) -> Key {
    Key::new(&format!("c{n}"), "eth0").unwrap()
}

fn sets() -> [RangeSet; 2] {
    ["10.0.0.0/29", "fd00::/124"].map(|subnet| {
        RangeSet::new(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()]).unwrap()
    })
}

fn valid() -> Vec<Record> {
    let ip = |n: usize| -> [IpAddr; 2] {
        [format!("10.0.0.{n}").parse().unwrap(), format!("fd00::{n}").parse().unwrap()]
    };
    let allocate = |n| Record::Allocate { key: key(n), addresses: ip(n).to_vec() };
    vec![
        Record::Header { boot: "boot-1".into() },
        Record::Cursor { set: 0, address: ip(1)[0] },
        Record::Cursor { set: 1, address: ip(1)[1] },
        Record::Quarantine { address: ip(6)[0], since: 5 },
        allocate(2),
        allocate(3),
        Record::Release { key: key(2), at: 1000 },
        allocate(4),
        allocate(5),
    ]
}

/// The journal's own checksum, so that the content of changed lines is tested and not only the
/// detection of damage.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn changed(line: &str, rng: &mut Rng) -> Vec<u8> {
    const ADDRESSES: [&str; 7] =
        ["10.0.0.3", "10.0.0.4,fd00::4", "10.0.0.5,10.0.0.5", "fd00::3", "10.0.0.256", "::", ","];
    const NAMES: [&str; 9] = ["c2", "c3", "c9", "eth0", "boot-1", "boot-2", "a", "", "x/y"];
    const NUMBERS: [&str; 5] = ["0", "7", "18446744073709551615", "18446744073709551616", "-1"];
    let body = line.trim_end().split_once(' ').map_or("", |(_, body)| body);
    let mut body = body.as_bytes().to_vec();
    if rng.below(4) == 0 {
        bytes(rng, &mut body, &[b" ", b",", b"\0", b"\xff"]);
    } else {
        let mut words: Vec<&[u8]> = body.split(|b| *b == b' ').collect();
        let at = rng.index(words.len());
        let like: &[&str] = match words[at] {
            word if word.iter().any(|b| matches!(b, b'.' | b':')) => &ADDRESSES,
            word if word.iter().all(u8::is_ascii_digit) => &NUMBERS,
            _ if at == 0 => &["a", "r", "q", "c", "h", "z"],
            _ => &NAMES,
        };
        match rng.below(12) {
            0 => drop(words.remove(at)),
            1 => words.push(rng.pick(like).as_bytes()),
            _ => words[at] = rng.pick(like).as_bytes(),
        }
        body = words.join(&b' ');
    }
    let mut line = format!("{:016x} ", checksum(&body)).into_bytes();
    line.extend(body);
    line.push(b'\n');
    line
}

fn journal(rng: &mut Rng) -> Bytes {
    let mut lines: Vec<Vec<u8>> = valid().iter().map(|r| r.to_line().into_bytes()).collect();
    for _ in 0..=rng.below(2) {
        let (at, other) = (rng.index(lines.len()), rng.index(lines.len()));
        match rng.below(7) {
            0 => drop(lines.remove(at)),
            1 => lines.push(lines[at].clone()),
            2 => lines.swap(at, other),
            _ => lines[at] = changed(&String::from_utf8_lossy(&lines[at]), rng),
        }
    }
    let mut raw = lines.concat();
    match rng.below(6) {
        0 => bytes(rng, &mut raw, &[b"\n", b"\0"]),
        1 => raw.truncate(rng.index(raw.len())),
        _ => {}
    }
    Bytes(raw)
}

fn held(store: &Store) -> BTreeMap<Key, Vec<IpAddr>> {
    let mut seen = BTreeSet::new();
    let all: BTreeMap<_, _> = store.state().allocations().map(|(k, a)| (k.clone(), a.to_vec())).collect();
    assert!(all.values().flatten().all(|a| seen.insert(*a)), "one address for two: {all:?}");
    all
}

#[test]
fn mutated_journals() {
    let dir = dir().unwrap();
    let path = dir.path().join("journal");
    let options = Options { lock_wait: Duration::from_millis(50), ..Options::new("boot-1") };
    let open = || Store::open(dir.path(), options.clone(), || vec![(key(3), sets_of(3))]).unwrap();
    fs::write(&path, valid().iter().map(Record::to_line).collect::<String>()).unwrap();
    let store = open();
    assert_eq!((held(&store).len(), store.damage()), (3, None));
    drop(store);
    run("journals", journal, |raw| {
        fs::write(&path, &raw[..]).unwrap();
        let mut store = open();
        let mut lines = raw.split_inclusive(|b| *b == b'\n');
        let whole = lines.all(|l| l.strip_suffix(b"\n").is_some_and(|l| Record::parse(l).is_some()));
        let reached = match store.damage() {
            None if whole => Reached::Taken,
            // Journals that contradict themselves by valid lines.
            _ if whole => Reached::Checks,
            _ => Reached::Syntax,
        };
        match store.damage() {
            Some(Damage::Corrupt { kept, records }) => {
                assert!(*records > 0);
                assert_eq!(fs::read(kept).unwrap(), raw[..]);
                // Taken from the kernel, unless the journal has records of the key or of its
                // addresses.
                let held = held(&store);
                let given = |a: &IpAddr| held.values().flatten().any(|h| h == a);
                assert!(held.contains_key(&key(3)) || sets_of(3).iter().all(given), "{held:?}");
            }
            Some(Damage::Torn { kept }) => assert!(raw.ends_with(&fs::read(kept).unwrap())),
            None => {}
        }
        let before = held(&store);
        match store.allocate(&sets(), &key(77), u64::MAX) {
            Ok(addresses) => assert_eq!(addresses.len(), 2),
            Err(Error::Exhausted { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let after = held(&store);
        assert!(before.iter().all(|(k, a)| after.get(k) == Some(a)));
        drop(store);
        let again = open();
        assert_eq!((held(&again), again.damage()), (after, None), "repaired once, it is whole");
        reached
    });
}

fn sets_of(n: usize) -> Vec<IpAddr> {
    vec![format!("10.0.0.{n}").parse().unwrap(), format!("fd00::{n}").parse().unwrap()]
}
