//! Log lines about the sets that the API server refuses to this node: one for each reason, with what to do, and one when
//! the set is told again. An API server that has just started refuses much before it knows its own rules: a refusal is
//! told after [`SETTLE`]. An API server that is not there is told by the lease.

use crate::rights;
use berth_core::ids::NodeName;
use berth_kube::{reflector::Health, status::is_about_request};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// The time for which a refusal lasts before it is told.
const SETTLE: Duration = Duration::from_secs(5);

/// Tells the refusals of a set. Ends with the set's reflector.
pub(super) async fn tell(set: &'static str, node: NodeName, mut health: watch::Receiver<Health>) {
    let mut told = Told::default();
    loop {
        let now = settled(&mut health).await;
        match told.next(set, &node, &now) {
            Some(Line::Refused(text)) => tracing::error!("{text}"),
            Some(Line::Again(text)) => tracing::info!("{text}"),
            None => {}
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// Whether the set is refused to this node, rather than that the API server fails or is overloaded.
fn is_refusal(health: &Health) -> bool {
    matches!(health, Health::Behind { refused: Some(code), .. } if is_about_request(*code))
}

/// The set's health, once a refusal has lasted.
async fn settled(health: &mut watch::Receiver<Health>) -> Health {
    let now = health.borrow_and_update().clone();
    if !is_refusal(&now) {
        return now;
    }
    sleep(SETTLE).await;
    health.borrow_and_update().clone()
}

/// The refusal that was told last.
#[derive(Debug, Default)]
struct Told(Option<String>);

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Refused(String),
    Again(String),
}

impl Told {
    fn next(&mut self, set: &str, node: &NodeName, health: &Health) -> Option<Line> {
        match health {
            Health::Behind { why, refused: Some(code), .. } if is_refusal(health) => {
                if self.0.as_ref() == Some(why) {
                    return None;
                }
                self.0 = Some(why.clone());
                let remedy = match code {
                    403 => format!("; {}", rights::of_forbidden(set, node)),
                    // The client has said what it sees: an expired certificate, a wrong clock.
                    _ => String::new(),
                };
                Some(Line::Refused(format!("cannot read {set}: {why}{remedy}")))
            }
            Health::Behind { .. } => None,
            Health::Ok { .. } => {
                self.0.take().map(|_| Line::Again(format!("the API server lets this node read {set}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::time::Now;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_by_an_api_server_that_has_just_started_is_not_told() {
        let refused = || Health::Behind { since: Now::default(), why: "starting".into(), refused: Some(403) };
        let (tell, mut health) = watch::channel(refused());
        let telling = tokio::spawn(async move {
            sleep(SETTLE / 2).await;
            tell.send_replace(Health::Ok { since: Now::default() });
            tell
        });
        assert!(matches!(settled(&mut health).await, Health::Ok { .. }));
        let tell = telling.await.unwrap();
        tell.send_replace(refused());
        assert_eq!(settled(&mut health).await, refused(), "one that lasts");
    }

    #[test]
    fn a_refusal_is_told_once_and_an_outage_is_not() {
        let node = NodeName::new("n1").unwrap();
        let behind = |why: &str, refused| Health::Behind { since: Now::default(), why: why.into(), refused };
        let mut told = Told::default();
        let mut next = |health: Health| match told.next("endpointslices", &node, &health) {
            Some(Line::Refused(text)) => text,
            Some(Line::Again(_)) => "again".to_owned(),
            None => String::new(),
        };
        assert_eq!(next(Health::unknown()), "");
        let text = next(behind("forbidden", Some(403)));
        assert!(
            text.starts_with("cannot read endpointslices: forbidden; until") && text.contains("node-proxier")
        );
        assert_eq!(next(behind("forbidden", Some(403))), "", "once");
        assert_eq!(next(behind("overloaded", Some(503))), "");
        assert_eq!(next(behind("connection refused", None)), "");
        let text = next(behind("Unauthorized; the client certificate expired", Some(401)));
        assert_eq!(text, "cannot read endpointslices: Unauthorized; the client certificate expired");
        assert_eq!(next(Health::Ok { since: Now::default() }), "again");
        assert_eq!(next(Health::Ok { since: Now::default() }), "");
    }
}
