//! Questions to upstreams in flight: equal questions are asked once.
//!
//! The first one that asks is the leader. It asks the upstreams and gives its outcome to all that
//! joined meanwhile. If equal questions were asked separately, each would raise the odds of a
//! forged answer (RFC 5452 5).

use crate::{cache::Key, forward};
use berth_core::sync::lock;
use hickory_proto::{op::Message, rr::Name};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// The upstreams' answer; None if there was none.
pub(super) type Outcome = Option<Arc<Message>>;

/// The fewest letters in a name whose random case distinguishes this server's questions from a
/// client's.
const DISTINCTIVE_LETTERS: usize = 10;

/// The questions in flight.
#[derive(Debug, Default)]
pub(super) struct Pending {
    asked: Mutex<HashMap<Key, InFlight>>,
}

#[derive(Debug)]
struct InFlight {
    /// The name as it was sent to the upstreams.
    sent: Name,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Role of a question.
pub(super) enum Role {
    /// The task asks the upstreams for this name and publishes the outcome.
    Leader(Leader),
    /// The task waits for the leader's outcome.
    Joined(watch::Receiver<Option<Outcome>>),
}

/// The leader of equal questions. If it is dropped without an outcome, those that joined have none.
pub(super) struct Leader {
    pending: Arc<Pending>,
    key: Key,
    /// The name in random case.
    pub(super) sent: Name,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Pending {
    /// Joins the equal question in flight, or becomes the leader.
    pub(super) fn join(self: &Arc<Pending>, key: &Key) -> Role {
        let mut asked = self.asked();
        if let Some(other) = asked.get(key) {
            return Role::Joined(other.outcome.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        let sent = forward::random_case(&key.name);
        asked.insert(key.clone(), InFlight { sent: sent.clone(), outcome: receiver });
        Role::Leader(Leader { pending: Arc::clone(self), key: key.clone(), sent, outcome })
    }

    /// Whether this server itself sent the question: then an upstream forwards to this server.
    pub(super) fn is_ours(&self, key: &Key, name: &Name) -> bool {
        let letters = || name.iter().flatten().filter(|byte| byte.is_ascii_alphabetic()).count();
        self.asked().get(key).is_some_and(|asked| asked.sent.eq_case(name))
            && letters() >= DISTINCTIVE_LETTERS
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Key, InFlight>> {
        lock(&self.asked)
    }
}

impl Leader {
    /// Gives the outcome to all that joined.
    pub(super) fn publish(self, outcome: Outcome) {
        // The send fails only if no question joined.
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.pending.asked().remove(&self.key);
    }
}

/// Waits for the leader's outcome.
pub(super) async fn outcome(mut receiver: watch::Receiver<Option<Outcome>>) -> Outcome {
    // The wait fails if the leader was dropped without an outcome.
    receiver.wait_for(Option::is_some).await.ok().and_then(|outcome| (*outcome).clone()).flatten()
}
