//! The node's Lease, renewed every ten seconds. A node whose lease is 40 s old counts as gone, and its pods are evicted
//! five minutes later. So the lease has streams of its own, no rate limit, and a task that waits for nothing else.
//!
//! `Renewal` is the pure part: the next request and what an answer means. On failure: five tries within ten seconds;
//! after two renewals that failed, the pool closes all connections, which may lead to a server that is gone.

use super::node::NewestNode;
use crate::{
    Task,
    wait::{backoff, jittered},
};
use berth_core::{error::Chain, ids::NodeName, time::Wall};
use berth_kube::{Error, pool::Pool, request::Request};
use berth_source::lease::{NAMESPACE, lease_object};
use berth_sys::clock;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Time between two renewals, a quarter of the lease's time.
const EVERY: Duration = Duration::from_secs(10);

/// Share by which the time between two renewals varies, so that the nodes of a cluster do not renew together.
const JITTER: f64 = 0.04;

/// The tries of one renewal.
const TRIES: u32 = 5;

/// First and longest wait between two tries.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces";

/// Starts to renew the lease of `node`, which belongs to the Node object in `object` as soon as that is known.
pub fn start(pool: Pool, node: NodeName, object: NewestNode) -> Task {
    Task::spawn(run(pool, Renewal::new(node), object))
}

async fn run(pool: Pool, mut renewal: Renewal, object: NewestNode) {
    let mut failing: Option<String> = None;
    loop {
        let begun = Instant::now();
        let result = timeout_at(begun + EVERY, renew(&pool, &mut renewal, &object)).await;
        let failed = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Chain(&error).to_string()),
            Err(_) => Some(format!("no answer within {EVERY:?}")),
        };
        pool.lease_renewed(failed.is_none());
        match failed {
            // The same again is no news.
            Some(why) if failing.as_ref() == Some(&why) => {}
            Some(why) => {
                tracing::warn!("cannot renew the node's lease: {why}");
                failing = Some(why);
            }
            None if failing.take().is_some() => tracing::info!("the node's lease is renewed again"),
            None => {}
        }
        sleep_until(begun + jittered(EVERY, JITTER, rand::random())).await;
    }
}

async fn renew(pool: &Pool, renewal: &mut Renewal, node: &NewestNode) -> Result<(), Error> {
    let mut failures = 0;
    loop {
        let request = renewal.request(node.uid().as_deref(), clock::wall()).of_lease().within(EVERY);
        let result = pool.send(&request).await;
        let answer = match &result {
            Ok(answer) => Ok(&*answer.body),
            Err(error) => Err(error.refusal().map(|refusal| refusal.code)),
        };
        match (renewal.answered(answer), result) {
            (Outcome::Renewed, _) => return Ok(()),
            (Outcome::Failed, Err(error)) => {
                failures += 1;
                if failures >= TRIES {
                    return Err(error);
                }
                let asked = error.refusal().and_then(|refusal| refusal.retry_after);
                sleep(asked.unwrap_or_else(|| backoff(failures, WAITS.0, WAITS.1))).await;
            }
            // A conflict is answered by a new read at once, but not for ever.
            (Outcome::Outdated, Err(error)) => {
                failures += 1;
                if failures >= TRIES {
                    return Err(error);
                }
            }
            (Outcome::Continue | Outcome::Outdated | Outcome::Failed, _) => {}
        }
    }
}

/// The lease as far as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Not read yet, or out of date.
    Unknown,
    /// The API server has none.
    Absent,
    /// The API server's answer to the last write or read.
    Lease(Value),
}

/// What an answer means for a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The lease is renewed.
    Renewed,
    /// The lease is known now; the next request renews it.
    Continue,
    /// Another one wrote or removed the lease; the next request reads it.
    Outdated,
    /// The request failed; the same one is tried again.
    Failed,
}

/// The renewal of one lease: a write upon the last known copy, without a read before it. Pure.
#[derive(Debug)]
struct Renewal {
    node: NodeName,
    known: Known,
}

impl Renewal {
    fn new(node: NodeName) -> Renewal {
        Renewal { node, known: Known::Unknown }
    }

