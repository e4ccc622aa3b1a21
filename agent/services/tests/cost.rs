//! Cost of a change: the writes follow the size of the change, and the work in memory takes little time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::{
    model::{EndpointSlice, Protocol},
    shared::Changes,
};
use berth_services::{NodeFacts, TableReconciler};
use std::time::Instant;
use support::{Fake, endpoint, new, service, slice};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;

fn node() -> NodeFacts {
    NodeFacts { name: "a".into(), zone: "".into(), addresses: Default::default(), own: Default::default() }
}

fn a_slice(number: usize, round: usize) -> Changes<EndpointSlice> {
    let endpoints = (0..ENDPOINTS).map(|e| {
        let address = format!("10.{}.{}.{}", 100 + round, number / 256, (number + e * 7) % 256);
        endpoint(&address, "b")
    });
    let name = format!("s{number}");
    new(slice(&format!("{name}-x"), &name, &[("", Protocol::Tcp, 8080)], endpoints.collect()))
}

fn fill(reconciler: &mut TableReconciler) {
    for number in 0..SERVICES {
        let ip = format!("10.96.{}.{}", number / 256, number % 256);
        let service = service(&format!("s{number}"), &ip, &[("", Protocol::Tcp, 80, None)]);
        reconciler.change_services(new(service));
        reconciler.change_slices(a_slice(number, 0));
    }
    reconciler.listed();
}

#[test]
fn a_change_costs_what_it_changes() {
    let mut fake = Fake::unwatched();
    let clock = fake.clock();
    let mut reconciler = TableReconciler::new(node(), 1);
    fill(&mut reconciler);
    let begun = Instant::now();
    let outcome = reconciler.sync(&mut fake, &clock).unwrap();
    println!("fill: {:?}", begun.elapsed());
    assert_eq!((outcome.put, outcome.deleted), (3 * SERVICES, 0), "value, bare address and one chunk each");

    let mut times: Vec<_> = (0..2000)
        .map(|n| {
            reconciler.change_slices(a_slice(n * 5, 1));
            fake.pass(berth_services::REST);
            let begun = Instant::now();
            let outcome = reconciler.sync(&mut fake, &clock).unwrap();
            let took = begun.elapsed();
            assert_eq!(
                (outcome.put, outcome.deleted),
                (2, usize::from(n > 0)),
                "one chunk, one value, the last one's chunk"
            );
            took
        })
        .collect();
    times.sort();
    println!("change: p50 {:?}, p99 {:?}", times[1000], times[1980]);

    let mut again = TableReconciler::new(node(), 1);
    fill(&mut again);
    for n in 0..2000 {
        again.change_slices(a_slice(n * 5, 1));
    }
    let begun = Instant::now();
    let outcome = again.sync(&mut fake, &clock).unwrap();
    println!("restart: {:?}", begun.elapsed());
    // The old chunk of the last change still rests.
    assert_eq!(outcome.put, 0);
}
