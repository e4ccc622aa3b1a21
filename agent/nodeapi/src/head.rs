//! What is wrong with the head of a request, beyond what the parser refuses: a request that two servers could read as
//! different ones. Pure; the rules are those of Go's server.

use http::{HeaderMap, StatusCode, Version, header};

/// The status and the text that refuse a request; `None` where its head is good.
pub(crate) fn refusal(version: Version, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let bad = |text| Some((StatusCode::BAD_REQUEST, text));
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version >= Version::HTTP_11 => return bad("missing required Host header\n"),
        (Some(_), Some(_)) => return bad("too many Host headers\n"),
        (Some(host), None) if !host.as_bytes().iter().all(is_of_a_host) => {
            return bad("malformed Host header\n");
        }
        _ => {}
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some((StatusCode::NOT_IMPLEMENTED, "Unsupported transfer encoding\n")),
    }
}

/// Whether a byte may stand in the name of a host, with its port (RFC 3986, 3.2.2).
fn is_of_a_host(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn status(version: Version, list: &[(HeaderName, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        refusal(version, &headers).map_or(200, |(status, _)| status.as_u16())
    }

    #[test]
    fn a_request_with_two_readings_is_refused() {
        let host = || (header::HOST, "n:10250");
        let coding = |value| status(Version::HTTP_11, &[host(), (header::TRANSFER_ENCODING, value)]);
        assert_eq!(status(Version::HTTP_11, &[host()]), 200);
        assert_eq!(status(Version::HTTP_11, &[(header::HOST, "[2001:db8::1]:10250")]), 200);
        assert_eq!((status(Version::HTTP_10, &[]), status(Version::HTTP_11, &[])), (200, 400));
        assert_eq!(status(Version::HTTP_11, &[host(), host()]), 400);
        assert_eq!(status(Version::HTTP_11, &[(header::HOST, "a b/../")]), 400);
        assert_eq!((coding("chunked"), coding("CHUNKED")), (200, 200));
        for other in ["identity", "identity, chunked", "chunked, chunked", "gzip, chunked", "xchunked", ""] {
            assert_eq!(coding(other), 501, "{other:?}");
        }
        let twice = [host(), (header::TRANSFER_ENCODING, "chunked"), (header::TRANSFER_ENCODING, "chunked")];
        assert_eq!(status(Version::HTTP_11, &twice), 501);
    }
}
