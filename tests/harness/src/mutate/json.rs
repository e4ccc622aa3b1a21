//! Mutations of JSON documents: dropped, renamed and foreign keys, swapped values, changed types, numbers at
//! their limits, and texts with a meaning elsewhere. A third of the documents is damaged as text too.

use super::{Bytes, bytes};
use crate::rng::Rng;
use serde_json::{Map, Value, json};

/// Documents to mutate, and values to insert.
#[derive(Debug, Clone)]
pub struct Corpus {
    documents: Vec<Value>,
    odd: Vec<Value>,
}

const PIECES: &[&[u8]] = &[
    b"{", b"}", b"[", b"]", b"\"", b":", b",", b"0", b"-", b"null", b"1e999", b"\\u0000", b"\\ud800", b"\0",
];

impl Corpus {
    /// Makes a corpus. `texts` are odd values specific to these documents; values that are odd in any
    /// document are added.
    pub fn new(documents: Vec<Value>, texts: &[&str]) -> Corpus {
        let mut odd = vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(i32::MAX),
            json!(u32::MAX),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1.5),
            json!(1e300),
            json!(""),
            json!("-1"),
            json!("99999999999999999999"),
            json!("../../etc"),
            json!("/"),
            json!("\u{0}"),
            json!("a b\nc"),
            json!("ä\u{202e}\u{1F600}"),
            json!("x".repeat(5000)),
            json!([]),
            json!({}),
            json!([[]]),
            json!([null]),
        ];
        // The given texts occur at least as often as all general values together.
        for text in texts.iter().cycle().take(odd.len().max(texts.len())) {
            odd.push(json!(text));
        }
        Corpus { documents, odd }
    }

    /// The unchanged documents.
    pub fn documents(&self) -> &[Value] {
        &self.documents
    }

    /// A document with one to four changes.
    pub fn value(&self, rng: &mut Rng) -> Value {
        let mut value = rng.pick(&self.documents).clone();
        for _ in 0..=rng.below(4) {
            self.change(&mut value, rng);
        }
        value
    }

    /// A changed document as text; a third is damaged as text too.
    pub fn text(&self, rng: &mut Rng) -> Bytes {
        let mut text = self.value(rng).to_string().into_bytes();
        if rng.below(3) == 0 {
            bytes(rng, &mut text, PIECES);
        }
        Bytes(text)
    }

    /// A document with one change as text. For documents of few fields, of which hardly any stays valid after
    /// several changes.
    pub fn text_changed_once(&self, rng: &mut Rng) -> Bytes {
        let mut value = rng.pick(&self.documents).clone();
        self.change(&mut value, rng);
        Bytes(value.to_string().into_bytes())
    }

    fn change(&self, value: &mut Value, rng: &mut Rng) {
        let mut other = rng.pick(&self.documents).clone();
        let kind = rng.below(9);
        match (kind, place(value, rng)) {
            (0, Value::Object(map)) if !map.is_empty() => {
                map.remove(&key(map, rng));
            }
            (1, Value::Object(map)) if !map.is_empty() => {
                let key = key(map, rng);
                let renamed = [key.to_uppercase(), format!("{key}s"), String::new(), format!("{key}\0")];
                let taken = map.remove(&key).unwrap_or_default();
                map.insert(rng.pick(&renamed).clone(), taken);
            }
            (2, Value::Array(list)) if !list.is_empty() => {
                // Occasionally far more entries than any real document has.
                let times = if rng.below(200) == 0 { 500 } else { 1 };
                let again = rng.pick(list).clone();
                list.extend(std::iter::repeat_n(again, times));
            }
            (3, Value::Array(list)) if !list.is_empty() => {
                list.remove(rng.index(list.len()));
            }
            (4, Value::Object(map)) => {
                if let Value::Object(donor) = place(&mut other, rng).take() {
                    map.extend(donor);
                }
            }
            (5, spot) => *spot = place(&mut other, rng).take(),
            (6, spot) => *spot = retyped(spot.take()),
            (7, Value::String(text)) => {
                let mut raw = std::mem::take(text).into_bytes();
                bytes(rng, &mut raw, &[b"/", b".", b":", b" ", b"\0", b"9"]);
                *text = String::from_utf8_lossy(&raw).into_owned();
            }
            (8, Value::Number(number)) => {
                let near = number.as_i64().unwrap_or_default().wrapping_add(rng.below(3) as i64 - 1);
                *number = near.into();
            }
            (_, spot) => *spot = rng.pick(&self.odd).clone(),
        }
    }
}

fn key(map: &Map<String, Value>, rng: &mut Rng) -> String {
    key_at(map, rng.index(map.len()))
}

fn key_at(map: &Map<String, Value>, at: usize) -> String {
    map.keys().nth(at).cloned().unwrap_or_default()
}

/// A random place in the value; each container on the way is entered with a chance of 5 in 6.
fn place<'v>(mut value: &'v mut Value, rng: &mut Rng) -> &'v mut Value {
    loop {
        let inner = match value {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if inner == 0 || rng.below(6) == 0 {
            return value;
        }
        let at = rng.index(inner);
        value = match value {
            Value::Object(map) => {
                let key = key_at(map, at);
                &mut map[key.as_str()]
            }
            Value::Array(list) => &mut list[at],
            leaf => return leaf,
        };
    }
}

/// The value as another type.
fn retyped(value: Value) -> Value {
    match value {
        Value::String(text) => text.parse::<i64>().map_or_else(|_| json!([text]), Value::from),
        Value::Number(number) => number.to_string().into(),
        Value::Array(list) => list.into_iter().next().unwrap_or(Value::Null),
        Value::Object(map) => map.into_iter().map(|(_, v)| v).collect::<Vec<_>>().into(),
        other => json!([other]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_change_and_mostly_stay_documents() {
        let corpus = Corpus::new(vec![json!({"a": [1, "b", {"c": null}], "d": "10"})], &["odd"]);
        let (mut changed, mut read) = (0, 0);
        for seed in 0..1000 {
            let text = corpus.text(&mut Rng::new(seed));
            let back = serde_json::from_slice::<Value>(&text);
            read += u64::from(back.is_ok());
            changed += u64::from(back.is_err() || back.is_ok_and(|v| v != corpus.documents[0]));
        }
        assert!((600..1000).contains(&read) && changed > 900, "{read} read, {changed} changed");
    }
}
