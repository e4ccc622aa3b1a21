//! gRPC probes: one `grpc.health.v1.Health/Check` over HTTP/2 without TLS.
//!
//! The request has one text field and the answer one number, so both are encoded here. Every error
//! is a failure (`pkg/probe/grpc`), except for a lack of resources of the node itself.

use crate::{
    action::Endpoint,
    http::PROBE_AGENT,
    net::{self, ProbeError},
};
use berth_core::probe::ProbeResult;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client;
use http::{HeaderMap, Method, Request, Version, header};
use std::{pin::pin, time::Duration};
use tokio::net::TcpStream;

/// The largest health answer in bytes.
const MAX_MESSAGE: usize = 4096;
const SERVING: u64 = 1;
const UNIMPLEMENTED: &str = "12";

/// Runs a gRPC probe.
pub(crate) async fn probe(endpoint: &Endpoint, service: &str, timeout: Duration) -> ProbeResult {
    let mut stream = match net::connect(endpoint).await {
        Ok(stream) => stream,
        Err(e) => return e.into_result(&format!("failed to connect service \"{endpoint}\": ")),
    };
    let answer = check(&mut stream, endpoint, service, timeout).await;
    net::end(&mut stream).await;
    match answer {
        Ok(SERVING) => ProbeResult::Success,
        Ok(status) => {
            let name = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "an unknown status",
            };
            ProbeResult::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Err(e) => e.into_result(""),
    }
}

async fn check(
    stream: &mut TcpStream,
    endpoint: &Endpoint,
    service: &str,
    timeout: Duration,
) -> Result<u64, ProbeError> {
    let failed = |source| ProbeError::Grpc { endpoint: endpoint.to_string(), source };
    let request = request(endpoint, timeout)?;
    let (send, connection) = client::Builder::new()
        .max_header_list_size(16 * 1024)
        .initial_window_size(64 * 1024)
        .enable_push(false)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(failed)?;
    let mut connection = pin!(connection);
    let answer = async {
        let mut send = send.ready().await.map_err(failed)?;
        let (response, mut body) = send.send_request(request, false).map_err(failed)?;
        body.send_data(message(service), true).map_err(failed)?;
        read(response.await.map_err(failed)?, failed).await
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        status = &mut answer => status,
        ended = &mut connection => {
            ended.map_err(failed)?;
            match tokio::time::timeout(Duration::ZERO, answer).await {
                Ok(status) => status,
                Err(_) => Err(ProbeError::Answer(format!("{endpoint} closed the connection without an answer"))),
            }
        }
    }
}

fn request(endpoint: &Endpoint, timeout: Duration) -> Result<Request<()>, ProbeError> {
    Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{endpoint}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, PROBE_AGENT)
        .header("grpc-timeout", format!("{}m", timeout.as_millis().clamp(1, 99_999_999)))
        .body(())
        .map_err(|e| ProbeError::Request(format!("gRPC request to {endpoint}: {e}")))
}

/// One uncompressed message: `HealthCheckRequest { service = 1 }`.
fn message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8(low_bits(length) | 0x80);
            length >>= 7;
        }
        field.put_u8(low_bits(length));
        field.put_slice(service.as_bytes());
    }
    let mut out = BytesMut::with_capacity(field.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    out.unsplit(field);
    out.freeze()
}

fn low_bits(n: usize) -> u8 {
    u8::try_from(n & 0x7f).unwrap_or_default()
}

async fn read(
    response: http::Response<h2::RecvStream>,
    failed: impl Fn(h2::Error) -> ProbeError,
) -> Result<u64, ProbeError> {
    let (head, mut body) = response.into_parts();
    if head.status != http::StatusCode::OK {
        let status = head.status.as_u16();
        return Err(ProbeError::Answer(format!("gRPC health check failed with HTTP status {status}")));
    }
    rpc_status(&head.headers)?;
    let mut data = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(&failed)?;
        if data.len() + chunk.len() > MAX_MESSAGE {
            return Err(ProbeError::Answer(format!("gRPC health answer is larger than {MAX_MESSAGE} bytes")));
        }
        body.flow_control().release_capacity(chunk.len()).map_err(&failed)?;
        data.put(chunk);
    }
    if let Some(trailers) = body.trailers().await.map_err(&failed)? {
        rpc_status(&trailers)?;
    }
    serving_status(&data).ok_or_else(|| ProbeError::Answer("gRPC health answer cannot be read".to_owned()))
}

/// The call's status, in trailers or, without a message, in the headers.
fn rpc_status(headers: &HeaderMap) -> Result<(), ProbeError> {
    let text = |name| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    match text("grpc-status").as_deref() {
        None | Some("0") => Ok(()),
        Some(UNIMPLEMENTED) => Err(ProbeError::Answer(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
        )),
        Some(code) => {
            let message: String = text("grpc-message").unwrap_or_default().chars().take(200).collect();
            Err(ProbeError::Answer(format!("gRPC health check failed with status {code}: {message}")))
        }
    }
}

/// `HealthCheckResponse { status = 1 }` of one uncompressed message. Without the field the status
/// is 0.
fn serving_status(data: &[u8]) -> Option<u64> {
    let (&compressed, rest) = data.split_first()?;
    let (length, message) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    if compressed != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let (mut status, mut rest) = (0, message);
    while !rest.is_empty() {
        let (key, tail) = varint(rest)?;
        rest = match key & 7 {
            0 => {
                let (value, tail) = varint(tail)?;
                if key >> 3 == 1 {
                    status = value;
                }
                tail
            }
            1 => tail.get(8..)?,
            2 => {
                let (length, tail) = varint(tail)?;
                tail.get(usize::try_from(length).ok()?..)?
            }
            5 => tail.get(4..)?,
            _ => return None,
        };
    }
    Some(status)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, b) in bytes.iter().enumerate().take(10) {
        value |= u64::from(b & 0x7f).checked_shl(7 * u32::try_from(i).ok()?)?;
        if b & 0x80 == 0 {
            return Some((value, bytes.get(i + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_coded_as_protobuf() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
        assert_eq!(long.len(), 308);
    }

    #[test]
    fn health_answers_are_decoded() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0, 0, 0, 5, 0x12, 1, 7, 8, 2]), Some(2), "unknown fields are skipped");
        for bad in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 1, 8]]
        {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut framed = vec![0, 0, 0, 0, u8::try_from(data.len()).unwrap()];
            framed.extend(&data);
            let _known = serving_status(&framed);
            let _known = serving_status(&data);
        }
    }
}
