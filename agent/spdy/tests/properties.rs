//! Any cut of the bytes gives the same frames; no bytes panic, and none make the reader hold more than its
//! limits.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as tests do")]

use berth_spdy::{Connection, Decoder, Error, Event, Frame, Headers, Limits, ResetStatus, encode};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

/// A frame that a client may send.
#[derive(Debug, Clone)]
enum Sent {
    Open { fin: bool, value: String },
    Data { stream: u32, length: usize, fin: bool },
    Reset(u32),
    Ping(u32),
    Settings,
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        (any::<bool>(), "[a-z]{0,300}").prop_map(|(fin, value)| Sent::Open { fin, value }),
        (1_u32..20, 0_usize..5000, any::<bool>()).prop_map(|(stream, length, fin)| Sent::Data {
            stream,
            length,
            fin
        }),
        (1_u32..20).prop_map(Sent::Reset),
        (1_u32..100).prop_map(Sent::Ping),
        Just(Sent::Settings),
    ]
}

fn bytes(all: &[Sent]) -> Vec<u8> {
    let mut writer = encode::HeaderWriter::default();
    let (mut next, mut to) = (1, Vec::new());
    for one in all {
        match one {
            Sent::Open { fin, value } => {
                writer.syn_stream(&mut to, next, *fin, &Headers::of(&[("streamtype", value), ("port", "1")]));
                next += 2;
            }
            Sent::Data { stream, length, fin } => {
                to.extend_from_slice(&encode::data_head(*stream, *length, *fin));
                to.extend((0..*length).map(|n| u8::try_from(n % 251).unwrap()));
            }
            Sent::Reset(stream) => encode::reset(&mut to, *stream, ResetStatus::Cancel),
            Sent::Ping(id) => encode::ping(&mut to, *id),
            Sent::Settings => to.extend_from_slice(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0]),
        }
    }
    to
}

/// Reads frames from parts of these lengths, which are repeated; the pieces of one data frame are joined.
fn frames(all: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let (mut received, mut frames, mut rest) = (BytesMut::new(), Vec::<Frame>::new(), all);
    let mut open = false;
    for cut in cuts.iter().cycle() {
        let (part, left) = rest.split_at((*cut).clamp(1, rest.len().max(1)).min(rest.len()));
        rest = left;
        received.extend_from_slice(part);
        while let Some(frame) = decoder.next(&mut received)? {
            match (frame, frames.last_mut()) {
                (
                    Frame::Data { stream, payload, fin },
                    Some(Frame::Data { stream: known, payload: before, fin: ended }),
                ) if open && stream == *known && !*ended => {
                    *before = Bytes::from([&before[..], &payload[..]].concat());
                    *ended = fin;
                }
                (frame, _) => {
                    open = matches!(frame, Frame::Data { .. });
                    frames.push(frame);
                }
            }
        }
        if rest.is_empty() {
            return Ok(frames);
        }
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_cuts_give_the_same_frames(
        all in prop::collection::vec(sent(), 0..20),
        cuts in prop::collection::vec(1_usize..600, 1..20),
    ) {
        let bytes = bytes(&all);
        prop_assert_eq!(frames(&bytes, &cuts), frames(&bytes, &[bytes.len().max(1)]));
        prop_assert_eq!(frames(&bytes, &[1]), frames(&bytes, &cuts));
    }
}

/// A small generator, so that a failing mutation is found again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }
}

#[test]
fn a_hundred_thousand_mutations_neither_panic_nor_grow() {
    let seed = bytes(&[
        Sent::Open { fin: false, value: "stdin".into() },
        Sent::Open { fin: true, value: "stdout".repeat(20) },
        Sent::Data { stream: 1, length: 40, fin: false },
        Sent::Ping(1),
        Sent::Settings,
        Sent::Data { stream: 1, length: 0, fin: true },
        Sent::Reset(3),
    ]);
    let real = include_bytes!("client.bin");
    let mut numbers = Numbers(1);
    let mut errors = 0_u32;
    for round in 0..100_000 {
        let mut bytes = if round % 2 == 0 { seed.clone() } else { real.to_vec() };
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 => bytes[at] = u8::try_from(numbers.below(256)).unwrap(),
                1 => bytes[at] ^= 1 << numbers.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, u8::try_from(numbers.below(256)).unwrap()),
            }
        }
        let limits = Limits { control: 512, headers: 256, streams: 3 };
        let mut connection = Connection::new(limits);
        let (mut received, mut answers) = (BytesMut::new(), Vec::new());
        'read: for part in bytes.chunks(1 + numbers.below(64)) {
            received.extend_from_slice(part);
            loop {
                match connection.next(&mut received, &mut answers) {
                    Ok(Some(Event::Data { payload, .. })) => assert!(payload.len() <= part.len()),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        errors += 1;
                        break 'read;
                    }
                }
            }
            // What is kept is at most one control frame, and no answer is longer than its question.
            assert!(received.len() <= 512 + 8 + 64, "{}", received.len());
            assert!(answers.len() <= 2 * bytes.len() + 16);
            assert!(connection.open_streams() <= 3);
        }
    }
    assert!(errors > 10_000, "only {errors} mutations were errors");
}

