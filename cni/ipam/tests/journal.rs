//! The journal under random histories, cut at any byte, damaged anywhere, and shared by many
//! processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use berth_cni_ipam::{Damage, Error, Key, Options, Range, RangeSet, Record, State, Store};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    time::Duration,
};

fn key(n: u8) -> Key {
    Key::new(&format!("c{n}"), "eth0").unwrap()
}

fn set(subnets: &[&str]) -> RangeSet {
    RangeSet::new(subnets.iter().map(|s| Range::new(s.parse().unwrap(), None, None, None).unwrap()).collect())
        .unwrap()
}

fn dual() -> Vec<RangeSet> {
    vec![set(&["10.0.0.0/29", "10.0.1.0/29"]), set(&["fd00::/124"])]
}

fn options(boot: &str) -> Options {
    Options { lock_wait: Duration::from_millis(50), ..Options::new(boot) }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, options("boot-1"), Vec::new).unwrap()
}

fn held(store: &Store) -> BTreeMap<Key, Vec<IpAddr>> {
    store.state().allocations().map(|(k, a)| (k.clone(), a.to_vec())).collect()
}

fn assert_unique(state: &State) {
    let mut seen = BTreeSet::new();
    for (key, addresses) in state.allocations() {
        for address in addresses {
            assert!(seen.insert(*address), "{address} twice, again for {key}");
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Allocate(u8),
    Release(u8),
    Reopen,
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0u8..14).prop_map(Op::Allocate),
        5 => (0u8..14).prop_map(Op::Release),
        1 => Just(Op::Reopen),
        2 => (0u64..90_000).prop_map(Op::Wait),
    ];
    proptest::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// After any history: no address is allocated twice, allocation is idempotent, a released
    /// address is not reused unless no other is left, and after each step a new process reads
    /// exactly the returned allocations.
    #[test]
    fn histories_keep_every_address_with_one_key(ops in ops()) {
        let dir = tempfile::tempdir().unwrap();
        let sets = dual();
        let mut store = open(dir.path());
        let mut model: BTreeMap<Key, Vec<IpAddr>> = BTreeMap::new();
        let mut freed: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let mut now = 1_000_000;
        for op in ops {
            match op {
                Op::Allocate(n) => match store.allocate(&sets, &key(n), now) {
                    Ok(addresses) => {
                        prop_assert_eq!(addresses.len(), 2);
                        let before = model.insert(key(n), addresses.clone());
                        prop_assert!(before.is_none() || before == Some(addresses.clone()), "not idempotent");
                        if before.is_none() {
                            for (address, set) in addresses.iter().zip(&sets) {
                                prop_assert!(set.contains(*address));
                                let owners = model.values().flatten().filter(|a| *a == address).count();
                                prop_assert_eq!(owners, 1);
                                if freed.remove(address).is_some_and(|at| now - at < 60_000) {
                                    let rested = |a: &IpAddr| freed.get(a).is_none_or(|at| now - at >= 60_000);
                                    let idle = all(set).into_iter()
                                        .find(|a| !model.values().flatten().any(|m| m == a) && rested(a));
                                    prop_assert_eq!(idle, None, "{} was taken from quarantine", address);
                                }
                            }
                        }
                    }
                    Err(Error::Exhausted { .. }) => prop_assert!(model.len() >= 12 && !model.contains_key(&key(n))),
                    Err(e) => panic!("{e}"),
                },
                Op::Release(n) => {
                    let back = store.release(&key(n), now).unwrap();
                    prop_assert_eq!(&back, &model.remove(&key(n)).unwrap_or_default());
                    freed.extend(back.into_iter().map(|a| (a, now)));
                }
                Op::Reopen => {
                    drop(store);
                    store = open(dir.path());
                    prop_assert_eq!(store.damage(), None);
                }
                Op::Wait(ms) => now += ms,
            }
            assert_unique(store.state());
            prop_assert_eq!(&held(&store), &model);
        }
        drop(store);
        prop_assert_eq!(held(&open(dir.path())), model);
    }

    /// A process killed while writing leaves the file cut at some byte: all acknowledged operations
    /// are there, at most the operation in progress is missing, and the network keeps working.
    #[test]
    fn a_cut_at_any_byte_loses_only_what_was_under_way(ops in ops(), at in 0.0f64..1.0) {
        let dir = tempfile::tempdir().unwrap();
        let sets = dual();
        let mut store = open(dir.path());
        let journal = dir.path().join("journal");
        let header = fs::metadata(&journal).unwrap().len();
        // Length of the file after each operation, with the operations acknowledged by then.
        let mut acknowledged = vec![(header, held(&store))];
        for op in ops {
            match op {
                Op::Allocate(n) => drop(store.allocate(&sets, &key(n), 5)),
                Op::Release(n) => drop(store.release(&key(n), 5).unwrap()),
                Op::Reopen | Op::Wait(_) => continue,
            }
            acknowledged.push((fs::metadata(&journal).unwrap().len(), held(&store)));
        }
        drop(store);
        let bytes = fs::read(&journal).unwrap();
        let cut = header + ((bytes.len() as u64 - header) as f64 * at) as u64;
        fs::write(&journal, &bytes[..cut as usize]).unwrap();
        let (whole, want) = acknowledged.iter().rev().find(|(length, _)| *length <= cut).unwrap();
        let mut store = open(dir.path());
        prop_assert_eq!(&held(&store), want);
        let torn = cut > *whole;
        prop_assert_eq!(matches!(store.damage(), Some(Damage::Torn { .. })), torn);
        if torn {
            let kept = fs::read(dir.path().join("journal.torn")).unwrap();
            prop_assert_eq!(kept, &bytes[*whole as usize..cut as usize]);
        }
        drop(store.allocate(&sets, &key(99), 7));
        let after = held(&store);
        drop(store);
        let again = open(dir.path());
        prop_assert_eq!(again.damage(), None);
        prop_assert_eq!(held(&again), after);
    }

    /// Bytes flipped anywhere: never a panic, never an address allocated twice. The damaged file is
    /// kept, and the allocations that the kernel still has are added.
    #[test]
    fn damage_anywhere_is_set_aside(flips in proptest::collection::vec((0.0f64..1.0, 1u8..=255), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let sets = dual();
        let mut store = open(dir.path());
        for n in 0..9 {
            store.allocate(&sets, &key(n), 5).unwrap();
        }
        store.release(&key(3), 6).unwrap();
        let before = held(&store);
        drop(store);
        let journal = dir.path().join("journal");
        let mut bytes = fs::read(&journal).unwrap();
        for (at, mask) in flips {
            let at = (bytes.len() as f64 * at) as usize;
            bytes[at] ^= mask;
        }
        fs::write(&journal, &bytes).unwrap();
        let kernel: Vec<_> = before.clone().into_iter().collect();
        let store = Store::open(dir.path(), options("boot-1"), || kernel).unwrap();
        assert_unique(store.state());
        match store.damage() {
            // A flip may hit only the last line feed; then that record is merely torn. Two flips of
            // one byte may cancel out.
            None | Some(Damage::Torn { .. }) => {}
            Some(Damage::Corrupt { kept, .. }) => {
                prop_assert_eq!(fs::read(kept).unwrap(), bytes);
                for (key, addresses) in &before {
                    let now = store.state().get(key).unwrap_or_default();
                    prop_assert!(addresses.iter().all(|a| now.contains(a)), "{} lost {:?}", key, addresses);
                }
            }
        }
    }

    /// Any sequence of records, valid or not, gives a state without an address allocated twice, and
    /// that state's own records give the same state.
    #[test]
    fn any_records_add_up(records in proptest::collection::vec(any_record(), 0..40)) {
        let mut state = State::default();
        for record in &records {
            state.apply(record);
            assert_unique(&state);
        }
        let mut again = State::default();
        for record in state.to_records(0, Duration::MAX) {
            prop_assert!(again.apply(&record), "{:?} contradicts", record);
        }
        prop_assert_eq!(again.allocations().collect::<Vec<_>>(), state.allocations().collect::<Vec<_>>());
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let address = (0u8..6).prop_map(|n| IpAddr::from([10, 0, 0, n]));
    let list = proptest::collection::vec((0u8..6).prop_map(|n| IpAddr::from([10, 0, 0, n])), 1..4);
    prop_oneof![
        ((0u8..5), list).prop_map(|(n, addresses)| Record::Allocate { key: key(n), addresses }),
        ((0u8..5), 0u64..9).prop_map(|(n, at)| Record::Release { key: key(n), at }),
        (address, 0u64..9).prop_map(|(address, since)| Record::Quarantine { address, since }),
    ]
}

fn all(set: &RangeSet) -> Vec<IpAddr> {
    let inside = |r: &Range| r.subnet().hosts().filter(|a| r.contains(*a)).collect::<Vec<_>>();
    set.ranges().iter().flat_map(inside).collect()
}

/// The rewriting of the journal, killed at each step: beside the old journal is any prefix of the
/// new one.
#[test]
fn a_rewrite_killed_at_any_byte_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sets = dual();
    let mut store = open(dir.path());
    for n in 0..5 {
        store.allocate(&sets, &key(n), 5).unwrap();
    }
    let want = held(&store);
    drop(store);
    let text = fs::read(dir.path().join("journal")).unwrap();
    for cut in 0..=text.len() {
        fs::write(dir.path().join("journal.new"), &text[..cut]).unwrap();
        let store = open(dir.path());
        assert_eq!((held(&store), store.damage()), (want.clone(), None), "cut at {cut}");
    }
}

#[test]
fn a_long_journal_is_shortened_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [set(&["10.0.0.0/16"])];
    let mut store = open(dir.path());
    store.allocate(&sets, &key(200), 0).unwrap();
    let mut longest = 0;
    for round in 0..2000u64 {
        let n = (round % 100) as u8;
        // The operations are a minute apart: quarantine empties as fast as it fills.
        store.allocate(&sets, &key(n), round * 60_000).unwrap();
        store.release(&key(n), round * 60_000).unwrap();
        longest = longest.max(fs::metadata(dir.path().join("journal")).unwrap().len());
    }
    assert!(longest < 20_000, "the journal grew to {longest} bytes");
    let want = store.state().get(&key(200)).unwrap().to_vec();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.state().get(&key(200)).unwrap(), want);
    let next = store.allocate(&sets, &key(1), u64::MAX).unwrap();
    assert_eq!(next, ["10.0.7.210".parse::<IpAddr>().unwrap()], "the round goes on after 2001 addresses");
}

