//! The upgrade of a request to SPDY or to a WebSocket: which of the two a client asks for, and the protocol on it.
//! Pure.

use super::websocket;
use crate::{ResponseBody, response};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};

/// Header of the protocols that a client speaks on SPDY, and of the one that the server has chosen.
const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Header of the protocols that the server speaks, where it speaks none of the client's.
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a client asks its connection to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SPDY/3.1.
    Spdy,
    /// A WebSocket.
    WebSocket,
}

/// What the request's headers ask for; `None` where they ask for no upgrade.
pub(super) fn asked(headers: &HeaderMap) -> Option<Asked> {
    let has = |name: &HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .any(|value| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains(token)))
    };
    if !has(&CONNECTION, "upgrade") {
        return None;
    }
    if headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Some(Asked::WebSocket);
    }
    has(&UPGRADE, "spdy/3.1").then_some(Asked::Spdy)
}

/// Values of a header that are separated by commas.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

fn switching(to: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

/// An answer that refuses the upgrade.
pub(super) type Refused = Box<Response<ResponseBody>>;

/// The answer to an upgrade to SPDY, and the version that it chooses: the first of the client's that is supported.
pub(super) fn spdy(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(&'static str, Response<ResponseBody>), Refused> {
    let refuse = |code, why: String| Box::new(response::text(code, format!("unable to upgrade: {why}\n")));
    let wanted = list(headers, &STREAM_VERSION);
    if wanted.is_empty() {
        let why = format!(
            "header X-Stream-Protocol-Version names no protocol in a request with {} headers",
            headers.len()
        );
        return Err(refuse(StatusCode::BAD_REQUEST, why));
    }
    let chosen = wanted.iter().find_map(|one| supported.iter().find(|known| *known == one).copied());
    let Some(chosen) = chosen else {
        let why =
            format!("unable to negotiate protocol: client supports {wanted:?}, server accepts {supported:?}");
        let mut answer = refuse(StatusCode::FORBIDDEN, why);
        for version in supported {
            answer.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(version));
        }
        return Err(answer);
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(STREAM_VERSION, HeaderValue::from_static(chosen));
    Ok((chosen, response))
}

/// The protocols that a client speaks on a WebSocket.
pub(super) fn websocket_protocols(headers: &HeaderMap) -> Vec<&str> {
    list(headers, &SEC_WEBSOCKET_PROTOCOL)
}

/// The answer to an upgrade to a WebSocket, and the protocol that it chooses: the first of the client's that is
/// supported, and "" where the client names none.
pub(super) fn websocket(
    method: &Method,
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(&'static str, Response<ResponseBody>), Refused> {
    let accept = websocket::accept(method, headers)
        .map_err(|why| Box::new(response::text(StatusCode::BAD_REQUEST, format!("{why}\n"))))?;
    let mut wanted = websocket_protocols(headers);
    if wanted.is_empty() {
        wanted.push("");
    }
    let chosen = wanted.iter().find_map(|one| supported.iter().find(|known| *known == one).copied());
    let Some(chosen) = chosen else {
        let why = format!("requested protocol(s) are not supported: {wanted:?}; supports {supported:?}\n");
        return Err(Box::new(response::text(StatusCode::FORBIDDEN, why)));
    };
    let mut response = switching("websocket");
    let accept = HeaderValue::from_str(&accept).map_err(|_invalid| {
        Box::new(response::text(StatusCode::BAD_REQUEST, "missing or bad WebSocket-Key\n"))
    })?;
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((chosen, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn the_kind_of_upgrade_is_told_by_two_headers() {
        let of = |connection, upgrade| asked(&headers(&[("connection", connection), ("upgrade", upgrade)]));
        assert_eq!(of("Upgrade", "SPDY/3.1"), Some(Asked::Spdy));
        assert_eq!(of("keep-alive, upgrade", "WebSocket"), Some(Asked::WebSocket));
        assert_eq!(of("keep-alive", "SPDY/3.1"), None);
        assert_eq!(of("upgrade", "h2c"), None);
        assert_eq!(asked(&HeaderMap::new()), None);
    }

    #[test]
    fn the_first_version_of_the_client_that_is_supported_is_chosen() {
        let supported = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
        let mut wanted = headers(&[("x-stream-protocol-version", "v5.channel.k8s.io")]);
        let refused = spdy(&wanted, &supported).unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(refused.headers().get_all(ACCEPTED_VERSIONS).iter().count(), 2);
        wanted.append(STREAM_VERSION, HeaderValue::from_static("v3.channel.k8s.io, v4.channel.k8s.io"));
        let (chosen, response) = spdy(&wanted, &supported).unwrap();
        assert_eq!((chosen, response.status()), ("v3.channel.k8s.io", StatusCode::SWITCHING_PROTOCOLS));
        assert_eq!(response.headers()[STREAM_VERSION], "v3.channel.k8s.io");
        assert_eq!(spdy(&HeaderMap::new(), &supported).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_websocket_may_name_no_protocol() {
        let supported = ["", "v4.channel.k8s.io"];
        let mut asks =
            headers(&[("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
        let (chosen, response) = websocket(&Method::GET, &asks, &supported).unwrap();
        assert_eq!((chosen, response.headers().get(SEC_WEBSOCKET_PROTOCOL)), ("", None));
        asks.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v9, v4.channel.k8s.io"));
        let (chosen, response) = websocket(&Method::GET, &asks, &supported).unwrap();
        assert_eq!(
            (chosen, &response.headers()[SEC_WEBSOCKET_PROTOCOL]),
            (chosen, &"v4.channel.k8s.io".parse::<HeaderValue>().unwrap())
        );
        asks.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v9"));
        assert_eq!(websocket(&Method::GET, &asks, &supported).unwrap_err().status(), StatusCode::FORBIDDEN);
    }
}
