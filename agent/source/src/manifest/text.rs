//! Text to generic values: the documents of a YAML file, or JSON. Size, depth and number of documents are
//! bounded here.

use super::yaml;
use crate::convert::field::{FieldError, shorten};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::{cell::RefCell, fmt, path::Path};

/// Limit of the size of a file, in bytes. A larger file is not read.
pub const MAX_FILE_BYTES: u64 = 10 << 20;

/// Limit of the levels of nesting.
const MAX_DEPTH: usize = 64;

/// Limit of the documents in a file.
const MAX_DOCUMENTS: usize = 10_000;

/// The documents of a file, with their numbers from 1.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// Each document with its number.
    pub(super) values: Vec<(usize, Value)>,
    /// Errors about keys that an object repeats, with the numbers of their documents. The last of equal keys
    /// counts.
    pub(super) repeated_keys: Vec<(usize, FieldError)>,
}

/// Splits a file into documents. Documents without content are counted but left out.
pub(super) fn documents(path: &Path, bytes: &[u8]) -> Result<Documents, (Option<usize>, FieldError)> {
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
        return Err((None, FieldError::plain(format!("is larger than {MAX_FILE_BYTES} bytes"))));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| (None, FieldError::plain(format!("is not UTF-8 from byte {} on", e.valid_up_to()))))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let json = path.extension().is_some_and(|e| e == "json");
    if json || text.trim_start().starts_with('{') {
        match json_documents(text) {
            Err(e) if json => return Err(e),
            // A YAML flow mapping starts with a brace too.
            Err(_) => {}
            Ok(documents) => return Ok(documents),
        }
    }
    yaml_documents(text)
}

fn json_documents(text: &str) -> Result<Documents, (Option<usize>, FieldError)> {
    let mut documents = Documents::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    // `end` skips blanks and fails if more text follows.
    while reader.end().is_err() {
        let number = documents.values.len().saturating_add(1);
        let repeated_keys = RefCell::default();
        let value = ValueSeed { left: MAX_DEPTH, repeated_keys: &repeated_keys }
            .deserialize(&mut reader)
            .map_err(|e| (Some(number), FieldError::plain(format!("no valid JSON: {e}"))))?;
        if number > MAX_DOCUMENTS {
            return Err((None, FieldError::plain(format!("holds more than {MAX_DOCUMENTS} documents"))));
        }
        documents.values.push((number, value));
        let repeated_keys = repeated_keys.into_inner().into_iter();
        documents.repeated_keys.extend(
            repeated_keys
                .map(|key| (number, FieldError::plain(format!("key {:?} is there twice", shorten(&key))))),
        );
    }
    Ok(documents)
}

fn yaml_documents(text: &str) -> Result<Documents, (Option<usize>, FieldError)> {
    let mut documents = Documents::default();
    let chunks = chunks(text);
    let only = chunks.len() == 1;
    for (number, (line, chunk)) in (1_usize..).zip(chunks) {
        if number > MAX_DOCUMENTS {
            return Err((None, FieldError::plain(format!("holds more than {MAX_DOCUMENTS} documents"))));
        }
        if blank(chunk) {
            continue;
        }
        let (value, repeated_keys) =
            yaml::document(chunk, line, MAX_DEPTH).map_err(|f| (Some(number).filter(|_| !only), f))?;
        documents.repeated_keys.extend(repeated_keys.into_iter().map(|error| (number, error)));
        if !value.is_null() {
            documents.values.push((number, value));
        }
    }
    Ok(documents)
}

/// The text cut at the lines that start a document, each part with the number of lines before it. The text
/// before the first `---` is a document only if it has content. No line within a document may start with
/// `---` and a blank, not even in a block scalar, so that cutting by lines is exact.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        {
            starts.push((number, offset));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]);
    let mut chunks: Vec<(usize, &str)> = starts
        .iter()
        .zip(ends)
        .map(|((line, start), end)| (*line, text.get(*start..end).unwrap_or("")))
        .collect();
    if chunks.len() > 1 && chunks.first().is_some_and(|(_, first)| blank(first)) {
        chunks.remove(0);
    }
    chunks
}

/// Whether the text has only blanks, comments and a document start.
fn blank(chunk: &str) -> bool {
    chunk.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#')
    })
}

/// Seed of a generic JSON value that keeps every number and notes repeated keys.
#[derive(Clone, Copy)]
struct ValueSeed<'t> {
    /// The levels of nesting that may still follow.
    left: usize,
    /// Keys that an object repeats.
    repeated_keys: &'t RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl ValueSeed<'_> {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1);
        left.map(|left| ValueSeed { left, ..self })
            .ok_or_else(|| E::custom(format!("is nested deeper than {MAX_DEPTH} levels")))
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(below)? {
            list.push(value);
        }
        Ok(list.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                self.repeated_keys.borrow_mut().push(key.clone());
            }
            let value = access.next_value_seed(below)?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}
