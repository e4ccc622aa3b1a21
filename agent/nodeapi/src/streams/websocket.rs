//! WebSocket (RFC 6455) as the API server and kubectl speak it to a node: the answer to the upgrade and the frames of
//! both directions. Pure.
//!
//! Messages are handed on in the pieces in which they arrive, so that none is held whole. The framing is written here:
//! a crate for it would bring five others and a read buffer of its own for every connection, and the messages of the
//! protocols above it are a channel's number and bytes.

pub(super) mod channels;
mod frame;

pub(super) use frame::{Decoder, HEAD_MAX, Opcode, Part, close, head, ping, pong};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, header};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The text that RFC 6455 appends to a client's key (section 1.3).
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What is wrong with a request for a WebSocket: a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    /// The method is not GET.
    #[error("bad method")]
    Method,
    /// The version is not 13.
    #[error("missing or bad WebSocket Version")]
    Version,
    /// There is no key.
    #[error("missing or bad WebSocket-Key")]
    Key,
}

/// The value of `Sec-WebSocket-Accept` that answers a request.
pub(super) fn accept(method: &Method, headers: &HeaderMap) -> Result<String, BadRequest> {
    if method != Method::GET {
        return Err(BadRequest::Method);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(BadRequest::Version);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).map(str::trim);
    let key = key.filter(|key| !key.is_empty()).ok_or(BadRequest::Key)?;
    Ok(STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_rfc() {
        let mut headers = HeaderMap::new();
        assert_eq!(accept(&Method::POST, &headers), Err(BadRequest::Method));
        assert_eq!(accept(&Method::GET, &headers), Err(BadRequest::Version));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        assert_eq!(accept(&Method::GET, &headers), Err(BadRequest::Key));
        // RFC 6455, section 1.3.
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accept(&Method::GET, &headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
