//! Questions to upstreams that are under way: equal ones are asked once.
//!
//! The first that asks is the leader: it asks the upstreams and hands its outcome to all that joined meanwhile. Were
//! equal questions asked one by one, each would raise the odds of a forged answer (RFC 5452 5).

use crate::{cache::Key, forward};
use berth_core::sync::lock;
use hickory_proto::{op::Message, rr::Name};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// What the upstreams said; nothing where none said anything of use.
pub(super) type Outcome = Option<Arc<Message>>;

/// Letters that a name must have before its random case tells a question of ours from a client's.
const TELLING: usize = 10;

/// The questions under way.
#[derive(Debug, Default)]
pub(super) struct Pending {
    asked: Mutex<HashMap<Key, Asked>>,
}

#[derive(Debug)]
struct Asked {
    /// The name as the upstreams are asked for it.
    sent: Name,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// A question's part.
pub(super) enum Part {
    /// The upstreams are to be asked for this name, and the outcome to be told.
    Leader(Leader),
    /// The outcome will be told.
    Joined(watch::Receiver<Option<Outcome>>),
}

/// Whoever asks for all. Where it is dropped without an outcome, those that joined have none.
pub(super) struct Leader {
    pending: Arc<Pending>,
    key: Key,
    /// The name in random case.
    pub(super) sent: Name,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Pending {
    /// Joins the equal question that is under way, or leads.
    pub(super) fn join(self: &Arc<Pending>, key: &Key) -> Part {
        let mut asked = self.asked();
        if let Some(other) = asked.get(key) {
            return Part::Joined(other.outcome.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        let sent = forward::random_case(&key.name);
        asked.insert(key.clone(), Asked { sent: sent.clone(), outcome: receiver });
        Part::Leader(Leader { pending: Arc::clone(self), key: key.clone(), sent, outcome })
    }

    /// Whether a question that came in is one that we have sent: an upstream leads back to us.
    pub(super) fn is_ours(&self, key: &Key, name: &Name) -> bool {
        let letters = || name.iter().flatten().filter(|byte| byte.is_ascii_alphabetic()).count();
        self.asked().get(key).is_some_and(|asked| asked.sent.eq_case(name)) && letters() >= TELLING
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Key, Asked>> {
        lock(&self.asked)
    }
}

impl Leader {
    /// Tells the outcome to all that joined.
    pub(super) fn tell(self, outcome: Outcome) {
        // Nobody joined where this fails.
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
    // The leader is gone without one where this fails.
    receiver.wait_for(Option::is_some).await.ok().and_then(|told| (*told).clone()).flatten()
}
