//! Requests: verbs over bytes. Callers name the paths, because only they know Kubernetes' kinds.

use crate::{
    Error,
    pool::{Body, Pool, Traffic},
    status::Refusal,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Deadline of a whole request, unless the caller sets another one.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Maximum size of an answer in bytes, unless the caller sets another one.
pub const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Maximum size of a list's page in bytes.
pub const MAX_PAGE: usize = 32 * 1024 * 1024;

/// Maximum size of a refusal's body in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// Difference of two clocks from which the difference is reported.
const SKEW: Duration = Duration::from_secs(60);

/// Format of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// `application/strategic-merge-patch+json`.
    StrategicMerge,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/json-patch+json`.
    Json,
}

/// Conditions on the object of a delete request; the answer is 409 if they do not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// UID of the object.
    pub uid: Option<String>,
    /// Version of the object.
    pub resource_version: Option<String>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    /// Path and query.
    target: String,
    content: Option<(&'static str, Bytes)>,
    traffic: Traffic,
    deadline: Duration,
    limit: usize,
}

/// An answer with a status below 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 201 for an object that was created.
    pub code: u16,
    /// The body.
    pub body: Bytes,
}

impl Request {
    fn new(method: Method, target: impl Into<String>) -> Request {
        Request {
            method,
            target: target.into(),
            content: None,
            traffic: Traffic::Request,
            deadline: DEADLINE,
            limit: MAX_ANSWER,
        }
    }

    fn with(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Request {
        self.content = Some((content_type, body.into()));
        self
    }

    /// Reads an object. `target` is a path, with an optional query.
    pub fn get(target: impl Into<String>) -> Request {
        Request::new(Method::GET, target)
    }

    /// Reads one page of a list.
    pub fn list(target: impl Into<String>) -> Request {
        Request { limit: MAX_PAGE, ..Request::get(target) }
    }

    /// Creates an object, or a subresource such as a token.
    pub fn create(target: impl Into<String>, body: impl Into<Bytes>) -> Request {
        Request::new(Method::POST, target).with("application/json", body)
    }

    /// Replaces an object.
    pub fn put(target: impl Into<String>, body: impl Into<Bytes>) -> Request {
        Request::new(Method::PUT, target).with("application/json", body)
    }

    /// Changes an object.
    pub fn patch(target: impl Into<String>, patch: Patch, body: impl Into<Bytes>) -> Request {
        let content_type = match patch {
            Patch::StrategicMerge => "application/strategic-merge-patch+json",
            Patch::Merge => "application/merge-patch+json",
            Patch::Json => "application/json-patch+json",
        };
        Request::new(Method::PATCH, target).with(content_type, body)
    }

    /// Deletes an object. `grace` is the pod's grace period in seconds; `None` leaves it to the object.
    pub fn delete(target: impl Into<String>, grace: Option<u32>, preconditions: &Preconditions) -> Request {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(grace) = grace {
            options["gracePeriodSeconds"] = grace.into();
        }
        if let Some(uid) = &preconditions.uid {
            options["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &preconditions.resource_version {
            options["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        Request::new(Method::DELETE, target).with("application/json", options.to_string())
    }

    /// Sets the deadline of the whole request, including the wait for a connection.
    pub fn within(mut self, deadline: Duration) -> Request {
        self.deadline = deadline;
        self
    }

    /// Sets the maximum size of the answer in bytes.
    pub fn at_most(mut self, limit: usize) -> Request {
        self.limit = limit;
        self
    }

    /// Marks a request of the node's lease, which never waits for other requests.
    pub fn of_lease(mut self) -> Request {
        self.traffic = Traffic::Lease;
        self
    }

    fn path(&self) -> String {
        self.target.split('?').next().unwrap_or_default().to_owned()
    }

    fn http(&self) -> Result<http::Request<Full<Bytes>>, Error> {
        let mut request = http::Request::builder()
            .method(self.method.clone())
            .uri(&self.target)
            .header(header::ACCEPT, HeaderValue::from_static("application/json"));
        let mut bytes = Bytes::new();
        if let Some((content_type, body)) = &self.content {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            bytes = body.clone();
        }
        request
            .body(Full::new(bytes))
            .map_err(|e| Error::Setup { what: "make a request", reason: format!("{}: {e}", self.target) })
    }
}

impl Pool {
    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// There is no connection or no whole answer in time, the answer is too large, or the server refuses.
    pub async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let deadline = Instant::now() + request.deadline;
        let answer = self.ask(request.traffic, request.http()?, deadline).await?;
        if answer.status().as_u16() >= 400 {
            return Err(self.refused(request.method.as_str(), request.path(), answer, deadline).await);
        }
        let code = answer.status().as_u16();
        let reading = read(request, answer.into_body());
        let Ok(body) = timeout_at(deadline, reading).await else {
            let (method, path) = (request.method.to_string(), request.path());
            return Err(Error::Deadline { method, path, after: request.deadline });
        };
        Ok(Answer { code, body: body? })
    }

    /// Opens a watch. `target` is path and query; the body has one event per line.
    ///
    /// # Errors
    /// There is no connection or no answer in time, or the server refuses.
    pub async fn watch(&self, target: &str) -> Result<Body, Error> {
        let deadline = Instant::now() + DEADLINE;
        let request = Request { traffic: Traffic::Watch, ..Request::get(target) };
        let answer = self.ask(request.traffic, request.http()?, deadline).await?;
        if answer.status().as_u16() >= 400 {
            return Err(self.refused("WATCH", request.path(), answer, deadline).await);
        }
        Ok(answer.into_body())
    }

    /// The refusal in an answer. If the body is late or too long, only the status counts.
    async fn refused(&self, method: &str, path: String, answer: Response<Body>, deadline: Instant) -> Error {
        let (head, mut body) = answer.into_parts();
        let mut text = BytesMut::new();
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                if text.len() > MAX_REFUSAL {
                    break;
                }
            }
        };
        // The received part counts if the body is late.
        drop(timeout_at(deadline, reading).await);
        let header = |name| head.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        let mut refusal = Refusal::of_answer(head.status.as_u16(), header(header::RETRY_AFTER), &text);
        if refusal.is_unauthorized() {
            let now = Timestamp::now();
            let skew = header(header::DATE).and_then(|date| skew(date, now));
            let hint = self.identity().problem(now).or(skew);
            let hint = hint.as_deref().unwrap_or("look at the credentials in the kubeconfig");
            refusal.message = format!("{}; {hint}", refusal.message);
        }
        Error::Refused { method: method.to_owned(), path, refusal }
    }
}

async fn read(request: &Request, mut body: Body) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Error::Broken {
            method: request.method.to_string(),
            path: request.path(),
            reason: e.to_string(),
            connection: e.connection,
        })?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if bytes.len().saturating_add(data.len()) > request.limit {
            let (method, path) = (request.method.to_string(), request.path());
            return Err(Error::TooLarge { method, path, limit: request.limit });
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.freeze())
}

/// The difference of the clocks as text, if the server's `Date` is far from this node's time.
fn skew(date: &str, now: Timestamp) -> Option<String> {
    let server = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    let apart = now.duration_since(server).unsigned_abs();
    (apart > SKEW).then(|| {
        format!("this node's clock says {now:.0} and the server's {server}: set the clock of the one that is wrong")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_say_what_must_hold() {
        let of = |uid: &str| Preconditions { uid: Some(uid.into()), resource_version: None };
        let request = Request::delete("/api/v1/namespaces/n/pods/p", Some(0), &of("u"));
        let (_, body) = request.content.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}})
        );
        let plain = Request::delete("/x", None, &Preconditions::default()).content.unwrap().1;
        assert_eq!(plain, r#"{"apiVersion":"v1","kind":"DeleteOptions"}"#);
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let now = "2026-01-02T03:04:05.6Z".parse().unwrap();
        assert_eq!(skew("Fri, 02 Jan 2026 03:04:00 GMT", now), None);
        let told = skew("Sun, 06 Nov 1994 08:49:37 GMT", now).unwrap();
        assert!(
            told.starts_with(
                "this node's clock says 2026-01-02T03:04:05Z and the server's 1994-11-06T08:49:37Z"
            ),
            "{told}"
        );
        assert_eq!(skew("nonsense", now), None);
    }
}
