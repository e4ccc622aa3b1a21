//! Inputs of the fuzzer: valid requests and frames, and what is done to them. Pure but for the generator.

use super::client::opened;
use berth_harness::rng::Rng;
use berth_spdy::encode;

/// What an input is sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The head of a request, and what follows it.
    Head,
    /// Frames of a command on SPDY.
    Command,
    /// Frames of a forwarded port on SPDY.
    Forward,
    /// Frames of a WebSocket with channels.
    Channels,
    /// Frames of SPDY in the messages of a WebSocket.
    Tunnel,
}

pub(crate) const KINDS: [Kind; 5] = [Kind::Head, Kind::Command, Kind::Forward, Kind::Channels, Kind::Tunnel];

/// Paths that there are, at the beginning of [`PATHS`].
const GOOD: usize = 16;

const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PRI", "get"];

const PATHS: [&str; 26] = [
    "/pods",
    "/healthz",
    "/metrics",
    "/stats/summary",
    "/configz",
    "/runningpods/",
    "/logs/",
    "/logs/pods",
    "/containerLogs/POD/c",
    "/containerLogs/POD/none",
    "/exec/POD/c",
    "/attach/POD/c",
    "/run/POD/c",
    "/portForward/POD",
    "/metrics/cadvisor",
    "/metrics/resource",
    "/logs/../../etc/shadow",
    "/logs/%2e%2e/%2e%2e/etc/shadow",
    "//pods",
    "/pods%2f",
    "/exec/POD%2fc",
    "https://n:10250/pods",
    "http://[::1/pods",
    "*",
    "/\u{0}",
    "",
];

const QUERIES: [&str; 16] = [
    "follow=true",
    "tailLines=9223372036854775807",
    "tailLines=-1",
    "limitBytes=1",
    "limitBytes=99999999999999999999",
    "sinceSeconds=9223372036854775807",
    "sinceTime=9999-12-31T23:59:59.999999999Z",
    "sinceTime=-0001-01-01T00:00:00Z",
    "timestamps=1",
    "previous=1",
    "command=true",
    "command=%00",
    "input=1",
    "output=1&error=1",
    "tty=1",
    "port=80,0,65536",
];

const HEADERS: [&str; 22] = [
    "Connection: Upgrade",
    "Connection: keep-alive, upgrade",
    "Connection: close",
    "Upgrade: SPDY/3.1",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    "X-Stream-Protocol-Version: v4.channel.k8s.io",
    "X-Stream-Protocol-Version: v5.channel.k8s.io",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol: v4.base64.channel.k8s.io",
    "Content-Length: 5",
    "Content-Length: 0",
    "Content-Length: -1",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity, chunked",
    "Expect: 100-continue",
    "Authorization: Bearer x",
    "X-HTTP-Method-Override: POST",
    "Host: other",
    "Range: bytes=0-",
];

/// An input of this kind; `pod` is in its paths.
pub(crate) fn input(kind: Kind, pod: &str, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = match kind {
        Kind::Head => head(pod, rng),
        Kind::Command => command(rng),
        Kind::Forward => forward(rng),
        Kind::Channels => (0..=rng.below(8)).flat_map(|_| message(rng)).collect(),
        Kind::Tunnel => {
            let frames = forward(rng);
            let mut at = &frames[..];
            let mut bytes = Vec::new();
            while !at.is_empty() {
                let (piece, rest) = at.split_at(at.len().min(1 + rng.index(64)));
                bytes.extend(masked(0x82, piece, rng));
                at = rest;
            }
            bytes
        }
    };
    mutate(&mut bytes, rng);
    bytes
}

