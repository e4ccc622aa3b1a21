use super::*;
use crate::model::ProbeAction;
use proptest::prelude::*;

fn secs(s: u64) -> Boottime {
    Boottime(Duration::from_secs(s))
}

fn millis(ms: u64) -> Boottime {
    Boottime(Duration::from_millis(ms))
}

fn probe(delay: u32, period: u32, success: u32, failure: u32) -> Probe {
    Probe {
        action: ProbeAction::Exec(vec!["true".into()]),
        initial_delay_seconds: delay,
        timeout_seconds: 1,
        period_seconds: period,
        success_threshold: success,
        failure_threshold: failure,
        grace_seconds: None,
    }
}

fn fresh(kind: ProbeKind, probe: &Probe) -> ProbeState {
    ProbeState::new(kind, probe, secs(100), secs(100), secs(0), 7)
}

fn failure() -> ProbeResult {
    ProbeResult::Failure("no".into())
}

fn unknown() -> ProbeResult {
    ProbeResult::Unknown("busy".into())
}

/// Runs the probe at each due time and answers at once. Returns the times and the changes of the verdict.
fn drive(
    mut state: ProbeState,
    probe: &Probe,
    answers: &[ProbeResult],
) -> (ProbeState, Vec<Boottime>, Vec<(usize, ProbeVerdict)>) {
    let (mut asked, mut changes) = (vec![], vec![]);
    for (i, answer) in answers.iter().enumerate() {
        let Some(at) = state.next_at() else { break };
        let (next, todo, _) = step(&state, probe, ProbeEvent::Tick(at));
        assert_eq!(todo, ProbeStep::Ask);
        asked.push(at);
        let (next, _, changed) = step(&next, probe, ProbeEvent::Result(at, answer.clone()));
        changes.extend(changed.map(|v| (i, v)));
        state = next;
    }
    (state, asked, changes)
}

#[test]
fn initial_verdicts() {
    let p = probe(0, 10, 1, 3);
    for (kind, verdict) in [
        (ProbeKind::Readiness, Some(ProbeVerdict::Failure)),
        (ProbeKind::Liveness, Some(ProbeVerdict::Success)),
        (ProbeKind::Startup, None),
    ] {
        let state = fresh(kind, &p);
        assert_eq!(state.verdict(), verdict, "{kind:?}");
        assert!(!state.on_hold(), "{kind:?}");
    }
}

#[test]
fn first_question_at_the_initial_delay_then_every_period() {
    let p = probe(3, 10, 1, 3);
    let state = fresh(ProbeKind::Liveness, &p);
    let (state, todo, _) = step(&state, &p, ProbeEvent::Tick(millis(102_999)));
    assert_eq!(todo, ProbeStep::Wait { until: secs(103) });
    let (_, asked, _) = drive(state, &p, &vec![ProbeResult::Success; 3]);
    assert_eq!(asked, [secs(103), secs(113), secs(123)]);
    // A state that is created after the delay has passed runs the probe at once, and that time becomes its
    // grid.
    let late = ProbeState::new(ProbeKind::Liveness, &p, secs(100), secs(120), secs(0), 7);
    assert_eq!(drive(late, &p, &vec![ProbeResult::Success; 2]).1, [secs(120), secs(130)]);
}

#[test]
fn a_fresh_container_is_asked_at_once_even_by_a_young_agent() {
    let p = probe(0, 10, 1, 3);
    let state = ProbeState::new(ProbeKind::Readiness, &p, secs(100), secs(100), secs(99), 7);
    assert_eq!(state.next_at(), Some(secs(100)));
    let state = ProbeState::new(ProbeKind::Readiness, &p, secs(50), secs(100), secs(99), 7);
    assert!(state.next_at() > Some(secs(100)) && state.next_at() < Some(secs(110)));
    let state = ProbeState::new(ProbeKind::Readiness, &p, secs(50), secs(110), secs(99), 7);
    assert_eq!(state.next_at(), Some(secs(110)), "an agent older than a period does not put off");
}

