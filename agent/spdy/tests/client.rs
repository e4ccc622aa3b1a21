//! Bytes of a real client: written by moby/spdystream 0.5.1, whose compressor uses the dictionary and refers to
//! earlier blocks.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as tests do")]

use berth_spdy::{Connection, Decoder, Event, Frame, Headers, Limits, encode};
use bytes::{Bytes, BytesMut};

/// The five streams of a terminal, the two of a forwarded connection, and one frame of each other type.
const CLIENT: &[&str] = &[
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    "800300010000001700000003000000000000c22e555c92929907000000ffff",
    "800300010000001900000005000000000000c22ac5565c92925f5a02000000ffff",
    "800300010000001500000007000000000000c229975a5404000000ffff",
    "800300010000001800000009000000000000c22e57945a9c59950a000000ffff",
    "800300010000002e0000000b00000000000002257fdc2e6129c82f02e7450b030b03060606ce224882ca04653426437300000000ffff",
    "800300010000001c0000000d00000000000082eac6228c6a20a8944c44370f000000ffff",
    "800300080000001300000001823a8b1124c19cc4900c000000ffff",
    "000000030000000568656c6c6f",
    "0000000301000000",
    "800300060000000400000001",
    "800300040000000c000000010100000400000064",
    "80030009000000080000000100000063",
    "80030003000000080000000500000005",
    "80030007000000080000000000000000",
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn stream() -> Vec<u8> {
    CLIENT.iter().flat_map(|hex| bytes(hex)).collect()
}

fn stream_type(of: &str) -> Headers {
    Headers::of(&[("streamtype", of)])
}

#[test]
fn every_frame_of_a_client_is_read() {
    let mut received = BytesMut::from(&stream()[..]);
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next(&mut received).unwrap() {
        frames.push(frame);
    }
    assert!(received.is_empty());
    let open = |stream, headers| Frame::SynStream { stream, fin: false, unidirectional: false, headers };
    for (at, name) in ["error", "stdin", "stdout", "stderr", "resize"].into_iter().enumerate() {
        assert_eq!(frames[at], open(1 + 2 * u32::try_from(at).unwrap(), stream_type(name)));
    }
    for (frame, kind) in [(&frames[5], "error"), (&frames[6], "data")] {
        let Frame::SynStream { headers, .. } = frame else { panic!("{frame:?}") };
        let get = |name| headers.get(name);
        assert_eq!(
            (get("port"), get("requestid"), get("streamtype")),
            (Some("8080"), Some("17"), Some(kind))
        );
    }
    assert_eq!(
        frames[7..],
        [
            Frame::Headers { stream: 1, fin: false, headers: Headers::of(&[("a", "b\0c")]) },
            Frame::Data { stream: 3, payload: Bytes::from_static(b"hello"), fin: false },
            Frame::Data { stream: 3, payload: Bytes::new(), fin: true },
            Frame::Ping { id: 1 },
            Frame::Settings,
            Frame::WindowUpdate,
            Frame::RstStream { stream: 5, status: 5 },
            Frame::GoAway { last: 0, status: 0 },
        ]
    );
}

#[test]
fn a_server_reports_what_the_client_did_and_answers_its_ping() {
    let mut received = BytesMut::from(&stream()[..]);
    let mut connection = Connection::new(Limits::DEFAULT);
    let mut answers = Vec::new();
    let mut events = Vec::new();
    while let Some(event) = connection.next(&mut received, &mut answers).unwrap() {
        events.push(event);
    }
    assert_eq!(events.len(), 7 + 4);
    assert_eq!(
        events[7..],
        [
            Event::Data { stream: 3, payload: Bytes::from_static(b"hello") },
            Event::Finished { stream: 3 },
            Event::Reset { stream: 5 },
            Event::GoneAway,
        ]
    );
    let mut ping = Vec::new();
    encode::ping(&mut ping, 1);
    assert_eq!(answers, ping);
    assert_eq!(connection.open_streams(), 6);
}
