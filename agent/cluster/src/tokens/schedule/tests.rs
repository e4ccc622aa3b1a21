use super::*;
use berth_core::time::Wall;

fn token(pod: &str) -> TokenRef {
    TokenRef {
        pod: pod.parse().unwrap(),
        pod_name: pod.parse().unwrap(),
        namespace: "default".parse().unwrap(),
        service_account: "default".into(),
        audience: None,
        ttl: 3607,
    }
}

fn at(ms: u64) -> Boottime {
    Boottime(Duration::from_millis(ms))
}

fn issued(text: &str, seconds: u64) -> Result<Issued, Failed> {
    let token = Token { text: text.into(), expires: Wall(0) };
    Ok(Issued { token, life: Duration::from_secs(seconds) })
}

fn refused() -> Result<Issued, Failed> {
    Err(Failed { why: Why::Refused("no relationship found".into()), retry_after: None })
}

fn wanting(pods: &[&str]) -> Schedule {
    let mut schedule = Schedule::default();
    schedule.want(&pods.iter().map(|pod| token(pod)).collect(), at(0));
    schedule
}

fn text(schedule: &Schedule, pod: &str) -> String {
    match &schedule.values()[&token(pod)] {
        Value::Known(token) => token.text.clone(),
        Value::Absent => "absent".into(),
        Value::Unknown(why) => why.to_string(),
    }
}

#[test]
fn a_token_is_refreshed_after_four_fifths_of_its_life_or_a_day() {
    let mut schedule = wanting(&["a"]);
    assert_eq!(schedule.take_due(at(0), 9), [token("a")]);
    assert_eq!((schedule.take_due(at(0), 9), schedule.next()), (vec![], None), "one request at a time");
    assert!(schedule.answered(&token("a"), issued("one", 3607), at(100), 0.0));
    assert_eq!(schedule.next(), Some(at(100 + 2_885_600)));
    assert_eq!(schedule.take_due(at(2_885_699), 9), []);
    assert_eq!(schedule.take_due(at(2_885_700), 9), [token("a")]);
    // A token of a year, drawn forward by the whole jitter.
    assert!(schedule.answered(&token("a"), issued("two", 365 * 86_400), at(0), 1.0));
    assert_eq!(schedule.next(), Some(at((86_400 - 10) * 1000)));
    assert_eq!(text(&schedule, "a"), "two");
}

#[test]
fn a_failed_refresh_keeps_the_token_and_is_tried_again_each_minute() {
    let mut schedule = wanting(&["a"]);
    schedule.take_due(at(0), 9);
    schedule.answered(&token("a"), issued("one", 600), at(0), 0.0);
    for minute in 0..30 {
        let now = at(480_000 + minute * 60_000);
        assert_eq!(schedule.take_due(now, 9), [token("a")], "{minute}");
        assert!(!schedule.answered(&token("a"), refused(), now, 0.0));
        assert_eq!(text(&schedule, "a"), "one");
    }
}

#[test]
fn a_refusal_just_after_the_pod_came_is_no_failure() {
    let mut schedule = wanting(&["a"]);
    let (mut now, mut tries) = (0, Vec::new());
    while text(&schedule, "a") == "not read yet" {
        assert_eq!(schedule.take_due(at(now), 9), [token("a")]);
        tries.push(now);
        schedule.answered(&token("a"), refused(), at(now), 0.0);
        now = u64::try_from(schedule.next().unwrap().0.as_millis()).unwrap();
    }
    assert_eq!(tries, [0, 50, 150, 350, 750, 1150, 1550, 1950, 2350]);
    assert_eq!(text(&schedule, "a"), "refused: no relationship found");
    // From then on the waits are those of a failure.
    assert_eq!(now, 2350 + 20_000);
    schedule.take_due(at(now), 9);
    assert!(schedule.answered(&token("a"), issued("one", 600), at(now), 0.0));
}

#[test]
fn the_servers_wait_is_obeyed_and_an_unreachable_server_is_told() {
    let mut schedule = wanting(&["a"]);
    schedule.take_due(at(0), 9);
    let why = Why::Unreachable("refused connection".into());
    let failed = Failed { why, retry_after: Some(Duration::from_secs(7)) };
    assert!(schedule.answered(&token("a"), Err(failed), at(0), 0.0));
    assert_eq!(schedule.next(), Some(at(7000)));
    assert_eq!(text(&schedule, "a"), "unreachable: refused connection");
}

#[test]
fn pods_without_a_token_come_first_and_forgotten_tokens_stay_forgotten() {
    let mut schedule = wanting(&["a"]);
    schedule.take_due(at(0), 9);
    schedule.answered(&token("a"), issued("one", 600), at(0), 0.0);
    schedule.want(&["a", "b", "c"].map(token).into(), at(480_000));
    assert_eq!(schedule.take_due(at(480_000), 2), [token("b"), token("c")]);
    assert_eq!(schedule.take_due(at(480_000), 2), [token("a")]);
    schedule.want(&["b"].map(token).into(), at(480_001));
    assert!(!schedule.answered(&token("a"), issued("late", 600), at(480_002), 0.0));
    assert_eq!(schedule.values().into_keys().collect::<Vec<_>>(), [token("b")]);
}