#[test]
fn verdicts_by_table() {
    use ProbeKind::{Liveness, Readiness, Startup};
    let (s, f, u) = (ProbeResult::Success, failure(), unknown());
    let (yes, no) = (ProbeVerdict::Success, ProbeVerdict::Failure);
    type Row = (&'static str, ProbeKind, u32, u32, Vec<ProbeResult>, Vec<(usize, ProbeVerdict)>, bool);
    let table: Vec<Row> = vec![
        ("ready at the first success", Readiness, 1, 3, vec![s.clone()], vec![(0, yes)], false),
        (
            "ready after a row of two",
            Readiness,
            2,
            3,
            vec![s.clone(), f.clone(), s.clone(), s.clone()],
            vec![(3, yes)],
            false,
        ),
        (
            "not ready only after three in a row",
            Readiness,
            1,
            3,
            vec![s.clone(), f.clone(), f.clone(), s.clone(), f.clone(), f.clone(), f.clone()],
            vec![(0, yes), (6, no)],
            false,
        ),
        ("failing readiness is not news", Readiness, 1, 1, vec![f.clone(), f.clone()], vec![], false),
        (
            "unknown neither counts nor breaks the row",
            Liveness,
            1,
            3,
            vec![f.clone(), u.clone(), f.clone(), u.clone(), u.clone(), f.clone()],
            vec![(5, no)],
            true,
        ),
        (
            "only unknown changes nothing",
            Liveness,
            1,
            1,
            vec![u.clone(), u.clone(), u.clone(), u.clone()],
            vec![],
            false,
        ),
        ("liveness holds after its failure", Liveness, 1, 1, vec![f.clone(), s.clone()], vec![(0, no)], true),
        (
            "startup holds after success",
            Startup,
            1,
            3,
            vec![f.clone(), s.clone(), f.clone()],
            vec![(1, yes)],
            true,
        ),
        (
            "startup holds after failure",
            Startup,
            1,
            2,
            vec![f.clone(), f.clone(), s.clone()],
            vec![(1, no)],
            true,
        ),
        ("startup needs one success whatever is asked", Startup, 5, 3, vec![s], vec![(0, yes)], true),
    ];
    for (name, kind, success, fail, answers, changes, held) in table {
        let p = probe(0, 1, success, fail);
        let (state, _, got) = drive(fresh(kind, &p), &p, &answers);
        assert_eq!(got, changes, "{name}");
        assert_eq!(state.on_hold(), held, "{name}");
        if held {
            let (_, todo, _) = step(&state, &p, ProbeEvent::Tick(secs(1_000_000)));
            assert_eq!(todo, ProbeStep::Wait { until: ProbeState::NEVER }, "{name}");
        }
    }
}

#[test]
fn one_question_at_a_time_and_no_burst_after_a_pause() {
    let p = probe(0, 10, 1, 3);
    let (state, todo, _) = step(&fresh(ProbeKind::Liveness, &p), &p, ProbeEvent::Tick(secs(100)));
    assert_eq!(todo, ProbeStep::Ask);
    let (state, todo, _) = step(&state, &p, ProbeEvent::Tick(secs(115)));
    assert_eq!(todo, ProbeStep::Wait { until: secs(131) }, "until the answer counts as lost");
    let (state, todo, _) = step(&state, &p, ProbeEvent::Result(millis(115_500), failure()));
    assert_eq!(todo, ProbeStep::Wait { until: secs(120) });
    // The machine was suspended for an hour and 3.5 seconds: one probe runs, then the grid continues.
    let (state, todo, _) = step(&state, &p, ProbeEvent::Tick(millis(3_723_500)));
    assert_eq!(todo, ProbeStep::Ask);
    let (_, todo, _) = step(&state, &p, ProbeEvent::Result(millis(3_723_600), ProbeResult::Success));
    assert_eq!(todo, ProbeStep::Wait { until: secs(3_730) });
}

#[test]
fn a_lost_answer_is_given_up() {
    let p = probe(0, 10, 1, 1);
    let (state, _, _) = step(&fresh(ProbeKind::Liveness, &p), &p, ProbeEvent::Tick(secs(100)));
    let (state, todo, changed) = step(&state, &p, ProbeEvent::Tick(secs(131)));
    assert_eq!((todo, changed), (ProbeStep::Ask, None));
    assert_eq!(state.verdict(), Some(ProbeVerdict::Success));
}

#[test]
fn answers_to_no_question_count_for_nothing() {
    let p = probe(0, 10, 1, 1);
    let state = fresh(ProbeKind::Liveness, &p);
    let (after, todo, changed) = step(&state, &p, ProbeEvent::Result(secs(100), failure()));
    assert_eq!((todo, changed), (ProbeStep::Wait { until: secs(100) }, None));
    assert_eq!(after, state);
}

#[test]
fn nudges_ask_unready_readiness_only_and_at_most_once_a_second() {
    let p = probe(2, 10, 1, 3);
    let nudge = |s: &ProbeState, ms| step(s, &p, ProbeEvent::Nudge(millis(ms)));
    let answer = |s: &ProbeState, ms, r| step(s, &p, ProbeEvent::Result(millis(ms), r)).0;
    let state = fresh(ProbeKind::Readiness, &p);
    assert_eq!(
        nudge(&state, 101_000).1,
        ProbeStep::Wait { until: secs(102) },
        "not before the initial delay"
    );
    let (state, todo, _) = nudge(&state, 102_000);
    assert_eq!(todo, ProbeStep::Ask, "a nudge is a tick as well");
    assert_ne!(nudge(&state, 104_000).1, ProbeStep::Ask, "one in flight");
    let state = answer(&state, 102_100, failure());
    assert_eq!(nudge(&state, 102_900).1, ProbeStep::Wait { until: secs(112) });
    let (state, todo, _) = nudge(&state, 103_000);
    assert_eq!(todo, ProbeStep::Ask);
    let state = answer(&state, 103_100, ProbeResult::Success);
    assert_eq!(state.next_at(), Some(secs(112)), "the grid stays where it was");
    assert_eq!(
        nudge(&state, 108_000).1,
        ProbeStep::Wait { until: secs(112) },
        "ready probes keep their period"
    );
    let live = fresh(ProbeKind::Liveness, &p);
    let (live, _, _) = step(&live, &p, ProbeEvent::Tick(secs(102)));
    assert_eq!(nudge(&answer(&live, 102_100, failure()), 105_000).1, ProbeStep::Wait { until: secs(112) });
}

#[test]
fn adopted_keeps_what_was_known() {
    let p = probe(0, 10, 2, 3);
    let adopt = |kind, last| ProbeState::adopted(kind, &p, last, secs(500), 3);
    let ready = adopt(ProbeKind::Readiness, Some(ProbeVerdict::Success));
    let (ready, _, changes) = drive(ready, &p, &[failure(), failure()]);
    assert_eq!((ready.verdict(), changes), (Some(ProbeVerdict::Success), vec![]));
    let forgotten = adopt(ProbeKind::Readiness, None);
    let (forgotten, _, changes) = drive(forgotten, &p, &[failure(), failure(), ProbeResult::Success]);
    assert_eq!((forgotten.verdict(), changes), (None, vec![]), "not known is not false");
    assert_eq!(drive(forgotten, &p, &[ProbeResult::Success]).2, [(0, ProbeVerdict::Success)]);
    assert_eq!(adopt(ProbeKind::Liveness, None).verdict(), Some(ProbeVerdict::Success));
    assert!(adopt(ProbeKind::Liveness, Some(ProbeVerdict::Failure)).on_hold());
    assert!(adopt(ProbeKind::Startup, Some(ProbeVerdict::Success)).on_hold());
    assert!(!adopt(ProbeKind::Startup, None).on_hold());
    let slow = probe(60, 10, 1, 3);
    let early =
        ProbeState::adopted(ProbeKind::Liveness, &slow, None, secs(500), 3).not_before(&slow, secs(495));
    assert_eq!(early.next_at(), Some(secs(555)));
}

#[test]
fn restarts_spread_over_the_period() {
    let p = probe(0, 10, 1, 3);
    let mut buckets = [0; 10];
    for seed in 0..1000 {
        let at = ProbeState::adopted(ProbeKind::Readiness, &p, None, secs(500), seed).next_at().unwrap();
        buckets[usize::try_from(at.since(secs(500)).as_secs()).unwrap()] += 1;
    }
    assert!(buckets.iter().all(|&n| (50..150).contains(&n)), "{buckets:?}");
}

#[test]
fn extreme_specs_and_clocks_do_not_panic() {
    let p = probe(u32::MAX, u32::MAX, 0, 0);
    for kind in [ProbeKind::Liveness, ProbeKind::Readiness, ProbeKind::Startup] {
        let state = ProbeState::new(kind, &p, ProbeState::NEVER, ProbeState::NEVER, secs(0), u32::MAX);
        let (state, _, _) = step(&state, &p, ProbeEvent::Tick(ProbeState::NEVER));
        step(&state, &p, ProbeEvent::Result(ProbeState::NEVER, failure()));
    }
    let p = probe(0, 0, 1, 1);
    let (state, todo, _) = step(&fresh(ProbeKind::Startup, &p), &p, ProbeEvent::Tick(secs(100)));
    assert_eq!(todo, ProbeStep::Ask);
    assert_eq!(state.next_at(), Some(secs(101)));
}

fn kinds() -> impl Strategy<Value = ProbeKind> {
    prop_oneof![Just(ProbeKind::Liveness), Just(ProbeKind::Readiness), Just(ProbeKind::Startup)]
}

fn answers() -> impl Strategy<Value = ProbeResult> {
    prop_oneof![
        3 => Just(ProbeResult::Success),
        1 => Just(ProbeResult::Warning("w".to_owned())),
        3 => Just(failure()),
        2 => Just(unknown())
    ]
}

/// A second implementation of the rule of rows, as reference: looks back over the whole history at every
/// result.
fn reference(
    kind: ProbeKind,
    p: &Probe,
    initial: Option<ProbeVerdict>,
    history: &[ProbeResult],
) -> Vec<ProbeVerdict> {
    let known: Vec<ProbeVerdict> = history
        .iter()
        .filter_map(|r| match r {
            ProbeResult::Success | ProbeResult::Warning(_) => Some(ProbeVerdict::Success),
            ProbeResult::Failure(_) => Some(ProbeVerdict::Failure),
            ProbeResult::Unknown(_) => None,
        })
        .collect();
    let (mut verdict, mut changes) = (initial, vec![]);
    for end in 1..=known.len() {
        if kind == ProbeKind::Startup && verdict.is_some()
            || kind == ProbeKind::Liveness && verdict == Some(ProbeVerdict::Failure)
        {
            break;
        }
        let last = known[end - 1];
        let n = match (last, kind) {
            (ProbeVerdict::Failure, _) => p.failure_threshold,
            (ProbeVerdict::Success, ProbeKind::Readiness) => p.success_threshold,
            (ProbeVerdict::Success, _) => 1,
        } as usize;
        let row = end >= n && known[end - n..end].iter().all(|v| *v == last);
        if row && verdict != Some(last) {
            verdict = Some(last);
            changes.push(last);
        }
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn verdicts_follow_full_rows_only(
        kind in kinds(), success in 1u32..4, fail in 1u32..5,
        adopted in proptest::option::of(any::<bool>()),
        history in proptest::collection::vec(answers(), 0..40),
    ) {
        let p = probe(0, 5, success, fail);
        let last = adopted.map(|yes| if yes { ProbeVerdict::Success } else { ProbeVerdict::Failure });
        for state in [fresh(kind, &p), ProbeState::adopted(kind, &p, last, secs(100), 1)] {
            let initial = state.verdict();
            let (end, _, changes) = drive(state, &p, &history);
            let want = reference(kind, &p, initial, &history);
            let got: Vec<ProbeVerdict> = changes.into_iter().map(|(_, v)| v).collect();
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(end.verdict(), want.last().copied().or(initial));
        }
    }

    /// Any order of ticks, nudges and results at any pace: one probe runs at a time, none before the first
    /// point, at most one per grid cell except for nudges, no two within a second except by the grid, and
    /// serde preserves the state.
    #[test]
    fn schedule_holds_under_any_pace(
        kind in kinds(), delay in 0u32..20, period in 1u32..15, seed in any::<u32>(),
        events in proptest::collection::vec((0u64..30_000, 0u8..4, answers()), 0..80),
    ) {
        let p = probe(delay, period, 1, 3);
        let mut state = ProbeState::new(kind, &p, secs(100), secs(101), secs(0), seed);
        let first = state.next_at().unwrap();
        prop_assert_eq!(first, secs(101).max(secs(100 + u64::from(delay))));
        let (mut now, mut asked_at) = (secs(101), None::<Boottime>);
        let mut cells = std::collections::BTreeSet::new();
        for (gap, what, answer) in events {
            now = now + Duration::from_millis(gap);
            let event = match what {
                0 | 1 => ProbeEvent::Tick(now),
                2 => ProbeEvent::Nudge(now),
                _ => ProbeEvent::Result(now, answer),
            };
            let (tick, result) = (matches!(event, ProbeEvent::Tick(_)), matches!(event, ProbeEvent::Result(..)));
            let held = state.on_hold();
            let (next, todo, changed) = step(&state, &p, event);
            let back: ProbeState = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
            prop_assert_eq!(&back, &next);
            prop_assert!(changed.is_none() || result && asked_at.is_some() && !held);
            match todo {
                ProbeStep::Ask => {
                    prop_assert!(!held && !result && now >= first);
                    let free = asked_at.is_none_or(|t| now >= t + Duration::from_secs(1) + ProbeState::LOST_AFTER);
                    prop_assert!(free, "asked while a question was in flight");
                    if tick {
                        let cell = now.since(first).as_millis() / (u128::from(period) * 1000);
                        prop_assert!(cells.insert(cell), "asked twice in one period");
                    }
                    asked_at = Some(now);
                }
                ProbeStep::Wait { until } => {
                    let stray = result && asked_at.is_none();
                    prop_assert!(until > now || stray, "a wait that is over: {until:?} at {now:?}");
                    prop_assert_eq!(until == ProbeState::NEVER, next.on_hold());
                }
            }
            if result {
                asked_at = None;
            }
            state = next;
        }
    }
}
