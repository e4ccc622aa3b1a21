//! One event on its way to the API server: the request, and what an answer means for it. Pure.

use super::correlate::Key;
use crate::wait::backoff;
use berth_core::ids::NodeName;
use berth_core::time::Wall;
use berth_kube::{
    Error,
    request::{Patch, Request},
};
use berth_source::event::{ApiEvent, event_name};
use std::time::Duration;

/// First and longest wait after a request that failed.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Answers of a failing API server to one event after which the event is dropped (`maxTriesPerEvent`, client-go).
const MOST_FAILURES: u32 = 12;

/// Names that are tried for one event.
const MOST_NAMES: u32 = 4;

/// Part of the API server's words when it creates nothing in a namespace that is being deleted
/// (`plugin/pkg/admission/namespace/lifecycle` in apiserver).
const TERMINATING: &str = "because it is being terminated";

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(10);

/// An event to create or to update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// What the event is known by.
    pub(super) key: Key,
    /// The event.
    pub(super) event: ApiEvent,
    /// Whether the API has no such event yet.
    creates: bool,
    /// Requests in a row that the API server did not answer, or answered with its own failure.
    failures: u32,
    /// The answers among them.
    answered_failures: u32,
    /// Whether a request to create the event may have had an effect, although no answer came.
    unsure: bool,
    names: u32,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The API has the event.
    Done,
    /// The API server refused with this HTTP status.
    Refused {
        /// The status.
        code: u16,
        /// The wait that the server asks for.
        retry_after: Option<Duration>,
        /// Whether the reason is that the namespace is being deleted.
        terminating: bool,
    },
    /// There was no answer.
    None,
}

impl Answer {
    pub(super) fn of_error(error: &Error) -> Answer {
        match error.refusal() {
            Some(refusal) => Answer::Refused {
                code: refusal.code,
                retry_after: refusal.retry_after,
                terminating: refusal.message.contains(TERMINATING),
            },
            None => Answer::None,
        }
    }
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the event is sent.
    Sent,
    /// The event is dropped: it can never be sent.
    Drop {
        /// Whether that is worth a line in the log. The events of a namespace that is being deleted are not.
        odd: bool,
    },
    /// The next request follows at once.
    Again,
    /// The next request follows after this time.
    After(Duration),
}

impl Write {
    /// An event to send. One that happened before is in the API already.
    pub(super) fn new(key: Key, event: ApiEvent) -> Write {
        let creates = event.count <= 1;
        Write { key, event, creates, failures: 0, answered_failures: 0, unsure: false, names: 1 }
    }

    /// The next request.
    pub(super) fn request(&self, node: &NodeName) -> Request {
        let events = format!("/api/v1/namespaces/{}/events", self.event.namespace());
        let request = if self.creates {
            Request::create(events, self.event.object(node).to_string())
        } else {
            let path = format!("{events}/{}", self.event.name);
            Request::patch(path, Patch::StrategicMerge, self.event.patch().to_string())
        };
        request.within(DEADLINE)
    }

    /// Takes the answer to the last request.
    pub(super) fn answered(&mut self, answer: Answer) -> Next {
        let (code, retry_after, terminating) = match answer {
            Answer::Done => return Next::Sent,
            Answer::Refused { code, retry_after, terminating } => (code, retry_after, terminating),
            Answer::None => {
                self.unsure |= self.creates;
                self.failures = self.failures.saturating_add(1);
                return Next::After(backoff(self.failures, WAITS.0, WAITS.1));
            }
        };
        match code {
            // The event was created by a request whose answer was lost; what happened since is still to be told.
            409 if self.creates && self.unsure => {
                (self.creates, self.unsure) = (false, false);
                Next::Again
            }
            409 if self.creates && self.names < MOST_NAMES => {
                let later = Wall(self.event.first.0.saturating_add(i64::from(self.names)));
                self.names += 1;
                self.event.name = event_name(&self.event.involved.name, later);
                Next::Again
            }
            // The API server forgets events after a while, an hour by default.
            404 if !self.creates => {
                self.creates = true;
                Next::Again
            }
            // The namespace is being deleted, or is gone.
            403 => Next::Drop { odd: !terminating },
            404 => Next::Drop { odd: false },
            // The identity may be renewed, the API server may recover.
            401 | 429 => self.later(retry_after),
            500.. if self.answered_failures < MOST_FAILURES => {
                self.answered_failures += 1;
                self.later(retry_after)
            }
            _ => Next::Drop { odd: true },
        }
    }

