//! Mutated memory files: `plan` and `learn` accept whatever the store reads back.

use super::*;
use crate::testing::{container, mutate, mutations, pod};
use berth_core::{
    ids::*,
    model::*,
    plan::*,
    probe::{ProbeEvent, ProbeResult, ProbeState, step},
    time::{Boottime, Now, Wall},
};
use berth_harness::rng::Rng;
use serde_json::Value;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

fn pods() -> Vec<Arc<Pod>> {
    let sidecar = Container { sidecar: true, ..container("s", true) };
    [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never]
        .into_iter()
        .flat_map(|policy| {
            [
                pod(policy, vec![], vec![container("c", false)]),
                pod(policy, vec![container("i", false), sidecar.clone()], vec![container("c", true)]),
            ]
        })
        .collect()
}

/// Applies an action to the observed state, as far as these tests need.
fn carry_out(action: &Action, seen: &mut Observed, at: Wall) {
    match action {
        Action::MountVolumes => (seen.volumes_mounted, seen.volumes_present) = (true, true),
        Action::UnmountVolumes => (seen.volumes_mounted, seen.volumes_present) = (false, false),
        Action::MakeSandbox(sandbox_attempt) => {
            let (sandbox_attempt, state) = (*sandbox_attempt, SandboxState::Ready);
            seen.sandbox =
                Some(ObservedSandbox { sandbox_attempt, state, ips: vec!["10.0.0.1".parse().unwrap()] });
        }
        Action::TeardownSandbox(_) => seen.sandbox = None,
        Action::Start { container, attempt, sandbox_attempt, id } => {
            let state = RunState::Running { started_at: at };
            let (container, attempt, sandbox_attempt) = (container.clone(), *attempt, *sandbox_attempt);
            let run = ObservedContainer {
                container,
                attempt,
                sandbox_attempt,
                image_id: "i".into(),
                user: None,
                resources: None,
                state,
                task: true,
            };
            seen.containers.insert(id.clone(), run);
        }
        Action::Signal { id, .. } | Action::Kill { id, .. } => end(seen, id, 137, at),
        Action::RecordExit { id, exit, .. } => {
            if let Some(c) = seen.containers.get_mut(id) {
                c.state = RunState::Recorded(exit.0.clone());
            }
        }
        Action::Reap { id, .. } => {
            if let Some(c) = seen.containers.get_mut(id) {
                c.task = false;
            }
        }
        Action::Remove { id, .. } => drop(seen.containers.remove(id)),
        _ => {}
    }
}

fn end(seen: &mut Observed, id: &ContainerId, code: i32, at: Wall) {
    if let Some(c) = seen.containers.get_mut(id) {
        c.state = RunState::Ended(Exit { code, ..Exit::unknown(at) });
    }
}

/// Stored and observed states from the lives of pods.
fn corpus() -> (Vec<Value>, Vec<Value>) {
    let (mut kept, mut snapshots) = (Vec::new(), Vec::new());
    for (n, pod) in pods().into_iter().cycle().take(18).enumerate() {
        let mut rng = Rng::new(u64::try_from(n).unwrap());
        let mut now =
            Now { boottime: Boottime(Duration::from_secs(1000)), wall: Wall(1_700_000_000_000_000_000) };
        let mut seen = Observed { runtime_answers: true, ..Observed::default() };
        let mut memory = Memory::default();
        for round in 0..24 {
            let end_at = (round > 18).then_some(5);
            let p = plan(&Desired::new(Arc::clone(&pod), end_at), &seen, &memory, now);
            memory = p.memory;
            let whole = StoredPod {
                boot: BootId::new("boot-1").unwrap(),
                pod: Arc::clone(&pod),
                memory: memory.clone(),
            };
            kept.push(serde_json::to_value(whole).unwrap());
            snapshots.push(serde_json::to_value(&seen).unwrap());
            for a in p.actions {
                let fails = rng.below(5) == 0;
                if !fails {
                    carry_out(&a, &mut seen, now.wall);
                }
                let outcome = if fails { Err(Failure::new("Oops", "no")) } else { Ok(()) };
                learn(&pod, &mut memory, Fact::Finished(a, outcome), now);
            }
            for probe in p.probes {
                let success = rng.below(4) != 0;
                learn(&pod, &mut memory, Fact::Probe { id: probe.id, kind: probe.kind, success }, now);
            }
            let ids: Vec<ContainerId> = seen.containers.keys().cloned().collect();
            if !ids.is_empty() && rng.below(3) == 0 {
                let code = *rng.pick(&[0, 1]);
                let id = rng.pick(&ids);
                if matches!(seen.containers[id].state, RunState::Running { .. }) {
                    end(&mut seen, id, code, now.wall);
                }
            }
            now.boottime = now.boottime + Duration::from_secs(7);
            now.wall.0 += 7_000_000_000;
        }
    }
    (kept, snapshots)
}

