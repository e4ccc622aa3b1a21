//! The events that wait to be sent. Pure.
//!
//! An event that happens again while it waits is still one request. The queue is bounded: while the API server is
//! away for long, the oldest events are lost.

use super::{correlate::Key, write::Write};
use berth_source::event::ApiEvent;
use std::collections::VecDeque;

/// Most events that wait, as in client-go (`tools/record/event.go`).
const MOST: usize = 1000;

/// The waiting events, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    writes: VecDeque<Write>,
    /// The events that were lost since the queue was last empty.
    lost: u64,
}

impl Queue {
    /// Adds an event. Returns whether it is the first for which another one was lost.
    pub(super) fn put(&mut self, key: Key, event: ApiEvent) -> bool {
        if let Some(waiting) = self.writes.iter_mut().find(|w| w.key == key) {
            waiting.event = event;
            return false;
        }
        let full = self.writes.len() >= MOST;
        if full {
            self.writes.pop_front();
            self.lost = self.lost.saturating_add(1);
        }
        self.writes.push_back(Write::new(key, event));
        full && self.lost == 1
    }

    /// Takes the oldest event.
    pub(super) fn take(&mut self) -> Option<Write> {
        self.writes.pop_front()
    }

    /// Puts an event back that was not sent. It stays the oldest, as what it is by now.
    pub(super) fn put_back(&mut self, mut write: Write) {
        if let Some(at) = self.writes.iter().position(|w| w.key == write.key)
            && let Some(newer) = self.writes.remove(at)
        {
            // The name under which the next try is made is the older one's.
            write.event = ApiEvent { name: write.event.name, ..newer.event };
        }
        self.writes.push_front(write);
    }

    /// The number of events that were lost, once no event waits any more. Counts anew after that.
    pub(super) fn take_lost(&mut self) -> u64 {
        if self.writes.is_empty() { std::mem::take(&mut self.lost) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{event::Event, ids::NodeName, time::Wall};
    use berth_source::event::InvolvedObject;

    fn event(at: i64, count: u32) -> ApiEvent {
        let node = InvolvedObject::node(&NodeName::new("n1").unwrap());
        ApiEvent { count, ..ApiEvent::once(node, Event::normal("R", "m"), Wall(at)) }
    }

    #[test]
    fn an_event_that_waits_is_sent_once_as_what_it_is_by_then() {
        let mut queue = Queue::default();
        queue.put(1, event(1, 1));
        queue.put(2, event(2, 1));
        queue.put(1, event(1, 2));
        let mut first = queue.take().unwrap();
        assert_eq!((first.key, first.event.count), (1, 2));
        queue.put(1, event(1, 3));
        first.event.name = "renamed".into();
        queue.put_back(first);
        let (again, other) = (queue.take().unwrap(), queue.take().unwrap());
        assert_eq!((again.key, again.event.count, again.event.name.as_str()), (1, 3, "renamed"));
        assert_eq!((other.key, queue.take()), (2, None));
    }

    #[test]
    fn a_full_queue_loses_the_oldest_and_counts_them() {
        let mut queue = Queue::default();
        let told: Vec<u64> = (0..MOST as u64 + 3).filter(|n| queue.put(*n, event(1, 1))).collect();
        assert_eq!(told, [MOST as u64], "told once");
        assert_eq!(queue.take_lost(), 0, "events wait");
        assert_eq!(queue.take().unwrap().key, 3);
        while queue.take().is_some() {}
        assert_eq!((queue.take_lost(), queue.take_lost()), (3, 0));
    }
}