#[test]
fn another_boot_drops_the_allocations_and_keeps_the_round() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [set(&["10.0.0.0/24"])];
    let mut store = open(dir.path());
    let first = store.allocate(&sets, &key(1), 5).unwrap();
    drop(store);
    let mut store = Store::open(dir.path(), options("boot-2"), || panic!("nothing is damaged")).unwrap();
    assert_eq!(store.state().allocations().count(), 0);
    assert_eq!(store.damage(), None);
    let second = store.allocate(&sets, &key(1), 5).unwrap();
    assert_eq!((first[0].to_string(), second[0].to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
}

#[test]
fn a_second_process_waits_for_the_lock_and_gives_up_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), options("boot-1"), Vec::new).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    let path = dir.path().to_owned();
    let patient = Options { lock_wait: Duration::from_secs(10), ..options("boot-1") };
    let other = std::thread::spawn(move || Store::open(&path, patient, Vec::new).map(|s| held(&s)));
    drop(store);
    assert_eq!(other.join().unwrap().unwrap(), BTreeMap::new());
}

#[test]
fn a_set_without_room_is_named_and_the_others_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [set(&["fd00::/112"]), set(&["10.9.0.0/30"])];
    let mut store = open(dir.path());
    store.allocate(&sets, &key(1), 5).unwrap();
    store.allocate(&sets, &key(2), 5).unwrap();
    let error = store.allocate(&sets, &key(3), 5).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        (error.to_string().as_str(), source.as_str()),
        ("cannot allocate an address for c3/eth0", "no address left in 10.9.0.0/30")
    );
    assert!(store.state().has_room(&sets).is_err());
    store.release(&key(1), 6).unwrap();
    assert!(store.state().has_room(&sets).is_ok());
    // Quarantined addresses are used if no other is left.
    let got = store.allocate(&sets, &key(3), 7).unwrap();
    assert_eq!(got[1].to_string(), "10.9.0.1");
    assert_ne!(got[0].to_string(), "fd00::1");
}

/// Threads stand for processes here: each opens the store, as the plugin does.
#[test]
fn many_at_once_get_different_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let got: Vec<IpAddr> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8u8)
            .map(|t| {
                scope.spawn(move || {
                    let patient = Options::new("boot-1");
                    let sets = [set(&["10.0.0.0/24"])];
                    (0..20u8)
                        .map(|n| {
                            let mut store = Store::open(path, patient.clone(), Vec::new).unwrap();
                            store.allocate(&sets, &key(t * 20 + n), 5).unwrap()[0]
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        tasks.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(got.len(), 160);
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 160);
}
