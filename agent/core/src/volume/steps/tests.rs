//! From any observed state, and after any failure or crash, the steps lead to the wanted end.

use super::*;
use proptest::prelude::*;

fn pods() -> impl Strategy<Value = BTreeSet<PodUid>> {
    proptest::collection::btree_set(0..3_u8, 0..3)
        .prop_map(|numbers| numbers.into_iter().map(|n| PodUid::new(format!("p{n}")).unwrap()).collect())
}

fn progress() -> impl Strategy<Value = Progress> {
    prop_oneof![Just(Progress::None), Just(Progress::Uncertain), Just(Progress::Done)]
}

fn states() -> impl Strategy<Value = VolumeState> {
    let published = proptest::collection::btree_map(0..3_u8, progress(), 0..3);
    (progress(), published).prop_map(|(staged, published)| VolumeState {
        staged,
        published: published.into_iter().map(|(n, at)| (PodUid::new(format!("p{n}")).unwrap(), at)).collect(),
    })
}

/// What a driver has in truth: a state of certain facts only.
#[derive(Debug, Default)]
struct Driver {
    staged: bool,
    published: BTreeSet<PodUid>,
}

impl Driver {
    /// Some truth of which the node may have observed `state`.
    fn behind(state: &VolumeState, uncertain_is: bool) -> Driver {
        let is = |at: Progress| at == Progress::Done || at == Progress::Uncertain && uncertain_is;
        let published = state.published.iter().filter(|(_, at)| is(**at)).map(|(pod, _)| pod.clone());
        Driver { staged: is(state.staged), published: published.collect() }
    }

    fn call(&mut self, step: &VolumeStep) {
        match step {
            VolumeStep::Stage => self.staged = true,
            VolumeStep::Unstage => {
                assert!(self.published.is_empty(), "the volume is unstaged while a pod has it");
                self.staged = false;
            }
            VolumeStep::Publish(pod) => drop(self.published.insert(pod.clone())),
            VolumeStep::Unpublish(pod) => drop(self.published.remove(pod)),
        }
    }
}

/// How a call ends: done, without effect, or unknown, with its effect or without.
#[derive(Debug, Clone, Copy)]
enum End {
    Done,
    Failed,
    Unknown { effect: bool },
}

fn ends() -> impl Strategy<Value = Vec<End>> {
    let end = prop_oneof![
        Just(End::Done),
        Just(End::Failed),
        any::<bool>().prop_map(|effect| End::Unknown { effect })
    ];
    proptest::collection::vec(end, 0..12)
}

proptest! {
    #[test]
    fn every_history_leads_to_the_wanted_end(
        wanted in proptest::collection::vec((pods(), any::<bool>()), 1..3),
        first in states(),
        uncertain_is in any::<bool>(),
        ends in ends(),
    ) {
        // A driver without a stage has nothing staged.
        let stages = wanted[0].1;
        let mut state = first;
        if stages && state.published.values().any(|at| *at != Progress::None) {
            state.staged = Progress::Done;
        } else if !stages {
            state.staged = Progress::None;
        }
        let mut driver = Driver::behind(&state, uncertain_is);
        let mut ends = ends.into_iter();
        for (pods, _) in wanted {
            let wanted = VolumeWanted { pods, stages };
            for round in 0.. {
                prop_assert!(round < 40, "no end: {state:?}");
                let Some(step) = next_step(&wanted, &state) else { break };
                if let VolumeStep::Publish(_) = step {
                    prop_assert!(!stages || state.staged == Progress::Done, "published before it is staged");
                }
                prop_assert!(step != VolumeStep::Stage || state.staged != Progress::Done, "staged twice");
                let before = state.clone();
                state.begin(&step);
                match ends.next().unwrap_or(End::Done) {
                    End::Done => {
                        driver.call(&step);
                        state.finish(&before, &step, StepResult::Done);
                    }
                    End::Failed => state.finish(&before, &step, StepResult::Failed),
                    End::Unknown { effect } => {
                        if effect {
                            driver.call(&step);
                        }
                        state.finish(&before, &step, StepResult::Uncertain);
                    }
                }
            }
            prop_assert_eq!(&driver.published, &wanted.pods);
            if wanted.pods.is_empty() {
                prop_assert!(!driver.staged, "a free volume is staged nowhere");
            } else if stages {
                prop_assert!(driver.staged);
            }
        }
    }
}

#[test]
fn two_pods_share_one_stage_and_the_last_ends_it() {
    let (a, b) = (PodUid::new("a").unwrap(), PodUid::new("b").unwrap());
    let run = |state: &mut VolumeState, pods: &[&PodUid]| {
        let wanted = VolumeWanted { pods: pods.iter().map(|pod| (*pod).clone()).collect(), stages: true };
        let mut steps = Vec::new();
        while let Some(step) = next_step(&wanted, state) {
            let before = state.clone();
            state.finish(&before, &step, StepResult::Done);
            steps.push(step);
        }
        steps
    };
    let mut state = VolumeState::default();
    assert_eq!(run(&mut state, &[&a]), [VolumeStep::Stage, VolumeStep::Publish(a.clone())]);
    assert_eq!(run(&mut state, &[&a, &b]), [VolumeStep::Publish(b.clone())]);
    assert_eq!(run(&mut state, &[&b]), [VolumeStep::Unpublish(a)]);
    assert_eq!(run(&mut state, &[]), [VolumeStep::Unpublish(b), VolumeStep::Unstage]);
    assert_eq!(run(&mut state, &[]), []);
}
