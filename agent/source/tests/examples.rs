//! The examples that README names are valid manifests with the agent's default ranges.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_core::time::Wall;
use berth_source::{
    ServiceRanges,
    manifest::{ManifestContext, Mode, parse_file},
};
use std::{path::Path, sync::Arc};

#[test]
fn every_example_is_accepted() {
    let ranges = ServiceRanges {
        networks: vec![("10.96.0.0".parse().unwrap(), 16)],
        node_ports: 30_000..=32_767,
        reserved: Vec::new(),
    };
    let ctx = ManifestContext {
        node: "n1".parse().unwrap(),
        mode: Mode::Manifests,
        now: Wall(0),
        services: Some(Arc::new(ranges)),
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples");
    let mut read = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            parse_file(&path, &std::fs::read(&path).unwrap(), &ctx).unwrap_or_else(|e| panic!("{e}"));
            read += 1;
        }
    }
    assert!(read >= 5, "only {read}");
}
