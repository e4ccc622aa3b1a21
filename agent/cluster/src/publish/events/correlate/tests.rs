//! Counting, combining and limits of events.

use super::*;
use berth_core::{event::EventRecord, ids::NodeName};

/// A correlator with a clock.
#[derive(Default)]
struct Case {
    correlator: Correlator,
    seconds: u64,
}

/// An event as it is sent: its name, its count and its message.
type Sent = Option<(String, u32, String)>;

impl Case {
    fn now(&self) -> Boottime {
        Boottime(Duration::from_secs(self.seconds))
    }

    fn happens(&mut self, object: &str, reason: &str, message: &str) -> Sent {
        let event = Event::warning(reason, message);
        let at = Wall(i64::try_from(self.seconds).unwrap() * 1_000_000_000);
        let happened = Occurrence { involved: involved(object), version: None, event, at };
        let (_, event) = self.correlator.observe(happened, self.now())?;
        assert_eq!(event.last, at);
        Some((event.name, event.count, event.event.message))
    }
}

fn involved(name: &str) -> InvolvedObject {
    InvolvedObject::node(&NodeName::new(name).unwrap())
}

fn sent(name: &str, count: u32, message: &str) -> Sent {
    Some((name.to_owned(), count, message.to_owned()))
}

#[test]
fn the_same_event_is_counted_under_its_first_name() {
    let mut case = Case { seconds: 1, ..Case::default() };
    assert_eq!(case.happens("a", "BackOff", "m"), sent("a.3b9aca00", 1, "m"));
    case.seconds = 100;
    assert_eq!(case.happens("a", "BackOff", "m"), sent("a.3b9aca00", 2, "m"));
    assert_eq!(case.happens("a", "Failed", "m").unwrap().1, 1, "another reason");
    assert_eq!(case.happens("b", "BackOff", "m").unwrap().1, 1, "another object");
}

#[test]
fn events_of_an_earlier_agent_are_counted_on() {
    let mut case = Case { seconds: 50, ..Case::default() };
    let first = ApiEvent::once(involved("a"), Event::warning("BackOff", "m"), Wall(1_000_000_000));
    case.correlator.remember(&ApiEvent { count: 7, ..first });
    assert_eq!(case.happens("a", "BackOff", "m"), sent("a.3b9aca00", 8, "m"));
}

#[test]
fn a_renamed_event_keeps_its_new_name() {
    let mut case = Case::default();
    let event = Event::warning("R", "m");
    let happened = Occurrence { involved: involved("a"), version: None, event, at: Wall(0) };
    let (key, _) = case.correlator.observe(happened, case.now()).unwrap();
    case.correlator.rename(key, "a.1");
    assert_eq!(case.happens("a", "R", "m"), sent("a.1", 2, "m"));
}

#[test]
fn the_tenth_message_within_ten_minutes_is_combined_with_those_after_it() {
    let mut case = Case { seconds: 1, ..Case::default() };
    for n in 0..9 {
        assert_eq!(case.happens("a", "Unhealthy", &n.to_string()).unwrap().1, 1);
    }
    let (name, count, message) = case.happens("a", "Unhealthy", "9").unwrap();
    assert_eq!((count, message.as_str()), (1, "(combined from similar events): 9"));
    case.seconds = 300;
    assert_eq!(
        case.happens("a", "Unhealthy", "10"),
        sent(&name, 2, "(combined from similar events): 10"),
        "the newest message"
    );
    assert_eq!(case.happens("a", "Unhealthy", "3").unwrap().1, 2, "an earlier message is counted alone");
    assert_eq!(case.happens("a", "Failed", "3").unwrap().2, "3", "another reason");
    case.seconds += 601;
    assert_eq!(case.happens("a", "Unhealthy", "11").unwrap().2, "11", "ten minutes later");
}

#[test]
fn an_object_has_25_events_at_once_and_one_each_five_minutes_after_that() {
    let mut case = Case { seconds: 1000, ..Case::default() };
    let passed = (0..100).filter(|_| case.happens("a", "R", "m").is_some()).count();
    assert_eq!(passed, 25);
    assert_eq!(case.happens("b", "R", "m"), sent("b.e8d4a51000", 1, "m"), "another object has its own");
    case.seconds += 299;
    assert_eq!(case.happens("a", "R", "m"), None);
    case.seconds += 2;
    assert_eq!(case.happens("a", "R", "m").map(|sent| sent.1), Some(102), "those that were not sent count");
    assert_eq!(case.happens("a", "R", "m"), None);
}

#[test]
fn records_and_events_of_one_content_have_one_key() {
    use berth_core::{
        event::Involved,
        ids::{PodKey, PodUid},
    };
    let key = PodKey { namespace: "n".parse().unwrap(), name: "web".parse().unwrap() };
    let involved = Involved::Pod { key, uid: PodUid::new("u-1").unwrap() };
    let record = EventRecord {
        count: 3,
        ..EventRecord::once(involved.clone(), Event::normal("Pulled", "m"), Wall(9))
    };
    let mut case = Case::default();
    case.correlator.remember(&ApiEvent::of_record(&record));
    let happened = Occurrence {
        involved: (&involved).into(),
        version: Some("7".into()),
        event: record.event,
        at: Wall(99),
    };
    let (_, event) = case.correlator.observe(happened, case.now()).unwrap();
    assert_eq!((event.name.as_str(), event.count, event.version.as_deref()), ("web.9", 4, Some("7")));
}
