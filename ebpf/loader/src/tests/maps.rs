//! Map handles over maps that the test creates.

use super::Scratch;
use crate::{
    CounterMap, Error, Map, Pins, ensure_bpffs,
    pins::{make_dir, pin_over},
    sys::{MapFd, create_map, obj_get},
};
use std::{collections::BTreeMap, fs, os::fd::AsFd};

const HASH: u32 = 1;
const PERCPU_ARRAY: u32 = 6;
const LRU: u32 = 9;
const NO_PREALLOC: u32 = 1;

fn hash(scratch: &Scratch, name: &'static str, kind: u32, max: u32) -> Map<u64, [u32; 4]> {
    let flags = if kind == HASH { NO_PREALLOC } else { 0 };
    let pins = scratch.pins();
    make_dir(pins.root()).unwrap();
    pins.make().unwrap();
    pin_over(create_map(kind, 8, 16, max, flags).unwrap().as_fd(), &pins.maps().join(name)).unwrap();
    Map::open(&pins.maps(), name, false).unwrap()
}

#[test]
fn single_entries_are_written_read_and_removed() {
    let scratch = Scratch::new();
    let map = hash(&scratch, "ONE", HASH, 2);
    assert_eq!(map.get(&1).unwrap(), None);
    map.put(&1, &[1, 2, 3, 4]).unwrap();
    map.put(&2, &[5; 4]).unwrap();
    assert_eq!(map.get(&1).unwrap(), Some([1, 2, 3, 4]));
    let full = map.put(&3, &[0; 4]).unwrap_err();
    assert!(matches!(&full, Error::Map { map, .. } if map == "ONE"), "{full}");
    assert!(map.delete(&1).unwrap());
    assert!(!map.delete(&1).unwrap());
    assert_eq!(map.entries().unwrap(), [(2, [5; 4])]);
    assert!(map.memory().unwrap() > 0);
}

#[test]
fn batches_larger_than_a_call_keep_every_entry() {
    let scratch = Scratch::new();
    let map = hash(&scratch, "MANY", HASH, 32_768);
    let entries: BTreeMap<u64, [u32; 4]> =
        (0..20_000).map(|i| (i, [u32::try_from(i).unwrap(), 7, 8, 9])).collect();
    map.put_all(&entries.clone().into_iter().collect::<Vec<_>>()).unwrap();
    assert_eq!(map.entries().unwrap().into_iter().collect::<BTreeMap<_, _>>(), entries);
    assert_eq!(map.count().unwrap(), 20_000);
    let report = crate::report(&scratch.pins(), true).unwrap();
    assert_eq!(report.maps[0].entries, Some(20_000));
    // Half of these keys exist, also at the edges of batches.
    let removed: Vec<u64> = (10_000..30_000).collect();
    assert_eq!(map.delete_all(&removed).unwrap(), 10_000);
    assert_eq!(map.delete_all(&removed).unwrap(), 0);
    assert_eq!(map.count().unwrap(), 10_000);
    map.put_all(&[]).unwrap();
    assert_eq!(map.delete_all(&[]).unwrap(), 0);
}

#[test]
fn a_batch_over_the_limit_says_so_and_keeps_what_fitted() {
    let scratch = Scratch::new();
    let map = hash(&scratch, "SMALL", HASH, 100);
    let entries: Vec<(u64, [u32; 4])> = (0..200).map(|i| (i, [0; 4])).collect();
    assert!(map.put_all(&entries).is_err());
    assert_eq!(map.count().unwrap(), 100);
}

#[test]
fn lru_and_full_buckets_are_listed_whole() {
    let scratch = Scratch::new();
    let map = hash(&scratch, "LRU", LRU, 1024);
    for key in 0..300 {
        map.put(&key, &[1; 4]).unwrap();
    }
    assert_eq!(map.count().unwrap(), 300);
    // Four buckets, so a bucket holds more than one entry: the smallest buffer of a batch is one bucket.
    let tiny = hash(&scratch, "TINY", HASH, 4);
    for key in 0..4 {
        tiny.put(&key, &[1; 4]).unwrap();
    }
    assert_eq!(tiny.count().unwrap(), 4);
}

#[test]
fn handles_of_other_sizes_are_refused() {
    let scratch = Scratch::new();
    hash(&scratch, "SIZES", HASH, 4);
    let dir = scratch.pins().maps();
    let wrong = Map::<u32, [u32; 4]>::open(&dir, "SIZES", false).unwrap_err();
    assert!(matches!(wrong, Error::MapMismatch { field: "key size", want: 4, found: 8, .. }), "{wrong}");
    let wrong = Map::<u64, u64>::open(&dir, "SIZES", false).unwrap_err();
    assert!(matches!(wrong, Error::MapMismatch { field: "value size", want: 8, found: 16, .. }), "{wrong}");
    // The raw calls do not let the kernel write past a buffer either.
    let raw = MapFd::new(obj_get(&dir.join("SIZES"), false).unwrap(), 1).unwrap();
    assert!(raw.lookup(&[0; 8], &mut [0; 8]).is_err());
    assert!(raw.update(&[0; 4], &[0; 16], 0).is_err());
    assert!(raw.lookup_batch(None, &mut [0; 8], &mut [0; 16], &mut [0; 16]).is_err());
}

#[test]
fn readers_cannot_write() {
    let scratch = Scratch::new();
    hash(&scratch, "READ", HASH, 4).put(&1, &[1; 4]).unwrap();
    let map = Map::<u64, [u32; 4]>::open(&scratch.pins().maps(), "READ", true).unwrap();
    assert_eq!(map.entries().unwrap(), [(1, [1; 4])]);
    assert!(map.put(&2, &[2; 4]).is_err());
    assert!(map.delete(&1).is_err());
}

#[test]
fn counters_are_summed_over_processors() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    make_dir(pins.root()).unwrap();
    pins.make().unwrap();
    let fd = create_map(PERCPU_ARRAY, 4, 8, 3, 0).unwrap();
    pin_over(fd.as_fd(), &pins.maps().join("COUNT")).unwrap();
    let cpus = CounterMap::open(&pins.maps(), "COUNT", true).unwrap().cpus();
    let raw = MapFd::new(fd, cpus).unwrap();
    let cells: Vec<u8> = (0..cpus).flat_map(|_| 5_u64.to_ne_bytes()).collect();
    raw.update(&1_u32.to_ne_bytes(), &cells, 0).unwrap();
    let sums = CounterMap::open(&pins.maps(), "COUNT", true).unwrap().sums().unwrap();
    assert_eq!(sums, [0, 5 * u64::try_from(cpus).unwrap(), 0]);
}

#[test]
fn a_file_system_is_mounted_only_over_an_empty_directory_and_once() {
    let scratch = Scratch::new();
    ensure_bpffs(&scratch.pins()).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let parent = scratch.pins().root().parent().unwrap().to_owned();
    assert_eq!(mounts.lines().filter(|line| line.contains(parent.to_str().unwrap())).count(), 1);
    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("file"), "mine").unwrap();
    let refused = ensure_bpffs(&Pins::new(full.path().join("berth"))).unwrap_err();
    assert!(matches!(refused, Error::NotBpffs { .. }), "{refused}");
    assert_eq!(fs::read_to_string(full.path().join("file")).unwrap(), "mine");
}
