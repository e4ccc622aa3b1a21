//! Tokens of service accounts, requested and refreshed for the pods that use them (`TokenRequest`).
//!
//! Owns one task. In: the tokens in use, by [`Tokens::want`]. Out: what is known of each, by a watch. A token lives in
//! memory and in its pod's volume alone. While the API server is away, tokens that exist stay in use.

mod schedule;

use crate::Task;
use berth_core::{
    error::Chain,
    model::{Token, TokenRef},
    time::Wall,
    value::{Value, Why},
};
use berth_kube::{Error, pool::Pool, request::Request, status::is_about_request};
use berth_sys::clock;
use jiff::Timestamp;
pub(crate) use schedule::Issued;
use schedule::{Failed, Schedule};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::sleep};

/// Requests at once. The others wait: a burst of pods must not delay what else the node asks.
const AT_ONCE: usize = 16;

/// The longest sleep of the task. The boot clock counts suspended time and tokio's timers do not.
const MAX_SLEEP: Duration = Duration::from_secs(300);

/// What is known of each token in use.
pub type TokenValues = Arc<BTreeMap<TokenRef, Value<Token>>>;

/// The tokens of this node's pods. The task ends with this value.
#[derive(Debug)]
pub struct Tokens {
    wanted: watch::Sender<BTreeSet<TokenRef>>,
    values: watch::Receiver<TokenValues>,
    _task: Task,
}

impl Tokens {
    /// Starts the task, which sends its requests on `pool`.
    pub fn start(pool: Pool) -> Tokens {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (publish, values) = watch::channel(TokenValues::default());
        Tokens { wanted, values, _task: Task::spawn(run(pool, wants, publish)) }
    }

    /// Takes the tokens that pods use now, all of them.
    pub fn want(&self, tokens: BTreeSet<TokenRef>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != tokens;
            *wanted = tokens;
            changed
        });
    }

    /// The newest values. A token that has none yet is unknown.
    pub fn values(&self) -> watch::Receiver<TokenValues> {
        self.values.clone()
    }
}

async fn run(
    pool: Pool,
    mut wants: watch::Receiver<BTreeSet<TokenRef>>,
    publish: watch::Sender<TokenValues>,
) {
    let mut schedule = Schedule::default();
    let mut requests = JoinSet::new();
    loop {
        let now = clock::now().boottime;
        for token in schedule.take_due(now, AT_ONCE.saturating_sub(requests.len())) {
            let pool = pool.clone();
            requests.spawn(async move {
                let answer = request(&pool, &token).await;
                (token, answer)
            });
        }
        let full = requests.len() >= AT_ONCE;
        let due = schedule.next().filter(|_| !full).map_or(MAX_SLEEP, |next| next.since(now).min(MAX_SLEEP));
        tokio::select! {
            changed = wants.changed() => {
                if changed.is_err() {
                    return;
                }
                schedule.want(&wants.borrow_and_update().clone(), clock::now().boottime);
                publish.send_replace(Arc::new(schedule.values()));
            }
            Some(answered) = requests.join_next() => {
                // A request's task has no panic of its own and is never aborted.
                let Ok((token, answer)) = answered else { continue };
                if let Err(failed) = &answer {
                    tracing::debug!(pod = %token.pod, why = %failed.why, "cannot get a token");
                }
                if schedule.answered(&token, answer, clock::now().boottime, rand::random()) {
                    publish.send_replace(Arc::new(schedule.values()));
                }
            }
            () = sleep(due) => {}
        }
    }
}

async fn request(pool: &Pool, token: &TokenRef) -> Result<Issued, Failed> {
    let TokenRef { namespace, service_account, .. } = token;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
    let answer = pool.send(&Request::create(path, body(token))).await.map_err(|error| failed(&error))?;
    issued(&answer.body, clock::wall()).map_err(|why| Failed { why: Why::Refused(why), retry_after: None })
}

/// The request for a token that is bound to the pod (`authentication.k8s.io/v1`, TokenRequest).
fn body(token: &TokenRef) -> String {
    let audiences: Vec<&String> = token.audience.iter().collect();
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": token.ttl,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": token.pod_name, "uid": token.pod,
            },
        },
    })
    .to_string()
}

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

/// The token of an answer. The API server may grant a shorter or a longer life than was asked for, and the end that it
/// says counts.
pub(crate) fn issued(body: &[u8], now: Wall) -> Result<Issued, String> {
    let answer: TokenRequest =
        serde_json::from_slice(body).map_err(|error| format!("cannot read the TokenRequest: {error}"))?;
    let expires = i64::try_from(answer.status.expiration_timestamp.as_nanosecond())
        .map_err(|_range| "cannot read the TokenRequest: it expires too late".to_owned())?;
    let life = u64::try_from(expires.saturating_sub(now.0)).map(Duration::from_nanos).unwrap_or_default();
    Ok(Issued { token: Token { text: answer.status.token, expires: Wall(expires) }, life })
}

fn failed(error: &Error) -> Failed {
    match error.refusal() {
        Some(refusal) if is_about_request(refusal.code) => {
            Failed { why: Why::Refused(refusal.message.clone()), retry_after: refusal.retry_after }
        }
        Some(refusal) => {
            Failed { why: Why::Unreachable(refusal.to_string()), retry_after: refusal.retry_after }
        }
        None => Failed { why: Why::Unreachable(Chain(error).to_string()), retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_binds_the_token_to_the_pod_and_names_one_audience() {
        let token = TokenRef {
            pod: "u1".parse().unwrap(),
            pod_name: "web".parse().unwrap(),
            namespace: "default".parse().unwrap(),
            service_account: "robot".into(),
            audience: Some("vault".into()),
            ttl: 600,
        };
        let sent: serde_json::Value = serde_json::from_str(&body(&token)).unwrap();
        assert_eq!(sent["spec"]["audiences"], json!(["vault"]));
        assert_eq!(sent["spec"]["boundObjectRef"]["uid"], "u1");
        let own = TokenRef { audience: None, ..token };
        let sent: serde_json::Value = serde_json::from_str(&body(&own)).unwrap();
        assert_eq!(sent["spec"]["audiences"], json!([]), "the API server's own audience");
    }

    #[test]
    fn the_servers_end_of_a_token_counts() {
        let answer = br#"{"spec":{"expirationSeconds":3607},"status":{"token":"abc","expirationTimestamp":"1970-01-01T00:16:40Z"}}"#;
        let issued = issued(answer, Wall(400_000_000_000)).unwrap();
        assert_eq!((issued.token.text.as_str(), issued.life), ("abc", Duration::from_secs(600)));
        assert!(super::issued(b"{}", Wall(0)).unwrap_err().starts_with("cannot read the TokenRequest"));
    }
}