fn some_time(rng: &mut Rng) -> Now {
    let boot = [0, 1, 1000, 1100, 1_000_000, u64::MAX / 2];
    let wall = [i64::MIN, -1, 0, 1_700_000_000_000_000_000, 1_700_000_100_000_000_000, i64::MAX];
    Now { boottime: Boottime(Duration::from_secs(*rng.pick(&boot))), wall: Wall(*rng.pick(&wall)) }
}

/// Plans and learns from the given state on, with random facts.
fn live_on(rng: &mut Rng, kept: StoredPod, mut seen: Observed) {
    let StoredPod { pod, mut memory, .. } = kept;
    let mut now = some_time(rng);
    for _ in 0..4 {
        let ends = [None, None, Some(0), Some(30), Some(u32::MAX)];
        let p = plan(&Desired::new(Arc::clone(&pod), *rng.pick(&ends)), &seen, &memory, now);
        assert!(p.wake_at.is_none_or(|t| t > now.boottime), "wakes at once, for ever: {:?}", p.wake_at);
        if p.finished {
            return;
        }
        drop(crate::waiting::report(&pod, Some(&p.memory), crate::waiting::WaitReason::Runtime, now));
        memory = p.memory;
        for a in p.actions {
            let outcome = if rng.below(3) == 0 { Err(Failure::new("Oops", "no")) } else { Ok(()) };
            if outcome.is_ok() {
                carry_out(&a, &mut seen, now.wall);
            }
            learn(&pod, &mut memory, Fact::Finished(a, outcome), now);
        }
        for probe in p.probes {
            let spec = pod.container(&probe.container).and_then(|c| match probe.kind {
                ProbeKind::Liveness => c.liveness.as_ref(),
                ProbeKind::Readiness => c.readiness.as_ref(),
                ProbeKind::Startup => c.startup.as_ref(),
            });
            if let Some(spec) = spec {
                let fresh =
                    ProbeState::new(probe.kind, spec, probe.started_at, now.boottime, now.boottime, 7);
                let adopted = ProbeState::adopted(probe.kind, spec, None, now.boottime, 7);
                for state in [fresh, adopted.not_before(spec, probe.started_at)] {
                    let (state, ..) = step(&state, spec, ProbeEvent::Tick(now.boottime));
                    let (state, ..) =
                        step(&state, spec, ProbeEvent::Result(now.boottime, ProbeResult::Success));
                    step(&state, spec, ProbeEvent::Nudge(now.boottime));
                }
            }
            let success = rng.below(2) == 0;
            learn(&pod, &mut memory, Fact::Probe { id: probe.id, kind: probe.kind, success }, now);
        }
        learn(&pod, &mut memory, Fact::InputsChanged, now);
        if rng.below(2) == 0 {
            now = some_time(rng);
        }
    }
    let text = serde_json::to_vec(&memory).unwrap();
    assert_eq!(serde_json::from_slice::<Memory>(&text).unwrap().containers, memory.containers);
}

#[derive(Default)]
struct Counts {
    json: AtomicUsize,
    typed: AtomicUsize,
}

fn one(seed: usize, kept: &[Value], snapshots: &[Value], counts: &Counts) {
    let mut rng = Rng::new(u64::try_from(seed).unwrap());
    let text = mutate(&mut rng, kept);
    let Ok(kept) = parse(&text) else {
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
        counts.json.fetch_add(usize::from(is_json), Ordering::Relaxed);
        return;
    };
    counts.json.fetch_add(1, Ordering::Relaxed);
    counts.typed.fetch_add(1, Ordering::Relaxed);
    let mutated = mutate(&mut rng, snapshots);
    let seen = serde_json::from_slice(&mutated)
        .unwrap_or_else(|_not_one| serde_json::from_value(rng.pick(snapshots).clone()).unwrap());
    live_on(&mut rng, kept, seen);
}

