//! Authentication: client certificate, then bearer token, then nobody.

use super::{
    asked,
    cache::{Answers, Key},
    certificate,
};
use crate::{Caller, Reviewer, tls::ClientCa};
use berth_core::sync::lock;
use http::{HeaderMap, header};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// How long an answer about a token counts (`authentication.webhook.cacheTTL`).
const TOKEN: Duration = Duration::from_secs(120);

/// Most reviews of tokens at a time: whoever reaches the port can cause them.
const REVIEWS: usize = 16;

/// Longest token in bytes.
const LONGEST: usize = 16 << 10;

/// Finds out who sends a request.
pub struct Authenticator {
    client_ca: Option<ClientCa>,
    reviewer: Option<Arc<dyn Reviewer>>,
    anonymous: bool,
    answers: Mutex<Answers<Option<Caller>>>,
    reviews: Semaphore,
}

impl Authenticator {
    /// Without `client_ca` no client certificate is accepted, without `reviewer` no token. With `anonymous`, a request
    /// without credentials is of `system:anonymous`.
    pub fn new(
        client_ca: Option<ClientCa>,
        reviewer: Option<Arc<dyn Reviewer>>,
        anonymous: bool,
    ) -> Authenticator {
        let answers = Mutex::default();
        Authenticator { client_ca, reviewer, anonymous, answers, reviews: Semaphore::new(REVIEWS) }
    }

    /// The caller, or `None` for a request that gets 401. `chain` is the client's certificate chain, whose key the
    /// client was proved to have.
    pub(crate) async fn caller(
        &self,
        chain: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Option<Caller> {
        let by_certificate =
            self.client_ca.as_ref().and_then(|ca| ca.judge(chain).ok()).map(|own| certificate::caller(own));
        if let Some(Some(caller)) = by_certificate {
            return Some(authenticated(caller));
        }
        match bearer(headers) {
            Some(token) => self.token(token).await.map(authenticated),
            // A credential that does not count is never nobody's.
            None if self.anonymous && (chain.is_empty() || self.client_ca.is_none()) => Some(Caller {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..Caller::default()
            }),
            None => None,
        }
    }

    async fn token(&self, token: &str) -> Option<Caller> {
        let reviewer = self.reviewer.as_ref().filter(|_| token.len() <= LONGEST)?;
        let key: Key = Sha256::digest(token).into();
        let known = |answers: &Mutex<Answers<Option<Caller>>>| lock(answers).get(&key, Instant::now());
        if let Some(known) = known(&self.answers) {
            return known;
        }
        // The semaphore is never closed.
        let _slot = self.reviews.acquire().await.ok()?;
        if let Some(known) = known(&self.answers) {
            return known;
        }
        match asked(|| reviewer.token(token)).await {
            Ok(caller) => {
                lock(&self.answers).keep(key, caller.clone(), Instant::now(), TOKEN);
                caller
            }
            Err(error) => {
                tracing::warn!("cannot authenticate a request by its token: {}", error.reason);
                None
            }
        }
    }
}

/// Adds the group of all authenticated users.
fn authenticated(mut caller: Caller) -> Caller {
    if !caller.groups.iter().any(|group| group == "system:authenticated" || group == "system:unauthenticated")
    {
        caller.groups.push("system:authenticated".into());
    }
    caller
}

/// The token of `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let mut parts = text.splitn(3, ' ');
    let scheme = parts.next()?;
    let token = parts.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeReviewer;

    fn with(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())])
    }

    #[test]
    fn tokens_are_found_as_by_the_kubelet() {
        assert_eq!(bearer(&with("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with(" bearer abc d ")), Some("abc"));
        for none in ["Bearer", "Bearer ", "Bearer  x", "Basic abc", "abc"] {
            assert_eq!(bearer(&with(none)), None, "{none}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reviewed_once_and_its_answer_kept() {
        let reviewer = Arc::new(FakeReviewer::default());
        let authenticator = Authenticator::new(None, Some(reviewer.clone()), false);
        let caller = authenticator.caller(&[], &with("Bearer alice")).await.unwrap();
        assert_eq!(
            (caller.name.as_str(), caller.groups.as_slice()),
            ("alice", &["system:authenticated".to_owned()][..])
        );
        assert!(authenticator.caller(&[], &with("Bearer alice")).await.is_some());
        assert!(authenticator.caller(&[], &with("Bearer unknown")).await.is_none());
        assert!(authenticator.caller(&[], &with("Bearer unknown")).await.is_none());
        assert_eq!(reviewer.asked(), ["token alice", "token unknown"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_review_is_tried_again_and_not_kept() {
        let reviewer = Arc::new(FakeReviewer::default());
        let authenticator = Authenticator::new(None, Some(reviewer.clone()), true);
        reviewer.fail(2, true);
        assert!(authenticator.caller(&[], &with("Bearer alice")).await.is_some());
        assert_eq!(reviewer.asked().len(), 3);
        reviewer.fail(9, true);
        assert!(authenticator.caller(&[], &with("Bearer bob")).await.is_none());
        assert_eq!(reviewer.asked().len(), 3 + 5);
        reviewer.fail(1, false);
        assert!(authenticator.caller(&[], &with("Bearer bob")).await.is_none());
        assert!(authenticator.caller(&[], &with("Bearer bob")).await.is_some());
    }

    #[tokio::test]
    async fn nobody_is_anonymous_only_where_that_is_on() {
        let on = Authenticator::new(None, None, true).caller(&[], &HeaderMap::new()).await.unwrap();
        assert_eq!((on.name.as_str(), on.groups.len()), ("system:anonymous", 1));
        assert_eq!(Authenticator::new(None, None, false).caller(&[], &HeaderMap::new()).await, None);
        assert_eq!(Authenticator::new(None, None, true).caller(&[], &with("Bearer x")).await, None);
    }
}