    fn later(&mut self, retry_after: Option<Duration>) -> Next {
        self.failures = self.failures.saturating_add(1);
        Next::After(retry_after.unwrap_or_else(|| backoff(self.failures, WAITS.0, WAITS.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::event::Event;
    use berth_source::event::InvolvedObject;

    fn write(count: u32) -> Write {
        let node = InvolvedObject::node(&node());
        Write::new(7, ApiEvent { count, ..ApiEvent::once(node, Event::normal("R", "m"), Wall(255)) })
    }

    fn node() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    fn refused(code: u16) -> Answer {
        Answer::Refused { code, retry_after: None, terminating: false }
    }

    /// Method and path of the next request.
    fn asked(write: &Write) -> String {
        let text = format!("{:?}", write.request(&node()));
        let field = |name: &str| {
            text.split(&format!("{name}: ")).nth(1).unwrap().split(',').next().unwrap().to_owned()
        };
        format!("{} {}", field("method"), field("target").trim_matches('"'))
    }

    #[test]
    fn an_event_is_created_and_then_patched_and_created_again_once_the_api_server_forgot_it() {
        let mut first = write(1);
        assert_eq!(asked(&first), "POST /api/v1/namespaces/default/events");
        assert_eq!(first.answered(Answer::Done), Next::Sent);
        let mut again = write(2);
        assert_eq!(asked(&again), "PATCH /api/v1/namespaces/default/events/n1.ff");
        assert_eq!(again.answered(refused(404)), Next::Again);
        assert_eq!(asked(&again), "POST /api/v1/namespaces/default/events");
        assert_eq!(again.answered(refused(404)), Next::Drop { odd: false }, "the namespace is gone");
    }

    #[test]
    fn a_name_that_is_taken_is_replaced_unless_an_answer_was_lost() {
        let mut taken = write(1);
        let names: Vec<String> = (0..3)
            .map(|_| {
                assert_eq!(taken.answered(refused(409)), Next::Again);
                taken.event.name.clone()
            })
            .collect();
        assert_eq!(names, ["n1.100", "n1.101", "n1.102"]);
        assert_eq!(taken.answered(refused(409)), Next::Drop { odd: true });

        let mut lost = write(1);
        assert_eq!(lost.answered(Answer::None), Next::After(WAITS.0));
        assert_eq!(lost.answered(refused(409)), Next::Again);
        assert_eq!(asked(&lost), "PATCH /api/v1/namespaces/default/events/n1.ff", "its own");
    }

    #[test]
    fn what_cannot_be_sent_is_dropped_and_a_failing_api_server_is_waited_for() {
        for (code, next) in [
            (403, Next::Drop { odd: true }),
            (400, Next::Drop { odd: true }),
            (422, Next::Drop { odd: true }),
            (401, Next::After(WAITS.0)),
            (429, Next::After(WAITS.0)),
            (500, Next::After(WAITS.0)),
        ] {
            assert_eq!(write(1).answered(refused(code)), next, "{code}");
            assert_eq!(write(2).answered(refused(code)), next, "{code}");
        }
        let ending = Answer::Refused { code: 403, retry_after: None, terminating: true };
        assert_eq!(write(1).answered(ending), Next::Drop { odd: false });
        let asked =
            Answer::Refused { code: 429, retry_after: Some(Duration::from_secs(3)), terminating: false };
        assert_eq!(write(1).answered(asked), Next::After(Duration::from_secs(3)));
        let mut failing = write(1);
        let waits =
            (0..MOST_FAILURES).filter(|_| matches!(failing.answered(refused(503)), Next::After(_))).count();
        assert_eq!((waits, failing.answered(refused(503))), (12, Next::Drop { odd: true }));
        let mut away = write(1);
        assert!(
            (0..1000).all(|_| matches!(away.answered(Answer::None), Next::After(wait) if wait <= WAITS.1))
        );
    }
}
