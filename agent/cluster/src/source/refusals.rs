//! Log lines about the sets that the API server refuses to this node: one for each reason, with what to do, and one when
//! the set is told again. An API server that is not there is told by the lease.

use crate::rights;
use berth_core::ids::NodeName;
use berth_kube::reflector::Health;
use tokio::sync::watch;

/// Tells the refusals of a set. Ends with the set's reflector.
pub(super) async fn tell(set: &'static str, node: NodeName, mut health: watch::Receiver<Health>) {
    let mut told = Told::default();
    loop {
        let now = health.borrow_and_update().clone();
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
            Health::Behind { why, refused: Some(code), .. } if *code < 500 && *code != 429 => {
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
