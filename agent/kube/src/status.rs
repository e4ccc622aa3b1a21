//! Refusals: answers by which the API server refuses a request.
//!
//! An answer from 400 on carries a `Status` object (`metav1.Status`); a proxy on the way answers with any
//! other text. Both become a [`Refusal`]. Pure.

use serde::Deserialize;
use std::time::Duration;

/// Maximum of characters of an answer that a refusal keeps.
const MAX_TEXT: usize = 1024;

/// Maximum wait that a server can ask for. A mistaken `Retry-After` would otherwise silence a node.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// An answer that refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the API server answers {code} {reason}: {message}")]
pub struct Refusal {
    /// HTTP status, or the `code` of a `Status` in a watch.
    pub code: u16,
    /// Kubernetes' reason (`NotFound`, `Forbidden`, `Expired`, …); empty if the answer is no `Status`.
    pub reason: String,
    /// The server's text.
    pub message: String,
    /// The wait before the next try that the server asks for, at most five minutes.
    pub retry_after: Option<Duration>,
}

/// `metav1.Status`, restricted to the fields in use. Every field may be missing or null.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    code: Option<i64>,
    reason: Option<String>,
    message: Option<String>,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: Option<i64>,
}

impl Refusal {
    /// The refusal of an HTTP answer: its status, its header `Retry-After` and the start of its body.
    pub fn of_answer(code: u16, retry_after: Option<&str>, body: &[u8]) -> Refusal {
        let header = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        match serde_json::from_slice::<Status>(body) {
            Ok(status) => {
                let mut refusal = Refusal::of_status(status, code);
                refusal.code = code;
                refusal.retry_after = header.map(|d| d.min(MAX_RETRY_AFTER)).or(refusal.retry_after);
                refusal
            }
            Err(_) => Refusal {
                code,
                reason: String::new(),
                message: shortened(String::from_utf8_lossy(body.get(..4 * MAX_TEXT).unwrap_or(body)).trim()),
                retry_after: header.map(|d| d.min(MAX_RETRY_AFTER)),
            },
        }
    }

    /// The refusal of the `Status` in an event `ERROR` of a watch. A text that is no `Status` counts as an
    /// internal error of the server.
    pub fn of_event(object: &[u8]) -> Refusal {
        let status = serde_json::from_slice(object).unwrap_or_else(|_| Status {
            message: Some(String::from_utf8_lossy(object.get(..4 * MAX_TEXT).unwrap_or(object)).into_owned()),
            ..Status::default()
        });
        Refusal::of_status(status, 500)
    }

    fn of_status(status: Status, default: u16) -> Refusal {
        let seconds = status.details.and_then(|d| d.retry_after_seconds).unwrap_or(0);
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Refusal {
            code: status.code.and_then(|code| u16::try_from(code).ok()).filter(|c| *c > 0).unwrap_or(default),
            reason: shortened(&status.reason.unwrap_or_default()),
            message: shortened(&status.message.unwrap_or_default()),
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)),
        }
    }

    /// Whether the requested resource version or continue token is too old (410; reasons `Expired` and
    /// `Gone`).
    pub fn is_expired(&self) -> bool {
        self.code == 410 || matches!(self.reason.as_str(), "Expired" | "Gone")
    }

    /// Whether the server does not accept the client's identity (401): an expired certificate or token.
    pub fn is_unauthorized(&self) -> bool {
        self.code == 401
    }

    /// Whether the object does not exist (404).
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether another writer was faster, or a precondition does not hold (409).
    pub fn is_conflict(&self) -> bool {
        self.code == 409
    }

    /// Whether the client lacks the permission (403).
    pub fn is_forbidden(&self) -> bool {
        self.code == 403
    }
}

/// Whether a refusal with this HTTP status is about the request itself, rather than that the server fails (5xx) or is
/// overloaded (429).
pub fn is_about_request(code: u16) -> bool {
    code < 500 && code != 429
}

/// The text on one line, cut at [`MAX_TEXT`] characters.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRED: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (207)","reason":"Expired","code":410}"#;

    #[test]
    fn statuses_of_the_server_are_read() {
        let refusal = Refusal::of_answer(410, None, EXPIRED.as_bytes());
        assert!(refusal.is_expired());
        assert_eq!(
            refusal.to_string(),
            "the API server answers 410 Expired: too old resource version: 1 (207)"
        );
        let event = Refusal::of_event(EXPIRED.as_bytes());
        assert_eq!(event, refusal);
        let disabled = Refusal::of_event(
            br#"{"status":"Failure","message":"required storage feature RequestWatchProgress is disabled","reason":"InternalError","details":null,"code":500}"#,
        );
        assert_eq!((disabled.code, disabled.is_expired()), (500, false));
    }

    #[test]
    fn waits_come_from_the_header_or_the_details_and_are_bounded() {
        let details = br#"{"code":429,"reason":"TooManyRequests","details":{"retryAfterSeconds":3}}"#;
        let after = |header, body: &[u8]| Refusal::of_answer(429, header, body).retry_after;
        assert_eq!(after(None, details), Some(Duration::from_secs(3)));
        assert_eq!(after(Some("1"), details), Some(Duration::from_secs(1)));
        assert_eq!(
            after(Some("1"), b"Too many requests, please try again later.\n"),
            Some(Duration::from_secs(1))
        );
        assert_eq!(after(Some("99999999999"), b""), Some(MAX_RETRY_AFTER));
        assert_eq!(after(Some("Fri, 31 Dec 1999 23:59:59 GMT"), b""), None);
        assert_eq!(after(None, br#"{"details":{"retryAfterSeconds":-3}}"#), None);
    }

    #[test]
    fn answers_of_others_keep_the_start_of_their_text_on_one_line() {
        let page = format!("<html>\n<h1>502 Bad Gateway</h1>{}", "x".repeat(100_000));
        let refusal = Refusal::of_answer(502, None, page.as_bytes());
        assert_eq!((refusal.code, refusal.reason.as_str()), (502, ""));
        assert!(refusal.message.starts_with("<html> <h1>502") && refusal.message.len() == MAX_TEXT);
        // The HTTP status counts, not a `code` in the body.
        assert_eq!(Refusal::of_answer(503, None, br#"{"code":200}"#).code, 503);
        for body in [&b"null"[..], b"[]", b"\xff\xfe", b"", br#"{"code":"x"}"#] {
            let (answer, event) = (Refusal::of_answer(400, None, body), Refusal::of_event(body));
            assert_eq!((answer.code, event.code), (400, 500), "{body:?}");
        }
    }
}
