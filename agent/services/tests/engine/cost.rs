//! Duration of a round.

use crate::*;

/// Duration of a round after a change of one slice, pod or Service among many. The test prints it
/// (`--nocapture`) and sets no limit.
#[test]
fn what_a_change_costs_among_ten_thousand_services() {
    const SERVICES: usize = 10_000;
    const PODS: usize = 110;
    let world = listed();
    let ip = |net: &str, n: usize| format!("{net}.{}.{}", n / 256, n % 256);
    {
        let mut state = world.state();
        for n in 0..SERVICES {
            let name = format!("s{n}");
            Arc::make_mut(&mut state.services).push(web(&name, &ip("10.96", n)));
            Arc::make_mut(&mut state.slices).push(behind(&name, &["10.1.0.1", "10.1.0.2", "10.1.0.3"]));
        }
        for n in 0..PODS {
            let (name, app) = (format!("pod{n}"), format!("app{n}"));
            Arc::make_mut(&mut state.services).push(selecting(&format!("p{n}"), &ip("10.97", n), &app));
            state.pods.insert(uid(&name), Some(pod(&name, &app, &ip("10.2", n))));
            state.networks.insert(uid(&name), network(n as u64 + 1, 100 + n as u32));
        }
    }
    let mut engine = engine(&world);
    rounds(&mut engine, &world, |w| published(w) == (1, 1));
    let mut measure = |what: &str, change: &dyn Fn(usize)| {
        let mut times: Vec<Duration> = (0..1000)
            .map(|n| {
                change(n);
                let written = world.state().written;
                let begun = Instant::now();
                engine.round();
                let took = begun.elapsed();
                assert!(world.state().written > written, "{what} {n}");
                took
            })
            .collect();
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}", times[500], times[990]);
    };
    measure("a slice", &|n| {
        let at = n * 10 % SERVICES;
        let last = format!("10.1.1.{}", n % 250);
        Arc::make_mut(&mut world.state().slices)[at] = behind(&format!("s{at}"), &["10.1.0.1", &last]);
    });
    measure("a pod's address", &|n| {
        let (at, address) = (n % PODS, ip("10.3", n));
        world
            .state()
            .pods
            .insert(uid(&format!("pod{at}")), Some(pod(&format!("pod{at}"), &format!("app{at}"), &address)));
    });
    measure("a Service", &|n| {
        Arc::make_mut(&mut world.state().services)[n] = web(&format!("s{n}"), &ip("10.98", n));
    });
}
