use super::*;
use proptest::prelude::*;

/// A client's frame.
fn client(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let (head, length) = head(Opcode::Binary, payload.len());
    let mut frame = head[..length].to_vec();
    frame[0] = first;
    frame[1] |= 0x80;
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Messages and control frames, read from parts of these lengths.
fn read(all: &[u8], cuts: &[usize]) -> Result<(Vec<Vec<u8>>, Vec<Part>), FrameError> {
    let (mut decoder, mut received) = (Decoder::default(), BytesMut::new());
    let (mut messages, mut others, mut open) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    let (mut rest, mut cuts) = (all, cuts.iter().cycle());
    while !rest.is_empty() {
        let (part, left) = rest.split_at((*cuts.next().unwrap()).clamp(1, rest.len()));
        rest = left;
        received.extend_from_slice(part);
        while let Some(part) = decoder.next(&mut received)? {
            let Part::Data { first, payload, last } = part else {
                others.push(part);
                continue;
            };
            assert_eq!(first, open.is_none());
            open.get_or_insert_default().extend_from_slice(&payload);
            if last {
                messages.extend(open.take());
            }
        }
    }
    Ok((messages, others))
}

#[test]
fn messages_of_every_length_are_read() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_001] {
        let payload: Vec<u8> = (0..length).map(|n| u8::try_from(n % 253).unwrap()).collect();
        let frame = client(0x82, &payload, [7, 99, 0, 255]);
        assert_eq!(read(&frame, &[frame.len()]).unwrap().0, [payload]);
    }
}

#[test]
fn control_frames_stand_between_the_frames_of_a_message() {
    let mut all = client(0x01, b"ab", [1, 2, 3, 4]);
    all.extend(client(0x89, b"alive", [5, 6, 7, 8]));
    all.extend(client(0x8a, b"", [0; 4]));
    all.extend(client(0x80, b"cde", [9, 9, 9, 9]));
    all.extend(client(0x88, &[3, 232], [1, 1, 1, 1]));
    let (messages, others) = read(&all, &[3]).unwrap();
    assert_eq!(messages, [b"abcde".to_vec()]);
    assert_eq!(others, [Part::Ping(Bytes::from_static(b"alive")), Part::Close]);
}

#[test]
fn what_no_client_sends_is_an_error() {
    let error = |bytes: &[u8]| read(bytes, &[bytes.len()]).unwrap_err();
    assert_eq!(error(&[0x82, 0x01, b'x']), FrameError::NotMasked);
    assert_eq!(error(&client(0xc2, b"", [0; 4])), FrameError::Reserved);
    assert_eq!(error(&client(0x83, b"", [0; 4])), FrameError::Reserved);
    assert_eq!(error(&client(0x8b, b"", [0; 4])), FrameError::Reserved);
    assert_eq!(error(&client(0x09, b"", [0; 4])), FrameError::Control);
    assert_eq!(error(&client(0x89, &[0; 126], [0; 4])), FrameError::Control);
    assert_eq!(error(&client(0x80, b"", [0; 4])), FrameError::Order);
    let twice = [client(0x02, b"a", [0; 4]), client(0x82, b"b", [0; 4])].concat();
    assert_eq!(error(&twice), FrameError::Order);
}

#[test]
fn heads_of_the_server_have_the_shortest_form() {
    let head = |length| {
        let (head, size) = super::head(Opcode::Binary, length);
        head[..size].to_vec()
    };
    assert_eq!(head(5), [0x82, 5]);
    assert_eq!(head(300), [0x82, 126, 1, 44]);
    assert_eq!(head(65_536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(close(), [0x88, 2, 3, 232]);
    assert_eq!(pong(b"x"), [0x8a, 1, b'x']);
    assert_eq!(ping(), [0x89, 0]);
}

proptest! {
    #[test]
    fn random_cuts_give_the_same_messages(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..8),
        mask in any::<[u8; 4]>(),
        cuts in prop::collection::vec(1_usize..200, 1..10),
    ) {
        let all: Vec<u8> = payloads.iter().flat_map(|payload| client(0x82, payload, mask)).collect();
        prop_assert_eq!(read(&all, &cuts).unwrap().0, payloads);
    }

    #[test]
    fn any_bytes_are_read_without_growth(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (mut decoder, mut received) = (Decoder::default(), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = decoder.next(&mut received) {}
        prop_assert!(received.len() <= bytes.len());
    }
}
