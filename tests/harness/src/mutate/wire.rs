//! Mutations of Protobuf messages without their schema. A message is parsed by its wire format, changed field
//! by field at any depth, and encoded again. Nested messages are recognised by trial, as are `Any` and maps;
//! bytes that hold a JSON document are damaged as text.

use super::bytes;
use crate::rng::Rng;

/// One field in wire format.
#[derive(Debug, Clone, PartialEq)]
enum Payload {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Fixed32([u8; 4]),
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    number: u64,
    payload: Payload,
}

/// Changes a message in one to three places. One message in ten is also damaged as bytes.
pub fn message(rng: &mut Rng, message: &mut Vec<u8>) {
    for _ in 0..=rng.below(3) {
        change(rng, message, 8);
    }
    if rng.below(10) == 0 {
        bytes(rng, message, &[&[0xff; 10], &[0x0a, 0x7f], &[0]]);
    }
}

fn change(rng: &mut Rng, message: &mut Vec<u8>, depth: u8) {
    let Some(mut fields) = split(message).filter(|f| !f.is_empty()) else {
        return bytes(rng, message, &[b"\"", b"{", b"}", b"0", b"/", b"\0"]);
    };
    let at = rng.index(fields.len());
    let count = fields.len();
    // Most mutations go into nested messages, which hold the meaning.
    if depth > 0
        && rng.below(3) > 0
        && let Payload::Bytes(inner) = &mut fields[at].payload
        && !inner.is_empty()
    {
        change(rng, inner, depth - 1);
        *message = join(&fields);
        return;
    }
    match rng.below(10) {
        0 => drop(fields.remove(at)),
        1 => fields.push(fields[at].clone()),
        2 => fields.swap(at, rng.index(count)),
        3 => fields[at].number = *rng.pick(&[0, 1, 2, 3, 4, 5, 15, 16, 2047, (1 << 29) - 1]),
        4 => {
            let other = fields[rng.index(count)].payload.clone();
            fields[at].payload = other;
        }
        5 => {
            // A length that differs from the payload's.
            let mut raw = join(&fields[..at]);
            tag(&mut raw, fields[at].number, 2);
            varint(&mut raw, *rng.pick(&[0, 1, 127, 1 << 14, u64::from(u32::MAX), u64::MAX]));
            raw.extend(join(&fields[at + 1..]));
            *message = raw;
            return;
        }
        _ => match &mut fields[at].payload {
            Payload::Varint(value) => {
                let near = [*value ^ 1, value.wrapping_add(1), value.wrapping_neg()];
                let far = [0, 1, 128, 255, 1 << 31, u64::from(u32::MAX), i64::MAX as u64, 1 << 63, u64::MAX];
                *value = if rng.below(3) == 0 { *rng.pick(&near) } else { *rng.pick(&far) };
            }
            Payload::Fixed64(raw) => *raw = rng.draw().to_le_bytes(),
            Payload::Fixed32(raw) => *raw = (rng.draw() as u32).to_le_bytes(),
            Payload::Bytes(raw) => match rng.below(4) {
                0 => raw.clear(),
                1 => *raw = raw.repeat(1 + rng.index(40)),
                2 => *raw = b"\xff\xfe not UTF-8".to_vec(),
                _ => bytes(rng, raw, &[b"/", b"..", b"\0", b" "]),
            },
        },
    }
    *message = join(&fields);
}

/// The fields of a message; `None` where the bytes are no message.
fn split(mut raw: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !raw.is_empty() {
        let key = take_varint(&mut raw)?;
        let payload = match key & 7 {
            0 => Payload::Varint(take_varint(&mut raw)?),
            1 => Payload::Fixed64(take(&mut raw, 8)?.try_into().ok()?),
            2 => {
                let len = usize::try_from(take_varint(&mut raw)?).ok()?;
                Payload::Bytes(take(&mut raw, len)?.to_vec())
            }
            5 => Payload::Fixed32(take(&mut raw, 4)?.try_into().ok()?),
            _ => return None,
        };
        let number = key >> 3;
        if number == 0 {
            return None;
        }
        fields.push(Field { number, payload });
    }
    Some(fields)
}

fn join(fields: &[Field]) -> Vec<u8> {
    let mut raw = Vec::new();
    for field in fields {
        match &field.payload {
            Payload::Varint(value) => {
                tag(&mut raw, field.number, 0);
                varint(&mut raw, *value);
            }
            Payload::Fixed64(value) => {
                tag(&mut raw, field.number, 1);
                raw.extend(value);
            }
            Payload::Bytes(value) => {
                tag(&mut raw, field.number, 2);
                varint(&mut raw, value.len() as u64);
                raw.extend(value);
            }
            Payload::Fixed32(value) => {
                tag(&mut raw, field.number, 5);
                raw.extend(value);
            }
        }
    }
    raw
}

fn tag(raw: &mut Vec<u8>, number: u64, kind: u64) {
    varint(raw, number << 3 | kind);
}

fn varint(raw: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        raw.push(value as u8 | 128);
        value >>= 7;
    }
    raw.push(value as u8);
}

fn take<'a>(raw: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = raw.split_at_checked(len)?;
    *raw = rest;
    Some(head)
}

fn take_varint(raw: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(raw, 1)?.first()?;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{1: 150, 2: "testing", 3: {1: 7}, 4: fixed32, 5: fixed64}`.
    const SAMPLE: &[u8] =
        b"\x08\x96\x01\x12\x07testing\x1a\x02\x08\x07\x25\x01\x02\x03\x04\x29\x01\x02\x03\x04\x05\x06\x07\x08";

    #[test]
    fn messages_come_apart_and_together() {
        let fields = split(SAMPLE).unwrap_or_default();
        assert_eq!(fields.len(), 5);
        assert_eq!(fields[0], Field { number: 1, payload: Payload::Varint(150) });
        assert_eq!(join(&fields), SAMPLE);
        let mut most = Vec::new();
        varint(&mut most, u64::MAX);
        assert_eq!(take_varint(&mut most.as_slice()), Some(u64::MAX));
        for torn in [&SAMPLE[..4], &[0x80; 12], &[0x0a, 9, 1], &[3]] {
            assert_eq!(split(torn), None, "{torn:?}");
        }
    }

    #[test]
    fn messages_change_and_mostly_stay_messages() {
        let (mut changed, mut whole) = (0, 0);
        for seed in 0..1000 {
            let mut raw = SAMPLE.to_vec();
            message(&mut Rng::new(seed), &mut raw);
            changed += u64::from(raw != SAMPLE);
            whole += u64::from(split(&raw).is_some());
        }
        assert!(changed > 950 && (500..1000).contains(&whole), "{changed} changed, {whole} whole");
    }
}
