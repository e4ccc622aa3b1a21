//! Reviews by the API server: TokenReview and SubjectAccessReview.

use berth_core::{error::Chain, ids::NodeName};
use berth_kube::{Error, pool::Pool, request::Request};
use berth_nodeapi::{AccessReview, Boxed, Caller, ReviewError, Reviewer};
use serde_json::{Value, json};

/// Asks the API server by the node's own connections.
pub(super) struct ApiReviewer {
    pub(super) pool: Pool,
    pub(super) node: NodeName,
}

impl ApiReviewer {
    async fn review(&self, path: &str, review: &Value) -> Result<Value, ReviewError> {
        let answer =
            self.pool.send(&Request::create(path, review.to_string())).await.map_err(|e| failed(&e))?;
        let mut object: Value = serde_json::from_slice(&answer.body).map_err(|e| ReviewError {
            reason: format!("the API server's answer is no JSON: {e}"),
            transient: false,
            retry_after: None,
        })?;
        Ok(object["status"].take())
    }
}

fn failed(error: &Error) -> ReviewError {
    let refusal = error.refusal();
    let transient = match error {
        Error::Broken { .. } => true,
        _ => refusal.is_some_and(|r| [429, 500, 504].contains(&r.code) || r.retry_after.is_some()),
    };
    ReviewError {
        reason: Chain(error).to_string(),
        transient,
        retry_after: refusal.and_then(|refusal| refusal.retry_after),
    }
}

impl Reviewer for ApiReviewer {
    fn token<'a>(&'a self, token: &'a str) -> Boxed<'a, Result<Option<Caller>, ReviewError>> {
        Box::pin(async move {
            let review = json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": { "token": token },
            });
            let status = self.review("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
            Ok((status["authenticated"] == true).then(|| caller(&status["user"])))
        })
    }

    fn access<'a>(&'a self, review: &'a AccessReview) -> Boxed<'a, Result<bool, ReviewError>> {
        Box::pin(async move {
            let review = access_review(review, &self.node);
            let status = self.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
            Ok(status["allowed"] == true && status["denied"] != true)
        })
    }
}

fn access_review(review: &AccessReview, node: &NodeName) -> Value {
    let caller = &review.caller;
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": caller.name,
            "uid": caller.uid,
            "groups": caller.groups,
            "extra": caller.extra,
            "resourceAttributes": {
                "verb": review.verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": review.subresource,
                "name": node,
            },
        },
    })
}

/// The user of a TokenReview.
fn caller(user: &Value) -> Caller {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let extra = user["extra"].as_object().into_iter().flatten();
    Caller {
        name: text(&user["username"]),
        uid: text(&user["uid"]),
        groups: texts(&user["groups"]),
        extra: extra.map(|(name, values)| (name.clone(), texts(values))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_review_names_the_caller_and_an_access_review_asks_of_it() {
        let user = json!({
            "username": "system:serviceaccount:monitoring:prometheus",
            "uid": "u1",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/pod-name": ["p"]},
        });
        let caller = caller(&user);
        assert_eq!((caller.uid.as_str(), caller.groups.len(), caller.extra.len()), ("u1", 2, 1));
        let review = AccessReview { caller, verb: "get", subresource: "metrics" };
        let asked = access_review(&review, &NodeName::new("n1").unwrap());
        assert_eq!(asked["spec"]["user"], user["username"]);
        assert_eq!(asked["spec"]["extra"], user["extra"]);
        let wanted = json!({
            "verb": "get", "version": "v1", "resource": "nodes", "subresource": "metrics", "name": "n1",
        });
        assert_eq!(asked["spec"]["resourceAttributes"], wanted);
    }
}