/// Deflate of `n` zero bytes, as the shortest compressor writes it: one literal, then matches of 258 at distance 1.
fn bomb(n: usize) -> Vec<u8> {
    let mut bits = Vec::new();
    let mut put = |value: u32, count: u32, high_first: bool| {
        for at in 0..count {
            let at = if high_first { count - 1 - at } else { at };
            bits.push(value >> at & 1 == 1);
        }
    };
    put(0, 1, false);
    put(1, 2, false);
    put(0x30, 8, true);
    for _ in 0..n / 258 {
        put(0b1100_0101, 8, true);
        put(0, 5, true);
    }
    put(0, 7, true);
    // An empty stored block ends at a byte.
    put(0, 3, false);
    let mut out = vec![0x78, 0x01];
    for byte in bits.chunks(8) {
        out.push(byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | u8::from(*bit) << at));
    }
    out.extend_from_slice(&[0, 0, 0xff, 0xff]);
    out
}

fn syn_stream(block: &[u8]) -> BytesMut {
    let mut frame = BytesMut::from(&[0x80, 3, 0, 1][..]);
    frame.extend_from_slice(&u32::try_from(block.len() + 10).unwrap().to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(block);
    frame
}

#[test]
fn a_header_block_that_grows_beyond_the_limit_is_an_error() {
    let limits = Limits { headers: 64 * 1024, ..Limits::DEFAULT };
    let read = |n| Decoder::new(limits).next(&mut syn_stream(&bomb(n)));
    // Within the limit the block is inflated whole, and its zeros are a list of no headers with a rest.
    assert_eq!(read(60 * 1024), Err(Error::Headers("bytes follow the last header")));
    assert_eq!(read(70 * 1024), Err(Error::Compression("it is longer than allowed")));
    assert_eq!(read(1_200_000), Err(Error::Compression("it is longer than allowed")));
}

#[test]
fn limits_and_stream_numbers_are_kept() {
    let limits = Limits { streams: 2, ..Limits::DEFAULT };
    let mut connection = Connection::new(limits);
    let mut writer = encode::HeaderWriter::default();
    let mut sent = Vec::new();
    for stream in [1, 3, 5, 3, 4] {
        writer.syn_stream(&mut sent, stream, false, &Headers::default());
    }
    let (mut received, mut answers) = (BytesMut::from(&sent[..]), Vec::new());
    let mut opened = Vec::new();
    while let Some(event) = connection.next(&mut received, &mut answers).unwrap() {
        let Event::Opened { stream, .. } = event else { panic!("{event:?}") };
        opened.push(stream);
    }
    assert_eq!(opened, [1, 3]);
    let mut expected = Vec::new();
    encode::reset(&mut expected, 5, ResetStatus::RefusedStream);
    encode::reset(&mut expected, 3, ResetStatus::ProtocolError);
    encode::reset(&mut expected, 4, ResetStatus::ProtocolError);
    assert_eq!(answers, expected);

    // A stream that both sides have finished, or that one has reset, makes room for another.
    assert!(connection.local_finished(1) && !connection.local_finished(1));
    let mut more = BytesMut::from(&encode::data_head(1, 0, true)[..]);
    assert_eq!(connection.next(&mut more, &mut answers).unwrap(), Some(Event::Finished { stream: 1 }));
    let mut to = Vec::new();
    connection.reset(3, ResetStatus::Cancel, &mut to);
    connection.reset(3, ResetStatus::Cancel, &mut to);
    assert_eq!((to.len(), connection.open_streams()), (16, 0));
    assert!(!connection.local_finished(3));
}

#[test]
fn a_server_is_read_by_the_same_rules() {
    let mut connection = Connection::new(Limits::DEFAULT);
    let mut to = Vec::new();
    connection.accept(1, &mut to);
    connection.accept(3, &mut to);
    connection.go_away(&mut to);
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let mut received = BytesMut::from(&to[..]);
    for stream in [1, 3] {
        let reply = Frame::SynReply { stream, fin: false, headers: Headers::default() };
        assert_eq!(decoder.next(&mut received).unwrap(), Some(reply));
    }
    assert_eq!(decoder.next(&mut received).unwrap(), Some(Frame::GoAway { last: 0, status: 0 }));
}
