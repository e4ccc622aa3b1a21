//! Runs random histories of one pod through `plan`: processes end, actions fail, the agent is killed between
//! any two steps with or without its memory, containerd fails, the node reboots. Each step checks the
//! invariants; the calm end of each history checks that the pod has reached its final state.
//!
//! `BERTH_HISTORIES` sets the number of histories (default 60,000), `BERTH_SEED` the seed. A failure prints
//! both and the steps.

#[expect(unreachable_pub, reason = "shared by the parts of this test alone")]
mod world;

use std::time::Instant;
use world::{Rng, World, specs};

fn histories() -> u64 {
    std::env::var("BERTH_HISTORIES").ok().and_then(|v| v.parse().ok()).unwrap_or(60_000)
}

fn base_seed() -> u64 {
    std::env::var("BERTH_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

#[test]
fn no_history_breaks_a_promise() {
    let pods = specs();
    let (count, seed) = (histories(), base_seed());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let begun = Instant::now();
    let tallies: Vec<world::Tally> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                let pods = &pods;
                scope.spawn(move || {
                    let mut tally = world::Tally::default();
                    for n in (t..count).step_by(threads as usize) {
                        let mut rng = Rng::new(seed.wrapping_add(n));
                        let mut world = World::new(rng.pick(pods).clone(), &mut tally);
                        if let Err(broken) = world.run(&mut rng) {
                            panic!("history seed {}: {broken}\n{}", seed.wrapping_add(n), world.log());
                        }
                    }
                    tally
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let mut sum = world::Tally::default();
    tallies.iter().for_each(|t| sum.add(t));
    println!("{count} histories, {} plans in {:.1} s: {sum:?}", sum.plans, begun.elapsed().as_secs_f64());
    // The histories prove nothing unless they cover these events.
    for (what, n) in [
        ("starts", sum.starts),
        ("restarts", sum.restarts),
        ("agent deaths", sum.agent_deaths),
        ("memory losses", sum.memory_losses),
        ("reboots", sum.reboots),
        ("pasts from the API server", sum.pasts),
        ("sandbox losses", sum.sandbox_losses),
        ("outages", sum.outages),
        ("ephemeral containers", sum.debugged),
        ("resizes", sum.resized),
        ("ready", sum.ready),
        ("finished", sum.finished),
        ("terminal", sum.terminal),
    ] {
        assert!(n * 50 > count, "too few {what}: {n} of {count}");
    }
}
