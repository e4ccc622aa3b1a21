//! Authorisation: the subresources of a request are asked one after the other, until one is allowed.

use super::{
    asked,
    cache::{Answers, Key},
};
use crate::{AccessReview, Attributes, Caller, Reviewer};
use berth_core::sync::lock;
use sha2::{Digest, Sha256};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// How long an access stays allowed (`authorization.webhook.cacheAuthorizedTTL`).
const ALLOWED: Duration = Duration::from_secs(300);

/// How long an access stays denied (`cacheUnauthorizedTTL`).
const DENIED: Duration = Duration::from_secs(30);

/// A request that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The caller may not; the text of the 403.
    Forbidden(String),
    /// The API server gave no answer; the text of the 500.
    Unknown(String),
}

/// Asks the API server what callers may do.
pub struct Authorizer {
    reviewer: Arc<dyn Reviewer>,
    answers: Mutex<Answers<bool>>,
}

impl Authorizer {
    /// Asks by this reviewer.
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Authorizer {
        Authorizer { reviewer, answers: Mutex::default() }
    }

    /// Whether the caller may send a request with these attributes.
    pub(crate) async fn allow(&self, caller: &Caller, attributes: &Attributes) -> Result<(), Refusal> {
        let verb = attributes.verb;
        for subresource in &attributes.subresources {
            match self.review(AccessReview { caller: caller.clone(), verb, subresource }).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let text = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        caller.name
                    );
                    tracing::warn!("{text}: {}", error.reason);
                    return Err(Refusal::Unknown(text));
                }
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            caller.name,
            attributes.subresources.join(" ")
        )))
    }

    async fn review(&self, review: AccessReview) -> Result<bool, crate::ReviewError> {
        let key = key(&review);
        if let Some(known) = lock(&self.answers).get(&key, Instant::now()) {
            return Ok(known);
        }
        let allowed = asked(|| self.reviewer.access(&review)).await?;
        let lasts = if allowed { ALLOWED } else { DENIED };
        lock(&self.answers).keep(key, allowed, Instant::now(), lasts);
        Ok(allowed)
    }
}

/// Hash of the whole review. Each text goes in with its length, so that no two reviews are the same bytes.
fn key(review: &AccessReview) -> Key {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    let list = |add: &mut dyn FnMut(&str), texts: &[String]| {
        add(&texts.len().to_string());
        texts.iter().for_each(|text| add(text));
    };
    let caller = &review.caller;
    for text in [&caller.name, &caller.uid, review.verb, review.subresource] {
        add(text);
    }
    list(&mut add, &caller.groups);
    for (name, values) in &caller.extra {
        add(name);
        list(&mut add, values);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attributes, testing::FakeReviewer};
    use http::Method;

    fn alice() -> Caller {
        Caller { name: "alice".into(), ..Caller::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn subresources_are_asked_in_their_order_and_answers_kept() {
        let reviewer = Arc::new(FakeReviewer::default());
        let authorizer = Authorizer::new(reviewer.clone());
        reviewer.allow("alice get proxy");
        let pods = attributes(&Method::GET, "/pods");
        assert_eq!(authorizer.allow(&alice(), &pods).await, Ok(()));
        assert_eq!(authorizer.allow(&alice(), &pods).await, Ok(()));
        assert_eq!(reviewer.asked(), ["alice get pods", "alice get proxy"]);
        let exec = attributes(&Method::GET, "/exec/ns/p/c");
        let text = "Forbidden (user=alice, verb=create, resource=nodes, subresource(s)=[proxy])\n";
        assert_eq!(authorizer.allow(&alice(), &exec).await, Err(Refusal::Forbidden(text.into())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_review_without_an_answer_allows_nothing() {
        let reviewer = Arc::new(FakeReviewer::default());
        let authorizer = Authorizer::new(reviewer.clone());
        reviewer.allow("alice get proxy");
        reviewer.fail(1, false);
        let pods = attributes(&Method::GET, "/pods");
        let text = "Authorization error (user=alice, verb=get, resource=nodes, subresource=pods)";
        assert_eq!(authorizer.allow(&alice(), &pods).await, Err(Refusal::Unknown(text.into())));
        assert_eq!(authorizer.allow(&alice(), &pods).await, Ok(()));
    }

    #[test]
    fn every_part_of_a_review_is_in_its_key() {
        let review = |change: fn(&mut AccessReview)| {
            let mut review = AccessReview { caller: alice(), verb: "get", subresource: "proxy" };
            change(&mut review);
            key(&review)
        };
        let keys = [
            review(|_| {}),
            review(|r| r.verb = "create"),
            review(|r| r.subresource = "pods"),
            review(|r| r.caller.name = "bob".into()),
            review(|r| r.caller.uid = "1".into()),
            review(|r| r.caller.groups = vec!["a".into(), "b".into()]),
            review(|r| r.caller.groups = vec!["ab".into()]),
            review(|r| drop(r.caller.extra.insert("a".into(), vec!["b".into()]))),
        ];
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