    fn request(&self, node_uid: Option<&str>, now: Wall) -> Request {
        let one = format!("{PATH}/{NAMESPACE}/leases/{}", self.node);
        match &self.known {
            Known::Unknown => Request::get(one),
            Known::Absent => {
                let lease = lease_object(&self.node, node_uid, None, now);
                Request::create(format!("{PATH}/{NAMESPACE}/leases"), lease.to_string())
            }
            Known::Lease(before) => {
                Request::put(one, lease_object(&self.node, node_uid, Some(before), now).to_string())
            }
        }
    }

    /// Takes the answer to the last request: a body, or the HTTP status of a refusal (`None` without any answer).
    fn answered(&mut self, answer: Result<&[u8], Option<u16>>) -> Outcome {
        match answer {
            Ok(body) => {
                let was_read = self.known == Known::Unknown;
                self.known = serde_json::from_slice(body).map_or(Known::Unknown, Known::Lease);
                match (was_read, &self.known) {
                    (false, _) => Outcome::Renewed,
                    (true, Known::Lease(_)) => Outcome::Continue,
                    (true, _) => Outcome::Failed,
                }
            }
            Err(code) => match (&self.known, code) {
                (Known::Unknown, Some(404)) => {
                    self.known = Known::Absent;
                    Outcome::Continue
                }
                (Known::Absent, Some(409)) | (Known::Lease(_), Some(404 | 409)) => {
                    self.known = Known::Unknown;
                    Outcome::Outdated
                }
                _ => Outcome::Failed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the request asks: its method, and the version of the lease in it.
    fn asked(renewal: &Renewal) -> String {
        let text = format!("{:?}", renewal.request(Some("u"), Wall(0)));
        let method =
            ["GET", "POST", "PUT"].into_iter().find(|m| text.contains(&format!("method: {m}"))).unwrap();
        method.to_owned()
    }

    fn lease(version: &str) -> Vec<u8> {
        json!({"metadata": {"name": "n1", "resourceVersion": version}, "spec": {}}).to_string().into_bytes()
    }

    #[test]
    fn a_lease_is_read_once_created_where_there_is_none_and_renewed_without_a_read() {
        let mut renewal = Renewal::new(NodeName::new("n1").unwrap());
        assert_eq!(asked(&renewal), "GET");
        assert_eq!(renewal.answered(Err(Some(404))), Outcome::Continue);
        assert_eq!(asked(&renewal), "POST");
        assert_eq!(renewal.answered(Err(None)), Outcome::Failed, "the same again");
        assert_eq!(asked(&renewal), "POST");
        assert_eq!(renewal.answered(Err(Some(409))), Outcome::Outdated, "the lost answer's lease");
        assert_eq!(renewal.answered(Ok(&lease("3"))), Outcome::Continue);
        for version in ["4", "5"] {
            assert_eq!(asked(&renewal), "PUT");
            assert_eq!(renewal.answered(Ok(&lease(version))), Outcome::Renewed);
        }
        let Known::Lease(known) = &renewal.known else { panic!("{renewal:?}") };
        assert_eq!(known["metadata"]["resourceVersion"], "5");
    }

    #[test]
    fn another_writer_or_a_removal_is_answered_by_a_read_and_an_outage_by_the_same_request() {
        let mut renewal = Renewal::new(NodeName::new("n1").unwrap());
        renewal.answered(Ok(&lease("1")));
        assert_eq!(renewal.answered(Err(Some(500))), Outcome::Failed);
        assert_eq!(asked(&renewal), "PUT");
        for code in [409, 404] {
            assert_eq!(renewal.answered(Err(Some(code))), Outcome::Outdated);
            assert_eq!(asked(&renewal), "GET");
            assert_eq!(renewal.answered(Ok(b"odd")), Outcome::Failed, "no lease");
            assert_eq!(renewal.answered(Ok(&lease("2"))), Outcome::Continue);
        }
        assert_eq!(renewal.answered(Ok(b"odd")), Outcome::Renewed, "written, and read before the next");
        assert_eq!(asked(&renewal), "GET");
    }
}