fn head(pod: &str, rng: &mut Rng) -> Vec<u8> {
    // Most heads get past the parser.
    let path = if rng.one_in(4) { rng.pick(&PATHS) } else { rng.pick(&PATHS[..GOOD]) }.replace("POD", pod);
    let method = if rng.one_in(4) { rng.pick(&METHODS) } else { rng.pick(&METHODS[..2]) };
    let queries: Vec<&str> = (0..rng.below(5)).map(|_| *rng.pick(&QUERIES)).collect();
    let version = if rng.one_in(10) { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut text = format!("{} {path}?{} {version}\r\nHost: n\r\n", method, queries.join("&"));
    for _ in 0..rng.below(8) {
        text += *rng.pick(&HEADERS);
        text += "\r\n";
    }
    if rng.one_in(50) {
        text += &"X: y\r\n".repeat(2000);
    }
    text += "\r\n";
    if rng.one_in(3) {
        text += "5\r\nhello\r\n0\r\n\r\nGET /pods HTTP/1.1\r\nHost: n\r\n\r\n";
    }
    text.into_bytes()
}

fn command(rng: &mut Rng) -> Vec<u8> {
    let mut kinds = vec!["error", "stdin", "stdout", "resize"];
    if rng.one_in(4) {
        kinds.push("stderr");
        kinds.swap(0, rng.index(4));
    }
    let streams: Vec<_> = kinds.iter().map(|kind| [("streamtype", *kind)]).collect();
    let mut bytes = opened(&streams.iter().map(|headers| &headers[..]).collect::<Vec<_>>());
    for _ in 0..rng.below(12) {
        frame(&mut bytes, rng);
    }
    bytes
}

fn forward(rng: &mut Rng) -> Vec<u8> {
    let ids: Vec<String> = (0..=rng.below(20)).map(|_| rng.below(8).to_string()).collect();
    let ports = ["80", "81", "0", "65536", "-1", ""];
    let kinds = ["error", "data", "other"];
    let streams: Vec<_> = ids
        .iter()
        .map(|id| {
            let kind = if rng.one_in(8) { 2 } else { rng.index(2) };
            let port = if rng.one_in(4) { rng.index(6) } else { 0 };
            [("streamtype", kinds[kind]), ("port", ports[port]), ("requestid", id.as_str())]
        })
        .collect();
    let mut bytes = opened(&streams.iter().map(|headers| &headers[..]).collect::<Vec<_>>());
    for _ in 0..rng.below(12) {
        frame(&mut bytes, rng);
    }
    bytes
}

/// A frame for one of the first streams.
fn frame(to: &mut Vec<u8>, rng: &mut Rng) {
    let stream = u32::try_from(rng.below(12)).unwrap_or_default();
    match rng.below(6) {
        0 => encode::ping(to, stream),
        1 => encode::reset(to, stream, berth_spdy::ResetStatus::Cancel),
        2 if rng.one_in(6) => encode::go_away(to, stream),
        _ => {
            let text: &[u8] =
                if rng.one_in(3) { b"{\"Width\":65535,\"Height\":1}" } else { b"GET / HTTP/1.0\r\n\r\n" };
            to.extend_from_slice(&encode::data_head(stream, text.len(), rng.one_in(4)));
            to.extend_from_slice(text);
        }
    }
}

/// A message for one of the first channels, or a control frame.
fn message(rng: &mut Rng) -> Vec<u8> {
    let channel = if rng.one_in(6) { 255 } else { u8::try_from(rng.below(6)).unwrap_or_default() };
    let payload = [&[channel][..], b"{\"Width\":1,\"Height\":1}"].concat();
    let opcode = *rng.pick(&[0x82, 0x82, 0x82, 0x81, 0x02, 0x80, 0x89, 0x8a, 0x88, 0x83, 0xf2]);
    masked(opcode, &payload, rng)
}

/// A client's frame of a WebSocket, with its length in one of the three forms.
fn masked(opcode: u8, payload: &[u8], rng: &mut Rng) -> Vec<u8> {
    let long = (payload.len() as u64).to_be_bytes();
    let mut frame = vec![opcode];
    match rng.below(8) {
        0 => frame.extend([&[0x80 | 127][..], &long].concat()),
        _ if payload.len() > 125 => frame.extend([0x80 | 126, long[6], long[7]]),
        _ => frame.push(0x80 | long[7]),
    }
    let mask = rng.draw().to_be_bytes();
    frame.extend_from_slice(&mask[..4]);
    frame.extend(payload.iter().zip(mask[..4].iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Does up to four things to the bytes; often none.
fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.below(5) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.index(bytes.len());
        let end = at + rng.index((bytes.len() - at).min(64) + 1);
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' ', b'%']),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let noise: Vec<u8> = (0..rng.below(32)).map(|_| rng.draw().to_be_bytes()[0]).collect();
                bytes.splice(at..end, noise);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_again() {
        for kind in KINDS {
            let all = |seed| {
                let mut rng = Rng::new(seed);
                (0..200).map(|_| input(kind, "ns/p", &mut rng)).collect::<Vec<_>>()
            };
            assert_eq!(all(7), all(7), "{kind:?}");
            assert_ne!(all(7), all(8), "{kind:?}");
        }
    }
}