#[test]
fn mutated_memory_is_set_aside_or_borne() {
    let (kept, snapshots) = corpus();
    let (counts, count, begun) = (Counts::default(), mutations(), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (kept, snapshots, counts) = (&kept, &snapshots, &counts);
            scope.spawn(move || {
                for seed in (t..count).step_by(threads) {
                    let one_begun = Instant::now();
                    let done = catch_unwind(AssertUnwindSafe(|| one(seed, kept, snapshots, counts)));
                    assert!(done.is_ok(), "mutation with seed {seed} panicked");
                    assert!(one_begun.elapsed() < Duration::from_secs(10), "mutation with seed {seed} hangs");
                }
            });
        }
    });
    let (json, typed) = (counts.json.into_inner(), counts.typed.into_inner());
    println!(
        "memory: {count} mutations of {} documents in {:.1} s: {json} past the syntax, {typed} read and planned on",
        kept.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(json * 10 >= count * 3, "too few past the syntax: {json} of {count}");
    assert!(typed * 10 >= count, "too few planned on: {typed} of {count}");
}

#[test]
fn of_mutated_files_each_is_loaded_or_set_aside_or_of_another_boot() {
    let (mut kept, _) = corpus();
    // A mutation rarely changes the field of the boot, so every fourth file gets another boot.
    for other in kept.iter_mut().step_by(4) {
        other["boot"] = "boot-2".into();
    }
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-pods-test");
    let store = MemoryStore::open(&roots, &BootId::new("boot-1").unwrap()).unwrap();
    let memory = roots.memory_dir();
    let mut rng = Rng::new(3);
    let (files, mut loaded, mut dropped) = (1000, 0, 0);
    for n in 0..files {
        let text = mutate(&mut rng, &kept);
        std::fs::write(memory.join("u-1.json"), &text).unwrap();
        let one = store.load_one(&PodUid::new("u-1").unwrap()).unwrap();
        let whole = store.load().unwrap();
        let (json, bad) = (memory.join("u-1.json").exists(), memory.join("u-1.bad").exists());
        match (&one, json, bad) {
            (Some(kept), true, _) => {
                loaded += 1;
                assert_eq!((kept.pod.uid.as_str(), whole.len()), ("u-1", 1));
            }
            (None, false, true) => assert_eq!(std::fs::read(memory.join("u-1.bad")).unwrap(), text, "{n}"),
            (None, false, false) => {
                dropped += 1;
                assert_ne!(parse(&text).unwrap().boot.as_str(), "boot-1", "only another boot's is dropped");
            }
            other => panic!("{n}: {other:?}"),
        }
        store.forget(&PodUid::new("u-1").unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(&memory).unwrap().count(), 0);
    }
    println!("{files} files: {loaded} loaded, {dropped} of another boot, the rest set aside");
    assert!(loaded > files / 10 && dropped > 0 && loaded + dropped < files);
}

#[test]
fn one_bad_file_hides_no_other_and_foreign_files_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-pods-test");
    let boot = BootId::new("boot-1").unwrap();
    let store = MemoryStore::open(&roots, &boot).unwrap();
    let pod = pods().remove(0);
    store.save(&pod, &Memory::default()).unwrap();
    let memory = roots.memory_dir();
    std::fs::write(memory.join("torn.json"), "{\"boot\":").unwrap();
    std::fs::write(memory.join("empty.json"), "").unwrap();
    std::fs::write(memory.join("note.txt"), "x").unwrap();
    std::fs::copy(memory.join("u-1.json"), memory.join("u-2.json")).unwrap();
    std::fs::File::create(memory.join("huge.json")).unwrap().set_len(1 << 40).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.iter().map(|k| k.pod.uid.as_str()).collect::<Vec<_>>(), ["u-1"]);
    let mut names: Vec<String> =
        std::fs::read_dir(&memory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["empty.bad", "huge.bad", "note.txt", "torn.bad", "u-1.json", "u-2.bad"]);
    // In another boot none of the memory holds any more.
    let later = MemoryStore::open(&roots, &BootId::new("boot-2").unwrap()).unwrap();
    assert!(later.load().unwrap().is_empty());
    assert!(!memory.join("u-1.json").exists());
}
