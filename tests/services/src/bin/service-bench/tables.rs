//! Costs of changes: one EndpointSlice among many, all Services into empty tables, a restart that finds all
//! entries in place; and the kernel memory of the tables.

use crate::{Bench, Figure, east_west, say, stop};
use anyhow::{Context, Result, ensure};
use berth_core::shared::Changes;
use berth_ebpf_loader::report;
use berth_harness::{
    rng::{Rng, seed},
    stats::{quantile, spread},
};
use berth_services::{NodeFacts, TableReconciler};
use berth_tests_services::{
    objects::{self, Pair},
    plane::Plane,
};
use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

/// Endpoints of each Service.
const ENDPOINTS: u32 = 10;
/// Number of timed changes.
const EVENTS: usize = 4_000;
/// Number of fills of empty tables, and of restarts.
const TIMES: usize = 5;

pub(crate) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let mut plane = Plane::new(&bench.pins("tables"), &bench.object)?;
    plane.configure(Ipv4Addr::new(192, 0, 2, 1))?;
    let empty = memory(&plane)?;
    let objects = objects::many(bench.services, ENDPOINTS)?;

    let mut fills = Vec::new();
    let mut reconciler = TableReconciler::new(NodeFacts::default(), 1);
    for round in 0..TIMES {
        stop::check()?;
        if round > 0 {
            clear(&mut plane, &mut reconciler, &objects)?;
            reconciler = TableReconciler::new(NodeFacts::default(), reconciler.next_id());
        }
        fills.push(begin(&mut plane, &mut reconciler, &objects)?.0);
    }
    say(&format!("fill of {} Services x {ENDPOINTS}: {} s", bench.services, spread(&fills, 3)));

    let full = memory(&plane)?;
    for map in report(&plane.pins, true)?.maps {
        say(&format!(
            "  {:12} {:8.2} MB, {:?} of {} entries",
            map.name,
            megabytes(map.memory)?,
            map.entries,
            map.max_entries
        ));
    }

    let updates = updates(&mut plane, &mut reconciler, &objects)?;
    say(&format!(
        "one EndpointSlice of {} Services until the kernel has it: p50 {:.1}, p99 {:.1}, longest {:.1} µs",
        bench.services,
        quantile(&updates, 0.5),
        quantile(&updates, 0.99),
        quantile(&updates, 1.0)
    ));

    let mut restarts = Vec::new();
    settle(&mut plane, &mut reconciler)?;
    // Restores the objects of the beginning after the timed changes, without timing it.
    objects::put(&mut reconciler, &objects);
    settle(&mut plane, &mut reconciler)?;
    for _ in 0..TIMES {
        stop::check()?;
        let mut next = TableReconciler::new(NodeFacts::default(), reconciler.next_id());
        let (took, written) = begin(&mut plane, &mut next, &objects)?;
        ensure!(written == 0, "a restart wrote {written} entries, though all was in place");
        restarts.push(took);
    }
    say(&format!("restart with all in place: {} s", spread(&restarts, 3)));
    let differences = reconciler.check(&mut plane.maps)?;
    ensure!(differences.is_empty(), "the tables differ from what is wanted: {differences:?}");

    let size = format!("{} Services x {ENDPOINTS} endpoints", bench.services);
    let figure = |name, value, unit, n, against: String| Figure { name, value, unit, n, against };
    Ok(vec![
        figure(
            "update_p99_us",
            quantile(&updates, 0.99),
            "µs",
            updates.len(),
            format!("{size}, one slice each"),
        ),
        figure(
            "fill_10k_s",
            quantile(&fills, 0.5),
            "s",
            fills.len(),
            format!("{size}; kube-proxy 1.36.3, measured once: 24.6 s"),
        ),
        figure(
            "restart_sync_s",
            quantile(&restarts, 0.5),
            "s",
            restarts.len(),
            format!("{size}, tables in place"),
        ),
        figure("datapath_mem_mb", full, "MB", 1, format!("{size}; {empty:.1} MB of it with none")),
    ])
}

/// Gives all objects to a new TableReconciler and syncs the tables. Returns the time in seconds and the
/// number of written entries.
fn begin(plane: &mut Plane, reconciler: &mut TableReconciler, objects: &[Pair]) -> Result<(f64, usize)> {
    let begun = Instant::now();
    objects::put(reconciler, objects);
    reconciler.listed();
    let done = reconciler.sync(&mut plane.maps, east_west::now).context("bring the tables there")?;
    Ok((begun.elapsed().as_secs_f64(), done.put + done.deleted))
}

/// Removes all objects from the tables.
fn clear(plane: &mut Plane, reconciler: &mut TableReconciler, objects: &[Pair]) -> Result<()> {
    objects::remove(reconciler, objects);
    settle(plane, reconciler)?;
    let left = plane.maps.service4.count()? + plane.maps.chunk4.count()?;
    ensure!(left == 0, "{left} entries are left of Services that are gone");
    Ok(())
}

/// Syncs until no work is due.
fn settle(plane: &mut Plane, reconciler: &mut TableReconciler) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while let Some(due) = reconciler.sync(&mut plane.maps, east_west::now)?.due {
        ensure!(Instant::now() < end, "chunks are due for ten seconds");
        thread::sleep(due.since(east_west::now()));
    }
    Ok(())
}

/// Replaces the endpoints of one random Service after the other. Returns the times in microseconds.
fn updates(plane: &mut Plane, reconciler: &mut TableReconciler, objects: &[Pair]) -> Result<Vec<f64>> {
    let mut rng = Rng::new(seed());
    let services = u64::try_from(objects.len())?;
    let mut times = Vec::with_capacity(EVENTS);
    for event in 0..EVENTS {
        let pair =
            usize::try_from(rng.below(services)).ok().and_then(|n| objects.get(n)).context("no Service")?;
        let fresh = 0x40_0000 + u32::try_from(event)? * ENDPOINTS;
        let endpoints: Vec<Ipv4Addr> = (0..ENDPOINTS).map(|e| objects::at(fresh + e)).collect();
        let change = Changes { now: vec![pair.with(&endpoints)], ..Changes::default() };
        let begun = Instant::now();
        reconciler.change_slices(change);
        let done = reconciler.sync(&mut plane.maps, east_west::now)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        ensure!(done.put > 0, "an event wrote nothing");
    }
    Ok(times)
}

fn memory(plane: &Plane) -> Result<f64> {
    megabytes(report(&plane.pins, false)?.map_memory())
}

fn megabytes(bytes: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(bytes / 1024)?) / 1024.0)
}
